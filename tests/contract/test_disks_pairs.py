"""Every readable format goes home into every writable one, differentially and in odd sizes, and others agree.

Through the verbs of `disks` all pairs; through the command a few, drawn anew each time.
"""

import random
import re
import shutil
from pathlib import Path

import pytest

from disks.catalogue import CREATORS, check, open_source, open_target
from disks.check import Severity
from disks.disk import ExtentKind, Format
from tests.images import SOURCES, SUFFIX, judged_equal, maker
from tests.system.command import changed, homeward, some_content

SIZES = (512, 65536 - 512, 2 * 1024 * 1024 + 512, 5 * 1024 * 1024 + 7 * 512)
TARGETS = (*CREATORS, Format.VHD_DIFFERENCING)
PIECE = 256 * 1024


class Bench:
    """Content, its past, and images of both in every format, made once a size."""

    def __init__(self, folder: Path, size: int, dice: random.Random) -> None:
        self.folder = folder
        self.content = bytes(some_content(dice, size))
        self.past = bytes(changed(dice, self.content))
        self.expected = folder / "expected.raw"
        self.expected.write_bytes(self.content)
        self._targets: dict[Format, Path] = {}

    def source(self, name: str) -> Path:
        folder = self.folder / f"source-{name}"
        folder.mkdir()
        return SOURCES[name](folder, self.content)

    def target(self, kind: Format, purpose: str) -> Path:
        """A fresh image of the past; some formats remember names, so the copy keeps them."""
        if kind not in self._targets:
            folder = self.folder / f"target-{kind.value}"
            folder.mkdir()
            self._targets[kind] = maker(kind)(folder, self.past)
        made = self._targets[kind]
        copy = self.folder / f"{purpose}-{kind.value}"
        # A differencing VHD knows its parent's time of change.
        shutil.copytree(made.parent, copy, copy_function=shutil.copy2)
        return copy / made.name


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Bench]:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    return {size: Bench(tmp_path_factory.mktemp("pairs"), size, dice) for size in SIZES}


def carry(source_path: Path, source_format: Format | None, target_path: Path, kind: Format) -> None:
    """The target becomes the source; only 4 KiB sectors that differ are written, known zeroes are zeroed."""
    source, target = open_source(source_path, source_format), open_target(target_path, kind)
    try:
        assert source.size == target.size
        for extent in source.extents(0, source.size):
            for offset in range(extent.offset, extent.offset + extent.length, PIECE):
                length = min(PIECE, extent.offset + extent.length - offset)
                new, old = bytearray(length), bytearray(length)
                source.read(offset, memoryview(new))
                target.read(offset, memoryview(old))
                if extent.kind is ExtentKind.ZERO:
                    assert not any(new)
                    if any(old):
                        target.zero(offset, length)
                    continue
                for at in range(0, length, 4096):
                    if new[at : at + 4096] != old[at : at + 4096]:
                        target.write(offset + at, memoryview(new)[at : at + 4096])
        target.flush()
    finally:
        source.close()
        target.close()


def identity_text(path: Path) -> list[str]:
    """The descriptor's lines but those that a write changes."""
    text = path.read_bytes()[:65536].partition(b"# Disk DescriptorFile")[2].partition(b"\0")[0].decode()
    return [line for line in text.splitlines() if not re.match(r"CID=|ddb\.longContentID", line)]


def told(name: str) -> Format | None:
    return Format(name) if name in {kind.value for kind in Format} else None


def test_every_format_is_a_source_here_and_every_writable_one_a_target() -> None:
    assert {kind.value for kind in Format} <= set(SOURCES)
    assert set(TARGETS) >= set(CREATORS)


@pytest.mark.parametrize("name", SOURCES)
def test_any_format_goes_into_any_other(name: str, benches: dict[int, Bench]) -> None:
    sizes = list(SIZES)
    random.Random(name).shuffle(sizes)
    opened = {size: benches[size].source(name) for size in sizes[:2]}
    for number, kind in enumerate(TARGETS):
        size = sizes[number % 2]
        bench = benches[size]
        target = bench.target(kind, name)
        before = identity_text(target), open_uuid(target, kind)
        carry(opened[size], told(name), target, kind)
        judged_equal(target, kind, bench.expected)
        assert (identity_text(target), open_uuid(target, kind)) == before
        findings = check(target, kind).findings
        assert not [each for each in findings if each.severity is Severity.DAMAGE], (kind, size, findings)
        shutil.rmtree(target.parent)


def open_uuid(path: Path, kind: Format) -> str | None:
    disk = open_source(path, kind)
    try:
        return disk.disk_uuid
    finally:
        disk.close()


def test_pairs_drawn_by_lot_go_through_the_command(dice: random.Random, tmp_path: Path) -> None:
    bench = Bench(tmp_path, dice.choice(SIZES[1:]), dice)
    names = dice.sample(sorted(SOURCES), 3)
    kinds = dice.sample([kind for kind in TARGETS if kind is not Format.RAW], 3)
    for name, kind in zip(names, kinds, strict=True):
        print(name, "into", kind.value)
        source = bench.source(name)
        target = bench.target(kind, name)
        done = homeward("sync", source, target, "--json")
        assert done.answer()["virtual_size"] == len(bench.content), (name, kind, done)
        judged_equal(target, kind, bench.expected)
        assert homeward("compare", source, target).code == 0
        created = tmp_path / f"created-{name}-{kind.value}.{SUFFIX[kind]}"
        if kind in CREATORS:
            assert homeward("sync", source, created, "--create", kind.value).code == 0
            judged_equal(created, kind, bench.expected)
