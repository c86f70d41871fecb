"""A link over memory that is lent: frames are sealed into it and opened from it, and end as over any other pipe."""

import threading
import time
import uuid
from collections.abc import Iterator

import pytest

from drcore.limits import SHARED_FRAME_BYTES_MAX
from drcore.secret import Secret
from homeward import shared_pipe
from homeward.shared_pipe import SharedPipe, SharedPipes
from wireproto.connection import SESSION_STREAM, Connection, Greeted, Received
from wireproto.errors import ConnectionLost, FrameRefused, LimitExceeded
from wireproto.frame import PLAIN_BYTES_MAX
from wireproto.handshake import DiskOffer, Hello, Purpose
from wireproto.link import Link
from wireproto.messages import PREFIX_BYTES, Alive, Data, Open, Opened

KEY = Secret(bytes(range(32)))
DISK = uuid.uuid4().bytes


@pytest.fixture
def pipes() -> Iterator[tuple[SharedPipe, SharedPipe]]:
    made = SharedPipes()
    yield made.ends
    made.give_back()


def linked(pipes: tuple[SharedPipe, SharedPipe]) -> tuple[Link, Link]:
    """An agent's link and a master target's, of which both have spoken."""
    agent, target = (
        Link(Connection(is_agent=own, shared=KEY), pipe, threading.Lock(), time.monotonic, "the other")
        for own, pipe in zip((True, False), pipes, strict=True)
    )
    offers = (DiskOffer(DISK, 1 << 30),)
    hello = Hello(Purpose.SESSION, uuid.uuid4().bytes, 1, 0, 0, 0, bytes(32), offers)
    agent.send_clear(agent.connection.greet(hello))
    assert isinstance(target.receive(), Greeted)
    target.send_clear(target.connection.welcome(bytes(32), 0))
    assert isinstance(agent.receive(), Greeted)
    agent.send(SESSION_STREAM, Open())
    target.receive()
    target.send(SESSION_STREAM, Opened(1, bytes(16), ()))
    agent.receive()
    return agent, target


def entries_of(link: Link) -> bytes:
    event = link.receive()
    assert isinstance(event, Received)
    assert isinstance(event.message, Data)
    return bytes(event.message.entries)


def test_a_frame_that_is_too_long_is_refused_before_it_takes_room(
    pipes: tuple[SharedPipe, SharedPipe],
) -> None:
    agent, target = linked(pipes)
    with pytest.raises(LimitExceeded):
        agent.send_data(1, 1, memoryview(bytearray(agent.connection.plain_bytes_max + 1)))
    agent.send_data(1, 1, memoryview(bytearray(PREFIX_BYTES) + b"next"))
    assert entries_of(target) == b"next"


def test_frames_of_all_sizes_pass_many_times_around_the_ring(pipes: tuple[SharedPipe, SharedPipe]) -> None:
    agent, target = linked(pipes)
    longest = agent.connection.plain_bytes_max
    assert longest > PLAIN_BYTES_MAX, "more than two machines may send each other"
    sizes = [1, 1000, longest - PREFIX_BYTES, 65_536, 300_001] * 6

    def send() -> None:
        for number, size in enumerate(sizes):
            frame = memoryview(bytearray(PREFIX_BYTES) + bytes([number]) * size)
            sequence, length = agent.send_data(1, 1, frame)
            assert sequence == number
            assert size < length <= SHARED_FRAME_BYTES_MAX

    sending = threading.Thread(target=send)
    sending.start()
    for number, size in enumerate(sizes):
        assert entries_of(target) == bytes([number]) * size
        target.send(SESSION_STREAM, Alive())
    sending.join()
    for _ in sizes:
        assert isinstance(agent.receive(), Received)
    assert agent.bytes_sent == target.bytes_received
    assert agent.bytes_received == target.bytes_sent


def test_a_frame_that_comes_in_pieces_is_one_all_the_same(pipes: tuple[SharedPipe, SharedPipe]) -> None:
    agent, target = linked(pipes)
    for cut in (1, 24, 30, 5000):
        agent.connection.place = lambda size: memoryview(bytearray(size))
        frame = agent.connection.send_data(1, 1, memoryview(bytearray(PREFIX_BYTES) + b"x" * 9000), 0.0)
        following = agent.connection.send_data(1, 1, memoryview(bytearray(PREFIX_BYTES) + b"y" * 9000), 0.0)
        pipes[0].send(frame[:cut])
        pipes[0].send(bytes(frame[cut:]) + bytes(following))
        assert entries_of(target) == b"x" * 9000
        assert entries_of(target) == b"y" * 9000


def test_a_frame_that_was_altered_in_the_memory_is_refused(pipes: tuple[SharedPipe, SharedPipe]) -> None:
    agent, target = linked(pipes)
    agent.connection.place = lambda size: memoryview(bytearray(size))
    frame = agent.connection.send_data(1, 1, memoryview(bytearray(PREFIX_BYTES) + b"x" * 9000), 0.0)
    frame[-1] ^= 1
    pipes[0].send(frame)
    with pytest.raises(FrameRefused):
        target.receive()


def test_a_peer_that_takes_nothing_is_waited_for_as_long_as_it_is_known_to_live(
    pipes: tuple[SharedPipe, SharedPipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent, _ = linked(pipes)
    monkeypatch.setattr(shared_pipe, "IDLE_SECONDS_MAX", 0.02)
    patience = [True, True, False]
    agent.patient = lambda: patience.pop(0)
    sent: list[int] = []
    with pytest.raises(ConnectionLost, match="no byte moved for too long"):
        fill(agent, sent)
    assert not patience
    assert agent.connection.sequence(1) == len(sent), "what has not gone takes no sequence"


def test_a_peer_that_has_gone_is_a_lost_connection(pipes: tuple[SharedPipe, SharedPipe]) -> None:
    agent, target = linked(pipes)
    target.close()
    with pytest.raises(ConnectionLost, match="the other end closed it"):
        agent.receive()
    with pytest.raises(ConnectionLost):
        fill(agent, [])


def fill(link: Link, sent: list[int]) -> None:
    """More frames are sent than the ring has room for; `sent` says which of them went."""
    for _ in range(9):
        sent.append(link.send_data(1, 1, memoryview(bytearray(PLAIN_BYTES_MAX)))[0])
