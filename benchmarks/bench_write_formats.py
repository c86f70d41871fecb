"""Claim: a new VMDK or VHD is written from end to end, durably, as fast as qemu-img convert writes it."""

import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import images
from benchmarks.published import Report, Settings
from benchmarks.racing import Contender, command, race

WRITE = """
import sys
from disks import catalogue
from disks.disk import Format
from disks.scan import data_runs
from drcore.buffers import buffer
from drcore.limits import MIB
source = catalogue.open_source(sys.argv[1])
target = catalogue.create(sys.argv[2], Format(sys.argv[3]), source.size)
piece = buffer(MIB)
for start, end in data_runs(source, source.size):
    for at in range(start, end, MIB):
        part = piece[: min(MIB, end - at)]
        source.read(at, part)
        target.write(at, part)
target.flush()
target.close()
"""


@pytest.mark.parametrize(
    ("kind", "suffix", "options"),
    [
        ("vmdk-monolithicSparse", "vmdk", "-O vmdk -o subformat=monolithicSparse"),
        ("vhd-dynamic", "vhd", "-O vpc -o subformat=dynamic,force_size=on"),
    ],
)
def bench_write_formats(
    benchmark: Any,
    changes: images.Changes,
    targets: Path,
    report: Report,
    settings: Settings,
    kind: str,
    suffix: str,
    options: str,
) -> None:
    """No sync, no seal: the format's own writer, in a process that does nothing else."""
    source, target = changes.before.path, targets / f"new.{suffix}"

    def absent() -> None:
        images.remove(target)
        images.settle(source)

    def check(_: bytes) -> None:
        told = "vpc" if suffix == "vhd" else suffix
        judge = command("qemu-img", "compare", "-f", "raw", "-F", told, source, target)
        assert judge() == b"Images are identical.\n"

    ours = Contender(
        f"homeward's writer, {kind}",
        f"python: catalogue.create(B, {kind}), write in pieces of 1 MiB, flush",
        command(sys.executable, "-c", WRITE, source, target, kind),
        check,
        absent,
    )
    convert = f"qemu-img convert -f raw {options}"
    peer = Contender(
        f"qemu-img convert, {kind}",
        f"{convert} A B && sync -d B",
        command("sh", "-c", f'{convert} "$1" "$2" && sync -d "$2"', "sh", source, target),
        check,
        absent,
    )
    race(benchmark, settings.rounds, ours, [peer])
    report.command(f"write a new {kind}", ours, peer)
