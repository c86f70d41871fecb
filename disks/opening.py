"""From a path to an open, locked, guarded backing; and from nothing to a new file that appears whole or not at all."""

import contextlib
import errno
import os
import stat
from pathlib import Path

from disks import guard
from disks.backing import Access, Backing, open_failed, rename_new
from disks.errors import DiskInUse, OpenFailed, TargetExists
from drcore.limits import DISK_NAME_BYTES_MAX


def open_backing(path: Path, access: Access) -> Backing:
    """The file or device at `path` (links followed once, by the caller's resolving) is open, locked and guarded.

    Errors: OpenFailed, DiskInUse.
    """
    return _open(str(path), None, path, access)


def open_extent(directory: int, name: str, descriptor_path: Path, access: Access) -> Backing:
    """The regular file `name` of the open directory is open, locked and guarded; a link or anything else is refused."""
    path = descriptor_path.parent / name
    backing = _open(name, directory, path, access)
    if backing.device:
        backing.close()
        raise OpenFailed(path=str(path), reason="a device, where the descriptor promises a file beside it")
    return backing


def open_directory(path: Path) -> int:
    """A descriptor of the directory that holds `path`."""
    try:
        return os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise open_failed(path.parent, error) from error


def _open(name: str, directory: int | None, path: Path, access: Access) -> Backing:
    # O_NONBLOCK: a named pipe must not hold us; it has no effect on files and disks.
    flags = (os.O_RDWR if access is Access.TARGET else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK
    if directory is not None:
        flags |= os.O_NOFOLLOW
    try:
        mode = os.stat(name, dir_fd=directory, follow_symlinks=directory is None).st_mode
        if stat.S_ISBLK(mode) and access is Access.TARGET:
            flags |= os.O_EXCL  # open(2): on a block device, EBUSY while it is mounted or otherwise held
        if directory is not None and stat.S_ISBLK(mode):
            # Refused before it is opened: whoever uses the device is not this image's business.
            raise OpenFailed(
                path=str(path), reason="a device, where the descriptor promises a file beside it"
            )
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise OpenFailed(path=str(path), reason="neither a regular file nor a block device")
        descriptor = os.open(name, flags, dir_fd=directory)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise DiskInUse(path=str(path), holder="the kernel holds it exclusively", verb="holds") from error
        raise open_failed(path, error) from error
    except ValueError as error:
        raise OpenFailed(path=str(path), reason="a name that no file can have") from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise OpenFailed(path=str(path), reason="neither a regular file nor a block device")
        _claim(descriptor, path, access)
        if access is not Access.INSPECT:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return Backing(descriptor, path, access)
    except OSError as error:
        os.close(descriptor)
        raise open_failed(path, error) from error
    except BaseException:
        os.close(descriptor)
        raise


def _claim(descriptor: int, path: Path, access: Access) -> None:
    if access is Access.SOURCE:
        guard.lock(descriptor, path, exclusive=False)
        guard.refuse_used_source(descriptor, path)
    elif access is Access.TARGET:
        guard.refuse_read_only(descriptor, path)
        guard.lock(descriptor, path, exclusive=True)
        guard.refuse_used_target(descriptor, path)


class Newborn:
    """A file in the making under a hidden name beside its final one; `publish` or `abandon` ends it.

    The hidden name is fixed and the file locked, so that what a killed creation left is taken up again and two
    creations at a time exclude each other.
    """

    def __init__(self, path: Path) -> None:
        """Errors: TargetExists, DiskInUse, OpenFailed."""
        self._final = path
        self._name = f".{path.name}.homeward-new"
        self._directory = open_directory(path)
        try:
            if len(os.fsencode(str(path))) > DISK_NAME_BYTES_MAX:
                raise OpenFailed(path=str(path), reason=os.strerror(errno.ENAMETOOLONG))
            self._refuse_existing()
            self.backing = self._make()
        except BaseException:
            os.close(self._directory)
            raise

    def publish(self) -> Backing:
        """What was written is on stable storage under the final name; the backing stays open and locked."""
        try:
            self.backing.sync()
            os.fsync(self.backing.descriptor)
            rename_new(self._directory, self._name, self._final.name)
            os.fsync(self._directory)
        except FileExistsError as error:
            raise TargetExists(path=str(self._final)) from error
        except OSError as error:
            raise open_failed(self._final, error) from error
        os.close(self._directory)
        self.backing.path = self._final
        return self.backing

    def abandon(self) -> None:
        """Nothing of it is left."""
        # A missing hidden name means that it was published before the failure, whole.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._name, dir_fd=self._directory)
        self.backing.close()
        os.close(self._directory)

    def _refuse_existing(self) -> None:
        try:
            os.stat(self._final.name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise OpenFailed(path=str(self._final), reason=str(error)) from error
        raise TargetExists(path=str(self._final))

    def _make(self) -> Backing:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            # Disk contents are nobody's business but the owner's.
            descriptor = os.open(self._name, flags, 0o600, dir_fd=self._directory)
        except OSError as error:
            raise open_failed(self._final, error) from error
        try:
            guard.lock(descriptor, self._final, exclusive=True)
            status = os.fstat(descriptor)
            named = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or named.st_ino != status.st_ino:
                raise DiskInUse(
                    path=str(self._final), holder="another creation of it is going on", verb="creates"
                )
            os.ftruncate(descriptor, 0)
            return Backing(descriptor, self._final, Access.TARGET, new=True)
        except OSError as error:
            os.close(descriptor)
            raise open_failed(self._final, error) from error
        except BaseException:
            os.close(descriptor)
            raise
