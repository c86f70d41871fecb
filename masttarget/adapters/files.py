"""Where target disks, journals and digest maps are on this machine."""

import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from disks import catalogue
from disks.digestmap import DigestMap
from disks.disk import Disk, Format
from disks.errors import FormatUnknown
from disks.image import Image
from drcore.limits import MASTTARGET_MAP_BLOCKS_MAX
from masttarget.adapters.by_id import BY_ID, device_of
from masttarget.adapters.journal_directory import JournalDirectory
from masttarget.adapters.new_images import whole_image
from masttarget.adapters.saved_file import SavedFile
from masttarget.config import DISK_UUID, DiskConfig
from masttarget.errors import DiskNotAttached, JournalFailed, OtherFormat, TargetFailed

_EXTENT: Final = r"-(flat|[sf]\d{3,})"
"""What a VMDK's extents add to the name of their descriptor."""
_NAME_BYTES_MAX: Final = 255  # NAME_MAX of Linux
_DESCRIBED: Final = (
    Format.VMDK_MONOLITHIC_FLAT,
    Format.VMDK_VMFS,
    Format.VMDK_TWO_GB_SPARSE,
    Format.VMDK_TWO_GB_FLAT,
)
"""Formats of several files."""


class LocalStore:
    """See `masttarget.ports.TargetStore`. Large digest maps go to files in `scratch`, made when needed."""

    def __init__(self, scratch: Path, by_id: Path = BY_ID) -> None:
        self._scratch = scratch
        self._by_id = by_id
        self._uuids: dict[Path, str] = {}

    def _place(self, disk: DiskConfig) -> Path:
        """Where the target is now. Errors: HW-MT-049, 050 of one that is found by its UUID."""
        if not disk.disk_uuid:
            self._uuids.pop(
                Path(os.path.realpath(disk.path)), None
            )  # the device may be another disk's by now
            return disk.path
        device = device_of(disk.disk_uuid, self._by_id)
        self._uuids[device] = disk.disk_uuid
        return device

    def exists(self, disk: DiskConfig) -> bool:
        return bool(disk.disk_uuid) or os.path.lexists(disk.path)  # of a UUID `open` tells what is wrong

    def open(self, disk: DiskConfig) -> Disk:
        place = self._place(disk)
        found = _open_target(place, disk)
        try:
            still = self._place(disk)  # a disk that went meanwhile may have left its name to another one
            if still != place:
                raise DiskNotAttached(
                    disk_uuid=disk.disk_uuid,
                    directory=str(self._by_id),
                    reason=f"{place} before, {still} now",
                )
        except BaseException:
            found.close()
            raise
        if disk.create and found.format is not Format(disk.create):
            found.close()
            raise OtherFormat(path=str(disk.path), found_format=found.format.value, wanted_format=disk.create)
        return found

    def create(self, disk: DiskConfig, size: int) -> Disk:
        return catalogue.create(disk.path, Format(disk.create), size)

    def look(self, disk: DiskConfig) -> Disk:
        return catalogue.look(self._place(disk), _told(disk.format))

    def making(self, path: Path) -> AbstractContextManager[Path]:
        return whole_image(path)

    def create_at(self, path: Path, kind: str, size: int) -> Disk:
        return catalogue.create(path, Format(kind), size)

    def write_whole(
        self, path: Path, source: Disk, on_bytes: Callable[[int], None], verify: Callable[[Disk], None]
    ) -> None:
        catalogue.write_whole(path, source, on_bytes, verify)

    def remove(self, disk: DiskConfig, kind: Format) -> None:
        try:
            # Only what a descriptor names is its own: a raw disk's neighbours may be called as extents are.
            names = _extents(disk.path.read_bytes()) if kind in _DESCRIBED else ()
            for path in (disk.path.with_name(name) for name in names):
                if re.fullmatch(_EXTENT, path.stem.removeprefix(disk.path.stem)):
                    path.unlink(missing_ok=True)
            disk.path.unlink()
        except OSError as error:
            raise JournalFailed(path=str(disk.path), reason=error.strerror or str(error)) from error

    def identity(self, disk: Disk) -> dict[str, str]:
        assert isinstance(disk, Image)
        found = catalogue.identity(disk)
        uuid = self._uuids.get(Path(found.path), "")
        return {
            "uuid": uuid or found.disk_uuid or "none",
            "path": DISK_UUID + uuid
            if uuid
            else found.path,  # the kernel names a device anew with each attachment
            "size": str(found.size),
            "partition table": _with_words(found.partition_fingerprint, found.partition_table),
            "file systems": _with_words(found.file_system_fingerprint, "; ".join(found.file_systems)),
        }

    def file_marks(self, disk: Disk) -> tuple[tuple[int, int, int], ...]:
        assert isinstance(disk, Image)
        files = disk.files
        if not all(path.is_file() for path in files):
            return ()
        return tuple((status.st_ino, status.st_size, status.st_mtime_ns) for status in map(Path.stat, files))

    def change_mark(self, disk: Disk) -> str:
        assert isinstance(disk, Image)
        return catalogue.change_mark(disk) or _device_mark(disk.files[0])

    def forget(self, disk: Disk) -> None:
        assert isinstance(disk, Image)
        from disks.content import drop_cache  # here: not every policy verifies its points

        try:
            drop_cache(disk.path)
        except OSError as error:
            raise TargetFailed(path=str(disk.path), reason=error.strerror or str(error)) from error

    def journal(self, disk: DiskConfig) -> JournalDirectory:
        return JournalDirectory(disk.journal)

    def rooms(self, disk: DiskConfig) -> SavedFile:
        return SavedFile(disk.journal if disk.journal.is_dir() else self._scratch)

    def new_map(self, disk: DiskConfig, size: int) -> DigestMap:
        directory = disk.journal if disk.journal.is_dir() else self._scratch
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            return DigestMap(size, directory, MASTTARGET_MAP_BLOCKS_MAX)
        except OSError as error:
            raise JournalFailed(path=str(directory), reason=error.strerror or str(error)) from error


def _device_mark(path: Path) -> str:
    """Start of the machine, number of the attachment, sectors written since (the kernel's `diskseq` and `stat`).

    Empty for a file, and where the kernel does not tell.
    """
    try:
        number = path.stat().st_rdev
        counters = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
        whole = counters if (counters / "diskseq").exists() else counters.resolve().parent  # of a partition
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        attachment = int((whole / "diskseq").read_text())
        return f"{boot} {attachment} {int((counters / 'stat').read_text().split()[6])}"
    except (OSError, ValueError, IndexError):
        return ""


def _extents(descriptor: bytes) -> tuple[str, ...]:
    """The plain names of extents in a VMDK's descriptor; none where it is none."""
    from disks.layout import Malformed  # here: only who removes a VMDK asks
    from disks.vmdk_layout import decode_descriptor

    try:
        lines = decode_descriptor(descriptor, 0).extents
    except Malformed:
        return ()
    return tuple(line.name for line in lines if _is_plain(line.name))


def _is_plain(name: str) -> bool:
    return name != "" and Path(name).name == name and len(os.fsencode(name)) <= _NAME_BYTES_MAX


def _with_words(fingerprint: str | None, words: str) -> str:
    return f"{fingerprint} ({words})" if fingerprint else "none"


def _open_target(place: Path, disk: DiskConfig) -> Disk:
    """The target. What its name leaves open the order to create it tells, but raw is no image of another format."""
    try:
        return catalogue.open_target(place, _told(disk.format))
    except FormatUnknown as error:
        wanted = _told(disk.create)
        if wanted is None or (wanted is Format.RAW and error.family):
            raise
    return catalogue.open_target(place, wanted)


def _told(name: str) -> Format | None:
    return Format(name) if name else None
