"""`python -m tests.campaigns NAME --rounds N [--seed S] [--part P]`: exit 0 only when every round held."""

import argparse
import importlib
import sys

from tests.campaigns import runner, workers


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--part", default="")
    told = parser.parse_args()
    campaign = importlib.import_module(f"tests.campaigns.{told.name}").CAMPAIGN
    if campaign.workers > 1:
        held = workers.run(campaign, told.rounds, told.seed, told.part, campaign.workers)
    else:
        held = runner.run(campaign, told.rounds, told.seed, told.part)
    return 0 if held == told.rounds else 1


if __name__ == "__main__":
    sys.exit(main())
