"""A point whose note is durable in one journal of several, when its master target died."""

from pathlib import Path

from drcore.units import BLOCK_BYTES
from masttarget.points import Kind, Point, PointDisk
from masttarget.retention import ItemRetention
from masttarget.undo import Identity, UndoJournal
from masttarget.view import PointView
from tests.fault.media import MemoryDisk
from tests.unit.test_masttarget_retention import DISK, ITEM, item_of
from tests.unit.test_masttarget_undo import Hands


def test_a_point_that_is_found_in_a_later_disks_journal_ends_the_cycle_of_those_that_are_open(
    tmp_path: Path,
) -> None:
    """Killed when one journal had the point's note durably: the other's writes are of the next cycle all the same."""
    clock = Hands()
    one, other = DISK, b"e" * 16
    disks = {name: MemoryDisk(4 * BLOCK_BYTES) for name in (one, other)}

    def opened(order: tuple[bytes, ...]) -> tuple[ItemRetention, dict[bytes, UndoJournal]]:
        item = item_of(tmp_path, clock)
        return item, {
            name: item.open_disk(
                Identity(ITEM, name, disks[name].size), disks[name].read, seeding=False,
                durable=(0, 0), void=False,
            )
            for name in order
        }  # fmt: skip

    item, journals = opened((one, other))
    item.begin([one, other])
    for name, journal in journals.items():
        journal.before_overwrite(0, 1)
        disks[name].write(0, memoryview(b"two".ljust(BLOCK_BYTES, b"!")))
    of = tuple(PointDisk(name.hex(), disks[name].size) for name in (one, other))
    point = Point("ab" * 16, item.cycle, int(clock.time * 1000), Kind.CRASH_CONSISTENT, of)
    journals[other].note({"event": "point", "point": point.encode()}, point.sequence)
    for name in (one, other):
        item.close_disk(name)  # killed here, but for what is durable

    item, journals = opened((one, other))
    assert [found.sequence for found in item.points] == [1, point.sequence]
    item.begin([one, other])
    for name, journal in journals.items():
        journal.before_overwrite(0, 2)
        disks[name].write(0, memoryview(b"three".ljust(BLOCK_BYTES, b"?")))
    for name in (one, other):
        segments = item.store.segments(ITEM, name)
        view = PointView(disks[name], segments, journals[name].identity, point.sequence, live=True)
        found = memoryview(bytearray(BLOCK_BYTES))
        view.read(0, found)
        assert bytes(found[:4]) == b"two!", "the point has changed"
        item.close_disk(name)
