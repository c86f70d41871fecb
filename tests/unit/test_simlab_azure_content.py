"""Local content of the stand-in's disks: differences, copies, and the footer that makes a fixed VHD."""

import json
import os
import random
import subprocess
import time
from pathlib import Path
from uuid import UUID

import pytest

from simlab.azure.content import (
    FINE_BYTES,
    FOOTER_BYTES,
    GRANULE_BYTES,
    WINDOW_BYTES,
    Run,
    copy_sparsely,
    differences,
    differing_runs,
    fixed_footer,
    geometry,
    read_exactly,
)

MIB = 1024 * 1024
SEED = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1 << 32)
IDENTITY = UUID("6f1b6bb1-9a5e-4d0a-8a63-5f0d6c0f3a11")


def disturbed(content: bytearray, chance: random.Random, times: int) -> bytes:
    for _ in range(times):
        length = chance.randrange(1, 20000)
        offset = chance.randrange(len(content))
        piece = content[offset : offset + length]
        content[offset : offset + length] = (
            bytes(len(piece)) if chance.random() < 0.4 else chance.randbytes(len(piece))
        )
    return bytes(content)


@pytest.mark.parametrize("size", [4096, 100 * 512, 8 * MIB + 512, 2 * WINDOW_BYTES])
def test_applying_the_differences_to_the_old_content_gives_the_new(tmp_path: Path, size: int) -> None:
    print(f"SEED={SEED}")
    chance = random.Random(SEED + size)
    old, new = tmp_path / "old", tmp_path / "new"
    before = disturbed(bytearray(size), chance, 5)
    after = disturbed(bytearray(before), chance, 4)
    old.write_bytes(before)
    new.write_bytes(after)
    result = bytearray(before)
    last = -1
    for run in differences(new, old, size):
        assert run.offset > last
        assert run.offset % FINE_BYTES == 0
        last = run.offset
        piece = after[run.offset : run.offset + run.length]
        assert run.zero == (not any(piece))
        for start in range(0, run.length, FINE_BYTES):
            assert (
                piece[start : start + FINE_BYTES]
                != before[run.offset + start :][: len(piece[start:][:FINE_BYTES])]
            )
        result[run.offset : run.offset + run.length] = bytes(run.length) if run.zero else piece
    assert bytes(result) == after


def test_differences_are_clipped_to_the_range_that_was_asked_for(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(bytes(MIB))
    new.write_bytes(b"x" * MIB)
    assert list(differences(new, old, MIB, 5000, 9000)) == [Run(5000, 4000, False)]


def test_neighbouring_granules_of_one_kind_are_one_run() -> None:
    old = b"o" * 5 * GRANULE_BYTES
    new = bytes(2 * GRANULE_BYTES) + b"n" * GRANULE_BYTES + b"o" * GRANULE_BYTES + b"n" * GRANULE_BYTES
    assert list(differing_runs(new, old, 0, GRANULE_BYTES)) == [
        Run(0, 2 * GRANULE_BYTES, True),
        Run(2 * GRANULE_BYTES, GRANULE_BYTES, False),
        Run(4 * GRANULE_BYTES, GRANULE_BYTES, False),
    ]


def test_copy_keeps_content_holes_and_size(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as new:
        new.truncate(64 * MIB + 512)
        os.pwrite(new.fileno(), b"a" * 5000, 33 * MIB + 7)
        os.pwrite(new.fileno(), b"end", 64 * MIB + 509)
    copy_sparsely(source, target, 64 * MIB)
    assert target.read_bytes() == source.read_bytes()[: 64 * MIB]
    assert target.stat().st_blocks * 512 < 10 * MIB


def test_what_lies_beyond_a_file_reads_as_zeroes(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"abc")
    with (tmp_path / "short").open("rb") as file:
        assert read_exactly(file.fileno(), 1, 6) == b"bc\0\0\0\0"


@pytest.mark.parametrize("mebibytes", [1, 3, 40, 127, 128, 504, 505, 1023, 2048, 8192, 70000, 120000])
def test_geometry_is_that_of_qemu_img(tmp_path: Path, mebibytes: int) -> None:
    file = tmp_path / "disk.vhd"
    # A dynamic image is small whatever its size; qemu-img rounds the size up to one that a geometry fits exactly.
    command = ["qemu-img", "create", "-q", "-f", "vpc", "-o", "subformat=dynamic", str(file), f"{mebibytes}M"]
    subprocess.run(command, check=True)
    footer = file.read_bytes()[:FOOTER_BYTES]
    size = int.from_bytes(footer[48:56], "big")
    assert size >= mebibytes * MIB
    cylinders, heads, sectors = geometry(size)
    assert footer[56:58] == cylinders.to_bytes(2, "big")
    assert (footer[58], footer[59]) == (heads, sectors)


def test_footer_makes_content_an_image_that_qemu_img_reads(tmp_path: Path) -> None:
    size = 3 * MIB
    file = tmp_path / "disk.vhd"
    footer = fixed_footer(size, IDENTITY, time.time())
    assert len(footer) == FOOTER_BYTES
    assert footer[68:84] == IDENTITY.bytes
    without = footer[:64] + bytes(4) + footer[68:]
    assert int.from_bytes(footer[64:68], "big") == ~sum(without) & 0xFFFFFFFF
    file.write_bytes(os.urandom(size) + footer)
    options = f"driver=vpc,force_size_calc=current_size,file.filename={file}"
    facts = json.loads(
        subprocess.check_output(["qemu-img", "info", "--output=json", "--image-opts", options])
    )
    assert facts["virtual-size"] == size
