"""Reading and writing what was: any part of a point at any offset, each block of a rollback once, one step ahead."""

import collections
import itertools
import random
import threading
import uuid
from pathlib import Path

import pytest

from disks.disk import Extent, ExtentKind
from drcore.clock import SystemClock
from drcore.units import BLOCK_BYTES, BLOCK_SECTORS, SECTOR_BYTES, parts
from masttarget.adapters.files import LocalStore
from masttarget.adapters.retention_files import RetentionFiles
from masttarget.adapters.segment_files import SegmentFiles
from masttarget.ahead import ahead, in_order
from masttarget.config import DiskConfig
from masttarget.going_back import GoneBack, go_back
from masttarget.opening import open_disk
from masttarget.points import Kind, Point
from masttarget.reading_points import export, viewing
from masttarget.retention import ItemRetention, Policy, Retention
from masttarget.rollback import roll_back
from masttarget.undo import UndoJournal
from masttarget.view import PointView
from tests.fault.media import MemoryDisk
from tests.unit.test_masttarget_undo import SIZE, Bench


def test_any_part_of_a_point_reads_as_it_was(tmp_path: Path, dice: random.Random) -> None:
    bench = Bench(tmp_path, dice, segment_bytes=300_000)
    contents = bench.cycles(4, writes=60)
    bench.journal.close()
    for sequence, content in enumerate(contents):
        view = PointView(bench.disk, SegmentFiles(bench.folder), bench.identity, sequence)
        for _ in range(60):
            start = dice.choice((dice.randrange(SIZE), dice.randrange(150) * BLOCK_BYTES))
            length = dice.choice((1, 4096, BLOCK_BYTES, dice.randrange(SIZE)))
            into = memoryview(bytearray(b"\xaa" * min(length, SIZE - start)))
            view.read(start, into)
            assert into == content[start : start + len(into)], (sequence, start, len(into))


def test_a_rollback_writes_each_block_that_differs_once(tmp_path: Path, dice: random.Random) -> None:
    bench = Bench(tmp_path, dice)
    contents = bench.cycles(5, writes=60)
    before, wrote = bench.disk.content(), []
    write, zero = bench.disk.write, bench.disk.zero
    bench.disk.write = lambda offset, data: (wrote.append((offset, len(data))), write(offset, data))  # type: ignore[method-assign]
    bench.disk.zero = lambda offset, length: (wrote.append((offset, length)), zero(offset, length))  # type: ignore[method-assign]
    view = PointView(bench.disk, SegmentFiles(bench.folder), bench.identity, 1)
    told: list[int] = []
    done = roll_back(bench.disk, view, bench.journal, told.append)
    assert bench.disk.content() == contents[1]
    assert told == sorted(told)
    differ = {
        block
        for block in range(151)
        if before[block * BLOCK_BYTES :][:BLOCK_BYTES] != contents[1][block * BLOCK_BYTES :][:BLOCK_BYTES]
    }
    written = [
        at // SECTOR_BYTES for start, length in wrote for at in range(start, start + length, SECTOR_BYTES)
    ]
    assert len(set(written)) == len(written), "no byte twice"
    assert {at * SECTOR_BYTES // BLOCK_BYTES for at in written} == differ
    assert done.blocks_changed == len(differ)
    assert bench.at(5) == before, "and it can be taken back"


def test_a_rollback_writes_of_a_block_that_differs_little_only_that(
    tmp_path: Path, dice: random.Random
) -> None:
    bench = Bench(tmp_path, dice)
    bench.cycles(1, writes=400)
    then = bench.disk.content()
    sectors = [*sorted(dice.sample(range(parts(SIZE, SECTOR_BYTES) - 1), 40)), SIZE // SECTOR_BYTES]
    for sector in sectors:
        bench.journal.before_overwrite(sector * SECTOR_BYTES // BLOCK_BYTES, 1)
        start, end = sector * SECTOR_BYTES, min((sector + 1) * SECTOR_BYTES, SIZE)
        now = bytes(byte ^ 0x55 for byte in bench.disk.content()[start:end])
        bench.disk.write(start, memoryview(now))
    bench.journal.begin_cycle(bench.journal.cycle + 1)
    before = bench.disk.content()
    view = PointView(bench.disk, SegmentFiles(bench.folder), bench.identity, 1)
    done = roll_back(bench.disk, view, bench.journal, lambda position: None)
    assert bench.disk.content() == then
    few = collections.Counter(sector // (BLOCK_BYTES // SECTOR_BYTES) for sector in sectors)
    assert done.blocks_changed == len(few)
    if max(few.values()) <= 4:
        assert done.bytes_written == sum(min(SECTOR_BYTES, SIZE - at * SECTOR_BYTES) for at in sectors)
    assert done.bytes_written < len(few) * BLOCK_BYTES / 2
    assert bench.at(2) == before, "and it can be taken back"


def test_a_rollback_that_is_stopped_ends_its_thread_and_goes_on_later(
    tmp_path: Path, dice: random.Random
) -> None:
    bench = Bench(tmp_path, dice)
    contents = bench.cycles(2, writes=200)

    class Stopped(Exception):
        pass

    def stop(position: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        roll_back(
            bench.disk,
            PointView(bench.disk, SegmentFiles(bench.folder), bench.identity, 0),
            bench.journal,
            stop,
        )
    view = PointView(bench.disk, SegmentFiles(bench.folder), bench.identity, 0)
    roll_back(bench.disk, view, bench.journal, lambda position: None)
    assert bench.disk.content() == contents[0]


def test_an_export_has_what_was_and_leaves_zeroes_out(tmp_path: Path, dice: random.Random) -> None:
    bench = Bench(tmp_path, dice)
    contents = bench.cycles(3, writes=60)
    bench.journal.close()
    image = MemoryDisk(SIZE)
    bench.disk.extents = lambda offset, length: iter([Extent(offset, length, ExtentKind.DATA)])  # type: ignore
    written = export(
        PointView(bench.disk, SegmentFiles(bench.folder), bench.identity, 1), image, lambda position: None
    )
    assert image.content() == contents[1]
    assert 0 < written <= SIZE


def test_what_is_made_ahead_comes_in_order_and_errors_in_their_place() -> None:
    def steps(count: int):  # type: ignore[no-untyped-def]
        yield from range(1, count)
        raise ZeroDivisionError

    found: list[int] = []
    with pytest.raises(ZeroDivisionError):
        found.extend(ahead(steps(50)))
    assert found == list(range(1, 50))


def test_what_several_threads_make_comes_in_order_and_errors_in_their_place() -> None:
    begun: list[int] = []

    def work(task: int) -> int:
        begun.append(task)
        return 100 // (40 - task)

    found: list[int] = []
    with pytest.raises(ZeroDivisionError):
        found.extend(in_order(range(60), work, 3, 5))
    assert found == [100 // (40 - task) for task in range(40)]
    assert max(begun) <= 40 + 5


def test_who_stops_asking_leaves_no_thread_behind() -> None:
    going = in_order(itertools.count(), lambda task: (task, threading.current_thread()), 2, 4)
    assert next(going)[0] == 0
    number, thread = next(going)
    going.close()
    assert number == 1
    assert not thread.is_alive()


def test_a_rollback_keeps_each_block_durably_before_it_writes_it(
    tmp_path: Path, dice: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, dice)
    contents = bench.cycles(3, writes=100)
    before = bench.disk.content()
    durable = [0, 0]
    flush, write = SegmentFiles.flush, bench.disk.write

    def flushed(self: SegmentFiles) -> None:
        end = bench.journal._end
        flush(self)
        durable[:] = max(tuple(durable), end)

    def written(offset: int, data: memoryview) -> None:
        """What a reader would make of the journal up to what was flushed has the sectors' old content."""
        now = bench.disk.content()
        for at in range(0, len(data), SECTOR_BYTES):
            sector, piece = (offset + at) // SECTOR_BYTES, bytes(data[at : at + SECTOR_BYTES])
            if now[offset + at :][: len(piece)] != piece:
                assert recorded[sector] < tuple(durable), sector
        write(offset, data)

    recorded: dict[int, tuple[int, int]] = {}
    keep = UndoJournal.keep

    def kept(self: UndoJournal, first_block: int, wanted: int, records: memoryview) -> None:
        keep(self, first_block, wanted, records)
        segment, end = self._end
        for index in range(wanted.bit_length()):
            if wanted >> index & 1:
                sector = first_block * BLOCK_SECTORS + index
                assert sector not in recorded, "once in a cycle"
                recorded[sector] = segment, end - 1

    monkeypatch.setattr(SegmentFiles, "flush", flushed)
    monkeypatch.setattr(UndoJournal, "keep", kept)
    monkeypatch.setattr(bench.disk, "write", written)
    monkeypatch.setattr(bench.disk, "zero", lambda at, length: written(at, memoryview(bytes(length))))
    view = PointView(bench.disk, SegmentFiles(bench.folder), bench.identity, 0)
    assert roll_back(bench.disk, view, bench.journal, lambda position: None).blocks_changed > 50
    assert bench.disk.content() == contents[0]
    assert bench.at(3) == before


def test_a_point_that_is_read_while_segments_fill_stays_as_it_was(
    tmp_path: Path, dice: random.Random
) -> None:
    bench = Bench(tmp_path, dice, segment_bytes=20_000)
    view = PointView(bench.disk, SegmentFiles(bench.folder), bench.identity, 0, live=True)
    content = bench.disk.content()
    for _ in range(60):
        for _ in range(dice.randrange(4)):
            bench.write(dice.randrange(150))
        start = dice.randrange(SIZE)
        into = memoryview(bytearray(min(300_000, SIZE - start)))
        view.read(start, into)
        assert into == content[start : start + len(into)]
    assert len(SegmentFiles(bench.folder).numbers()) > 3


class Place:
    """A target file with points. Every verb opens it anew, as another process does."""

    def __init__(self, folder: Path, dice: random.Random) -> None:
        self.path = folder / "target.raw"
        self.path.write_bytes(dice.randbytes(SIZE))
        self.store = LocalStore(folder)
        self.config = DiskConfig(
            uuid.uuid4(), uuid.uuid4(), self.path, "", "", False, True, folder / "journal", keep_record=True
        )
        self._retention = RetentionFiles(folder / "retention")

    def item(self) -> ItemRetention:
        quiet = Retention(self._retention, SystemClock(), Policy(), lambda event, /, **facts: None)
        return quiet.item(self.config.item.bytes)

    def session(self, number: int, *blocks: int, publish: bool) -> bytes:
        """New content is in these blocks; what the disk holds when the session is over, published or not."""
        item, clock = self.item(), SystemClock()
        disk = open_disk(self.config, SIZE, bytes(192), self.store, clock, lambda error: None, item)
        disk.begin(1, number)
        item.begin([self.config.disk.bytes])
        assert disk.target.undo is not None
        for block in blocks:
            disk.target.undo.before_overwrite(block, 1)
            disk.target.disk.write(block * BLOCK_BYTES, memoryview(bytes([number]) * BLOCK_BYTES))
        if publish:
            point = bytes([number]) * 16
            kept = item.points.latest
            assert kept is not None
            item.publish(point, Kind.CRASH_CONSISTENT, kept.disks)
            disk.publish(point)
        disk.close(self.store)
        return self.path.read_bytes()

    def back(self, sequence: int) -> GoneBack:
        item = self.item()
        to = item.points.by_sequence(sequence)
        assert to is not None
        return go_back((self.config,), to, item, self.store, lambda position: None)

    def at(self, point: Point) -> bytes:
        found = memoryview(bytearray(SIZE))
        with viewing(self.item(), point, self.config, self.store) as view:
            view.read(0, found)
        return bytes(found)


def test_what_a_broken_cycle_wrote_is_a_point_before_it_is_gone_back_over(
    tmp_path: Path, dice: random.Random
) -> None:
    """And where the open cycle wrote nothing, the point before says already what is there."""
    place = Place(tmp_path, dice)
    found = place.path.read_bytes()
    place.session(1, 3, 4, publish=True)
    broken = place.session(2, 4, 70, publish=False)
    gone = place.back(1)
    assert place.path.read_bytes() == found
    assert gone.before is not None
    assert gone.before.kind is Kind.BEFORE_ROLLBACK
    assert place.at(gone.before) == broken
    again = place.back(gone.before.sequence)
    assert (again.before, place.path.read_bytes()) == (None, broken)
    assert place.at(again.point) == broken


def test_a_rollback_that_was_broken_off_behind_its_last_write_gets_a_point_of_its_own(
    tmp_path: Path, dice: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though nothing is left to be written: the latest point does not have what the disk holds now."""
    place = Place(tmp_path, dice)
    found = place.path.read_bytes()
    later = place.session(1, 3, 4, publish=True)

    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> Point:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ItemRetention, "publish", die)
        with pytest.raises(Killed):
            place.back(1)
    assert place.path.read_bytes() == found
    gone = place.back(1)
    assert gone.disks[place.config.disk.hex].blocks_changed == 0
    assert [point.sequence for point in place.item().points] == [1, 2, 3]
    assert (gone.point.sequence, gone.point.base_cycle) == (3, 1)
    latest = place.item().points.by_sequence(2)
    assert latest is not None
    assert (place.at(latest), place.at(gone.point)) == (later, found)
    assert place.back(3).point.sequence == 3, "and that one has it"
