"""Claims: homeward fills a line as iperf3 does with as many connections; automatic compression is the better way.

Part of the full run only, a quarter of an hour; each row can be measured alone (`-k`) and is written at once. The disks
lie in memory (/dev/shm) where there is room: the line is measured, not the disk.
"""

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from math import sqrt
from pathlib import Path
from statistics import median
from typing import Any, Final

import pytest

from benchmarks import images
from benchmarks.links import lab, published
from benchmarks.links.transfer import LOCAL, Transfer, counted, iperf3, send
from benchmarks.published import Settings
from drcore.limits import GIB, LANES_MAX, MIB

MEMORY: Final = Path("/dev/shm")
ROOM_BYTES: Final = 6 * GIB
SECONDS: Final = {100: 20, 1000: 20}
"""What a line of so many Mbit/s takes for one transfer at its full rate: long enough that finding the other end, six
round trips, counts little, as it does not count at all for iperf3."""
SEGMENT_BYTES: Final = 1448
LOSS: Final = 0.001
LINES: Final[list[tuple[lab.Line, str]]] = [
    *(
        (lab.Line(rate, round_trip, loss), "")
        for rate in (100, 1000)
        for round_trip in (20, 80)
        for loss in (0.0, LOSS)
    ),
    (lab.Line(100, 80, LOSS), "reno"),
    (lab.Line(1000, 80, LOSS), "reno"),
]
YOUNG: Final = 1.6
"""Connections carry more than loss leaves to them until the first losses come: sixteen, in twenty seconds, so many
times as much (measured at 1 Gbit/s and 80 ms)."""
ROUND_TRIPS: Final = (5, 20, 80, 160)
LANES: Final = (1, 4, 16)
COMPRESSION_ROUNDS: Final = 5
WAYS: Final = ("auto", "always", "never")
PLACES: Final[dict[str, tuple[lab.Line | None, int]]] = {
    "loopback": (None, 384 * MIB),
    "100 Mbit/s, 20 ms": (lab.Line(100, 20), 40 * MIB),
    "1,000 Mbit/s, 20 ms": (lab.Line(1000, 20), 256 * MIB),
}
"""Where compression is compared, and the content that crosses."""
CONTENTS: Final = ("files", "random")


def _named(one: object) -> str:
    """A name for `-k`: 1000-80-0.001-reno."""
    return (
        f"{one.rate}-{one.round_trip_ms}-{one.loss:g}" if isinstance(one, lab.Line) else str(one or "default")
    )


@pytest.fixture(scope="module")
def room() -> Iterator[Path]:
    """A directory in memory, or below TMPDIR, gone afterwards."""
    fits = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM_BYTES
    with tempfile.TemporaryDirectory(prefix="homeward-links-", dir=MEMORY if fits else None) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def able(settings: Settings) -> bool:
    """Whether links can be built and measured here; else the rows stay as they were."""
    return not settings.quick and lab.missing() is None


@pytest.mark.parametrize(("line", "congestion"), LINES, ids=_named)
def bench_lines(
    benchmark: Any, line: lab.Line, congestion: str, able: bool, settings: Settings, room: Path
) -> None:
    def cross() -> None:
        most = YOUNG * LANES_MAX * _one_lane(line) if congestion == "reno" else line.bytes_a_second
        source = _random(room, round(min(line.bytes_a_second, most) * SECONDS[line.rate]), settings.seed)
        with lab.built(line, room, congestion=congestion, seed=settings.seed) as link:
            with counted(link) as arrived:
                ours = send(link, source, room)
            with counted(link) as arrived_there:
                peer = iperf3(link, ours.lanes, ours.seconds)
        row = [
            *_line_key(line, congestion),
            str(ours.lanes),
            f"{ours.seconds:.0f}",
            f"{ours.rate * 8e-6:,.1f}",
            f"{peer * 8e-6:,.1f}",
            f"**{ours.rate / peer:.2f}**",
            f"{arrived.middle() / arrived_there.middle():.2f}",
            _load(),
        ]
        published.LINES.renew(row, [_line_key(*one) for one in LINES])

    _once(benchmark, cross, able)


@pytest.mark.parametrize("round_trip", ROUND_TRIPS)
def bench_lanes(benchmark: Any, round_trip: int, able: bool, settings: Settings, room: Path) -> None:
    """What so many lanes carry at a round trip, on a line that loses packets."""
    line = lab.Line(100, round_trip, LOSS)

    def cross() -> None:
        order = [[str(one), str(lanes)] for one in ROUND_TRIPS for lanes in LANES]
        with lab.built(line, room, congestion="reno", seed=settings.seed) as link:
            for lanes in LANES:
                rate = min(line.bytes_a_second, lanes * _one_lane(line))
                ours = send(link, _random(room, round(4 * rate), settings.seed), room, lanes=lanes)
                published.LANES.renew([str(round_trip), str(lanes), f"{ours.rate * 8e-6:.1f}"], order)
        published.draw_lanes("Lanes against round trip: 100 Mbit/s, 0.1 % loss, reno")

    _once(benchmark, cross, able)


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("place", PLACES, ids=[_named(line or "loopback") for line, _ in PLACES.values()])
def bench_compression(
    benchmark: Any, place: str, content: str, able: bool, settings: Settings, room: Path
) -> None:
    line, size = PLACES[place]

    def compare() -> None:
        source = room / "source.raw"
        if content == "files":
            images.make(source, 2 * size, settings.seed)
        else:
            _random(room, size, settings.seed)
        with lab.built(line, room) if line else nullcontext(LOCAL) as link:
            row = [place, content, *_compare_ways(link, source, room), _load()]
        published.COMPRESSION.renew(row, [[one, other] for one in PLACES for other in CONTENTS])

    _once(benchmark, compare, able)


def _compare_ways(link: lab.Lab, source: Path, room: Path) -> list[str]:
    """The three ways, taking turns at being first. The number of lanes is fixed: it is not what is measured."""
    took: dict[str, list[Transfer]] = {way: [] for way in WAYS}
    for turn in range(COMPRESSION_ROUNDS):
        for way in WAYS[turn % len(WAYS) :] + WAYS[: turn % len(WAYS)]:
            took[way].append(send(link, source, room, compression=way, lanes=8 if link.far else 1))
    seconds = {way: median(one.seconds for one in took[way]) for way in WAYS}
    better = min(WAYS[1:], key=lambda way: seconds[way])
    ratios = [ours.seconds / other.seconds for ours, other in zip(took["auto"], took[better], strict=True)]
    return [
        *(f"{seconds[way]:.2f} ({took[way][0].wire_bytes / MIB:,.0f})" for way in WAYS),
        f"**{median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})",
    ]


def _once(benchmark: Any, work: Callable[[], None], able: bool) -> None:
    benchmark.pedantic(work if able else lambda: None, rounds=1, iterations=1)


def _random(room: Path, size: int, seed: int) -> Path:
    """A disk of whole blocks that do not compress."""
    path = room / "source.raw"
    dice = random.Random(seed)
    with path.open("wb") as file:
        for _ in range(-(-size // MIB)):
            file.write(dice.randbytes(MIB))
        os.fsync(file.fileno())
    return path


def _line_key(line: lab.Line, congestion: str) -> list[str]:
    return [str(line), congestion or _congestion()]


def _one_lane(line: lab.Line) -> float:
    """Bytes a second that loss leaves to one connection with reno: Mathis, Semke, Mahdavi, Ott, 1997."""
    return 1.22 * SEGMENT_BYTES / (line.round_trip_ms / 1000 * sqrt(line.loss))


def _load() -> str:
    """What was at work in the last minute, this measurement included."""
    return f"{os.getloadavg()[0]:.0f}"


def _congestion() -> str:
    return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
