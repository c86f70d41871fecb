"""Digest maps in memory and in a file hold the same; a scan agrees with a slow oracle."""

import os
import random
from pathlib import Path

import blake3
import pytest

from _native import digest
from disks import catalogue
from disks.digestmap import DigestMap
from disks.disk import Disk, Format
from disks.errors import ReadFailed
from disks.image import Image
from disks.scan import (
    PIECE_BYTES,
    STRETCH_BYTES,
    RegionRun,
    Seen,
    data_runs,
    pieces,
    remembered,
    scan,
)
from drcore.units import BLOCK_BYTES, DIGEST_BYTES, REGION_BLOCKS, REGION_BYTES, ZERO_DIGEST, parts
from tests.fault.media import MemoryDisk

SECRET = bytes(range(192))


def fold(children: list[bytes]) -> bytes:
    """The node above up to 64 children."""
    out = bytearray(DIGEST_BYTES)
    digest.fold(b"".join(children), SECRET, out)
    return bytes(out)


def digest_of(content: bytes) -> bytes:
    out = bytearray(DIGEST_BYTES)
    digest.digest_blocks(content, SECRET, out)
    return bytes(out)


@pytest.mark.parametrize("blocks", [0, 1, 63, 64, 65, REGION_BLOCKS + 1, 3 * REGION_BLOCKS, 70_000])
def test_maps_in_memory_and_in_a_file_are_equal(blocks: int, tmp_path: Path, dice: random.Random) -> None:
    size = max(blocks * BLOCK_BYTES - dice.randrange(BLOCK_BYTES), 0) if blocks else 0
    memory, file = DigestMap(size, tmp_path), DigestMap(size, tmp_path, in_memory_max=-1)
    model = bytearray(memory.blocks * DIGEST_BYTES)
    for _ in range(12 if blocks else 0):
        first = dice.randrange(memory.blocks)
        count = min(memory.blocks - first, dice.choice([1, 7, 64, 5000]))
        if dice.random() < 0.4:
            model[first * DIGEST_BYTES : (first + count) * DIGEST_BYTES] = bytes(count * DIGEST_BYTES)
            for each in (memory, file):
                each.clear(first, count)
        else:
            data = dice.randbytes(count * DIGEST_BYTES)
            model[first * DIGEST_BYTES : (first + count) * DIGEST_BYTES] = data
            for each in (memory, file):
                each.write(first, data)
    for each in (memory, file):
        assert each.read(0, each.blocks) == model
        assert b"".join(each.windows()) == model
        assert each.root() == blake3.blake3(bytes(model)).digest()
        for region in range(each.regions):
            own = model[region * REGION_BLOCKS * DIGEST_BYTES :][: REGION_BLOCKS * DIGEST_BYTES]
            digests = [bytes(own[at : at + DIGEST_BYTES]) for at in range(0, len(own), DIGEST_BYTES)]
            spans = [fold(digests[at : at + 64]) for at in range(0, len(digests), 64)]
            assert each.spans_of(region, SECRET) == b"".join(spans)
            assert each.region(region, SECRET) == fold(spans)
        each.close()
        each.close()
    assert list(tmp_path.iterdir()) == []


def random_disk(dice: random.Random, size: int) -> MemoryDisk:
    disk = MemoryDisk(size)
    for _ in range(10):
        at = dice.randrange(size)
        length = min(size - at, dice.choice([1, 4096, 100_000, 2_000_000]))
        disk.write(at, memoryview(dice.randbytes(length)))
    at = dice.randrange(size // BLOCK_BYTES) * BLOCK_BYTES
    disk.write(at, memoryview(bytes(min(size - at, 3 * BLOCK_BYTES))))  # zeroes that are stored as data
    return disk


@pytest.mark.parametrize("file", [False, True])
def test_a_scan_agrees_with_the_oracle(file: bool, tmp_path: Path, dice: random.Random) -> None:
    size = 3 * REGION_BYTES + dice.randrange(1, REGION_BYTES)
    disk = random_disk(dice, size)
    digests = DigestMap(size, tmp_path, in_memory_max=-1 if file else 1 << 20)
    positions: list[int] = []
    runs = list(scan(disk, digests, SECRET, positions.append))
    check_runs(runs, digests)
    for block in range(digests.blocks):
        content = bytes(disk.blocks.get(block, b""))[: min(BLOCK_BYTES, size - block * BLOCK_BYTES)]
        expected = digest_of(content) if any(content) else ZERO_DIGEST
        assert digests.read(block, 1) == expected, block
    assert positions == sorted(positions)
    assert positions[-1] == size
    check_runs(list(remembered(digests, SECRET)), digests)
    digests.close()


def check_runs(runs: list[RegionRun], digests: DigestMap) -> None:
    """The runs cover all regions in order and say what the map says."""
    at = 0
    for run in runs:
        assert run.first == at
        assert run.count == 1 or run.digest is None
        for region in range(run.first, run.first + run.count):
            assert digests.region(region, SECRET) == (run.digest or ZERO_DIGEST)
        at += run.count
    assert at == digests.regions


def raw_file(path: Path, content: MemoryDisk) -> Image:
    """The same bytes in a sparse file, open as a source."""
    with path.open("wb") as file:
        for block, held in content.blocks.items():
            file.seek(block * BLOCK_BYTES)
            file.write(bytes(held)[: content.size - block * BLOCK_BYTES])
        file.truncate(content.size)
    return catalogue.open_source(path, Format.RAW)


def scanned(disk: Disk, directory: Path, seen: Seen | None) -> tuple[list[RegionRun], bytes, list[int]]:
    """What a scan tells, leaves in the map, and the positions that it reported."""
    positions: list[int] = []
    digests = DigestMap(disk.size, directory)
    runs = list(scan(disk, digests, SECRET, positions.append, lambda: seen))
    found = digests.read(0, digests.blocks)
    digests.close()
    return runs, found, positions


def test_a_scan_by_the_kernel_and_one_that_is_watched_find_the_same(
    tmp_path: Path, dice: random.Random
) -> None:
    memory = random_disk(dice, REGION_BYTES + dice.randrange(1, REGION_BYTES))
    disk = raw_file(tmp_path / "disk.raw", memory)
    shown: list[tuple[int, int]] = []

    def see(offset: int, content: memoryview) -> None:
        assert content == disk_bytes(memory, offset, len(content))
        shown.append((offset, len(content)))

    expected = scanned(memory, tmp_path, None)
    unwatched, watched = scanned(disk, tmp_path, None), scanned(disk, tmp_path, see)
    assert unwatched[:2] == watched[:2] == expected[:2]
    assert shown
    assert all(length <= PIECE_BYTES for _, length in shown)
    for _, _, positions in (expected, unwatched, watched):
        assert positions == sorted(positions)
        assert positions[-1] == memory.size
    assert len(unwatched[2]) < len(watched[2])
    disk.close()


def disk_bytes(disk: MemoryDisk, offset: int, length: int) -> bytes:
    into = bytearray(length)
    disk.read(offset, memoryview(into))
    return bytes(into)


def test_what_is_read_after_somebody_began_to_watch_is_shown(tmp_path: Path, dice: random.Random) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(dice.randbytes(4 * BLOCK_BYTES) * (5 * STRETCH_BYTES // (4 * BLOCK_BYTES)))
    disk = catalogue.open_source(path, Format.RAW)
    digests = DigestMap(disk.size, tmp_path)
    begun = 2 * STRETCH_BYTES
    reached = [0]
    shown: list[int] = []

    def watcher() -> Seen | None:
        return (lambda offset, content: shown.append(offset)) if reached[0] >= begun else None

    list(scan(disk, digests, SECRET, lambda position: reached.__setitem__(0, position), watcher))
    assert shown == list(range(begun, disk.size, PIECE_BYTES))
    digests.close()
    disk.close()


def test_a_source_that_shrank_while_it_was_scanned_is_told_by_its_place(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"x" * (3 * STRETCH_BYTES))
    disk = catalogue.open_source(path, Format.RAW)
    digests = DigestMap(disk.size, tmp_path)
    end = STRETCH_BYTES + 5 * BLOCK_BYTES + 7

    def shrink(position: int) -> None:
        os.truncate(path, end)

    with pytest.raises(ReadFailed) as failure:
        list(scan(disk, digests, SECRET, shrink))
    offset = failure.value.facts()["offset"]
    assert STRETCH_BYTES <= offset <= end
    digests.close()
    disk.close()


def test_an_empty_disk_costs_no_reads_and_few_words(tmp_path: Path) -> None:
    disk = MemoryDisk(1 << 44)
    digests = DigestMap(disk.size, tmp_path)
    runs = list(scan(disk, digests, SECRET, lambda position: None))
    assert sum(run.count for run in runs) == digests.regions
    assert len(runs) <= 2
    assert disk.bytes_read == 0
    digests.close()


def test_data_runs_are_whole_units_and_cover_all_data(dice: random.Random) -> None:
    size = 40 * BLOCK_BYTES + 100
    disk = random_disk(dice, size)
    for unit in (BLOCK_BYTES, 16 * BLOCK_BYTES):
        runs = list(data_runs(disk, size, unit))
        covered: set[int] = set()
        last = -1
        for start, end in runs:
            assert start > last
            assert start % unit == 0
            assert end % unit == 0 or end == size
            last = end
            covered |= set(range(start // BLOCK_BYTES, parts(end, BLOCK_BYTES)))
        assert covered >= set(disk.blocks)
    for start, length in pieces(disk, size):
        assert start // (1 << 20) == (start + length - 1) // (1 << 20)


def test_a_scan_ends_where_its_listener_raises(tmp_path: Path, dice: random.Random) -> None:
    disk = random_disk(dice, 100 * BLOCK_BYTES)
    digests = DigestMap(disk.size, tmp_path)

    def stop(position: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        list(scan(disk, digests, SECRET, stop))
    digests.close()
