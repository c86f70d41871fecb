"""Claim: a disk that is allocated from end to end is read from any image at page-cache speed, as a raw one is."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import images
from benchmarks.published import Report, Settings
from benchmarks.racing import Contender, command, race
from disks import catalogue
from disks.disk import Format
from disks.scan import pieces
from drcore.buffers import buffer
from drcore.limits import GIB, MIB
from tests import vmdk_deltas

BY_QEMU = {
    Format.VHD_FIXED: "-O vpc -o subformat=fixed,force_size=on",
    Format.VHD_DYNAMIC: "-O vpc -o subformat=dynamic,force_size=on",
    Format.VHDX_FIXED: "-O vhdx -o subformat=fixed",
    Format.VHDX_DYNAMIC: "-O vhdx -o subformat=dynamic",
    Format.VMDK_MONOLITHIC_FLAT: "-O vmdk -o subformat=monolithicFlat",
    Format.VMDK_MONOLITHIC_SPARSE: "-O vmdk -o subformat=monolithicSparse",
    Format.VMDK_TWO_GB_SPARSE: "-O vmdk -o subformat=twoGbMaxExtentSparse",
    Format.QCOW2: "-O qcow2",
}
BY_HOMEWARD = (Format.VHD_DYNAMIC, Format.VHDX_DYNAMIC, Format.VMDK_MONOLITHIC_SPARSE)
BY_HAND = {
    Format.VMDK_VMFS_SPARSE: vmdk_deltas.vmfs_sparse,
    Format.VMDK_SESPARSE: vmdk_deltas.se_sparse,
}
"""Deltas with grains of 4 KiB, all of them there; nothing else makes them (docs/formats.md)."""
GRAIN_BYTES = 4096
TURNS = 5
"""A round reads so many times: one reading of the page cache is over in a tenth of a second."""


@pytest.fixture(scope="module")
def full(scratch: Path, settings: Settings) -> Iterator[Path]:
    """A raw disk without a hole: a random MiB again and again, each with its number in front of every grain."""
    path, size = scratch / "full.raw", min(settings.image_bytes, 64 * MIB if settings.quick else GIB)
    piece = bytearray(random.Random(settings.seed).randbytes(MIB))
    with path.open("wb") as file:
        for number in range(size // MIB):
            for at in range(0, MIB, GRAIN_BYTES):
                piece[at : at + 8] = (number * MIB + at).to_bytes(8, "little")
            file.write(piece)
    images.settle(path)
    yield path
    images.remove(path)


def _qemu(kind: Format, source: Path, target: Path) -> None:
    command("qemu-img", "convert", "-f", "raw", *BY_QEMU[kind].split(), source, target)()


def _homeward(kind: Format, source: Path, target: Path) -> None:
    disk = catalogue.create(target, kind, source.stat().st_size)
    with source.open("rb") as file:
        for offset in range(0, disk.size, MIB):
            disk.write(offset, memoryview(file.read(MIB)))
    disk.flush()
    disk.close()


def _hand(kind: Format, source: Path, target: Path) -> None:
    raw = source.read_bytes()
    grains = {at // GRAIN_BYTES: raw[at : at + GRAIN_BYTES] for at in range(0, len(raw), GRAIN_BYTES)}
    BY_HAND[kind](target, len(raw), grains)


def _reading(path: Path, kind: Format) -> Callable[[], int]:
    """Reads the whole disk in pieces of 1 MiB, as a scan does; answers its size."""
    piece = buffer(MIB)

    def read() -> int:
        for _ in range(TURNS):
            disk = catalogue.open_source(path, kind)
            for offset, length in pieces(disk, disk.size):
                disk.read(offset, piece[:length])
            disk.close()
        return disk.size

    return read


@pytest.mark.parametrize(
    ("maker", "kind"),
    [
        *(("qemu-img", kind) for kind in BY_QEMU),
        *(("homeward", kind) for kind in BY_HOMEWARD),
        *(("hand", kind) for kind in BY_HAND),
    ],
    ids=lambda each: each.value if isinstance(each, Format) else each,
)
def bench_read_formats(
    benchmark: Any, full: Path, targets: Path, report: Report, settings: Settings, maker: str, kind: Format
) -> None:
    """No hash, no comparison: the format's own reader, one thread."""
    target = targets / f"disk.{kind.value.partition('-')[0]}"
    {"qemu-img": _qemu, "homeward": _homeward, "hand": _hand}[maker](kind, full, target)
    images.settle(*targets.iterdir())
    judged = {"vhd": "vpc"}.get(target.suffix[1:], target.suffix[1:])
    same = command("qemu-img", "compare", "-f", "raw", "-F", judged, full, target)()
    assert same == b"Images are identical.\n"

    def check(size: int) -> None:
        assert size == full.stat().st_size

    ours = Contender(
        f"read {kind.value}", "python: disk.read in pieces of 1 MiB", _reading(target, kind), check
    )
    peer = Contender("read raw", "the same, of the raw disk", _reading(full, Format.RAW), check)
    race(benchmark, 2 * settings.rounds, ours, [peer])
    report.command(f"read a full {kind.value} made by {maker}, {TURNS} times", ours, peer)
