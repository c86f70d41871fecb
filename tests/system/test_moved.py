"""Files that were moved cost the wire next to nothing, and whatever is in the way the target becomes the source."""

import os
import random
import subprocess
from pathlib import Path

import pytest

from drcore.units import BLOCK_BYTES
from tests.system.command import ended, homeward, interrupted, judge, start, wait_until
from tests.system.test_wire_cost import lz4_of_changed_sectors

KIB, MIB, SECTOR = 1024, 1024 * 1024, 4096
SHARE_MAX = 0.20
"""Of what the changed sectors take in LZ4."""


def some_files(dice: random.Random, size: int) -> list[bytes]:
    """Contents in whole sectors, from one to some hundreds of them."""
    out: list[bytes] = []
    while size > 0:
        length = min(size, dice.choice((1, 2, 3, 8, 20, 100, 400, 900)) * SECTOR)
        out.append(dice.randbytes(length))
        size -= length
    return out


def laid(path: Path, size: int, pieces: list[bytes], first: int) -> bytes:
    """An image of `size` bytes with the pieces one after the other from `first` on."""
    content = bytes(first) + b"".join(pieces)
    content += bytes(size - len(content))
    path.write_bytes(content)
    return content


def ext4(path: Path, size: int, folder: Path) -> bytes:
    """A file system with the folder's files, in blocks of 4 KiB."""
    with path.open("wb") as file:
        file.truncate(size)
    uuid = "01234567-89ab-cdef-0123-456789abcdef"
    command = ["mkfs.ext4", "-q", "-b", "4096", "-U", uuid, "-E", f"hash_seed={uuid}", "-d", str(folder)]
    subprocess.run([*command, str(path)], check=True, env={**os.environ, "E2FSPROGS_FAKE_TIME": "1"})
    return path.read_bytes()


def checked(source: Path, target: Path, new: bytes, old: bytes, *options: str) -> dict[str, object]:
    """The target became the source, for at most a fifth of what the changes take."""
    found = homeward("sync", source, target, "--json", *options).answer()
    judge(target, "raw", source)
    without = lz4_of_changed_sectors(new, old)
    print(f"{found['bytes_sent']} of {without} bytes: {found['bytes_sent'] / without:.4f}")
    assert found["bytes_sent"] <= SHARE_MAX * without, found
    assert found["sectors_referenced"] > 0
    return found


@pytest.mark.parametrize("options", [("--bandwidth", "20M"), ("--lanes", "3")], ids=str)
def test_a_file_system_whose_files_lie_elsewhere(
    options: tuple[str, ...], tmp_path: Path, dice: random.Random
) -> None:
    contents = some_files(dice, 32 * MIB)
    images = []
    for name in ("target", "source"):
        folder = tmp_path / f"{name}-files"
        folder.mkdir()
        dice.shuffle(
            contents
        )  # mkfs takes files in the order of the directory, and that of the hashes of their names
        for number, content in enumerate(contents):
            (folder / f"{name}-{number:05}").write_bytes(content)
        images.append(ext4(tmp_path / f"{name}.raw", 64 * MIB, folder))
    old, new = images
    checked(tmp_path / "source.raw", tmp_path / "target.raw", new, old, *options)


@pytest.mark.parametrize("how", ["permuted", "into free space", "copied"])
def test_extents_that_moved_by_sectors(how: str, tmp_path: Path, dice: random.Random) -> None:
    pieces = some_files(dice, 20 * MIB)
    source, target = tmp_path / "source.raw", tmp_path / "target.raw"
    old = laid(target, 48 * MIB, pieces, 5 * SECTOR)
    if how == "permuted":
        dice.shuffle(pieces)
        new = laid(source, 48 * MIB, pieces, 5 * SECTOR)
    elif how == "copied":
        new = laid(source, 48 * MIB, pieces + pieces[1:], 5 * SECTOR)
    else:
        dice.shuffle(pieces)
        new = laid(source, 48 * MIB, pieces, 22 * MIB)
    moved = sum(map(len, pieces[1:] if how == "copied" else pieces))
    found = checked(source, target, new, old)
    assert found["blocks_referenced"] >= 0.85 * moved / BLOCK_BYTES  # type: ignore[operator]


def test_moved_and_new_content_side_by_side(tmp_path: Path, dice: random.Random) -> None:
    """Parts of blocks are found, the other parts come as data."""
    pieces = some_files(dice, 20 * MIB)
    source, target = tmp_path / "source.raw", tmp_path / "target.raw"
    laid(target, 24 * MIB, pieces, 0)
    mixed = [dice.randbytes(len(piece)) if dice.random() < 0.3 else piece for piece in pieces]
    new = sum(len(piece) for piece, before in zip(mixed, pieces, strict=True) if piece is not before)
    dice.shuffle(mixed)
    laid(source, 24 * MIB, mixed, SECTOR)
    found = homeward("sync", source, target, "--json").answer()
    judge(target, "raw", source)
    assert found["blocks_sent"] > 0
    assert found["sectors_referenced"] > 0.25 * (20 * MIB - new) // SECTOR
    assert found["bytes_sent"] < new + 0.3 * 20 * MIB


def test_content_that_is_all_new_is_sent_and_costs_no_more_than_before(
    tmp_path: Path, dice: random.Random
) -> None:
    source, target = tmp_path / "source.raw", tmp_path / "target.raw"
    laid(target, 32 * MIB, [dice.randbytes(32 * MIB)], 0)
    laid(source, 32 * MIB, [dice.randbytes(32 * MIB)], 0)
    found = homeward("sync", source, target, "--json").answer()
    judge(target, "raw", source)
    assert (found["blocks_sent"], found["sectors_sent"]) == (512, 8192)
    assert (found["blocks_referenced"], found["sectors_referenced"]) == (0, 0)
    assert found["bytes_sent"] < 1.01 * 32 * MIB


def test_an_empty_target_is_never_asked(tmp_path: Path, dice: random.Random) -> None:
    source, target = tmp_path / "source.raw", tmp_path / "target.raw"
    laid(source, 16 * MIB, [dice.randbytes(6 * MIB)] * 2, 0)
    found = homeward("sync", source, target, "--create", "raw", "--json").answer()
    judge(target, "raw", source)
    assert found["sectors_referenced"] == 0


def test_other_formats_find_content_too(tmp_path: Path, dice: random.Random) -> None:
    kind = dice.choice(("vmdk-monolithicSparse", "vhd-dynamic", "vhdx-dynamic"))
    pieces = some_files(dice, 12 * MIB)
    source = tmp_path / "source.raw"
    target = tmp_path / f"target.{kind.split('-')[0]}"
    old = laid(source, 24 * MIB, pieces, SECTOR)
    assert homeward("sync", source, target, "--create", kind).code == 0
    dice.shuffle(pieces)
    new = laid(source, 24 * MIB, pieces, 9 * MIB)
    found = homeward("sync", source, target, "--json").answer()
    judge(target, kind, source)
    assert found["bytes_sent"] <= SHARE_MAX * lz4_of_changed_sectors(new, old), (kind, found)


def moving(tmp_path: Path, dice: random.Random, size: int) -> tuple[Path, Path]:
    pieces = some_files(dice, size)
    source, target = tmp_path / "source.raw", tmp_path / "target.raw"
    laid(target, size + MIB, pieces, 0)
    dice.shuffle(pieces)
    laid(source, size + MIB, pieces, SECTOR)
    return source, target


def test_a_sync_that_is_interrupted_among_references_goes_on(tmp_path: Path, dice: random.Random) -> None:
    source, target = moving(tmp_path, dice, 96 * MIB)
    before = target.stat().st_mtime_ns
    process = start("sync", source, target, "--json")
    outcome = interrupted(process, lambda: target.stat().st_mtime_ns != before)
    assert outcome.code in (0, 130), outcome
    again = homeward("sync", source, target, "--json").answer()
    assert again["resumed"] is (outcome.code == 130)
    judge(target, "raw", source)


def test_a_master_target_that_is_killed_among_references_leaves_what_can_be_finished(
    tmp_path: Path, dice: random.Random
) -> None:
    source, target = moving(tmp_path, dice, 96 * MIB)
    before = target.stat().st_mtime_ns
    process = start("sync", source, target, "--json")
    wait_until(lambda: target.stat().st_mtime_ns != before or process.poll() is not None)
    process.kill()
    ended(process)
    # The half-made target is old here and new there: content of both is found, and proved.
    homeward("sync", source, target, "--json").answer()
    judge(target, "raw", source)


def test_a_sync_by_reference_can_be_taken_back(tmp_path: Path, dice: random.Random) -> None:
    source, target = moving(tmp_path, dice, 24 * MIB)
    before = tmp_path / "before.raw"
    before.write_bytes(target.read_bytes())
    found = homeward("sync", source, target, "--json").answer()
    assert found["sectors_referenced"] > 1000
    judge(target, "raw", source)
    assert homeward("sync", "--undo", target).code == 0
    judge(target, "raw", before)
