"""Comparing two disks finds the same whichever way their bytes are read, and says why a read fails."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import measure
from disks import catalogue, linear
from disks.disk import Disk
from disks.errors import ReadFailed
from disks.image import Image
from drcore.limits import MIB
from drcore.units import BLOCK_BYTES, SECTOR_BYTES

SIZE = 21 * MIB + 3 * SECTOR_BYTES


class Unlent:
    """A disk whose bytes only `read` tells."""

    def __init__(self, disk: Image) -> None:
        self._disk = disk
        self.size = disk.size
        self.extents = disk.extents
        self.reads: list[tuple[int, int]] = []

    def read(self, offset: int, into: memoryview) -> None:
        self.reads.append((offset, len(into)))
        self._disk.read(offset, into)


@pytest.fixture
def changed() -> list[int]:
    """Blocks that differ."""
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    return sorted(random.Random(seed).sample(range(SIZE // BLOCK_BYTES), 40))


@pytest.fixture
def pair(tmp_path: Path, changed: list[int]) -> Iterator[tuple[Image, Image]]:
    """Two disks of 21 MiB of which those blocks differ; the second quarter is a hole in both."""
    source, target = tmp_path / "source.img", tmp_path / "target.img"
    content = random.Random(7).randbytes(BLOCK_BYTES)
    for path in (source, target):
        with path.open("wb") as file:
            file.truncate(SIZE)
            for block in range(SIZE // BLOCK_BYTES):
                if not SIZE // 4 <= block * BLOCK_BYTES < SIZE // 2:
                    file.seek(block * BLOCK_BYTES)
                    file.write(content)
    with source.open("r+b") as file:
        for number, block in enumerate(changed):
            file.seek(block * BLOCK_BYTES + number % 16 * SECTOR_BYTES)
            file.write(bytes(SECTOR_BYTES) if number % 5 == 0 else os.urandom(SECTOR_BYTES))
    disks = catalogue.open_source(source, None), catalogue.open_source(target, None)
    yield disks
    for disk in disks:
        disk.close()


def measured(source: Disk, target: Disk) -> measure.Measurement:
    found = measure.Measurement()
    measure.measure(source, target, found, lambda: False)
    return found


def test_both_ways_find_the_same(pair: tuple[Image, Image], changed: list[int]) -> None:
    source, target = pair
    one, other = Unlent(source), Unlent(target)
    found, slowly = measured(source, target), measured(one, other)  # type: ignore[arg-type]
    assert found == slowly
    assert found.bytes_to_send > 0
    assert 0 < found.blocks_changed <= len(changed)
    assert len(one.reads) > SIZE // MIB // 2


def test_only_changed_blocks_are_read_a_second_time(
    pair: tuple[Image, Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = pair
    seen = Unlent(source)
    monkeypatch.setattr(measure, "lent", lambda disk: linear.lent(source if disk is seen else disk))
    found = measured(seen, target)  # type: ignore[arg-type]
    assert len(seen.reads) == found.blocks_changed
    assert all(offset % BLOCK_BYTES == 0 for offset, _ in seen.reads)


def test_a_disk_that_became_shorter_is_a_failed_read(pair: tuple[Image, Image]) -> None:
    source, target = pair
    os.truncate(target.path, SIZE - 5 * MIB)
    with pytest.raises(ReadFailed, match="end of the file"):
        measured(source, target)
