"""Content that the target has elsewhere: what is found, what is missing, and what never gets written."""

import os
from pathlib import Path

import pytest

from _native import digest, pack, refer
from disks.digestmap import DigestMap
from drcore.units import BLOCK_BYTES, DIGEST_BYTES, SECTOR_BYTES, SPAN_BLOCKS, parts
from masttarget.adapters.saved_file import FREE_SHARE, SavedFile
from masttarget.errors import DataMalformed, Fenced
from masttarget.target import AppliedRun, TargetDisk
from tests.fault.media import MemoryDisk
from wireproto.errors import MessageRefused
from wireproto.messages import Data, Missing, Refer, Zeroes

SECRET = bytes(range(192))
SESSION, GENERATION = 3, 1


class MemoryRooms:
    """Rooms in memory; `full` refuses to keep anything more."""

    def __init__(self, count: int = 64) -> None:
        self.count = count
        self.content = bytearray(count * BLOCK_BYTES)
        self.full = False
        self.closed = 0
        self.written = 0

    def write(self, offset: int, content: memoryview) -> bool:
        if self.full:
            return False
        self.content[offset : offset + len(content)] = content
        self.written += len(content)
        return True

    def read(self, offset: int, into: memoryview) -> None:
        into[:] = self.content[offset : offset + len(into)]

    def close(self) -> None:
        self.closed += 1


def digests_of(content: bytes) -> bytes:
    out = bytearray(parts(len(content), BLOCK_BYTES) * DIGEST_BYTES)
    digest.digest_blocks(content, SECRET, out)
    return bytes(out)


def random_block() -> bytes:
    return os.urandom(BLOCK_BYTES)


def target_of(content: bytes, folder: Path) -> TargetDisk:
    disk = MemoryDisk(len(content))
    disk.write(0, memoryview(content))
    target = TargetDisk(disk, disk.size, SECRET, lambda: DigestMap(disk.size, folder), empty=False)
    target.take_over(SESSION)
    return target


def nothing(position: int) -> None:
    pass


def scan_whole(target: TargetDisk) -> None:
    for _ in target.scanned(nothing):
        pass


def ready(content: bytes, folder: Path, rooms: MemoryRooms | None = None) -> tuple[TargetDisk, MemoryDisk]:
    """A target that can find all of its content."""
    target = target_of(content, folder)
    scan_whole(target)
    kept = rooms or MemoryRooms()
    assert target.seek(SESSION, lambda: kept, over=False)
    target.learn_rest(nothing)
    disk = target.disk
    assert isinstance(disk, MemoryDisk)
    return target, disk


def references(block: int, content: bytes, sectors: int = 0xFFFF, told: bytes | None = None) -> Refer:
    """A frame for consecutive blocks, `sectors` of each."""
    count = len(content) // BLOCK_BYTES
    out = memoryview(bytearray(count * 288))
    bitmaps = sectors.to_bytes(2, "little") * count
    left, end, _ = refer.pack(
        content, block, (1 << count) - 1, bitmaps, told or digests_of(content), SECRET, out, 0
    )
    assert left == 0
    return Refer(count, out[:end])


def data(block: int, content: bytes, sectors: int = 0xFFFF) -> Data:
    out = memoryview(bytearray(2 * BLOCK_BYTES))
    _, end, _ = pack.pack(content, block, 1, sectors.to_bytes(2, "little"), digests_of(content), out, 0, 0)
    return Data(1, out[:end])


def test_moved_content_is_written_and_known(tmp_path: Path) -> None:
    a, b, c = random_block(), random_block(), random_block()
    target, disk = ready(a + b + bytes(2 * BLOCK_BYTES), tmp_path)
    wanted = a[SECTOR_BYTES:] + b[:SECTOR_BYTES] + b[SECTOR_BYTES:] + c[:SECTOR_BYTES]
    applied = target.refer(references(2, wanted), SESSION, GENERATION)
    partly = wanted[BLOCK_BYTES : 2 * BLOCK_BYTES - SECTOR_BYTES] + bytes(SECTOR_BYTES)
    assert disk.content() == a + b + wanted[:BLOCK_BYTES] + partly
    assert applied.answer == Missing(2, 31, ((3, 0x8000),))
    assert applied.runs == [AppliedRun(2, 2, digests_of(wanted[:BLOCK_BYTES] + partly))]
    assert applied.written_bytes == 2 * BLOCK_BYTES
    assert target.mismatched == {3}, "no point before it is whole"
    target.apply(data(3, wanted[BLOCK_BYTES:], 0x8000), SESSION, GENERATION)
    assert target.mismatched == set()
    assert disk.content() == a + b + wanted
    assert target.digests.read(0, 4) == digests_of(a + b + wanted)


def test_sectors_become_zero_without_being_named(tmp_path: Path) -> None:
    a = random_block()
    target, disk = ready(a + bytes(BLOCK_BYTES), tmp_path)
    wanted = bytes(SECTOR_BYTES) + a[SECTOR_BYTES:]
    frame = references(0, wanted, 1)
    assert len(frame.entries) == 32
    assert target.refer(frame, SESSION, GENERATION).answer == Missing(1, 0, ())
    assert disk.content() == wanted + bytes(BLOCK_BYTES)


def test_a_base_that_the_agent_took_for_something_else_is_due_whole(tmp_path: Path) -> None:
    a, b = random_block(), random_block()
    target, disk = ready(a + b, tmp_path)
    told = digests_of(a[:SECTOR_BYTES] + bytes(BLOCK_BYTES - SECTOR_BYTES))
    applied = target.refer(references(1, a, 1, told), SESSION, GENERATION)
    assert (applied.mismatched, applied.runs, applied.answer) == ([1], [], Missing(1, 0, ()))
    assert target.mismatched == {1}
    assert disk.content() == a + b


def test_content_that_changed_behind_the_index_is_missing_and_never_written(tmp_path: Path) -> None:
    a, b = random_block(), random_block()
    target, disk = ready(a + b, tmp_path)
    disk.write(0, memoryview(random_block()))
    before = disk.content()
    answer = target.refer(references(1, a), SESSION, GENERATION).answer
    assert answer == Missing(1, 0, ((1, 0xFFFF),))
    assert disk.content() == before


@pytest.mark.parametrize("how", ["data", "sectors", "zeroes", "references"])
def test_what_a_write_of_this_cycle_overwrote_is_still_found(how: str, tmp_path: Path) -> None:
    a, b, new = random_block(), random_block(), random_block()
    rooms = MemoryRooms()
    target, disk = ready(a + b + bytes(2 * BLOCK_BYTES), tmp_path, rooms)
    after = new
    if how == "data":
        target.apply(data(0, new), SESSION, GENERATION)
    elif how == "sectors":
        after = new[: 8 * SECTOR_BYTES] + a[8 * SECTOR_BYTES :]
        target.apply(data(0, after, 0xFF), SESSION, GENERATION)
    elif how == "zeroes":
        after = bytes(BLOCK_BYTES)
        target.clear(Zeroes(((0, 1),)), SESSION, GENERATION)
    else:
        after = b
        target.refer(references(0, b), SESSION, GENERATION)
    assert rooms.written == BLOCK_BYTES
    assert target.refer(references(3, a), SESSION, GENERATION).answer == Missing(1, 16, ())
    assert disk.content() == after + b + bytes(BLOCK_BYTES) + a


def test_what_was_sent_once_in_this_cycle_is_found_again(tmp_path: Path) -> None:
    target, disk = ready(random_block() + bytes(2 * BLOCK_BYTES), tmp_path)
    new = random_block()
    target.apply(data(1, new), SESSION, GENERATION)
    assert target.refer(references(2, new), SESSION, GENERATION).answer == Missing(1, 16, ())
    assert disk.content()[2 * BLOCK_BYTES :] == new


def test_rooms_that_keep_nothing_more_cost_data_and_nothing_else(tmp_path: Path) -> None:
    a, b = random_block(), random_block()
    rooms = MemoryRooms()
    target, disk = ready(a + b + bytes(BLOCK_BYTES), tmp_path, rooms)
    rooms.full = True
    target.refer(references(0, b), SESSION, GENERATION)
    assert target.refer(references(2, a), SESSION, GENERATION).answer == Missing(1, 0, ((2, 0xFFFF),))
    assert disk.content() == b + b + bytes(BLOCK_BYTES)


def test_a_large_clear_saves_what_is_there_and_passes_over_what_is_not(tmp_path: Path) -> None:
    content = bytes(3 * SPAN_BLOCKS * BLOCK_BYTES) + random_block()
    target, disk = ready(content, tmp_path)
    read = disk.bytes_read
    target.clear(Zeroes(((0, 3 * SPAN_BLOCKS + 1),)), SESSION, GENERATION)
    assert disk.bytes_read - read == BLOCK_BYTES
    answer = target.refer(references(5, content[-BLOCK_BYTES:]), SESSION, GENERATION).answer
    assert answer == Missing(1, 16, ())


def test_references_are_refused_before_somebody_asked_for_an_index(tmp_path: Path) -> None:
    target = target_of(random_block() * 2, tmp_path)
    scan_whole(target)
    with pytest.raises(MessageRefused, match="without SEEK"):
        target.refer(references(1, random_block()), SESSION, GENERATION)
    assert target.known, "a refused frame did nothing that could be doubted"


def test_an_index_is_made_once_a_session_and_anew_in_the_next(tmp_path: Path) -> None:
    rooms = MemoryRooms()
    target, _ = ready(random_block() * 2, tmp_path, rooms)
    with pytest.raises(MessageRefused, match="second SEEK"):
        target.seek(SESSION, MemoryRooms, over=False)
    target.take_over(SESSION + 1)
    assert rooms.closed == 1
    assert not target.seek(SESSION, MemoryRooms, over=False), "the older session"
    assert target.seek(SESSION + 1, MemoryRooms, over=False)
    with pytest.raises(Fenced):
        target.refer(references(1, random_block()), SESSION, GENERATION)


def test_an_end_gives_the_rooms_back_and_late_references_find_nothing(tmp_path: Path) -> None:
    a = random_block()
    rooms = MemoryRooms()
    target, disk = ready(a + bytes(BLOCK_BYTES), tmp_path, rooms)
    assert not target.seek(SESSION, MemoryRooms, over=True)
    assert rooms.closed == 1
    assert target.refer(references(1, a), SESSION, GENERATION).answer == Missing(1, 0, ((1, 0xFFFF),))
    target.apply(data(1, a), SESSION, GENERATION)
    assert disk.content() == a + a
    assert target.seek(SESSION + 1, MemoryRooms, over=True) is False


def test_what_the_scan_reads_after_the_question_is_not_read_again(tmp_path: Path) -> None:
    content = os.urandom(4 * 16 * BLOCK_BYTES)
    target = target_of(content, tmp_path)
    disk = target.disk
    assert isinstance(disk, MemoryDisk)
    reads: list[int] = []

    def on_read(offset: int) -> None:
        reads.append(offset)
        if len(reads) == 2:  # the first mebibyte was learned before
            assert target.seek(SESSION, MemoryRooms, over=False)

    disk.on_read = on_read
    scan_whole(target)
    assert len(reads) == 4
    assert target.learn_rest(nothing) == len(content) // SECTOR_BYTES
    assert reads[4:] == [0]
    moved = content[-BLOCK_BYTES - SECTOR_BYTES : -SECTOR_BYTES]
    assert target.refer(references(0, moved), SESSION, GENERATION).answer == Missing(1, 16, ())


def test_an_index_that_is_given_up_meanwhile_knows_nothing(tmp_path: Path) -> None:
    target = target_of(random_block() * 2, tmp_path)
    scan_whole(target)
    assert target.seek(SESSION, MemoryRooms, over=False)
    target.take_over(SESSION + 1)
    assert target.learn_rest(nothing) == 0


@pytest.mark.parametrize("extra", [-1, 1])
def test_a_count_that_is_not_that_of_the_entries_is_refused(extra: int, tmp_path: Path) -> None:
    a = random_block()
    target, _ = ready(a + bytes(3 * BLOCK_BYTES), tmp_path)
    good = references(1, a + a)
    with pytest.raises(MessageRefused):
        target.refer(Refer(good.count + extra, good.entries), SESSION, GENERATION)


def test_a_malformed_frame_writes_nothing_of_its_batch(tmp_path: Path) -> None:
    a = random_block()
    target, disk = ready(a + bytes(2 * BLOCK_BYTES), tmp_path)
    good = bytes(references(1, a).entries)
    for bad in (good[:-1], good + good, good + b"\0", bytes(references(3, a).entries), good[:10]):
        with pytest.raises(DataMalformed):
            target.refer(Refer(1, memoryview(bad)), SESSION, GENERATION)
    assert disk.content() == a + bytes(2 * BLOCK_BYTES)


def test_the_short_last_block_is_never_referred_to(tmp_path: Path) -> None:
    a = random_block()
    target, _ = ready(a + a[:5000], tmp_path)
    with pytest.raises(DataMalformed, match="beyond the last whole one"):
        target.refer(references(1, a), SESSION, GENERATION)
    target.apply(data(1, a[:100] + a[200:5100], 0b11), SESSION, GENERATION)
    assert target.refer(references(0, random_block()), SESSION, GENERATION).answer is not None


def test_only_a_target_with_content_finds_any(tmp_path: Path) -> None:
    disk = MemoryDisk(4 * BLOCK_BYTES)
    assert not TargetDisk(disk, disk.size, SECRET, lambda: DigestMap(disk.size, tmp_path), empty=True).finds
    assert target_of(random_block(), tmp_path).finds
    assert not target_of(b"x" * 5000, tmp_path).finds


def test_saved_content_lies_in_a_file_without_a_name(tmp_path: Path) -> None:
    saved = SavedFile(tmp_path / "journal", limit=10 * BLOCK_BYTES)
    assert saved.count == 10
    content = random_block()
    assert saved.write(3 * BLOCK_BYTES, memoryview(content))
    found = memoryview(bytearray(SECTOR_BYTES))
    saved.read(3 * BLOCK_BYTES + SECTOR_BYTES, found)
    assert found == content[SECTOR_BYTES : 2 * SECTOR_BYTES]
    assert list((tmp_path / "journal").iterdir()) == []
    saved.close()
    saved.close()
    assert not saved.write(0, memoryview(content))
    saved.read(3 * BLOCK_BYTES, found)
    assert found == bytes(SECTOR_BYTES)


def test_saved_content_leaves_most_of_the_free_space_alone(tmp_path: Path) -> None:
    saved = SavedFile(tmp_path, limit=1 << 62)
    found = os.statvfs(tmp_path)
    assert saved.count * BLOCK_BYTES <= 1.1 * found.f_bavail * found.f_frsize / FREE_SHARE
    saved.close()


def test_a_directory_that_cannot_be_used_has_no_rooms(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    saved = SavedFile(tmp_path / "file" / "journal")
    assert saved.count == 0
    saved.close()
