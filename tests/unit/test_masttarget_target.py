"""The owner of a target disk: what it applies, what it refuses, what it knows afterwards."""

import threading
from pathlib import Path

import pytest

from _native import digest, pack
from disks.digestmap import DigestMap
from disks.errors import WriteFailed
from drcore.units import BLOCK_BYTES, DIGEST_BYTES, REGION_BYTES, ZERO_DIGEST, parts
from masttarget.errors import BlockRefused, DataMalformed, Fenced
from masttarget.target import AppliedRun, TargetDisk
from tests.fault.media import MemoryDisk
from wireproto.errors import LimitExceeded, MessageRefused
from wireproto.messages import Children, Data, Zeroes

SECRET = bytes(range(192))
SESSION, GENERATION = 3, 1
WRITE_FAILED = WriteFailed(path="memory", offset=0, length=1, reason="Input/output error (EIO)")


def digest_of(content: bytes) -> bytes:
    out = bytearray(parts(len(content), BLOCK_BYTES) * DIGEST_BYTES)
    digest.digest_blocks(content, SECRET, out)
    return bytes(out)


def entries(block: int, content: bytes, sectors: int = 0xFFFF, told: bytes | None = None) -> Data:
    """A frame of one block."""
    out = memoryview(bytearray(2 * BLOCK_BYTES))
    bitmap = sectors.to_bytes(2, "little")
    left, end, _ = pack.pack(content, block, 1, bitmap, told or digest_of(content), out, 0, 1)
    assert left == 0
    return Data(1, out[:end])


def target_of(disk: MemoryDisk, folder: Path, *, empty: bool = False) -> TargetDisk:
    target = TargetDisk(disk, disk.size, SECRET, lambda: DigestMap(disk.size, folder), empty=empty)
    target.take_over(SESSION)
    return target


def scan_whole(target: TargetDisk) -> None:
    for _ in target.scanned(lambda position: None):
        pass


def block_of(fill: int) -> bytes:
    return bytes([fill]) * BLOCK_BYTES


def test_a_whole_block_is_written_and_known(tmp_path: Path) -> None:
    disk = MemoryDisk(5 * BLOCK_BYTES + 700)
    target = target_of(disk, tmp_path, empty=True)
    applied = target.apply(entries(2, block_of(7)), SESSION, GENERATION)
    assert disk.blocks == {2: bytearray(block_of(7))}
    assert applied.runs == [AppliedRun(2, 1, digest_of(block_of(7)))]
    assert (applied.written_bytes, applied.mismatched) == (BLOCK_BYTES, [])
    last = b"z" * 700
    target.apply(entries(5, last, sectors=1), SESSION, GENERATION)
    assert disk.content()[-700:] == last
    assert target.digests.read(0, 6) == digest_of(disk.content())


def test_sectors_are_laid_over_the_old_block_and_only_they_are_written(tmp_path: Path) -> None:
    disk = MemoryDisk(4 * BLOCK_BYTES)
    disk.write(BLOCK_BYTES, memoryview(block_of(1)))
    target = target_of(disk, tmp_path)
    scan_whole(target)
    new = bytearray(block_of(1))
    new[3 * 4096 : 4 * 4096] = b"n" * 4096
    new[6 * 4096 : 7 * 4096] = b"m" * 4096
    applied = target.apply(entries(1, bytes(new), 1 << 3 | 1 << 6), SESSION, GENERATION)
    assert disk.blocks[1] == new
    assert applied.written_bytes == 4 * 4096  # from the first to the last of them
    assert target.digests.read(1, 1) == digest_of(bytes(new))


def test_a_patch_that_does_not_add_up_leaves_the_block_and_names_it(tmp_path: Path) -> None:
    disk = MemoryDisk(2 * BLOCK_BYTES)
    disk.write(0, memoryview(block_of(1)))
    target = target_of(disk, tmp_path)
    scan_whole(target)
    assumed = bytearray(block_of(2))  # the agent took the target for something else
    assumed[:4096] = b"n" * 4096
    applied = target.apply(entries(0, bytes(assumed), 1), SESSION, GENERATION)
    assert (applied.mismatched, applied.runs, applied.written_bytes) == ([0], [], 0)
    assert target.mismatched == {0}
    assert disk.blocks[0] == block_of(1)
    target.apply(entries(0, bytes(assumed)), SESSION, GENERATION)
    assert target.mismatched == set()
    assert disk.blocks[0] == assumed


def test_a_clear_makes_zeroes_and_forgets_mismatches(tmp_path: Path) -> None:
    disk = MemoryDisk(9 * BLOCK_BYTES + 5)
    disk.write(0, memoryview(b"x" * disk.size))
    target = target_of(disk, tmp_path)
    scan_whole(target)
    target.mismatched = {3, 8}
    applied = target.clear(Zeroes(((2, 3), (9, 1))), SESSION, GENERATION)
    expected = b"x" * 2 * BLOCK_BYTES + bytes(3 * BLOCK_BYTES) + b"x" * 4 * BLOCK_BYTES + bytes(5)
    assert disk.content() == expected
    assert applied.runs == [AppliedRun(2, 3, b""), AppliedRun(9, 1, b"")]
    assert applied.written_bytes == 3 * BLOCK_BYTES + 5
    assert target.mismatched == {8}
    assert target.digests.read(0, 10) == digest_of(expected)


def test_content_that_is_not_what_its_digest_says_is_refused(tmp_path: Path) -> None:
    disk = MemoryDisk(2 * BLOCK_BYTES)
    target = target_of(disk, tmp_path, empty=True)
    with pytest.raises(BlockRefused) as caught:
        target.apply(entries(1, block_of(1), told=digest_of(block_of(2))), SESSION, GENERATION)
    assert caught.value.block == 1
    assert not disk.blocks


@pytest.mark.parametrize("cut", [0, 1, 31, 40])
def test_a_malformed_frame_is_refused_and_writes_nothing(cut: int, tmp_path: Path) -> None:
    disk = MemoryDisk(2 * BLOCK_BYTES)
    target = target_of(disk, tmp_path, empty=True)
    good = entries(1, block_of(1)).entries
    bad = bytes(good[:-1]) if cut == 0 else bytes(good[:cut])
    with pytest.raises(DataMalformed):
        target.apply(Data(1, memoryview(bad)), SESSION, GENERATION)
    assert not disk.blocks


def test_blocks_beyond_the_disk_are_refused(tmp_path: Path) -> None:
    disk = MemoryDisk(2 * BLOCK_BYTES)
    target = target_of(disk, tmp_path, empty=True)
    with pytest.raises(DataMalformed):
        target.apply(entries(2, block_of(1)), SESSION, GENERATION)
    for ranges in (((1, 2),), ((2, 1),), ((2**40, 2**40),)):
        with pytest.raises(DataMalformed):
            target.clear(Zeroes(ranges), SESSION, GENERATION)


def test_an_older_session_changes_nothing(tmp_path: Path) -> None:
    disk = MemoryDisk(2 * BLOCK_BYTES)
    target = target_of(disk, tmp_path, empty=True)
    target.take_over(SESSION + 1)
    with pytest.raises(Fenced) as caught:
        target.apply(entries(0, block_of(1)), SESSION, GENERATION)
    assert (caught.value.session, caught.value.current_session) == (SESSION, SESSION + 1)
    with pytest.raises(Fenced):
        target.clear(Zeroes(((0, 1),)), SESSION, GENERATION)
    assert not disk.blocks
    assert target.known, "a refused frame did nothing that could be doubted"


def test_a_take_over_waits_for_the_write_in_flight(tmp_path: Path) -> None:
    disk = MemoryDisk(2 * BLOCK_BYTES)
    target = target_of(disk, tmp_path, empty=True)
    target.apply(entries(0, block_of(1)), SESSION, GENERATION)
    reading, go_on = threading.Event(), threading.Event()

    def stall(offset: int) -> None:
        reading.set()
        assert go_on.wait(10)

    disk.on_read = stall
    new = bytes(4096) + block_of(1)[4096:]
    writer = threading.Thread(target=target.apply, args=(entries(0, new, 1), SESSION, GENERATION))
    writer.start()
    assert reading.wait(10)
    taker = threading.Thread(target=target.take_over, args=(SESSION + 1,))
    taker.start()
    assert target.session == SESSION
    go_on.set()
    writer.join(10)
    taker.join(10)
    assert target.session == SESSION + 1
    assert disk.blocks[0] == new


def test_what_was_never_written_of_an_empty_disk_is_not_read(tmp_path: Path) -> None:
    disk = MemoryDisk(3 * BLOCK_BYTES)
    target = target_of(disk, tmp_path, empty=True)
    new = bytes(4096) + block_of(5)[:8192] + bytes(BLOCK_BYTES - 12288)
    applied = target.apply(entries(1, new, 0b110), SESSION, GENERATION)
    assert disk.bytes_read == 0
    assert (disk.blocks[1], applied.written_bytes, applied.mismatched) == (new, 8192, [])
    newer = block_of(6)[:4096] + new[4096:]
    target.apply(entries(1, newer, 1), SESSION, GENERATION)
    assert disk.bytes_read == BLOCK_BYTES, "what was written is read, and proved with what is laid over it"
    assert disk.blocks[1] == newer


def test_an_empty_disk_that_is_doubted_is_read(tmp_path: Path) -> None:
    """A write that failed may have left anything, though the map has no digest for it."""
    disk = MemoryDisk(2 * BLOCK_BYTES)
    target = target_of(disk, tmp_path, empty=True)
    disk.fails["write"] = WRITE_FAILED
    with pytest.raises(WriteFailed):
        target.apply(entries(0, block_of(1)), SESSION, GENERATION)
    disk.fails.clear()
    disk.write(0, memoryview(block_of(1)))
    target.take_over(SESSION + 1)
    new = block_of(2)[:4096] + bytes(BLOCK_BYTES - 4096)
    applied = target.apply(entries(0, new, 1), SESSION + 1, GENERATION)
    assert applied.mismatched == [0]


def test_after_a_failed_write_the_map_is_not_trusted(tmp_path: Path) -> None:
    disk = MemoryDisk(2 * BLOCK_BYTES)
    target = target_of(disk, tmp_path, empty=True)
    disk.fails["write"] = WRITE_FAILED
    with pytest.raises(WriteFailed):
        target.apply(entries(0, block_of(1)), SESSION, GENERATION)
    assert not target.known
    disk.fails.clear()
    scan_whole(target)
    assert target.known


def test_a_write_that_fails_behind_a_running_scan_is_not_forgotten_at_its_end(tmp_path: Path) -> None:
    disk = MemoryDisk(2 * REGION_BYTES + BLOCK_BYTES)
    disk.write(0, memoryview(b"x"))
    disk.write(2 * REGION_BYTES, memoryview(b"x"))
    target = target_of(disk, tmp_path)
    scan = target.scanned(lambda position: None)
    assert next(scan).first == 0
    disk.fails["write"] = WRITE_FAILED
    with pytest.raises(WriteFailed):
        target.apply(entries(1, block_of(1)), SESSION, GENERATION)
    disk.fails.clear()
    for _ in scan:
        pass
    assert not target.known


def test_a_known_map_is_told_without_reading(tmp_path: Path) -> None:
    disk = MemoryDisk(70 * BLOCK_BYTES)
    disk.write(0, memoryview(b"x"))
    target = target_of(disk, tmp_path)
    first = [(run.first, run.count, run.digest) for run in target.scanned(lambda position: None)]
    read = disk.bytes_read
    assert [(run.first, run.count, run.digest) for run in target.scanned(lambda position: None)] == first
    assert disk.bytes_read == read


def test_acknowledged_blocks_that_the_medium_lost_are_named(tmp_path: Path) -> None:
    disk = MemoryDisk(10 * BLOCK_BYTES)
    disk.write(3 * BLOCK_BYTES, memoryview(block_of(3)))
    target = target_of(disk, tmp_path)
    target.claim(
        [
            AppliedRun(3, 1, digest_of(block_of(3))),
            AppliedRun(5, 2, digest_of(block_of(5)) * 2),
            AppliedRun(6, 1, b""),
            AppliedRun(100, 1, digest_of(block_of(1))),
        ]
    )
    scan_whole(target)
    assert target.lost == [5]
    assert target.known


def test_answers_name_what_differs_and_what_is_zero(tmp_path: Path) -> None:
    disk = MemoryDisk(66 * BLOCK_BYTES)
    for block in (0, 1, 65):
        disk.write(block * BLOCK_BYTES, memoryview(block_of(block + 1)))
    target = target_of(disk, tmp_path)
    scan_whole(target)
    own = target.digests.read(0, 64)
    asked = bytearray(own)
    asked[:16] = b"a" * 16  # differs, data on both sides
    asked[16:32] = ZERO_DIGEST  # zero at the source
    asked[32:48] = b"b" * 16  # zero here
    found = target.answer(Children(1, 0, memoryview(asked)))
    assert (found.differing, found.zero) == (0b111, 0b100)
    expected = bytearray(256)
    digest.digest_sectors(block_of(1), SECRET, 1, expected)
    assert found.sectors == expected
    spans = bytearray(target.digests.spans_of(0, SECRET))
    assert len(spans) == 32
    spans[16:] = ZERO_DIGEST
    above = target.answer(Children(2, 0, memoryview(spans)))
    assert (above.differing, above.zero, len(above.sectors)) == (0b10, 0, 0)


def test_questions_that_do_not_fit_the_disk_are_refused(tmp_path: Path) -> None:
    target = target_of(MemoryDisk(66 * BLOCK_BYTES), tmp_path, empty=True)
    with pytest.raises(LimitExceeded):
        target.answer(Children(1, 2, memoryview(bytes(16))))
    with pytest.raises(LimitExceeded):
        target.answer(Children(2, 1, memoryview(bytes(16))))
    for level, node, count in ((1, 0, 63), (1, 1, 3), (2, 0, 1), (2, 0, 64)):
        with pytest.raises(MessageRefused):
            target.answer(Children(level, node, memoryview(bytes(16 * count))))
