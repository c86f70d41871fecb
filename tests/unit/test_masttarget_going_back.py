"""Reading and writing what was: any part of a point at any offset, each block of a rollback once, one step ahead."""

import random
from pathlib import Path

import pytest

from disks.disk import Extent, ExtentKind
from drcore.units import BLOCK_BYTES
from masttarget.adapters.segment_files import SegmentFiles
from masttarget.ahead import ahead
from masttarget.reading_points import export
from masttarget.rollback import roll_back
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
        at // BLOCK_BYTES for start, length in wrote for at in range(start, start + length, BLOCK_BYTES)
    ]
    assert sorted(written) == sorted(differ)
    assert done.blocks_changed == len(differ)
    assert bench.at(5) == before, "and it can be taken back"


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
