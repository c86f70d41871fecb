"""Taking back the last cycle of a disk that is synced by itself: finished or broken off, created or overwritten."""

from dataclasses import dataclass, replace
from typing import Final

from masttarget.config import DiskConfig
from masttarget.errors import OtherTarget
from masttarget.errors_retention import NothingToUndo
from masttarget.going_back import go_back
from masttarget.journal import CycleRecord
from masttarget.opening import describe, reads_as_zeroes, same_disk
from masttarget.points import Kind, Point
from masttarget.ports import TargetStore
from masttarget.retention import ItemRetention
from masttarget.rollback import OnBytes

_TAKEN_BACK: Final = "ff" * 16
"""In the place of the published point: every cycle is taken back, and what is remembered of them is on its way out."""


@dataclass(frozen=True, slots=True)
class TakenBack:
    """What was taken back. `removed`: the target had been created by that cycle and is gone; `more`: there is an
    earlier cycle that could be taken back as well."""

    blocks_changed: int
    bytes_written: int
    removed: bool
    more: bool


def take_back(
    config: DiskConfig, item: ItemRetention, store: TargetStore, on_bytes: OnBytes, unlink: bool = True
) -> TakenBack:
    """The target holds what it held before its last cycle. Errors: `NothingToUndo` (HW-MT-039), those of `go_back`."""
    journal = store.journal(config)
    record = journal.load()
    if record is None:
        raise NothingToUndo(path=str(config.path), journal=item.store.path)
    if record.published == _TAKEN_BACK:  # killed behind its last write: only what is left over has to go
        item.remove()
        journal.remove()
        return TakenBack(0, 0, removed=False, more=False)
    to = _before(item, record)
    if to is None and record.created and not record.published and unlink:
        _remove_created(config, record, store)
        item.remove()
        journal.remove()
        return TakenBack(0, 0, removed=True, more=False)
    if to is None:
        raise NothingToUndo(path=str(config.path), journal=item.store.path)
    gone = go_back((config,), to, item, store, on_bytes, raise_generation=False)
    done = gone.disks[config.disk.hex]
    older = [point for point in item.points if point.sequence < to.sequence]
    if older:
        newer = [point for point in item.points if to.sequence <= point.sequence < gone.point.sequence]
        item.points.drop([point.sequence for point in newer], "taken back")
    else:
        if (ended := journal.load()) is not None:
            journal.store(replace(ended, published=_TAKEN_BACK))
        item.remove()
        journal.remove()
    return TakenBack(done.blocks_changed, done.bytes_written, removed=False, more=bool(older))


def _before(item: ItemRetention, record: CycleRecord) -> Point | None:
    """The point at which the last cycle began; the same one for whoever takes back again what was broken off.

    What a taking back makes on its way (the state that it found, the old point anew) is none to go back to. Finished
    cycles that changed nothing are gone back over: there is nothing of them to be taken back.
    """
    if item.points.rollback is not None:
        return item.points.by_sequence(item.points.rollback["to"])
    points = [point for point in item.points if point.kind is not Kind.BEFORE_ROLLBACK]
    if record.published and points and _original(item, points[-1]) is points[-1]:
        ended = points.pop()
        while len(points) > 1 and _same(points[-1], ended):
            points.pop()
    return _original(item, points[-1]) if points else None


def _same(one: Point, other: Point) -> bool:
    """Whether both are known to be of one content."""
    return all(disk.root for disk in one.disks) and one.roots == other.roots


def _original(item: ItemRetention, point: Point) -> Point:
    """The point whose content this one has, where both are there: then a taking back ended before it had tidied up."""
    while point.base_cycle >= 0 and (base := item.points.by_sequence(point.base_cycle)) is not None:
        point = base
    return point


def _remove_created(config: DiskConfig, record: CycleRecord, store: TargetStore) -> None:
    """The target that the broken cycle created is gone; another one in its place is refused."""
    if not store.exists(config):
        return
    disk = store.open(config)
    try:
        identity = store.identity(disk)
        ours = same_disk(record.identity, identity) if record.identity else reads_as_zeroes(disk)
        if not ours:
            raise OtherTarget(
                path=str(config.path),
                found_identity=describe(identity),
                adopted_identity=describe(record.identity) or "a disk of zeroes",
                journal=store.journal(config).path,
            )
        store.remove(config, disk.format)
    finally:
        disk.close()
