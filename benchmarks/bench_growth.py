"""Claim: cost grows with what it must: with the disk's data, with what changed, not with the disk's size."""

import json
import os
import random
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import images
from benchmarks.plots import Lines
from benchmarks.published import Report, Settings
from benchmarks.racing import HOMEWARD, Contender, command, same_bytes
from drcore.limits import GIB, MIB, TIB
from drcore.units import BLOCK_BYTES

SIZES = (1 * GIB, 4 * GIB, 16 * GIB)
LINEAR = 1.10
WIRE_RATIO = 1.5
CHANGED_BLOCKS = 1000
SHARES = (0.0, 0.001, 0.01, 0.1, 0.5)


def _half_full(path: Path, size: int, seed: int) -> None:
    """Every other 16 MiB holds bytes that do not repeat within it; the rest are holes."""
    chance = random.Random(seed)
    with path.open("wb") as file:
        for at in range(0, size, 32 * MIB):
            file.seek(at)
            file.write(chance.randbytes(16 * MIB))
        file.truncate(size)
        file.flush()
        os.fsync(file.fileno())


def _sync(source: Path, target: Path) -> Any:
    return json.loads(command(HOMEWARD, "sync", "--json", source, target)())


def bench_repeated_sync(benchmark: Any, targets: Path, report: Report, settings: Settings) -> Any:
    """Seconds of a sync that finds nothing to do, less those of one of a disk of 1 MiB: its start."""
    if settings.quick:
        return benchmark.pedantic(lambda: None, rounds=1)  # 16 GiB are for the full run
    sizes = (1 * MIB, *SIZES)
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    disks: dict[int, tuple[Path, Path]] = {}
    for size in sizes:
        source, target = targets / f"{size}.source.img", targets / f"{size}.target.img"
        _half_full(source, size, settings.seed)
        images.copy(source, target)
        disks[size] = source, target
        found = []

        def once(source: Path = source, target: Path = target, found: list[float] = found) -> None:
            images.settle(source, target)
            contender = Contender("", "", command(HOMEWARD, "sync", "--json", source, target), lambda _: None)
            contender.timed()
            found.append(contender.wall)

        for _ in range(settings.rounds):
            once()
        same_bytes(source, target)
        seconds[size] = found
        images.remove(source, target)  # the page cache has room for one pair of the largest
    start = median(seconds[1 * MIB])
    each = {size: (median(seconds[size]) - start) / (size / GIB) for size in SIZES}
    report.growth.append(
        [
            "seconds for each GiB of a repeated sync, less its start: most by least of 1, 4, 16 GiB",
            f"{max(each.values()) / min(each.values()):.2f} "
            f"({', '.join(f'{value:.3f}' for value in each.values())}; start {start:.2f} s)",
            f"{LINEAR:.2f}",
        ]
    )
    return benchmark.pedantic(lambda: None, rounds=1)


def bench_wire_of_sizes(benchmark: Any, targets: Path, report: Report, settings: Settings) -> None:
    """The same blocks change on a small and on a huge disk, both nearly all holes."""
    sent: list[int] = []
    places = sorted(random.Random(settings.seed).sample(range(4 * GIB // BLOCK_BYTES), CHANGED_BLOCKS))
    for size in (4 * GIB, 4 * TIB):
        source, target = targets / "source.img", targets / "target.img"
        for path, seed in ((source, 1), (target, 2)):
            chance = random.Random(settings.seed + seed)
            with path.open("wb") as file:
                file.truncate(size)
                for place in places:
                    file.seek(place * (size // (4 * GIB)) * BLOCK_BYTES)
                    file.write(chance.randbytes(BLOCK_BYTES))
        images.settle_only(source, target)
        found = _sync(source, target)
        assert found["blocks_sent"] == CHANGED_BLOCKS
        sent.append(found["bytes_sent"] + found["bytes_received"])
        images.remove(source, target, target.with_name(f"{target.name}.homeward"))
    benchmark.pedantic(lambda: None, rounds=1)
    report.growth.append(
        [
            f"bytes on the wire, both ways, for {CHANGED_BLOCKS:,} changed blocks on 4 TiB, by those on 4 GiB",
            f"{sent[1] / sent[0]:.3f} ({sent[1]:,} / {sent[0]:,})",
            f"{WIRE_RATIO:.1f}",
        ]
    )


def bench_changed_share(
    benchmark: Any, changes: images.Changes, scratch: Path, targets: Path, report: Report, settings: Settings
) -> Any:
    """Seconds against the share of blocks that changed."""
    if settings.quick:
        return benchmark.pedantic(lambda: None, rounds=1)  # the picture is for the full run
    words = {
        "homeward sync": (HOMEWARD, "sync", "--json"),
        "rsync, delta": ("rsync", "--inplace", "--no-whole-file", "--fsync", "--ignore-times"),
        "nbdcopy, whole": ("nbdcopy", "--flush"),
    }
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in words}
    for share in SHARES:
        source, target = targets / "source.img", targets / "target.img"
        made = images.change(changes.before, source, settings.seed + 2, share)
        images.copy(changes.before.path, target)

        def prepare(made: images.Changes = made, source: Path = source, target: Path = target) -> None:
            made.undo(target)
            images.settle(source, target)

        def check(_: bytes, source: Path = source, target: Path = target) -> None:
            same_bytes(source, target)

        racers = [
            Contender(name, "", command(*line, source, target), check, prepare)
            for name, line in words.items()
        ]
        for _ in range(3):
            for racer in racers:
                racer.turn()
        for racer in racers:
            points[racer.name].append((100 * share, racer.wall))
        images.remove(source, target)
    report.plots["share"] = Lines(
        f"Bring a target of {settings.image_bytes / GIB:g} GiB up to date",
        "changed blocks of those that hold data, %",
        "seconds",
        tuple((name, tuple(found)) for name, found in points.items()),
    )
    return benchmark.pedantic(lambda: None, rounds=1)
