"""Who else uses a disk: mounts, holders above it, loop devices over a file, locks.

A device is used through itself, its partitions, and what device-mapper or md built on top of any of them; a file
through every loop device that it backs. Sources: proc(5) (mountinfo), Linux' Documentation/ABI for /sys/dev/block.
"""

import errno
import fcntl
import os
import re
import stat
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from disks.errors import DiskInUse, OpenFailed
from drcore.limits import DEVICE_LOCK_SECONDS_MAX
from drcore.record import Record

BLKROGET: Final = 0x125E
"""linux/fs.h: whether a block device is read-only."""
QEMU_WRITES: Final = 101
"""qemu, block/file-posix.c: RAW_LOCK_PERM_BASE (100) and the bit of BLK_PERM_WRITE (1)."""
_POLL_SECONDS: Final = 0.05


class Mount(Record):
    """A mounted file system and the block device under it."""

    device: int
    point: str
    writable: bool


def refuse_used_source(descriptor: int, path: Path) -> None:
    """No file system on the source is mounted read-write; raises DiskInUse otherwise.

    A read-only mount is no obstacle: nothing moves under the reader.
    """
    devices = set(_devices(os.fstat(descriptor)))
    for mount in _mounts():
        if mount.writable and mount.device in devices:
            raise DiskInUse(
                path=str(path), holder=f"it is mounted read-write at {mount.point}", verb="writes"
            )


def refuse_used_target(descriptor: int, path: Path) -> None:
    """Nobody mounts the target, read-only mounts included, and no loop device shows it; raises DiskInUse otherwise.

    A loop device over the file counts even when idle: its cache would not see what is written to the file.
    """
    status = os.fstat(descriptor)
    devices = set(_devices(status))
    for mount in _mounts():
        if mount.device in devices:
            raise DiskInUse(path=str(path), holder=f"it is mounted at {mount.point}", verb="mounts")
    if not stat.S_ISBLK(status.st_mode) and devices:
        raise DiskInUse(path=str(path), holder="a loop device shows it (losetup -a)", verb="has attached")


def are_one(one: Path, other: Path) -> bool:
    """Whether bytes of the one are bytes of the other: one file or device, a loop device over it, a partition in it.

    Raises OSError where one of them is not there.
    """
    first, second = one.stat(), other.stat()
    same = (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)
    return same or not set(_devices(first)).isdisjoint(_devices(second))


def refuse_read_only(descriptor: int, path: Path) -> None:
    """The device takes writes, or OpenFailed. The kernel lets a read-only device be opened for writing."""
    if not stat.S_ISBLK(os.fstat(descriptor).st_mode):
        return
    if int.from_bytes(fcntl.ioctl(descriptor, BLKROGET, bytes(4)), sys.byteorder):
        raise OpenFailed(path=str(path), reason="the device is set read-only (blockdev --getro)")


def lock(descriptor: int, path: Path, *, exclusive: bool) -> None:
    """Locks of both kinds, open-file-description and flock(2), cover the file until it is closed; raises DiskInUse.

    Linux keeps the two kinds apart, and other programs use either. Both end with the last duplicate of the
    descriptor, so a killed process leaves none. Those of the first kind (fcntl(2)) meet those of qemu, which locks
    bytes 100 to 203 of its images. All of qemu's are shared locks: who may write holds one on byte 101. A reader
    leaves that byte out and looks whether anybody has it.
    """
    try:
        if exclusive:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _request(fcntl.F_WRLCK, 0, 0))
            _flock(descriptor, path, fcntl.LOCK_EX)
            return
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _request(fcntl.F_RDLCK, 0, QEMU_WRITES))
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _request(fcntl.F_RDLCK, QEMU_WRITES + 1, 0))
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _request(fcntl.F_WRLCK, QEMU_WRITES, 1))
        if struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK:
            raise DiskInUse(
                path=str(path), holder="a qemu that may write has it open (lslocks)", verb="writes"
            )
        _flock(descriptor, path, fcntl.LOCK_SH)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            held = "locked by another process (lslocks, or qemu or homeward with this disk)"
            raise DiskInUse(path=str(path), holder=held, verb="has locked") from error
        raise OpenFailed(
            path=str(path), reason=f"its file system takes no locks: {error.strerror}"
        ) from error


def _flock(descriptor: int, path: Path, kind: int) -> None:
    """The lock of flock(2) is ours too; raises DiskInUse. It ends like the other kind, and with a killed process.

    On a device it is waited for a moment: udev takes it while it looks at a device that somebody has just closed
    (systemd, "Locking Block Device Access"). Where a file system has no such locks nobody can hold one.
    """
    patient = stat.S_ISBLK(os.fstat(descriptor).st_mode)
    deadline = time.monotonic() + (DEVICE_LOCK_SECONDS_MAX if patient else 0)
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                held = "locked with flock by another process (lslocks)"
                raise DiskInUse(path=str(path), holder=held, verb="has locked") from error
        except OSError:
            return
        time.sleep(_POLL_SECONDS)


def _request(kind: int, start: int, length: int) -> bytes:
    """struct flock of x86-64 and arm64 Linux; a length of 0 means to the end, however far it grows."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)


def _devices(status: os.stat_result) -> Iterator[int]:
    """The numbers of all block devices through which the file or device may be mounted."""
    if stat.S_ISBLK(status.st_mode):
        yield from _above(status.st_rdev, set())
        return
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            shown = Path(os.fsdecode(backing.read_bytes()).rstrip("\n")).stat()
            numbers = (backing.parent.parent / "dev").read_text()
        except OSError:
            continue  # detached or renamed under our eyes; a file of another name space cannot be seen from here
        if (shown.st_dev, shown.st_ino) == (status.st_dev, status.st_ino):
            yield from _above(_number(numbers), set())


def _above(device: int, seen: set[int]) -> Iterator[int]:
    """The device, its partitions, and whatever holds any of them."""
    if device in seen:
        return
    seen.add(device)
    yield device
    folder = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    try:
        parts = [entry for entry in folder.iterdir() if (entry / "partition").exists()]
        holders = list((folder / "holders").iterdir())
    except OSError:
        return
    for entry in (*parts, *holders):
        try:
            number = _number((entry / "dev").read_text())
        except OSError:
            continue
        yield from _above(number, seen)


def _mounts() -> Iterator[Mount]:
    """What this process sees mounted; a file system that hides its device (btrfs) is found by its mount source."""
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields, tail = left.split(" "), right.split(" ")
        if len(fields) < 6 or len(tail) < 3:
            continue
        point = _unescape(fields[4])
        # The superblock's options decide: a read-only view of a writable file system does not stop its writers.
        writable = "rw" in tail[2].split(",")
        yield Mount(_number(fields[2]), point, writable)
        source = _unescape(tail[1])
        if source.startswith("/"):
            try:
                status = Path(source).stat()
            except (OSError, ValueError):
                continue
            if stat.S_ISBLK(status.st_mode):
                yield Mount(status.st_rdev, point, writable)


def _number(text: str) -> int:
    major, _, minor = text.strip().partition(":")
    return os.makedev(int(major), int(minor))


def _unescape(field: str) -> str:
    """proc(5): space, tab, newline and backslash stand as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found.group(1), 8)), field)
