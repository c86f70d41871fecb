"""Claims: homeward fills a line as iperf3 does with as many connections; automatic compression is the better way.

Part of the full run only; it took sixteen minutes on two cores that others used as well. The disks lie in memory
(/dev/shm) where there is room: the line is measured, not the disk.
"""

import csv
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from statistics import median
from typing import Any, Final

import pytest

from benchmarks import images
from benchmarks.links import lab
from benchmarks.links.published import write
from benchmarks.links.transfer import LOCAL, Transfer, iperf3, send
from benchmarks.published import Settings
from drcore.limits import GIB, LANES_MAX, MIB

DOCUMENT: Final = Path(__file__).parent.parent / "docs" / "links.md"
DATA: Final = DOCUMENT.with_suffix(".csv")
MEMORY: Final = Path("/dev/shm")
ROOM_BYTES: Final = 6 * GIB
SECONDS: Final = {100: 15, 1000: 12}
"""What a line of so many Mbit/s takes for one transfer at its full rate; none gets it, and a way home is longer."""
SEGMENT_BYTES: Final = 1448
LOSS: Final = 0.001
LINES: Final = [
    *(
        (lab.Line(rate, round_trip, loss), "")
        for rate in (100, 1000)
        for round_trip in (20, 80)
        for loss in (0.0, LOSS)
    ),
    (lab.Line(100, 80, LOSS), "reno"),
    (lab.Line(1000, 80, LOSS), "reno"),
]
ROUND_TRIPS: Final = (5, 20, 80, 160)
LANES: Final = (1, 4, 16)
COMPRESSION_ROUNDS: Final = 3
WAYS: Final = ("auto", "always", "never")


@dataclass(slots=True)
class Found:
    """Rows of the three tables, and of the data file for the plot."""

    missing: str | None
    lines: list[list[str]] = field(default_factory=list)
    compression: list[list[str]] = field(default_factory=list)
    lanes: list[list[str]] = field(default_factory=list)


@pytest.fixture(scope="module")
def found(settings: Settings) -> Iterator[Found]:
    """What the parts below find; written into the document after the last of them."""
    rows = Found(None if settings.quick else lab.missing())
    yield rows
    if not settings.quick:
        write(DOCUMENT, rows.missing, rows.lines, rows.compression, rows.lanes)
        if rows.lanes:
            with DATA.open("w", newline="") as file:
                csv.writer(file).writerows([("round_trip_ms", "lanes", "mbit_a_second"), *rows.lanes])


@pytest.fixture(scope="module")
def room() -> Iterator[Path]:
    """A directory in memory, or below TMPDIR, gone afterwards."""
    fits = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM_BYTES
    with tempfile.TemporaryDirectory(prefix="homeward-links-", dir=MEMORY if fits else None) as name:
        yield Path(name)


def bench_lines(benchmark: Any, found: Found, settings: Settings, room: Path) -> None:
    if settings.quick or found.missing:
        benchmark(lambda: None)
        return

    def all_lines() -> None:
        for line, congestion in LINES:
            most = LANES_MAX * _one_lane(line) if congestion == "reno" else line.bytes_a_second
            source = _random(room, round(min(line.bytes_a_second, most) * SECONDS[line.rate]), settings.seed)
            with lab.built(line, room, congestion=congestion, seed=settings.seed) as link:
                ours = send(link, source, room)
                peer = iperf3(link, ours.lanes, ours.seconds)
            found.lines.append(
                [
                    str(line),
                    congestion or _congestion(),
                    str(ours.lanes),
                    f"{ours.rate * 8e-6:,.1f}",
                    f"{peer * 8e-6:,.1f}",
                    f"**{ours.rate / peer:.2f}**",
                    _load(),
                ]
            )

    benchmark.pedantic(all_lines, rounds=1, iterations=1)


def bench_lanes(benchmark: Any, found: Found, settings: Settings, room: Path) -> None:
    """What so many lanes carry at a round trip, on a line that loses packets."""
    if settings.quick or found.missing:
        benchmark(lambda: None)
        return

    def all_lanes() -> None:
        for round_trip in ROUND_TRIPS:
            line = lab.Line(100, round_trip, LOSS)
            with lab.built(line, room, congestion="reno", seed=settings.seed) as link:
                for lanes in LANES:
                    rate = min(line.bytes_a_second, lanes * _one_lane(line))
                    source = _random(room, round(4 * rate), settings.seed)
                    ours = send(link, source, room, lanes=lanes)
                    found.lanes.append([str(round_trip), str(lanes), f"{ours.rate * 8e-6:.1f}"])

    benchmark.pedantic(all_lanes, rounds=1, iterations=1)


def bench_compression(benchmark: Any, found: Found, settings: Settings, room: Path) -> None:
    if settings.quick or found.missing:
        benchmark(lambda: None)
        return

    def all_places() -> None:
        for line, size in ((None, 384 * MIB), (lab.Line(100, 20), 40 * MIB), (lab.Line(1000, 20), 256 * MIB)):
            with lab.built(line, room) if line else nullcontext(LOCAL) as link:
                for content in ("files", "random"):
                    source = room / "source.raw"
                    if content == "files":
                        images.make(source, 2 * size, settings.seed)
                    else:
                        _random(room, size, settings.seed)
                    _compare_ways(found, str(line or "loopback"), content, link, source, room)

    benchmark.pedantic(all_places, rounds=1, iterations=1)


def _compare_ways(found: Found, place: str, content: str, link: lab.Lab, source: Path, room: Path) -> None:
    """The three ways, taking turns. The number of lanes is fixed: it is not what is measured."""
    took: dict[str, list[Transfer]] = {way: [] for way in WAYS}
    for _ in range(COMPRESSION_ROUNDS):
        for way in WAYS:
            took[way].append(send(link, source, room, compression=way, lanes=8 if link.far else 1))
    seconds = {way: median(one.seconds for one in took[way]) for way in WAYS}
    better = min(seconds["always"], seconds["never"])
    found.compression.append(
        [
            place,
            content,
            *(f"{seconds[way]:.2f} ({took[way][0].wire_bytes / MIB:,.0f})" for way in WAYS),
            f"**{seconds['auto'] / better:.2f}**",
            _load(),
        ]
    )


def _random(room: Path, size: int, seed: int) -> Path:
    """A disk of whole blocks that do not compress."""
    path = room / "source.raw"
    dice = random.Random(seed)
    with path.open("wb") as file:
        for _ in range(-(-size // MIB)):
            file.write(dice.randbytes(MIB))
        os.fsync(file.fileno())
    return path


def _one_lane(line: lab.Line) -> float:
    """Bytes a second that loss leaves to one connection with reno: Mathis, Semke, Mahdavi, Ott, 1997."""
    return 1.22 * SEGMENT_BYTES / (line.round_trip_ms / 1000 * sqrt(line.loss))


def _load() -> str:
    """What was at work in the last minute, this measurement included."""
    return f"{os.getloadavg()[0]:.0f}"


def _congestion() -> str:
    return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
