"""The files that a VMDK's descriptor names: opened on its word only where they are plain files beside it.

Source: VMware, "Virtual Disk Format 5.0", "The Extent Description". The formats allow more (paths, devices); a
descriptor is outside data, and what it names is opened and written with our rights.
"""

import contextlib
import os
import resource
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from disks.backing import Access, Backing
from disks.errors import ImageDamaged, OpenFailed, TargetExists
from disks.errors_vmdk import ExtentRefused
from disks.opening import Newborn, open_directory, open_extent
from disks.vmdk_layout import SECTOR, Descriptor, ExtentLine
from drcore.limits import DISK_BYTES_MAX, VMDK_EXTENTS_MAX

DESCRIPTORS_SPARED = 256
"""Open files that the rest of a role needs beside a disk's extents."""


def check_lines(descriptor: Path, told: Descriptor, kinds: Sequence[str], *, writable: bool) -> None:
    """The descriptor's extents are of these kinds, may be used so, and make a disk. Errors: ImageDamaged."""

    def refuse(seen: str, wanted: str) -> ImageDamaged:
        return ImageDamaged(
            path=str(descriptor), structure="the extent description", offset=0, seen=seen, wanted=wanted
        )

    accesses = ("RW",) if writable else ("RW", "RDONLY")
    if not 1 <= len(told.extents) <= VMDK_EXTENTS_MAX:
        raise refuse(f"{len(told.extents)} extents", f"1 to {VMDK_EXTENTS_MAX}")
    for line in told.extents:
        if line.kind not in kinds or line.access not in accesses:
            wanted = f"{' or '.join(accesses)} extents of kind {' or '.join(kinds)}"
            raise refuse(f"one of kind {line.access} {line.kind}", wanted)
        if not 0 < line.sectors <= DISK_BYTES_MAX // SECTOR or line.offset > DISK_BYTES_MAX // SECTOR:
            seen = f"{line.sectors} sectors from {line.offset} on"
            raise refuse(seen, f"1 to {DISK_BYTES_MAX // SECTOR} sectors")
    total = sum(line.sectors for line in told.extents)
    if total > DISK_BYTES_MAX // SECTOR:
        raise refuse(f"{total} sectors in all", f"at most {DISK_BYTES_MAX // SECTOR}")


def open_named(descriptor: Path, name: str, access: Access) -> Backing:
    """The plain file `name` beside `descriptor` is open, locked and guarded.

    Errors: ExtentRefused (no plain file in that directory), OpenFailed (missing, unreadable), DiskInUse.
    """
    reason = _not_plain(name)
    if reason:
        raise ExtentRefused(path=str(descriptor), name=name, reason=reason)
    directory = open_directory(descriptor)
    try:
        reason = _not_a_file(directory, name)
        if reason:
            raise ExtentRefused(path=str(descriptor), name=name, reason=reason)
        return open_extent(directory, name, descriptor, access)
    finally:
        os.close(directory)


def open_all(
    backing: Backing, lines: Sequence[ExtentLine], opened: Callable[[Backing, ExtentLine], None]
) -> None:
    """Every extent's file is open, in order, handed to `opened`, which owns it; no file is there twice.

    Errors: as `open_named`; ImageDamaged where two lines, or a line and the descriptor, name one file.
    """
    _allow_open_files(len(lines))
    seen = {identity_of(backing): backing.path.name}
    for line in lines:
        extent = open_named(backing.path, line.name, backing.access)
        named = identity_of(extent)
        if named in seen:
            extent.close()
            found = f"{line.name}, which is {seen[named]} as well"
            raise backing.damaged("the extent description", 0, found, "a file for each extent")
        seen[named] = line.name
        opened(extent, line)


def create_extent(
    path: Path, fill: Callable[[Backing], None], whole: Callable[[Backing], bool]
) -> tuple[Backing, bool]:
    """(the new file `path` with what `fill` writes, durable and locked; whether it was made now).

    False where what a killed creation left is taken up: `whole` tells of an existing file whether it is that.
    Errors: TargetExists, NoSpace, OpenFailed.
    """
    try:
        newborn = Newborn(path)
    except TargetExists:
        return _adopt(path, whole), False
    try:
        fill(newborn.backing)
        return newborn.publish(), True
    except BaseException:
        newborn.abandon()
        raise


def create_flat_extent(path: Path, size: int) -> tuple[Backing, bool]:
    """A new, sparse file of `size` bytes; as `create_extent`."""

    def whole(left: Backing) -> bool:
        return left.size == size and not any(left.data_runs(0, size))

    return create_extent(path, lambda backing: backing.resize(size), whole)


def check_length(extent: Backing, line: ExtentLine) -> None:
    """A flat extent is as long as its line says; closed, and ImageDamaged raised, otherwise."""
    if (line.offset + line.sectors) * SECTOR > extent.size:
        extent.close()
        wanted = f"{line.sectors} sectors from sector {line.offset} on, as its descriptor says"
        raise extent.damaged("the extent's length", 0, f"{extent.size} bytes", wanted)


def undo(backing: Backing, made: bool) -> None:
    """What `create_extent` answered is closed, and gone again if it was made now."""
    if made:
        with contextlib.suppress(OSError):
            backing.path.unlink()
    backing.close()


def _adopt(path: Path, whole: Callable[[Backing], bool]) -> Backing:
    try:
        extent = open_named(path, path.name, Access.TARGET)
    except (OpenFailed, ExtentRefused) as error:
        raise TargetExists(path=str(path)) from error
    if whole(extent):
        return extent
    extent.close()
    raise TargetExists(path=str(path))


def identity_of(backing: Backing) -> tuple[int, int]:
    """What tells two names of one file from two files."""
    status = os.fstat(backing.descriptor)
    return status.st_dev, status.st_ino


def _not_plain(name: str) -> str:
    """Why the name is none of a file in the same directory; empty where it is one."""
    if not name or "\0" in name or name in (".", ".."):
        return "no file's name"
    if name.startswith("/"):
        return "an absolute path"
    if name.split("/")[0] == ".." or "/../" in name:
        return "a path that leads upwards"
    if "/" in name:
        return "a path into another directory"
    if "\\" in name:
        return "a path of Windows"
    return ""


def _not_a_file(directory: int, name: str) -> str:
    """What stands under the name instead of a plain file; empty for a plain file, and where nothing does."""
    try:
        mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    except (OSError, ValueError):
        return ""  # opening it says what is wrong
    words = {
        stat.S_IFLNK: "a link",
        stat.S_IFDIR: "a directory",
        stat.S_IFBLK: "a device",
        stat.S_IFCHR: "a device",
    }
    return "" if stat.S_ISREG(mode) else words.get(stat.S_IFMT(mode), "no regular file")


def _allow_open_files(count: int) -> None:
    """The process may open so many more files, as far as the administrator's hard limit goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * count + DESCRIPTORS_SPARED
    if soft != resource.RLIM_INFINITY and soft < needed:
        wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        if wanted > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
