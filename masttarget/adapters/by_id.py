"""Disks of this machine by their VMware disk UUID, as udev names them.

With `disk.EnableUUID` the virtual SCSI disk answers an inquiry for its identity (page 0x83) with the UUID as an NAA
number; udev's rules make `wwn-0x6000c29…` and `scsi-36000c29…` of it (systemd, 60-persistent-storage.rules). Names of
partitions end in `-partN` and are never taken for a disk.
"""

import os
import re
import stat
from pathlib import Path
from typing import Final

from masttarget.errors import DiskNotAttached, DiskUuidAmbiguous

BY_ID: Final = Path("/dev/disk/by-id")
_NAME: Final = r"(?i)(?:wwn-0x|scsi-3)([0-9a-f]{32})"


def device_of(disk_uuid: str, directory: Path = BY_ID) -> Path:
    """The one block device (links followed) that udev shows under the UUID (32 hexadecimal digits), as of now.

    Errors: `DiskNotAttached` (HW-MT-049) where none is, `DiskUuidAmbiguous` (050) where there are several: the two
    names that udev gives to one disk have to lead to the same device.
    """
    found: dict[Path, list[str]] = {}
    broken: list[str] = []
    for name in _names(directory):
        told = re.fullmatch(_NAME, name)
        if told is None or told[1].lower() != disk_uuid:
            continue
        device = Path(os.path.realpath(directory / name))
        if _is_device(device):
            found.setdefault(device, []).append(name)
        else:
            broken.append(f"{name}, which leads to {device}: no block device")
    if len(found) > 1:
        words = "; ".join(f"{device} ({', '.join(names)})" for device, names in sorted(found.items()))
        raise DiskUuidAmbiguous(disk_uuid=disk_uuid, directory=str(directory), devices=words)
    if (
        broken or not found
    ):  # a name that leads elsewhere is a disk that comes or goes: wait until udev is done
        words = "; ".join(broken) or "no disk of that UUID"
        raise DiskNotAttached(disk_uuid=disk_uuid, directory=str(directory), reason=words)
    return next(iter(found))


def _names(directory: Path) -> list[str]:
    try:
        return sorted(path.name for path in directory.iterdir())
    except FileNotFoundError:
        return []  # udev makes it with the first disk that has a name


def _is_device(path: Path) -> bool:
    try:
        return stat.S_ISBLK(path.stat().st_mode)
    except OSError:
        return False
