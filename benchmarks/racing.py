"""Ours and its peers, taking turns: every round runs each of them once, so that a busy minute meets them all."""

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

HOMEWARD: Final = Path(sys.executable).with_name("homeward")
COMMAND_SECONDS_MAX: Final = 1800


@dataclass(frozen=True, slots=True)
class Timing:
    """One run. CPU seconds are user and system time, children included."""

    wall: float
    cpu: float


@dataclass(slots=True)
class Contender:
    """One way to do the work. `shown` is what is published of it; `run` is all that is timed."""

    name: str
    shown: str
    run: Callable[[], object]
    check: Callable[[Any], None]
    """Fails on a wrong result; given what `run` answered."""
    prepare: Callable[[], None] = lambda: None
    timings: list[Timing] = field(default_factory=list)

    def turn(self) -> None:
        """Prepared, run, timed and checked once."""
        self.prepare()
        self.check(self.timed())

    def timed(self) -> object:
        """What `run` answers; its time is noted."""
        wall, cpu = time.perf_counter(), _cpu_seconds()
        result = self.run()
        self.timings.append(Timing(time.perf_counter() - wall, _cpu_seconds() - cpu))
        return result

    @property
    def wall(self) -> float:
        """Median seconds."""
        return median(timing.wall for timing in self.timings)

    @property
    def cpu(self) -> float:
        """Median CPU seconds."""
        return median(timing.cpu for timing in self.timings)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A peer's time divided by ours in the same round: above 1, ours is faster."""

    ratio: float
    lowest: float
    highest: float
    cpu_ratio: float


def outcome(ours: Contender, peer: Contender) -> Outcome:
    """The median, lowest and highest ratio over the rounds."""
    pairs = list(zip(ours.timings, peer.timings, strict=True))
    walls = [theirs.wall / own.wall for own, theirs in pairs]
    return Outcome(
        median(walls),
        min(walls),
        max(walls),
        median(theirs.cpu / max(own.cpu, 1e-6) for own, theirs in pairs),
    )


def race(benchmark: Any, rounds: int, ours: Contender, peers: list[Contender]) -> None:
    """Every contender has run `rounds` times, in turns, each result checked; pytest-benchmark holds our times."""
    results: list[object] = []

    def others_first() -> None:
        while results:
            ours.check(results.pop())
        for peer in peers:
            peer.turn()
        ours.prepare()

    benchmark.pedantic(lambda: results.append(ours.timed()), setup=others_first, rounds=rounds, iterations=1)
    ours.check(results.pop())


def command(*words: object, ok: tuple[int, ...] = (0,)) -> Callable[[], bytes]:
    """Runs the command and answers its stdout; an exit code that is not in `ok` fails with what it said."""
    line = [str(word) for word in words]

    def run() -> bytes:
        done = subprocess.run(line, capture_output=True, check=False, timeout=COMMAND_SECONDS_MAX)
        assert done.returncode in ok, (
            f"{line} ended with {done.returncode}: {done.stderr.decode(errors='replace')}"
        )
        return done.stdout

    return run


def same_bytes(first: Path, second: Path) -> None:
    """Two files hold the same bytes, by the judgement of cmp."""
    command("cmp", first, second)()


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
