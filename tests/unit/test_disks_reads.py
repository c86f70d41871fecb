"""What lies side by side in an image's file is read in one piece, so that a full image reads as fast as a raw disk."""

import random
from pathlib import Path

import pytest

from disks.backing import Backing
from disks.catalogue import open_source
from tests.images import SOURCES

MIB = 1024 * 1024
CONTENT = random.Random(7).randbytes(5 * MIB)


@pytest.mark.parametrize(
    "name",
    [
        "raw",
        "vhd-dynamic",
        "vhdx-dynamic",
        "vmdk-monolithicSparse",
        "vmdk-twoGbMaxExtentSparse",
        "vmdk-vmfs",
        "qcow2",
    ],
)
def test_neighbouring_blocks_of_a_full_image_are_one_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = open_source(SOURCES[name](tmp_path, CONTENT))
    try:
        piece = memoryview(bytearray(MIB))
        disk.read(0, piece)  # the tables are read
        reads: list[int] = []
        read = Backing.read

        def counted(self: Backing, offset: int, into: memoryview) -> None:
            reads.append(len(into))
            read(self, offset, into)

        with monkeypatch.context() as within:
            within.setattr(Backing, "read", counted)
            for offset in range(0, 4 * MIB, MIB):
                disk.read(offset, piece)
                assert piece == CONTENT[offset : offset + MIB]
    finally:
        disk.close()
    assert sum(reads) <= 4 * MIB + 65536
    assert len([length for length in reads if length > 65536]) <= 5, f"{name}: {reads}"
