"""Images that lie in memory while a campaign opens them: everything but the way to the file is what a user meets.

What is not there: names in a directory, locks, and the look at who else uses a file. None of these reads an image's
bytes, and together they cost ten times what a parser does; `tests/fuzz/test_*` go the whole way.
"""

import errno
import os
import random
import tempfile
import tracemalloc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from unittest import mock

from disks import catalogue, opening, recognise
from disks.backing import Access, Backing, open_failed
from disks.disk import Format
from drcore.errors import HomewardError

PAGE = 4096
ZEROES = bytes(PAGE)
MIB = 1024 * 1024
PIECE = 65536
MEASURED = 199
"""One round in so many is held to the allocation that a hostile image may cause; measuring takes ten times as long."""


@dataclass(frozen=True, slots=True)
class Content:
    """A file: its length and those of its pages that are not zero, by their offsets."""

    size: int
    pages: Mapping[int, bytes]

    @classmethod
    def of(cls, raw: bytes | bytearray) -> "Content":
        pages = ((at, bytes(raw[at : at + PAGE])) for at in range(0, len(raw), PAGE))
        return cls(len(raw), {at: page for at, page in pages if page != ZEROES[: len(page)]})


class Stage:
    """The good files of each victim, kept open; those of one of them can be opened by name. Owns the descriptors."""

    def __init__(self, folder: Path, good: Mapping[str, Mapping[str, Content]]) -> None:
        self.folder = folder
        self._good = good
        self._open = {name: {each: os.memfd_create(each) for each in files} for name, files in good.items()}
        self._here: dict[str, int] = {}
        for name in good:
            self.restore(name)

    def close(self) -> None:
        for files in self._open.values():
            for descriptor in files.values():
                os.close(descriptor)

    @contextmanager
    def set(self, victim: str, broken: str, content: Content) -> Iterator[None]:
        """Who opens a disk in the stage's folder finds the victim's files, `broken` with another content."""
        self._here = self._open[victim]
        descriptor, good = self._here[broken], self._good[victim][broken]
        changed = {
            at
            for at in good.pages.keys() | content.pages.keys()
            if good.pages.get(at) != content.pages.get(at)
        }
        _lay(descriptor, content, changed)
        try:
            yield
        finally:
            # What was cut off is gone from behind the end too.
            _lay(descriptor, good, {at for at in good.pages if at + PAGE > content.size} | changed)

    def restore(self, victim: str) -> None:
        """All files of the victim are good again, whatever was written to them."""
        for name, content in self._good[victim].items():
            os.ftruncate(self._open[victim][name], 0)
            _lay(self._open[victim][name], content, content.pages)

    def opened(self, name: str, directory: int | None, path: Path, access: Access) -> Backing:
        """In the place of `disks.opening._open`, for what lies in the stage's folder."""
        descriptor = self._here.get(path.name)
        if descriptor is None:
            raise open_failed(path, OSError(errno.ENOENT, os.strerror(errno.ENOENT)))
        return Backing(os.dup(descriptor), path, access)

    @property
    def bytes_here(self) -> int:
        return sum(os.fstat(each).st_size for each in self._here.values())


def _lay(descriptor: int, content: Content, places: Iterable[int]) -> None:
    """The file is as long as the content, and has its pages at these places."""
    for at in places:
        if at < content.size:
            os.pwrite(descriptor, content.pages.get(at, ZEROES)[: content.size - at], at)
    os.ftruncate(descriptor, content.size)


@contextmanager
def stage(good: Mapping[str, Mapping[str, Content]]) -> Iterator[Stage]:
    """A stage for these victims, with an empty folder; stages may stand side by side."""
    with tempfile.TemporaryDirectory() as name:
        made, elsewhere = Stage(Path(name), good), opening._open

        def opened(name: str, directory: int | None, path: Path, access: Access) -> Backing:
            return (made.opened if path.parent == made.folder else elsewhere)(name, directory, path, access)

        try:
            with (
                mock.patch.object(opening, "_open", opened),
                mock.patch.object(catalogue, "resolve", Path),
                mock.patch.object(recognise, "resolve", Path),
            ):
                yield made
        finally:
            made.close()


def use(_: Stage, path: Path, kind: Format, dice: random.Random) -> bool:
    """One of the things that a user may do with an image; only coded errors come out. Whether it may be changed."""
    told = kind if dice.random() < 0.7 else None
    way = dice.randrange(4)
    try:
        if way == 0:
            catalogue.check(path, told)
        elif way == 1:
            _write(path, told, dice)
        else:
            _read(path, told, dice)
    except HomewardError as error:
        error.as_json()
    return way == 1


def measured(run: Stage, path: Path, kind: Format, dice: random.Random) -> bool:
    """As `use`, in at most four times the memory that the image has bytes, and 1 MiB, beside what the reader lends."""
    tracemalloc.start()
    try:
        changed = use(run, path, kind, dice)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    allowed = 4 * run.bytes_here + MIB + 2 * PIECE
    assert peak <= allowed, f"{peak} bytes where {allowed} are allowed"
    return changed


def _read(path: Path, told: Format | None, dice: random.Random) -> None:
    disk = catalogue.open_source(path, told)
    try:
        assert 0 < disk.size <= 64 * 1024**4
        piece = memoryview(bytearray(min(disk.size, PIECE)))
        last = disk.size - len(piece)
        for offset in (0, last, min(last, 3 * MIB), dice.randrange(last + 1)):
            with suppress(HomewardError):
                disk.read(offset, piece)
        for _ in islice(disk.extents(0, disk.size), 1000):
            pass
        disk.allocated_bytes()
        catalogue.identity(disk)
    finally:
        disk.close()


def _write(path: Path, told: Format | None, dice: random.Random) -> None:
    disk = catalogue.open_target(path, told)
    try:
        length = min(5000, disk.size)
        for offset in (dice.randrange(disk.size - length + 1), max(0, min(3 * MIB, disk.size - length))):
            disk.write(offset, memoryview(b"y" * length))
        disk.zero(0, min(disk.size, MIB))
        disk.flush()
    finally:
        disk.close()
