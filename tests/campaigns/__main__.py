"""`python -m tests.campaigns NAME --rounds N [--seed S] [--part P] [--only I] [--at-once K]`.

Exit 0 only when every round held. `--only` plays one round again, by its number.
"""

import argparse
import importlib
import os
import sys

from tests.campaigns import runner, workers


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--part", default="")
    parser.add_argument("--only", type=int)
    parser.add_argument("--at-once", type=int, default=len(os.sched_getaffinity(0)))
    told = parser.parse_args()
    campaign = importlib.import_module(f"tests.campaigns.{told.name}").CAMPAIGN
    if told.only is not None:
        told.rounds = 1
        if told.part not in campaign.parts:
            parser.error("--only wants the --part of the round")
    if campaign.workers > 1 and told.only is None:
        held = workers.run(campaign, told.rounds, told.seed, told.part, campaign.workers)
    else:
        held = runner.run(campaign, told.rounds, told.seed, told.part, max(told.at_once, 1), told.only)
    return 0 if held == told.rounds else 1


if __name__ == "__main__":
    sys.exit(main())
