"""Runs the rounds of a campaign, spread over its parts, and counts."""

import random
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

from homeward.show import duration

Round = Callable[[random.Random, int], None]
"""One round: gets its own random numbers and its index within the part; raises when the promise is broken."""
Part = Callable[[], AbstractContextManager[Round]]
"""Sets a part up and answers its round."""


@dataclass(frozen=True, slots=True)
class Campaign:
    """A name and its parts."""

    name: str
    parts: Mapping[str, Part]
    workers: int = 1
    """Processes that a long run of it is spread over, see `workers`."""


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


def run(campaign: Campaign, rounds: int, seed: int | None, part: str) -> int:
    """The campaign has run; answers the number of rounds that held."""
    if seed is None:
        seed = random.SystemRandom().randrange(2**32)
    names = chosen(campaign, part)
    if not names:
        print(f"{campaign.name}: 0 of {rounds}")
        return 0
    print(f"{campaign.name}: seed {seed}, parts {', '.join(names)}", file=sys.stderr)
    held = 0
    for index, name in enumerate(names):
        share = rounds // len(names) + (index < rounds % len(names))
        if share == 0:
            continue
        began, good = time.monotonic(), 0
        telling = Telling(f"{campaign.name} {name}", share)
        with ExitStack() as stack:
            play = stack.enter_context(campaign.parts[name]())
            for number in range(share):
                try:
                    play(random.Random(f"{seed}/{name}/{number}"), number)
                    good += 1
                except Exception:
                    print(f"{campaign.name} {name} round {number} of seed {seed}:", file=sys.stderr)
                    traceback.print_exc()
                telling.played(number + 1, good)
        seconds = time.monotonic() - began
        print(f"{campaign.name} {name}: {good} of {share} in {seconds:.1f} s", file=sys.stderr)
        held += good
    print(f"{campaign.name}: {held} of {rounds}", flush=True)
    return held
