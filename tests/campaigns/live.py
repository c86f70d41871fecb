"""A machine that goes on working while its disk is brought home: a point is one instant of it, or none is made."""

import os
import random
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Final

from agent.config import QuiesceConfig
from agent.errors import SourceChanged, SourceTouched, Stopped
from agent.main import Agent
from masttarget.config import load
from masttarget.main import Master
from tests.campaigns.runner import Campaign, Round
from tests.system.command import homeward
from tests.system.roles import Pair, Site, at_work, no_retry

DISK_BYTES: Final = 4 << 20
WRITE_BYTES: Final = 4096
KEPT_POINTS: Final = 50
"""Of so many of the newest points the content is remembered."""


class Machine:
    """The disk of a machine that somebody writes to: at once, in a while, or all the time."""

    def __init__(self, path: Path, rng: random.Random) -> None:
        self.path = path
        path.write_bytes(rng.randbytes(DISK_BYTES))

    def write(self, rng: random.Random) -> None:
        """One page is another one."""
        descriptor = os.open(self.path, os.O_WRONLY)
        try:
            data = bytes(WRITE_BYTES) if rng.random() < 0.2 else rng.randbytes(WRITE_BYTES)
            os.pwrite(descriptor, data, rng.randrange(DISK_BYTES // WRITE_BYTES) * WRITE_BYTES)
        finally:
            os.close(descriptor)

    @contextmanager
    def writing(self, rng: random.Random, first: float, pause: float, most: int) -> Iterator[None]:
        """Within it, after `first` seconds and then every `pause` seconds, a page is written, `most` times."""
        over = threading.Event()

        def work() -> None:
            wait = first
            for _ in range(most):
                if over.wait(wait):
                    return
                self.write(rng)
                wait = pause

        thread = threading.Thread(target=work, name="machine")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@contextmanager
def snapshots() -> Iterator[Round]:
    """Cycles of a machine that writes all the time, by snapshots; some are stopped. Each point is its snapshot."""
    with tempfile.TemporaryDirectory(prefix="homeward-live-") as name:
        folder = Path(name)
        machine = Machine(folder / "live.raw", random.Random(0))
        copy, seen, target = folder / "copy.raw", folder / "seen", folder / "target.raw"
        program = folder / "snapshot"
        program.write_text(f"#!/bin/sh\ncp {machine.path} {copy} && cp {copy} {seen}\n")
        program.chmod(0o700)
        site = Site(folder, Pair(copy, target, create="raw"))
        quiesce = QuiesceConfig(snapshot=(str(program),), interval_seconds=0)
        extra = {"retention": f'"{folder / "retention"}"', "retention_own_volume": "false"}
        config = site.write_masttarget(**extra)
        settings = replace(load(config), verify_points=False)
        points: dict[str, bytes] = {}

        def one(rng: random.Random, _: int) -> None:
            role = Agent(replace(site.agent(port), quiesce=quiesce, lanes=rng.choice((1, 2))), no_retry)
            stopping = threading.Timer(rng.uniform(0, 0.2), role.stop)
            if rng.random() < 0.25:
                stopping.start()
            try:
                with machine.writing(rng, 0.0, rng.choice((0.0002, 0.002)), 1 << 20):
                    report = role.run()
            except Stopped:
                return  # the next round goes on with the cycle, from a newer snapshot
            finally:
                stopping.cancel()
            content = seen.read_bytes()
            assert target.read_bytes() == content, "the point is not its snapshot"
            points[report.point.hex()] = sha256(content).digest()
            if len(points) > KEPT_POINTS:
                del points[next(iter(points))]
            if rng.random() < 0.1:
                _reads_as_it_was(site, config, rng.choice(list(points)), points)

        with at_work(Master(settings, lambda event, /, **facts: None)) as port:
            yield one


def _reads_as_it_was(site: Site, config: Path, point: str, points: dict[str, bytes]) -> None:
    """An earlier point, exported while the master target works, is what the machine's disk was then."""
    copy = site.folder / "exported.raw"
    done = homeward("points", "export", site.item, point, "--to", copy, "--config", config)
    assert done.code == 0, done
    assert sha256(copy.read_bytes()).digest() == points[point], f"point {point} has changed"
    copy.unlink()


@contextmanager
def between() -> Iterator[Round]:
    """Without a snapshot, a page is written at some instant of a cycle: it is noticed, or came before or behind it."""

    def one(rng: random.Random, number: int) -> None:
        with tempfile.TemporaryDirectory(prefix="homeward-live-") as name:
            folder = Path(name)
            machine = Machine(folder / "live.raw", rng)
            target = folder / "target.raw"
            before = machine.path.read_bytes()
            if rng.random() < 0.5:
                target.write_bytes(before)
                machine.write(rng)
                before = machine.path.read_bytes()
            os.utime(machine.path, (number, number))  # no write is hidden in the tick of one that was before
            site = Site(folder, Pair(machine.path, target, create="raw"))
            with site.listening() as port:
                done = True
                try:
                    with machine.writing(rng, rng.uniform(0, 0.06), 0.0, 1):
                        site.sync(port)
                except (SourceChanged, SourceTouched):
                    done = False
                after = machine.path.read_bytes()
                assert not done or target.read_bytes() in (before, after), "a mixture was called done"
                site.sync(port)
                assert target.read_bytes() == after

    yield one


CAMPAIGN = Campaign("live", {"snapshots": snapshots, "between": between}, one_by_one=frozenset({"snapshots"}))
