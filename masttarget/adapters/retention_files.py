"""The retention volume as directories: `ITEM/points`, `ITEM/DISK/*.undo`, `ITEM/DISK/verified`, `ITEM/holds/POINT`."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from disks.backing import is_named, sync_directory
from drcore.limits import RETENTION_RESERVE_BYTES
from masttarget.adapters.segment_files import SegmentFiles, make_directory, replace_file
from masttarget.errors_retention import PointInUse, RetentionFailed, RetentionFull
from masttarget.points import PointsFile
from masttarget.segments import Segments
from masttarget.verified_layout import VerifiedFile


class ListFile:
    """See `masttarget.points.PointsFile`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def path(self) -> str:
        return str(self._path)

    def load(self) -> bytes:
        with failing(self._path):
            return self._path.read_bytes() if self._path.exists() else b""

    def append(self, data: bytes, at: int) -> None:
        with failing(self._path):
            made = not self._path.parent.is_dir()
            make_directory(self._path.parent)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(descriptor).st_size > at:
                    os.ftruncate(descriptor, at)
                view, start = memoryview(data), at
                while view:
                    done = os.pwrite(descriptor, view, start)
                    start, view = start + done, view[done:]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if at == 0:
                sync_directory(self._path.parent)
            if made:
                sync_directory(self._path.parent.parent)

    def set_aside(self) -> str:
        kept = self._path.with_name(f"{self._path.name}.damaged")
        with failing(self._path):
            if not self._path.exists():
                return ""
            replace_file(kept, self._path.read_bytes())
        return str(kept)

    def mark(self) -> tuple[int, int]:
        with failing(self._path):
            if not self._path.exists():
                return (0, 0)
            found = self._path.stat()
        return found.st_ino, found.st_size

    def replace(self, data: bytes) -> None:
        with failing(self._path):
            replace_file(self._path, data)


class DigestsFile:
    """See `masttarget.verified_layout.VerifiedFile`. Made by `reset`, with its directory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    @property
    def path(self) -> str:
        return str(self._path)

    def _open(self, flags: int = 0) -> int:
        if self._descriptor < 0:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
        return self._descriptor

    def read(self, offset: int, length: int) -> bytes:
        with failing(self._path):
            if self._descriptor < 0 and not self._path.exists():
                return b""
            return os.pread(self._open(), length, offset)

    def write(self, offset: int, data: bytes) -> None:
        with failing(self._path):
            descriptor = self._open()
            room = os.fstatvfs(descriptor)
            free = room.f_bavail * room.f_frsize
            if free < RETENTION_RESERVE_BYTES:  # what gives points up has to be written, too
                raise RetentionFull(path=self.path, free=free, wanted=RETENTION_RESERVE_BYTES)
            if os.pwrite(descriptor, data, offset) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self) -> None:
        if self._descriptor >= 0:
            with failing(self._path):
                os.fdatasync(self._descriptor)

    def reset(self, length: int) -> None:
        with failing(self._path):
            folder = self._path.parent
            if not folder.is_dir():
                make_directory(folder)
                sync_directory(folder.parent)
                sync_directory(folder.parent.parent)
            descriptor = self._open(os.O_CREAT)
            os.ftruncate(descriptor, 0)
            os.ftruncate(descriptor, length)
            sync_directory(folder)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class RetentionFiles:
    """See `masttarget.retention.RetentionStore`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def path(self) -> str:
        return str(self._path)

    def _item(self, item: bytes) -> Path:
        return self._path / item.hex()

    def points(self, item: bytes) -> PointsFile:
        return ListFile(self._item(item) / "points")

    def segments(self, item: bytes, disk: bytes) -> Segments:
        return SegmentFiles(self._item(item) / disk.hex())

    def verified(self, item: bytes, disk: bytes) -> VerifiedFile:
        return DigestsFile(self._item(item) / disk.hex() / "verified")

    def disks(self, item: bytes) -> list[bytes]:
        with failing(self._path):
            if not self._item(item).is_dir():
                return []
            names = [path.name for path in self._item(item).iterdir() if path.is_dir()]
        return [bytes.fromhex(name) for name in sorted(names) if len(name) == 32]

    def free_bytes(self) -> int:
        with failing(self._path):
            place = self._path
            while not place.exists():
                place = place.parent
            found = os.statvfs(place)
        return found.f_bavail * found.f_frsize

    @contextmanager
    def _use(self, item: bytes, point: str, mode: int) -> Iterator[None]:
        path = self._item(item) / "holds" / point
        with failing(self._path):
            try:
                descriptor = _locked(path, mode | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise PointInUse(item=item.hex(), point=point) from error
        try:
            yield
            if mode == fcntl.LOCK_EX and descriptor >= 0:
                path.unlink(missing_ok=True)
        finally:
            _unlock(descriptor)

    @contextmanager
    def exclusive(self, item: bytes) -> Iterator[None]:
        with failing(self._path):
            descriptor = _locked(self._item(item) / "lock", fcntl.LOCK_EX)
        try:
            yield
        finally:
            _unlock(descriptor)

    @contextmanager
    def hold(self, item: bytes, point: str) -> Iterator[None]:
        with self._use(item, point, fcntl.LOCK_SH):
            yield

    @contextmanager
    def claim(self, item: bytes, point: str) -> Iterator[None]:
        if not (self._item(item) / "holds" / point).exists():
            yield  # nobody ever held it
            return
        with self._use(item, point, fcntl.LOCK_EX):
            yield

    def held(self, item: bytes) -> str:
        holds = self._item(item) / "holds"
        with failing(self._path):
            names = sorted(path.name for path in holds.iterdir()) if holds.is_dir() else []
        for name in names:
            try:
                with self.claim(item, name):
                    pass
            except PointInUse:
                return name
        return ""

    def remove(self, item: bytes) -> None:
        # Out of sight in one step first: half of an item's files would be taken for a damaged journal.
        gone = self._path / "gone" / item.hex()
        with failing(self._path):
            if self._item(item).is_dir():
                _remove_tree(gone)
                gone.parent.mkdir(mode=0o700, exist_ok=True)
                self._item(item).rename(gone)
                sync_directory(gone.parent)
                sync_directory(self._path)
            _remove_tree(gone)
            with suppress(FileNotFoundError):
                if not any(gone.parent.iterdir()):
                    gone.parent.rmdir()
            if self._path.is_dir() and not any(self._path.iterdir()):
                with suppress(OSError):  # where a volume is mounted it stays
                    self._path.rmdir()


def _locked(path: Path, mode: int) -> int:
    """The file at `path`, open and locked; -1 on a volume that is read-only: nobody can change there what is guarded.

    Linux makes a volume read-only when it finds damage (ext4: errors=remount-ro); its points can still be exported.
    """
    while True:
        try:
            make_directory(path.parent)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            return -1
        try:
            fcntl.flock(descriptor, mode)
            if is_named(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # whoever had it before has removed it: others would not see this lock


def _unlock(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)


def _remove_tree(path: Path) -> None:
    if path.is_dir():
        import shutil  # here: it brings libraries that unpack archives

        shutil.rmtree(path)


@contextmanager
def failing(path: Path) -> Iterator[None]:
    """What the operating system refuses gets a code. Errors: `RetentionFailed` (HW-MT-037), `RetentionFull` (036)."""
    try:
        yield
    except OSError as error:
        if error.errno in (28, 122):
            raise RetentionFull(path=str(path), free=0, wanted=4096) from error
        raise RetentionFailed(path=str(path), reason=error.strerror or str(error)) from error
