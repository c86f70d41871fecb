"""Every decoder of outside bytes: mutated and random input brings a value or a coded error, never anything else."""

import io
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from _native import pack, refer
from disks.layout import Malformed
from drcore.errors import HomewardError
from masttarget.journal import AppliedFrame, CycleRecord, decode_applied, encode_applied, encode_start
from masttarget.target import AppliedRun
from masttarget.verified_layout import HEADER_BYTES, PAGE_BYTES, VerifiedHeader, decode_page, encode_page
from tests.campaigns.attack import SHARED, frame_of, opened_pair
from tests.campaigns.runner import Campaign, Round
from tests.fuzz import microsoft_images, vmware_images
from tests.fuzz import test_disks_hostile as hostile
from tests.fuzz.memory import MEASURED, Content, Stage, measured, stage, use
from tests.unit.test_wireproto_handshake import HELLO
from tests.unit.test_wireproto_messages import MESSAGES, plain
from wireproto import handshake
from wireproto.connection import Connection
from wireproto.keys import handshake_key, prove
from wireproto.messages import decode


def mutated(rng: random.Random, good: bytes) -> bytes:
    """Some bytes changed, cut, repeated or replaced by edge values."""
    data = bytearray(good)
    for _ in range(rng.choice((1, 1, 2, 6))):
        at = rng.randrange(len(data) + 1) if data else 0
        match rng.randrange(5):
            case 0:
                data[at : at + 1] = rng.randbytes(1)
            case 1:
                width = rng.choice((2, 4, 8))
                data[at : at + width] = rng.choice(
                    (0, 1, 2**15, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
                ).to_bytes(8, "little")[:width]
            case 2:
                del data[at : at + rng.randrange(40)]
            case 3:
                data[at:at] = data[: rng.randrange(60)]
            case _:
                data[at:at] = rng.randbytes(rng.randrange(20))
    return bytes(data)


Victim = vmware_images.Victim | microsoft_images.Victim


def _simple(play: Callable[[random.Random], None]) -> Callable[[], object]:
    @contextmanager
    def part() -> Iterator[Round]:
        yield lambda rng, _: play(rng)

    return part


def _messages(rng: random.Random) -> None:
    with suppress(HomewardError):
        decode(memoryview(mutated(rng, plain(rng.choice(MESSAGES)))))


def _handshake(rng: random.Random) -> None:
    # The proof is made right, so that what it protects is looked at.
    key = handshake_key(SHARED)
    body = mutated(rng, handshake.encode_hello(HELLO, key)[:-32])
    with suppress(HomewardError):
        handshake.decode_hello(body + prove(key, b"hello", body), key)
    with suppress(HomewardError):
        handshake.decode_refusal(mutated(rng, b"\3\0abc" * 5))
    with suppress(HomewardError):
        handshake.decode_welcome(rng.randbytes(76), b"", key)


@contextmanager
def frames() -> Iterator[Round]:
    """Bytes in front of a connection, before and after the handshake."""
    agent, target = opened_pair(random.Random(3))
    good = frame_of(agent, 1, 300)

    def one(rng: random.Random, _: int) -> None:
        with suppress(HomewardError):
            Connection(is_agent=rng.random() < 0.5, shared=SHARED).receive(mutated(rng, good))
        with suppress(HomewardError):
            target.receive(mutated(rng, good))
        target._header, target._filled = None, 0

    yield one


@contextmanager
def entries() -> Iterator[Round]:
    """A data frame's entries."""
    rng = random.Random(4)
    span = (rng.randbytes(8192) + b"text " * 11469 + bytes(7))[:65536] * 4
    out = bytearray(1 << 20)
    sectors = b"\xff\xff\x0f\x00\xff\xff\x01\x80"
    _, end, _ = pack.pack(span, 8, 0b1111, sectors, bytes(64), out, 0, 1)
    good, secret = bytes(out[:end]), bytes(range(192))
    block, whole, digests = bytearray(65536), bytearray(65536 * 64), bytearray(16 * 64)

    def one(rng: random.Random, _: int) -> None:
        hostile = mutated(rng, good)
        position = 0
        with suppress(pack.Malformed, pack.Mismatch):
            while position < len(hostile):
                _, bits, _, _, following = pack.entry(hostile, position)
                if bits == 0xFFFF:
                    pack.unpack(hostile, position, 12, 65536, secret, whole, digests)
                else:
                    pack.unpack_patch(hostile, position, 12, 65536, secret, block)
                position = following

    yield one


@contextmanager
def references() -> Iterator[Round]:
    """The entries of a frame of references, resolved by an index of some blocks."""
    rng = random.Random(5)
    secret, disk = bytes(range(192)), rng.randbytes(65536 * 12)
    out = bytearray(1 << 14)
    sectors = b"\xff\xff\x0f\x00\x01\x80\x00\x00"
    _, end, _ = refer.pack(disk[4096 : 4096 + 65536 * 4], 8, 0b111, sectors, bytes(64), secret, out, 0)
    good = bytes(out[:end])
    index = refer.Index(secret, 12, 1024, 2)
    index.learn(disk, 0, False)
    old, fresh, digests = bytes(65536 * 64), bytearray(65536 * 64), bytearray(16 * 64)

    def one(rng: random.Random, _: int) -> None:
        hostile = mutated(rng, good)
        position = least = 0
        with suppress(refer.Malformed):
            while position < len(hostile):
                position, least, blocks, reads = index.plan(hostile, position, least)
                assert all(first + count <= 12 for _, first, count in blocks)
                for place, at, count in reads:
                    inside = place + count <= (refer.SAVED + 32 if place >= refer.SAVED else 192)
                    assert inside
                    assert at + count <= 1024
                index.prove(old, fresh, digests)
                index.displace_batch(old)

    yield one


def _journal(rng: random.Random) -> None:
    disk = b"d" * 16
    frame = AppliedFrame(1, 1, 5, (AppliedRun(3, 2, bytes(32)), AppliedRun(9, 7, b"")))
    good = encode_start(disk) + encode_applied(frame) * 3
    with suppress(ValueError):
        list(decode_applied(io.BytesIO(mutated(rng, good)).read, disk))
    record = CycleRecord("i" * 32, "d" * 32, 1, 2, 3, True, {"uuid": "u"}).encode()
    with suppress(ValueError):
        CycleRecord.decode(mutated(rng, record))


def _verified(rng: random.Random) -> None:
    header = VerifiedHeader(
        b"i" * 16, b"d" * 16, 5 << 20, 7, b"p" * 16, b"r" * 32, rng.random() < 0.5
    ).encode()
    bad = mutated(rng, header)
    with suppress(ValueError):
        assert VerifiedHeader.decode(bad).encode() == bad[:HEADER_BYTES], "believed, and other than it was"
    page = encode_page(3, rng.randbytes(32 * rng.randrange(1, 128)))
    bad = mutated(rng, page)
    with suppress(ValueError):
        decode_page(3, bad)
        assert bad[:PAGE_BYTES] == page, "believed, and other than it was"


def _layouts(rng: random.Random) -> None:
    """The pure decoders of VMware's formats and qcow2: a value, or `Malformed`."""
    for good, decoder in vmware_images.DECODERS:
        with suppress(Malformed):
            decoder(mutated(rng, good))


@contextmanager
def vmware() -> Iterator[Round]:
    """VMware's formats and qcow2, with their extents, parents and backing files; one file of each is mutated."""
    with vmware_images.victims() as good:
        files = {
            name: {each: Content.of(raw) for each, raw in victim.files.items()}
            for name, victim in good.items()
        }
        with stage(files) as here:

            def one(rng: random.Random, number: int) -> None:
                name = rng.choice(vmware_images.NAMES)
                victim = good[name]
                broken = rng.choice(sorted(victim.hot))
                raw = bytearray(victim.files[broken])
                hostile.mutate(raw, rng, victim.hot[broken])
                _use(here, name, broken, Content.of(raw), victim, number, rng)

            yield one


@contextmanager
def microsoft() -> Iterator[Round]:
    """VHD and VHDX, with a parent and with a log that waits to be replayed; one file of each is mutated."""
    with microsoft_images.victims() as good:
        files = {
            name: {each: Content(file.size, file.pages) for each, file in victim.files.items()}
            for name, victim in good.items()
        }
        names = sorted(good)
        with stage(files) as here:

            def one(rng: random.Random, number: int) -> None:
                name = rng.choice(names)
                victim = good[name]
                broken = rng.choice(sorted(victim.files))
                file = microsoft_images.changed(victim.files[broken], rng)
                _use(here, name, broken, Content(file.size, file.pages), victim, number, rng)

            yield one


def _use(
    here: Stage, name: str, broken: str, content: Content, victim: Victim, number: int, rng: random.Random
) -> None:
    """The victim is used with one of its files broken, and whole again."""
    with here.set(name, broken, content):
        path = here.folder / victim.disk
        way = measured if number % MEASURED == 0 else use
        changed = way(here, path, victim.kind, rng)
    if changed:
        here.restore(name)


CAMPAIGN = Campaign(
    "fuzz",
    {
        "messages": _simple(_messages),
        "handshake": _simple(_handshake),
        "frames": frames,
        "entries": entries,
        "references": references,
        "journal": _simple(_journal),
        "verified": _simple(_verified),
        "layouts": _simple(_layouts),
        "vmware": vmware,
        "microsoft": microsoft,
    },
    workers=2,
)
