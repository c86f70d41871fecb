"""The digests of a disk's blocks: in memory for ordinary disks, in a file for the large ones."""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import blake3

from _native import digest
from drcore.limits import DIGEST_BLOCKS_IN_MEMORY_MAX
from drcore.units import BLOCK_BYTES, DIGEST_BYTES, FANOUT, REGION_BLOCKS, ZERO_DIGEST, parts

ROOT_BYTES: Final = 32
_WINDOW: Final = 65536
"""Blocks that pass through memory at once: 1 MiB of digests, a disk of 4 GiB."""
_ZEROES: Final = bytes(_WINDOW * DIGEST_BYTES)


class DigestMap:
    """One 16-byte digest for each block of a disk of `size` bytes, at first all of them the zero digest.

    Two threads may use different blocks at the same time. Up to 4 Mi blocks (256 GiB) stay in memory; beyond that they
    live in an unlinked, sparse file in `directory`, whose holes are the zero blocks.
    """

    def __init__(self, size: int, directory: Path, in_memory_max: int = DIGEST_BLOCKS_IN_MEMORY_MAX) -> None:
        self.size = size
        self.blocks = parts(size, BLOCK_BYTES)
        self.regions = parts(self.blocks, REGION_BLOCKS)
        length = self.blocks * DIGEST_BYTES
        self._memory: mmap.mmap | None = None
        self._file = -1
        if self.blocks <= in_memory_max:
            self._memory = mmap.mmap(-1, max(length, 1))
        else:
            import tempfile  # here: most disks need none

            with tempfile.TemporaryFile(dir=directory) as file:
                self._file = os.dup(file.fileno())
            os.ftruncate(self._file, length)

    def close(self) -> None:
        """Memory or file is given back."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def read(self, first: int, count: int) -> bytes:
        """The digests of `count` blocks from `first` on."""
        start, length = first * DIGEST_BYTES, count * DIGEST_BYTES
        if self._memory is not None:
            return self._memory[start : start + length]
        return os.pread(self._file, length, start)

    def write(self, first: int, digests: bytes | bytearray | memoryview) -> None:
        """The digests of the blocks from `first` on are `digests`."""
        start = first * DIGEST_BYTES
        if self._memory is not None:
            self._memory[start : start + len(digests)] = digests
        else:
            left = memoryview(digests)
            while left:  # of a file system that is full the kernel says so only when nothing of it fits
                taken = os.pwrite(self._file, left, start)
                left, start = left[taken:], start + taken

    def clear(self, first: int, count: int) -> None:
        """The digests of `count` blocks from `first` on are the zero digest."""
        for at in range(first, first + count, _WINDOW):
            part = min(_WINDOW, first + count - at)
            if self.read(at, part) != _ZEROES[: part * DIGEST_BYTES]:
                self.write(at, _ZEROES[: part * DIGEST_BYTES])

    def windows(self) -> Iterator[bytes]:
        """All digests in order, in pieces; holes of the file are not read."""
        for first in range(0, self.blocks, _WINDOW):
            count = min(_WINDOW, self.blocks - first)
            yield _ZEROES[: count * DIGEST_BYTES] if self._is_hole(first, count) else self.read(first, count)

    def _is_hole(self, first: int, count: int) -> bool:
        if self._memory is not None:
            return False
        start = first * DIGEST_BYTES
        try:
            return os.lseek(self._file, start, os.SEEK_DATA) >= start + count * DIGEST_BYTES
        except OSError:  # ENXIO: no data up to the end
            return True

    def root(self) -> bytes:
        """BLAKE3 over the digests in order (32 bytes): what it means to have this content."""
        hasher = blake3.blake3()
        for window in self.windows():
            hasher.update(window)
        return hasher.digest()

    def spans_of(self, region: int, secret: bytes) -> bytes:
        """The digests of the region's spans, 16 bytes each, the tree's level 2 children."""
        first = region * REGION_BLOCKS
        count = min(REGION_BLOCKS, self.blocks - first)
        spans = bytearray(parts(count, FANOUT) * DIGEST_BYTES)
        digest.fold(self.read(first, count), secret, spans)
        return bytes(spans)

    def region(self, region: int, secret: bytes) -> bytes:
        """The digest of one region: of its spans' digests, the zero digest if all are."""
        folded = bytearray(ZERO_DIGEST)
        digest.fold(self.spans_of(region, secret), secret, folded)
        return bytes(folded)
