"""A writer of images dies, or the power does, between any two writes: what was flushed is there, for others too.

A round writes to an image of a format that can be written in place, through backings that note every write, length and
flush of every file. Then each prefix of what they noted is replayed onto a copy of the start (a kill), and for each a
sample of those writes that no flush had covered yet (a power cut). Every such image opens with qemu-img (7-Zip, for a
differencing VHD), has no damage, holds every flushed byte, and can be written on.
"""

import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from disks import opening
from disks.backing import Backing
from disks.catalogue import CREATORS, Image, check, create, open_source, open_target
from disks.disk import Format
from disks.errors import FormatNotSupported
from drcore.limits import MIB
from tests.campaigns.runner import Round
from tests.golden.disks import differencing

SIZE = 5 * MIB + 512
SCRATCH = Path("/dev/shm")
VERBS = 9
QEMU = {"raw": "raw", "vhd": "vpc", "vhdx": "vhdx", "vmdk": "vmdk"}
WAYS_ON = 4
"""Every so manieth image is written on after the cut."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing done to a file."""

    name: str
    verb: str
    offset: int = 0
    data: bytes = b""


class Recording(Backing):
    """A backing that notes what it does to its file, in order with all others."""

    steps: ClassVar[list[Step]] = []

    def write(self, offset: int, data: memoryview) -> None:
        self.steps.append(Step(self.path.name, "write", offset, bytes(data)))
        super().write(offset, data)

    def zero(self, offset: int, length: int) -> None:
        if length > 0:
            self.steps.append(Step(self.path.name, "write", offset, bytes(length)))
        super().zero(offset, length)

    def resize(self, size: int) -> None:
        self.steps.append(Step(self.path.name, "resize", size))
        super().resize(size)

    def sync(self) -> None:
        super().sync()
        self.steps.append(Step(self.path.name, "sync"))


@contextmanager
def recording() -> Iterator[list[Step]]:
    """Every file that is opened meanwhile notes what is done to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "Backing", Recording)
        patch.setattr(Recording, "steps", [])
        yield Recording.steps


def suffix(kind: Format) -> str:
    """The suffix that goes with a format's name."""
    return kind.value.partition("-")[0]


def make(folder: Path, kind: Format) -> Path:
    """An image that holds something already."""
    path = folder / f"disk.{suffix(kind)}"
    if kind is Format.VHD_DIFFERENCING:
        parent = make(folder, Format.VHD_DYNAMIC).rename(folder / "parent.vhd")
        return differencing.make(path, parent, {1: b"1" * 512, 8000: b"8" * 512}, parent_time=0)
    disk = create(path, kind, SIZE)
    disk.write(3 * MIB, memoryview(b"0" * 100_000))
    disk.flush()
    disk.close()
    return path


def kinds() -> list[Format]:
    """The formats that can be written in place."""
    found = [Format.VHD_DIFFERENCING]
    with tempfile.TemporaryDirectory(dir=SCRATCH) as name:
        for kind in CREATORS:
            folder = Path(name) / kind.value
            folder.mkdir()
            try:
                open_target(make(folder, kind)).close()
            except FormatNotSupported:
                continue
            found.append(kind)
    return found


@dataclass(frozen=True, slots=True)
class Mark:
    """A flush that returned: after how many steps, what the disk held, and what was touched until the next one."""

    steps: int
    content: bytes
    touched: list[tuple[int, int]]


def content(disk: Image) -> bytes:
    into = bytearray(disk.size)
    disk.read(0, memoryview(into))
    return bytes(into)


def write_at_random(path: Path, kind: Format, rng: random.Random) -> tuple[list[Step], list[Mark]]:
    """The image has been written to; what was done to its files, and what was promised when."""
    with recording() as steps:
        disk = open_target(path, kind)
        model = bytearray(content(disk))
        marks = [Mark(len(steps), bytes(model), [])]
        for number in range(VERBS):
            offset = rng.randrange(SIZE)
            length = min(SIZE - offset, rng.choice((300, 512, 5000, 70_000, 1_200_000)))
            marks[-1].touched.append((offset, length))
            fill = b"\0" if rng.random() < 0.3 else bytes([number + 65])
            if fill == b"\0":
                disk.zero(offset, length)
            else:
                disk.write(offset, memoryview(fill * length))
            model[offset : offset + length] = fill * length
            if rng.random() < 0.4 or number == VERBS - 1:
                disk.flush()
                marks.append(Mark(len(steps), bytes(model), []))
        disk.close()
        return list(steps), marks


def survivors(steps: Sequence[Step], rng: random.Random) -> Iterator[Step]:
    """What a power cut leaves: all that a flush of its file covers, some of the rest. Lengths keep their order."""
    synced = {step.name: at for at, step in enumerate(steps) if step.verb == "sync"}
    for at, step in enumerate(steps):
        if at < synced.get(step.name, -1) or step.verb == "resize" or rng.random() < 0.5:
            yield step


def replay(folder: Path, steps: Iterator[Step]) -> None:
    for step in steps:
        if step.verb == "sync":
            continue
        with (folder / step.name).open("r+b") as file:
            if step.verb == "resize":
                file.truncate(step.offset)
            else:
                file.seek(step.offset)
                file.write(step.data)


def held(found: bytes, mark: Mark, what: str) -> None:
    """Outside the ranges touched since the flush, the disk is what was flushed."""
    masked, expected = bytearray(found), bytearray(mark.content)
    assert len(masked) == len(expected), what
    for offset, length in mark.touched:
        masked[offset : offset + length] = expected[offset : offset + length] = bytes(length)
    if masked != expected:
        first = next(at for at in range(len(masked)) if masked[at] != expected[at])
        raise AssertionError(f"{what}: the flushed byte at {first} is lost")


def read_by_others(path: Path, kind: Format) -> bytes:
    """The content as qemu-img or 7-Zip reads it. Of a VHDX, qemu-img replays the log on a copy first."""
    if kind is Format.VHD_DIFFERENCING:
        return differencing.read_by_7zip(path)
    form, raw = QEMU[suffix(kind)], path.with_suffix(".read")
    judged = path
    if form == "vhdx":
        judged = path.with_suffix(".copy")
        shutil.copy(path, judged)
        run("qemu-img", "check", "-q", "-r", "all", "-f", form, judged)
    elif form == "vmdk":
        run("qemu-img", "check", "-q", "-f", form, judged)
    run("qemu-img", "convert", "-f", form, "-O", "raw", judged, raw)
    return raw.read_bytes()


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"


def judge(path: Path, kind: Format, mark: Mark, on: bool, what: str) -> None:
    """The image is sound and holds what was flushed; with `on`, it takes what the next opening writes."""
    held(read_by_others(path, kind), mark, f"{what}, read by others")
    found = check(path, kind)
    assert not found.damaged, f"{what}: {found.findings}"
    source = open_source(path, kind)
    seen = content(source)
    source.close()
    held(seen, mark, what)
    if not on:
        return
    again = open_target(path, kind)
    again.write(4 * MIB - 700, memoryview(b"again" * 1000))
    again.flush()
    again.close()
    expected = bytearray(seen)
    expected[4 * MIB - 700 : 4 * MIB + 4300] = b"again" * 1000
    after = Mark(0, bytes(expected), mark.touched)
    held(read_by_others(path, kind), after, f"{what}, written on")


def play(kind: Format, rng: random.Random) -> int:
    """One round; answers how many images were judged."""
    with tempfile.TemporaryDirectory(dir=SCRATCH) as name:
        work, start, cut = (Path(name) / each for each in ("work", "start", "cut"))
        work.mkdir()
        path = make(work, kind)
        shutil.copytree(work, start)
        steps, marks = write_at_random(path, kind, rng)
        judged = 0
        for done in range(len(steps) + 1):
            if 0 < done < len(steps) and steps[done - 1].verb == "sync":
                continue  # the same image as one step before
            mark = max((each for each in marks if each.steps <= done), key=lambda each: each.steps)
            for power in (False, True):
                shutil.copytree(start, cut)
                left = survivors(steps[:done], rng) if power else iter(steps[:done])
                replay(cut, left)
                what = f"{kind.value}: {'power' if power else 'kill'} after {done} of {len(steps)} steps"
                judge(cut / path.name, kind, mark, rng.randrange(WAYS_ON) == 0, what)
                shutil.rmtree(cut)
                judged += 1
        return judged


@contextmanager
def disks() -> Iterator[Round]:
    """A format, and what is done to it, at random."""
    found = kinds()

    def one(rng: random.Random, _: int) -> None:
        assert play(rng.choice(found), rng) > VERBS

    yield one
