"""The dialogue with the agents: who may send for which item, and what each message brings about."""

import threading
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from uuid import UUID

from drcore.clock import Clock
from drcore.errors import HomewardError, coded
from drcore.limits import IDLE_SECONDS_MAX, MASTTARGET_DISKS_MAX, REFERENCE_DISKS_MAX
from drcore.secret import Secret
from masttarget.commit import Acknowledge
from masttarget.config import DiskConfig
from masttarget.errors import Fenced, Stopping, UnknownDisk, UnknownItem
from masttarget.errors_retention import SlotsTaken
from masttarget.group import GroupNotes
from masttarget.groups import Groups
from masttarget.health import Meter
from masttarget.held import Held, Room
from masttarget.journal import CycleRecord
from masttarget.opening import NOBODY, OpenDisk, check_generation, open_disk
from masttarget.points import Kind
from masttarget.ports import Log, RandomBytes, TargetStore
from masttarget.retention import Retention
from masttarget.session import OF_A_DISK, Session, part
from masttarget.target import Applied
from wireproto.barrier import Enrol, Frozen, Harvested
from wireproto.connection import SESSION_STREAM, Greeted, Received
from wireproto.errors import MessageRefused, NotProved
from wireproto.handshake import Hello, Purpose
from wireproto.keys import RANDOM_BYTES, digest_secret
from wireproto.link import Link
from wireproto.messages import (
    EMPTY,
    Alive,
    Bye,
    Children,
    Commit,
    Data,
    DiskState,
    Durable,
    Failed,
    Mismatch,
    Open,
    Opened,
    Published,
    Ready,
    Refer,
    Report,
    Scanned,
    Seek,
    Unsettled,
    Zeroes,
    report_of,
)


class Reception:
    """All items, their open disks and current sessions. `serve` is called once for each connection, in its thread."""

    def __init__(
        self,
        disks: tuple[DiskConfig, ...],
        shared: Secret,
        store: TargetStore,
        clock: Clock,
        random: RandomBytes,
        log: Log,
        on_session_end: Callable[[], None],
        retention: Retention | None = None,
        notes: GroupNotes | None = None,
    ) -> None:
        """`notes` of groups come with a retention; a common point that was begun is every member's afterwards."""
        self._retention = retention
        self._configs = {disk.disk.bytes: disk for disk in disks}
        self._items = {disk.item.bytes for disk in disks}
        self.meters = {disk.disk.bytes: Meter(disk.item.hex, disk.disk.hex) for disk in disks}
        self._shared = shared
        self._store = store
        self._clock = clock
        self._random = random
        self._log = log
        self._on_session_end = on_session_end
        self._lock = threading.Lock()
        """Guards the tables below, for moments only: nobody opens, flushes or sends under it."""
        self._gates = {item: threading.Lock() for item in self._items}
        """Held while an item's disks are opened, settled or closed; taken before `_lock`, never after it."""
        self._groups = Groups(disks, notes, retention, random, log)
        self._wanted: dict[bytes, set[bytes]] = {}
        """Disks that are being opened, by item."""
        self._open: dict[bytes, OpenDisk] = {}
        self._sessions: dict[bytes, Session] = {}
        self._published: dict[bytes, bytes] = {}
        self._stopping = threading.Event()
        self._room = Room()
        self._groups.make_good((), self._end_cycle)

    def serve(self, link: Link, proved: Callable[[], None]) -> None:
        """The connection is over; `proved` was called when the peer had shown that it holds the key."""
        session = None
        try:
            hello = self._greet(link)
            proved()
            if hello.purpose is Purpose.LANE:
                session = self._join(link, hello)
            else:
                session = self._begin(link, hello)
                self._tell(session)
            link.patient = session.waits
            if not self._converse(link, session):
                session = None
        except Exception as failure:
            # Whoever was fenced off is told so, whatever it noticed of that first.
            error = (session.reason if session is not None else None) or coded(failure)
            self._log("connection ended", peer=link.peer, code=error.code, error=str(error))
            part(link, error)
            if session is not None:
                session.end(error)
            link.drain()
        finally:
            link.close()
            if session is not None:
                session.end(None)
                if link is session.primary:
                    self._ended(session)

    def stop(self, join: Callable[[], None]) -> None:
        """Every session is over and every disk closed in order; digest maps that are true are kept.

        `join` returns when no thread is in `serve` any more: one that publishes must not find its disk closed.
        """
        with self._lock:
            self._stopping.set()
            if self._retention is not None:
                self._retention.interrupt()
            sessions, self._sessions = list(self._sessions.values()), {}
        for session in sessions:
            session.end(Stopping())
            session.wait_for_readers()
        join()
        with self._lock:
            disks, self._open = list(self._open.values()), {}
        for disk in disks:
            self._close(disk)

    def _close(self, disk: OpenDisk) -> None:
        """The disk is closed; what went wrong with it is told, and the next run reads the disk again."""
        try:
            disk.close(self._store)
        except HomewardError as error:
            self._log("disk closed badly", disk_id=disk.config.disk.hex, code=error.code, error=str(error))

    # The handshake

    def _greet(self, link: Link) -> Hello:
        """The peer holds the key and is there now: its Hello is no replay."""
        event = link.receive()
        if not isinstance(event, Greeted) or not isinstance(event.message, Hello):
            raise MessageRefused(reason="no hello")
        hello = event.message
        link.send_clear(link.connection.welcome(self._random(RANDOM_BYTES), int(self._clock.now() * 1000)))
        event = link.receive()
        if not isinstance(event, Received) or not isinstance(event.message, Open):
            raise NotProved()
        if hello.item not in self._items:
            raise UnknownItem(item=str(UUID(bytes=hello.item)))
        for offer in hello.disks:
            config = self._configs.get(offer.disk)
            if config is None or config.item.bytes != hello.item:
                raise UnknownDisk(disk=str(UUID(bytes=offer.disk)))
        return hello

    # Sessions

    def _begin(self, link: Link, hello: Hello) -> Session:
        """A new session is durable, older ones are fenced off. Other items' sessions go on meanwhile."""
        wanted = {offer.disk for offer in hello.disks}
        with self._gates[hello.item]:
            with self._lock:
                if self._stopping.is_set():
                    raise Stopping()
                self._check_slots(wanted)
                self._wanted[hello.item] = wanted
            try:
                session = self._take_over(link, hello)
                with self._lock:
                    if self._stopping.is_set():
                        raise Stopping()
                    older = self._sessions.pop(hello.item, None)
                    session.finds = self._may_find(session)
                    self._sessions[hello.item] = session
                    self._measure(session)
            finally:
                with self._lock:
                    del self._wanted[hello.item]
        if older is not None:
            older.end(
                Fenced(
                    session=older.number,
                    generation=older.generation,
                    current_session=session.number,
                    current_generation=hello.generation,
                )
            )
            older.wait_for_readers()
        return session

    def _take_over(self, link: Link, hello: Hello) -> Session:
        """The disks are open and take nothing of older sessions any more; whoever is refused leaves none open.

        Errors: `Fenced`, those of opening.
        """
        self._groups.make_good(list(self._open.values()), self._end_cycle, hello.item)
        # Before a disk is opened: an agent that is refused must keep nobody out of it.
        check_generation(hello.generation, [self._recorded(offer.disk) for offer in hello.disks])
        before = dict(self._open)
        try:
            return self._take(link, hello)
        except BaseException:
            for disk in (offer.disk for offer in hello.disks):
                found = self._open.get(disk)
                if found is not None and found is not before.get(disk):
                    with self._lock:
                        del self._open[disk]
                    self._close(found)
            raise

    def _recorded(self, disk: bytes) -> CycleRecord | None:
        """What is durable of a disk, open or not."""
        if (found := self._open.get(disk)) is not None:
            return found.record
        return self._store.journal(self._configs[disk]).load()

    def _take(self, link: Link, hello: Hello) -> Session:
        """As `_take_over`; what was opened on the way stays so."""
        secret = digest_secret(self._shared, hello.item).reveal()
        disks = [self._disk(offer.disk, offer.size, secret) for offer in hello.disks]
        # Again: a rollback may have come in between.
        check_generation(hello.generation, [disk.record for disk in disks])
        number = 1 + max(disk.record.session for disk in disks)
        if self._retention is not None:
            self._retention.item(hello.item).interrupt()
        for other in self._open.copy().values():
            if other.config.item.bytes == hello.item:
                other.target.take_over(NOBODY)  # also what only an older session has: that is over
        for disk in disks:
            disk.begin(hello.generation, number)
        if self._retention is not None:
            self._retention.item(hello.item).begin([disk.config.disk.bytes for disk in disks])
        return Session(
            number, hello.generation, link, hello.disks, disks, [link], [0] * len(disks), [0] * len(disks)
        )

    def _may_find(self, session: Session) -> list[bool]:
        """For which disks references are offered: an index takes memory, and all of them together have a limit."""
        taken = sum(sum(other.finds) for other in self._sessions.values())
        answer = []
        for disk in session.disks:
            answer.append(disk.target.finds and taken < REFERENCE_DISKS_MAX)
            taken += answer[-1]
        return answer

    def _tell(self, session: Session) -> None:
        """The agent knows of its session, and what its disks hold is on its way."""
        states = tuple(
            DiskState(disk.target.disk.size, disk.empty, disk.resumed, finds)
            for disk, finds in zip(session.disks, session.finds, strict=True)
        )
        item = session.item
        published = self._published.get(item, bytes(16))
        session.primary.send(SESSION_STREAM, Opened(session.number, published, states))
        session.begin_beat()
        session.begin_scan(threading.Thread(target=self._scan, args=(session,), name="scan", daemon=True))
        self._log("session began", peer=session.primary.peer, item=item.hex(), session=session.number)

    def _measure(self, session: Session) -> None:
        """The meters of the session's disks show what goes on in it."""
        for disk in session.disks:
            meter = self.meters[disk.config.disk.bytes]
            meter.begin(session.number, disk.target.data_bytes, disk.backlog_blocks)
            meter.waits = disk.waits

    def _check_slots(self, wanted: set[bytes]) -> None:
        """There is a slot for each disk (R050). Errors: `SlotsTaken` (HW-MT-048), before anything has changed."""
        taken = set(self._open).union(*self._wanted.values())
        more = wanted - taken
        if len(taken) + len(more) > MASTTARGET_DISKS_MAX:
            raise SlotsTaken(wanted=len(more), attached=len(taken), most=MASTTARGET_DISKS_MAX)

    def _disk(self, disk: bytes, size: int, secret: bytes) -> OpenDisk:
        """The disk, open; one that is still open from a session that broke off goes on as it is."""
        found = self._open.get(disk)
        if found is not None and found.target.data_bytes == size and not found.record.published:
            found.resumed, found.empty = True, False
            return found
        if found is not None:
            with self._lock:
                del self._open[disk]
            found.close(self._store)
        try:
            opened = open_disk(
                self._configs[disk],
                size,
                secret,
                self._store,
                self._clock,
                lambda error: self._failed(disk, error),
                self._retention.item(self._configs[disk].item.bytes) if self._retention is not None else None,
            )
        except HomewardError as error:
            self.meters[disk].failure = error.code
            raise
        with self._lock:
            self._open[disk] = opened
        if opened.published_before:
            self._published[opened.config.item.bytes] = opened.published_before
        return opened

    def _end_cycle(self, disk: bytes, point: bytes) -> None:
        """The disk's cycle ended with the point, durably; the next session begins another one."""
        if (found := self._open.get(disk)) is not None:
            found.publish(point)
        elif (config := self._configs.get(disk)) is not None:
            journal = self._store.journal(config)
            if (record := journal.load()) is not None and not record.published:
                journal.store(record.but(published=point.hex()))
        if disk in self._configs:
            self._published[self._configs[disk].item.bytes] = point

    def _failed(self, disk: bytes, error: HomewardError) -> None:
        """The session that writes to a disk that has failed goes on without it, or is over."""
        self.meters[disk].failure = error.code
        for session in list(self._sessions.values()):
            for index, one in enumerate(session.disks):
                if one.config.disk.bytes == disk and not self._lose(session, index, error):
                    session.end(error)

    def _lose(self, session: Session, index: int, error: HomewardError) -> bool:
        """The disk has stopped, and the agent was told; False when no other disk of the session goes on."""
        disk = session.disks[index].config.disk
        self.meters[disk.bytes].failure = error.code
        if index in session.failed:
            return True
        self._log("disk failed", disk_id=disk.hex, code=error.code, error=str(error))
        others = session.lose(index, error)
        if others:
            with suppress(HomewardError):
                session.primary.send(index + 1, Failed(report_of(error)))
        return others

    def _join(self, link: Link, hello: Hello) -> Session:
        """One more lane of the current session."""
        with self._lock:
            session = self._sessions.get(hello.item)
            if session is None or session.ended or session.number != hello.session:
                raise Fenced(
                    session=hello.session,
                    generation=hello.generation,
                    current_session=session.number if session else 0,
                    current_generation=session.generation if session else 0,
                )
            if hello.disks != session.offers:
                raise MessageRefused(reason="a lane that offers other disks than its session")
            session.join(link)
        link.send(SESSION_STREAM, Opened(session.number, bytes(16), ()))
        return session

    def _ended(self, session: Session) -> None:
        if (group := self._groups.of(session.item)) is not None:
            group.leave(session.item, session)
        session.wait_for_readers()
        for disk in session.disks:
            self.meters[disk.config.disk.bytes].end(session.number)
        item = session.item
        with self._gates[item]:
            with self._lock:
                if self._sessions.get(item) is session:
                    del self._sessions[item]
            for disk in session.disks if session.finished else ():
                if self._open.get(disk.config.disk.bytes) is disk:
                    self._close(disk)
                    with self._lock:  # only now is its slot free
                        del self._open[disk.config.disk.bytes]
        self._log("session ended", session=session.number, finished=session.finished)
        self._on_session_end()

    # The dialogue

    def _scan(self, session: Session) -> None:
        """The agent knows the digest of every region of every disk."""

        meter = self.meters[session.disks[0].config.disk.bytes]

        def on_bytes(position: int) -> None:
            meter.compared_bytes = position
            if session.ended:
                raise Stopping()

        try:
            for stream, disk in enumerate(session.disks, start=1):
                meter = self.meters[disk.config.disk.bytes]
                try:
                    for run in disk.target.scanned(on_bytes):
                        digests = EMPTY if run.digest is None else memoryview(run.digest)
                        session.primary.send(stream, Scanned(run.first, run.count, digests))
                except OF_A_DISK as error:
                    if not self._lose(session, stream - 1, error):
                        raise
                    continue
                meter.compared_bytes = disk.target.data_bytes
                if disk.target.lost:
                    self._log(
                        "acknowledged blocks were lost by the medium",
                        disk_id=disk.config.disk.hex,
                        blocks=len(disk.target.lost),
                        first=disk.target.lost[0],
                    )
        except Exception as error:
            if not session.ended:
                session.end(coded(error))

    def _converse(self, link: Link, session: Session) -> bool:
        """The lane is over; False when it left a session that goes on without it."""

        def acknowledge(stream: int, sequence: int) -> None:
            with suppress(HomewardError):
                link.send(stream, Durable(sequence))

        held = Held(self._room, link.more)
        with closing(held):
            return self._hear(link, session, held, acknowledge)

    def _hear(self, link: Link, session: Session, held: Held, acknowledge: Acknowledge) -> bool:
        while True:
            event = link.receive()
            if session.ended:
                continue  # the agent was told; what it had under way is thrown away
            if not isinstance(event, Received):
                raise MessageRefused(reason="a clear message in a session")
            if self._waits(session, held, event):
                continue
            for one in held.take():
                self._on_disk(link, session, one, acknowledge)
            match event.message:
                case Alive():
                    pass
                case Bye() if link is not session.primary:
                    with self._lock:
                        session.links.remove(link)
                    return False
                case Bye():
                    session.finished = session.published != bytes(16)
                    return True
                case Report() as report:
                    self._log("agent gave up", peer=link.peer, code=report.code, error=report.what)
                    return True
                case Commit() as commit:
                    self._commit(link, session, commit)
                case Enrol() | Frozen() | Harvested() as message:
                    self._groups.gather(link, session, message)
                case _:
                    self._on_disk(link, session, event, acknowledge)

    def _waits(self, session: Session, held: Held, event: Received) -> bool:
        """The frame waits for what it overwrites to be durable, and for frames that come meanwhile."""
        index = event.stream - 1
        if not isinstance(event.message, Data) or index in session.failed:
            return False
        try:
            return session.disks[index].target.foresee(event.message, session.number) and held.hold(event)
        except OF_A_DISK as error:
            if not self._lose(session, index, error):
                raise
            return False

    def _on_disk(self, link: Link, session: Session, event: Received, acknowledge: Acknowledge) -> None:
        """As `_content`; a disk that fails stops alone."""
        if event.stream - 1 in session.failed:
            return  # on its way before the agent knew that this disk has stopped
        try:
            self._content(link, session, event, acknowledge)
        except OF_A_DISK as error:
            if not self._lose(session, event.stream - 1, error):
                raise

    def _content(self, link: Link, session: Session, event: Received, acknowledge: Acknowledge) -> None:
        disk, message = session.disks[event.stream - 1], event.message
        match message:
            case Children():
                link.send(event.stream, disk.target.answer(message))
                return
            case Seek(over):
                self._seek(session, event.stream, disk, over=over)
                return
            case Refer():
                applied = disk.target.refer(message, session.number, session.generation)
            case Data():
                applied = disk.target.apply(message, session.number, session.generation)
            case Zeroes():
                applied = disk.target.clear(message, session.number, session.generation)
            case _:
                raise MessageRefused(reason=f"{type(message).__name__} to a master target")
        self._applied(session, event, disk, applied, acknowledge)

    def _seek(self, session: Session, stream: int, disk: OpenDisk, *, over: bool) -> None:
        """The agent is told as soon as the disk's content can be found by digests."""

        def on_bytes(_: int) -> None:
            if session.ended:
                raise Stopping()

        def finish() -> None:
            try:
                session.wait_for_scan()
                known = disk.target.learn_rest(on_bytes)
                session.primary.send(stream, Ready(known))
                self._log("content can be found by digests", disk_id=disk.config.disk.hex, sectors=known)
            except Exception as error:
                if not session.ended:
                    session.end(coded(error))

        if not session.finds[stream - 1]:
            raise MessageRefused(reason="SEEK on a disk for which it was not offered")
        if disk.target.seek(session.number, lambda: self._store.rooms(disk.config), over=over):
            session.begin_seek(threading.Thread(target=finish, name="seek", daemon=True))

    def _applied(
        self, session: Session, event: Received, disk: OpenDisk, applied: Applied, acknowledge: Acknowledge
    ) -> None:
        if applied.answer is not None:
            session.primary.send(event.stream, applied.answer)
        if applied.mismatched:
            session.primary.send(event.stream, Mismatch(tuple(applied.mismatched)))
        disk.commit.add(session.number, event.stream, event.sequence, applied, acknowledge)
        session.count(event.stream - 1, event.plain_bytes)
        with session.arrived:
            meter = self.meters[disk.config.disk.bytes]
            meter.received_bytes += event.plain_bytes
            meter.written_bytes += applied.written_bytes

    def _commit(self, link: Link, session: Session, commit: Commit) -> None:
        """The point is published, or the agent knows what is still due. Errors: `Diverged` (HW-MT-009)."""
        if len(commit.disks) != len(session.disks) or link is not session.primary:
            raise MessageRefused(reason="a commit that does not fit the session")
        group = self._groups.of(session.item)
        if group is not None and not session.enrolled:
            self._groups.check(session, "")
        if group is not None and commit.app_consistent:
            raise MessageRefused(reason="an app-consistent common point")
        session.wait_for(commit.disks, self._clock.monotonic() + IDLE_SECONDS_MAX, self._clock)
        # The agent may commit as soon as it has the last digest, before the scan's thread knows that it is done.
        session.wait_for_scan()
        for index, disk in enumerate(session.disks):
            try:
                disk.commit.settle(whole=True)
            except OF_A_DISK as error:
                if not self._lose(session, index, error):
                    raise
        if session.failed:
            return  # the agent knows by now, or will with the next word, and ends when the others are done
        session.read_again(self._store)
        with ExitStack() as stack:
            # What is published is what was judged: no frame and no newer session comes in between.
            for disk in session.disks:
                stack.enter_context(disk.target.lock)
            settled = session.judge(commit)
            if settled and group is None:
                self._publish(session, commit)
        if not settled:
            link.send(SESSION_STREAM, Unsettled())
        elif group is None:
            link.send(SESSION_STREAM, Published(commit.point))
        elif ready := group.commit(session.item, session, commit):
            self._groups.publish(group, ready, Session.judge, self._publish)

    def _publish(self, session: Session, commit: Commit) -> None:
        """The point is durable; the disks' locks are held. Errors: those of the retention and of the journals."""
        if self._retention is not None:
            disks = session.point_disks()
            kind = Kind.APP_CONSISTENT if commit.app_consistent else Kind.CRASH_CONSISTENT
            stands = self._retention.item(session.item).publish(commit.point, kind, disks)
            for disk in session.disks:
                if disk.verified is not None:
                    disk.verified.settle(stands)
        for disk in session.disks:
            disk.publish(commit.point)
            disk.target.due.settle()
            self.meters[disk.config.disk.bytes].publish(commit.point.hex(), self._clock.now())
        session.published = self._published[session.item] = commit.point
        self._log("point published", session=session.number, point=commit.point.hex())
