"""Disks whose bytes lie in one run of a file or device: raw, and the frame for fixed VHD and flat VMDK."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from disks.backing import Backing
from disks.disk import Disk, Extent, Format
from disks.image import check_range, check_writable, merged
from disks.mapped import FileDisk
from disks.opening import Newborn
from drcore.units import ByteCount


class LinearDisk(FileDisk):
    """The `size` bytes of `backing` from `start` on. Owns the backing; holes are those of the file system."""

    def __init__(self, backing: Backing, kind: Format, size: int, *, start: int = 0) -> None:
        super().__init__(backing, kind, size)
        self._start = start

    def read(self, offset: int, into: memoryview) -> None:
        check_range(self, offset, len(into))
        self._backing.read(self._start + offset, into)

    def lend(self) -> tuple[int, int]:
        """A descriptor, and where in it the disk's first byte lies: for kernels that read by themselves, until `close`.

        What they cannot read is for `read` to say. Errors: `FlushFailed`, once a flush has failed.
        """
        return self._backing.lend(), self._start

    def write(self, offset: int, data: memoryview) -> None:
        check_range(self, offset, len(data))
        check_writable(self, self._backing.writable)
        self._changing()
        self._backing.write(self._start + offset, data)

    def write_blocks(self, offset: int, blocks: Sequence[memoryview]) -> None:
        """As `write`, of blocks that lie apart in memory and one behind the other on the disk."""
        check_range(self, offset, sum(map(len, blocks)))
        check_writable(self, self._backing.writable)
        self._changing()
        self._backing.write_blocks(self._start + offset, blocks)

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

    def _changing(self) -> None:
        """Called before every write; formats with a change mark set it here."""

    def _runs(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        for start, count, data in self._backing.runs(self._start + offset, length):
            yield start - self._start, count, data


def lent(disk: Disk) -> tuple[int, int] | None:
    """As `LinearDisk.lend`; None where a disk's bytes do not lie in one run."""
    return disk.lend() if isinstance(disk, LinearDisk) else None


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
