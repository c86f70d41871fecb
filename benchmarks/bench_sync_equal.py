"""Claim: a sync that has nothing to bring moves less than 100 KiB, however large the disk."""

import json
from pathlib import Path
from typing import Any

from benchmarks import images
from benchmarks.published import Report, Settings
from benchmarks.racing import HOMEWARD, Contender, command, race, same_bytes
from drcore.limits import KIB

WIRE_BYTES_MAX = 100 * KIB


def bench_sync_equal(
    benchmark: Any, changes: images.Changes, targets: Path, report: Report, settings: Settings
) -> None:
    source, target = changes.before.path, targets / "equal.img"
    images.copy(source, target)
    wire: list[int] = []

    def prepare() -> None:
        images.settle(source, target)

    def check(found: bytes) -> None:
        told = json.loads(found)
        assert told["blocks_sent"] == 0
        wire.append(told["bytes_sent"] + told["bytes_received"])
        assert wire[-1] < WIRE_BYTES_MAX
        same_bytes(source, target)

    def check_rsync(_: bytes) -> None:
        same_bytes(source, target)

    ours = Contender(
        "homeward sync",
        "homeward sync --json A B",
        command(HOMEWARD, "sync", "--json", source, target),
        check,
        prepare,
    )
    peer = Contender(
        "rsync, delta",
        "rsync --inplace --no-whole-file --fsync --ignore-times A B",
        command("rsync", "--inplace", "--no-whole-file", "--fsync", "--ignore-times", source, target),
        check_rsync,
        prepare,
    )
    race(benchmark, settings.rounds, ours, [peer])
    report.command("sync equal disks", ours, peer)
    report.fact("bytes on the wire, both ways, for equal disks", f"{max(wire):,}", f"{WIRE_BYTES_MAX:,}")
