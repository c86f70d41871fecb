"""The content root of a disk: BLAKE3 over the ordered BLAKE3 digests of the content of its 64 KiB blocks."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from blake3 import blake3

from disks import catalogue
from disks.scan import pieces
from drcore.units import BLOCK_BYTES, parts

ZERO_RUN_BLOCKS: Final = 4096
"""Zero blocks whose digests go into the root at once: 128 KiB of them."""


def content_root(size: int, content: Iterable[tuple[int, bytes]], on_bytes: Callable[[int], None]) -> str:
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
    return root.hexdigest()


def image_root(path: Path, on_bytes: Callable[[int], None]) -> str:
    """The content root of the disk image at `path`, read from its medium. Errors: those of `disks.open_source`."""
    drop_cache(path)
    image = catalogue.open_source(path)
    try:
        return content_root(image.size, _content(image), on_bytes)
    finally:
        image.close()


def _content(image: catalogue.Image) -> Iterator[tuple[int, bytes]]:
    for offset, length in pieces(image, image.size):
        data = bytearray(length)
        image.read(offset, memoryview(data))
        yield offset, bytes(data)


def drop_cache(path: Path) -> None:
    """What the kernel keeps of the image's files is written out and forgotten, so that reads come from the medium."""
    for file in path.parent.glob(f"{path.stem}*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
