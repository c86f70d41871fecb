"""How an image that lies has to end: in one coded error, soon, in little memory, with nothing left open."""

import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from disks.catalogue import open_source
from disks.disk import Format
from drcore.errors import HomewardError

MIB = 1024 * 1024
SIZE = 5 * MIB + 512
CONTENT = (b"x" * 70_000).ljust(4 * MIB, b"\0") + b"y" * (MIB + 512)


def refused(path: Path, kind: type[HomewardError], told: Format | None = None) -> HomewardError:
    """Opening it or reading it through ends in this error, in under a second, within the memory that is allowed."""
    files = sum(each.stat().st_size for each in path.parent.iterdir() if each.is_file())
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(kind) as caught:
            for _ in pieces_of(path, told):
                pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 1
    assert peak < 4 * files + MIB, f"{peak} bytes for {files}"
    line = str(caught.value)
    assert line.startswith("HW-DISKS-")
    assert "\n" not in line
    return caught.value


def pieces_of(path: Path, told: Format | None = None) -> Iterator[bytes]:
    """The first bytes of the disk, a piece at a time, and all its extents."""
    disk = open_source(path, told)
    try:
        for _ in disk.extents(0, disk.size):
            pass
        piece = bytearray(65536)
        for offset in range(0, min(disk.size, SIZE), len(piece)):
            length = min(len(piece), disk.size - offset)
            disk.read(offset, memoryview(piece)[:length])
            yield bytes(piece[:length])
    finally:
        disk.close()


def read_through(path: Path) -> bytes:
    return b"".join(pieces_of(path))


def patched(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at if at >= 0 else path.stat().st_size + at)
        file.write(data)
