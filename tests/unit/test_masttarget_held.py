"""Frames that wait for a flush: what it costs, how many may, and that they are applied as if they had not waited."""

import os
import queue
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from _native import digest
from drcore.clock import SystemClock
from drcore.limits import FOLLOWING_BYTES_MIN
from drcore.secret import Secret
from drcore.units import BLOCK_BYTES, DIGEST_BYTES, SECTOR_BYTES, bit_runs
from masttarget.adapters.files import LocalStore
from masttarget.adapters.listen import Listener, waiting_bytes
from masttarget.adapters.retention_files import RetentionFiles
from masttarget.adapters.segment_files import SegmentFiles
from masttarget.config import DiskConfig
from masttarget.held import Held, Room
from masttarget.journal import UNDO_MARK_STREAM
from masttarget.reading_points import viewing
from masttarget.receive import Reception
from masttarget.retention import Policy, Retention
from tests.unit.test_masttarget_target import GENERATION, SESSION, block_of, entries, scan_whole, target_of
from tests.unit.test_masttarget_undo import Bench
from wireproto.connection import Connection, Received
from wireproto.handshake import DiskOffer, Hello, Purpose
from wireproto.keys import digest_secret
from wireproto.link import Link
from wireproto.messages import Bye, Data, Durable, Message, Mismatch, Open, Opened, Scanned


def frame(block: int, fill: int, sectors: int) -> Data:
    content = bytearray(block_of(0))
    for sector in range(16):
        if sectors >> sector & 1:
            content[sector * 4096 : (sector + 1) * 4096] = bytes([fill]) * 4096
    return entries(block, bytes(content), sectors)


def received(message: Data | Bye, sequence: int = 0) -> Received:
    return Received(1, sequence, message, 100)


def quiet(event: str, /, **facts: object) -> None:
    pass


def test_frames_wait_while_more_comes_and_keep_their_order_and_content() -> None:
    coming = [True, True, False]
    held = Held(Room(), lambda: coming.pop(0))
    first = frame(1, 7, 0xFFFF)
    told = bytes(first.entries)
    assert held.hold(received(first, 1))
    first.entries[:] = bytes(len(first.entries))  # the next frame is received into the same buffer
    assert held.hold(received(frame(2, 8, 3), 2))
    assert not held.hold(received(frame(3, 9, 3), 3)), "nothing more has come: its turn"
    frames = held.take()
    assert [event.sequence for event in frames] == [1, 2]
    assert isinstance(frames[0].message, Data)
    assert bytes(frames[0].message.entries) == told
    assert held.take() == []


def test_only_so_many_wait_and_what_waited_gives_its_room_back() -> None:
    room = Room(most=3 * len(frame(1, 7, 0xFFFF).entries))
    one, other = Held(room, lambda: True), Held(room, lambda: True)
    assert [one.hold(received(frame(1, 7, 0xFFFF))) for _ in range(3)] == [True] * 3
    assert not other.hold(received(frame(1, 7, 0xFFFF)))
    one.close()
    assert [other.hold(received(frame(1, 7, 0xFFFF))) for _ in range(3)] == [True] * 3
    assert len(other.take()) == 3
    assert room.take(3 * len(frame(1, 7, 0xFFFF).entries))
    assert not Held(Room(), lambda: True).hold(received(Bye()))


def test_a_frame_is_flushed_once_for_all_that_it_overwrites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, random.Random(7))
    bench.disk.write(0, memoryview(bytes(bench.disk.size)))
    before = bench.disk.content()
    target = target_of(bench.disk, tmp_path)
    target.undo = bench.journal
    scan_whole(target)
    flushes: list[int] = []
    flush = SegmentFiles.flush
    monkeypatch.setattr(SegmentFiles, "flush", lambda self: (flushes.append(1), flush(self)))
    several = b"".join(bytes(frame(block, block, 0b1010).entries) for block in range(1, 120, 7))
    for data in (Data(17, memoryview(several)), frame(8, 99, 0b1110), frame(140, 1, 0xFFFF)):
        assert target.foresee(data, SESSION)
    assert flushes == []
    for data in (Data(17, memoryview(several)), frame(140, 1, 0xFFFF)):
        assert target.apply(data, SESSION, GENERATION).mismatched == []
    assert len(flushes) == 1
    assert bench.disk.content()[8 * BLOCK_BYTES + 3 * 4096 :][:1] == b"\x08"
    assert bench.at(0) == before
    assert not target.foresee(frame(1, 1, 1), SESSION - 1), "an older session's frames bring nothing about"


def test_what_has_come_over_a_socket_is_counted_until_it_is_closed() -> None:
    for kind in (socket.AF_UNIX, socket.AF_INET):
        if kind == socket.AF_UNIX:
            ours, theirs = socket.socketpair()
        else:
            with socket.create_server(("127.0.0.1", 0)) as listening:
                theirs = socket.create_connection(listening.getsockname())
                ours, _ = listening.accept()
        assert waiting_bytes(ours) == 0
        theirs.sendall(bytes(3000))
        assert ours.recv(1000, socket.MSG_WAITALL) == bytes(1000)
        assert waiting_bytes(ours) == 2000
        ours.close()
        theirs.close()
        assert waiting_bytes(ours) == 0


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_a_connection_knows_when_a_good_part_of_the_next_frame_is_there(
    family: socket.AddressFamily, tmp_path: Path
) -> None:
    address = str(tmp_path / "port") if family == socket.AF_UNIX else ("127.0.0.1", 0)
    listening = socket.create_server(address, family=family)
    listener = Listener(listening, Secret(bytes(32)), SystemClock())
    links: queue.Queue[Link] = queue.Queue()
    over = threading.Event()

    def serve(link: Link, proved: Callable[[], None]) -> None:
        links.put(link)
        assert over.wait(60)

    accepting = threading.Thread(target=listener.run, args=(serve,))
    accepting.start()
    try:
        with socket.socket(family) as agent:
            agent.connect(listening.getsockname())
            link = links.get(timeout=20)
            assert isinstance(link.transport, socket.socket)
            found, sent = [link.more()], 0
            for count in (1, FOLLOWING_BYTES_MIN - 1, FOLLOWING_BYTES_MIN):
                agent.sendall(bytes(count - sent))
                sent = count
                link.transport.recv(count, socket.MSG_PEEK | socket.MSG_WAITALL)  # all of it has come
                found.append(link.more())
            link.transport.recv(1)
            found.append(link.more())
    finally:
        over.set()
        listener.close()
        listener.join()
        accepting.join(20)
    assert found == [False, False, False, True, False]


def said(link: Link, kind: type[Message]) -> Message:
    """The next message of that kind; none before it says that content did not add up."""
    while True:
        event = link.receive()
        assert isinstance(event, Received)
        assert not isinstance(event.message, Mismatch)
        if isinstance(event.message, kind):
            return event.message


def changed(content: bytearray, block: int, sectors: int, fill: int, secret: bytes) -> Data:
    """A frame of these sectors of the block, which hold something else in `content` from now on."""
    start = block * BLOCK_BYTES
    for first, count in bit_runs(sectors):
        begin = start + first * SECTOR_BYTES
        end = min(begin + count * SECTOR_BYTES, len(content))
        content[begin:end] = bytes([fill]) * (end - begin)
    now, told = bytes(content[start : start + BLOCK_BYTES]), bytearray(DIGEST_BYTES)
    digest.digest_blocks(now, secret, told)
    return entries(block, now, sectors, bytes(told))


def test_frames_that_are_there_already_share_a_flush_and_all_are_applied_in_their_order(
    tmp_path: Path, dice: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven of them, from an agent over a socket: four wait for the fifth, the sixth waits for the last one."""
    key, clock, path = Secret(bytes(range(32))), SystemClock(), tmp_path / "target.raw"
    before = dice.randbytes(20 * BLOCK_BYTES + 777)
    path.write_bytes(before)
    disk = DiskConfig(
        uuid.uuid4(), uuid.uuid4(), path, "", "", False, True, tmp_path / "journal", keep_record=True
    )
    store, item = LocalStore(tmp_path), disk.item.bytes
    retention = Retention(RetentionFiles(tmp_path / "retention"), clock, Policy(), quiet)
    reception = Reception((disk,), key, store, clock, os.urandom, quiet, lambda: None, retention)
    ours, theirs = socket.socketpair()
    agent, target = (
        Link(
            Connection(is_agent=end is theirs, shared=key), end, threading.Lock(), time.monotonic, "the other"
        )
        for end in (theirs, ours)
    )
    sent = threading.Event()
    target.more = lambda: sent.wait(20) and waiting_bytes(ours) > 0
    serving = threading.Thread(target=reception.serve, args=(target, lambda: None))
    serving.start()
    deadline = threading.Timer(20, agent.close)  # heartbeats would keep it waiting for ever
    deadline.start()
    try:
        offer = DiskOffer(disk.disk.bytes, len(before))
        hello = Hello(Purpose.SESSION, item, 1, 0, 0, int(clock.now() * 1000), os.urandom(32), (offer,))
        agent.send_clear(agent.connection.greet(hello))
        agent.receive()
        agent.send(0, Open())
        said(agent, Opened)
        said(agent, Scanned)
        flushes: list[int] = []
        flush = SegmentFiles.flush
        monkeypatch.setattr(SegmentFiles, "flush", lambda self: (flushes.append(1), flush(self)))

        # Each overwrites something for the first time; those of block 5 build on each other.
        secret, after = digest_secret(key, item).reveal(), bytearray(before)
        frames = (5, 0b11), (9, 0x8000), (5, 0b110), (19, 0xFFFF), (12, 1), (5, 0b1100), (20, 1)
        for block, sectors in frames:
            last, _ = agent.send(1, changed(after, block, sectors, dice.randrange(256), secret))
        sent.set()
        while said(agent, Durable) != Durable(last):
            pass
        flushed = len(flushes)
        applied = list(store.journal(disk).read_applied(disk.disk.bytes))
        agent.send(0, Bye())
    finally:
        sent.set()
        deadline.cancel()
        agent.close()
        serving.join(20)
        reception.stop(lambda: None)
    assert [one.sequence for one in applied if one.stream != UNDO_MARK_STREAM] == list(range(7))
    assert path.read_bytes() == after
    assert flushed == 2
    kept, found = retention.item(item), memoryview(bytearray(len(before)))
    with viewing(kept, kept.points.choose("1"), disk, store) as view:
        view.read(0, found)
    assert found == before
