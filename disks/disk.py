"""The one small verb set behind which every disk stands: read, write, zero, extents, flush."""

from collections.abc import Iterator
from enum import Enum
from typing import Final, Protocol

from drcore.record import Record
from drcore.units import ByteCount, ByteOffset


class Format(Enum):
    """How a disk's bytes lie in its file or device; the values are the names that users and scripts see."""

    RAW = "raw"
    VHD_FIXED = "vhd-fixed"
    VHD_DYNAMIC = "vhd-dynamic"
    VHD_DIFFERENCING = "vhd-differencing"
    VHDX_FIXED = "vhdx-fixed"
    VHDX_DYNAMIC = "vhdx-dynamic"
    VMDK_MONOLITHIC_SPARSE = "vmdk-monolithicSparse"
    VMDK_MONOLITHIC_FLAT = "vmdk-monolithicFlat"
    VMDK_VMFS = "vmdk-vmfs"
    VMDK_STREAM_OPTIMIZED = "vmdk-streamOptimized"
    VMDK_TWO_GB_SPARSE = "vmdk-twoGbMaxExtentSparse"
    VMDK_TWO_GB_FLAT = "vmdk-twoGbMaxExtentFlat"
    VMDK_VMFS_SPARSE = "vmdk-vmfsSparse"
    VMDK_SESPARSE = "vmdk-seSparse"
    QCOW2 = "qcow2"


CREATED: Final = (
    Format.RAW,
    Format.VHD_FIXED,
    Format.VHD_DYNAMIC,
    Format.VHDX_FIXED,
    Format.VHDX_DYNAMIC,
    Format.VMDK_MONOLITHIC_SPARSE,
    Format.VMDK_MONOLITHIC_FLAT,
    Format.VMDK_VMFS,
    Format.VMDK_TWO_GB_SPARSE,
    Format.VMDK_TWO_GB_FLAT,
)
"""What a new, empty disk can be made as."""


class ExtentKind(Enum):
    """What reading an extent brings."""

    DATA = "data"
    ZERO = "zero"
    """Reads as zeroes, known without reading."""


class Extent(Record):
    """A run of the virtual disk, in bytes."""

    offset: ByteOffset
    length: ByteCount
    kind: ExtentKind


class Disk(Protocol):
    """A virtual disk of `size` bytes.

    Offsets and lengths are those of the virtual disk and need no alignment. Every verb may be called from any
    thread; two that touch the same bytes at the same time are the caller's fault. Errors: `ReadFailed`,
    `WriteFailed`, `NoSpace`, `FlushFailed`; after `FlushFailed` every later verb but `close` fails too.
    """

    @property
    def format(self) -> Format:
        """The format of the file or device."""
        ...

    @property
    def size(self) -> ByteCount:
        """Bytes of the virtual disk."""
        ...

    @property
    def grain_size(self) -> ByteCount | None:
        """The unit of allocation in bytes; None where the format has none."""
        ...

    def read(self, offset: int, into: memoryview) -> None:
        """`into` (writable, contiguous bytes) holds the disk's content from `offset` on; holes read as zeroes."""
        ...

    def write(self, offset: int, data: memoryview) -> None:
        """A later read answers `data`; it is durable only after the next `flush`."""
        ...

    def zero(self, offset: int, length: int) -> None:
        """A later read answers zeroes; where the format and file system can, the space is given back."""
        ...

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """The range's extents, ascending, covering it exactly, no two neighbours of one kind; costs no data reads."""
        ...

    def flush(self) -> None:
        """Everything written or zeroed before the call is on stable storage, tables and all."""
        ...

    def allocated_bytes(self) -> ByteCount:
        """Bytes of the virtual disk that the format (raw and flat: the file system) keeps data for."""
        ...

    def close(self) -> None:
        """Descriptors and locks are given back; what was not flushed may or may not be there. Once is enough."""
        ...
