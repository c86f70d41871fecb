"""Claim: filling a new target, sealed and proved, is faster than rsync; nbdcopy shows what a bare copy takes."""

import json
from pathlib import Path
from typing import Any

from benchmarks import images, limits
from benchmarks.published import Report, Settings
from benchmarks.racing import HOMEWARD, Contender, command, race, same_bytes


def bench_sync_new(
    benchmark: Any,
    changes: images.Changes,
    targets: Path,
    report: Report,
    settings: Settings,
    rates: dict[str, float],
) -> None:
    source, target = changes.before.path, targets / "new.img"

    def absent() -> None:
        images.remove(target)
        images.settle(source)

    def empty() -> None:
        absent()
        with target.open("wb") as file:
            file.truncate(settings.image_bytes)

    def check(found: bytes) -> None:
        assert json.loads(found)["virtual_size"] == settings.image_bytes
        check_copy(found)

    def check_copy(_: bytes) -> None:
        same_bytes(source, target)

    ours = Contender(
        "homeward sync, new raw",
        "homeward sync --json --create raw A B",
        command(HOMEWARD, "sync", "--json", "--create", "raw", source, target),
        check,
        absent,
    )
    peers = [
        Contender(
            "nbdcopy",
            "nbdcopy --flush A B (B a hole of A's size)",
            command("nbdcopy", "--flush", source, target),
            check_copy,
            empty,
        ),
        Contender(
            "rsync, whole, sparse",
            "rsync -W -S --fsync A B",
            command("rsync", "-W", "-S", "--fsync", source, target),
            check_copy,
            absent,
        ),
    ]
    if not settings.quick:
        line = 'cat "$1" | dd of="$2" bs=1M iflag=fullblock conv=fdatasync status=none'
        run = command("sh", "-c", line, "sh", source, target)
        peers.append(
            Contender(
                "cat into dd", "cat A | dd of=B bs=1M iflag=fullblock conv=fdatasync", run, check_copy, absent
            )
        )
    race(benchmark, settings.rounds, ours, peers)
    report.command("fill a new raw disk", ours, *peers)
    data = changes.before.data_bytes
    steps = [
        (data, step)
        for step in (
            limits.READ,
            limits.HASHED,
            limits.SEALED,
            limits.OPENED,
            limits.HASHED,
            limits.WRITTEN,
        )
    ]
    bound = report.bound("fill a new raw disk", steps, ours, flushed=data)
    report.bars("sync-new", "Fill a new raw disk", ours, *peers, bound=bound)
