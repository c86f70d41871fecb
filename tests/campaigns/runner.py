"""Runs the rounds of a campaign, spread over its parts, and counts.

A round depends on nothing but the seed, its part and its number: it is the same alone, after others, and beside others.
So the rounds of a part may be dealt out to several processes by their numbers. Not so where a part says that its
rounds follow from each other.
"""

import json
import os
import random
import selectors
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from typing import IO

from homeward.show import duration

Round = Callable[[random.Random, int], Counter[str] | None]
"""One round: gets its own random numbers and its index within the part; raises when the promise is broken. It may
answer what happened in it, how often."""
Part = Callable[[], AbstractContextManager[Round]]
"""Sets a part up and answers its round."""


@dataclass(frozen=True, slots=True)
class Campaign:
    """A name and its parts."""

    name: str
    parts: Mapping[str, Part]
    workers: int = 1
    """Processes that a long run of it is spread over, see `workers`."""
    one_by_one: frozenset[str] = frozenset()
    """Parts whose rounds follow from each other, or would disturb each other's time."""
    tellings: Mapping[str, Callable[[Counter[str]], str]] = field(default_factory=dict)
    """Of parts: what happened in all rounds together, in words."""


TELL_SECONDS = 30.0
"""How often a long run says how far it is."""


class Telling:
    """Says on stderr how far a part is, now and then."""

    def __init__(self, title: str, rounds: int) -> None:
        self._title, self._rounds = title, rounds
        self._began = self._told = time.monotonic()

    def played(self, rounds: int, good: int) -> None:
        """So many rounds were played, of which so many held."""
        now = time.monotonic()
        if now - self._told < TELL_SECONDS or rounds == self._rounds:
            return
        self._told = now
        left = duration((now - self._began) / rounds * (self._rounds - rounds))
        broken = f"{rounds - good} broken" if good < rounds else "all held"
        print(
            f"{self._title}: {rounds} of {self._rounds} rounds, {broken}, about {left} left", file=sys.stderr
        )


def chosen(campaign: Campaign, part: str) -> tuple[str, ...]:
    """The parts to be played: all, or those of a list with commas; none where one is no part, and that was said."""
    names = tuple(part.replace(",", " ").split()) or tuple(campaign.parts)
    for name in names:
        if name not in campaign.parts:
            print(f"no part {name!r}; there are: {', '.join(campaign.parts)}", file=sys.stderr)
            return ()
    return names


@dataclass(frozen=True, slots=True)
class Played:
    """A round that was played: what it raised, if it broke, and what happened in it."""

    number: int
    broken: str
    happened: dict[str, int]


@dataclass(frozen=True, slots=True)
class Deal:
    """Rounds of one part."""

    campaign: Campaign
    name: str
    seed: int
    numbers: range

    def play(self) -> Iterator[Played]:
        """The rounds, here and one by one."""
        with self.campaign.parts[self.name]() as play:
            for number in self.numbers:
                try:
                    happened = play(random.Random(f"{self.seed}/{self.name}/{number}"), number)
                    yield Played(number, "", dict(happened or {}))
                except Exception:
                    yield Played(number, traceback.format_exc(), {})

    def play_beside(self, at_once: int) -> Iterator[Played]:
        """The rounds, in so many processes at once; those that a process still had when it died are missing."""
        with ExitStack() as stack, selectors.DefaultSelector() as selector:
            for worker in range(at_once):
                mine = Deal(self.campaign, self.name, self.seed, self.numbers[worker::at_once])
                selector.register(stack.enter_context(mine._elsewhere()), selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select():
                    told: IO[bytes] = key.fileobj  # type: ignore[assignment]
                    line = told.readline()
                    if line:
                        yield Played(**json.loads(line))
                    else:
                        selector.unregister(told)

    @contextmanager
    def _elsewhere(self) -> Iterator[IO[bytes]]:
        """Another process plays the rounds, and writes a line for each. Without a buffer: select sees every line."""
        reading, writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        child = os.fork()
        if not child:
            status = 1
            try:
                os.close(reading)
                with closing(self.play()) as rounds:
                    for played in rounds:
                        os.write(writing, json.dumps(asdict(played)).encode() + b"\n")
                        if os.getppid() != parent:
                            break
                status = 0
            except (BrokenPipeError, KeyboardInterrupt):
                pass
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        os.close(writing)
        try:
            with open(reading, "rb", buffering=0) as told:
                yield told
        finally:
            os.waitpid(child, 0)


def run(
    campaign: Campaign, rounds: int, seed: int | None, part: str, at_once: int = 1, only: int | None = None
) -> int:
    """The campaign has run, where it may with so many rounds at once; answers the number of rounds that held.

    `only` is the number of one round, which is all that is played of each part; it is played as it was among others.
    """
    if seed is None:
        seed = random.SystemRandom().randrange(2**32)
    names = chosen(campaign, part)
    if only is not None:
        rounds = len(names)
    if not names:
        print(f"{campaign.name}: 0 of {rounds}")
        return 0
    print(f"{campaign.name}: seed {seed}, parts {', '.join(names)}", file=sys.stderr)
    held = 0
    for index, name in enumerate(names):
        share = rounds // len(names) + (index < rounds % len(names))
        if share:
            numbers = range(share) if only is None else range(only, only + 1)
            held += run_part(Deal(campaign, name, seed, numbers), at_once)
    print(f"{campaign.name}: {held} of {rounds}", flush=True)
    return held


def run_part(deal: Deal, at_once: int) -> int:
    """The rounds have been played, and what is to be said of them was; answers how many held."""
    campaign, name, share = deal.campaign, deal.name, len(deal.numbers)
    title = f"{campaign.name} {name}"
    at_once = 1 if name in campaign.one_by_one else min(at_once, share)
    began, good, count = time.monotonic(), 0, 0
    telling = Telling(title, share)
    happened: Counter[str] = Counter()
    for count, played in enumerate(deal.play() if at_once == 1 else deal.play_beside(at_once), 1):
        if played.broken:
            print(f"{title} round {played.number} of seed {deal.seed}:\n{played.broken}", file=sys.stderr)
        else:
            good += 1
        happened.update(played.happened)
        telling.played(count, good)
    seconds = time.monotonic() - began
    if count < share:
        print(f"{title}: {share - count} rounds were not played: their process died", file=sys.stderr)
    if name in campaign.tellings:
        print(f"{title}: {campaign.tellings[name](happened)}", file=sys.stderr)
    beside = f", {at_once} at once" if at_once > 1 else ""
    print(f"{title}: {good} of {share} in {seconds:.1f} s{beside}", file=sys.stderr)
    return good
