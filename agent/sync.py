"""One cycle: compares an item's disks with the target's and ships what differs, until the point stands."""

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeAlias

from agent.barrier import Barrier
from agent.config import AgentConfig
from agent.connecting import Caller
from agent.crew import Crew, at_once
from agent.descent import Ask, Descent, Order, Ship
from agent.errors import NeverSettled, SourceChanged, SourceTouched, Stopped
from agent.lanes import NEAR_SECONDS
from agent.pace import Bucket, Compressor
from agent.ports import Connect, LineState, Quiesce, SentRecord, SourceMark, StillSource
from agent.references import Find, Orders, Outlook, Referrals, block_bytes
from agent.report import DiskReport, Progress, SyncReport
from agent.ship import Lane, Source, Tally, Work
from agent.window import Window
from agent.work import WorkQueue
from disks.digestmap import DigestMap
from disks.disk import Disk
from disks.scan import RegionRun, data_runs, scan
from drcore.clock import Clock
from drcore.errors import HomewardError, coded
from drcore.limits import HEARTBEAT_SECONDS, IDLE_SECONDS_MAX
from drcore.record import Changing, Record, made
from drcore.secret import Secret
from drcore.units import BLOCK_BYTES, REGION_BYTES
from wireproto.connection import SESSION_STREAM, Received
from wireproto.errors import ConnectionLost, MessageRefused, PeerReported
from wireproto.handshake import DiskOffer, Purpose
from wireproto.keys import digest_secret
from wireproto.link import Link
from wireproto.messages import (
    Alive,
    Bye,
    Children,
    Commit,
    Differ,
    DiskState,
    DiskTotals,
    Durable,
    Failed,
    Mismatch,
    Missing,
    Opened,
    Published,
    Ready,
    Report,
    Scanned,
    Seek,
    Unsettled,
    error_of,
    report_of,
)

SETTLE_ROUNDS_MAX: Final = 8
"""Commits that may find blocks still due; each round sends them whole, so a second one is already strange."""
HELD_SECONDS: Final = 1.0
"""How often orders that wait for the target's index are looked at."""
PARTING_SECONDS_MAX: Final = 1.0
"""How long the end of a run waits for the master target to take the last word."""
REPORT_SECONDS_MAX: Final = 2.0
"""How long a broken connection is asked for the reason that the peer may have given."""


class SyncDisk(Changing):
    """One disk to bring home, opened by whoever calls."""

    offer: DiskOffer
    path: str
    disk: Disk
    digests: DigestMap
    sent: SentRecord
    mark: SourceMark
    first_mark: str
    """What `mark` said before the first byte was read."""


class _SourceRun(Record):
    stream: int
    run: RegionRun


class _Scanned(Record):
    """Every source disk was read."""


_Inbound: TypeAlias = "_SourceRun | _Scanned | Received | HomewardError"


class _Item(Changing):
    source: Source
    descent: Descent
    orders: Orders
    disk: SyncDisk
    empty: bool = False
    """The target holds nothing: every block is read once, when it is shipped."""
    failure: PeerReported | None = None
    """Why its target takes nothing more; the other disks go on."""

    @property
    def settled(self) -> bool:
        """Nothing is left to be compared or ordered."""
        return self.failure is not None or self.orders.settled

    @property
    def held(self) -> bool:
        """Orders wait for the target's index."""
        return self.failure is None and self.orders.held is not None


class SyncPorts(Changing):
    """What a run needs from outside."""

    connect: Connect
    clock: Clock
    random: Callable[[int], bytes]
    shared: Secret
    quiesce: Quiesce = made(factory=StillSource)
    app_consistent: bool = False  # whether applications had come to rest before the sources are read


class Sync:
    """One run of one cycle. `run` is called once; `stop` may be called from any thread or a signal handler."""

    def __init__(self, config: AgentConfig, disks: list[SyncDisk], ports: SyncPorts, point: bytes) -> None:
        self._config = config
        self._ports = ports
        self._disks = disks
        self.point = point
        self._inbox: queue.SimpleQueue[_Inbound] = queue.SimpleQueue()
        self._work: WorkQueue[Work] = WorkQueue()
        self._window = Window()
        self._links: list[Link] = []
        self._threads: list[threading.Thread] = []
        self._over = False
        self._failed = False
        self._at_barrier = False
        self._done = threading.Event()
        self._session = 0
        self._bucket = Bucket(config.bandwidth, ports.clock, lambda: self._over or self._failed)
        self._compressor = Compressor(config.compression, config.bandwidth)
        self._crew = Crew(self._further, self._enlist, self._line, ports.clock, self._done)
        self._source_read = False
        self._scanned_before = 0
        self._began = 0.0
        self._read_at: float | None = None
        self._waited_at: float | None = None
        secret = digest_secret(ports.shared, config.item.bytes).reveal()
        offers = tuple(disk.offer for disk in disks)
        self._caller = Caller(
            config, ports.connect, ports.clock, ports.random, ports.shared, offers, self._patient
        )
        self._items = [self._item(stream, disk, secret) for stream, disk in enumerate(disks, start=1)]
        self.progress = Progress(total_bytes=sum(disk.offer.size for disk in disks))

    def _item(self, stream: int, disk: SyncDisk, secret: bytes) -> _Item:
        referrals, descent = Referrals(disk.digests), Descent(disk.digests, secret)
        source = Source(stream, disk.disk, disk.digests, secret, disk.sent, Tally(), referrals)
        return _Item(source, descent, Orders(descent, referrals), disk)

    def standing(self) -> Progress:
        """The progress, brought up to date; any thread."""
        self.progress.sent_blocks = sum(item.source.tally.blocks for item in self._items)
        self.progress.bytes_sent = sum(link.bytes_sent for link in self._all_links())
        return self.progress

    def _all_links(self) -> list[Link]:
        return [lane.link for lane in self._crew.lanes] or list(self._links)

    def set_bandwidth(self, rate: int | None) -> None:
        """From now on so many bytes a second, or as many as the line takes; any thread."""
        self._config = self._config.but(bandwidth=rate)
        self._compressor.set_rate(rate)
        self._bucket.set_rate(rate)

    def stop(self) -> None:
        """The run ends with `Stopped` (HW-AGENT-007) as soon as it can.

        Also where the comparing loop waits for lanes that a bandwidth holds back. The locks that are taken here are
        re-entrant: a signal handler may find this very thread within one of them.
        """
        self._fail(Stopped())

    def run(self) -> SyncReport:
        """The point is published and everything of it durable at home.

        Errors: `Stopped`, `SourceChanged`, `ConnectionLost`, `PeerReported` and those of the disks.
        """
        try:
            opened = self._open()
            self.progress.overwrites = any(not (state.empty or state.resumed) for state in opened.disks)
            if opened.published != self.point:
                if self._config.group:
                    self._stand_with_the_others()
                for item, state in zip(self._items, opened.disks, strict=True):
                    if state.empty:
                        item.empty = True
                        item.descent.fill(data_runs(item.source.disk, item.source.digests.size))
                    item.source.referrals.begin(finds=state.finds)
                self._start()
                self._compare_and_ship()
            self._links[0].send(SESSION_STREAM, Bye())
            return self._report(opened.disks)
        except HomewardError as error:
            reason = self._reason(error)
            self._fail(reason)
            self._part(reason)
            if reason is error:
                raise
            raise reason from error
        finally:
            self._end()

    # Connecting

    def _open(self) -> Opened:
        """The session is open with all its lanes."""
        first, opened = self._caller.call(Purpose.SESSION, 0, 0)
        self._links.append(first)
        if len(opened.disks) != len(self._disks) and opened.published != self.point:
            raise MessageRefused(reason="an opening of other disks")
        self._session = opened.session
        self._links += at_once(self._further, range(1, self._config.lanes))
        return opened

    def _stand_with_the_others(self) -> None:
        """What the sources hold is what they held when all members of the group stood still; the point is theirs.

        Errors: `FrozenTooLong` (HW-AGENT-010), those of `Quiesce`, `PeerReported` when somebody else was late.
        """
        barrier = Barrier(self._config.group, self._links[0], self._ports.quiesce, self._ports.clock)
        self._at_barrier = True
        if self._failed:
            raise Stopped()
        self.point = barrier.run(lambda event: self._inbox.put(event.detached()))
        self._at_barrier = False

    def _further(self, lane: int) -> Link:
        """One more connection of the open session."""
        return self._caller.call(Purpose.LANE, self._session, lane)[0]

    def _line(self, link: Link) -> LineState | None:
        return self._ports.connect.line(link.transport)

    def _start(self) -> None:
        """Every loop runs: one that reads the sources, one that receives and one that ships for each lane."""
        self._began = self._ports.clock.monotonic()
        line = self._line(self._links[0])
        near = line is None or line.round_trip < NEAR_SECONDS
        self._compressor = Compressor(self._config.compression, self._config.bandwidth, near=near)
        for number, link in enumerate(self._links):
            self._crew.add(number, link)
        if self._config.lanes == 0:
            self._thread("steer", self._steer)
        self._thread("scan", self._scan)
        self._thread("heartbeat", self._beat)

    def _enlist(self, number: int, link: Link) -> Lane:
        """The lane works and is listened to."""
        lane = Lane(
            number,
            link,
            self._work,
            self._window,
            self._bucket,
            self._compressor,
            self._ports.clock,
            self._fail,
        )
        self._thread(f"receive {number}", self._receive, lane)
        lane.start()
        return lane

    def _thread(self, name: str, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    # The loops

    def _beat(self) -> None:
        """The master target hears from this side often enough to know that it lives, on every lane."""
        try:
            while not self._done.wait(HEARTBEAT_SECONDS):
                for lane in self._crew.working:
                    try:
                        lane.link.send(SESSION_STREAM, Alive())
                    except ConnectionLost:
                        if not lane.retired:  # it may have left while its neighbour was spoken to
                            raise
        except Exception as error:
            self._fail(coded(error))

    def _steer(self) -> None:
        """There are as many lanes as bring something."""
        try:
            self._crew.steer()
        except Exception as error:
            self._fail(coded(error))

    def _scan(self) -> None:
        """Every source disk was read into its digest map, and the comparing loop knows."""

        def on_bytes(position: int) -> None:
            if self._over:
                raise Stopped()
            self.progress.scanned_bytes = self._scanned_before + position

        try:
            for item in self._items:
                source = item.source
                if item.empty:
                    continue  # nothing to compare with: the lanes read it as they ship it
                for run in scan(source.disk, source.digests, source.secret, on_bytes):
                    self._inbox.put(_SourceRun(source.stream, run))
                self._scanned_before += source.digests.size
            self._read_at = self._ports.clock.monotonic()
            self._inbox.put(_Scanned())
        except Exception as error:
            self._fail(coded(error))

    def _receive(self, lane: Lane) -> None:
        """What the master target says goes to the comparing loop; acknowledgements free the window at once."""
        try:
            while True:
                event = lane.link.receive()
                if not isinstance(event, Received):
                    raise MessageRefused(reason="a clear message in a session")
                match event.message:
                    case Durable(sequence):
                        self._window.durable(lane.number, event.stream, sequence)
                    case Alive(waits):
                        self._told_alive(waits)
                    case Report() as report:
                        raise error_of(report)
                    case Missing() as answer:
                        self._answered(event, answer)
                    case Failed(report):
                        self._forsake(event, error_of(report))
                    case _:
                        self._inbox.put(event.detached())
        except Exception as error:
            if not lane.left:
                self._fail(coded(error))
            lane.link.close()

    def _forsake(self, event: Received, error: PeerReported) -> None:
        """The disk is left alone. At once: lanes, or the comparing loop, may wait for a word about it."""
        item = self._items[event.stream - 1]
        item.failure = error
        self._window.forsake(event.stream)
        item.source.referrals.forsake()
        self._inbox.put(event)

    def _told_alive(self, waits: bool) -> None:
        """Whoever watches knows whether the master target waits for room."""
        if waits:
            self._waited_at = self._ports.clock.monotonic()
        self.progress.waits = waits

    def _patient(self) -> bool:
        """The master target said just now that it takes nothing: a line on which nothing moves is no loss."""
        now = self._ports.clock.monotonic()
        return not self._over and self._waited_at is not None and now - self._waited_at < IDLE_SECONDS_MAX

    def _answered(self, event: Received, answer: Missing) -> None:
        """Lanes may refer to more; what was not found is due. At once: the comparing loop may wait for a lane."""
        if self._items[event.stream - 1].source.referrals.answered(answer):
            self._links[0].send(event.stream, Seek(over=True))
        if answer.entries:
            self._inbox.put(event)

    def _fail(self, error: HomewardError) -> None:
        """Every loop that waits gets the error; the comparing loop raises the first one."""
        if self._over:
            return
        self._window.fail(error)
        self._failed = True  # who waits for the bandwidth ends now, and finds that the window has failed
        self._work.fail(error)
        for item in self._items:
            item.source.referrals.fail(error)
        self._inbox.put(error)
        if self._at_barrier:
            self._links[0].close()  # it waits there, and nowhere else

    def _compare_and_ship(self) -> None:
        rounds = 0
        committed = False
        while True:
            self._give_orders()
            if self._source_read and all(item.settled for item in self._items):
                self._work.settle()
                if any(item.failure is not None for item in self._items):
                    self._stop_with_failures()
                elif not committed:
                    self._commit()
                    committed = True
            event = self._next_event()
            if event is None:
                continue
            if isinstance(event, HomewardError):
                raise event
            if isinstance(event, Received):
                if isinstance(event.message, Published):
                    return
                if isinstance(event.message, Unsettled):
                    rounds += 1
                    committed = False
                    if rounds > SETTLE_ROUNDS_MAX:
                        blocks = sum(item.source.tally.blocks for item in self._items)
                        raise NeverSettled(blocks=blocks, rounds=rounds)
            self._apply(event)

    def _stop_with_failures(self) -> None:
        """Returns while the others still lack something. Errors: why the first target failed, once they do not."""
        for lane in list(self._crew.lanes):
            self._window.settle(lane.number)
        if not self._inbox.empty():
            return  # a block may have to go once more
        failures = [item.failure for item in self._items if item.failure is not None]
        facts = failures[0].facts()
        others = len(self._items) - len(failures)
        facts["peer_found"] += (
            f"; {others} of the item's {len(self._items)} disks hold what their sources hold, durably, and no point "
            "was made"
        )
        raise PeerReported(**facts)

    def _next_event(self) -> "_Inbound | None":
        """What comes next; None when orders have waited for a while, so that it is seen whether they still should."""
        try:
            return self._inbox.get(timeout=HELD_SECONDS if any(item.held for item in self._items) else None)
        except queue.Empty:
            return None

    def _apply(self, event: "_SourceRun | _Scanned | Received") -> None:
        if isinstance(event, Received) and event.stream and self._items[event.stream - 1].failure is not None:
            return
        match event:
            case _SourceRun(stream, run):
                self._items[stream - 1].descent.source_scanned(run)
            case _Scanned():
                self._source_read = True
            case Received(stream, _, Scanned() as told):
                self._items[stream - 1].descent.target_scanned(told)
            case Received(stream, _, Differ() as answer):
                self._items[stream - 1].descent.answered(answer)
            case Received(stream, _, Mismatch(blocks)):
                self._items[stream - 1].descent.mismatched(blocks)
            case Received(stream, _, Missing(_, _, entries)):
                self._items[stream - 1].descent.missed(entries)
            case Received(stream, _, Ready()):
                if not self._items[stream - 1].source.referrals.ready():
                    raise MessageRefused(reason="an index that nobody asked for")
            case Received(_, _, Unsettled()):
                pass
            case _:
                raise MessageRefused(reason="a message to a master target")

    def _give_orders(self) -> None:
        for item in self._items:
            while item.failure is None and (order := item.orders.next(self._outlook(item))) is not None:
                self._give(item, order)
                if item.empty:
                    self._tell_compared()
        self._tell_compared()

    def _tell_compared(self) -> None:
        self.progress.compared_bytes = sum(
            min(item.descent.compared_regions * REGION_BYTES, item.source.digests.size)
            for item in self._items
        )

    def _outlook(self, item: _Item) -> Outlook:
        tally, now = item.source.tally, self._ports.clock.monotonic()
        rate: float | None = self._config.bandwidth
        if rate is None and self._work.full:
            rate = max(sum(link.bytes_sent for link in self._links), 1) / max(now - self._began, 1e-3)
        return Outlook(
            rate,
            min(self.progress.scanned_bytes / max(self.progress.total_bytes, 1), 1.0),
            (self._read_at or now) - self._began,
            now,
            block_bytes(tally.content_bytes, tally.blocks),
        )

    def _give(self, item: _Item, order: Order | Find) -> None:
        if isinstance(order, Find):
            self._links[0].send(item.source.stream, Seek(over=False))
            return
        if isinstance(order, Ask):
            self._links[0].send(
                item.source.stream, Children(order.level, order.node, memoryview(order.digests))
            )
        else:
            if isinstance(order, Ship):
                self.progress.ordered_blocks += order.blocks.bit_count()
            self._work.put((item.source, order))

    def _commit(self) -> None:
        """The master target was asked to publish. Errors: `SourceChanged` (HW-AGENT-002)."""
        totals = []
        for item in self._items:
            tally = item.source.tally
            if tally.changed:
                raise SourceChanged(
                    path=item.disk.path, blocks=len(tally.changed), offset=min(tally.changed) * BLOCK_BYTES
                )
            if (mark := item.disk.mark()) != item.disk.first_mark:
                raise SourceTouched(path=item.disk.path, first_mark=item.disk.first_mark, found_mark=mark)
            totals.append(DiskTotals(tally.frames, tally.plain_bytes, item.source.digests.root()))
        commit = Commit(self.point, bytes(16), tuple(totals), self._ports.app_consistent)
        self._links[0].send(SESSION_STREAM, commit)

    # The end

    def _part(self, error: HomewardError) -> None:
        """The master target knows why the run ends, unless it said so itself or is gone."""
        alone = isinstance(error, PeerReported) and all(item.failure is None for item in self._items)
        if alone or isinstance(error, ConnectionLost) or not self._links:
            return
        if self._links[0].connection.may_send:
            message = Bye() if isinstance(error, Stopped) else report_of(error)

            def tell() -> None:
                with suppress(HomewardError):
                    self._links[0].send(SESSION_STREAM, message)

            # A peer that takes nothing must not hold us: whoever waits in the pipe is woken when it is closed.
            telling = threading.Thread(target=tell, name="part", daemon=True)
            telling.start()
            telling.join(PARTING_SECONDS_MAX)

    def _reason(self, error: HomewardError) -> HomewardError:
        """The error that ended the run; for a broken connection the peer's own reason, if one arrives soon."""
        if not isinstance(error, ConnectionLost):
            return error
        deadline = self._ports.clock.monotonic() + REPORT_SECONDS_MAX
        while (rest := deadline - self._ports.clock.monotonic()) > 0:
            receiving = any(
                thread.is_alive() for thread in self._threads if thread.name.startswith("receive")
            )
            try:
                event = self._inbox.get(timeout=min(rest, 0.05))
            except queue.Empty:
                if receiving:
                    continue
                break
            if isinstance(event, HomewardError) and not isinstance(event, ConnectionLost):
                return event
        return error

    def _end(self) -> None:
        """Every thread has ended and every connection is closed."""
        self._over = True
        self._done.set()
        self._window.fail(Stopped())
        self._work.fail(Stopped())
        for item in self._items:
            item.source.referrals.fail(Stopped())
        for link in self._links:
            link.close()
        self._crew.close()
        for thread in self._threads:
            thread.join()

    def _report(self, states: tuple[DiskState, ...]) -> SyncReport:
        disks = tuple(
            DiskReport(
                disk=item.disk.offer.disk.hex(),
                virtual_size=item.source.digests.size,
                blocks_sent=item.source.tally.blocks,
                sectors_sent=item.source.tally.sectors,
                content_bytes=item.source.tally.content_bytes,
                bytes_resent=item.source.tally.resent_bytes,
                blocks_referenced=item.source.referrals.blocks,
                sectors_referenced=item.source.referrals.sectors,
                root=item.source.digests.root(),
                target_bytes=state.target_bytes,
            )
            for item, state in zip(self._items, states, strict=True)
        )
        return SyncReport(
            disks,
            sum(link.bytes_sent for link in self._all_links()),
            sum(link.bytes_received for link in self._all_links()),
            any(state.resumed for state in states),
            self.point,
            max(self._crew.most, 1),
        )
