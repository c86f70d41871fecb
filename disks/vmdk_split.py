"""VMDK twoGbMaxExtentSparse and twoGbMaxExtentFlat: a text descriptor and beside it files of 2047 MiB at most.

Source: VMware, "Virtual Disk Format 5.0", "The Extent Description" and "Hosted Sparse Extents". The extents are those
of monolithicSparse (without a descriptor inside) and monolithicFlat; what those modules say of the order of writes
holds for each of them, and the descriptor's CID changes before the first byte of any.
"""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from disks import vmdk_layout
from disks.backing import Backing
from disks.disk import Extent, ExtentKind, Format
from disks.errors import FormatNotSupported
from disks.image import Image, check_range, check_writable, merged
from disks.layout import Malformed
from disks.linear import LinearDisk
from disks.opening import Newborn
from disks.recognise import FORMATS
from disks.structures import damaged
from disks.vmdk import Described, Place, StoredDescriptor, check_size, new_descriptor_of
from disks.vmdk_extents import check_length, check_lines, create_extent, create_flat_extent, open_all, undo
from disks.vmdk_layout import SECTOR, ExtentLine
from disks.vmdk_sparse import SparseVmdk
from drcore.limits import VMDK_EXTENTS_MAX
from drcore.units import ByteCount

EXTENT_SECTORS: Final = 4192256
"""2047 MiB: what VMware puts into one file, so that it stays below 2 GiB with its tables."""
SIZE_MAX: Final = VMDK_EXTENTS_MAX * EXTENT_SECTORS * SECTOR
KINDS: Final = {Format.VMDK_TWO_GB_SPARSE: ("SPARSE",), Format.VMDK_TWO_GB_FLAT: ("FLAT",)}
"""What the descriptor calls the extents."""
NAMES: Final = {Format.VMDK_TWO_GB_SPARSE: "{}-s{:03d}.vmdk", Format.VMDK_TWO_GB_FLAT: "{}-f{:03d}.vmdk"}


class FlatPart(Described, LinearDisk):
    """A flat extent; the descriptor's CID changes before its first byte does."""

    def __init__(self, extent: Backing, kind: Format, line: ExtentLine, stored: StoredDescriptor) -> None:
        super().__init__(extent, kind, line.sectors * SECTOR, start=line.offset * SECTOR)
        self._stored = stored


class SplitVmdk(Described):
    """The extents one behind the other as a disk. Owns all files; the descriptor's lock keeps others off them."""

    def __init__(
        self, descriptor: Backing, kind: Format, stored: StoredDescriptor, parts: list[Image]
    ) -> None:
        self._descriptor = descriptor
        self._format = kind
        self._stored = stored
        self._parts = parts
        self._starts = [0]
        for part in parts:
            self._starts.append(self._starts[-1] + part.size)
        self._changed: set[int] = set()
        self._lock = threading.Lock()

    @property
    def format(self) -> Format:
        return self._format

    @property
    def size(self) -> ByteCount:
        return ByteCount(self._starts[-1])

    @property
    def grain_size(self) -> ByteCount | None:
        return self._parts[0].grain_size

    @property
    def path(self) -> Path:
        return self._descriptor.path

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path, *(file for part in self._parts for file in part.files))

    def read(self, offset: int, into: memoryview) -> None:
        check_range(self, offset, len(into))
        for number, inside, start, length in self._pieces(offset, len(into)):
            self._parts[number].read(inside, into[start : start + length])

    def write(self, offset: int, data: memoryview) -> None:
        check_range(self, offset, len(data))
        check_writable(self, self._descriptor.writable)
        for number, inside, start, length in self._pieces(offset, len(data)):
            self._change(number)
            self._parts[number].write(inside, data[start : start + length])

    def zero(self, offset: int, length: int) -> None:
        check_range(self, offset, length)
        check_writable(self, self._descriptor.writable)
        for number, inside, _, part in self._pieces(offset, length):
            self._change(number)
            self._parts[number].zero(inside, part)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        check_range(self, offset, length)
        return merged(self._extents(offset, length))

    def flush(self) -> None:
        with self._lock:
            changed, self._changed = self._changed, set()
        try:
            for number in sorted(changed):
                self._parts[number].flush()
        except BaseException:
            with self._lock:
                self._changed |= changed
            raise

    def allocated_bytes(self) -> ByteCount:
        return ByteCount(sum(part.allocated_bytes() for part in self._parts))

    def close(self) -> None:
        for part in self._parts:
            part.close()
        self._descriptor.close()

    def _change(self, number: int) -> None:
        with self._lock:
            self._changed.add(number)

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, int, int, int]]:
        """(extent, offset in it, offset in the range, length) covering the range."""
        at, end = offset, offset + length
        number = self._part_of(offset)
        while at < end:
            stop = min(end, self._starts[number + 1])
            yield number, at - self._starts[number], at - offset, stop - at
            at, number = stop, number + 1

    def _part_of(self, offset: int) -> int:
        low, high = 0, len(self._parts) - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._starts[middle] <= offset else (low, middle - 1)
        return low

    def _extents(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        for number, inside, _, part in self._pieces(offset, length):
            for extent in self._parts[number].extents(inside, part):
                yield self._starts[number] + extent.offset, extent.length, extent.kind is ExtentKind.DATA


def open_split(backing: Backing, kind: Format) -> SplitVmdk:
    """The descriptor in `backing` with its extents, opened and locked alike.

    Errors: ImageDamaged, FormatNotSupported, ExtentRefused, OpenFailed, DiskInUse.
    """
    stored = StoredDescriptor(backing, Place(0, backing.size))
    check_lines(backing.path, stored.descriptor, KINDS[kind], writable=backing.writable)
    parts: list[Image] = []
    try:
        open_all(
            backing,
            stored.descriptor.extents,
            lambda each, line: parts.append(_part(each, kind, line, stored)),
        )
        return SplitVmdk(backing, kind, stored, parts)
    except BaseException:
        for part in parts:
            part.close()
        raise


def create_split(path: Path, kind: Format, size: int) -> SplitVmdk:
    """A new descriptor and its extents; it comes last, so that what has one is whole.

    Extents that a killed creation left (as they were made, without one byte of data) are taken up.
    """
    check_size(kind, size, SIZE_MAX)
    lines = list(_plan(path, kind, size // SECTOR))
    newborn = Newborn(path)
    extents: list[tuple[Backing, bool]] = []
    try:
        text = new_descriptor_of(path, kind, size, [_words(line) for line in lines])
        newborn.backing.write(0, memoryview(text))
        for line in lines:
            extents.append(_create_part(path.parent / line.name, kind, line.sectors))
        backing = newborn.publish()
        stored = StoredDescriptor(backing, Place(0, backing.size))
        stored.fresh()
        parts = [_part(each, kind, line, stored) for (each, _), line in zip(extents, lines, strict=True)]
        return SplitVmdk(backing, kind, stored, parts)
    except BaseException:
        newborn.abandon()
        for extent in extents:
            undo(*extent)
        raise


def _part(extent: Backing, kind: Format, line: ExtentLine, stored: StoredDescriptor) -> Image:
    if kind is Format.VMDK_TWO_GB_FLAT:
        check_length(extent, line)
        return FlatPart(extent, kind, line, stored)
    try:
        header = _sparse_header(extent, line)
        return SparseVmdk(extent, kind, header, stored)
    except BaseException:
        extent.close()
        raise


def _sparse_header(extent: Backing, line: ExtentLine) -> vmdk_layout.SparseHeader:
    try:
        header = vmdk_layout.decode_header(
            extent.read_bytes(0, min(extent.size, vmdk_layout.HEADER_BYTES)).ljust(512, b"\0")
        )
    except Malformed as error:
        raise damaged(extent, error) from error
    if header.stream or (extent.writable and header.version > 2):
        seen = "a compressed extent" if header.stream else f"an extent of version {header.version}"
        raise FormatNotSupported(path=str(extent.path), seen=seen, choices=FORMATS)
    if header.capacity != line.sectors:
        wanted = f"{line.sectors}, as the descriptor says"
        raise extent.damaged("the capacity", 12, f"{header.capacity} sectors", wanted)
    return header


def _plan(path: Path, kind: Format, sectors: int) -> Iterator[ExtentLine]:
    number = 0
    while sectors:
        number += 1
        part = min(sectors, EXTENT_SECTORS)
        yield ExtentLine("RW", part, KINDS[kind][0], NAMES[kind].format(path.stem, number), 0)
        sectors -= part


def _words(line: ExtentLine) -> str:
    return f'RW {line.sectors} {line.kind} "{line.name}"' + (" 0" if line.kind == "FLAT" else "")


def _create_part(path: Path, kind: Format, sectors: int) -> tuple[Backing, bool]:
    if kind is Format.VMDK_TWO_GB_FLAT:
        size = sectors * SECTOR
        return create_flat_extent(path, size)
    header = replace(vmdk_layout.plan_sparse(sectors), descriptor_offset=0, descriptor_size=0)
    pieces = [(0, vmdk_layout.encode_header(header))]
    for directory in (header.redundant_directory, header.directory):
        pieces.append((directory * SECTOR, vmdk_layout.plan_directory(header, directory)))

    def fill(backing: Backing) -> None:
        backing.resize(header.overhead * SECTOR)
        for offset, raw in pieces:
            backing.write(offset, memoryview(raw))

    def whole(left: Backing) -> bool:
        if left.size != header.overhead * SECTOR:
            return False
        expected = bytearray(left.size)
        for offset, raw in pieces:
            expected[offset : offset + len(raw)] = raw
        return left.read_bytes(0, left.size) == expected

    return create_extent(path, fill, whole)
