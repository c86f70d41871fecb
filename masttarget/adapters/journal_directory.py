"""A disk's journal as a directory of three files: `cycle`, `applied`, `digests`."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import blake3

from disks.backing import sync_directory
from drcore.limits import MIB
from masttarget.errors import JournalDamaged, JournalFailed
from masttarget.journal import AppliedFrame, CycleRecord, decode_applied, encode_applied, encode_start

_PIECE: Final = 1 * MIB
_PAGE: Final = 4096
_ZEROES: Final = bytes(_PIECE)


class JournalDirectory:
    """See `masttarget.journal.Journal`. The directory is made with mode 0700 at the first `store`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._applied = -1

    @property
    def path(self) -> str:
        return str(self._path)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise JournalFailed(path=self.path, reason=error.strerror or str(error)) from error

    def _damaged(self, reason: str) -> JournalDamaged:
        return JournalDamaged(path=self.path, reason=reason)

    def load(self) -> CycleRecord | None:
        with self._failing():
            try:
                data = (self._path / "cycle").read_bytes()
            except FileNotFoundError:
                return None
        try:
            return CycleRecord.decode(data)
        except ValueError as error:
            raise self._damaged(str(error)) from error

    def store(self, record: CycleRecord) -> None:
        self._replace("cycle", record.encode())

    def _replace(self, name: str, data: bytes) -> None:
        self._write_new(name, lambda descriptor: _write_all(descriptor, data))

    def _write_new(self, name: str, write: Callable[[int], None]) -> None:
        with self._failing():
            made = not self._path.exists()
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            new = self._path / f"{name}.new"
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                write(descriptor)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            new.replace(self._path / name)
            sync_directory(self._path)
            if made:
                sync_directory(self._path.parent)

    def start_applied(self, disk: bytes) -> None:
        self.close()
        self._replace("applied", encode_start(disk))
        with self._failing():
            self._applied = os.open(self._path / "applied", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def append_applied(self, frames: list[AppliedFrame]) -> None:
        with self._failing():
            _write_all(self._applied, b"".join(encode_applied(frame) for frame in frames))
            os.fdatasync(self._applied)

    def read_applied(self, disk: bytes) -> Iterator[AppliedFrame]:
        with self._failing():
            try:
                file = (self._path / "applied").open("rb")
            except FileNotFoundError:
                return
            with file:
                try:
                    yield from decode_applied(file.read, disk)
                except ValueError as error:
                    raise self._damaged(str(error)) from error

    def keep_map(self, windows: Iterator[bytes]) -> str:
        hasher = blake3.blake3()

        def write(descriptor: int) -> None:
            at = 0
            for window in windows:
                hasher.update(window)
                for start, end in _data_pages(window):
                    os.lseek(descriptor, at + start, os.SEEK_SET)
                    _write_all(descriptor, window[start:end])
                at += len(window)
            os.ftruncate(descriptor, at)

        self._write_new("digests", write)
        return hasher.hexdigest()

    def kept_map(self, root: str) -> Iterator[bytes] | None:
        path = self._path / "digests"
        hasher = blake3.blake3()
        with self._failing():
            try:
                for piece in _pieces(path):
                    hasher.update(piece)
            except FileNotFoundError:
                return None
        return _pieces(path) if hasher.hexdigest() == root else None

    def remove(self) -> None:
        self.close()
        with self._failing():
            for name in (
                "applied",
                "digests",
                "cycle",
            ):  # the cycle last: as long as it is there, so is the journal
                (self._path / name).unlink(missing_ok=True)
            if self._path.exists() and not any(self._path.iterdir()):
                self._path.rmdir()
                sync_directory(self._path.parent)

    def close(self) -> None:
        if self._applied >= 0:
            os.close(self._applied)
            self._applied = -1


def _data_pages(window: bytes) -> Iterator[tuple[int, int]]:
    """Runs of pages that are not zero; the others stay holes, also where every region of a disk holds a little."""
    if window == bytes(len(window)):
        return
    start = -1
    for at in range(0, len(window), _PAGE):
        zero = window[at : at + _PAGE] == _ZEROES[: min(_PAGE, len(window) - at)]
        if zero and start >= 0:
            yield start, at
            start = -1
        elif not zero and start < 0:
            start = at
    if start >= 0:
        yield start, len(window)


def _pieces(path: Path) -> Iterator[bytes]:
    """The file's content in order; its holes, nearly all of a large disk's map, are not read."""
    with path.open("rb") as file:
        descriptor, size = file.fileno(), path.stat().st_size
        for at in range(0, size, _PIECE):
            length = min(_PIECE, size - at)
            yield _ZEROES[:length] if _is_hole(descriptor, at, length) else os.pread(descriptor, length, at)


def _is_hole(descriptor: int, at: int, length: int) -> bool:
    try:
        return os.lseek(descriptor, at, os.SEEK_DATA) >= at + length
    except OSError as error:
        return error.errno == errno.ENXIO  # no data up to the end; a file system that cannot tell is read


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
