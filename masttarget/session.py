"""One session of an item: what has come in it, which lanes and threads it has, and how it ends."""

import threading
from contextlib import suppress

from disks.errors import FlushFailed, ImageDamaged, ImageFull, NoSpace, ReadFailed, WriteFailed
from drcore.clock import Clock
from drcore.errors import HomewardError
from drcore.limits import HEARTBEAT_SECONDS, SESSION_LINKS_MAX
from drcore.record import Changing, made
from masttarget.errors import Diverged, Fenced, JournalFailed, Stopping, TargetFailed
from masttarget.opening import OpenDisk
from masttarget.points import PointDisk
from masttarget.ports import TargetStore
from masttarget.verified import Content
from wireproto.connection import SESSION_STREAM
from wireproto.errors import ConnectionLost, LimitExceeded
from wireproto.handshake import DiskOffer
from wireproto.link import Link
from wireproto.messages import Alive, Commit, DiskTotals, report_of

OF_A_DISK = (
    *(NoSpace, WriteFailed, FlushFailed, ReadFailed, ImageFull, ImageDamaged),
    *(TargetFailed, JournalFailed),
)
"""What stops the one disk that it happens to."""
PARTING_SECONDS = 2.0
"""How long an agent that was told why gets to hang up by itself."""

WAIT_SECONDS = 1.0
"""How often it is looked whether frames are missing because the cycle waits for room."""


def part(link: Link, error: HomewardError) -> None:
    """The peer knows why, as far as it can still be told; it hangs up, or is hung up on soon."""
    if isinstance(error, ConnectionLost):
        link.close()
        return
    # Before anything is sent: a peer that reads nothing holds the pipe, and closing it frees whoever waits there.
    timer = threading.Timer(PARTING_SECONDS, link.close)
    timer.daemon = True
    timer.start()
    with suppress(HomewardError):
        if not link.connection.established:
            link.send_clear(link.connection.refuse(error))
        elif link.connection.may_send:
            link.send(SESSION_STREAM, report_of(error))
    link.finish()


class Session(Changing):
    """The current session of an item. `primary` is its first lane, which carries the dialogue."""

    number: int
    generation: int
    primary: Link
    offers: tuple[DiskOffer, ...]
    disks: list[OpenDisk]
    links: list[Link] = made(factory=list)
    frames: list[int] = made(factory=list)
    plain_bytes: list[int] = made(factory=list)
    arrived: threading.Condition = made(factory=threading.Condition)
    finds: list[bool] = made(factory=list)
    """Of each disk, whether the agent was told that references are understood."""
    enrolled: bool = False
    """Whether the agent takes part in its replication group."""
    ended: bool = False
    over: threading.Event = made(factory=threading.Event)
    """Set with `ended`, for whoever sleeps."""
    reason: HomewardError | None = None
    """Why it ended, where that was no part of the dialogue."""
    failed: dict[int, HomewardError] = made(factory=dict)
    """Disks, by their place in `disks`, that have stopped while the others go on."""
    finished: bool = False
    published: bytes = bytes(16)
    scanner: threading.Thread | None = None
    seekers: list[threading.Thread] = made(factory=list)

    @property
    def item(self) -> bytes:
        """Whose disks these are."""
        return self.disks[0].config.item.bytes

    def join(self, link: Link) -> None:
        """The connection is one of the session's. Errors: `LimitExceeded` (HW-WIRE-005)."""
        if len(self.links) >= SESSION_LINKS_MAX:
            raise LimitExceeded(
                field="connections of a session", value=len(self.links) + 1, limit=SESSION_LINKS_MAX
            )
        self.links.append(link)

    def waits(self) -> bool:
        """Whether its cycle waits for room on the retention volume."""
        return not self.ended and any(disk.waits() for disk in self.disks)

    def point_disks(self) -> list[PointDisk]:
        """What a point of this moment says of the disks."""
        found = []
        for disk in self.disks:
            content = disk.verified.content if disk.verified is not None else Content()
            root = disk.target.digests.root().hex()
            found.append(
                PointDisk(disk.config.disk.hex, disk.target.data_bytes, root, content.root, content.verified)
            )
        return found

    def count(self, disk: int, plain_bytes: int) -> None:
        """One more frame of new content was applied."""
        with self.arrived:
            self.frames[disk] += 1
            self.plain_bytes[disk] += plain_bytes
            self.arrived.notify_all()

    def wait_for(self, totals: tuple[DiskTotals, ...], deadline: float, clock: Clock) -> None:
        """As many frames as the commit tells of were applied, or the deadline has passed, or the session ended.

        Or a disk has failed, whose frames never will be. The deadline moves on while the cycle waits for room.
        """
        with self.arrived:
            allowed = deadline - clock.monotonic()
            while any(total.frames > got for total, got in zip(totals, self.frames, strict=True)):
                if self.waits():
                    deadline = clock.monotonic() + allowed
                rest = deadline - clock.monotonic()
                if rest <= 0 or self.ended or self.failed:
                    return
                self.arrived.wait(min(rest, WAIT_SECONDS))

    def lose(self, disk: int, error: HomewardError) -> bool:
        """The disk takes nothing more in this session; answers whether another one still does."""
        with self.arrived:
            self.failed.setdefault(disk, error)
            self.arrived.notify_all()
            return len(self.failed) < len(self.disks)

    def read_again(self, store: TargetStore) -> None:
        """What was written since the last point was read from the media, where points are verified.

        Errors: `ReadBackDiffers` (HW-MT-055), those of the disks, and what ended the session meanwhile.
        """

        def going_on() -> None:
            if self.ended:
                raise self.reason or Stopping()

        for disk in self.disks:
            disk.read_again(store, going_on)

    def judge(self, commit: Commit) -> bool:
        """Whether nothing is due any more; the disks' locks are held. Errors: `Diverged`, `Fenced`."""
        if any(disk.target.session != self.number for disk in self.disks):
            raise Fenced(
                session=self.number,
                generation=self.generation,
                current_session=max(disk.target.session for disk in self.disks),
                current_generation=max(disk.record.generation for disk in self.disks),
            )
        # What was asked for again may have come over other lanes since the agent counted: it has to count anew.
        ahead = any(got > total.frames for got, total in zip(self.frames, commit.disks, strict=True))
        unread = any(disk.verified is not None and disk.verified.due for disk in self.disks)
        if ahead or unread or any(disk.target.mismatched for disk in self.disks):
            return False
        for index, total in enumerate(commit.disks):
            self.check_equal(index, total)
        return True

    def check_equal(self, index: int, total: DiskTotals) -> None:
        """The disk has got, and holds, what the agent counts. Errors: `Diverged` (HW-MT-009)."""
        disk = self.disks[index]
        root = disk.target.digests.root()
        counted = (self.frames[index], self.plain_bytes[index])
        if root != total.root or counted != (total.frames, total.plain_bytes) or not disk.target.known:
            raise Diverged(
                disk=disk.config.disk.hex,
                source_root=total.root.hex(),
                target_root=root.hex(),
                source_frames=total.frames,
                target_frames=counted[0],
                source_bytes=total.plain_bytes,
                target_bytes=counted[1],
            )

    def end(self, error: HomewardError | None) -> None:
        """Nothing more is received in this session; the agent is told why, where it still listens."""
        with self.arrived:
            if self.ended:
                return
            self.ended, self.reason = True, error
            self.arrived.notify_all()
        self.over.set()
        for link in tuple(self.links):  # one may leave meanwhile
            if error is None:
                link.close()
            else:
                part(link, error)

    def begin_beat(self) -> None:
        """The agent hears from this side often enough to know that it lives, and to notice bytes that were lost.

        By a thread of the session's own: a peer that takes nothing must not make the others' peers fall silent.
        """
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _beat(self) -> None:
        while not self.over.wait(HEARTBEAT_SECONDS):
            for link in tuple(self.links):
                if link.connection.running:
                    with suppress(HomewardError):
                        link.send(SESSION_STREAM, Alive(self.waits()))

    def begin_scan(self, scanner: threading.Thread) -> None:
        """The scan runs. Errors: what ended the session meanwhile."""
        with self.arrived:
            if self.ended:
                raise self.reason or Stopping()
            scanner.start()
            self.scanner = scanner

    def begin_seek(self, seeker: threading.Thread) -> None:
        """The thread that finishes an index runs, unless the session has ended meanwhile."""
        with self.arrived:
            if not self.ended:
                seeker.start()
                self.seekers.append(seeker)

    def wait_for_scan(self) -> None:
        """The scan of an ended session is over: nothing of it uses the digest map any more."""
        if self.scanner is not None and self.scanner is not threading.current_thread():
            self.scanner.join()

    def wait_for_readers(self) -> None:
        """No thread of an ended session uses its disks any more."""
        self.wait_for_scan()
        for seeker in list(self.seekers):
            seeker.join()
