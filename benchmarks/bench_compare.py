"""Claim: homeward compare counts every block and sector that differs, faster than cmp lists the bytes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import images, limits
from benchmarks.published import Report, Settings
from benchmarks.racing import HOMEWARD, Contender, command, race
from drcore.units import SECTOR_BYTES


def bench_compare_equal(
    benchmark: Any,
    changes: images.Changes,
    targets: Path,
    report: Report,
    settings: Settings,
    rates: dict[str, float],
) -> None:
    source, target = changes.before.path, targets / "equal.img"
    images.copy(source, target)
    images.settle(source)

    def check(found: bytes) -> None:
        assert json.loads(found)["blocks_changed"] == 0

    def check_qemu(found: bytes) -> None:
        assert found == b"Images are identical.\n"

    def check_sums(found: bytes) -> None:
        first, second = (line.split()[0] for line in found.splitlines())
        assert first == second

    def both_at_once(*words: str) -> Callable[[], bytes]:
        line = " ".join(words)
        return command("sh", "-c", f'{line} "$1" & {line} "$2"; wait', "sh", source, target)

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
        Contender(
            "xxhsum, both at once",
            "xxhsum -H2 A & xxhsum -H2 B; wait",
            both_at_once("xxhsum", "-q", "-H2"),
            check_sums,
        ),
        Contender("b3sum, both at once", "b3sum A & b3sum B; wait", both_at_once("b3sum"), check_sums),
        Contender("cmp", "cmp A B", command("cmp", source, target), _nothing),
    ]
    if not settings.quick:
        dry = ("rsync", "-nc", "--inplace", "--ignore-times", "--itemize-changes")
        peers.append(
            Contender("rsync, dry run", f"{' '.join(dry)} A B", command(*dry, source, target), _nothing)
        )
    race(benchmark, settings.rounds, ours, peers)
    report.command("compare equal disks", ours, *peers)
    read = 2 * changes.before.data_bytes
    bound = report.bound("compare equal disks", [(read, limits.READ), (read, limits.COMPARED)], ours)
    report.bars("compare", "Compare equal disks", ours, *peers, bound=bound)


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
