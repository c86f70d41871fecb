"""Disk images to measure with: real files in runs of data and holes, and a copy with one block in a hundred changed."""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final

from disks.backing import Access, Backing
from drcore.limits import MIB
from drcore.units import BLOCK_BYTES, BLOCK_SECTORS, SECTOR_BYTES

ROOTS: Final = (Path("/usr"), Path("/var/lib"))
RUN_MIB: Final = (1, 32)
"""The shortest and the longest run of data, and of free space between two."""
CHANGED_SHARE: Final = 0.01
"""Of the blocks that hold data."""
WHOLE_SHARE: Final = 0.25
"""Of the changed blocks, those that are rewritten from end to end; in the others one to four sectors change."""
FILE_BYTES_MAX: Final = 64 * MIB
"""What one file may give, so that no single file makes the image what it is."""


@dataclass(frozen=True, slots=True)
class Image:
    """A raw image and where its data lies, as (offset, length), ascending, multiples of 4 KiB."""

    path: Path
    size: int
    runs: tuple[tuple[int, int], ...]

    @property
    def data_bytes(self) -> int:
        """Bytes in runs of data; the rest are holes."""
        return sum(length for _, length in self.runs)

    def holes(self) -> list[tuple[int, int]]:
        """What lies between the runs of data, as (offset, length), ascending."""
        ends = [0, *(start + length for start, length in self.runs)]
        starts = [*(start for start, _ in self.runs), self.size]
        return [(end, start - end) for end, start in zip(ends, starts, strict=True) if start > end]

    def blocks(self) -> list[int]:
        """The blocks that lie in a run of data from end to end."""
        return [
            block
            for start, length in self.runs
            for block in range(-(-start // BLOCK_BYTES), (start + length) // BLOCK_BYTES)
        ]


@dataclass(frozen=True, slots=True)
class Changes:
    """What tells `after` from `before`: pieces (offset, length) that were written, and how much in them differs."""

    before: Image
    after: Image
    pieces: tuple[tuple[int, int], ...]
    sectors: dict[int, int]
    """For each block that differs the bitmap of its sectors that do."""
    blocks_zeroed: int
    """Of the blocks that differ, those that became zero: they are told, not sent."""

    @property
    def sector_count(self) -> int:
        """Sectors that differ."""
        return sum(bits.bit_count() for bits in self.sectors.values())

    def undo(self, target: Path, *, holes: bool = True) -> None:
        """`target`, which held `after`, holds `before` again, durably, and with `holes` has them where that has."""
        with self.before.path.open("rb") as before, target.open("r+b", buffering=0) as file:
            for offset, length in self.pieces:
                before.seek(offset)
                file.seek(offset)
                file.write(before.read(length))
            if holes:
                backing = Backing(file.fileno(), target, Access.TARGET)
                for offset, length in self.before.holes():
                    backing.zero(offset, length)
            os.fsync(file.fileno())


def make(path: Path, size: int, seed: int) -> Image:
    """A sparse image of `size` bytes, half of them the content of this machine's files, each from a sector's start on.

    The same files and the same seed make the same image. Files come in the order of the hashes of their paths, which
    mixes programs, libraries, archives and texts; a machine with few files gives them again.
    """
    chance = random.Random(seed)
    content = _contents()
    runs = []
    offset, rest = 0, b""
    with path.open("wb") as file:
        while offset < size:
            length = min(chance.randint(RUN_MIB[0] * 256, RUN_MIB[1] * 256) * SECTOR_BYTES, size - offset)
            runs.append((offset, length))
            file.seek(offset)
            left = length
            while left:
                rest = rest or next(content)
                file.write(rest[:left])
                left, rest = left - len(rest[:left]), rest[left:]
            # Free space is as long as the data before it: half of the image, wherever it ends.
            offset += 2 * length
        file.truncate(size)
        file.flush()
        os.fsync(file.fileno())
    return Image(path, size, tuple(runs))


def _contents() -> Iterator[bytes]:
    """The content of the machine's files for ever, each padded to whole sectors."""
    found = [
        Path(directory, name)
        for root in ROOTS
        for directory, _, names in os.walk(root)
        for name in names
        if not Path(directory, name).is_symlink()
    ]
    found.sort(key=lambda path: sha256(os.fsencode(path)).digest())
    while True:
        given = 0
        for path in found:
            try:
                with path.open("rb") as file:
                    data = file.read(FILE_BYTES_MAX)
            except OSError:  # gone since, or not ours to read
                continue
            if data:
                given += len(data)
                yield data + bytes(-len(data) % SECTOR_BYTES)
        assert given, f"no readable file below {', '.join(map(str, ROOTS))}"


def change(before: Image, path: Path, seed: int, share: float = CHANGED_SHARE) -> Changes:
    """A copy in which a share of the data blocks differs: scattered sectors in three of four, the whole block else.

    What is written is content from elsewhere in the image, so that it compresses as the image does.
    """
    chance = random.Random(seed)
    copy(before.path, path)
    blocks = before.blocks()
    chosen = sorted(chance.sample(blocks, round(len(blocks) * share)))
    pieces = []
    sectors = {}
    blocks_zeroed = 0
    with before.path.open("rb") as old, path.open("r+b") as new:
        for block in chosen:
            if chance.random() < WHOLE_SHARE:
                spots = [(block * BLOCK_BYTES, BLOCK_BYTES)]
            else:
                inside = chance.sample(range(BLOCK_SECTORS), chance.randint(1, 4))
                spots = [(block * BLOCK_BYTES + sector * SECTOR_BYTES, SECTOR_BYTES) for sector in inside]
            bits = 0
            for offset, length in spots:
                bits |= _replace(old, new, offset, length, blocks, chance) << (
                    offset % BLOCK_BYTES // SECTOR_BYTES
                )
            pieces += spots
            sectors[block] = bits
            new.seek(block * BLOCK_BYTES)
            blocks_zeroed += not any(new.read(BLOCK_BYTES))
        new.flush()
        os.fsync(new.fileno())
    return Changes(before, Image(path, before.size, before.runs), tuple(pieces), sectors, blocks_zeroed)


def _replace(
    old: BinaryIO, new: BinaryIO, offset: int, length: int, blocks: list[int], chance: random.Random
) -> int:
    """The bitmap of the sectors of the piece that now differ; never 0."""
    old.seek(offset)
    there = old.read(length)
    while True:
        elsewhere = chance.choice(blocks) * BLOCK_BYTES
        if length == SECTOR_BYTES:
            elsewhere += chance.randrange(BLOCK_SECTORS) * SECTOR_BYTES
        old.seek(elsewhere)
        content = old.read(length)
        bits = sum(
            1 << at // SECTOR_BYTES
            for at in range(0, length, SECTOR_BYTES)
            if content[at : at + SECTOR_BYTES] != there[at : at + SECTOR_BYTES]
        )
        if bits:
            new.seek(offset)
            new.write(content)
            return bits


def copy(source: Path, target: Path, *, holes: bool = True) -> None:
    """`target` holds what `source` holds, durably, with its holes or with zeroes written in their place."""
    target.unlink(missing_ok=True)
    sparse = f"--sparse={'auto' if holes else 'never'}"
    subprocess.run(["cp", sparse, "--reflink=never", str(source), str(target)], check=True)
    settle(target)


def settle(*paths: Path) -> None:
    """The files are on stable storage and in the page cache."""
    for path in paths:
        with path.open("r+b") as file:
            os.fsync(file.fileno())
        subprocess.run(["cat", str(path)], check=True, stdout=subprocess.DEVNULL)


def settle_only(*paths: Path) -> None:
    """The files are on stable storage; for those that are too large to be read."""
    for path in paths:
        with path.open("r+b") as file:
            os.fsync(file.fileno())


def remove(*paths: Path) -> None:
    """The files and directories are gone."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
