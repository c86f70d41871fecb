"""Whether a volume may hold the retention journal: the criteria R065 to R071, on facts that somebody else gathers."""

from dataclasses import dataclass
from typing import Final

from drcore.limits import RETENTION_BYTES_MIN
from masttarget.errors_retention import RetentionRefused

DEFAULT: Final = "/mnt/retention"
"""Where the volume is expected on Linux (R072); offered first, chosen by a person (R076)."""
_VOLATILE: Final = ("tmpfs", "ramfs", "rootfs", "overlay")
"""File systems of no disk of their own: memory, or a container's layer."""
_FAT: Final = ("vfat", "msdos", "fat", "fat32", "umsdos")


@dataclass(frozen=True, slots=True)
class Volume:
    """What is known of the file system that a directory lies on. Devices are those of stat(2)."""

    path: str
    mount_point: str
    kind: str
    device: int
    read_only: bool
    writable: bool
    capacity_bytes: int
    installation: int
    caches: tuple[int, ...]
    targets: tuple[int, ...]
    """The devices that target files lie on, and the target devices themselves."""
    root: str = "/"
    """The directory of the volume that is mounted there."""
    foreign: tuple[str, ...] = ()
    """Names in the directory that homeward did not make."""


def obstacles(volume: Volume) -> list[str]:
    """Every reason why the volume cannot be the retention volume, with its requirement; none when it can (R073)."""
    found = _absence(volume)
    if volume.device in volume.targets:
        found.append("it is used for something else: a replication target lies on it (R067)")
    if volume.foreign:
        found.append(f"it is used for something else: it holds {', '.join(volume.foreign)} (R067)")
    if volume.read_only or not volume.writable:
        found.append("it is locked: it cannot be written to (R068)")
    if volume.device in volume.caches:
        found.append("it is a cache volume: the master target's state lies on it (R069)")
    if volume.device == volume.installation:
        found.append("it is the installation volume (R069)")
    if volume.kind.lower() in _FAT:
        found.append(f"its file system is {volume.kind}, a FAT (R070)")
    if volume.capacity_bytes < RETENTION_BYTES_MIN:
        found.append(f"its capacity is {volume.capacity_bytes} bytes, below {RETENTION_BYTES_MIN} (R071)")
    return found


def _absence(volume: Volume) -> list[str]:
    """Every reason why this is no volume of its own at all; one that is not mounted is a directory of another one."""
    found = []
    if volume.mount_point == "/":
        found.append("it is the root file system, not a volume of its own (R065)")
    elif volume.path != volume.mount_point:
        found.append(f"it is a directory of the volume at {volume.mount_point}, not the volume itself (R065)")
    if volume.root != "/" and volume.kind != "btrfs":  # whose subvolumes are mounted like this
        found.append(f"it is {volume.root} of a volume, mounted once more, not the volume itself (R065)")
    if volume.kind.lower() in _VOLATILE:
        found.append(f"its file system is {volume.kind}: nothing of it outlives a restart (R065)")
    return found


def check(volume: Volume) -> None:
    """The volume can be the retention volume. Errors: `RetentionRefused` (HW-MT-038), with every reason."""
    _refuse(volume, obstacles(volume))


def check_mounted(volume: Volume) -> None:
    """A volume of its own is there, whatever became of it: for whoever reads from it. Errors: `RetentionRefused`."""
    _refuse(volume, _absence(volume))


def _refuse(volume: Volume, reasons: list[str]) -> None:
    if reasons:
        raise RetentionRefused(path=volume.path, reason="; ".join(reasons))
