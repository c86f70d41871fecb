"""Two processes that share memory pass bytes, frames and their own end to each other."""

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from drcore.limits import FRAME_BYTES_MAX, SHARED_RING_BYTES
from homeward import shared_pipe
from homeward.shared_pipe import SharedPipe, SharedPipes
from wireproto.link import Lending


@pytest.fixture
def ends() -> Iterator[tuple[SharedPipe, SharedPipe]]:
    pipes = SharedPipes()
    yield pipes.ends
    pipes.give_back()


def send_all(pipe: SharedPipe, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[pipe.send(left) :]


def receive(pipe: SharedPipe, size: int) -> bytes:
    found = bytearray(size)
    view = memoryview(found)
    while view:
        count = pipe.recv_into(view)
        assert count, "the other end has closed"
        view = view[count:]
    return bytes(found)


def test_bytes_of_any_lengths_arrive_in_order_in_both_directions(
    ends: tuple[SharedPipe, SharedPipe], dice: random.Random
) -> None:
    """Several times around the ring, by pieces that do not fit to those that are asked for."""
    whole = [dice.randbytes(3 * SHARED_RING_BYTES + dice.randrange(1000)) for _ in ends]
    lengths = [1, 7, 8, 24, 4096, 65_541, FRAME_BYTES_MAX - 5, FRAME_BYTES_MAX, 3 * FRAME_BYTES_MAX]
    seeds = [dice.randrange(2**32) for _ in ends]
    found: dict[int, bytes] = {}

    def send(number: int) -> None:
        chance, at = random.Random(seeds[number]), 0
        while at < len(whole[number]):
            length = chance.choice(lengths)
            send_all(ends[number], whole[number][at : at + length])
            at += length

    def read(number: int) -> None:
        chance, pieces = random.Random(seeds[number] + 1), []
        left = len(whole[number])
        while left:
            pieces.append(receive(ends[1 - number], min(left, chance.choice(lengths))))
            left -= len(pieces[-1])
        found[number] = b"".join(pieces)

    threads = [threading.Thread(target=work, args=(number,)) for work in (send, read) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[0] == whole[0], found[1] == whole[1]] == [True, True]


def test_frames_are_read_where_they_were_written(
    ends: tuple[SharedPipe, SharedPipe], dice: random.Random
) -> None:
    ours, theirs = ends
    assert isinstance(ours, Lending)
    for number in range(40):
        size = dice.choice([40, 300, 100_000, FRAME_BYTES_MAX])
        content = dice.randbytes(size - 24 - number % 3)
        room = ours.room(size)
        assert len(room) == size
        room[: 24 + len(content)] = bytes(24) + content
        ours.sent(24 + len(content))
        assert theirs.waiting() >= 24 + len(content)
        assert receive(theirs, 24) == bytes(24)
        assert theirs.waiting() == len(content)
        assert theirs.peek(len(content) + 1) is None, "what does not lie together is for recv_into"
        found = theirs.peek(len(content))
        assert found == content
        theirs.taken(len(content))
        assert theirs.waiting() == 0


def test_a_small_ring_loses_neither_bytes_nor_room(
    monkeypatch: pytest.MonkeyPatch, dice: random.Random
) -> None:
    """Thousands of times around it, against a list; nobody waits, so that what would have to wait is seen."""
    ring, longest = 4096, 1000
    monkeypatch.setattr(shared_pipe, "SHARED_RING_BYTES", ring)
    monkeypatch.setattr(shared_pipe, "_FREED_BYTES_MIN", ring // 8)
    monkeypatch.setattr(shared_pipe, "IDLE_SECONDS_MAX", 0)
    pipes = SharedPipes()
    ours, theirs = pipes.ends
    model, refused = bytearray(), 0
    for _ in range(40_000):
        if dice.random() < 0.55:
            content = dice.randbytes(dice.choice([1, 7, 8, 9, 100, dice.randrange(1, longest), longest]))
            try:
                # More room than is used in the end, as of a frame whose seal turns out shorter.
                ours.room(min(len(content) + dice.randrange(50), longest))[: len(content)] = content
            except TimeoutError:
                refused += 1
                assert model, "room was lost"
                continue
            ours.sent(len(content))
            model += content
        elif model:
            into = bytearray(dice.choice([1, 24, 500, longest]))
            count = theirs.recv_into(memoryview(into))
            assert into[:count] == model[:count]
            del model[:count]
    assert refused
    assert receive(theirs, len(model)) == model
    with pytest.raises(TimeoutError):
        theirs.recv_into(memoryview(bytearray(1)))
    pipes.give_back()


def test_who_says_no_more_still_takes_what_comes(ends: tuple[SharedPipe, SharedPipe]) -> None:
    ours, theirs = ends
    theirs.shutdown(socket.SHUT_WR)
    content = bytes(range(256)) * (2 * SHARED_RING_BYTES // 256)
    sending = threading.Thread(target=send_all, args=(ours, content))
    sending.start()
    time.sleep(0.1)
    assert receive(theirs, len(content)) == content
    sending.join()


def test_a_full_ring_waits_until_something_was_read(ends: tuple[SharedPipe, SharedPipe]) -> None:
    ours, theirs = ends
    sent: list[int] = []

    def fill() -> None:
        for _ in range(8):
            sent.append(ours.send(bytes(FRAME_BYTES_MAX)))

    filling = threading.Thread(target=fill)
    filling.start()
    time.sleep(0.2)
    assert 0 < len(sent) <= SHARED_RING_BYTES // FRAME_BYTES_MAX
    assert receive(theirs, 8 * FRAME_BYTES_MAX) == bytes(8 * FRAME_BYTES_MAX)
    filling.join()
    assert sent == [FRAME_BYTES_MAX] * 8


def test_what_was_sent_before_the_end_still_arrives(ends: tuple[SharedPipe, SharedPipe]) -> None:
    ours, theirs = ends
    ours.send(b"the last word")
    ours.shutdown(socket.SHUT_WR)
    assert receive(theirs, 13) == b"the last word"
    assert theirs.recv_into(memoryview(bytearray(1))) == 0
    theirs.send(b"heard")
    assert receive(ours, 5) == b"heard", "only one direction has ended"
    theirs.close()
    assert ours.recv_into(memoryview(bytearray(1))) == 0
    assert ours.peek(1) == b""


def test_the_last_word_is_not_lost_where_the_end_is_seen_first(
    ends: tuple[SharedPipe, SharedPipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poll looks at its descriptors one after the other: what comes in between has to be looked for again."""
    ours, theirs = ends
    found = ours._came

    class Between:
        def poll(self, milliseconds: float) -> list[tuple[int, int]]:
            theirs.send(b"published")
            theirs.close()
            return [
                (number, what) for number, what in found.poll(milliseconds) if number != ours._into.filled
            ]

    monkeypatch.setattr(ours, "_came", Between())
    assert receive(ours, 9) == b"published"
    monkeypatch.undo()
    assert ours.recv_into(memoryview(bytearray(1))) == 0


def test_who_waits_is_woken_by_the_end_of_either_side(ends: tuple[SharedPipe, SharedPipe]) -> None:
    ours, theirs = ends
    found: list[object] = []

    def fill() -> None:
        try:
            while True:
                ours.send(bytes(FRAME_BYTES_MAX))
        except OSError as error:
            found.append(type(error))

    threads = [
        threading.Thread(target=fill),
        threading.Thread(target=lambda: found.append(ours.recv_into(memoryview(bytearray(9))))),
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    assert not found
    ours.shutdown(socket.SHUT_RDWR)
    for thread in threads:
        thread.join(5)
    assert sorted(map(str, found)) == ["0", "<class 'BrokenPipeError'>"]
    assert theirs.recv_into(memoryview(bytearray(9))) == 9
    theirs.close()
    with pytest.raises(BrokenPipeError):
        fill_or_raise(theirs)


def fill_or_raise(pipe: SharedPipe) -> None:
    for _ in range(2 * SHARED_RING_BYTES // FRAME_BYTES_MAX):
        pipe.send(bytes(FRAME_BYTES_MAX))


def test_nothing_for_too_long_is_a_timeout(
    ends: tuple[SharedPipe, SharedPipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_pipe, "IDLE_SECONDS_MAX", 0.05)
    with pytest.raises(TimeoutError):
        ends[0].recv_into(memoryview(bytearray(1)))
    with pytest.raises(TimeoutError):
        fill_or_raise(ends[0])


def test_the_death_of_the_other_process_is_the_end() -> None:
    pipes = SharedPipes()
    child = os.fork()
    if child == 0:
        pipe = pipes.keep(1)
        pipe.send(b"here")
        signal.pause()
        os._exit(1)
    pipe = pipes.keep(0)
    try:
        assert receive(pipe, 4) == b"here"
        os.kill(child, signal.SIGKILL)
        assert pipe.recv_into(memoryview(bytearray(1))) == 0
        with pytest.raises(BrokenPipeError):
            fill_or_raise(pipe)
    finally:
        os.waitpid(child, 0)
        pipes.give_back()
