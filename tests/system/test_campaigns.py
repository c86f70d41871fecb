"""Every campaign holds for a few rounds with a fresh seed, which is printed."""

import pytest

from tests.campaigns import attack, crash, fault, fuzz, runner
from tests.campaigns.runner import Campaign


@pytest.mark.parametrize(
    ("campaign", "rounds"),
    [(attack.CAMPAIGN, 400), (crash.CAMPAIGN, 5), (fault.CAMPAIGN, 24), (fuzz.CAMPAIGN, 1200)],
    ids=lambda value: value.name if isinstance(value, Campaign) else None,
)
def test_a_campaign_holds(campaign: Campaign, rounds: int) -> None:
    assert runner.run(campaign, rounds, None, "") == rounds


def test_a_campaign_counts_what_does_not_hold(capsys: pytest.CaptureFixture[str]) -> None:
    def part() -> object:
        from contextlib import contextmanager

        @contextmanager
        def play():  # type: ignore[no-untyped-def]
            yield lambda rng, number: 1 // (number % 2)

        return play()

    assert runner.run(Campaign("broken", {"half": part}), 10, 1, "") == 5  # type: ignore[dict-item]
    assert capsys.readouterr().out.splitlines()[-1] == "broken: 5 of 10"
