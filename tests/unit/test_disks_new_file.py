"""What is written to a new file leaves the page cache once it is durable, and not before."""

import os
import struct
from pathlib import Path
from typing import Any

import pytest

from disks import backing, catalogue
from disks.disk import Format
from disks.errors import FlushFailed
from disks.linear import LinearDisk, lent
from drcore.limits import LET_GO_BYTES_MAX, MIB, RESERVED_BYTES_MIN, WRITE_PIECE_BYTES
from drcore.units import BLOCK_BYTES

SIZE = 8 * MIB


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """What the kernel is asked for, in order."""
    found: list[tuple[str, int, int]] = []
    flush, advise, write = os.fdatasync, os.posix_fadvise, os.pwrite

    def note_flush(descriptor: int) -> None:
        found.append(("flush", 0, 0))
        flush(descriptor)

    def note_advice(descriptor: int, offset: int, length: int, advice: int) -> None:
        if advice == os.POSIX_FADV_DONTNEED:
            found.append(("evict", offset, length))
        advise(descriptor, offset, length, advice)

    def note_write(descriptor: int, data: memoryview, offset: int) -> int:
        found.append(("write", offset, len(data)))
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "fdatasync", note_flush)
    monkeypatch.setattr(os, "posix_fadvise", note_advice)
    monkeypatch.setattr(os, "pwrite", note_write)
    return found


def test_what_was_flushed_is_let_go_of_once(tmp_path: Path, calls: list[tuple[str, int, int]]) -> None:
    disk = catalogue.create(tmp_path / "new.raw", Format.RAW, SIZE)
    calls.clear()
    first, second = os.urandom(2 * MIB), os.urandom(MIB)
    disk.write(0, memoryview(first))
    disk.flush()
    disk.flush()
    disk.write(4 * MIB, memoryview(second))
    disk.write(MIB, memoryview(second))
    disk.flush()
    assert calls == [
        *written(0, 2 * MIB),
        ("flush", 0, 0),
        ("evict", 0, 2 * MIB),
        ("flush", 0, 0),
        *written(4 * MIB, MIB),
        *written(MIB, MIB),
        ("flush", 0, 0),
        ("evict", 2 * MIB, 3 * MIB),
    ]
    found = bytearray(SIZE)
    disk.read(0, memoryview(found))
    assert found == first[:MIB] + second + bytes(2 * MIB) + second + bytes(3 * MIB)
    disk.close()


def test_what_is_written_while_a_flush_goes_on_waits_for_the_next_one(
    tmp_path: Path, calls: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = catalogue.create(tmp_path / "new.raw", Format.RAW, SIZE)
    disk.write(0, memoryview(bytes(MIB)))
    flush = os.fdatasync

    def write_meanwhile(descriptor: int) -> None:
        monkeypatch.setattr(os, "fdatasync", flush)
        flush(descriptor)
        disk.write(MIB, memoryview(bytes(MIB)))

    monkeypatch.setattr(os, "fdatasync", write_meanwhile)
    for end in (MIB, 2 * MIB):
        disk.flush()
        assert calls[-1] == ("evict", end - MIB, MIB)
    disk.close()


def written(offset: int, length: int) -> list[tuple[str, int, int]]:
    return [("write", at, WRITE_PIECE_BYTES) for at in range(offset, offset + length, WRITE_PIECE_BYTES)]


def test_what_nobody_flushed_for_long_stays_in_the_cache(
    tmp_path: Path, calls: list[tuple[str, int, int]]
) -> None:
    disk = catalogue.create(tmp_path / "new.raw", Format.RAW, LET_GO_BYTES_MAX + 2 * MIB)
    disk.write(LET_GO_BYTES_MAX, memoryview(bytes(MIB)))
    disk.flush()
    assert [call for call in calls if call[0] == "evict"] == []
    disk.write(LET_GO_BYTES_MAX + MIB, memoryview(bytes(MIB)))
    disk.flush()
    assert calls[-1] == ("evict", LET_GO_BYTES_MAX + MIB, MIB)
    disk.close()


def test_a_file_that_was_there_stays_in_the_cache(tmp_path: Path, calls: list[tuple[str, int, int]]) -> None:
    path = tmp_path / "old.raw"
    path.write_bytes(bytes(SIZE))
    disk = catalogue.open_target(path, Format.RAW)
    calls.clear()
    disk.write(0, memoryview(bytes(MIB)))
    disk.flush()
    disk.close()
    assert calls == [*written(0, MIB), ("flush", 0, 0)]


def test_nothing_is_let_go_of_that_is_not_durable(
    tmp_path: Path, calls: list[tuple[str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = catalogue.create(tmp_path / "new.raw", Format.RAW, SIZE)
    disk.write(0, memoryview(bytes(MIB)))
    calls.clear()

    def fail(descriptor: int) -> None:
        raise OSError(5, "the medium has died")

    monkeypatch.setattr(os, "fdatasync", fail)
    for _ in range(2):
        with pytest.raises(FlushFailed):
            disk.flush()
        with pytest.raises(FlushFailed):
            lent(disk)  # a kernel that reads by itself learns of it, too
    assert calls == []
    disk.close()


class Library:
    """The C library, of which one call is noted and may fail."""

    def __init__(self, real: Any, answer: int, kind: int) -> None:
        self.asked: list[tuple[int, int, int]] = []
        self._answer = answer
        self._kind = kind
        self.sync_file_range = real.sync_file_range

    def fallocate64(self, descriptor: int, mode: int, offset: int, length: int) -> int:
        """The file does not grow by it."""
        self.asked.append((mode, offset, length))
        return self._answer

    def fstatfs(self, descriptor: int, status: Any) -> int:
        """The file system is of the kind that was told."""
        struct.pack_into("@l", status, 0, self._kind)
        return 0


@pytest.mark.parametrize(
    ("kind", "answer", "count"),
    [(0xEF53, 0, 2), (0xEF53, -1, 1), (0x9123683E, 0, 0)],
    ids=["ext4", "full", "btrfs"],
)
def test_room_is_made_before_a_large_write_to_a_new_file(
    tmp_path: Path, kind: int, answer: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library(backing._libc(), answer, kind)
    disk = catalogue.create(tmp_path / "new.raw", Format.RAW, SIZE)
    assert isinstance(disk, LinearDisk)
    monkeypatch.setattr(backing, "_libc", lambda: library)
    content = os.urandom(2 * MIB)
    blocks = [memoryview(content)[at : at + BLOCK_BYTES] for at in range(0, MIB, BLOCK_BYTES)]
    disk.write(0, memoryview(content)[: RESERVED_BYTES_MIN - 1])
    disk.write_blocks(MIB, blocks)
    disk.write(3 * MIB, memoryview(content))
    wanted = [(1, MIB, MIB), (1, 3 * MIB, 2 * MIB)]
    assert library.asked == wanted[:count], "who cannot is not asked again"
    found = bytearray(SIZE)
    disk.read(0, memoryview(found))
    disk.close()
    small = content[: RESERVED_BYTES_MIN - 1]
    assert found == small + bytes(MIB - len(small)) + content[:MIB] + bytes(MIB) + content + bytes(3 * MIB)
    old = catalogue.open_target(tmp_path / "new.raw", Format.RAW)
    old.write(0, memoryview(content))
    old.close()
    assert len(library.asked) == count, "a file that was there has its place, or keeps its holes"


def test_room_is_taken_for_what_is_written_and_no_more(tmp_path: Path) -> None:
    disk = catalogue.create(tmp_path / "new.raw", Format.RAW, SIZE)
    disk.write(MIB, memoryview(os.urandom(MIB)))
    disk.flush()
    status = (tmp_path / "new.raw").stat()
    assert (status.st_size, disk.allocated_bytes()) == (SIZE, MIB)
    disk.close()
