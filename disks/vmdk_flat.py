"""VMDK monolithicFlat and vmfs: a text descriptor and beside it one file that holds the disk from end to end.

Source: VMware, "Virtual Disk Format 5.0", "The Extent Description": hosted products call such an extent FLAT and give
an offset in it, ESXi calls it VMFS and gives none; thick and thin disks of ESXi differ in the file system only.
"""

import contextlib
import os
from pathlib import Path
from typing import Final

from disks.backing import Access, Backing
from disks.disk import Format
from disks.errors import ImageDamaged, OpenFailed, TargetExists
from disks.linear import LinearDisk
from disks.opening import Newborn, open_directory, open_extent
from disks.vmdk import Place, StoredDescriptor, check_size, new_descriptor
from disks.vmdk_layout import SECTOR, ExtentLine
from drcore.limits import DESCRIPTOR_BYTES_MAX, DISK_BYTES_MAX

EXTENTS: Final = {Format.VMDK_MONOLITHIC_FLAT: "FLAT", Format.VMDK_VMFS: "VMFS"}
"""What the descriptor calls the one extent."""
EXTENT_TEXTS: Final = {Format.VMDK_MONOLITHIC_FLAT: 'FLAT "{}" 0', Format.VMDK_VMFS: 'VMFS "{}"'}
"""Its line in a new descriptor, behind access and size."""


class FlatVmdk(LinearDisk):
    """The extent's bytes as a disk. Owns both files; the descriptor's lock keeps others off the pair."""

    def __init__(
        self, descriptor: Backing, stored: StoredDescriptor, extent: Backing, kind: Format, line: ExtentLine
    ) -> None:
        super().__init__(extent, kind, line.sectors * SECTOR, start=line.offset * SECTOR)
        self._descriptor = descriptor
        self._stored = stored

    @property
    def path(self) -> Path:
        return self._descriptor.path

    @property
    def disk_uuid(self) -> str | None:
        return self._stored.descriptor.disk_uuid

    @property
    def change_mark(self) -> str | None:
        return f"{self._stored.descriptor.cid:08x}"

    def close(self) -> None:
        super().close()
        self._descriptor.close()

    def _changing(self) -> None:
        self._stored.changing()


def open_flat(backing: Backing, kind: Format) -> FlatVmdk:
    """The descriptor in `backing` with its extent, opened and locked alike.

    Errors: ImageDamaged, FormatNotSupported, OpenFailed, DiskInUse.
    """
    if backing.size > DESCRIPTOR_BYTES_MAX:
        raise _damaged(backing, "the descriptor", f"{backing.size} bytes", f"at most {DESCRIPTOR_BYTES_MAX}")
    stored = StoredDescriptor(backing, Place(0, backing.size))
    line = _only_extent(backing, stored, EXTENTS[kind])
    directory = open_directory(backing.path)
    try:
        extent = open_extent(directory, line.name, backing.path, backing.access)
    finally:
        os.close(directory)
    if (line.offset + line.sectors) * SECTOR > extent.size:
        found = extent.size
        extent.close()
        wanted = f"{line.sectors} sectors from sector {line.offset} on, as its descriptor says"
        raise _damaged(extent, "the extent's length", f"{found} bytes", wanted)
    return FlatVmdk(backing, stored, extent, kind, line)


def create_flat(path: Path, kind: Format, size: int) -> FlatVmdk:
    """A new pair NAME.vmdk and NAME-flat.vmdk; the descriptor comes last, so that what has one is whole.

    An extent that a killed creation left (of the same size, without one allocated byte) is taken up.
    """
    check_size(kind, size, DISK_BYTES_MAX)
    name = f"{path.stem}-flat.vmdk"
    newborn = Newborn(path)
    extent: Backing | None = None
    made = False
    try:
        text = new_descriptor(path, kind, size, EXTENT_TEXTS[kind].format(name))
        newborn.backing.write(0, memoryview(text))
        extent, made = _create_extent(path, name, size)
        backing = newborn.publish()
        stored = StoredDescriptor(backing, Place(0, backing.size))
        stored.fresh()
        return FlatVmdk(backing, stored, extent, kind, stored.descriptor.extents[0])
    except BaseException:
        newborn.abandon()
        if extent is not None:
            if made:
                with contextlib.suppress(OSError):
                    extent.path.unlink()
            extent.close()
        raise


def _create_extent(path: Path, name: str, size: int) -> tuple[Backing, bool]:
    """(the extent, whether it was made now): False where a left-over is taken up."""
    final = path.parent / name
    try:
        newborn = Newborn(final)
    except TargetExists:
        return _adopt_extent(path, name, size), False
    try:
        newborn.backing.resize(size)
        return newborn.publish(), True
    except BaseException:
        newborn.abandon()
        raise


def _adopt_extent(path: Path, name: str, size: int) -> Backing:
    directory = open_directory(path)
    try:
        extent = open_extent(directory, name, path, Access.TARGET)
    except OpenFailed as error:
        raise TargetExists(path=str(path.parent / name)) from error
    finally:
        os.close(directory)
    if extent.size == size and not any(extent.data_runs(0, size)):
        return extent
    extent.close()
    raise TargetExists(path=str(extent.path))


def _only_extent(backing: Backing, stored: StoredDescriptor, kind: str) -> ExtentLine:
    extents = stored.descriptor.extents
    accesses = ("RW",) if backing.writable else ("RW", "RDONLY")
    if len(extents) != 1 or extents[0].kind != kind or extents[0].access not in accesses:
        seen = (
            f"{len(extents)} extents"
            if len(extents) != 1
            else f"one of kind {extents[0].access} {extents[0].kind}"
        )
        raise _damaged(backing, "the extent description", seen, f"one {accesses[-1]} {kind} extent")
    (line,) = extents
    if not 0 < line.sectors <= DISK_BYTES_MAX // SECTOR or line.offset > DISK_BYTES_MAX // SECTOR:
        seen = f"{line.sectors} sectors from {line.offset} on"
        raise _damaged(backing, "the extent description", seen, f"at most {DISK_BYTES_MAX // SECTOR} sectors")
    if not line.name or "/" in line.name or "\0" in line.name or line.name in (".", ".."):
        raise _damaged(
            backing, "the extent's name", repr(line.name), "a plain name in the descriptor's directory"
        )
    return line


def _damaged(backing: Backing, structure: str, seen: str, wanted: str) -> ImageDamaged:
    return ImageDamaged(path=str(backing.path), structure=structure, offset=0, seen=seen, wanted=wanted)
