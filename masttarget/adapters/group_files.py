"""The notes of replication groups: a file of a group on the retention volume, while its common point is made."""

import hashlib
from pathlib import Path

from disks.backing import sync_directory
from masttarget.adapters.retention_files import failing
from masttarget.adapters.segment_files import replace_file


class GroupFiles:
    """See `masttarget.group.GroupNotes`. A file's name is the beginning of the SHA-256 of its group's."""

    def __init__(self, retention: Path) -> None:
        self._place = retention / "groups"

    def _path(self, group: str) -> Path:
        return self._place / hashlib.sha256(group.encode()).hexdigest()[:32]

    def load(self, group: str) -> bytes | None:
        with failing(self._place):
            try:
                return self._path(group).read_bytes()
            except FileNotFoundError:
                return None

    def store(self, group: str, note: bytes) -> None:
        with failing(self._place):
            if not self._place.is_dir():
                self._place.mkdir(mode=0o700, parents=True, exist_ok=True)
                sync_directory(self._place.parent)
            replace_file(self._path(group), note)

    def remove(self, group: str) -> None:
        with failing(self._place):
            self._path(group).unlink(missing_ok=True)
            sync_directory(self._place)
