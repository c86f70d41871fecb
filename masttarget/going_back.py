"""An operator's verb on an item: its target disks get the content of a point, in place, and can come forward again.

What the disks hold when it begins becomes a point itself (`before-rollback`). The generation is raised, durably, before
the first block is written: an agent of the older one is refused, and the next session begins with a comparison. Broken
off anywhere, the same verb goes on.
"""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final

from disks.disk import Disk
from masttarget.config import DiskConfig
from masttarget.errors import OtherTarget, UnknownDisk
from masttarget.errors_retention import PointUnknown, TargetChangedOutside
from masttarget.journal import CycleRecord, Journal
from masttarget.opening import changed_outside, describe, durable_place, same_disk
from masttarget.points import Kind, Point, PointDisk
from masttarget.ports import TargetStore
from masttarget.retention import ItemRetention
from masttarget.rollback import OnBytes, RolledBack, roll_back
from masttarget.segments import Segments
from masttarget.standing import standing
from masttarget.undo import Identity, UndoJournal
from masttarget.view import PointView

_ID_BYTES: Final = 16


@dataclass(slots=True)
class _Opened:
    """A disk that goes back."""

    config: DiskConfig
    disk: Disk
    journal: Journal
    record: CycleRecord
    undo: UndoJournal
    point: PointDisk


@dataclass(frozen=True, slots=True)
class GoneBack:
    """What became of it: the point that has the content now, and what was written, by disk UUID (hex).

    `generation`: an agent has to have it, or a newer one, to be let in.
    """

    point: Point
    before: Point | None
    disks: dict[str, RolledBack]
    generation: int


def go_back(
    configs: tuple[DiskConfig, ...],
    to: Point,
    item: ItemRetention,
    store: TargetStore,
    on_bytes: OnBytes,
    *,
    raise_generation: bool = True,
) -> GoneBack:
    """Every disk of the point holds what it held then, durably.

    Errors: `PointUnknown`, `TargetChangedOutside` (HW-MT-042), `OtherTarget` (007), `UnknownDisk` (002), those of the
    retention journal and of the disks; `DiskInUse` where a session has a disk open.
    """
    with ExitStack() as stack:
        stack.enter_context(item.store.hold(item.item, to.id))
        opened = [_open(one, configs, item, store, stack) for one in to.disks]
        # Before anything is changed: a point that a damaged journal does not lead to fences off nobody.
        views = [
            _view(one.disk, item.store.segments(item.item, one.config.disk.bytes), one.undo.identity, to)
            for one in opened
        ]
        with item.changing():
            if item.points.by_sequence(to.sequence) is None:
                raise PointUnknown(item=item.item.hex(), point=to.id)
        before = _begin(opened, to, item)
        for one in opened:
            one.record = replace(
                one.record, generation=one.record.generation + raise_generation, closed=None, published=""
            )
            one.journal.store(one.record)
            # What was acknowledged before is overwritten, not lost; how far old contents are durable, the head says.
            one.undo.store_head()
            stack.callback(one.journal.close)
            one.journal.start_applied(one.config.disk.bytes)
        done = {}
        for one, view in zip(opened, views, strict=True):
            done[one.config.disk.hex] = roll_back(one.disk, view, one.undo, on_bytes)
        stands = item.points.latest
        wrote = any(one.undo.wrote for one in opened)
        if stands is not None and stands.kind is not Kind.BEFORE_ROLLBACK and not wrote:
            # Not a block was written since the latest point, by this rollback neither: it has the content already.
            item.points.note_rollback("done", to=to.sequence)
            for one in opened:
                one.journal.store(replace(one.record, published=stands.id))
            return GoneBack(stands, None, done, max(one.record.generation for one in opened))
        disks = [
            replace(one, verified="") for one in to.disks
        ]  # what has to be read is known, and was not yet
        made = item.publish(_named(to, item), to.kind, disks, base_cycle=to.sequence)
        item.points.note_rollback("done", to=to.sequence)
        for one in opened:
            one.journal.store(replace(one.record, published=made.id))
        return GoneBack(made, before, done, max(one.record.generation for one in opened))


def most_blocks(
    configs: tuple[DiskConfig, ...], to: Point, item: ItemRetention, store: TargetStore
) -> dict[str, int]:
    """At most so many blocks of each disk (UUID, hex) a rollback would write now; nothing was touched.

    Errors: as `go_back`: what would refuse it is refused here.
    """
    found = {}
    with ExitStack() as stack:
        for one in to.disks:
            config, disk, journal, _ = _checked(one, configs, store, stack)
            identity = Identity(config.item.bytes, config.disk.bytes, one.data_bytes)
            segments = item.store.segments(item.item, identity.disk)
            view = _view(disk, segments, identity, to, durable_place(journal, config))
            found[one.disk] = sum(bits.bit_count() for _, bits in view.changed())
    return found


def _named(to: Point, item: ItemRetention) -> bytes:
    """A name for the point that a rollback makes: of its cycle and of the point it came from."""
    return item.cycle.to_bytes(8, "big") + bytes.fromhex(to.id)[8:_ID_BYTES]


def _checked(
    point: PointDisk, configs: tuple[DiskConfig, ...], store: TargetStore, stack: ExitStack
) -> tuple[DiskConfig, Disk, Journal, CycleRecord]:
    """The disk is the one that was adopted, nobody else has it, and nobody else wrote to it."""
    config = next((one for one in configs if one.disk.hex == point.disk), None)
    if config is None:
        raise UnknownDisk(disk=point.disk)
    disk = store.open(config)
    stack.callback(disk.close)
    journal = store.journal(config)
    record, identity = journal.load(), store.identity(disk)
    if record is None or not same_disk(record.identity, identity):
        raise OtherTarget(
            path=str(config.path),
            found_identity=describe(identity),
            adopted_identity=describe(record.identity) if record is not None else "none",
            journal=journal.path,
        )
    if changed_outside(record, disk, store):
        raise TargetChangedOutside(path=str(config.path))
    return config, disk, journal, record


def _open(
    point: PointDisk,
    configs: tuple[DiskConfig, ...],
    item: ItemRetention,
    store: TargetStore,
    stack: ExitStack,
) -> _Opened:
    config, disk, journal, record = _checked(point, configs, store, stack)
    undo = item.open_disk(
        Identity(config.item.bytes, config.disk.bytes, point.data_bytes),
        disk.read,
        seeding=False,
        durable=durable_place(journal, config),
        void=False,
    )
    stack.callback(item.close_disk, config.disk.bytes)
    return _Opened(config, disk, journal, record, undo, point)


def _view(
    disk: Disk, segments: Segments, identity: Identity, to: Point, durable: tuple[int, int] = (0, 0)
) -> PointView:
    """The disk as it was. Errors: why the journal does not lead as far back."""
    reason = standing(segments, identity.item, identity.disk, durable, whole=False).reason(to.sequence)
    if reason is not None:
        raise reason
    return PointView(disk, segments, identity, to.sequence)


def _begin(opened: list[_Opened], to: Point, item: ItemRetention) -> Point | None:
    """What is there now is a point, and it is durable that a rollback has begun."""
    pending = item.points.rollback
    if pending is not None and pending["to"] == to.sequence:
        return None  # broken off: the cycle that it writes in is still open
    before = None
    if any(one.undo.wrote for one in opened):
        disks = tuple(PointDisk(one.disk, one.data_bytes) for one in to.disks)
        before = item.publish(_named(to, item), Kind.BEFORE_ROLLBACK, disks)
    item.points.note_rollback("begun", to=to.sequence)
    return before
