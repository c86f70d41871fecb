"""All replication groups of a master target: who may speak to which, and how a common point becomes every member's."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from uuid import UUID

from drcore.errors import HomewardError, coded
from masttarget.config import DiskConfig
from masttarget.errors import OtherGroup
from masttarget.group import Group, GroupNotes, encode_note, groups_of, make_good
from masttarget.opening import NOBODY, OpenDisk
from masttarget.ports import Log, RandomBytes
from masttarget.retention import Retention
from masttarget.session import Session
from wireproto.barrier import Enrol, Frozen, Harvested
from wireproto.connection import SESSION_STREAM
from wireproto.errors import MessageRefused
from wireproto.link import Link
from wireproto.messages import Commit, Published

POINT_BYTES = 16
Ready = dict[bytes, tuple[Session, Commit]]
"""The members of a round whose commits have all come, by item."""


class Groups:
    """See the module. Any thread may call."""

    def __init__(
        self,
        disks: tuple[DiskConfig, ...],
        notes: GroupNotes | None,
        retention: Retention | None,
        random: RandomBytes,
        log: Log,
    ) -> None:
        self._groups = groups_of(disks, lambda: random(POINT_BYTES))
        self._notes = notes
        self._retention = retention
        self._log = log

    def of(self, item: bytes) -> Group | None:
        """The group that the item is in."""
        return self._groups.get(item)

    def make_good(
        self,
        disks: Iterable[OpenDisk],
        end_cycle: Callable[[bytes, bytes], None],
        item: bytes | None = None,
    ) -> None:
        """No member of the item's group (of any) has a point that another one lacks. `disks` are all that are open;
        for `end_cycle` see `masttarget.group.make_good`.

        Errors: those of the retention; nothing may be written to the members' disks then.
        """
        if self._notes is None or self._retention is None:
            return
        for group in set(self._groups.values()):
            if item is not None and item not in group.items:
                continue
            with group.undecided(), ExitStack() as stack:
                if self._notes.load(group.name) is None:
                    continue  # and no lock is waited for that a member holds while it waits for room
                for disk in disks:
                    if disk.config.item.bytes in group.items:
                        stack.enter_context(disk.target.lock)
                if make_good(group.name, self._notes, self._retention, end_cycle):
                    self._log("common point made good", group=group.name)

    def gather(self, link: Link, session: Session, message: Enrol | Frozen | Harvested) -> None:
        """A member says where it is. Errors: `OtherGroup` (HW-MT-054), `MessageRefused`, `GroupVoid` (HW-MT-053)."""
        group = self.of(session.item)
        if link is not session.primary:
            raise MessageRefused(reason="a word to the group on a further lane")
        if isinstance(message, Enrol):
            self.check(session, message.group)
            if session.enrolled:
                raise MessageRefused(reason="ENROL twice")
            session.enrolled = True
        if group is None or not session.enrolled:
            raise MessageRefused(reason="a word to a group by one that has not enrolled")
        match message:
            case Enrol():
                group.enrol(session.item, session)
            case Frozen(point):
                group.frozen(session.item, session, point)
            case Harvested(point):
                group.harvested(session.item, session, point)

    def check(self, session: Session, found: str) -> None:
        """Both ends name the same group, or none. Errors: `OtherGroup` (HW-MT-054)."""
        group = self.of(session.item)
        expected = group.name if group is not None else ""
        if found != expected:
            item = str(UUID(bytes=session.item))
            raise OtherGroup(item=item, found_group=found, expected_group=expected)

    def publish(
        self,
        group: Group,
        ready: Ready,
        judge: Callable[[Session, Commit], bool],
        publish: Callable[[Session, Commit], None],
    ) -> None:
        """The common point is every member's. Errors: those of any of them; the round is void then.

        `judge` answers whether nothing of a member is due, `publish` makes the point durable; both with its disks'
        locks held. A round that broke off after its note is made good before anything else is written.
        """
        try:
            self._publish(group, ready, judge, publish)
        except Exception as failure:
            group.abandon(str(coded(failure)))
            raise
        group.published()
        for session, commit in ready.values():
            with suppress(HomewardError):  # whoever is gone hears of it at the next opening
                session.primary.send(SESSION_STREAM, Published(commit.point))

    def _publish(
        self,
        group: Group,
        ready: Ready,
        judge: Callable[[Session, Commit], bool],
        publish: Callable[[Session, Commit], None],
    ) -> None:
        assert self._notes is not None
        members = {item: session.point_disks() for item, (session, _) in ready.items()}
        point = next(iter(ready.values()))[1].point
        with ExitStack() as stack:
            disks = [disk for session, _ in ready.values() for disk in session.disks]
            for disk in disks:
                stack.enter_context(disk.target.lock)
            for session, commit in ready.values():
                if not judge(session, commit):
                    raise MessageRefused(reason="content after a commit")
            try:
                self._notes.store(group.name, encode_note(group.name, point, members))
                for session, commit in ready.values():
                    publish(session, commit)
                self._notes.remove(group.name)
            except BaseException:
                # It may be decided: until it was made good, nobody writes to these disks.
                for disk in disks:
                    disk.target.session = NOBODY
                raise
