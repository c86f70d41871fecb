"""The frame of a disk in one file: who it is; and, where a table maps it, how bytes go by the runs that it tells.

The formats know their tables; here stands once what is the same for all of them.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path

from disks.backing import Backing, zero_memory
from disks.disk import Extent, Format
from disks.image import Run, check_range, merged
from drcore.units import ByteCount


class FileDisk:
    """A disk in one file or device, without identities of its own. Owns the backing."""

    def __init__(self, backing: Backing, kind: Format, size: int) -> None:
        self._backing = backing
        self._format = kind
        self._size = size

    @property
    def format(self) -> Format:
        return self._format

    @property
    def size(self) -> ByteCount:
        return ByteCount(self._size)

    @property
    def grain_size(self) -> ByteCount | None:
        return None

    @property
    def path(self) -> Path:
        return self._backing.path

    @property
    def files(self) -> tuple[Path, ...]:
        return (self._backing.path,)

    @property
    def disk_uuid(self) -> str | None:
        return None

    @property
    def change_mark(self) -> str | None:
        return None

    def close(self) -> None:
        self._backing.close()


class MappedDisk(FileDisk, ABC):
    """A disk whose bytes lie where a table says. A lock guards what the format keeps; bytes move outside it."""

    def __init__(self, backing: Backing, kind: Format, size: int, *, listed_bytes: int) -> None:
        """`listed_bytes` of the disk are looked up under one hold of the lock while extents are listed."""
        super().__init__(backing, kind, size)
        self._listed_bytes = listed_bytes
        self._lock = threading.Lock()
        self._flushing = threading.Lock()

    def read(self, offset: int, into: memoryview) -> None:
        check_range(self, offset, len(into))
        with self._lock:
            runs = list(self._runs(offset, len(into)))
        for run in runs:
            part = into[run.offset - offset : run.offset - offset + run.length]
            if run.at is None:
                self._read_absent(run.offset, part)
            else:
                self._backing.read(run.at, part)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        check_range(self, offset, length)
        return merged(self._extents(offset, length))

    @abstractmethod
    def _runs(self, offset: int, length: int) -> Iterator[Run]:
        """Where the range's bytes lie, ascending, covering it exactly; the lock is held."""

    def _read_absent(self, offset: int, into: memoryview) -> None:
        """`into` holds what a run without a place shows."""
        zero_memory(into)

    def _shown(self, run: Run) -> Iterator[tuple[int, int, bool]]:
        """The run as (offset, length, whether data)."""
        yield run.offset, run.length, run.at is not None

    def _extents(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        end = offset + length
        while offset < end:
            stop = min(end, (offset // self._listed_bytes + 1) * self._listed_bytes)
            with self._lock:
                runs = list(self._runs(offset, stop - offset))
            for run in runs:
                yield from self._shown(run)
            offset = stop

    def _store(self, runs: Iterable[Run], offset: int, data: memoryview) -> None:
        """`data`, which begins at `offset` of the disk, is where the runs say; all of them have a place."""
        for run in runs:
            assert run.at is not None
            self._backing.write(run.at, data[run.offset - offset : run.offset - offset + run.length])

    def _zero_runs(self, runs: Iterable[Run]) -> None:
        """What has a place reads as zeroes there."""
        for run in runs:
            if run.at is not None:
                self._backing.zero(run.at, run.length)
