"""Twenty agents with three disks each at one master target, which is a process of its own, with retention.

`python -m tests.system.many FOLDER BYTES`: disks of so many bytes, of which a third differs and is kept for the way
back; answers one JSON object. The agents are threads of this process and begin together.
"""

import json
import random
import sys
import threading
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

from agent.main import Agent
from drcore.limits import MIB
from tests.system.command import ended, start
from tests.system.roles import Pair, Site, no_retry

AGENTS, DISKS = 20, 3
RESIDENT_MAX = 512 * MIB
UNFAIR_MAX = 2.0


@dataclass(frozen=True, slots=True)
class Many:
    """What it came to. `seconds` of each agent, from the common beginning to its point."""

    disks: int
    equal: int
    seconds: list[float]
    resident_bytes: int
    blocks: int

    @property
    def unfair(self) -> float:
        """The last one's time as a multiple of the first one's."""
        return max(self.seconds) / min(self.seconds)


def make_pair(folder: Path, name: str, size: int, dice: random.Random) -> Pair:
    """A source, and a target in which each third MiB is another; both share one noise, so that making them is fast."""
    noise = dice.randbytes(MIB)
    source, target = folder / f"{name}-source.raw", folder / f"{name}-target.raw"
    with source.open("wb") as one, target.open("wb") as other:
        for at in range(0, size, MIB):
            piece = at.to_bytes(8, "little") + noise[8 : min(MIB, size - at)]
            one.write(piece)
            other.write(piece if at // MIB % 3 else piece[::-1])
    return Pair(source, target)


def resident_peak(process: int) -> int:
    """The most that the process has ever had resident, in bytes."""
    text = Path(f"/proc/{process}/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmHWM:"))) * 1024


def play(folder: Path, size: int, seed: int) -> Many:
    """All disks are home, or an agent's error is raised."""
    dice = random.Random(seed)
    sites: list[Site] = []
    for number in range(AGENTS):
        pairs = [make_pair(folder, f"{number}-{disk}", size, dice) for disk in range(DISKS)]
        site = Site(folder, *pairs)
        site.item = uuid.UUID(int=dice.getrandbits(128))
        sites.append(site)
    whole = Site(folder, *(pair for site in sites for pair in site.pairs))
    (folder / "retention").mkdir()
    where = json.dumps(str(folder / "retention"))
    settings = whole.write_masttarget(retention=where, retention_own_volume="false")
    text = settings.read_text()
    for site in sites:
        for pair in site.pairs:
            disk = f'"\ndisk = "{pair.disk}"'
            text = text.replace(f"{whole.item}{disk}", f"{site.item}{disk}")
    settings.write_text(text)
    process = start("masttarget", "serve", "--config", settings, "--json")
    try:
        assert process.stdout is not None
        port = int(json.loads(process.stdout.readline())["port"])
        seconds: list[float] = []
        blocks: list[int] = []
        errors: list[BaseException] = []
        together = threading.Barrier(AGENTS)

        def run(number: int, site: Site) -> None:
            config = replace(site.agent(port), state_directory=folder / f"agent-{number}", lanes=1)
            together.wait()
            began = time.monotonic()
            try:
                report = Agent(config, no_retry).run()
            except BaseException as error:
                errors.append(error)
                return
            seconds.append(time.monotonic() - began)
            blocks.append(sum(disk.blocks_sent for disk in report.disks))

        threads = [threading.Thread(target=run, args=each) for each in enumerate(sites)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        resident = resident_peak(process.pid)
    finally:
        process.terminate()
        outcome = ended(process)
    assert "Traceback" not in outcome.stderr, outcome.stderr
    equal = sum(pair.source.read_bytes() == pair.target.read_bytes() for pair in whole.pairs)
    return Many(len(whole.pairs), equal, seconds, resident, sum(blocks))


def main() -> int:
    folder, size = Path(sys.argv[1]), int(sys.argv[2])
    found = play(folder, size, random.SystemRandom().getrandbits(32))
    answer = {
        "disks": found.disks,
        "equal": found.equal,
        "seconds": [round(min(found.seconds), 2), round(max(found.seconds), 2)],
        "unfair": round(found.unfair, 2),
        "resident_mib": found.resident_bytes // MIB,
        "blocks": found.blocks,
    }
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
