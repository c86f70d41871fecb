"""Runs the rounds of a campaign in several processes, and stops what runs away.

Rounds are dealt out to the workers by their numbers, and the parts take turns, so that a campaign that is broken off
has seen all of them alike. A round that takes more than a second of processor time ends in an error; the memory that
a worker may take is bounded by the kernel; one that stands still is killed.
"""

import mmap
import os
import random
import resource
import signal
import struct
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType

from tests.campaigns.runner import Campaign, Round, chosen

TURN = 200
"""Rounds of a part before it is the next one's turn."""
ROUND_SECONDS_MAX = 1.0
"""Of processor time."""
STILL_SECONDS_MAX = 300
"""Without a round that ended: time for a loop of native code, which no exception ends, on a machine that is busy."""
ALLOCATION_BYTES_MAX = 96 << 20
"""Address space beyond what a worker has when it begins: some images are of 5 MiB, and may take four times that."""
_CELL = struct.Struct("<QQ")


class RoundTooLong(Exception):
    """A round took more than a second of processor time."""


class _Board:
    """What the workers have done, in memory that all of them share: for each worker and part rounds played and held."""

    def __init__(self, workers: int, parts: int) -> None:
        self._parts = parts
        self._memory = mmap.mmap(-1, max(1, workers * parts) * _CELL.size)

    def get(self, worker: int, part: int) -> tuple[int, int]:
        played, held = _CELL.unpack_from(self._memory, (worker * self._parts + part) * _CELL.size)
        return played, held

    def count(self, worker: int, part: int, good: bool) -> None:
        played, held = self.get(worker, part)
        _CELL.pack_into(
            self._memory, (worker * self._parts + part) * _CELL.size, played + 1, held + int(good)
        )


@dataclass(frozen=True, slots=True)
class _Work:
    """A campaign's rounds, as all workers know them."""

    campaign: Campaign
    names: tuple[str, ...]
    shares: tuple[int, ...]
    seed: int
    workers: int
    board: _Board

    def play_all(self, worker: int) -> None:
        """The worker's rounds have been played."""
        with ExitStack() as stack:
            plays = [stack.enter_context(self.campaign.parts[name]()) for name in self.names]
            stack.enter_context(_bounded())
            for first in range(0, max(self.shares), TURN):
                for part, play in enumerate(plays):
                    for number in range(first, min(first + TURN, self.shares[part])):
                        if number % self.workers == worker:
                            self.board.count(worker, part, self._play(part, play, number))

    def _play(self, part: int, play: Round, number: int) -> bool:
        name = self.names[part]
        try:
            signal.setitimer(signal.ITIMER_PROF, ROUND_SECONDS_MAX)
            play(random.Random(f"{self.seed}/{name}/{number}"), number)
        except Exception:
            signal.setitimer(signal.ITIMER_PROF, 0)
            print(f"{self.campaign.name} {name} round {number} of seed {self.seed}:", file=sys.stderr)
            traceback.print_exc()
            return False
        return True


def run(campaign: Campaign, rounds: int, seed: int | None, part: str, workers: int) -> int:
    """The campaign has run, or a signal ended it; answers the number of rounds that held."""
    names = chosen(campaign, part)
    if not names:
        print(f"{campaign.name}: 0 of {rounds}")
        return 0
    shares = tuple(rounds // len(names) + (index < rounds % len(names)) for index in range(len(names)))
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    work = _Work(campaign, names, shares, seed, workers, _Board(workers, len(names)))
    print(f"{campaign.name}: seed {seed}, {workers} workers, parts {', '.join(names)}", file=sys.stderr)
    began = time.monotonic()
    _wait({_fork(work, worker): worker for worker in range(workers)}, work)
    played = held = 0
    for index, (name, share) in enumerate(zip(names, shares, strict=True)):
        cells = [work.board.get(worker, index) for worker in range(workers)]
        here, good = (sum(column) for column in zip(*cells, strict=True))
        print(f"{campaign.name} {name}: {good} of {here} played, {share} wanted", file=sys.stderr)
        played, held = played + here, held + good
    print(f"{campaign.name}: {played} played in {time.monotonic() - began:.0f} s", file=sys.stderr)
    print(f"{campaign.name}: {held} of {rounds}", flush=True)
    return held


def _fork(work: _Work, worker: int) -> int:
    """The process that plays the worker's rounds; it ends with 0 when all were played."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # the terminal's goes to all of us; who began us passes it on
        signal.signal(signal.SIGTERM, _ended)
        work.play_all(worker)
        code = 0
    except _Ended:
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _wait(children: dict[int, int], work: _Work) -> None:
    """All workers are gone: done, broken, told to stop by our own SIGINT or SIGTERM, or killed for standing still."""
    parts = range(len(work.names))
    seen = {worker: (0, time.monotonic()) for worker in children.values()}
    before = {number: signal.signal(number, _ended) for number in (signal.SIGINT, signal.SIGTERM)}
    stopping = False
    try:
        while children:
            try:
                child, _ = os.waitpid(-1, os.WNOHANG) if not stopping else os.waitpid(-1, 0)
                children.pop(child, None)
                if child:
                    continue
                time.sleep(1)
                for child, worker in children.items():
                    played = sum(work.board.get(worker, part)[0] for part in parts)
                    if played != seen[worker][0]:
                        seen[worker] = (played, time.monotonic())
                    elif time.monotonic() - seen[worker][1] > STILL_SECONDS_MAX:
                        at = {name: work.board.get(worker, part)[0] for part, name in enumerate(work.names)}
                        print(
                            f"{work.campaign.name}: worker {worker} stands still behind {at}", file=sys.stderr
                        )
                        os.kill(child, signal.SIGKILL)
            except _Ended:
                stopping = True
                for child in children:
                    os.kill(child, signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Ended(BaseException):
    """A signal asked for the end."""


def _ended(number: int, frame: FrameType | None) -> None:
    raise _Ended


def _too_long(number: int, frame: FrameType | None) -> None:
    raise RoundTooLong


@contextmanager
def _bounded() -> Iterator[None]:
    """Neither a round's time nor the process' memory goes beyond its bounds."""
    signal.signal(signal.SIGPROF, _too_long)
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * mmap.PAGESIZE
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + ALLOCATION_BYTES_MAX, before[1]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)
