"""The facts about volumes of this machine: proc(5) mountinfo, statvfs(3)."""

import fcntl
import os
import re
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from masttarget.adapters.retention_files import failing
from masttarget.config import MasttargetConfig
from masttarget.errors_retention import RetentionBusy, RetentionRefused
from masttarget.volume import Volume

SERVING: Final = "serving"
"""Of each item that a master target serves an empty file, which it has locked."""
_OURS: Final = re.compile(rf"[0-9a-f]{{32}}|groups|gone|{SERVING}|lost\+found")
"""What may lie on a retention volume; the last is the file system's own."""
_NAMES_MAX: Final = 5
_OF_THE_KERNEL: Final = ("proc", "sysfs", "devtmpfs", "cgroup2", "devpts", "mqueue")
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")
"""A blank, a tabulator, a line's end or a backslash in a mount point."""


def volume_of(path: Path, config: MasttargetConfig) -> Volume:
    """The volume that the directory lies on. Errors: `RetentionRefused` (HW-MT-038) where there is no directory."""
    if not path.is_dir():
        raise RetentionRefused(path=str(path), reason="no directory is there: nothing is mounted (R065)")
    status = path.stat()
    room = os.statvfs(path)
    mount_point, kind, root = _mounted(path)
    return Volume(
        path=os.path.realpath(path),
        mount_point=mount_point,
        kind=kind,
        root=root,
        device=status.st_dev,
        read_only=bool(room.f_flag & os.ST_RDONLY),
        writable=os.access(path, os.W_OK),
        capacity_bytes=room.f_blocks * room.f_frsize,
        installation=Path(__file__).stat().st_dev,
        caches=(_existing(config.state_directory).stat().st_dev,),
        # A disk that is found by its UUID may come later; it is a whole device, and held exclusively when opened.
        targets=tuple(_target_device(disk.path) for disk in config.disks if not disk.disk_uuid),
        foreign=tuple(
            sorted(one.name for one in path.iterdir() if not _OURS.fullmatch(one.name))[:_NAMES_MAX]
        ),
    )


def claim(path: Path, items: Iterable[bytes]) -> Callable[[], None]:
    """No other master target serves one of the items from this volume until the answer is called.

    Errors: `RetentionBusy` (HW-MT-045), `RetentionFailed` (037).
    """
    with ExitStack() as stack:
        for item in sorted(items):
            place = path / SERVING / item.hex()
            with failing(path):
                place.parent.mkdir(mode=0o700, exist_ok=True)
                descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RetentionBusy(path=str(path / item.hex())) from error
        return stack.pop_all().close


def candidates(config: MasttargetConfig) -> list[Volume]:
    """All mounted volumes of this machine with room of their own, as of now (R073, R074)."""
    found = {}
    for mount_point, kind, _ in _mounts():
        path = Path(mount_point)
        try:
            if kind not in _OF_THE_KERNEL and path.is_dir() and os.statvfs(path).f_blocks:
                found[mount_point] = volume_of(path, config)
        except OSError:
            continue  # a mount that we may not look into
    return list(found.values())


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _target_device(path: Path) -> int:
    if path.is_block_device():
        return path.stat().st_rdev
    return _existing(path).stat().st_dev


def _mounts() -> list[tuple[str, str, str]]:
    """(mount point, kind of file system, which directory of it), in the order of mounting."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        root, point = (
            _ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), name) for name in before.split(" ")[3:5]
        )
        found.append((point, after.split(" ")[0], root))
    return found


def _mounted(path: Path) -> tuple[str, str, str]:
    """The mount point above the path that was mounted last, its kind, and which directory of it that is."""
    whole = os.path.realpath(path)
    best = ("/", "", "/")
    for point, kind, root in _mounts():
        inside = whole == point or whole.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best[0]):
            best = (point, kind, root)
    return best
