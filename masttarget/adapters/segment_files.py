"""A disk's segments as files `00000001.undo`, … in a directory of the retention volume, and their `head`."""

import errno
import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from disks.backing import sync_directory
from drcore.errors import HomewardError
from drcore.limits import RETENTION_RESERVE_BYTES
from masttarget.errors_retention import RetentionBusy, RetentionFailed, RetentionFull
from masttarget.segments import Head

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class SegmentFiles:
    """See `masttarget.segments.Segments`. `append` and `start` belong to one thread, `flush` may run beside them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._end = 0
        self._named = True
        self._guard = threading.Lock()
        self._owner = -1
        self._flush_failure = ""

    @property
    def path(self) -> str:
        return str(self._path)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError, wanted: int = RETENTION_RESERVE_BYTES) -> HomewardError:
        if error.errno in _FULL:
            return RetentionFull(path=self.path, free=self._free(), wanted=wanted)
        return RetentionFailed(path=self.path, reason=error.strerror or str(error))

    def _free(self) -> int:
        found = os.statvfs(self._path)
        return found.f_bavail * found.f_frsize

    def _name(self, number: int) -> Path:
        return self._path / f"{number:08d}.undo"

    def numbers(self) -> list[int]:
        with self._failing():
            if not self._path.is_dir():
                return []
            return sorted(int(path.stem) for path in self._path.glob("*.undo") if path.stem.isdecimal())

    @contextmanager
    def _reading(self, number: int) -> Iterator[int]:
        with self._failing():
            descriptor = os.open(self._name(number), os.O_RDONLY | os.O_CLOEXEC)
            try:
                yield descriptor
            finally:
                os.close(descriptor)

    def read(self, number: int, offset: int = 0, length: int = -1) -> bytes:
        with self._reading(number) as descriptor:
            wanted = os.fstat(descriptor).st_size - offset if length < 0 else length
            return os.pread(descriptor, max(wanted, 0), offset)

    def read_into(self, number: int, offset: int, into: memoryview) -> int:
        with self._reading(number) as descriptor:
            return os.preadv(descriptor, [into], offset)

    def start(self, number: int, header: bytes) -> None:
        with self._guard, self._failing():
            if self._descriptor >= 0:
                # Name and all, before the next one has a name: so only the last segment can ever be missing or torn.
                self._sync()
                os.close(self._descriptor)
                self._descriptor = -1
            if not self._path.is_dir():
                make_directory(self._path)
                sync_directory(self._path.parent)
                sync_directory(self._path.parent.parent)
            self.own()
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            self._descriptor = os.open(self._name(number), flags, 0o600)
            self._end, self._named = 0, False
        self.append(memoryview(header))

    def append(self, data: memoryview) -> None:
        at = self._end
        with self._failing():
            free = self._free()
        if free < len(data) + RETENTION_RESERVE_BYTES:  # what gives points up has to be written, too
            raise RetentionFull(path=self.path, free=free, wanted=len(data) + RETENTION_RESERVE_BYTES)
        try:
            while data:
                done = os.pwrite(self._descriptor, data, at)
                at, data = at + done, data[done:]
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._end)  # half a record would hide what comes after it
            raise self._failed(error, len(data)) from error
        self._end = at

    def flush(self) -> None:
        with self._guard, self._failing():
            if self._descriptor < 0:
                return
            self._sync()

    def _sync(self) -> None:
        """The current segment is durable, its name too. Final when it fails: a second flush would lie."""
        try:
            if not self._flush_failure:
                os.fdatasync(self._descriptor)
                if not self._named:
                    sync_directory(self._path)
                self._named = True
                return
        except OSError as error:
            self._flush_failure = error.strerror or str(error)
        # Never as a lack of room, which is waited for and tried again.
        raise RetentionFailed(path=self.path, reason=f"not durable: {self._flush_failure}")

    def own(self) -> None:
        if self._owner >= 0 or not self._path.is_dir():
            return
        with self._failing():
            self._owner = os.open(self._path / "owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._owner)
            self._owner = -1
            raise RetentionBusy(path=self.path) from error
        self._settle()

    def _settle(self) -> None:
        """What the writer before appended is on the medium, and will be read from there.

        It may have been killed before its flush, or that may have failed: then the cache holds more than the medium.
        Only of the last segment: no other one is begun before it is durable.
        """
        for number in self.numbers()[-1:]:
            with self._failing():
                descriptor = os.open(self._name(number), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(descriptor)
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(descriptor)
                sync_directory(self._path)

    def remove(self, numbers: list[int]) -> None:
        with self._failing():
            for number in numbers:
                self._name(number).unlink(missing_ok=True)
            if numbers:
                sync_directory(self._path)

    def load_head(self) -> Head | None:
        try:
            with self._failing():
                found = json.loads((self._path / "head").read_bytes())
            return Head(int(found["first"]), int(found["segment"]), int(found["offset"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise RetentionFailed(path=self.path, reason=f"a head that cannot be read ({error})") from error

    def store_head(self, head: Head) -> None:
        text = json.dumps({"first": head.first, "segment": head.segment, "offset": head.offset})
        with self._failing():
            replace_file(self._path / "head", text.encode() + b"\n")

    def close(self) -> None:
        with self._guard:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
            if self._owner >= 0:
                os.close(self._owner)
                self._owner = -1


def make_directory(path: Path) -> None:
    """The directory is there, and those above it that were missing: all of them of mode 0700."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)


def replace_file(path: Path, data: bytes) -> None:
    """The file holds `data`, durably, or what it held before."""
    new = path.with_name(path.name + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    new.replace(path)
    sync_directory(path.parent)
