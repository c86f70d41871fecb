"""What disks do when the medium fails: errors that name the place, nothing flushed is lost, no flush lies."""

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from disks import catalogue
from disks.backing import Access, Backing
from disks.catalogue import Image, create, open_source, open_target
from disks.disk import Format
from disks.errors import FlushFailed, NoSpace, ReadFailed, WriteFailed
from tests.campaigns import crash_disks

MIB = 1024 * 1024
SPARSE = [Format.VHD_DIFFERENCING, Format.VHD_DYNAMIC, Format.VHDX_DYNAMIC, Format.VMDK_MONOLITHIC_SPARSE]
SUFFIX = {Format.RAW: "raw"} | dict.fromkeys((Format.VHD_FIXED, Format.VHD_DYNAMIC), "vhd")
SUFFIX |= dict.fromkeys((Format.VHDX_FIXED, Format.VHDX_DYNAMIC), "vhdx")
FORMATS = [
    Format.RAW,
    Format.VHD_FIXED,
    Format.VHD_DYNAMIC,
    Format.VHDX_FIXED,
    Format.VHDX_DYNAMIC,
    Format.VMDK_MONOLITHIC_SPARSE,
    Format.VMDK_MONOLITHIC_FLAT,
]


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def content(disk: Image) -> bytes:
    into = bytearray(disk.size)
    disk.read(0, memoryview(into))
    return bytes(into)


def test_a_device_that_lost_its_medium_names_path_place_and_reason(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"x" * 8 * MIB)
    device = run("losetup", "-f", "--show", path)
    try:
        os.truncate(path, 4 * MIB)
        disk = open_source(device)
        into = memoryview(bytearray(MIB))
        disk.read(0, into)
        with pytest.raises(ReadFailed) as caught:
            disk.read(5 * MIB, into)
        assert (caught.value.path, caught.value.offset, caught.value.length) == (device, 5 * MIB, MIB)
        assert "EIO" in caught.value.reason
        disk.close()
    finally:
        run("losetup", "-d", device)


def test_a_flush_that_the_device_refuses_is_never_followed_by_a_success(tmp_path: Path) -> None:
    with small_file_system(tmp_path) as point:
        (point / "thin.raw").touch()
        os.truncate(point / "thin.raw", 64 * MIB)  # more than the file system below can hold
        device = run("losetup", "-f", "--show", point / "thin.raw")
        try:
            target = open_target(device)
            data = memoryview(b"x" * 48 * MIB)
            with pytest.raises((FlushFailed, WriteFailed, NoSpace)):
                write_and_flush(target, 0, data)
            for verb in (target.flush, lambda: target.read(0, memoryview(bytearray(512)))):
                with pytest.raises(FlushFailed):
                    verb()
            target.close()
        finally:
            run("losetup", "-d", device)


def write_and_flush(disk: Image, offset: int, data: memoryview) -> None:
    disk.write(offset, data)
    disk.flush()


def test_a_file_cut_short_under_a_reader_is_a_failed_read(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(b"x" * MIB)
    disk = open_source(path)
    os.truncate(path, MIB // 2)
    with pytest.raises(ReadFailed) as caught:
        content(disk)
    assert caught.value.offset == MIB // 2
    assert "end of the file" in caught.value.reason
    disk.close()


@contextlib.contextmanager
def small_file_system(folder: Path) -> Iterator[Path]:
    """An ext4 of 24 MiB on a loop device."""
    image, point = folder / "small.ext4", folder / "small"
    point.mkdir()
    image.touch()
    os.truncate(image, 24 * MIB)
    run("mkfs.ext4", "-q", "-F", "-m", "0", image)
    run("mount", "-o", "loop", image, point)
    try:
        yield point
    finally:
        run("umount", point)


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.value)
def test_a_full_file_system_costs_nothing_that_was_flushed(kind: Format, tmp_path: Path) -> None:
    with small_file_system(tmp_path) as point:
        path = point / f"disk.{SUFFIX.get(kind, 'vmdk')}"
        disk = create(path, kind, 64 * MIB)
        flushed = 0
        error: NoSpace | FlushFailed | None = None
        while error is None:
            try:
                write_and_flush(disk, flushed, memoryview(bytes([flushed // MIB % 255 + 1]) * MIB))
                flushed += MIB
            except (NoSpace, FlushFailed) as caught:
                error = caught
        assert "ENOSPC" in error.reason
        disk.close()
        assert flushed > 8 * MIB
        again = open_target(path)
        for offset in range(0, flushed, MIB):
            into = bytearray(MIB)
            again.read(offset, memoryview(into))
            assert into == bytes([offset // MIB % 255 + 1]) * MIB
        again.zero(0, 4 * MIB)
        again.flush()
        again.write(0, memoryview(b"n" * MIB))
        again.flush()
        again.close()


def test_creation_on_a_full_file_system_leaves_nothing(tmp_path: Path) -> None:
    with small_file_system(tmp_path) as point:
        ballast = os.open(point / "ballast", os.O_WRONLY | os.O_CREAT)
        for part in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    os.write(ballast, bytes(part))
                    os.fsync(ballast)
        os.close(ballast)
        for kind in FORMATS:
            if kind is Format.RAW:
                continue  # a raw file of holes needs no block
            with pytest.raises(NoSpace):
                create(point / f"disk.{SUFFIX.get(kind, 'vmdk')}", kind, 64 * MIB)
        assert sorted(file.name for file in point.iterdir()) == ["ballast", "lost+found"]


class BadFlush(Backing):
    """The first flush fails, as the kernel tells it once; later ones would succeed."""

    def sync(self) -> None:
        good, self.descriptor = self.descriptor, os.open("/dev/null", os.O_WRONLY)
        try:
            super().sync()
        finally:
            os.close(self.descriptor)
            self.descriptor = good


@pytest.mark.parametrize("kind", FORMATS[:-1], ids=lambda kind: kind.value)
def test_after_a_failed_flush_no_verb_succeeds(kind: Format, tmp_path: Path) -> None:
    path = tmp_path / f"disk.{SUFFIX.get(kind, 'vmdk')}"
    disk = create(path, kind, 8 * MIB)
    disk.write(0, memoryview(b"x" * MIB))
    disk.flush()
    disk.close()
    backing = BadFlush(os.open(path, os.O_RDWR), path, Access.TARGET)
    bad = catalogue.OPENERS[kind](backing, kind)
    with pytest.raises(FlushFailed):
        write_and_flush(bad, 0, memoryview(b"y" * MIB))
    for verb in (
        bad.flush,
        lambda: bad.write(0, memoryview(b"z")),
        lambda: bad.zero(0, MIB),
        lambda: bad.read(0, memoryview(bytearray(1))),
    ):
        with pytest.raises(FlushFailed):
            verb()
    bad.close()
    open_source(path).close()


def test_at_every_instant_an_image_opens_and_holds_what_was_flushed() -> None:
    """A kill leaves a prefix of the writes; a power cut any part of those since the last flush of the medium."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    for kind in dice.sample(SPARSE, 2):
        assert crash_disks.play(kind, dice) > crash_disks.VERBS
