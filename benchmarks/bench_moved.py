"""Claim: files that were moved cost the wire a fifth of what their content takes, or less."""

import json
import random
from pathlib import Path
from typing import Any

from benchmarks import images
from benchmarks.published import Report, Settings
from benchmarks.racing import HOMEWARD, Contender, command, race, same_bytes
from drcore.units import SECTOR_BYTES

FILE_SECTORS = (1, 2, 4, 16, 60, 250, 1000, 4000)
SHARE_MAX = 0.20


def moved(before: images.Image, path: Path, seed: int) -> images.Image:
    """The image with the content of its runs cut into files of whole sectors, which lie in another order there."""
    chance = random.Random(seed)
    files: list[tuple[int, int]] = []
    for start, length in before.runs:
        while length:
            piece = min(chance.choice(FILE_SECTORS) * SECTOR_BYTES, length)
            files.append((start, piece))
            start, length = start + piece, length - piece
    chance.shuffle(files)
    images.copy(before.path, path)
    with before.path.open("rb") as old, path.open("r+b") as new:
        free = iter(before.runs)
        at, left = next(free)
        for start, length in files:
            old.seek(start)
            content = old.read(length)
            while content:
                if not left:
                    at, left = next(free)
                new.seek(at)
                done = new.write(content[:left])
                at, left, content = at + done, left - done, content[done:]
    images.settle(path)
    return images.Image(path, before.size, before.runs)


def bench_moved(
    benchmark: Any, changes: images.Changes, targets: Path, report: Report, settings: Settings
) -> None:
    source, target = targets / "moved.img", targets / "target.img"
    moved(changes.before, source, settings.seed)
    sent: list[int] = []
    # What it would be without: nothing is found in an empty target.
    whole = json.loads(
        command(HOMEWARD, "sync", "--json", "--compression", "always", "--create", "raw", source, target)()
    )
    images.remove(target)

    def prepare() -> None:
        images.remove(target, target.with_name(f"{target.name}.homeward"))
        images.copy(changes.before.path, target)
        images.settle(source, target)

    def check(found: bytes) -> None:
        told = json.loads(found)
        sent.append(told["bytes_sent"])
        assert told["sectors_referenced"] > 0
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
        lambda _: same_bytes(source, target),
        prepare,
    )
    race(benchmark, settings.rounds, ours, [peer])
    report.command("sync moved files", ours, peer)
    share = max(sent) / whole["bytes_sent"]
    assert share <= SHARE_MAX, f"{max(sent)} bytes sent where {whole['bytes_sent']} are the content"
    report.fact(
        "bytes sent when every file lies elsewhere, divided by what the same source takes without references",
        f"{share:.4f} ({max(sent):,} / {whole['bytes_sent']:,})",
        f"{SHARE_MAX:.2f}",
    )
