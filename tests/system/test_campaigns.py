"""Every campaign holds for a few rounds with a fresh seed, which is printed."""

import os
import random
import signal
from collections import Counter
from contextlib import nullcontext

import pytest

from tests.campaigns import (
    attack,
    crash,
    fault,
    fault_confserver,
    fuzz,
    fuzz_native,
    live,
    runner,
    workers,
)
from tests.campaigns.runner import Campaign

ROUNDS = {"masttarget": 2, "confserver": 2}
"""Of a part; the others of `crash` and `fault` have 4 and 6."""


@pytest.mark.parametrize(
    ("campaign", "part", "rounds"),
    [
        (attack.CAMPAIGN, "", 400),
        *((crash.CAMPAIGN, part, ROUNDS.get(part, 4)) for part in crash.CAMPAIGN.parts),
        *((fault.CAMPAIGN, part, ROUNDS.get(part, 6)) for part in fault.CAMPAIGN.parts),
        (fuzz.CAMPAIGN, "", 1200),
        (fuzz_native.CAMPAIGN, "", 400),
        (live.CAMPAIGN, "", 16),
    ],
    ids=lambda value: value.name if isinstance(value, Campaign) else str(value),
)
def test_a_campaign_holds(campaign: Campaign, part: str, rounds: int) -> None:
    assert runner.run(campaign, rounds, None, part) == rounds


def test_every_step_of_reprotect_and_failback_has_a_fault() -> None:
    assert fault_confserver.covered() == fault_confserver.steps()


def test_a_campaign_counts_what_does_not_hold(capsys: pytest.CaptureFixture[str]) -> None:
    def part() -> object:
        from contextlib import contextmanager

        @contextmanager
        def play():  # type: ignore[no-untyped-def]
            yield lambda rng, number: Counter({"done": 1 // (number % 2)})

        return play()

    assert runner.run(Campaign("broken", {"half": part}), 10, 1, "") == 5  # type: ignore[dict-item]
    assert capsys.readouterr().out.splitlines()[-1] == "broken: 5 of 10"


def test_rounds_are_the_same_beside_others_and_alone(capfd: pytest.CaptureFixture[str]) -> None:
    def one(rng: random.Random, number: int) -> Counter[str]:
        drawn = rng.randrange(1 << 30)
        assert number != 3, f"drew {drawn}"
        return Counter({"drawn": drawn})

    campaign = Campaign(
        "some", {"part": lambda: nullcontext(one)}, tellings={"part": lambda happened: f"sum {happened}"}
    )
    said = {}
    for at_once in (1, 2, 5):
        assert runner.run(campaign, 8, 1, "", at_once) == 7
        errors = capfd.readouterr().err
        said[at_once] = [line for line in errors.splitlines() if "drew" in line or "sum" in line]
    assert said[1] == said[2] == said[5]
    assert runner.run(campaign, 8, 1, "part", 2, 3) == 0
    assert said[1][0] in capfd.readouterr().err.splitlines()
    assert runner.run(campaign, 8, 1, "part", 2, 4) == 1


def test_rounds_of_a_process_that_died_do_not_hold(capfd: pytest.CaptureFixture[str]) -> None:
    def one(rng: random.Random, number: int) -> None:
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    campaign = Campaign("some", {"part": lambda: nullcontext(one)})
    assert runner.run(campaign, 12, 1, "", 2) == 8  # 5, 7, 9 and 11 were its rounds
    assert "4 rounds were not played" in capfd.readouterr().err


def test_rounds_that_follow_from_each_other_are_played_one_by_one() -> None:
    seen: list[int] = []
    campaign = Campaign(
        "some",
        {"part": lambda: nullcontext(lambda _, number: seen.append(number))},
        one_by_one=frozenset({"part"}),
    )
    assert runner.run(campaign, 4, 1, "", 2) == 4
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("part", "held"), [("", 6), ("two", 6), ("three,one", 6), ("one two", 6), ("four", 0)]
)
def test_the_parts_of_a_campaign_can_be_told(
    part: str, held: int, capsys: pytest.CaptureFixture[str]
) -> None:
    campaign = Campaign(
        "some", {name: lambda: nullcontext(lambda *_: None) for name in ("one", "two", "three")}
    )
    assert runner.run(campaign, 6, 1, part) == held
    assert workers.run(campaign, 6, 1, part, 2) == held
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == f"some: {held} of 6"
    if not held:
        assert "no part 'four'; there are: one, two, three" in said.err


def test_a_campaign_of_several_workers_stops_what_runs_away(capfd: pytest.CaptureFixture[str]) -> None:
    def one(rng: random.Random, number: int) -> None:
        if number == 3:
            raise ValueError("broken")
        if number == 4:
            while True:
                rng.random()
        if number == 5:
            bytearray(200 << 20)

    campaign = Campaign(
        "wild", {"part": lambda: nullcontext(one), "calm": lambda: nullcontext(lambda *_: None)}
    )
    assert workers.run(campaign, 40, 1, "", 2) == 37
    said = capfd.readouterr()
    assert said.out.splitlines()[-1] == "wild: 37 of 40"
    assert "wild part: 17 of 20 played, 20 wanted" in said.err
    for name in ("ValueError: broken", "RoundTooLong", "MemoryError"):
        assert name in said.err
