"""Sessions of many items beside each other, and what one that was fenced off is told."""

import random
import socket
import struct
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import masttarget.session
from agent.errors import Stopped
from agent.main import Agent
from disks.disk import Disk
from drcore.errors import HomewardError
from drcore.limits import SESSION_LINKS_MAX
from drcore.secret import Secret
from masttarget.adapters.files import LocalStore
from masttarget.config import DiskConfig
from masttarget.errors import Fenced
from masttarget.session import Session
from tests.campaigns.attack import opened_pair
from tests.system.command import wait_until
from tests.system.roles import Pair, Site, no_retry
from wireproto.connection import Connection
from wireproto.errors import ConnectionLost, LimitExceeded
from wireproto.link import Link
from wireproto.messages import Alive, Message, Scanned

MIB = 1024 * 1024


def test_a_session_that_was_fenced_off_before_its_scan_says_so() -> None:
    _, connection = opened_pair(random.Random(3))
    ours, theirs = socket.socketpair()
    link = Link(connection, ours, threading.Lock(), time.monotonic, "an agent")
    session = Session(1, 1, link, (), [], [])
    fenced = Fenced(session=1, generation=1, current_session=2, current_generation=1)
    session.end(fenced)
    with pytest.raises(Fenced):
        session.begin_scan(threading.Thread(target=lambda: None))
    theirs.close()
    link.close()


def test_a_session_has_no_more_connections_than_it_may() -> None:
    _, connection = opened_pair(random.Random(3))
    ours, theirs = socket.socketpair()
    link = Link(connection, ours, threading.Lock(), time.monotonic, "an agent")
    session = Session(1, 1, link, (), [], [link])
    for _ in range(SESSION_LINKS_MAX - 1):
        session.join(link)
    with pytest.raises(LimitExceeded):
        session.join(link)
    assert len(session.links) == SESSION_LINKS_MAX
    theirs.close()
    link.close()


class FakeLink:
    """A peer's line: one that is not open yet, one that takes everything, or one that takes nothing."""

    def __init__(self, *, running: bool, takes: bool) -> None:
        self.connection = SimpleNamespace(running=running)
        self.sent: list[Message] = []
        self.beats = threading.Semaphore(0)
        self._free = threading.Event()
        if takes:
            self._free.set()

    def send(self, stream: int, message: Message) -> None:
        assert self.connection.running, "a word before the opening"
        self._free.wait(60)
        self.sent.append(message)
        self.beats.release()

    def close(self) -> None:
        self._free.set()


def test_a_peer_that_takes_nothing_or_has_not_been_let_in_silences_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(masttarget.session, "HEARTBEAT_SECONDS", 0.01)
    stuck, entering = FakeLink(running=True, takes=False), FakeLink(running=False, takes=True)
    heard = FakeLink(running=True, takes=True)
    sessions = [
        Session(1, 1, links[0], (), [], links)  # type: ignore[arg-type]
        for links in ([stuck], [entering, heard])
    ]
    for session in sessions:
        session.begin_beat()
    for _ in range(3):
        assert heard.beats.acquire(timeout=10)
    for session in sessions:
        session.end(None)
    assert (set(heard.sent), entering.sent) == ({Alive(waits=False)}, [])


def test_nothing_follows_a_frame_that_was_not_taken_in_time() -> None:
    _, connection = opened_pair(random.Random(3))
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 20_000))
    link = Link(connection, ours, threading.Lock(), time.monotonic, "an agent")

    def fill() -> None:
        while True:
            link.send(1, Scanned(0, 4096, memoryview(bytes(4096 * 16))))

    with pytest.raises(ConnectionLost, match="no byte moved"):
        fill()
    with pytest.raises(ConnectionLost, match="Broken pipe"):
        link.send(0, Alive())
    while theirs.recv(1 << 20):
        pass  # what had gone still arrives, then the end
    theirs.close()
    link.close()


def test_a_connection_runs_from_the_opening_on() -> None:
    assert not Connection(is_agent=False, shared=Secret(bytes(32))).running
    _, connection = opened_pair(random.Random(3))
    assert connection.running


def test_a_slow_disk_holds_up_its_own_item_only(
    tmp_path: Path, dice: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first item's disk takes until the second item's machine is home."""
    content = dice.randbytes(MIB)
    paths = [tmp_path / name for name in ("slow.raw", "quick.raw", "slow-home.raw", "quick-home.raw")]
    for path in paths[:2]:
        path.write_bytes(content)
    slow, quick = (Site(tmp_path, Pair(paths[n], paths[n + 2], create="raw")) for n in range(2))
    quick.item = uuid.uuid4()
    whole = slow.masttarget().disks + quick.masttarget().disks
    home, waiting = threading.Event(), threading.Event()
    create = LocalStore.create

    def dawdling(self: LocalStore, disk: DiskConfig, size: int) -> Disk:
        if disk.path == paths[2]:
            waiting.set()
            assert home.wait(60)
        return create(self, disk, size)

    monkeypatch.setattr(LocalStore, "create", dawdling)
    settings = slow.masttarget()
    monkeypatch.setattr(slow, "masttarget", lambda: replace(settings, disks=whole))
    outcome: list[object] = []

    def run(agent: Agent) -> None:
        try:
            outcome.append(agent.run())
        except (Stopped, HomewardError) as error:
            outcome.append(error)

    with slow.listening() as port:
        thread = threading.Thread(target=run, args=(Agent(slow.agent(port), no_retry),))
        thread.start()
        wait_until(waiting.is_set)
        quick.sync(port)
        assert not outcome, "the slow one is still being opened"
        home.set()
        thread.join(60)
    assert not isinstance(outcome[0], HomewardError), outcome
    assert paths[2].read_bytes() == paths[3].read_bytes() == content
