"""Whether a volume may hold the retention journal: the criteria R065 to R071, on facts that somebody else gathers."""

from dataclasses import dataclass
from typing import Final

from masttarget.errors_retention import RetentionRefused

DEFAULT: Final = "/mnt/retention"
"""Where the volume is expected on Linux (R072); offered first, chosen by a person (R076)."""
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


def obstacles(volume: Volume) -> list[str]:
    """Every reason why the volume cannot be the retention volume, with its requirement; none when it can (R073)."""
    found = []
    if volume.mount_point == "/":
        found.append("it is the root file system, not a volume of its own (R065)")
    if volume.device in volume.targets:
        found.append("it is used for something else: a replication target lies on it (R067)")
    if volume.read_only or not volume.writable:
        found.append("it is locked: it cannot be written to (R068)")
    if volume.device in volume.caches:
        found.append("it is a cache volume: the master target's state lies on it (R069)")
    if volume.device == volume.installation:
        found.append("it is the installation volume (R069)")
    if volume.kind.lower() in _FAT:
        found.append(f"its file system is {volume.kind}, a FAT (R070)")
    if volume.capacity_bytes == 0:
        found.append("its capacity is zero (R071)")
    return found


def check(volume: Volume) -> None:
    """The volume can be the retention volume. Errors: `RetentionRefused` (HW-MT-038), with every reason."""
    found = obstacles(volume)
    if found:
        raise RetentionRefused(path=volume.path, reason="; ".join(found))
