"""Replication groups: items that get common points, or none.

A round of a group: every member's agent enrols; all are told to prepare; each freezes its sources, says so, harvests
and says so; when the last one has, all thaw. So there is an instant at which all stood still. Then each ships what
belongs to its point, and commits. Nothing is published before the last commit has come; then a note names what is
published for whom, durably, and each item's point follows. A note that is found again is made good: a point of one
member is one of all.

A member that is too late, or gone, voids the round: all sessions of it end, and nobody has a point of it.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, Protocol

from drcore.errors import HomewardError
from drcore.limits import GROUP_FREEZE_SECONDS_MAX, GROUP_GATHER_SECONDS_MAX
from drcore.record import Changing, made
from masttarget.config import DiskConfig
from masttarget.errors import GroupVoid
from masttarget.points import Kind, PointDisk
from masttarget.retention import Retention
from masttarget.session import Session
from wireproto.barrier import Prepare, Thaw
from wireproto.connection import SESSION_STREAM
from wireproto.errors import MessageRefused
from wireproto.messages import Commit, Message

NOTE_VERSION: Final = 2

Timer = Callable[[float, Callable[[], None]], Callable[[], None]]
"""Calls later, from a thread of its own; answers how to take that back."""


class GroupNotes(Protocol):
    """Where it is noted what becomes a common point. Errors: `RetentionFailed` (HW-MT-037), `RetentionFull` (036)."""

    def load(self, group: str) -> bytes | None:
        """The group's note; None when there is none."""
        ...

    def store(self, group: str, note: bytes) -> None:
        """The note is durable."""
        ...

    def remove(self, group: str) -> None:
        """There is none, durably."""
        ...


def after(seconds: float, call: Callable[[], None]) -> Callable[[], None]:
    """See `Timer`."""
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()
    return timer.cancel


class Round(Changing):
    """One attempt at a common point; the sets are of items."""

    point: bytes
    members: dict[bytes, Session] = made(factory=dict)
    frozen: set[bytes] = made(factory=set)
    harvested: set[bytes] = made(factory=set)
    commits: dict[bytes, Commit] = made(factory=dict)
    prepared: bool = False
    deciding: bool = False
    """Every commit has come: what happens to a member now happens to the next round."""
    cancel: Callable[[], None] = lambda: None


class Group:
    """One replication group. Any thread may call; nothing is sent and no session ended under its lock."""

    def __init__(
        self,
        name: str,
        items: frozenset[bytes],
        new_point: Callable[[], bytes],
        timer: Timer = after,
    ) -> None:
        self.name = name
        self.items = items
        self._new_point = new_point
        self._timer = timer
        self._lock = threading.Condition()
        self._round: Round | None = None

    def enrol(self, item: bytes, session: Session) -> None:
        """The member is there; when it is the last one, all are told to prepare."""
        with self._lock:
            while self._round is not None and self._round.deciding:
                self._lock.wait()
            before = self._round
            # Whoever comes again, or late, has no part in what the others do already.
            stale = before is not None and (before.prepared or item in before.members)
        if stale and before is not None:
            self.void(before, "a member began a new session")
        with self._lock:
            current = self._round
            if current is None:
                current = self._round = Round(self._new_point())
                self._limit(current, GROUP_GATHER_SECONDS_MAX)
            current.members[item] = session
            if current.members.keys() != self.items:
                return
            current.cancel()
            current.prepared = True
            self._limit(current, GROUP_FREEZE_SECONDS_MAX)
        self._send_all(current, Prepare(current.point))

    def frozen(self, item: bytes, session: Session, point: bytes) -> None:
        """The member's sources stand still. Errors: `MessageRefused`, `GroupVoid`."""
        with self._lock:
            current = self._mine(item, session, point)
            if item in current.frozen:
                raise MessageRefused(reason="FROZEN twice")
            current.frozen.add(item)

    def harvested(self, item: bytes, session: Session, point: bytes) -> None:
        """The member knows what belongs to the point; when it is the last one, all thaw. Errors as `frozen`."""
        with self._lock:
            current = self._mine(item, session, point)
            if item not in current.frozen or item in current.harvested:
                raise MessageRefused(reason="HARVESTED without FROZEN, or twice")
            current.harvested.add(item)
            if current.harvested != self.items:
                return
            current.cancel()
        self._send_all(current, Thaw(point))

    def commit(self, item: bytes, session: Session, commit: Commit) -> dict[bytes, tuple[Session, Commit]]:
        """The member is ready to publish; answers all of them when it is the last one, else none.

        Errors as `frozen`.
        """
        with self._lock:
            current = self._mine(item, session, commit.point)
            if current.harvested != self.items:
                raise MessageRefused(reason="a commit before the thaw")
            current.commits[item] = commit
            if current.commits.keys() != self.items:
                return {}
            current.deciding = True
            return {one: (current.members[one], current.commits[one]) for one in current.members}

    @contextmanager
    def undecided(self) -> Iterator[None]:
        """No round is being decided meanwhile."""
        with self._lock:
            while self._round is not None and self._round.deciding:
                self._lock.wait()
            yield

    def published(self) -> None:
        """The round is over: its point is every member's."""
        with self._lock:
            self._round = None
            self._lock.notify_all()

    def abandon(self, reason: str) -> None:
        """The round whose commits had all come is void after all."""
        current = self._round
        if current is not None:
            with self._lock:
                current.deciding = False
                self._lock.notify_all()
            self.void(current, reason)

    def leave(self, item: bytes, session: Session) -> None:
        """The session is over. If its round is not, that is void."""
        with self._lock:
            current = self._round
            if current is None or current.members.get(item) is not session:
                return
        self.void(current, f"the session of item {item.hex()} ended")

    def void(self, current: Round, reason: str) -> None:
        """The round is over and nobody has a point of it: every member is told, and thaws."""
        with self._lock:
            if self._round is not current or current.deciding:
                return
            self._round = None
            current.cancel()
        for session in current.members.values():
            session.end(GroupVoid(group=self.name, reason=reason))

    def _limit(self, current: Round, seconds: float) -> None:
        def late() -> None:
            there = current.harvested if current.prepared else current.members.keys()
            missing = ", ".join(sorted(item.hex() for item in self.items - there))
            what = "frozen and harvested" if current.prepared else "there"
            if missing:
                self.void(current, f"not {what} within {seconds:.0f} seconds: item {missing}")

        current.cancel = self._timer(seconds, late)

    def _mine(self, item: bytes, session: Session, point: bytes) -> Round:
        current = self._round
        if current is None or current.members.get(item) is not session:
            raise GroupVoid(group=self.name, reason="the round was over before")
        if point != current.point or not current.prepared:
            raise MessageRefused(reason="a message for another point of the group")
        return current

    def _send_all(self, current: Round, message: Message) -> None:
        for session in current.members.values():
            with suppress(HomewardError):  # a member that is gone voids the round by itself
                session.primary.send(SESSION_STREAM, message)


def groups_of(disks: tuple[DiskConfig, ...], new_point: Callable[[], bytes]) -> dict[bytes, Group]:
    """The group of each item that is in one."""
    members: dict[str, set[bytes]] = {}
    for disk in disks:
        if disk.group:
            members.setdefault(disk.group, set()).add(disk.item.bytes)
    groups = [Group(name, frozenset(items), new_point) for name, items in members.items()]
    return {item: group for group in groups for item in group.items}


def encode_note(group: str, point: bytes, members: dict[bytes, list[PointDisk]]) -> bytes:
    """What becomes a common point."""
    found = {item.hex(): [disk.as_dict() for disk in disks] for item, disks in members.items()}
    note = {"version": NOTE_VERSION, "group": group, "point": point.hex(), "members": found}
    return json.dumps(note, separators=(",", ":")).encode()


def make_good(
    group: str, notes: GroupNotes, retention: Retention, end_cycle: Callable[[bytes, bytes], None]
) -> bool:
    """Every member has the point that the group's note names, if there is one; answers whether there was.

    To be called when nobody writes to the members' disks. Every frame of the point was durable before the note.
    `end_cycle` (disk, point) makes it durable that the disk's cycle ended with the point.
    """
    raw = notes.load(group)
    if raw is None:
        return False
    note: dict[str, Any] = json.loads(raw)
    for item, disks in note["members"].items():
        points = retention.item(bytes.fromhex(item))
        with points.changing():
            if not any(point.id == note["point"] for point in points.points):
                found = [PointDisk(**disk) for disk in disks]
                points.publish(bytes.fromhex(note["point"]), Kind.CRASH_CONSISTENT, found)
        for disk in disks:
            end_cycle(bytes.fromhex(disk["disk"]), bytes.fromhex(note["point"]))
    notes.remove(group)
    return True
