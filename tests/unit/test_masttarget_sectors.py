"""A block of which only some sectors are kept, in several records: what is kept, and what reads as it was."""

import functools
import operator
import os
import random
import struct
from pathlib import Path

import pytest

from _native import undo as native
from disks.digestmap import DigestMap
from drcore.units import BLOCK_BYTES, SECTOR_BYTES, SPAN_BLOCKS
from masttarget.adapters.segment_files import SegmentFiles
from masttarget.errors import DataMalformed
from masttarget.index import Index
from masttarget.rollback import roll_back
from masttarget.segments import HEADER_BYTES
from masttarget.target import TargetDisk
from masttarget.undo import Identity, whole
from masttarget.verify import verify
from masttarget.view import PointView
from tests.unit import test_masttarget_elsewhere as elsewhere
from tests.unit.test_masttarget_undo import DISK, ITEM, SIZE, Bench
from wireproto.messages import Data, Refer, Zeroes


@pytest.fixture
def bench(tmp_path: Path, dice: random.Random) -> Bench:
    return Bench(tmp_path, dice)


def test_only_the_sectors_that_change_are_kept(bench: Bench) -> None:
    """Once each, together what the block was, whatever came when; a short block as a whole."""
    before = bench.disk.content()
    bench.write(4, 0b1100)
    bench.write(4, 0b0110)
    bench.write(4, 0x8000)
    bench.journal.foresee(128, 1 << (150 - 128) * 16)
    bench.journal.begin_cycle(2)
    middle = bench.disk.content()
    bench.write(4, 0x0F01)
    bench.write(4, 0xFFFF)
    bench.journal.flush()
    data, at, found = bench.segment(1).read_bytes(), HEADER_BYTES, []
    while at < len(data):
        sectors, length = int.from_bytes(data[at + 62 : at + 64], "little"), data[at + 56 : at + 60]
        found.append((data[at + 40], sectors))
        assert int.from_bytes(length, "little") in (0, sectors.bit_count() * 4096 or 777)
        at += 72 + int.from_bytes(data[at + 52 : at + 56], "little")
    assert found == [(4, 0b1100), (4, 0b0010), (4, 0x8000), (150, 0), (4, 0x0F01), (4, 0xF0FE)]
    assert (bench.at(0), bench.at(1)) == (before, middle)
    bench.opened(2)
    assert not bench.journal.missing(0, 0xFFFF << 4 * 16)
    assert bench.journal.missing(0, 0xFFFF << 3 * 16) == 0xFFFF << 3 * 16


@pytest.mark.parametrize("sectors", [0b0010, 0b1000])
def test_a_short_last_block_is_kept_whole_as_soon_as_one_sector_of_it_is_foreseen(
    bench: Bench, sectors: int
) -> None:
    """Three sectors and a bit of one: what changes later in it has no second record."""
    block, short = 8, 8 * BLOCK_BYTES + 3 * SECTOR_BYTES + 100
    bench.identity = Identity(ITEM, DISK, short)
    bench.opened(1)
    before = bench.disk.content()[:short]
    bench.journal.foresee(0, sectors << block * 16)
    bench.journal.before_overwrite(block, 1, sectors)
    kept = bench.journal.mark()
    bench.journal.before_overwrite(block, 1)
    assert bench.journal.mark() == kept
    bench.disk.write(block * BLOCK_BYTES, memoryview(bench.rng.randbytes(short - block * BLOCK_BYTES)))
    bench.journal.begin_cycle(2)
    then = bench.disk.content()[:short]
    view = PointView(bench.disk, SegmentFiles(bench.folder), bench.identity, 0)
    found = memoryview(bytearray(short))
    view.read(0, found)
    assert found == before
    assert verify(bench.folder.parent)[0].good
    assert roll_back(bench.disk, view, bench.journal, elsewhere.nothing).blocks_changed == 1
    assert bench.disk.content()[:short] == before
    PointView(bench.disk, SegmentFiles(bench.folder), bench.identity, 1).read(0, found)
    assert found == then, "and it can be taken back"


def test_an_index_grows_with_what_it_has_to_hold(
    tmp_path: Path, dice: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("masttarget.index._MORE_NUMBERS", 1)
    bench = Bench(tmp_path, dice)
    contents = bench.cycles(12, writes=150)
    for sequence, content in enumerate(contents):
        assert bench.at(sequence) == content
    found = PointView(bench.disk, SegmentFiles(bench.folder), bench.identity, 0)._index
    assert len(found.more) > 64
    for block in range(150):
        sectors = [counts for _, counts in found.records(block)]
        assert sum(sectors) == found.covered[block] == functools.reduce(operator.or_, sectors)


def test_looking_through_an_index_takes_no_memory() -> None:
    """Only what was written in it does: a large disk's is mostly empty."""

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    index = Index(1 << 24)
    before = resident_bytes()
    index.places[5] = 7
    assert sum(index.places[at] + index.covered[at] for at in range(1, 1 << 24, 512)) == 0
    assert resident_bytes() - before < 16 << 20


@pytest.mark.parametrize("sectors", [0x0040, 0xFFFF])
def test_a_source_that_was_shorter_for_a_while_reads_as_it_was(bench: Bench, sectors: int) -> None:
    """Its last block was kept as far as it went; what lay behind has later records, or none."""
    block, short = 7, 7 * BLOCK_BYTES + 3 * SECTOR_BYTES + 100
    bench.write(block, 0b10)
    bench.journal.begin_cycle(2)
    then = bench.disk.content()
    bench.identity = Identity(ITEM, DISK, short)
    bench.opened(2)
    bench.journal.before_overwrite(block, 1)
    bench.disk.write(block * BLOCK_BYTES, memoryview(bench.content())[: short - block * BLOCK_BYTES])
    bench.journal.begin_cycle(3)
    between = bench.disk.content()
    bench.identity = Identity(ITEM, DISK, SIZE)
    bench.opened(3)
    bench.write(block, sectors)
    bench.journal.flush()
    assert bench.at(1) == then
    assert bench.at(2) == between


def test_references_that_name_a_block_twice_leave_the_way_back(bench: Bench, tmp_path: Path) -> None:
    """They are refused where that shows, behind a batch that is on the disk: of it, too, everything was kept."""
    disk = bench.disk
    target = TargetDisk(disk, SIZE, elsewhere.SECRET, lambda: DigestMap(SIZE, tmp_path), empty=False)
    target.take_over(elsewhere.SESSION)
    target.undo = bench.journal
    elsewhere.scan_whole(target)
    assert target.seek(elsewhere.SESSION, elsewhere.MemoryRooms, over=False)
    target.learn_rest(elsewhere.nothing)
    before = disk.content()
    moved = bytearray(before[: SPAN_BLOCKS * BLOCK_BYTES])
    for block in range(SPAN_BLOCKS):
        moved[block * BLOCK_BYTES : block * BLOCK_BYTES + SECTOR_BYTES] = before[2 * BLOCK_BYTES :][
            :SECTOR_BYTES
        ]
    batch = elsewhere.references(0, bytes(moved), 1).entries
    again = elsewhere.references(0, before[2 * BLOCK_BYTES : 3 * BLOCK_BYTES], 0x8000).entries
    with pytest.raises(DataMalformed):
        target.refer(
            Refer(65, memoryview(bytes(batch) + bytes(again))), elsewhere.SESSION, elsewhere.GENERATION
        )
    bench.journal.flush()
    assert disk.content() != before
    assert bench.at(0) == before


class Asked:
    """Keeps nothing, not even what is foreseen: tells which sectors it was asked to keep, by block."""

    active = True

    def __init__(self) -> None:
        self._sectors: dict[int, int] = {}

    def expect(self, first_block: int, blocks: int, span: memoryview) -> None:
        pass

    def foresee(self, first_block: int, sectors: int) -> None:
        pass

    def before_overwrite(self, first: int, count: int, sectors: int | None = None) -> None:
        wanted = whole((1 << count) - 1) if sectors is None else sectors
        for index in range(count):
            of_block = self._sectors.get(first + index, 0)
            self._sectors[first + index] = of_block | wanted >> index * 16 & 0xFFFF

    def told(self) -> dict[int, int]:
        """Since it was asked this last."""
        found, self._sectors = self._sectors, {}
        return found


def test_what_nobody_foresaw_is_asked_for_when_it_is_written_and_nothing_else(tmp_path: Path) -> None:
    """Of a patch its sectors, of whole blocks all, of references what they change."""

    def mixed(base: bytes, sectors: int, other: bytes) -> bytes:
        """`base` with these sectors of the other block."""
        cuts = [slice(at * SECTOR_BYTES, (at + 1) * SECTOR_BYTES) for at in range(16)]
        return b"".join((other if sectors >> at & 1 else base)[cut] for at, cut in enumerate(cuts))

    old = [os.urandom(BLOCK_BYTES) for _ in range(6)]
    target, disk = elsewhere.ready(b"".join(old), tmp_path)
    target.undo = asked = Asked()
    new = [mixed(old[0], 0b0100_1000, old[1]), os.urandom(BLOCK_BYTES)]
    entries = bytes(elsewhere.data(0, new[0], 0b0100_1000).entries) + bytes(elsewhere.data(4, new[1]).entries)
    target.apply(Data(2, memoryview(entries)), elsewhere.SESSION, elsewhere.GENERATION)
    assert asked.told() == {0: 0b0100_1000, 4: 0xFFFF}

    # Two blocks in a row, written at once; of the second one a sector becomes zero as well.
    new += [mixed(old[2], 0x8001, old[5]), mixed(mixed(old[3], 0b0110, old[5]), 0b1000, bytes(BLOCK_BYTES))]
    entries = bytes(elsewhere.references(2, new[2], 0x8001).entries)
    entries += bytes(elsewhere.references(3, new[3], 0b1110).entries)
    target.refer(Refer(2, memoryview(entries)), elsewhere.SESSION, elsewhere.GENERATION)
    assert asked.told() == {2: 0x8001, 3: 0b1110}

    target.clear(Zeroes(((5, 1),)), elsewhere.SESSION, elsewhere.GENERATION)
    assert asked.told() == {5: 0xFFFF}
    assert disk.content() == b"".join([new[0], old[1], new[2], new[3], new[1], bytes(BLOCK_BYTES)])


@pytest.mark.parametrize(
    ("block", "sectors", "length", "good"),
    [
        (3, 0, BLOCK_BYTES, True),
        (3, 0b101, 2 * SECTOR_BYTES, True),
        (150, 0, 777, True),
        (3, 0, 5000, False),
        (3, 0b101, SECTOR_BYTES, False),
        (3, 0xFFFF, BLOCK_BYTES, False),
        (150, 0, BLOCK_BYTES, False),
        (150, 1, SECTOR_BYTES, False),
        (151, 0, BLOCK_BYTES, False),
        (2**64 - 1, 0, BLOCK_BYTES, False),
    ],
)
def test_a_second_opinion_finds_what_no_disk_of_that_size_has(
    bench: Bench, block: int, sectors: int, length: int, good: bool
) -> None:
    """In records whose checksums are right: of a block that is not there, or has not so many bytes."""
    assert bench.journal is not None
    bench.write(4, 0b10)
    bench.journal.store_head()
    written = bytearray(bench.segment(1).read_bytes())
    fields = (1, block, 1, length, length, 1, 0, sectors, 0)
    record = bytearray(struct.pack("<32xQQIIIBBHQ", *fields) + bytes(length))
    native.chain(record, 0, written[HEADER_BYTES:][:16])
    bench.segment(1).write_bytes(written + record)
    # Behind it, so that it is no torn tail: a record that says that this one was durable.
    behind = bytearray(struct.pack("<32xQQIIIBBHQ", 1, 5, 1, 0, 0, 1, 2, 0, 0))
    native.chain(behind, len(written + record), record[:16])
    bench.segment(1).write_bytes(written + record + behind)
    assert verify(bench.folder.parent)[0].good == good
