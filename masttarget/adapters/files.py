"""Where target disks, journals and digest maps are on this machine."""

import glob
import os
import re
from pathlib import Path
from typing import Final

from disks import catalogue
from disks.digestmap import DigestMap
from disks.disk import Disk, Format
from disks.image import Image
from masttarget.adapters.journal_directory import JournalDirectory
from masttarget.adapters.saved_file import SavedFile
from masttarget.config import DiskConfig
from masttarget.errors import JournalFailed, OtherFormat

_EXTENT: Final = re.compile(r"-(flat|[sf]\d{3,})")
"""What a VMDK's extents add to the name of their descriptor."""


class LocalStore:
    """See `masttarget.ports.TargetStore`. Large digest maps go to files in `scratch`, made when needed."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch

    def exists(self, disk: DiskConfig) -> bool:
        return os.path.lexists(disk.path)

    def open(self, disk: DiskConfig) -> Disk:
        found = catalogue.open_target(disk.path, _told(disk.format))
        if disk.create and found.format is not Format(disk.create):
            found.close()
            raise OtherFormat(path=str(disk.path), found_format=found.format.value, wanted_format=disk.create)
        return found

    def create(self, disk: DiskConfig, size: int) -> Disk:
        return catalogue.create(disk.path, Format(disk.create), size)

    def look(self, disk: DiskConfig) -> Disk:
        return catalogue.look(disk.path, _told(disk.format))

    def create_at(self, path: Path, kind: str, size: int) -> Disk:
        return catalogue.create(path, Format(kind), size)

    def remove(self, disk: DiskConfig) -> None:
        try:
            for path in disk.path.parent.glob(f"{glob.escape(disk.path.stem)}-*{disk.path.suffix}"):
                if _EXTENT.fullmatch(path.stem.removeprefix(disk.path.stem)):
                    path.unlink()
            disk.path.unlink()
        except OSError as error:
            raise JournalFailed(path=str(disk.path), reason=error.strerror or str(error)) from error

    def identity(self, disk: Disk) -> dict[str, str]:
        assert isinstance(disk, Image)
        found = catalogue.identity(disk)
        return {
            "uuid": found.disk_uuid or "none",
            "path": found.path,
            "size": str(found.size),
            "partition table": _with_words(found.partition_fingerprint, found.partition_table),
            "file systems": _with_words(found.file_system_fingerprint, "; ".join(found.file_systems)),
        }

    def file_marks(self, disk: DiskConfig) -> tuple[tuple[int, int, int], ...]:
        if not disk.path.is_file():
            return ()
        # A VMDK descriptor's extents are named after it and lie beside it.
        extents = sorted(disk.path.parent.glob(f"{disk.path.stem}-*{disk.path.suffix}"))
        found = [path.stat() for path in (disk.path, *extents)]
        return tuple((status.st_ino, status.st_size, status.st_mtime_ns) for status in found)

    def change_mark(self, disk: Disk) -> str:
        assert isinstance(disk, Image)
        return catalogue.change_mark(disk) or ""

    def journal(self, disk: DiskConfig) -> JournalDirectory:
        return JournalDirectory(disk.journal)

    def rooms(self, disk: DiskConfig) -> SavedFile:
        return SavedFile(disk.journal if disk.journal.is_dir() else self._scratch)

    def new_map(self, disk: DiskConfig, size: int) -> DigestMap:
        directory = disk.journal if disk.journal.is_dir() else self._scratch
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            return DigestMap(size, directory)
        except OSError as error:
            raise JournalFailed(path=str(directory), reason=error.strerror or str(error)) from error


def _with_words(fingerprint: str | None, words: str) -> str:
    return f"{fingerprint} ({words})" if fingerprint else "none"


def _told(name: str) -> Format | None:
    return Format(name) if name else None
