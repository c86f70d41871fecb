"""Claim: homeward sync brings a target up to date, durably and verified, ten times as fast as rsync's own delta.

And, sealed and proved, faster than a blind copy of the whole disk.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks import images, limits
from benchmarks.published import Report, Settings
from benchmarks.racing import HOMEWARD, Contender, command, race, same_bytes

DELTA = ("rsync", "--inplace", "--no-whole-file", "--fsync", "--ignore-times")


def bench_sync_changed(
    benchmark: Any,
    changes: images.Changes,
    targets: Path,
    report: Report,
    settings: Settings,
    rates: dict[str, float],
) -> None:
    lines = {"rsync, delta": DELTA, "nbdcopy, the whole disk": ("nbdcopy", "--flush")}
    if not settings.quick:
        lines["rsync, whole"] = ("rsync", "--inplace", "-W", "--fsync", "--ignore-times")
    ours, peers = _contenders(changes, targets, lines, holes=True)
    race(benchmark, settings.rounds, ours, peers)
    report.command("sync 1 % changed blocks", ours, *peers)
    read = 2 * changes.before.data_bytes
    bound = report.bound("sync 1 % changed blocks", [(read, limits.READ), (read, limits.HASHED)], ours)
    report.bars("sync-changed", "Bring a target up to date, 1 % of blocks changed", ours, *peers, bound=bound)


def bench_sync_changed_dense(
    benchmark: Any, changes: images.Changes, targets: Path, report: Report, settings: Settings
) -> None:
    """The same where the target's free space holds written zeroes, which have to be read as data."""
    ours, peers = _contenders(changes, targets, {"rsync, delta": DELTA}, holes=False)
    race(benchmark, settings.rounds, ours, peers)
    report.command("sync 1 % changed blocks, the target without holes", ours, *peers)


def _contenders(
    changes: images.Changes, targets: Path, lines: dict[str, tuple[str, ...]], *, holes: bool
) -> tuple[Contender, list[Contender]]:
    """Ours and the peers (their command lines), before each of whose turns the target is as it was at first."""
    source, target = changes.after.path, targets / "target.img"
    images.copy(changes.before.path, target, holes=holes)
    images.settle(source)

    def prepare() -> None:
        # What `sync --drop-undo` takes away: the last round's old contents would make this one's directory larger.
        images.remove(target.with_name(target.name + ".homeward"))
        changes.undo(target, holes=holes)
        images.settle(source, target)

    def check(found: bytes) -> None:
        told = json.loads(found)
        assert told["blocks_sent"] == len(changes.sectors) - changes.blocks_zeroed
        assert not told["resumed"]
        same_bytes(source, target)

    def check_copy(_: bytes) -> None:
        same_bytes(source, target)

    ours = Contender(
        "homeward sync",
        "homeward sync --json A B",
        command(HOMEWARD, "sync", "--json", source, target),
        check,
        prepare,
    )
    peers = [
        Contender(name, f"{' '.join(words)} A B", command(*words, source, target), check_copy, prepare)
        for name, words in lines.items()
    ]
    if holes and shutil.which("bdsync") is not None:  # not in Debian 12: measured where somebody has built it
        script = (
            'bdsync --blocksize=65536 "bdsync -s" "$1" "$2" >"$2.bd" && bdsync --patch <"$2.bd" && sync "$2"'
        )
        run = command("sh", "-c", script, "sh", source, target)
        peers.append(
            Contender("bdsync, 64 KiB", "bdsync … B A >F && bdsync --patch <F", run, check_copy, prepare)
        )
    return ours, peers
