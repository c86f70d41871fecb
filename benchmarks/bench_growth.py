"""Claim: cost grows with what it must: with the disk's data, with what changed, not with the disk's size."""

import json
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
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


def _quarter_full(path: Path, size: int, seed: int) -> None:
    """Every fourth 16 MiB holds bytes that do not repeat within it; the rest are holes.

    So the largest pair takes 8 GiB: the page cache of a small machine holds it, as it holds the others.
    """
    chance = random.Random(seed)
    with path.open("wb") as file:
        for at in range(0, size, 64 * MIB):
            file.seek(at)
            file.write(chance.randbytes(16 * MIB))
        file.truncate(size)
        file.flush()
        os.fsync(file.fileno())


def _data_read(*paths: Path) -> float:
    """Seconds that it takes to read what `_quarter_full` wrote, every path in a thread of its own."""

    def read(path: Path) -> None:
        piece = bytearray(MIB)
        with path.open("rb", buffering=0) as file:
            for at in range(0, path.stat().st_size, 64 * MIB):
                file.seek(at)
                for _ in range(16):
                    file.readinto(piece)

    began = time.perf_counter()
    with ThreadPoolExecutor(len(paths)) as threads:
        list(threads.map(read, paths))
    return time.perf_counter() - began


def _farthest_off(took: dict[int, float]) -> float:
    """How far, as a factor, a size between the smallest and the largest lies from the line through these two."""
    sizes = sorted(took)
    first, last = sizes[0], sizes[-1]
    slope = (took[last] - took[first]) / (last - first)
    off = [took[size] / (took[first] + slope * (size - first)) for size in sizes[1:-1]]
    return max(max(one, 1 / one) for one in off)


def _sync(source: Path, target: Path) -> Any:
    return json.loads(command(HOMEWARD, "sync", "--json", source, target)())


def bench_repeated_sync(benchmark: Any, targets: Path, report: Report, settings: Settings) -> Any:
    """Seconds of a sync that finds nothing to do, against lines through those of the smallest and largest disk."""
    if settings.quick:
        return benchmark.pedantic(lambda: None, rounds=1)  # 16 GiB are for the full run
    sizes = (1 * MIB, *SIZES)
    pairs = {size: (targets / f"{size}.source.img", targets / f"{size}.target.img") for size in sizes}
    for size, (source, target) in pairs.items():
        _quarter_full(source, size, settings.seed)
        images.copy(source, target)
    synced: dict[int, list[float]] = {size: [] for size in sizes}
    read: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(settings.rounds):
        for size, (source, target) in pairs.items():
            # Not `settle`: reading their holes, too, takes 32 GiB of page cache, and the data out of it.
            images.settle_only(source, target)
            _data_read(source, target)
            contender = Contender("", "", command(HOMEWARD, "sync", "--json", source, target), lambda _: None)
            contender.timed()
            synced[size].append(contender.wall)
            read[size].append(_data_read(source, target))
    for source, target in pairs.values():
        same_bytes(source, target)
        images.remove(source, target)
    seconds, reading = ({size: median(found) for size, found in each.items()} for each in (synced, read))
    shown = {size: seconds[size] for size in SIZES}
    report.growth += [
        [
            f"{what}: farthest off, as a factor",
            f"{_farthest_off(took):.2f} ({', '.join(f'{second:.2f} s' for second in took.values())})",
            bar,
        ]
        for what, took, bar in (
            ("seconds of a repeated sync of 4 GiB, by the line through 1 and 16 GiB", shown, f"{LINEAR:.2f}"),
            ("the same, of 1 and 4 GiB, by the line through 1 MiB and 16 GiB", seconds, "none"),
            ("for scale: seconds of reading the same bytes and no more, by the latter line", reading, "none"),
        )
    ]
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
            made.undo(target, holes=True)
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
