"""Writing a stream-optimized VMDK: from end to end, once, under a hidden name until it is whole.

Source: VMware, "Virtual Disk Format 5.0", "Stream-Optimized Compressed Sparse Extents": compressed grains in ascending
order, each table behind its grains, the directory at the end, so that nothing written is ever gone back to. Such a
file cannot be resumed or changed; a broken writing leaves nothing.
"""

import zlib
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final

from disks import vmdk_layout, vmdk_stream_layout
from disks.backing import Backing
from disks.disk import Disk, Format
from disks.errors import ImageFull
from disks.layers import About, LayeredDisk
from disks.opening import Newborn
from disks.scan import data_runs
from disks.vmdk import check_size, new_descriptor
from disks.vmdk_grains import hosted_layer
from disks.vmdk_layout import SECTOR, SECTORS_MAX, TABLE_ENTRIES, SparseHeader
from drcore.limits import DISK_BYTES_MAX, MIB

WORKERS: Final = 2
"""Threads that compress: more than a sequential source and target keep busy."""
AHEAD: Final = 64
"""Grains being compressed at a time: 4 MiB."""
GATHER_BYTES: Final = 4 * MIB
"""What is written at a time."""


def write_stream(
    path: Path, source: Disk, on_bytes: Callable[[int], None], verify: Callable[[Disk], None]
) -> None:
    """The new file `path` is a stream-optimized VMDK that reads as `source`, filled up with zeroes to whole sectors.

    `on_bytes` is told the position reached, often; what it raises ends the writing. `verify` is given what was
    written, to be read back, before the file gets its name; what it raises leaves nothing behind.
    Errors: TargetExists, SizeNotPossible, ImageFull, NoSpace, OpenFailed, DiskInUse, and those of reading.
    """
    kind = Format.VMDK_STREAM_OPTIMIZED
    size = -(-source.size // SECTOR) * SECTOR
    check_size(kind, size, DISK_BYTES_MAX)
    header = vmdk_stream_layout.plan_stream(size // SECTOR)
    text = new_descriptor(path, kind, size, f'SPARSE "{path.name}"')
    newborn = Newborn(path)
    try:
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="deflate") as pool:
            writer = _Writer(newborn.backing, header, text)
            for first, packed in _packed(source, header.grain * SECTOR, pool, on_bytes):
                writer.add(first, packed)
            writer.end()
        newborn.backing.sync()
        about = About(path, kind, header.grain * SECTOR, None, None)
        verify(LayeredDisk(about, [hosted_layer(newborn.backing)]))
        newborn.publish().close()
    except BaseException:
        newborn.abandon()
        raise


def _packed(
    source: Disk, grain: int, pool: ThreadPoolExecutor, on_bytes: Callable[[int], None]
) -> Iterator[tuple[int, bytes]]:
    """(number of the grain, its compressed bytes) for every grain that is not all zeroes, ascending."""
    waiting: deque[tuple[int, Future[bytes]]] = deque()
    zeroes = bytes(grain)
    try:
        for start, end in data_runs(source, source.size, grain):
            for offset in range(start, end, grain):
                content = bytearray(grain)
                source.read(offset, memoryview(content)[: min(grain, source.size - offset)])
                if content != zeroes:
                    waiting.append((offset // grain, pool.submit(zlib.compress, content)))
                if len(waiting) >= AHEAD:
                    number, done = waiting.popleft()
                    yield number, done.result()
                on_bytes(min(offset + grain, source.size))
        while waiting:
            number, done = waiting.popleft()
            yield number, done.result()
    finally:
        for _, each in waiting:
            each.cancel()


class _Writer:
    """The growing file: what was gathered, the table in the making, the directory."""

    def __init__(self, backing: Backing, header: SparseHeader, text: bytes) -> None:
        self._backing = backing
        self._header = header
        start = vmdk_layout.encode_header(header) + text
        self._gathered = bytearray(start.ljust(header.overhead * SECTOR, b"\0"))
        self._written = 0
        self._directory = array("I", bytes(header.tables * 4))
        self._table = array("I", bytes(TABLE_ENTRIES * 4))
        self._number = -1

    def add(self, grain: int, packed: bytes) -> None:
        """The grain stands in the file; grains come in ascending order."""
        number, entry = divmod(grain, TABLE_ENTRIES)
        if number != self._number:
            self._end_table()
            self._number = number
        self._table[entry] = self._sector()
        self._append(vmdk_stream_layout.encode_grain(grain * self._header.grain, packed))

    def end(self) -> None:
        """Last table, directory, footer and end mark stand in the file, which is complete but not yet durable."""
        self._end_table()
        self._append(vmdk_stream_layout.encode_end(self._header, self._directory, self._sector()))
        self._write()

    def _end_table(self) -> None:
        if self._number < 0:
            return
        self._directory[self._number] = self._sector() + 1  # behind its marker
        self._append(vmdk_stream_layout.encode_table(self._table))
        self._table = array("I", bytes(TABLE_ENTRIES * 4))

    def _sector(self) -> int:
        """Where the next thing will stand."""
        sector = (self._written + len(self._gathered)) // SECTOR
        if sector + 1 >= SECTORS_MAX:
            limit = SECTORS_MAX * SECTOR
            raise ImageFull(path=str(self._backing.path), offset=sector * SECTOR, length=SECTOR, limit=limit)
        return sector

    def _append(self, raw: bytes) -> None:
        self._gathered += raw
        if len(self._gathered) >= GATHER_BYTES:
            self._write()

    def _write(self) -> None:
        self._backing.write(self._written, memoryview(self._gathered))
        self._written += len(self._gathered)
        self._gathered = bytearray()
