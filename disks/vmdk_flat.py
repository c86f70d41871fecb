"""VMDK monolithicFlat and vmfs: a text descriptor and beside it one file that holds the disk from end to end.

Source: VMware, "Virtual Disk Format 5.0", "The Extent Description": hosted products call such an extent FLAT and give
an offset in it, ESXi calls it VMFS and gives none; thick and thin disks of ESXi differ in the file system only.
"""

from pathlib import Path
from typing import Final

from disks.backing import Backing
from disks.disk import Format
from disks.linear import LinearDisk
from disks.opening import Newborn
from disks.vmdk import Described, Place, StoredDescriptor, check_size, new_descriptor
from disks.vmdk_extents import check_length, check_lines, create_flat_extent, open_named, undo
from disks.vmdk_layout import SECTOR, ExtentLine
from drcore.limits import DISK_BYTES_MAX

EXTENTS: Final = {Format.VMDK_MONOLITHIC_FLAT: "FLAT", Format.VMDK_VMFS: "VMFS"}
"""What the descriptor calls the one extent."""
EXTENT_TEXTS: Final = {Format.VMDK_MONOLITHIC_FLAT: 'FLAT "{}" 0', Format.VMDK_VMFS: 'VMFS "{}"'}
"""Its line in a new descriptor, behind access and size."""


class FlatVmdk(Described, LinearDisk):
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
    def files(self) -> tuple[Path, ...]:
        return (self._descriptor.path, self._backing.path)

    def close(self) -> None:
        super().close()
        self._descriptor.close()


def open_flat(backing: Backing, kind: Format) -> FlatVmdk:
    """The descriptor in `backing` with its extent, opened and locked alike.

    Errors: ImageDamaged, ExtentRefused, OpenFailed, DiskInUse.
    """
    stored = StoredDescriptor(backing, Place(0, backing.size))
    told = stored.descriptor
    check_lines(backing.path, told, (EXTENTS[kind],), writable=backing.writable)
    if len(told.extents) != 1:
        raise backing.damaged(
            "the extent description", 0, f"{len(told.extents)} extents", f"one {EXTENTS[kind]} extent"
        )
    (line,) = told.extents
    extent = open_named(backing.path, line.name, backing.access)
    check_length(extent, line)
    return FlatVmdk(backing, stored, extent, kind, line)


def create_flat(path: Path, kind: Format, size: int) -> FlatVmdk:
    """A new pair NAME.vmdk and NAME-flat.vmdk; the descriptor comes last, so that what has one is whole.

    An extent that a killed creation left (of the same size, without one allocated byte) is taken up.
    """
    check_size(kind, size, DISK_BYTES_MAX)
    name = f"{path.stem}-flat.vmdk"
    newborn = Newborn(path)
    extent: tuple[Backing, bool] | None = None
    try:
        text = new_descriptor(path, kind, size, EXTENT_TEXTS[kind].format(name))
        newborn.backing.write(0, memoryview(text))
        extent = create_flat_extent(path.parent / name, size)
        backing = newborn.publish()
        stored = StoredDescriptor(backing, Place(0, backing.size))
        stored.fresh()
        return FlatVmdk(backing, stored, extent[0], kind, stored.descriptor.extents[0])
    except BaseException:
        newborn.abandon()
        if extent is not None:
            undo(*extent)
        raise
