"""The dialogue's table: what it allows goes through, everything else is refused; epochs change without a word."""

import random

import pytest

from drcore.limits import FRAME_BYTES_MAX
from tests.campaigns.attack import DISKS, SHARED, frame_of, opened_pair
from tests.unit.test_wireproto_messages import MESSAGES
from wireproto import frame as frames
from wireproto.connection import (
    AGENT_MAY_SEND,
    ON_SESSION_STREAM,
    TARGET_MAY_SEND,
    Connection,
    Phase,
    Received,
)
from wireproto.errors import FrameRefused, LimitExceeded, MessageRefused
from wireproto.frame import PLAIN_BYTES_MAX, StreamOpener, StreamSealer, decode_header
from wireproto.keys import connection_secret
from wireproto.messages import Bye, Data, Durable, MessageType, Open, Zeroes, encode


@pytest.fixture
def pair() -> tuple[Connection, Connection]:
    return opened_pair(random.Random(5))


def test_the_largest_frame_goes_through_without_a_copy_of_ours(pair: tuple[Connection, Connection]) -> None:
    agent, target = pair
    entries = memoryview(bytes(PLAIN_BYTES_MAX - 16))
    frame = agent.send(1, Data(1, entries), 0.0)
    assert len(frame) <= FRAME_BYTES_MAX
    (event,) = target.receive(bytes(frame))
    assert isinstance(event, Received)
    assert isinstance(event.message, Data)
    assert event.message.entries == entries
    with pytest.raises(LimitExceeded):
        agent.send(1, Data(1, memoryview(bytes(PLAIN_BYTES_MAX - 15))), 0.0)


def test_bytes_may_come_one_by_one(pair: tuple[Connection, Connection]) -> None:
    agent, target = pair
    data = frame_of(agent, 1, 300) + bytes(agent.send(2, Zeroes(((1, 2),)), 0.0))
    kinds = [type(event.message) for byte in data for event in target.receive(bytes([byte]))]  # type: ignore[union-attr]
    assert kinds == [Data, Zeroes]


@pytest.mark.parametrize("kind", list(MessageType), ids=lambda kind: kind.name)
def test_only_what_the_table_allows_is_taken(kind: MessageType) -> None:
    message = next(message for message in MESSAGES if type(message).__name__.upper() == kind.name)
    stream = 0 if kind in ON_SESSION_STREAM else 1
    agent, target = opened_pair(random.Random(7))
    for sender, receiver, table in ((agent, target, AGENT_MAY_SEND), (target, agent, TARGET_MAY_SEND)):
        plain = b"".join(bytes(piece) for piece in encode(message))
        sealed = memoryview(bytearray(4096))
        size = sender._sealers[stream].seal(plain, sealed, 0.0)  # past the sender's own table
        if kind in table[Phase.RUNNING]:
            assert receiver.receive(bytes(sealed[:size]))
        else:
            with pytest.raises(MessageRefused):
                receiver.receive(bytes(sealed[:size]))


def test_a_message_of_the_session_is_refused_in_a_disk_stream(pair: tuple[Connection, Connection]) -> None:
    agent, target = pair
    sealed = memoryview(bytearray(200))
    size = agent._sealers[1].seal(b"\x0e" + bytes(15), sealed, 0.0)
    with pytest.raises(MessageRefused):
        target.receive(bytes(sealed[:size]))


def test_after_a_bye_nothing_more_is_taken(pair: tuple[Connection, Connection]) -> None:
    agent, target = pair
    target.receive(bytes(agent.send(0, Bye(), 0.0)))
    sealed = memoryview(bytearray(200))
    size = agent._sealers[0].seal(b"\x0e" + bytes(15), sealed, 0.0)
    with pytest.raises(MessageRefused):
        target.receive(bytes(sealed[:size]))


def test_a_stream_that_was_not_offered_is_refused(pair: tuple[Connection, Connection]) -> None:
    agent, target = pair
    frame = bytearray(frame_of(agent, 1, 300))
    frame[6] = len(DISKS) + 1
    with pytest.raises(MessageRefused):
        target.receive(bytes(frame))


def test_the_tables_leave_no_way_out_of_the_end() -> None:
    for table in (AGENT_MAY_SEND, TARGET_MAY_SEND):
        assert Phase.ENDED not in table
        assert Phase.GREETING not in table
        assert {following for row in table.values() for following in row.values()} <= {
            Phase.RUNNING,
            Phase.ENDED,
        }


def test_a_new_epoch_begins_after_an_hour_or_so_many_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "EPOCH_FRAMES_MAX", 3)
    secret = connection_secret(SHARED, b"h", b"w", b"r" * 64)
    sealer = StreamSealer(secret, from_agent=True, stream=1, disk=b"d" * 16)
    opener = StreamOpener(secret, from_agent=True, stream=1, disk=b"d" * 16)
    into, plain = memoryview(bytearray(500)), memoryview(bytearray(500))
    epochs = []
    for number in range(12):
        now = 0.0 if number < 8 else 4000.0 * number
        size = sealer.seal(number.to_bytes(4, "big"), into, now)
        header = decode_header(into)
        epochs.append(header.epoch)
        got = opener.open(header, into[:24], into[24:size], plain)
        assert plain[:got] == number.to_bytes(4, "big")
    assert epochs == [0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 5, 6]


def test_an_epoch_cannot_be_skipped_or_entered_without_its_commitment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(frames, "EPOCH_FRAMES_MAX", 1)
    secret = connection_secret(SHARED, b"h", b"w", b"r" * 64)
    sealer = StreamSealer(secret, from_agent=True, stream=1, disk=b"d" * 16)
    opener = StreamOpener(secret, from_agent=True, stream=1, disk=b"d" * 16)
    plain = memoryview(bytearray(500))
    sealed = []
    for _ in range(3):
        into = memoryview(bytearray(500))
        sealed.append(into[: sealer.seal(b"text", into, 0.0)])
    opener.open(decode_header(sealed[0]), sealed[0][:24], sealed[0][24:], plain)
    with pytest.raises(FrameRefused):
        opener.open(decode_header(sealed[2]), sealed[2][:24], sealed[2][24:], plain)
    hostile = bytearray(sealed[1])
    hostile[24] ^= 1
    with pytest.raises(FrameRefused, match="commitment"):
        opener.open(decode_header(hostile), memoryview(hostile)[:24], memoryview(hostile)[24:], plain)
    opener.open(decode_header(sealed[1]), sealed[1][:24], sealed[1][24:], plain)


def test_a_refused_frame_leaves_no_plaintext_behind(pair: tuple[Connection, Connection]) -> None:
    agent, target = pair
    target.receive(frame_of(agent, 1, 300, b"a"))
    frame = bytearray(frame_of(agent, 1, 300, b"S"))
    frame[-1] ^= 1
    with pytest.raises(FrameRefused):
        target.receive(bytes(frame))
    assert b"SSSS" not in bytes(target._plain[:300])


def test_sending_what_is_not_legal_is_our_own_bug() -> None:
    agent, _ = opened_pair(random.Random(6))
    with pytest.raises(AssertionError):
        agent.send(0, Durable(1), 0.0)
    with pytest.raises(AssertionError):
        agent.send(1, Open(), 0.0)
