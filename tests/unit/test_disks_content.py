"""Content roots: what a role finds when it reads its own medium again."""

import os
import random
import threading
from pathlib import Path

import pytest
from blake3 import blake3

from disks import catalogue
from disks.content import content_root, read_root
from drcore.units import BLOCK_BYTES

SEED = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1 << 32)


def plain_root(data: bytes) -> str:
    """The definition, read aloud."""
    starts = range(0, len(data), BLOCK_BYTES)
    return blake3(b"".join(blake3(data[at : at + BLOCK_BYTES]).digest() for at in starts)).hexdigest()


def root_of(path: Path, size: int) -> str:
    image = catalogue.open_source(path)
    try:
        return read_root(image, size, lambda position: None)
    finally:
        image.close()


@pytest.mark.parametrize("size", [512, BLOCK_BYTES, 3 * BLOCK_BYTES + 512, 5 * BLOCK_BYTES])
def test_a_content_root_is_the_same_however_much_of_the_zeroes_is_told(tmp_path: Path, size: int) -> None:
    print(f"SEED={SEED}")
    chance = random.Random(SEED)
    for _ in range(20):
        data = b"".join(chance.choice((bytes(BLOCK_BYTES), chance.randbytes(BLOCK_BYTES))) for _ in range(6))[
            :size
        ]
        told = [
            (at, data[at : at + BLOCK_BYTES])
            for at in range(0, size, BLOCK_BYTES)
            if any(data[at : at + BLOCK_BYTES]) or chance.random() < 0.5
        ]
        assert content_root(size, told, lambda count: None) == plain_root(data)
    image = tmp_path / "disk.raw"
    image.write_bytes(data)
    assert root_of(image, size) == plain_root(data)


def test_only_as_much_of_a_larger_target_counts_as_its_source_has(tmp_path: Path) -> None:
    data = random.Random(SEED).randbytes(3 * BLOCK_BYTES)
    image = tmp_path / "disk.raw"
    image.write_bytes(data)
    assert root_of(image, BLOCK_BYTES + 512) == plain_root(data[: BLOCK_BYTES + 512])


def test_a_reading_tells_where_it_is_and_ends_when_told_to(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(BLOCK_BYTES) + random.Random(SEED).randbytes(40 * 1024 * 1024))
    opened = catalogue.open_source(image)
    seen: list[int] = []
    over = threading.Event()

    def on_bytes(position: int) -> None:
        seen.append(position)
        if over.is_set():
            raise InterruptedError

    try:
        read_root(opened, opened.size, on_bytes)
        assert seen == sorted(seen)
        assert seen[-1] == opened.size
        assert len(seen) > 2
        over.set()
        with pytest.raises(InterruptedError):
            read_root(opened, opened.size, on_bytes)
    finally:
        opened.close()
