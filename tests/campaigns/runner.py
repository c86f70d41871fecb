"""Runs the rounds of a campaign, spread over its parts, and counts."""

import random
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

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


def run(campaign: Campaign, rounds: int, seed: int | None, part: str) -> int:
    """The campaign has run; answers the number of rounds that held."""
    if seed is None:
        seed = random.SystemRandom().randrange(2**32)
    names = [part] if part else list(campaign.parts)
    if part and part not in campaign.parts:
        print(f"no part {part!r}; there are: {', '.join(campaign.parts)}", file=sys.stderr)
        print(f"{campaign.name}: 0 of {rounds}")
        return 0
    print(f"{campaign.name}: seed {seed}, parts {', '.join(names)}", file=sys.stderr)
    held = 0
    for index, name in enumerate(names):
        share = rounds // len(names) + (index < rounds % len(names))
        if share == 0:
            continue
        began, good = time.monotonic(), 0
        with ExitStack() as stack:
            play = stack.enter_context(campaign.parts[name]())
            for number in range(share):
                try:
                    play(random.Random(f"{seed}/{name}/{number}"), number)
                    good += 1
                except Exception:
                    print(f"{campaign.name} {name} round {number} of seed {seed}:", file=sys.stderr)
                    traceback.print_exc()
        seconds = time.monotonic() - began
        print(f"{campaign.name} {name}: {good} of {share} in {seconds:.1f} s", file=sys.stderr)
        held += good
    print(f"{campaign.name}: {held} of {rounds}", flush=True)
    return held
