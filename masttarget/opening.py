"""From a configured disk to an open target: existence, identity, size, and what an earlier run left."""

from collections.abc import Callable, Iterable

from _native import digest
from disks.digestmap import DigestMap
from disks.disk import Disk, ExtentKind
from disks.scan import PIECE_BYTES, pieces
from drcore.buffers import buffer
from drcore.clock import Clock
from drcore.errors import HomewardError
from drcore.record import Changing
from drcore.units import parts
from masttarget.commit import GroupCommit
from masttarget.config import DiskConfig
from masttarget.errors import (
    Fenced,
    JournalDamaged,
    NotAdopted,
    OtherTarget,
    ReadBackDiffers,
    TargetFailed,
    TargetLarger,
    TargetMissing,
    TargetTooSmall,
)
from masttarget.journal import UNDO_MARK_STREAM, CleanClose, CycleRecord, Journal
from masttarget.ports import TargetStore
from masttarget.retention import ItemRetention
from masttarget.target import TargetDisk
from masttarget.undo import Identity
from masttarget.verified import Verified, open_verified

FORMAT_SECTOR_BYTES = 512
"""VHD and VMDK hold whole sectors: the last one of an odd source is filled up with zeroes."""


NOBODY = 0
"""The session number of no session: sessions count from 1."""


class OpenDisk(Changing):
    """A target that is open, with its journal and its committing loop."""

    config: DiskConfig
    target: TargetDisk
    journal: Journal
    record: CycleRecord
    commit: GroupCommit
    resumed: bool
    empty: bool
    published_before: bytes
    """The point that an earlier run published but did not tidy up after; empty when there is none."""
    retention: ItemRetention | None = None
    verified: Verified | None = None
    begun: bool = False
    """A session has it, or had it: only then is there anything new to be remembered of it."""

    def begin(self, generation: int, session: int) -> None:
        """The session is durable as the disk's current one; older ones are fenced off and their writes over."""
        if self.commit.failure is not None:
            raise TargetFailed(path=str(self.config.path), reason=str(self.commit.failure))
        self.target.take_over(session)  # first: an older session that is just publishing is done, or will not
        size = self.target.data_bytes  # the source may have been resized since the cycle began
        record = self.record.but(generation=generation, session=session, source_bytes=size, closed=None)
        self.journal.store(record)
        self.record = record
        self.begun = True
        self.commit.settle()

    def backlog_blocks(self) -> int:
        """Blocks that were found to differ and have not come yet."""
        return self.target.due.left

    def waits(self) -> bool:
        """Whether the cycle waits for room on the retention volume."""
        return self.retention is not None and self.retention.critical

    def read_again(self, store: TargetStore, going_on: Callable[[], None]) -> None:
        """What was written since the point before was read again, where points are verified.

        Errors: `ReadBackDiffers` (HW-MT-055), those of the disk, and what `going_on` raises.
        """
        target = self.target

        def check(first: int, count: int, content: memoryview | None) -> None:
            if (block := target.confirm(first, count, content)) is not None:
                raise ReadBackDiffers(path=str(self.config.path), block=block)

        if self.verified is not None:
            self.verified.read_again(
                target.disk, target.lock, lambda: store.forget(target.disk), check, going_on
            )

    def publish(self, point: bytes) -> None:
        """The point is durable."""
        self.record = self.record.but(published=point.hex())
        self.journal.store(self.record)

    def close(self, store: TargetStore) -> None:
        """The disk is closed; a true digest map is kept, a published cycle's record stays or goes as configured.

        Of a disk that no session has begun with, everything stays as it was found.

        Errors: those of the last flush and of the journal; the disk is closed and unlocked all the same, and without a
        kept digest map it is read again.
        """
        if self.begun and self.retention is not None:
            self.retention.interrupt()
        self.target.take_over(NOBODY)  # gives back what was saved for references, too
        self.commit.stop()
        sound = self.begun and self.commit.failure is None and self.target.known
        try:
            if self.verified is not None:
                self.verified.close()
            if self.retention is not None:
                self.retention.close_disk(self.config.disk.bytes)
            if sound and not self.record.published:  # what was published is durable
                self.target.disk.flush()
            change_mark = store.change_mark(self.target.disk)
        finally:
            self.target.disk.close()
        try:
            if self.record.published and not self._remembered():
                self.journal.remove()
            elif sound and ((files := store.file_marks(self.target.disk)) or change_mark):
                # A finished sync is remembered to be taken back, not to be gone on with.
                finished = self.record.published and not self.config.keep_record
                # A device is read again in any case: its mark notices less than a file's.
                unkept = finished or not files
                root = "" if unkept else self.journal.keep_map(self.target.digests.windows())
                self.journal.store(self.record.but(closed=CleanClose(files, change_mark, root)))
        finally:
            self.journal.close()
            self.target.close_maps()

    def _remembered(self) -> bool:
        """Whether a published cycle leaves its record: asked for, or because there is something to go back to."""
        if self.retention is not None and not self.config.keep_record and self.retention.worthless:
            self.retention.remove()
            return False
        return self.config.keep_record or self.retention is not None


def open_disk(
    config: DiskConfig,
    source_bytes: int,
    secret: bytes,
    store: TargetStore,
    clock: Clock,
    on_failure: Callable[[HomewardError], None],
    retention: ItemRetention | None = None,
) -> OpenDisk:
    """The target is open, checked and ours. Errors: HW-MT-003 to 007, 012, 013 and those of opening a disk."""
    journal = store.journal(config)
    record = journal.load()
    published = bytes.fromhex(record.published) if record else b""
    finished: CycleRecord | None = None
    if record is not None and (record.disk != config.disk.hex or record.item != config.item.hex):
        raise JournalDamaged(path=journal.path, reason=f"the journal of disk {record.disk}")
    if record is not None and record.published:  # that cycle is over; `begin` opens the next one
        record, finished = None, record
    resumed, empty = record is not None, not store.exists(config)
    if empty:
        disk, record = _create(config, source_bytes, store, journal, record, finished)
    else:
        disk = store.open(config)
    target: TargetDisk | None = None
    try:
        if not empty:
            adopted = config.adopt or (
                finished is not None and same_disk(finished.identity, store.identity(disk))
            )
            record = _recognise(config, source_bytes, store, journal, record, disk, finished, adopted=adopted)
            if (resumed or finished is not None) and record.closed is None:
                # Nobody saw the end of the last run: what the cache has may never have reached the medium.
                store.forget(disk)
        assert record is not None
        empty = empty or (not resumed and finished is None and _blank(disk, source_bytes))
        target = TargetDisk(
            disk, source_bytes, secret, lambda: store.new_map(config, source_bytes), empty=empty
        )
        _remember(target, journal, record, store, config)
        commit = GroupCommit(disk, journal, clock, on_failure)
        verified = None
        if retention is not None:
            record = _keep_undo(retention, target, commit, journal, record, store, config)
            verified = _verify(retention, target, config) if retention.verifies else None
        journal.start_applied(config.disk.bytes)
    except BaseException:
        if retention is not None:
            retention.close_disk(config.disk.bytes)
        journal.close()
        if target is not None:
            target.close_maps()
        disk.close()
        raise
    commit.start()
    return OpenDisk(config, target, journal, record, commit, resumed, empty, published, retention, verified)


def check_generation(generation: int, records: Iterable[CycleRecord | None]) -> None:
    """The agent's generation is not older than any of the disks'. Errors: `Fenced` (HW-MT-008)."""
    known = [record for record in records if record is not None]
    newest = max((record.generation for record in known), default=0)
    if generation < newest:
        session = max(record.session for record in known)
        raise Fenced(session=0, generation=generation, current_session=session, current_generation=newest)


def durable_place(journal: Journal, config: DiskConfig) -> tuple[int, int]:
    """How far (segment, byte) the applied record says that the retention journal is durable."""
    marks = [
        (frame.session, frame.sequence)
        for frame in journal.read_applied(config.disk.bytes)
        if frame.stream == UNDO_MARK_STREAM
    ]
    return max(marks, default=(0, 0))


def _keep_undo(
    retention: ItemRetention,
    target: TargetDisk,
    commit: GroupCommit,
    journal: Journal,
    record: CycleRecord,
    store: TargetStore,
    config: DiskConfig,
) -> CycleRecord:
    """What the disk's writes overwrite is kept from now on. Errors: those of opening a retention journal."""
    cycle = retention.open_cycle()
    if record.created and not record.cycle:
        record = record.but(cycle=cycle)
        journal.store(record)  # before the points of a target that was here before are given up
    undo = retention.open_disk(
        Identity(config.item.bytes, config.disk.bytes, target.data_bytes),
        target.disk.read,
        # In a later cycle the point of the one that created it stands: the run died before its record said so.
        seeding=record.created and record.cycle == cycle,
        durable=durable_place(journal, config),
        void=changed_outside(record, target.disk, store),
    )
    undo.store_head()  # the applied record, which begins anew, no longer says how far the journal is durable
    target.undo = undo
    commit.undo_place = undo.mark
    return record


def _verify(retention: ItemRetention, target: TargetDisk, config: DiskConfig) -> Verified:
    """It is known what has to be read again before the next point."""
    identity = Identity(config.item.bytes, config.disk.bytes, target.data_bytes)
    verified = open_verified(retention, identity)
    target.on_write = verified.touch
    return verified


def changed_outside(record: CycleRecord, disk: Disk, store: TargetStore) -> bool:
    """Whether somebody else is known to have written to the target since its last stop in order."""
    closed, files, mark = record.closed, store.file_marks(disk), store.change_mark(disk)
    if closed is None:
        return False
    if files:
        return (files, mark) != (closed.files, closed.change_mark)
    # Of a device: what was written while it was attached is counted, and another attachment counts anew.
    *attached, written = mark.rpartition(" ")
    *attached_then, written_then = closed.change_mark.rpartition(" ")
    return attached == attached_then and written != written_then


def _create(
    config: DiskConfig,
    source_bytes: int,
    store: TargetStore,
    journal: Journal,
    broken: CycleRecord | None,
    finished: CycleRecord | None,
) -> tuple[Disk, CycleRecord]:
    """The target exists; one that cannot be made leaves nothing where there was nothing (no cycle that broke off)."""
    if not config.create:
        raise TargetMissing(path=str(config.path))
    before, new = broken or finished, broken is None
    record = CycleRecord(
        item=config.item.hex,
        disk=config.disk.hex,
        generation=before.generation if before else 0,
        session=before.session if before else 0,
        source_bytes=source_bytes,
        created=True,
        identity={},
    )
    journal.store(record)  # before the disk: a killed creation is then known to be ours
    size = source_bytes if config.create == "raw" else _whole_sectors(source_bytes)
    try:
        disk = store.create(config, size)
    except HomewardError:
        if new and finished is None:
            journal.remove()
        elif new and finished is not None:
            journal.store(finished)
        raise
    try:
        record = record.but(identity=store.identity(disk))
        journal.store(record)
    except BaseException:
        disk.close()
        raise
    return disk, record


def _blank(disk: Disk, size: int) -> bool:
    """Whether the first `size` bytes are known to read as zeroes without a look at them."""
    return all(extent.kind is ExtentKind.ZERO for extent in disk.extents(0, size))


def reads_as_zeroes(disk: Disk) -> bool:
    """Whether nothing but zeroes is on the disk, as on one that was made just now; what may be data is read."""
    piece = buffer(PIECE_BYTES)
    for start, length in pieces(disk, disk.size):
        disk.read(start, piece[:length])
        if not digest.is_zero(piece[:length]):
            return False
    return True


def _whole_sectors(size: int) -> int:
    return parts(size, FORMAT_SECTOR_BYTES) * FORMAT_SECTOR_BYTES


def _recognise(
    config: DiskConfig,
    source_bytes: int,
    store: TargetStore,
    journal: Journal,
    record: CycleRecord | None,
    disk: Disk,
    finished: CycleRecord | None,
    *,
    adopted: bool,
) -> CycleRecord:
    """The cycle's record, once identity and size fit."""
    identity, before = store.identity(disk), record or finished
    ours = record is not None and record.created and not record.identity
    if ours and not reads_as_zeroes(disk):
        record, ours = None, False  # a creation was killed, and somebody put another disk in its place
    if record is None and not adopted:
        raise NotAdopted(path=str(config.path), identity=describe(identity))
    if record is not None and not ours and not same_disk(record.identity, identity):
        raise OtherTarget(
            path=str(config.path),
            found_identity=describe(identity),
            adopted_identity=describe(record.identity),
            journal=journal.path,
        )
    path, size = str(config.path), disk.size
    if size < source_bytes:
        raise TargetTooSmall(path=path, target_bytes=size, source_bytes=source_bytes)
    if size > source_bytes and size != _whole_sectors(source_bytes) and not config.allow_larger:
        raise TargetLarger(path=path, target_bytes=size, source_bytes=source_bytes)
    if record is not None and not ours:
        return record
    return CycleRecord(
        item=config.item.hex,
        disk=config.disk.hex,
        generation=before.generation if before else 0,
        session=before.session if before else 0,
        closed=finished.closed if finished else None,
        source_bytes=source_bytes,
        created=record is not None,
        identity=identity,
    )


def describe(identity: dict[str, str]) -> str:
    """The identity as one line for people."""
    return ", ".join(f"{name} {value}" for name, value in identity.items())


STABLE = ("uuid", "path", "size")
"""What a sync does not change; partition table and file systems become the source's while it runs."""


def same_disk(one: dict[str, str], other: dict[str, str]) -> bool:
    """Whether both identities are of one disk."""
    return all(one.get(name) == other.get(name) for name in STABLE)


def _remember(
    target: TargetDisk, journal: Journal, record: CycleRecord, store: TargetStore, config: DiskConfig
) -> None:
    """The digest map is the kept one if nothing changed since the last clean close; else the disk will be read."""
    if target.known or record.source_bytes != target.data_bytes:
        return
    closed = record.closed
    if closed is None:
        target.claim(run for frame in journal.read_applied(config.disk.bytes) for run in frame.runs)
        return
    if (store.file_marks(target.disk), store.change_mark(target.disk)) != (closed.files, closed.change_mark):
        return
    pieces = journal.kept_map(closed.map_root)
    if pieces is None:
        return
    first = 0
    kept: DigestMap = target.digests
    for piece in pieces:
        if first + len(piece) // 16 > kept.blocks:
            return
        if piece != bytes(len(piece)):  # one memcmp; `any` would look at every byte by itself
            kept.write(first, piece)
        first += len(piece) // 16
    target.known = first == kept.blocks
