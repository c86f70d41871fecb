"""A cycle's end that breaks off: the point that was begun stands before another write, and what failed stays failed."""

import errno
import os
from pathlib import Path

import pytest

from drcore.errors import HomewardError
from drcore.units import BLOCK_BYTES
from masttarget.adapters.retention_files import ListFile
from masttarget.errors_retention import RetentionFailed, RetentionFull
from masttarget.points import Kind, PointDisk
from masttarget.retention import ItemRetention
from masttarget.undo import Identity, UndoJournal
from masttarget.view import PointView
from tests.fault.media import MemoryDisk
from tests.unit.test_masttarget_retention import DISK, ITEM, item_of
from tests.unit.test_masttarget_undo import Hands

BLOCKS = 8


def opened(item: ItemRetention, disk: MemoryDisk) -> UndoJournal:
    journal = item.open_disk(
        Identity(ITEM, DISK, disk.size), disk.read, seeding=False, durable=(0, 0), void=False
    )
    item.begin([DISK])
    return journal


def overwrite(journal: UndoJournal, disk: MemoryDisk, fill: int) -> None:
    journal.before_overwrite(0, BLOCKS)
    disk.write(0, memoryview(bytes([fill]) * BLOCKS * BLOCK_BYTES))


def test_a_point_that_could_not_be_listed_does_not_change_with_what_the_next_session_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item, disk = item_of(tmp_path, Hands()), MemoryDisk(BLOCKS * BLOCK_BYTES)
    journal = opened(item, disk)
    overwrite(journal, disk, 1)

    def full(*_: object) -> None:
        raise RetentionFull(path="points", free=0, wanted=4096)

    with monkeypatch.context() as within:
        within.setattr(ListFile, "append", full)
        with pytest.raises(RetentionFull):
            item.publish(b"p" * 16, Kind.CRASH_CONSISTENT, [PointDisk(DISK.hex(), disk.size)])
    item.begin([DISK])
    overwrite(journal, disk, 2)
    item.close_disk(DISK)
    again = item_of(tmp_path, Hands())
    opened(again, disk)
    point = again.points.choose("latest")
    assert point.id == (b"p" * 16).hex()
    view = PointView(disk, again.store.segments(ITEM, DISK), Identity(ITEM, DISK, disk.size), point.sequence)
    found = bytearray(disk.size)
    view.read(0, memoryview(found))
    assert found == bytes([1]) * len(found)
    again.close_disk(DISK)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_flush_that_failed_between_two_segments_is_not_tried_again(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item, disk = item_of(tmp_path, Hands()), MemoryDisk(BLOCKS * BLOCK_BYTES)
    disk.write(0, memoryview(os.urandom(disk.size)))
    journal = opened(item, disk)
    journal._segment_bytes = BLOCK_BYTES
    journal.expect(0, 1, memoryview(os.urandom(disk.size)))
    flush, failures = os.fdatasync, [OSError(number, os.strerror(number))]

    def failing(descriptor: int) -> None:
        if failures:
            raise failures.pop()
        flush(descriptor)

    monkeypatch.setattr(os, "fdatasync", failing)
    for _ in range(3):
        with pytest.raises(RetentionFailed):
            journal.before_overwrite(0, BLOCKS)
    with pytest.raises(HomewardError):
        item.close_disk(DISK)


def test_nobody_waits_for_room_once_a_newer_session_is_at_the_door(tmp_path: Path) -> None:
    item, disk = item_of(tmp_path, Hands()), MemoryDisk(BLOCKS * BLOCK_BYTES)
    opened(item, disk)
    full = RetentionFull(path="x", free=0, wanted=1 << 62)
    item.interrupt()
    for _ in range(2):  # a second lane had waited for the lock of the first
        with pytest.raises(RetentionFull):
            item.make_room(full)
    item.close_disk(DISK)


def test_a_source_of_another_size_begins_with_a_point_of_that_size(tmp_path: Path) -> None:
    item, disk = item_of(tmp_path, Hands()), MemoryDisk(BLOCKS * BLOCK_BYTES)
    disk.write(0, memoryview(bytes([7]) * disk.size))
    for size in (5 * BLOCK_BYTES + 512, disk.size):
        journal = item.open_disk(
            Identity(ITEM, DISK, size), disk.read, seeding=False, durable=(0, 0), void=False
        )
        item.begin([DISK])
        journal.before_overwrite(0, journal.blocks)
        disk.write(0, memoryview(bytes([8]) * size))
        item.publish(size.to_bytes(16, "big"), Kind.CRASH_CONSISTENT, [PointDisk(DISK.hex(), size)])
        item.close_disk(DISK)
    sizes = {}
    for point in item.points:
        told = point.disks[0].data_bytes
        view = PointView(disk, item.store.segments(ITEM, DISK), Identity(ITEM, DISK, told), point.sequence)
        content = bytearray(told)
        view.read(0, memoryview(content))
        sizes[point.sequence] = (told, content.count(7), content.count(8))
    small = 5 * BLOCK_BYTES + 512
    assert sizes == {
        1: (small, small, 0),
        2: (small, 0, small),
        3: (disk.size, disk.size - small, small),
        4: (disk.size, 0, disk.size),
    }
