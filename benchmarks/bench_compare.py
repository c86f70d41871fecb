"""Claim: homeward compare counts every block and sector that differs, faster than cmp lists the bytes."""

import json
from pathlib import Path
from typing import Any

from benchmarks import images
from benchmarks.published import Report, Settings
from benchmarks.racing import HOMEWARD, Contender, command, race
from drcore.units import SECTOR_BYTES


def bench_compare_equal(
    benchmark: Any, changes: images.Changes, targets: Path, report: Report, settings: Settings
) -> None:
    source, target = changes.before.path, targets / "equal.img"
    images.copy(source, target)
    images.settle(source)

    def check(found: bytes) -> None:
        assert json.loads(found)["blocks_changed"] == 0

    def check_qemu(found: bytes) -> None:
        assert found == b"Images are identical.\n"

    ours = Contender(
        "homeward compare",
        "homeward compare --json A B",
        command(HOMEWARD, "compare", "--json", source, target),
        check,
    )
    peers = [
        Contender(
            "qemu-img compare",
            "qemu-img compare -f raw -F raw A B",
            command("qemu-img", "compare", "-f", "raw", "-F", "raw", source, target),
            check_qemu,
        ),
        Contender("cmp", "cmp A B", command("cmp", source, target), _nothing),
    ]
    race(benchmark, settings.rounds, ours, peers)
    report.command("compare equal disks", ours, *peers)


def bench_compare_different(
    benchmark: Any, changes: images.Changes, report: Report, settings: Settings
) -> None:
    """The peers here list every byte, or stop at the first difference; only ours answers with blocks and sectors."""
    source, target = changes.after.path, changes.before.path
    images.settle(source, target)

    def check(found: bytes) -> None:
        told = json.loads(found)
        assert told["blocks_changed"] == len(changes.sectors)
        assert told["sectors_changed"] == changes.sector_count
        assert told["bytes_changed"] == changes.sector_count * SECTOR_BYTES

    def check_list(found: bytes) -> None:
        assert int(found) >= changes.sector_count

    def check_first(found: bytes) -> None:
        assert found.startswith(b"Content mismatch at offset ")

    ours = Contender(
        "homeward compare",
        "homeward compare --json A B",
        command(HOMEWARD, "compare", "--json", source, target, ok=(1,)),
        check,
    )
    peers = [
        Contender(
            "cmp -l",
            "cmp -l A B | wc -l",
            command("sh", "-c", 'cmp -l "$1" "$2" | wc -l', "sh", source, target),
            check_list,
        ),
        Contender(
            "qemu-img compare, first difference only",
            "qemu-img compare -f raw -F raw A B",
            command("qemu-img", "compare", "-f", "raw", "-F", "raw", source, target, ok=(1,)),
            check_first,
        ),
    ]
    race(benchmark, settings.rounds, ours, peers)
    report.command("compare disks of which 1 % differs", ours, *peers)


def _nothing(found: bytes) -> None:
    assert found == b""
