"""What one item can go back to: its points, the undo journals of its disks, and the room that they take.

The cycle's number is the item's: all of its disks change together from one point to the next. `publish` is the barrier:
it is called when every frame of every disk is durable, and no disk begins the next cycle before the point stands.
"""

import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Final, Protocol

from drcore.clock import Clock
from drcore.errors import HomewardError, coded
from drcore.limits import RETENTION_SECONDS
from drcore.record import Record
from masttarget.errors_retention import (
    LastPoint,
    PointInUse,
    PointsDamaged,
    RetentionBusy,
    RetentionFull,
    SegmentDamaged,
)
from masttarget.points import GOOD, Kind, Point, PointDisk, Points, PointsFile
from masttarget.ports import GOES_ON, WAITS, Log
from masttarget.rebuilding import lacking, rebuild
from masttarget.segments import Note, Segments, headers
from masttarget.undo import Identity, Read, UndoJournal
from masttarget.verified_layout import VerifiedFile

ROOM_POLL_SECONDS: Final = 0.5


class RetentionStore(Protocol):
    """The retention volume. Errors: `RetentionFailed` (HW-MT-037)."""

    @property
    def path(self) -> str:
        """Where it is, for people."""
        ...

    def points(self, item: bytes) -> PointsFile:
        """The item's list of points."""
        ...

    def segments(self, item: bytes, disk: bytes) -> Segments:
        """A disk's segments."""
        ...

    def verified(self, item: bytes, disk: bytes) -> VerifiedFile:
        """What the disk's medium was last found to hold."""
        ...

    def disks(self, item: bytes) -> list[bytes]:
        """The disks of the item that have segments."""
        ...

    def exclusive(self, item: bytes) -> AbstractContextManager[None]:
        """Nobody else changes the item's list of points."""
        ...

    def free_bytes(self) -> int:
        """Room that is left."""
        ...

    def hold(self, item: bytes, point: str) -> AbstractContextManager[None]:
        """Nobody deletes what the point needs, from this process or another. Errors: `PointInUse` when it is going."""
        ...

    def claim(self, item: bytes, point: str) -> AbstractContextManager[None]:
        """The point may be deleted. Errors: `PointInUse` (HW-MT-040) while somebody holds it."""
        ...

    def held(self, item: bytes) -> str:
        """A point of the item that somebody holds; empty where there is none."""
        ...

    def remove(self, item: bytes) -> None:
        """Nothing of the item is left."""
        ...


class Step(Record):
    """A rung of a ladder: of points older than `after_seconds`, one in `every_seconds` is kept."""

    after_seconds: float
    every_seconds: float


class Policy(Record):
    """How long points are kept. Without a ladder every point of the window is (the failback policy, R137)."""

    seconds: float = RETENTION_SECONDS
    ladder: tuple[Step, ...] = ()
    verify_points: bool = False
    """Whether what was written is read again before a point is published, for its content root."""

    @classmethod
    def of(
        cls, seconds: float, ladder: Iterable[tuple[float, float]], *, verify_points: bool = False
    ) -> "Policy":
        """The policy that the settings ask for."""
        return cls(seconds, tuple(Step(*step) for step in ladder), verify_points)


def prunable(points: Iterable[Point], now_ms: int, policy: Policy) -> list[Point]:
    """The points that the policy gives up, oldest first; never the last good one, nor the newest of all."""
    kept = list(points)
    good = [point for point in kept if point.kind in GOOD]
    safe = {point.sequence for point in (*kept[-1:], *good[-1:])}
    gone: list[Point] = []
    slot: tuple[float, int] | None = None
    for point in kept:
        age = (now_ms - point.time_ms) / 1000
        if point.sequence in safe:
            continue
        if age > policy.seconds:
            gone.append(point)
            continue
        step = max((s for s in policy.ladder if age > s.after_seconds), key=_after, default=None)
        if step is None:
            continue
        here = (step.after_seconds, int(point.time_ms / 1000 // step.every_seconds))
        if here == slot:
            gone.append(point)
        slot = here
    return gone


def _after(step: Step) -> float:
    return step.after_seconds


class ItemRetention:
    """See the module. `lock` guards it; the undo journals are guarded by their targets' locks."""

    def __init__(self, item: bytes, store: RetentionStore, clock: Clock, policy: Policy, log: Log) -> None:
        self.item = item
        self.store = store
        self._clock = clock
        self._policy = policy
        self.log = log
        self._lock = threading.RLock()
        self._undo: dict[bytes, UndoJournal] = {}
        self._seeding: set[bytes] = set()
        self._predicted = 0
        self._impatient = threading.Event()
        self._due: Point | None = None
        """A point whose notes were begun and that is not in the list yet: something failed in between."""
        self.critical = False
        self._depth = 0
        self.points = Points(store.points(item), item.hex())
        if self._flaw(self.points.load):
            with store.exclusive(item):
                self.points = Points(store.points(item), item.hex())
                self._read(self.points.load)

    def _read(self, load: Callable[[], object]) -> None:
        """The list is as it is now; a damaged one was made anew. Errors: `ClockBackwards`, `RetentionFailed`."""
        if reason := self._flaw(load):
            rebuild(self.points, self.item, self._journals(), reason, self.log)

    def _flaw(self, load: Callable[[], object]) -> str:
        """What is wrong with the list that `load` reads (it answers False where that was done before)."""
        try:
            return "" if load() is False else lacking(self.points, self._journals())
        except PointsDamaged as error:
            return str(error)

    def _journals(self) -> dict[bytes, Segments]:
        return {disk: self.store.segments(self.item, disk) for disk in self.store.disks(self.item)}

    @property
    def verifies(self) -> bool:
        """Whether what was written is read again before a point is published."""
        return self._policy.verify_points

    @property
    def cycle(self) -> int:
        """The open cycle."""
        return self.points.last_sequence + 1

    def open_cycle(self) -> int:
        """The open cycle, whoever ended the last one."""
        with self.changing():
            return self.cycle

    @contextmanager
    def changing(self) -> Iterator[None]:
        """The list is as it is now, and nobody else changes it; may be nested."""
        with self._lock, ExitStack() as stack:
            if self._depth == 0:
                stack.enter_context(self.store.exclusive(self.item))
                self._read(self.points.refresh)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1

    # Opening

    def open_disk(
        self, identity: Identity, read: Read, *, seeding: bool, durable: tuple[int, int], void: bool
    ) -> UndoJournal:
        """The disk's undo journal is open, and knows what this cycle has recorded already.

        `seeding`: the target was created in this cycle, so that there is nothing to go back to. `void`: somebody else
        wrote to the target, so that the points before lead nowhere. Errors: HW-MT-030 to 034, 037.
        """
        with self.changing():
            if self._knows(identity.disk) and (void or seeding):
                self.log("points given up: a target was changed outside", item=self.item.hex())
                self.points.drop([point.sequence for point in self.points], "changed outside")
            if void or seeding:
                self._due = None
            journal = UndoJournal(
                self.store.segments(self.item, identity.disk), identity, read, self._clock, self.make_room
            )
            notes = journal.open(self.cycle, durable)
            while self._roll_forward(notes):
                notes = journal.open(self.cycle, durable)
            self._check_known(journal)
            if not len(self.points):
                journal.forget_all()
            self._undo[identity.disk] = journal
            if seeding:
                self._seeding.add(identity.disk)
                journal.active = False
            return journal

    def _knows(self, disk: bytes) -> bool:
        return any(point.disk(disk.hex()) is not None for point in self.points)

    def _roll_forward(self, notes: list[Note]) -> bool:
        """A point whose note is durable is made one of the list: its content was, before the note.

        Every disk that is open already goes on in the next cycle.
        """
        for note in notes:
            if note.content.get("event") == "point" and note.cycle >= self.cycle:
                point = Point.decode(note.content["point"])
                self._seeding -= {bytes.fromhex(one.disk) for one in point.disks}
                self._end_cycle(point)
                return True
        return False

    def _check_known(self, journal: UndoJournal) -> None:
        for number, header in headers(journal.segments, journal.segments.numbers()[-1:]):
            if header.first_cycle > self.cycle:
                reason = (
                    f"cycle {header.first_cycle}, while the list of points ends before cycle {self.cycle}"
                )
                raise SegmentDamaged(path=journal.segments.path, segment=number, offset=0, reason=reason)

    def begin(self, disks: Collection[bytes]) -> None:
        """There is a point to go back to for each of the disks that is not being seeded; room was looked for."""
        with self.changing():
            self._impatient.clear()  # not before: whoever waits for a lock may still be of the older session
            if self._due is not None:
                self._end_cycle(self._due)
            names, latest = [disk.hex() for disk in disks], self.points.latest
            before = (
                {one.disk: one for one in latest.disks if one.disk in names} if latest is not None else {}
            )
            found = dict(before)
            for journal in (self._undo[disk] for disk in disks if disk not in self._seeding):
                name, size = journal.identity.disk.hex(), journal.identity.data_bytes
                if name not in found or found[name].data_bytes != size:
                    # Of another size than the point has, it would not be gone back to as a whole.
                    found[name] = PointDisk(name, size)
            if found != before:
                self._stand(self._new_id(), Kind.AS_FOUND, tuple(found.values()))
            if self.points.rollback is not None:  # the next comparison finds what it left half done
                self.points.note_rollback("left", to=self.points.rollback["to"])
            self._reserve()

    def _new_id(self) -> str:
        return f"{self.cycle:08x}" + self.item.hex()[:24]

    # Publishing

    def publish(self, point: bytes, kind: Kind, disks: Iterable[PointDisk], *, base_cycle: int = -1) -> Point:
        """The point stands, durably, over these disks of the item; the next cycle is open.

        Nothing is said of the item's other disks: a session without them knows nothing of what they hold.
        """
        with self.changing():
            latest = self.points.latest
            if latest is not None and latest.id == point.hex():
                if self._due is not None:
                    self._end_cycle(self._due)
                return latest  # it stood, though something failed behind its line: not once more
            disks = tuple(disks)
            names = [one.disk for one in disks]
            left = [one.disk for one in latest.disks if one.disk not in names] if latest is not None else []
            if left:
                self.log("a point without disks that the one before has", item=self.item.hex(), disks=left)
            for journal in self._undo.values():
                self._predicted = max(self._predicted // 2, journal.cycle_bytes)
            for one in disks:
                self._seeding.discard(bytes.fromhex(one.disk))
            stood = self._stand(point.hex(), kind, disks, base_cycle)
            try:
                self.prune()
            except Exception as error:  # the point stands; to say otherwise would have it published twice
                self.log(
                    "pruning failed, the next point tries again",
                    item=self.item.hex(),
                    error=str(coded(error)),
                )
            return stood

    def _stand(self, name: str, kind: Kind, disks: tuple[PointDisk, ...], base_cycle: int = -1) -> Point:
        now_ms = int(self._clock.now() * 1000)
        if now_ms < self.points.last_time_ms:
            self.log("the clock went back", found_ms=now_ms, expected_ms=self.points.last_time_ms)
            now_ms = self.points.last_time_ms
        point = self._due = Point(name, self.cycle, now_ms, kind, disks, base_cycle)
        used = [journal for journal in self._undo.values() if journal.used]
        for journal in used:
            journal.note({"event": "point", "point": point.encode()}, point.sequence)
        for journal in used:
            journal.flush()
        self._end_cycle(point)
        return point

    def _end_cycle(self, point: Point) -> None:
        """The point is in the list, and every disk in the next cycle: no write may come between its note and that."""
        if self.points.last_sequence < point.sequence:
            self.points.add(point)
        for disk, journal in self._undo.items():
            journal.begin_cycle(self.cycle)
            journal.active = disk not in self._seeding
        self._due = None
        for journal in self._undo.values():
            if journal.used:
                journal.store_head()

    # Room

    def prune(self) -> list[Point]:
        """What the policy gives up is gone; points in use stay until nobody uses them."""
        with self.changing():
            return self._drop(prunable(self.points, int(self._clock.now() * 1000), self._policy), "policy")

    def check_last(self, points: list[Point]) -> None:
        """Something good stays when the points go. Errors: `LastPoint` (HW-MT-041)."""
        gone = {point.sequence for point in points}
        if points and all(point.sequence in gone for point in self.points if point.kind in GOOD):
            raise LastPoint(item=self.item.hex(), point=points[-1].id)

    def drop(self, points: list[Point], *, last: bool = False) -> None:
        """The points are gone. Errors: `LastPoint` (HW-MT-041) unless `last`, `PointInUse` (HW-MT-040)."""
        with self.changing():
            if not last:
                self.check_last(points)
            for point in points:
                with self.store.claim(self.item, point.id):
                    pass
            self._drop(points, "operator")

    def _drop(self, points: list[Point], reason: str) -> list[Point]:
        with ExitStack() as claims:
            # Who reads from a point needs every cycle after it; older cycles may go, the point itself may not.
            gone = [point for point in points if self._claimed(point, claims)]
            if gone:
                self.points.drop([point.sequence for point in gone], reason)
                self.log("points dropped", item=self.item.hex(), points=len(gone), reason=reason)
                self._forget()
        return gone

    def _claimed(self, point: Point, claims: ExitStack) -> bool:
        """Whether nobody uses the point; nobody else begins to before `claims` are given back."""
        try:
            claims.enter_context(self.store.claim(self.item, point.id))
        except PointInUse:
            return False
        return True

    def _forget(self) -> None:
        oldest = self.points.oldest
        needed = oldest.sequence + 1 if oldest is not None else self.cycle
        for journal in self._undo.values():
            journal.forget_before(needed)

    def _reserve(self) -> None:
        """Room for as much as the last cycles took; the oldest points make it."""
        while self.store.free_bytes() < self._predicted and self._drop_oldest():
            pass

    def _drop_oldest(self) -> bool:
        """Whether a point was given up; at least one that is good stays."""
        points = list(self.points)
        if len(points) < 2 or not any(point.kind in GOOD for point in points[1:]):
            return False
        return bool(self._drop(points[:1], "no room"))

    def make_room(self, error: HomewardError) -> None:
        """There may be room now. Errors: the given one, when it is about something else or nobody may wait longer."""
        if not isinstance(error, RetentionFull):
            raise error
        while not self._gain():
            if not self.critical:
                self.critical = True
                self.log(WAITS, item=self.item.hex(), state="critical")
            if self._impatient.wait(ROOM_POLL_SECONDS):
                raise error
            if self.store.free_bytes() >= error.wanted:
                break
        if self.critical:
            self.critical = False
            self.log(GOES_ON, item=self.item.hex())

    def _gain(self) -> bool:
        """Whether there is more room than before: what somebody dropped, or the oldest point, is gone."""
        before = self.store.free_bytes()
        with (
            suppress(RetentionFull),
            self.changing(),
        ):  # so full that not even that can be noted: somebody else's bytes
            self._forget()
            return self.store.free_bytes() > before or (
                self._drop_oldest() and self.store.free_bytes() > before
            )
        return False

    def interrupt(self) -> None:
        """Who waits for room gives up, now and until the next session: that, or the end, is at the door."""
        self._impatient.set()

    # The end

    @property
    def worthless(self) -> bool:
        """Whether nothing could be gone back to: no disk has one undo record."""
        return not any(self.store.segments(self.item, disk).numbers() for disk in self.store.disks(self.item))

    def close_disk(self, disk: bytes) -> None:
        """The disk's undo journal is closed; what it kept is durable."""
        with self._lock:
            journal = self._undo.pop(disk, None)
            self._seeding.discard(disk)
        if journal is not None:
            journal.close()

    def remove(self) -> None:
        """Nothing of the item is left on the retention volume."""
        with self._lock:
            self.store.remove(self.item)
            self.points = Points(self.store.points(self.item), self.item.hex())

    def tidy(self) -> None:
        """Segments that nothing needs are gone, where no other process writes them (else that one sees to it)."""
        with self.changing():
            for disk in self.store.disks(self.item):
                sizes = [
                    one.data_bytes for point in self.points if (one := point.disk(disk.hex())) is not None
                ]
                with suppress(RetentionBusy):
                    journal = self.open_disk(
                        Identity(self.item, disk, max(sizes, default=0)), _unread, seeding=False,
                        durable=(0, 0), void=False,
                    )  # fmt: skip
                    self._forget()
                    if not len(self.points):
                        journal.forget_all()
                    self.close_disk(disk)


def _unread(offset: int, into: memoryview) -> None:
    """Nothing is kept while tidying."""
    raise AssertionError


class Retention:
    """The retention of all items of a master target."""

    def __init__(self, store: RetentionStore, clock: Clock, policy: Policy, log: Log) -> None:
        self.store = store
        self._clock = clock
        self._policy = policy
        self._log = log
        self._items: dict[bytes, ItemRetention] = {}
        self._lock = threading.Lock()

    def item(self, item: bytes) -> ItemRetention:
        """The item's retention, read from the volume at first. Errors: `PointsDamaged`, `RetentionFailed`."""
        with self._lock:
            if item not in self._items:
                self._items[item] = ItemRetention(item, self.store, self._clock, self._policy, self._log)
            return self._items[item]

    def interrupt(self) -> None:
        """Nobody waits for room any more."""
        with self._lock:
            items = list(self._items.values())
        for one in items:
            one.interrupt()
