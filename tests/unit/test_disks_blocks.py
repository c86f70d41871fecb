"""Blocks that lie apart in memory are written as one run, whatever the kernel takes of them at a time."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from disks import catalogue
from disks.disk import Format
from disks.errors import DiskReadOnly, NoSpace, OutsideDisk, WriteFailed
from disks.linear import LinearDisk
from drcore.units import BLOCK_BYTES

SIZE = 12 * BLOCK_BYTES + 700


def target(path: Path) -> LinearDisk:
    disk = catalogue.create(path, Format.RAW, SIZE)
    assert isinstance(disk, LinearDisk)
    return disk


def blocks_of(content: bytes) -> list[memoryview]:
    """The content's blocks, each with something else before and behind it."""
    apart = [b"<" + content[at : at + BLOCK_BYTES] + b">" for at in range(0, len(content), BLOCK_BYTES)]
    return [memoryview(each)[1:-1] for each in apart]


@pytest.mark.parametrize("taken", [1 << 30, 3 * BLOCK_BYTES, BLOCK_BYTES + 1, 5])
@pytest.mark.parametrize("length", [1, BLOCK_BYTES, 4 * BLOCK_BYTES, 9 * BLOCK_BYTES + 700])
def test_all_of_them_are_there(
    tmp_path: Path, length: int, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwritev

    def some(descriptor: int, pieces: Sequence[memoryview], offset: int) -> int:
        return write(descriptor, [memoryview(b"".join(pieces))[:taken]], offset)

    monkeypatch.setattr(os, "pwritev", some)
    disk, content = target(tmp_path / "disk"), os.urandom(length)
    disk.write_blocks(3 * BLOCK_BYTES, blocks_of(content))
    found = bytearray(SIZE)
    disk.read(0, memoryview(found))
    disk.close()
    assert found == bytes(3 * BLOCK_BYTES) + content + bytes(SIZE - 3 * BLOCK_BYTES - length)


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, NoSpace), (errno.EIO, WriteFailed)])
def test_a_failure_names_the_place(
    tmp_path: Path, number: int, kind: type[NoSpace] | type[WriteFailed], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, content, full = target(tmp_path / "disk"), os.urandom(6 * BLOCK_BYTES), 5 * BLOCK_BYTES
    write = os.pwrite

    def few(descriptor: int, data: memoryview, offset: int) -> int:
        if offset >= full:
            raise OSError(number, os.strerror(number))
        return write(descriptor, data[: full - offset], offset)

    monkeypatch.setattr(os, "pwrite", few)
    monkeypatch.setattr(
        os,
        "pwritev",
        lambda descriptor, pieces, offset: few(descriptor, memoryview(b"".join(pieces)), offset),
    )
    with pytest.raises(kind) as caught:
        disk.write_blocks(0, blocks_of(content))
    assert caught.value.offset == full
    found = bytearray(full)
    disk.read(0, memoryview(found))
    disk.close()
    assert found == content[:full]


def test_what_may_not_be_written_is_refused(tmp_path: Path) -> None:
    disk = target(tmp_path / "disk")
    with pytest.raises(OutsideDisk):
        disk.write_blocks(SIZE - BLOCK_BYTES + 1, blocks_of(bytes(BLOCK_BYTES)))
    disk.close()
    source = catalogue.open_source(tmp_path / "disk", Format.RAW)
    assert isinstance(source, LinearDisk)
    with pytest.raises(DiskReadOnly):
        source.write_blocks(0, blocks_of(bytes(BLOCK_BYTES)))
    source.close()
