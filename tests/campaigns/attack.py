"""What a hostile relay can try with sealed frames; nothing of it may be applied.

Parts: `flips` (round i flips bit i of a frame of 4,160 bytes: 33,280 rounds are all of them), `replay`, `reorder`,
`cross_disk`, `cross_session`, `reflect`, `cut`, `nonces` (a round is one restart that seals 10,000 frames).
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import pytest

from drcore.errors import HomewardError
from drcore.secret import Secret
from tests.campaigns.runner import Campaign, Round
from wireproto import keys
from wireproto.connection import Connection, Received
from wireproto.frame import HEADER_BYTES, StreamSealer
from wireproto.handshake import DiskOffer, Hello, Purpose
from wireproto.keys import TAG_BYTES, connection_secret
from wireproto.messages import PREFIX_BYTES, Data, DiskState, Durable, Open, Opened

SHARED = Secret(bytes(range(32)))
FRAME = 4160
DISKS = (DiskOffer(b"d" * 16, 1 << 30), DiskOffer(b"e" * 16, 1 << 30))
FRAMES_A_RESTART = 10_000


def opened_pair(rng: random.Random) -> tuple[Connection, Connection]:
    """An agent and a master target with an open session of two disks."""
    agent, target = Connection(is_agent=True, shared=SHARED), Connection(is_agent=False, shared=SHARED)
    hello = Hello(Purpose.SESSION, b"i" * 16, 1, 0, 0, 0, rng.randbytes(32), DISKS)
    target.receive(agent.greet(hello))
    agent.receive(target.welcome(rng.randbytes(32), 0))
    target.receive(bytes(agent.send(0, Open(), 0.0)))
    states = tuple(DiskState(1 << 30, empty=False, resumed=False) for _ in DISKS)
    agent.receive(bytes(target.send(0, Opened(1, bytes(16), states), 0.0)))
    return agent, target


def frame_of(agent: Connection, stream: int, size: int = FRAME, fill: bytes = b"x") -> bytes:
    """A sealed data frame of exactly `size` bytes (not the first of its stream, which also holds the commitment)."""
    entries = fill * (size - HEADER_BYTES - TAG_BYTES - PREFIX_BYTES)
    return bytes(agent.send(stream, Data(1, memoryview(entries)), 0.0))


def refused(connection: Connection, data: bytes) -> None:
    """The bytes bring no message, only a coded error or the wait for more bytes."""
    try:
        events = connection.receive(data)
    except HomewardError:
        return
    assert not any(isinstance(event, Received) for event in events), "a hostile frame was applied"


def _pairs(
    play: Callable[[random.Random, Connection, Connection, list[bytes]], None],
) -> Callable[[], object]:
    @contextmanager
    def part() -> Iterator[Round]:
        def one(rng: random.Random, _: int) -> None:
            agent, target = opened_pair(rng)
            first = frame_of(agent, 1, 200)
            target.receive(first)
            later = [frame_of(agent, 1, 100 + rng.randrange(200)) for _ in range(4)]
            play(rng, agent, target, [first, *later])

        yield one

    return part


@contextmanager
def flips() -> Iterator[Round]:
    """One bit of a frame is flipped. The receiver stays where it was, so one pair serves all rounds."""
    rng = random.Random(1)
    agent, target = opened_pair(rng)
    target.receive(frame_of(agent, 1, 200))
    frame = frame_of(agent, 1)
    assert len(frame) == FRAME
    opener = target._openers[1]

    def one(_: random.Random, number: int) -> None:
        bit = number % (8 * FRAME)
        hostile = bytearray(frame)
        hostile[bit // 8] ^= 1 << bit % 8
        before = opener.sequence
        refused(target, bytes(hostile))
        assert opener.sequence == before
        # A longer length makes the receiver wait for bytes that do not come: that is a refusal too. Start afresh.
        target._header, target._filled = None, 0

    yield one
    assert target.receive(frame), "the unharmed frame is still the next one"


def _replay(rng: random.Random, agent: Connection, target: Connection, frames: list[bytes]) -> None:
    seen = frames[: 1 + rng.randrange(len(frames))]
    for frame in seen[1:]:
        assert target.receive(frame)
    refused(target, rng.choice(seen))


def _reorder(rng: random.Random, agent: Connection, target: Connection, frames: list[bytes]) -> None:
    refused(target, frames[rng.randrange(2, len(frames))])


def _cross_disk(rng: random.Random, agent: Connection, target: Connection, frames: list[bytes]) -> None:
    # Stream 2 stands at sequence 1 as well: only the keys tell the two disks apart.
    target.receive(frame_of(agent, 2, 200))
    moved = bytearray(frames[1])
    moved[6:8] = (2).to_bytes(2, "little")
    refused(target, bytes(moved))


def _cross_session(rng: random.Random, agent: Connection, target: Connection, frames: list[bytes]) -> None:
    _, other = opened_pair(rng)
    refused(other, frames[rng.randrange(len(frames))])


def _reflect(rng: random.Random, agent: Connection, target: Connection, frames: list[bytes]) -> None:
    if rng.random() < 0.5:
        refused(agent, frames[rng.randrange(len(frames))])
    else:
        refused(target, bytes(target.send(1, Durable(0), 0.0)))


def _cut(rng: random.Random, agent: Connection, target: Connection, frames: list[bytes]) -> None:
    start = rng.randrange(len(frames[1]))
    end = rng.randrange(start, len(frames[1]))
    refused(target, frames[1][:start] + frames[1][end + 1 :] + frames[2])


class _Spy:
    """Stands where the cipher stands and notes keys and nonces."""

    keys: ClassVar[set[bytes]]

    def __init__(self, key: bytes) -> None:
        assert key not in self.keys, "a key came twice"
        self.keys.add(key)
        self.nonces: set[bytes] = set()

    def encrypt_into(self, nonce: bytes, plain: bytes, associated: bytes, into: memoryview) -> None:
        assert nonce not in self.nonces, "a nonce came twice under one key"
        self.nonces.add(nonce)


@contextmanager
def nonces() -> Iterator[Round]:
    """No (key, nonce) pair comes twice: keys over all restarts, streams and epochs, nonces under each key."""
    into, plain = memoryview(bytearray(256)), bytes(16)

    def one(rng: random.Random, _: int) -> None:
        # The agent restarts from the same state each time; only the fresh random bytes differ.
        secret = connection_secret(SHARED, b"same hello", b"same welcome", rng.randbytes(64))
        for stream in (0, 1, 2):
            for from_agent in (False, True):
                sealer = StreamSealer(secret, from_agent=from_agent, stream=stream, disk=b"d" * 16)
                for number in range(FRAMES_A_RESTART // 6):
                    sealer.seal(plain, into, 2.5 * number)  # an hour is over on the way: a second epoch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "AESGCM", _Spy)
        _Spy.keys = set()
        yield one


CAMPAIGN = Campaign(
    "attack",
    {
        "flips": flips,
        "replay": _pairs(_replay),
        "reorder": _pairs(_reorder),
        "cross_disk": _pairs(_cross_disk),
        "cross_session": _pairs(_cross_session),
        "reflect": _pairs(_reflect),
        "cut": _pairs(_cut),
        "nonces": nonces,
    },
    one_by_one=frozenset({"nonces"}),
)
