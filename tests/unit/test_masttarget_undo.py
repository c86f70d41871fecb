"""The retention journal of a disk: what is kept, when it is durable, and what a damaged one still says."""

import os
import random
import threading
from array import array
from collections.abc import Callable
from pathlib import Path

import lz4.block
import pytest
import xxhash

from _native import undo as native
from drcore.errors import Defect, HomewardError
from drcore.units import BLOCK_BYTES, SECTOR_BYTES, SPAN_BLOCKS, bit_runs
from masttarget import segments as layout
from masttarget import undo
from masttarget.adapters.retention_files import ListFile
from masttarget.adapters.segment_files import SegmentFiles
from masttarget.errors_retention import (
    ClockBackwards,
    RetentionFailed,
    SegmentDamaged,
    SegmentForeign,
    SegmentMissing,
)
from masttarget.index import Index
from masttarget.points import Points
from masttarget.segments import HEADER_BYTES, Walk, Wanted
from masttarget.undo import Identity, UndoJournal
from masttarget.verify import verify
from masttarget.view import PointView
from tests.fault.media import MemoryDisk

ITEM, DISK = b"i" * 16, b"d" * 16
SIZE = 150 * BLOCK_BYTES + 777


class Hands:
    """A clock that is set."""

    def __init__(self) -> None:
        self.time = 1_800_000_000.0

    def monotonic(self) -> float:
        return self.time

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


def refuse(error: HomewardError) -> None:
    raise error


class Bench:
    """A disk with a journal; `write` is what the master target does."""

    def __init__(self, folder: Path, rng: random.Random, segment_bytes: int = 1 << 19) -> None:
        self.folder = folder / ITEM.hex() / DISK.hex()
        self.clock = Hands()
        self.rng = rng
        self.segment_bytes = segment_bytes
        self.disk = MemoryDisk(SIZE)
        for block in range(0, 150, 2):
            self.disk.write(block * BLOCK_BYTES, memoryview(self.content()))
        self.identity = Identity(ITEM, DISK, SIZE)
        self.journal: UndoJournal | None = None
        self.journal = self.opened(1)
        Points(ListFile(folder / ITEM.hex() / "points"), ITEM.hex()).drop([], "to have a list")

    def content(self) -> bytes:
        return self.rng.choice(
            (self.rng.randbytes(BLOCK_BYTES), bytes([self.rng.randrange(256)]) * BLOCK_BYTES)
        )

    def opened(self, cycle: int, durable: tuple[int, int] = (0, 0)) -> UndoJournal:
        """The journal as a new process finds it, whatever the old one was about."""
        if self.journal is not None:
            self.journal.segments.close()
        self.journal = UndoJournal(
            SegmentFiles(self.folder), self.identity, self.disk.read, self.clock, refuse, self.segment_bytes
        )
        self.journal.open(cycle, durable)
        return self.journal

    def write(self, block: int, sectors: int | None = None) -> None:
        """As the master target writes new content to these sectors of the block; to any where none are named."""
        size = min(BLOCK_BYTES, SIZE - block * BLOCK_BYTES)
        if sectors is None:
            sectors = self.rng.choice((0xFFFF, 1 << self.rng.randrange(16), self.rng.getrandbits(16)))
        if size < BLOCK_BYTES or sectors == 0xFFFF:
            self.journal.before_overwrite(block, 1)
            self.disk.write(block * BLOCK_BYTES, memoryview(self.content())[:size])
            return
        if self.rng.random() < 0.5:
            first = block // SPAN_BLOCKS * SPAN_BLOCKS
            self.journal.foresee(first, sectors << (block - first) * 16)
        self.journal.before_overwrite(block, 1, sectors)
        content = memoryview(self.content())
        for low, count in bit_runs(sectors):
            at, end = low * SECTOR_BYTES, (low + count) * SECTOR_BYTES
            self.disk.write(block * BLOCK_BYTES + at, content[at:end])

    def cycles(self, count: int, writes: int = 20) -> list[bytes]:
        """So many cycles of random writes; the contents at their beginnings."""
        found = []
        for _ in range(count):
            found.append(self.disk.content())
            for _ in range(writes):
                self.write(self.rng.randrange(151))
            self.journal.begin_cycle(self.journal.cycle + 1)
        return found

    def at(self, sequence: int) -> bytes:
        view = PointView(self.disk, SegmentFiles(self.folder), self.identity, sequence)
        into = memoryview(bytearray(SIZE))
        view.read(0, into)
        return bytes(into)

    def segment(self, number: int) -> Path:
        return self.folder / f"{number:08d}.undo"


@pytest.fixture
def dice() -> random.Random:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture
def bench(tmp_path: Path, dice: random.Random) -> Bench:
    return Bench(tmp_path, dice)


def test_what_a_killed_run_kept_is_durable_before_it_is_relied_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    durable: dict[str, int] = {}

    def noting(sync: Callable[[int], None]) -> Callable[[int], None]:
        def noted(descriptor: int) -> None:
            sync(descriptor)
            durable[os.readlink(f"/proc/self/fd/{descriptor}")] = os.fstat(descriptor).st_size

        return noted

    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, noting(getattr(os, name)))
    content = memoryview(bytearray(BLOCK_BYTES * SPAN_BLOCKS))
    bench.disk.read(0, content)
    bench.journal.expect(0, 0b101, content)
    kept = bench.segment(1).stat().st_size
    assert durable.get(str(bench.segment(1)), 0) < kept
    bench.opened(1)
    bench.journal.before_overwrite(0, 3)
    assert durable[str(bench.segment(1))] == kept


def test_every_point_reads_as_it_was(bench: Bench) -> None:
    contents = bench.cycles(6)
    bench.journal.close()
    for index, content in enumerate(contents):
        assert bench.at(index) == content
    assert bench.at(6) == bench.disk.content()
    assert verify(bench.folder.parent)[0].good


def test_a_block_is_kept_once_in_a_cycle_also_after_a_crash(bench: Bench) -> None:
    before = bench.disk.content()
    bench.write(4, 0xFFFF)
    bench.write(4)
    first = bench.journal.mark()
    bench.opened(1)  # the first one was never closed
    assert not bench.journal.missing(0, undo.whole(1 << 4))
    bench.write(4)
    assert bench.journal.mark() == first
    assert bench.at(0) == before


def test_a_journal_that_is_opened_again_knows_whether_the_open_cycle_has_a_record(bench: Bench) -> None:
    """A note is none, nor are the records of a cycle before."""
    found = [bench.opened(1).wrote]
    bench.write(4, 0b100)
    found += [bench.journal.wrote, bench.opened(1).wrote]
    bench.journal.note({"event": "x"}, 1)
    bench.journal.begin_cycle(2)
    found += [bench.journal.wrote, bench.opened(2).wrote]
    bench.journal.note({"event": "x"}, 2)
    found.append(bench.opened(2).wrote)
    bench.write(6, 0b100)
    found.append(bench.opened(2).wrote)
    assert found == [False, True, True, False, False, False, True]


def test_what_is_overwritten_is_durable_before(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    append, flush = SegmentFiles.append, SegmentFiles.flush
    monkeypatch.setattr(SegmentFiles, "append", lambda *a: (steps.append("append"), append(*a))[1])
    monkeypatch.setattr(SegmentFiles, "flush", lambda *a: (steps.append("flush"), flush(*a))[1])
    bench.journal.before_overwrite(2, 1)
    assert steps == ["append", "append", "flush"]  # header, record
    bench.journal.before_overwrite(2, 1)
    assert len(steps) == 3
    span = memoryview(bytearray(SPAN_BLOCKS * BLOCK_BYTES))
    bench.disk.read(0, span)
    bench.journal.expect(0, 0b11100, span)
    assert steps[3:] == ["append"], "2 is kept already; 3 is a hole, 4 is not; nobody waits yet"
    bench.journal.before_overwrite(3, 2)
    assert steps[4:] == ["flush"]


def test_seeding_needs_no_undo(bench: Bench) -> None:
    bench.journal.active = False
    bench.write(3)
    bench.journal.close()
    assert not bench.folder.exists()


def test_pruning_keeps_what_newer_points_need(tmp_path: Path, dice: random.Random) -> None:
    bench = Bench(tmp_path, dice, segment_bytes=1 << 17)
    contents = bench.cycles(24, writes=8)
    assert bench.journal.forget_before(15) > 0
    for sequence in range(14, 24):
        assert bench.at(sequence) == contents[sequence]
    bench.journal.close()
    bench.opened(25)
    assert bench.at(14) == contents[14]
    assert verify(bench.folder.parent)[0].good


@pytest.mark.parametrize("cut", [1, 40, 80, 5000])
def test_a_torn_tail_is_ignored_and_written_over_by_nobody(bench: Bench, cut: int) -> None:
    contents = bench.cycles(2)
    bench.journal.store_head()
    bench.journal.note({"event": "x"}, 3)
    bench.journal.before_overwrite(7, 1)  # and the power fails before they are overwritten
    bench.journal.before_overwrite(10, 1)
    last = bench.segment(bench.journal.segments.numbers()[-1])
    keep = bench.journal.segments.load_head()
    assert keep is not None
    data = last.read_bytes()
    os.truncate(last, max(len(data) - cut, keep.offset))
    torn = last.read_bytes()
    bench.opened(3)
    assert [bench.at(index) for index in range(2)] == contents
    bench.write(11)
    bench.journal.close()
    assert last.read_bytes() == torn
    assert [bench.at(index) for index in range(2)] == contents
    assert verify(bench.folder.parent)[0].good


def test_a_flipped_bit_anywhere_that_was_durable_is_named_with_its_place(
    bench: Bench, dice: random.Random
) -> None:
    contents = bench.cycles(8)
    bench.journal.close()
    numbers = bench.journal.segments.numbers()
    for _ in range(12):
        number = dice.choice(numbers)
        path = bench.segment(number)
        good = path.read_bytes()
        at = dice.randrange(len(good))
        bad = bytearray(good)
        bad[at] ^= 1 << dice.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(SegmentDamaged) as caught:
            bench.at(0)
        assert caught.value.segment == number
        assert caught.value.offset <= at
        verdict = verify(bench.folder.parent)[0].disks[0]
        told = [error for error in verdict.errors if isinstance(error, SegmentDamaged)]
        assert [(error.segment, error.offset) for error in told][:1] == [(number, caught.value.offset)]
        if number < numbers[-1]:
            assert 0 < verdict.points_from <= 8
            for sequence in range(verdict.points_from, 8):
                assert bench.at(sequence) == contents[sequence]
        path.write_bytes(good)


def test_an_end_that_somebody_knows_to_be_durable_is_no_torn_tail(bench: Bench) -> None:
    bench.cycles(1)
    bench.write(5)
    place = bench.journal.mark()
    last = bench.segment(place[0])
    os.truncate(last, place[1] - 1)
    with pytest.raises(SegmentDamaged):
        bench.opened(2, place)
    bench.opened(2)


def test_a_missing_segment_is_named(bench: Bench) -> None:
    contents = bench.cycles(8)
    bench.journal.close()
    numbers = bench.journal.segments.numbers()
    header = layout.SegmentHeader.decode(bench.segment(numbers[2]).read_bytes())
    for number in (numbers[1], numbers[-1]):
        path = bench.segment(number)
        data = path.read_bytes()
        path.unlink()
        with pytest.raises(SegmentMissing) as caught:
            bench.at(0)
        assert caught.value.segment == number
        assert [type(error) for error in verify(bench.folder.parent)[0].disks[0].errors] == [SegmentMissing]
        if number == numbers[1]:
            assert bench.at(header.first_cycle) == [*contents, bench.disk.content()][header.first_cycle]
        path.write_bytes(data)


def test_a_segment_of_another_disk_is_named(bench: Bench, tmp_path: Path, dice: random.Random) -> None:
    bench.cycles(8)
    bench.journal.close()
    other = Bench(tmp_path / "other", dice)
    other.identity = Identity(ITEM, b"x" * 16, SIZE)
    other.opened(1)
    other.cycles(8)
    other.journal.close()
    bench.segment(2).write_bytes(other.segment(2).read_bytes())
    with pytest.raises(SegmentForeign) as caught:
        bench.at(0)
    assert (caught.value.segment, caught.value.found_disk) == (2, (b"x" * 16).hex())
    assert any(isinstance(error, SegmentForeign) for error in verify(bench.folder.parent)[0].disks[0].errors)


def test_a_clock_that_goes_back_does_not_make_the_journal_go_back(bench: Bench) -> None:
    bench.cycles(1)
    bench.journal.close()
    bench.clock.time -= 1000
    bench.opened(2)
    bench.cycles(1)
    bench.journal.close()
    assert verify(bench.folder.parent)[0].good


def test_a_segment_that_is_older_than_the_one_before_is_named(bench: Bench) -> None:
    bench.cycles(1)
    bench.journal.close()
    bench.opened(2)
    bench.journal._created_ms = 0
    bench.clock.time -= 1000
    bench.write(1)
    bench.journal.close()
    with pytest.raises(ClockBackwards) as caught:
        bench.at(0)
    assert caught.value.segment == bench.journal.segments.numbers()[-1]
    assert any(isinstance(error, ClockBackwards) for error in verify(bench.folder.parent)[0].disks[0].errors)


def test_a_failed_flush_is_final(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(RetentionFailed):
        bench.write(1)
    monkeypatch.undo()
    with pytest.raises(RetentionFailed):
        bench.write(2)
    assert bench.disk.steps[-1] == "read", "nothing was overwritten"


@pytest.mark.parametrize("kind", [SystemExit, MemoryError])
def test_nobody_waits_for_a_flushing_thread_that_died(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    begun, die = threading.Event(), threading.Event()

    def fail(*_: object) -> None:
        begun.set()
        assert die.wait(20)
        raise kind

    monkeypatch.setattr(undo, "UNDO_FLUSH_BYTES", 1)
    monkeypatch.setattr(os, "fdatasync", fail)
    span = memoryview(bytearray(SPAN_BLOCKS * BLOCK_BYTES))
    bench.disk.read(0, span)
    bench.journal.expect(0, 0b100, span)
    assert begun.wait(20)
    failures: list[HomewardError] = []

    def write() -> None:
        try:
            bench.write(2)
        except HomewardError as error:
            failures.append(error)

    waiting = threading.Thread(target=write, daemon=True)
    waiting.start()
    die.set()
    waiting.join(20)
    assert not waiting.is_alive()
    assert [error.found for error in failures] == [Defect.found]
    assert kind.__name__ in str(failures[0])
    assert "write" not in bench.disk.steps[-1:], "nothing was overwritten"


def test_a_flushing_thread_that_cannot_be_started_is_waited_for_by_nobody(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(undo, "UNDO_FLUSH_BYTES", 1)
    span = memoryview(bytearray(SPAN_BLOCKS * BLOCK_BYTES))
    bench.disk.read(0, span)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError):
            bench.journal.expect(0, 0b100, span)
    bench.journal.expect(0, 0b10000, span)
    waiting = threading.Thread(target=bench.write, args=(2,), daemon=True)
    waiting.start()
    waiting.join(20)
    assert not waiting.is_alive()
    bench.journal.close()


def test_the_bytes_are_what_the_document_says(bench: Bench) -> None:
    """Decoded by hand with the packages of others."""
    text = (b"the old content " * 5000)[:BLOCK_BYTES]
    bench.disk.write(0, memoryview(text))
    bench.disk.zero(BLOCK_BYTES, BLOCK_BYTES)
    bench.journal.before_overwrite(0, 2)
    data = bench.segment(1).read_bytes()
    assert data[:16] == xxhash.xxh3_128_digest(data[16:128])
    assert data[16:24] == b"HWRJ" + (2).to_bytes(2, "little") + (128).to_bytes(2, "little")
    stored = int.from_bytes(data[128 + 52 : 128 + 56], "little")
    end = 128 + 72 + stored
    assert data[128:144] == xxhash.xxh3_128_digest(data[144:end])
    assert data[144:160] == data[:16]
    assert lz4.block.decompress(data[200:end], uncompressed_size=BLOCK_BYTES) == text
    assert data[end + 61] == 2
    assert data[end + 16 : end + 32] == data[128:144]
    assert len(data) == end + 72


_ALL = b"\xff" * 40
"""Of twenty blocks all sectors."""


def _scanned(records: memoryview, blocks: int, base: int) -> Index:
    """Where the records of cycles up to 9 are."""
    index = Index(blocks)
    scanned = native.scan(
        records, 0, bytes(16), 0, 9, blocks, None, index.covered, index.places, index.more, base
    )
    assert scanned[2] is None
    return index


def _packed(dice: random.Random) -> tuple[bytes, memoryview, list[int]]:
    """A span of all kinds of blocks, their records, and where each block's is."""
    kinds = (dice.randbytes(BLOCK_BYTES), bytes(BLOCK_BYTES), (b"words " * 11000)[:BLOCK_BYTES])
    span = b"".join(dice.choice(kinds) for _ in range(20))
    out = memoryview(bytearray(2 << 20))
    left, end, _ = native.pack(span, 100, (1 << 20) - 1, _ALL, 7, 0, bytes(16), out, 0, 2)
    assert left == 0
    return span, out[:end], list(_scanned(out[:end], 120, 5000).places[100:])


def test_a_run_of_records_is_unpacked_at_once(dice: random.Random) -> None:
    span, records, places = _packed(dice)
    wanted = dice.getrandbits(20) | 1 << 19
    found = bytearray(b"\xaa" * len(span))
    assert native.unpack(records, 5000, array("Q", places), 100, wanted, found) == 0
    for index in range(20):
        at = slice(index * BLOCK_BYTES, (index + 1) * BLOCK_BYTES)
        assert found[at] == (span[at] if wanted >> index & 1 else b"\xaa" * BLOCK_BYTES), index


def test_what_is_no_good_record_of_the_block_is_not_unpacked(dice: random.Random) -> None:
    _, records, places = _packed(dice)
    found, whole = bytearray(20 * BLOCK_BYTES), (1 << 20) - 1
    hurt = dice.randrange(20)
    broken = bytearray(records)
    broken[places[hurt] - 5000 + dice.randrange(72)] ^= 1 << dice.randrange(8)
    left = native.unpack(broken, 5000, array("Q", places), 100, whole, found)
    assert left == sum(1 << index for index in range(20) if places[index] == places[hurt])
    assert native.unpack(records, 5000, array("Q", places), 120, whole, found) == whole, "of other blocks"
    for place in (0, 4999, 5000 + len(records), 2**64 - 1):
        assert native.unpack(records, 5000, array("Q", [place]), 100, 1, found) == 1
    with pytest.raises(ValueError, match="19 places"):
        native.unpack(records, 5000, array("Q", places[:19]), 100, whole, found)
    with pytest.raises(ValueError, match="out has"):
        native.unpack(records, 5000, array("Q", places), 100, whole, found[:-1])


def test_a_segment_of_many_windows_is_walked_to_its_end(tmp_path: Path, dice: random.Random) -> None:
    bench = Bench(tmp_path, dice, segment_bytes=32 << 20)
    contents = []
    for cycle in range(1, 4):
        contents += bench.cycles(1, writes=250)
        bench.journal.note({"event": "nothing", "cycle": cycle}, cycle)
    assert bench.segment(1).stat().st_size > 3 << 20
    assert [note.content["cycle"] for note in bench.opened(4).open(3)] == [1, 2, 3]
    for index, content in enumerate(contents):
        assert bench.at(index) == content
    bench.journal.close()
    where = dice.randrange(2 << 20, bench.segment(1).stat().st_size)
    data = bytearray(bench.segment(1).read_bytes())
    data[where] ^= 1 << dice.randrange(8)
    bench.segment(1).write_bytes(data)
    with pytest.raises(SegmentDamaged) as caught:
        bench.opened(4)
    assert where - BLOCK_BYTES - 200 <= caught.value.offset <= where


def test_a_record_that_is_whole_at_the_second_look_is_no_damage(bench: Bench) -> None:
    """Another process appends while this one reads; what follows the record says that it was durable."""
    contents = bench.cycles(1, writes=60)
    bench.journal.flush()
    last = SegmentFiles(bench.folder).numbers()[-1]
    cut = HEADER_BYTES + 40

    class Writing(SegmentFiles):
        def read_into(self, number: int, offset: int, into: memoryview) -> int:
            got = super().read_into(number, offset, into)
            return min(got, max(cut - offset, 0)) if number == last else got

    view = PointView(bench.disk, Writing(bench.folder), bench.identity, 0)
    assert view.size == SIZE
    walk = Walk(Writing(bench.folder), ITEM, DISK, Wanted())
    walk.run(1, None)
    assert walk.reached.offset == bench.segment(last).stat().st_size
    assert bench.at(0) == contents[0]


def test_records_that_were_packed_apart_are_chained_as_if_packed_in_a_row(dice: random.Random) -> None:
    span, records, _ = _packed(dice)
    before, out = dice.randbytes(16), memoryview(bytearray(2 << 20))
    _, end, last = native.pack(span, 100, (1 << 20) - 1, _ALL, 7, 4321, before, out, 0, 2)
    assert native.chain(records, 4321, before) == last
    assert records == out[:end]
    assert native.chain(records[:0], 4321, before) == before
    with pytest.raises(ValueError, match="whole records"):
        native.chain(records[: dice.randrange(1, 72)], 0, before)
    with pytest.raises(ValueError, match="whole records"):
        native.chain(records[:-1], 0, before)


def test_the_quick_gear_reads_as_the_other_does(dice: random.Random) -> None:
    span, careful, _ = _packed(dice)
    out = memoryview(bytearray(2 << 20))
    left, end, _ = native.pack(span, 0, (1 << 20) - 1, _ALL, 7, 0, bytes(16), out, 0, 3)
    places = _scanned(out[:end], 20, 72).places
    found = bytearray(len(span))
    assert (left, native.unpack(out[:end], 72, places, 0, (1 << 20) - 1, found)) == (0, 0)
    assert found == span
    assert len(careful) <= end <= len(careful) + 20 * 600
