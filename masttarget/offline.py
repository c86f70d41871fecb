"""What the master target does without an agent: takes disks as its own, tells what it keeps of them, reads them again.

Every verb works on the configured disks alone and needs no session. `adopt` and `prove` hold each disk's exclusive
lock while they are at it, so a master target that has the disk open keeps them out (`DiskInUse`, HW-DISKS-010).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from disks.content import DiskContent, read_root
from disks.image import Image
from masttarget.config import DiskConfig
from masttarget.errors import Fenced, JournalDamaged, NotAdopted, OtherTarget
from masttarget.journal import CycleRecord
from masttarget.opening import describe, same_disk
from masttarget.ports import TargetStore

NO_POINT: Final = bytes(16).hex()
"""As on the wire: no point was published yet, and no cycle is open."""


@dataclass(frozen=True, slots=True)
class DiskRecord:
    """What is durable of one disk; generation and session are 0, and point is empty, where nothing is."""

    disk: str
    path: str
    generation: int
    session: int
    point: str
    open_cycle: bool


def show(
    disks: tuple[DiskConfig, ...], store: TargetStore, newest: Callable[[DiskConfig], str] = lambda disk: ""
) -> tuple[DiskRecord, ...]:
    """What the journal of every disk holds; no disk is opened. Errors: HW-MT-012, 013.

    `newest` names the last point of a disk whose journal has an open cycle, and so no word of the one before.
    """
    found = []
    for disk in disks:
        record = _record(disk, store.journal(disk).load())
        found.append(replace(record, point=newest(disk)) if record.open_cycle else record)
    return tuple(found)


def adopt(disks: tuple[DiskConfig, ...], generation: int, store: TargetStore) -> tuple[DiskRecord, ...]:
    """Every disk is ours, its identity durable, and so is the generation: whoever has an older one is refused.

    A second time it only raises the generation; an open cycle stays as it is. Errors: `NotAdopted` (HW-MT-006) where
    the settings do not confirm a new disk, `OtherTarget` (007), `Fenced` (008) when a newer generation is durable here
    already (for any of the disks; then nothing was changed), 012, 013 and those of opening a disk.
    """
    newest = max((record.generation for record in show(disks, store)), default=0)
    if generation < newest:
        raise Fenced(session=0, generation=generation, current_session=0, current_generation=newest)
    return tuple(_adopt(disk, generation, store) for disk in disks)


def prove(
    disks: tuple[DiskConfig, ...], store: TargetStore, on_bytes: Callable[[int, int], None]
) -> tuple[DiskContent, ...]:
    """The content root of every disk, read again from its medium, of as many bytes as its source has.

    `on_bytes` is told bytes read and bytes in all; what it raises ends the reading. Errors: those of the disks.
    """
    records = [store.journal(disk).load() for disk in disks]
    found: list[DiskContent] = []
    known = sum(record.source_bytes for record in records if record)
    done = 0
    for disk, record in zip(disks, records, strict=True):
        image = store.open(disk)
        try:
            assert isinstance(image, Image)
            size = min(record.source_bytes, image.size) if record else image.size
            begin, total = done, max(known, done + size)

            def tell(position: int, begin: int = begin, total: int = total) -> None:
                on_bytes(begin + position, total)

            found.append(DiskContent(disk.disk.hex, size, read_root(image, size, tell)))
        finally:
            image.close()
        done += size
    return tuple(found)


def _adopt(config: DiskConfig, generation: int, store: TargetStore) -> DiskRecord:
    journal = store.journal(config)
    disk = store.open(config)
    try:
        identity, record = store.identity(disk), journal.load()
        if record is not None and (record.disk, record.item) != (config.disk.hex, config.item.hex):
            raise JournalDamaged(path=journal.path, reason=f"the journal of disk {record.disk}")
        if record is None or not record.identity:
            if not config.adopt:
                raise NotAdopted(path=str(config.path), identity=describe(identity))
            record = CycleRecord(
                item=config.item.hex,
                disk=config.disk.hex,
                generation=generation,
                session=record.session if record else 0,
                source_bytes=disk.size,
                created=False,
                identity=identity,
                published=NO_POINT,
            )
            journal.store(record)
        elif not same_disk(record.identity, identity):
            raise OtherTarget(
                path=str(config.path),
                found_identity=describe(identity),
                adopted_identity=describe(record.identity),
                journal=journal.path,
            )
        elif record.generation < generation:
            record = replace(record, generation=generation)
            journal.store(record)
        return _record(config, record)
    finally:
        disk.close()


def _record(config: DiskConfig, record: CycleRecord | None) -> DiskRecord:
    if record is None:
        return DiskRecord(config.disk.hex, str(config.path), 0, 0, "", open_cycle=False)
    point = "" if record.published == NO_POINT else record.published
    return DiskRecord(
        config.disk.hex,
        str(config.path),
        record.generation,
        record.session,
        point,
        open_cycle=not record.published,
    )
