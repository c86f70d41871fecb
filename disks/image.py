"""What every disk of this room has beside the verbs: its files, its UUID, its change mark; and runs of a file."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from disks.disk import Disk, Extent, ExtentKind
from disks.errors import DiskReadOnly, OutsideDisk
from drcore.units import ByteCount, ByteOffset


@runtime_checkable
class Image(Disk, Protocol):
    """A disk that knows where it lies and who it is. `catalogue` answers these."""

    @property
    def path(self) -> Path:
        """The absolute path of the file or device; of a descriptor and its extents: the descriptor's."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file or device that the disk consists of, `path` first: extents and parents too; none of a blob."""
        ...

    @property
    def disk_uuid(self) -> str | None:
        """VMware's disk UUID (`ddb.uuid`): 32 lower-case hex digits, or None."""
        ...

    @property
    def change_mark(self) -> str | None:
        """What the format itself changes with the first write after an opening (VMDK: the CID), or None."""
        ...


class Run(NamedTuple):
    """A run of the virtual disk: where its bytes lie in the file, or None where they are known to be zeroes."""

    offset: int
    length: int
    at: int | None


class Bounded(Protocol):
    """What has a name and an end."""

    @property
    def path(self) -> Path: ...

    @property
    def size(self) -> ByteCount: ...


def check_range(disk: Bounded, offset: int, length: int) -> None:
    """The range lies within the disk; raises OutsideDisk otherwise."""
    if offset < 0 or length < 0 or offset + length > disk.size:
        raise OutsideDisk(path=str(disk.path), offset=offset, length=length, size=disk.size)


def check_writable(disk: Image, writable: bool) -> None:
    """The disk was opened as a target; raises DiskReadOnly otherwise."""
    if not writable:
        raise DiskReadOnly(path=str(disk.path))


def merged(extents: Iterable[tuple[int, int, bool]]) -> Iterator[Extent]:
    """Extents in which no two neighbours are of one kind, from ascending (offset, length, whether data) runs."""
    start, end, kind = 0, 0, False
    for offset, length, data in extents:
        if end > start and data == kind:
            end = offset + length
            continue
        if end > start:
            yield _extent(start, end - start, kind)
        start, end, kind = offset, offset + length, data
    if end > start:
        yield _extent(start, end - start, kind)


def _extent(offset: int, length: int, data: bool) -> Extent:
    return Extent(ByteOffset(offset), ByteCount(length), ExtentKind.DATA if data else ExtentKind.ZERO)
