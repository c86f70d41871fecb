"""What is published of a run: the rows of the tables, and what machine and tools they were taken with."""

import os
import platform
import re
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final

from benchmarks.limits import FLUSHED
from benchmarks.plots import Bars, Plot
from benchmarks.racing import Contender, outcome
from drcore.limits import GIB, MIB

BEGIN: Final = "<!-- written by make bench: begin -->"
END: Final = "<!-- written by make bench: end -->"
BUSY_LOAD: Final = 0.5
"""A load before the first measurement from which on the figures are called provisional."""
TOOLS: Final = {
    "qemu-img": ("qemu-img", "--version"),
    "rsync": ("rsync", "--version"),
    "cmp": ("cmp", "--version"),
    "nbdcopy": ("nbdcopy", "--version"),
    "xxhsum": ("xxhsum", "--version"),
    "b3sum": ("b3sum", "--version"),
    "python": ("python3", "--version"),
}
PACKAGES: Final = ("xxhash", "lz4", "cryptography")


@dataclass(frozen=True, slots=True)
class Settings:
    """How much is measured."""

    quick: bool
    image_bytes: int
    buffer_bytes: int
    rounds: int
    seed: int


@dataclass(slots=True)
class Report:
    """Everything a run found, in the order in which it was measured."""

    settings: Settings
    load: float = field(default_factory=lambda: os.getloadavg()[0])
    kernels: list[list[str]] = field(default_factory=list)
    commands: list[list[str]] = field(default_factory=list)
    facts: list[list[str]] = field(default_factory=list)
    spelled: dict[str, str] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    """Bytes a second that one core, or both (a name that ends in `, two`), gets through one step of the work."""
    bounds: list[list[str]] = field(default_factory=list)
    growth: list[list[str]] = field(default_factory=list)
    plots: dict[str, Plot] = field(default_factory=dict)
    """Pictures by the name of their file in docs/, without `.svg`."""

    def kernel(self, work: str, size: int, ours: Contender, *peers: Contender) -> None:
        """One kernel over `size` bytes against its peers."""
        for peer in peers:
            found = outcome(ours, peer)
            self.kernels.append(
                [
                    work,
                    _rate(size, ours.wall),
                    peer.shown,
                    _rate(size, peer.wall),
                    f"**{found.ratio:.2f}** ({found.lowest:.2f} to {found.highest:.2f})",
                ]
            )

    def command(self, work: str, ours: Contender, *peers: Contender) -> None:
        """One command against its peers."""
        for one in (ours, *peers):
            self.spelled[one.name] = one.shown
        for peer in peers:
            found = outcome(ours, peer)
            self.commands.append(
                [
                    work,
                    f"{ours.wall:.2f}",
                    f"{ours.cpu:.2f}",
                    peer.name,
                    f"{peer.wall:.2f}",
                    f"{peer.cpu:.2f}",
                    f"**{found.ratio:.2f}** ({found.lowest:.2f} to {found.highest:.2f})",
                    f"{found.cpu_ratio:.2f}",
                ]
            )

    def bars(
        self, name: str, work: str, ours: Contender, *peers: Contender, bound: float | None = None
    ) -> None:
        """A picture of one job and all who did it."""
        rows = tuple((one.name, one.wall) for one in (ours, *peers))
        self.plots[name] = Bars(f"{work}, disks of {self.settings.image_bytes / GIB:g} GiB", rows, bound)

    def bound(self, work: str, steps: list[tuple[int, str]], ours: Contender, *, flushed: int = 0) -> float:
        """The least that the machine needs for the work beside what it took; answers those seconds.

        `steps` are (bytes, name of a rate): all of them are added up and shared by both cores, as if nothing ever
        waited and no process had to start. `flushed` bytes have to reach the medium meanwhile.
        """
        cores = sum(size / self.rates[name] for size, name in steps) / 2
        seconds = max(cores, flushed / self.rates[FLUSHED])
        if flushed / self.rates[FLUSHED] > cores:
            steps = [(flushed, FLUSHED)]
        spelled = " + ".join(f"{size / GIB:.2f} GiB {name}" for size, name in steps)
        self.bounds.append(
            [work, spelled, f"{seconds:.2f}", f"{ours.wall:.2f}", f"{100 * seconds / ours.wall:.0f} %"]
        )
        return seconds

    def fact(self, name: str, found: str, bound: str) -> None:
        """A number that is no time, and what it may be at most."""
        self.facts.append([name, found, bound])

    def markdown(self) -> str:
        """All tables."""
        settings = self.settings
        pieces = [
            self._machine(),
            "### Commands\n\n"
            f"Disks of {settings.image_bytes / GIB:g} GiB. Seconds are medians of {settings.rounds} rounds, CPU "
            "seconds count user and system time of all processes. A ratio is the peer's time divided by ours in the "
            "same round, median (lowest to highest): above 1, homeward is faster.",
            _table(
                ("work", "homeward s", "CPU s", "peer", "s", "CPU s", "ratio", "CPU ratio"),
                self.commands,
            ),
            _table(("name above", "command"), [[name, f"`{line}`"] for name, line in self.spelled.items()]),
            "### Bounds\n\n"
            "Bytes that a job has to touch, at the rates that one core reached in this run (table below), shared by "
            "both cores: no start of a process, no waiting, no Python.",
            _table(("work", "steps", "bound s", "homeward s", "reached"), self.bounds),
            _table(
                ("step", "one core GB/s", "both cores GB/s"),
                [
                    [name, f"{rate / 1e9:.2f}", f"{self.rates.get(f'{name}, two', 0) / 1e9:.2f}"]
                    for name, rate in self.rates.items()
                    if not name.endswith(", two")
                ],
            ),
            f"### Growth\n\n{_table(('what', 'found', 'at most'), self.growth)}" if self.growth else "",
            f"### Bytes\n\n{_table(('what', 'found', 'at most'), self.facts)}",
            "### Kernels\n\n"
            f"{settings.buffer_bytes / MIB:g} MiB of file contents in memory, one thread; the same bytes for both.",
            _table(("work", "homeward", "peer", "peer's rate", "ratio"), self.kernels),
        ]
        pieces += [f"![{plot.title}]({name}.svg)" for name, plot in self.plots.items()]
        return "\n\n".join(piece for piece in pieces if piece)

    def _machine(self) -> str:
        cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        lines = [
            f"- {datetime.now(UTC):%Y-%m-%d}, seed {self.settings.seed}",
            f"- CPU {cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores; Linux {platform.release()}",
            f"- {', '.join(_tools())}",
            f"- {', '.join(f'{name} {metadata.version(name)} (Python package)' for name in PACKAGES)}",
        ]
        if self.load > BUSY_LOAD:
            lines.append(
                f"- **Provisional**: other programs used the machine (load {self.load:.1f} before the first "
                "measurement). Ratios, taken in turns, bear that better than seconds do."
            )
        return "\n".join(lines)


def write(report: Report, document: Path) -> None:
    """The document's part between the two marks is this run's tables; its pictures stand beside it."""
    text = document.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    document.write_text(f"{before}{BEGIN}\n\n{report.markdown()}\n\n{END}{after}")
    for name, plot in report.plots.items():
        (document.parent / f"{name}.svg").write_text(plot.svg())


def _rate(size: int, seconds: float) -> str:
    return f"{size / seconds / GIB:.2f} GiB/s"


def _table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(text) for text in line)} |" for line in lines)


def _cell(text: str) -> str:
    """The text without bare bars, which would end the cell, even in code."""
    return text.replace("|", "\\|")


def _tools() -> list[str]:
    found = []
    for name, line in TOOLS.items():
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        version = re.search(r"\d+\.\d+(\.\d+)?", done.stdout + done.stderr)
        found.append(f"{name} {version[0] if version else '?'}")
    return found
