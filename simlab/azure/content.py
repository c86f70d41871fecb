"""A disk's content in local, sparse files: where it holds data, how it is copied, where two of them differ.

Azure shows a managed disk as a fixed VHD in a page blob: the raw content and a footer of 512 bytes (Virtual Hard
Disk Image Format Specification 1.0, `Hard Disk Footer Format`).
"""

import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

from drcore.limits import KIB, MIB

PAGE_BYTES: Final = 512
FOOTER_BYTES: Final = 512
WINDOW_BYTES: Final = 4 * MIB
"""Unit of reading, and the most that one Put Page request may carry."""
GRANULE_BYTES: Final = 64 * KIB
FINE_BYTES: Final = 4 * KIB
FICLONE: Final = 0x40049409
"""The ioctl of linux/fs.h by which two files share their extents."""
ERA_SECONDS: Final = 946684800
"""2000-01-01 in the time of Unix; a VHD counts from there."""


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes `offset … offset + length` differ; `zero` says that the newer side reads as zeroes there."""

    offset: int
    length: int
    zero: bool


def data_windows(descriptors: list[int], size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of every 4 MiB window in which one of the files keeps data, ascending."""
    offset = 0
    while offset < size:
        starts = [
            start
            for start in (_next_data(descriptor, offset) for descriptor in descriptors)
            if start is not None
        ]
        if not starts or min(starts) >= size:
            return
        offset = max(offset, min(starts) // WINDOW_BYTES * WINDOW_BYTES)
        yield offset, min(WINDOW_BYTES, size - offset)
        offset += WINDOW_BYTES


def _next_data(descriptor: int, offset: int) -> int | None:
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError:
        return None


def read_exactly(descriptor: int, offset: int, length: int) -> bytes:
    """`length` bytes from `offset`; what lies beyond the file's end reads as zeroes."""
    parts = []
    while length:
        part = os.pread(descriptor, length, offset)
        if not part:
            parts.append(bytes(length))
            break
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def differing_runs(new: bytes, old: bytes, base: int, granule: int) -> Iterator[Run]:
    """Where two windows of equal length differ, in whole granules; neighbours of one kind are one run."""
    if new == old:
        return
    start = 0
    kind: bool | None = None
    blank = bytes(granule)
    for offset in [*range(0, len(new), granule), len(new)]:
        piece = new[offset : offset + granule]
        now = None if piece == old[offset : offset + granule] else piece == blank[: len(piece)]
        if now != kind or offset == len(new):
            if kind is not None:
                yield Run(base + start, offset - start, kind)
            start, kind = offset, now


def differences(new: Path, old: Path, size: int, first: int = 0, end: int | None = None) -> Iterator[Run]:
    """Runs of whole 4 KiB in which `new` differs from `old`, between `first` and `end`, clipped to them."""
    last = size if end is None else min(end, size)
    with new.open("rb") as new_file, old.open("rb") as old_file:
        descriptors = [new_file.fileno(), old_file.fileno()]
        for offset, length in data_windows(descriptors, size):
            if offset + length <= first or offset >= last:
                continue
            ours, theirs = (read_exactly(descriptor, offset, length) for descriptor in descriptors)
            for run in differing_runs(ours, theirs, offset, FINE_BYTES):
                start, stop = max(run.offset, first), min(run.offset + run.length, last)
                if start < stop:
                    yield Run(start, stop - start, run.zero)


def copy_sparsely(source: Path, target: Path, size: int) -> None:
    """`target` is a new file of `size` bytes with the content of `source`; holes stay holes.

    At once where the file system shares extents; otherwise by reading, which a writer at work may tear.
    """
    with source.open("rb") as reading, target.open("xb") as writing:
        try:
            fcntl.ioctl(writing.fileno(), FICLONE, reading.fileno())
        except OSError:
            writing.truncate(size)
            for offset, length in data_windows([reading.fileno()], size):
                data = read_exactly(reading.fileno(), offset, length)
                if data.count(0) != length:
                    os.pwrite(writing.fileno(), data, offset)
        writing.truncate(size)


def geometry(size: int) -> tuple[int, int, int]:
    """(cylinders, heads, sectors per track) of a disk of `size` bytes, by the specification's appendix."""
    sectors = min(size // PAGE_BYTES, 65535 * 16 * 255)
    if sectors >= 65535 * 16 * 63:
        per_track, heads, tracks = 255, 16, sectors // 255
    else:
        per_track, tracks = 17, sectors // 17
        heads = max((tracks + 1023) // 1024, 4)
        if tracks >= heads * 1024 or heads > 16:
            per_track, heads, tracks = 31, 16, sectors // 31
        if tracks >= heads * 1024:
            per_track, heads, tracks = 63, 16, sectors // 63
    return tracks // heads, heads, per_track


def fixed_footer(size: int, identity: UUID, created: float) -> bytes:
    """The 512 bytes that make raw content of `size` bytes a fixed VHD."""
    cylinders, heads, sectors = geometry(size)
    # "wa\0\0" is the creator by which readers know Azure's images: size by the field, not by the geometry.
    head = struct.pack(
        ">8sIIQI4sI4sQQHBBI",
        b"conectix",
        2,
        0x00010000,
        0xFFFFFFFFFFFFFFFF,
        max(0, int(created) - ERA_SECONDS) & 0xFFFFFFFF,
        b"wa\0\0",
        0x00070000,
        b"Wi2k",
        size,
        size,
        cylinders,
        heads,
        sectors,
        2,
    )
    tail = identity.bytes + bytes(428)
    checksum = ~(sum(head) + sum(tail)) & 0xFFFFFFFF
    return head + struct.pack(">I", checksum) + tail
