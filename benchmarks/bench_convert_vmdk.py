"""Claim: a raw disk comes home as a VMDK that qemu-img calls identical; qemu-img convert is the yardstick."""

import json
from pathlib import Path
from typing import Any

from benchmarks import images
from benchmarks.published import Report, Settings
from benchmarks.racing import HOMEWARD, Contender, command, race


def bench_convert_vmdk(
    benchmark: Any, changes: images.Changes, targets: Path, report: Report, settings: Settings
) -> None:
    source, target = changes.before.path, targets / "new.vmdk"

    def absent() -> None:
        images.remove(target)
        images.settle(source)

    def check(found: bytes) -> None:
        assert json.loads(found)["virtual_size"] == settings.image_bytes
        check_vmdk(found)

    def check_vmdk(_: bytes) -> None:
        judge = command("qemu-img", "compare", "-f", "raw", "-F", "vmdk", source, target)
        assert judge() == b"Images are identical.\n"

    ours = Contender(
        "homeward sync, new VMDK",
        "homeward sync --json --create vmdk-monolithicSparse A B",
        command(HOMEWARD, "sync", "--json", "--create", "vmdk-monolithicSparse", source, target),
        check,
        absent,
    )
    convert = "qemu-img convert -f raw -O vmdk -o subformat=monolithicSparse"
    peer = Contender(
        "qemu-img convert",
        f"{convert} A B && sync -d B",
        command("sh", "-c", f'{convert} "$1" "$2" && sync -d "$2"', "sh", source, target),
        check_vmdk,
        absent,
    )
    race(benchmark, settings.rounds, ours, [peer])
    report.command("raw to a new VMDK", ours, peer)
    report.bars("new-vmdk", "Raw to a new VMDK", ours, peer)
