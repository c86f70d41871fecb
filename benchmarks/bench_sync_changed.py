"""Claim: homeward sync brings a target up to date, durably and verified, four times as fast as rsync's own delta."""

import json
from pathlib import Path
from typing import Any

from benchmarks import images
from benchmarks.published import Report, Settings
from benchmarks.racing import HOMEWARD, Contender, command, race, same_bytes


def bench_sync_changed(
    benchmark: Any, changes: images.Changes, targets: Path, report: Report, settings: Settings
) -> None:
    source, target = changes.after.path, targets / "target.img"
    images.copy(changes.before.path, target)
    images.settle(source)

    def prepare() -> None:
        changes.undo(target)
        images.settle(source, target)

    def check(found: bytes) -> None:
        told = json.loads(found)
        assert told["blocks_sent"] == len(changes.sectors) - changes.blocks_zeroed
        assert not told["resumed"]
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
    report.command("sync 1 % changed blocks", ours, peer)
