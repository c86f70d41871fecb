"""An image that is exported: under its name it is whole, or not there at all."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from disks.backing import UNSUPPORTED, open_failed, rename_new, sync_directory
from disks.errors import DiskInUse
from masttarget.errors_retention import ExportExists

_NO_LINKS: Final = (*UNSUPPORTED, errno.EPERM, errno.EMLINK)
"""What link(2) answers on a file system without hard links."""


@contextmanager
def whole_image(path: Path) -> Iterator[Path]:
    """Gives a path of the same name in a hidden directory beside it; after the block what was made there is durable.

    Then, and not before, the files get their names beside one another: extents first, `path` itself last. Nothing of
    it is left when the block raises; what a killed run left goes with the next one. The block closes its files.
    Errors: `ExportExists` (HW-MT-060), `DiskInUse`, `OpenFailed`, `NoSpace`.
    """
    place = path.with_name(f".{path.name}.homeward-export")
    try:
        directory = _claim(place, path)
        try:
            _take_away(place, path)  # of a killed run
            if os.path.lexists(path):
                raise ExportExists(path=str(path))
            yield place / path.name
            _publish(place, path)
        finally:
            try:
                _take_away(place, path)
                place.rmdir()
            finally:
                os.close(directory)
    except OSError as error:
        raise open_failed(path, error) from error


def _claim(place: Path, path: Path) -> int:
    """The hidden directory is there and ours until the descriptor is closed."""
    place.mkdir(mode=0o700, exist_ok=True)
    directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(directory).st_ino != place.lstat().st_ino:
            raise BlockingIOError  # taken away by the run that had it
    except (BlockingIOError, FileNotFoundError) as error:
        os.close(directory)
        raise DiskInUse(path=str(path), holder="another export to it is going on", verb="makes") from error
    return directory


def _take_away(place: Path, path: Path) -> None:
    """The hidden directory is empty, and what of it had its name beside a `path` that never came is gone."""
    whole = os.path.lexists(path)
    for made in list(place.iterdir()):
        twin = path.with_name(made.name)
        with suppress(FileNotFoundError):
            if not whole and os.path.samestat(made.lstat(), twin.lstat()):
                twin.unlink()
        made.unlink()


def _publish(place: Path, path: Path) -> None:
    names = sorted((made.name for made in place.iterdir()), key=lambda name: (name == path.name, name))
    for name in names:
        descriptor = os.open(place / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    moved: list[Path] = []
    try:
        for name in names:
            if name == path.name:
                sync_directory(path.parent)  # its extents have their names before it has its own
            if _name(place / name, path.with_name(name)):
                moved.append(path.with_name(name))
        sync_directory(path.parent)
    except BaseException:
        for each in moved:
            each.unlink(missing_ok=True)
        raise


def _name(made: Path, final: Path) -> bool:
    """The file has its name, over nothing. By a second one, which tells whose it is after a kill; else it moved: True.

    Errors: `ExportExists`.
    """
    try:
        try:
            os.link(made, final, follow_symlinks=False)
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        directory = os.open(final.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            rename_new(directory, f"{made.parent.name}/{made.name}", final.name)
        finally:
            os.close(directory)
        return True
    except FileExistsError as error:
        raise ExportExists(path=str(final)) from error
