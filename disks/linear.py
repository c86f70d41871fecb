"""Disks whose bytes lie in one run of a file or device: raw, and the frame for fixed VHD and flat VMDK."""

from collections.abc import Iterator
from pathlib import Path

from disks.backing import Backing
from disks.disk import Extent, Format
from disks.image import check_range, check_writable, merged
from disks.opening import Newborn
from drcore.units import ByteCount


class LinearDisk:
    """The `size` bytes of `backing` from `start` on. Owns the backing; holes are those of the file system."""

    def __init__(self, backing: Backing, kind: Format, size: int, *, start: int = 0) -> None:
        self._backing = backing
        self._format = kind
        self._size = size
        self._start = start

    @property
    def format(self) -> Format:
        return self._format

    @property
    def size(self) -> ByteCount:
        return ByteCount(self._size)

    @property
    def grain_size(self) -> ByteCount | None:
        return None

    @property
    def path(self) -> Path:
        return self._backing.path

    @property
    def files(self) -> tuple[Path, ...]:
        return (self._backing.path,)

    @property
    def disk_uuid(self) -> str | None:
        return None

    @property
    def change_mark(self) -> str | None:
        return None

    def read(self, offset: int, into: memoryview) -> None:
        check_range(self, offset, len(into))
        self._backing.read(self._start + offset, into)

    def write(self, offset: int, data: memoryview) -> None:
        check_range(self, offset, len(data))
        check_writable(self, self._backing.writable)
        self._changing()
        self._backing.write(self._start + offset, data)

    def zero(self, offset: int, length: int) -> None:
        check_range(self, offset, length)
        check_writable(self, self._backing.writable)
        self._changing()
        self._backing.zero(self._start + offset, length)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        check_range(self, offset, length)
        return merged(self._runs(offset, length))

    def flush(self) -> None:
        self._backing.sync()

    def allocated_bytes(self) -> ByteCount:
        return ByteCount(min(self._backing.allocated_bytes(), self._size))

    def close(self) -> None:
        self._backing.close()

    def _changing(self) -> None:
        """Called before every write; formats with a change mark set it here."""

    def _runs(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        at, end = offset, offset + length
        for start, count in self._backing.data_runs(self._start + offset, length):
            found = start - self._start
            if found > at:
                yield at, found - at, False
            yield found, count, True
            at = found + count
        if at < end:
            yield at, end - at, False


def open_raw(backing: Backing, kind: Format) -> LinearDisk:
    """The whole file or device is the disk. Takes the backing over."""
    return LinearDisk(backing, kind, backing.size)


def create_raw(path: Path, kind: Format, size: int) -> LinearDisk:
    """A new, sparse file of `size` bytes, open and locked."""
    newborn = Newborn(path)
    try:
        newborn.backing.resize(size)
        return LinearDisk(newborn.publish(), kind, size)
    except BaseException:
        newborn.abandon()
        raise
