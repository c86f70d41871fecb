"""The content root of a disk: BLAKE3 over the ordered BLAKE3 digests of the content of its 64 KiB blocks.

Each role reads its own medium again for it, past the cache: what counts is what a later reader will find.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blake3 import blake3

from disks.disk import Disk
from disks.image import Image
from disks.scan import data_runs
from drcore.buffers import buffer
from drcore.limits import CONTENT_READ_BYTES_MAX
from drcore.units import BLOCK_BYTES, parts

ZERO_RUN_BLOCKS: Final = 4096
"""Zero blocks whose digests go into the root at once: 128 KiB of them."""


@dataclass(frozen=True, slots=True)
class DiskContent:
    """What a role found when it read a disk again: the disk's UUID (32 hex digits), its bytes, its root in hex."""

    disk: str
    size: int
    root: str


def content_root(
    size: int, content: Iterable[tuple[int, memoryview | bytes]], on_bytes: Callable[[int], None]
) -> str:
    """The root, hex, of a disk; `content` is (offset, bytes) ascending in whole blocks, what is missing is zero."""
    zero = blake3(bytes(BLOCK_BYTES)).digest()
    root = blake3()
    blocks = parts(size, BLOCK_BYTES)
    last = size - (blocks - 1) * BLOCK_BYTES
    done = 0

    def zeroes(until: int) -> None:
        """The blocks from `done` on are zero; whole ones many at a time, a short last one by itself."""
        short = int(until == blocks and done < blocks and last < BLOCK_BYTES)
        whole = until - done - short
        for start in range(0, whole, ZERO_RUN_BLOCKS):
            root.update(zero * min(ZERO_RUN_BLOCKS, whole - start))
        if short:
            root.update(blake3(bytes(last)).digest())

    for offset, data in content:
        zeroes(offset // BLOCK_BYTES)
        for start in range(0, len(data), BLOCK_BYTES):
            root.update(blake3(data[start : start + BLOCK_BYTES]).digest())
        done = offset // BLOCK_BYTES + parts(len(data), BLOCK_BYTES)
        on_bytes(offset + len(data))
    zeroes(blocks)
    on_bytes(size)
    return root.hexdigest()


def read_root(image: Image, size: int, on_bytes: Callable[[int], None]) -> str:
    """The content root of the image's first `size` bytes, read from its medium and not from the cache.

    `on_bytes` is called with the position reached; what it raises ends the reading. Errors: those of `Disk.read`.
    """
    drop_cache(image.path)
    return content_root(size, _content(image, size), on_bytes)


def _content(disk: Disk, size: int) -> Iterator[tuple[int, memoryview]]:
    piece = buffer(CONTENT_READ_BYTES_MAX)
    for start, end in data_runs(disk, size):
        for at in range(start, end, CONTENT_READ_BYTES_MAX):
            length = min(CONTENT_READ_BYTES_MAX, end - at)
            disk.read(at, piece[:length])
            yield at, piece[:length]


def drop_cache(path: Path) -> None:
    """What the kernel keeps of the image's files is written out and forgotten, so that reads come from the medium.

    A disk that is no file of this machine (a page blob) has no such cache here.
    """
    # A VMDK descriptor's extents and a chain's members are named after it and lie beside it.
    files = [path, *path.parent.glob(f"{path.stem}*")] if path.parent.is_dir() else []
    for file in files:
        if file.is_file() or file.is_block_device():
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
