"""Digest maps in memory and in a file hold the same; a scan agrees with a slow oracle."""

import random
from pathlib import Path

import blake3
import pytest

from _native import digest
from disks.digestmap import DigestMap
from disks.scan import RegionRun, data_runs, pieces, remembered, scan
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
