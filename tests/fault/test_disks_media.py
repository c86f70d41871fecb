"""What disks do when the medium fails: errors that name the place, nothing flushed is lost, no flush lies."""

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from disks import catalogue
from disks.backing import Access, Backing
from disks.catalogue import Image, create, open_source, open_target
from disks.disk import Format
from disks.errors import FlushFailed, NoSpace, ReadFailed, WriteFailed

MIB = 1024 * 1024
SPARSE = {Format.VHD_DYNAMIC: ("vhd", "vpc"), Format.VMDK_MONOLITHIC_SPARSE: ("vmdk", "vmdk")}
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


@dataclass
class Step:
    """One thing done to the file."""

    verb: str
    offset: int = 0
    data: bytes = b""


@dataclass
class Log:
    steps: list[Step] = field(default_factory=list)


class Recording(Backing):
    """A backing that notes what it does to the file, in order."""

    def __init__(self, descriptor: int, path: Path, log: Log) -> None:
        super().__init__(descriptor, path, Access.TARGET)
        self.log = log

    def write(self, offset: int, data: memoryview) -> None:
        self.log.steps.append(Step("write", offset, bytes(data)))
        super().write(offset, data)

    def zero(self, offset: int, length: int) -> None:
        if length > 0:
            self.log.steps.append(Step("write", offset, bytes(length)))
        super().zero(offset, length)

    def resize(self, size: int) -> None:
        self.log.steps.append(Step("resize", size))
        super().resize(size)

    def sync(self) -> None:
        self.log.steps.append(Step("sync"))
        super().sync()


def replay(path: Path, steps: list[Step]) -> None:
    with path.open("r+b") as file:
        for step in steps:
            if step.verb == "write":
                file.seek(step.offset)
                file.write(step.data)
            elif step.verb == "resize":
                file.truncate(step.offset)


def allowed(after: bytes, model: bytes, touched: list[tuple[int, int]], what: str) -> None:
    """Outside the ranges touched since the flush, the disk is what was flushed."""
    masked, expected = bytearray(after), bytearray(model)
    for offset, length in touched:
        masked[offset : offset + length] = expected[offset : offset + length] = bytes(length)
    assert masked == expected, what


@pytest.mark.parametrize("kind", SPARSE, ids=lambda kind: kind.value)
@pytest.mark.parametrize("cut", ["kill", "power"])
def test_at_every_instant_the_image_opens_and_holds_what_was_flushed(
    kind: Format, cut: str, tmp_path: Path
) -> None:
    """A kill leaves a prefix of the writes; a power cut any part of those since the last flush of the medium."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    suffix, form = SPARSE[kind]
    size = 7 * MIB + 512
    path, start = tmp_path / f"disk.{suffix}", tmp_path / "start"
    created = create(path, kind, size)
    created.write(3 * MIB, memoryview(b"0" * 100_000))
    created.flush()
    created.close()
    shutil.copy(path, start)
    log = Log()
    disk = catalogue.OPENERS[kind](Recording(os.open(path, os.O_RDWR), path, log), kind)
    model = bytearray(content(disk))
    # (steps done, content flushed by then, ranges touched from then on)
    marks: list[tuple[int, bytes, list[tuple[int, int]]]] = [(0, bytes(model), [])]
    for number in range(14):
        offset = dice.randrange(size)
        length = min(size - offset, dice.choice([512, 70_000, 1_500_000]))
        marks[-1][2].append((offset, length))
        if dice.random() < 0.3:
            disk.zero(offset, length)
            model[offset : offset + length] = bytes(length)
        else:
            disk.write(offset, memoryview(bytes([number + 65]) * length))
            model[offset : offset + length] = bytes([number + 65]) * length
        if number % 3 == 2:
            disk.flush()
            marks.append((len(log.steps), bytes(model), []))
    disk.flush()
    marks.append((len(log.steps), bytes(model), []))
    disk.close()

    image, raw = tmp_path / f"cut.{suffix}", tmp_path / "cut.raw"
    for done in range(len(log.steps) + 1):
        steps = log.steps[:done]
        if cut == "power":
            synced = max((at for at, step in enumerate(steps) if step.verb == "sync"), default=0)
            steps = steps[:synced] + [
                step for step in steps[synced:] if step.verb == "resize" or dice.random() < 0.5
            ]
        shutil.copy(start, image)
        replay(image, steps)
        # The newest flush that had returned by then, and everything touched since.
        flushed = max(mark for mark in range(len(marks)) if marks[mark][0] <= done)
        model_then, touched = marks[flushed][1], marks[flushed][2]
        what = f"seed {seed}: {cut} after {done} of {len(log.steps)} steps"
        run("qemu-img", "convert", "-f", form, "-O", "raw", image, raw)
        allowed(raw.read_bytes(), model_then, touched, what)
        if form == "vmdk":
            run("qemu-img", "check", "-f", form, image)
        again = open_target(image, kind)
        seen = content(again)
        allowed(seen, model_then, touched, what)
        # The next opening goes on: what it writes is there, what it did not write stays.
        again.write(5 * MIB, memoryview(b"again" * 1000))
        again.flush()
        again.close()
        expected = bytearray(seen)
        expected[5 * MIB : 5 * MIB + 5000] = b"again" * 1000
        run("qemu-img", "convert", "-f", form, "-O", "raw", image, raw)
        allowed(raw.read_bytes(), bytes(expected), touched, what)
