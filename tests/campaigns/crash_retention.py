"""SIGKILL of the master target and of an operator's verb, as processes, with retention on real files.

A round has one machine, or two of a replication group. Seeding or a first delta, more deltas, rollbacks and the
dropping of points take turns; each is killed at a named point or at a random instant, judged, and done again until it
is over.
Every point that is listed reads as it did and has its content root, those that were published are listed, what was
acknowledged is on the target, and no member of a group has a common point that another one lacks once a master target
runs again.
"""

import json
import random
import signal
import subprocess
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from disks.content import content_root
from drcore.clock import SystemClock
from drcore.units import BLOCK_BYTES
from masttarget import config as settings
from masttarget.adapters.files import LocalStore
from masttarget.adapters.retention_files import RetentionFiles
from masttarget.points import GOOD, Kind, Point
from masttarget.reading_points import viewing
from masttarget.retention import ItemRetention, Policy, Retention
from tests.campaigns import acknowledged
from tests.campaigns.dying import CREATE_POINTS, GROUP_POINTS, MASTTARGET_POINTS, RETENTION_POINTS
from tests.campaigns.nursery import Birth, Nursling

BLOCKS = 70
SIZE = BLOCKS * BLOCK_BYTES - 1536
ACTS = 3
RUN_SECONDS_MAX = 60
INSTANT_SECONDS_MAX = {"cycle": 0.2, "rollback": 0.08, "drop": 0.06}
"""By then nearly all of them are over, for processes that had loaded their modules before they were born."""
OFTEN = ("segment append", "write", "zero", "segment flush", "verified flush")
"""Passed many times in a cycle: the death comes at any of them."""


INSTANT = "at a random instant"
UNPASSED = "not passed"
ALL_POINTS = (*RETENTION_POINTS, *MASTTARGET_POINTS[:-2], *GROUP_POINTS)
"""Without the removal of the record: one that is kept is not removed."""
POINTS_OF_DROP = tuple(
    f"{side} {verb}"
    for verb in ("list append", "segment remove", "segment store_head")
    for side in ("before", "after")
)
MORE_OF = {
    "create": CREATE_POINTS * 3,
    "drop": 2 * POINTS_OF_DROP + 5 * ("before segment remove", "after segment remove"),
}
"""What is drawn more often where it can come at all: one cycle in six creates a target, one drop in six frees a
segment."""

MISSING_TOLD_MAX = 12
"""A short run misses many points, and need not name them."""


def say(happened: Counter[str]) -> str:
    """How often who was killed, and at which points nobody was."""
    died = [happened[point] for point in ALL_POINTS]
    missing = [point for point in ALL_POINTS if not happened[point]]
    return (
        f"processes were killed {sum(died)} times at {len(ALL_POINTS) - len(missing)} of {len(ALL_POINTS)} named "
        f"points and {happened[INSTANT]} times at random instants; {happened[UNPASSED]} times nobody came to the point"
        + (f"; nobody died {', '.join(missing)}" if 0 < len(missing) <= MISSING_TOLD_MAX else "")
    )


@dataclass
class Machine:
    """A member: its files, and what each of its points has to read as."""

    folder: Path
    number: int
    item: uuid.UUID
    disk: uuid.UUID
    content: bytes = b""
    points: dict[str, bytes] = field(default_factory=dict)
    dropping: set[str] = field(default_factory=set)
    rolled_back: bool = False

    @property
    def source(self) -> Path:
        return self.folder / f"source-{self.number}.raw"

    @property
    def target(self) -> Path:
        return self.folder / f"target-{self.number}.raw"

    def held(self) -> bytes:
        """What the target holds now."""
        return self.target.read_bytes() if self.target.exists() else bytes(SIZE)

    def change(self, rng: random.Random, share: float) -> None:
        """The machine wrote to its disk."""
        out = bytearray(self.content or bytes(SIZE))
        for block in range(BLOCKS):
            if rng.random() < share:
                piece = bytes(BLOCK_BYTES) if rng.random() < 0.2 else rng.randbytes(BLOCK_BYTES)
                out[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = piece
        self.content = bytes(out[:SIZE])
        self.source.write_bytes(self.content)


class Scene:
    """The folder of a round: settings, processes, and the look at what a kill left."""

    def __init__(self, folder: Path, rng: random.Random, born: Birth) -> None:
        self.folder = folder
        self.born = born
        self.rng = rng
        self.happened: Counter[str] = Counter()
        self.key = rng.randbytes(32)
        self.machines = [
            Machine(folder, number, uuid.UUID(int=rng.getrandbits(128)), uuid.UUID(int=rng.getrandbits(128)))
            for number in range(rng.choice((1, 1, 2)))
        ]
        self.group = "pair" if len(self.machines) > 1 else ""
        self.config = folder / "mt.toml"
        key = folder / "key"
        key.touch(0o600)
        key.write_bytes(self.key)
        lines = [
            f'[masttarget]\nlisten = "127.0.0.1:0"\nkey_file = "{key}"\nstate_directory = "{folder}"',
            f'retention = "{folder / "retention"}"\nretention_own_volume = false',
        ]
        for machine in self.machines:
            machine.change(rng, 1.0)
            if rng.random() < 0.6:
                machine.target.write_bytes(rng.randbytes(SIZE))
            lines.append(
                f'[[disk]]\nitem = "{machine.item}"\ndisk = "{machine.disk}"\npath = "{machine.target}"'
            )
            lines.append(f'create = "raw"\nadopt = true\ngroup = "{self.group}"')
        self.config.write_text("\n".join([*lines, ""]))

    # Processes

    def start(self, role: str, config: Path, point: str, count: int, *words: str) -> Nursling:
        return self.born(role, str(config), point, str(count), *words)

    def agent(self, machine: Machine, port: int) -> Nursling:
        journal = machine.target.with_name(machine.target.name + ".homeward") / "cycle"
        generation = json.loads(journal.read_text())["generation"] if journal.exists() else 1
        path = self.folder / f"agent-{machine.number}.toml"
        path.write_text(
            f'[agent]\nmasttarget = "127.0.0.1:{port}"\nkey_file = "{self.folder / "key"}"\nreconnects = 0\n'
            f'item = "{machine.item}"\nstate_directory = "{self.folder / "agent"}-{machine.number}"\n'
            f'generation = {max(generation, 1)}\ngroup = "{self.group}"\nlanes = 1\n'
            f'[[disk]]\ndisk = "{machine.disk}"\npath = "{machine.source}"\n'
        )
        return self.start("agent", path, "", 1)

    def finish(self, process: Nursling, *, may_die: bool) -> int:
        try:
            out, errors = process.communicate(timeout=RUN_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            out, errors = process.communicate()
            raise AssertionError(f"a process hangs: {out} {errors}") from None
        assert "Traceback" not in errors, errors
        expected = (0, 2, -signal.SIGKILL) if may_die else (0,)
        status = process.wait()
        assert status in expected, f"{status}: {out} {errors}"
        return status

    def cycle(self, point: str, count: int, instant: float) -> bool:
        """All machines are brought home at once; answers whether the master target lived, or died only after that."""
        deadly = bool(point) or instant > 0
        over = False
        process = self.start("masttarget", self.config, point, count)
        line = process.stdout.readline()
        if line:
            self.nobody_ahead()
            agents = [self.agent(machine, int(line)) for machine in self.machines]
            if instant:
                time.sleep(instant)
                process.kill()
            statuses = [self.finish(agent, may_die=deadly) for agent in agents]
            over = instant > 0 and not any(statuses)
        process.terminate()
        return self.finish(process, may_die=deadly) != -signal.SIGKILL or over

    def verb(self, name: str, sequence: int, point: str, count: int, instant: float) -> bool:
        """An operator's verb; answers whether it lived."""
        process = self.start(name, self.config, point, count, str(sequence))
        if instant:
            time.sleep(instant)
            process.kill()
        return self.finish(process, may_die=bool(point) or instant > 0) != -signal.SIGKILL

    # Judging

    def retained(self, machine: Machine) -> ItemRetention:
        """The machine's points, as they are on the medium."""
        quiet = lambda event, /, **facts: None  # noqa: E731
        files = RetentionFiles(self.folder / "retention")
        return Retention(files, SystemClock(), Policy(), quiet).item(machine.item.bytes)

    def nobody_ahead(self) -> None:
        """Each common point is every machine's."""
        if not self.group:
            return
        common = [
            [one.id for one in self.retained(machine).points if one.kind is Kind.CRASH_CONSISTENT]
            for machine in self.machines
        ]
        assert common[0] == common[1], f"one is ahead: {common}"

    def look(self, machine: Machine, before: bytes) -> None:
        """Every point reads as it did, and none is missing. `before` is what the target held before the act."""
        item = self.retained(machine)
        config = next(one for one in settings.load(self.config).disks if one.disk == machine.disk)
        listed = {point.id for point in item.points}
        lost = set(machine.points) - listed - machine.dropping
        assert not lost, f"points are lost: {lost}"
        for point in item.points:
            with viewing(item, point, config, LocalStore(self.folder)) as view:
                found = memoryview(bytearray(SIZE))
                view.read(0, found)
            expected = self.expected(machine, point, before, item)
            assert found == expected, f"point {point.sequence} ({point.kind.value}) has changed"
            machine.points[point.id] = expected
            told = point.disks[0].content_root
            root = content_root(SIZE, [(0, expected)], lambda position: None)
            assert told in ("", root), f"point {point.sequence} does not have its content root"
            assert told or point.kind is not Kind.CRASH_CONSISTENT, (
                f"point {point.sequence} has no content root"
            )
        machine.points = {name: machine.points[name] for name in listed}
        if not machine.rolled_back:
            acknowledged.check(machine.target, self.key, machine.item, machine.disk)

    def expected(self, machine: Machine, point: Point, before: bytes, item: ItemRetention) -> bytes:
        """What the point has to hold."""
        if point.id in machine.points:
            return machine.points[point.id]
        if point.base_cycle >= 0:
            base = item.points.by_sequence(point.base_cycle)
            assert base is not None
            return machine.points[base.id]
        return machine.content if point.kind is Kind.CRASH_CONSISTENT else before

    # Acts

    def death(self, verb: str) -> tuple[str, int, float]:
        """At which point, for the how manieth time; or at which instant."""
        if self.rng.random() < 0.25:
            return "", 1, self.rng.uniform(0.0, INSTANT_SECONDS_MAX[verb])
        points = [*RETENTION_POINTS]
        points += MORE_OF["drop"] if verb == "drop" else MASTTARGET_POINTS[:-2]
        if self.group:
            points += GROUP_POINTS
        if not all(machine.target.exists() for machine in self.machines):
            points += MORE_OF["create"]
        point = self.rng.choice(points)
        often = any(point.endswith(name) for name in OFTEN)
        return point, 1 + int(self.rng.expovariate(1 / 3)) if often else 1, 0.0

    def act(self, first: bool) -> None:
        """One thing is done, in spite of a kill."""
        listed = [] if first or self.group else list(self.retained(self.machines[0]).points)
        good = [point for point in listed if point.kind in GOOD]
        # The last good point is refused, and never given up unasked: that is for tests of its own.
        droppable = [point for point in listed[:-1] if any(other is not point for other in good)]
        verbs = ("cycle", "cycle", "rollback", "drop") if droppable else ("cycle", "cycle", "rollback")
        verb = self.rng.choice(verbs if len(listed) > 1 else ("cycle",))
        sequence = 0
        if verb == "cycle":
            for machine in self.machines:
                machine.change(self.rng, self.rng.choice((0.05, 0.4, 1.0)))
        elif verb == "rollback":
            sequence = self.rng.choice(listed).sequence
            self.machines[0].rolled_back = True
        else:
            chosen = self.rng.choice(droppable)
            sequence = chosen.sequence
            self.machines[0].dropping = {chosen.id}
        death = self.death(verb)
        while True:
            before = {machine.number: machine.held() for machine in self.machines}
            lived = self.cycle(*death) if verb == "cycle" else self.verb(verb, sequence, *death)
            for machine in self.machines:
                self.look(machine, before[machine.number])
            if death == ("", 1, 0.0):
                break
            self.happened[UNPASSED if lived else death[0] or INSTANT] += 1
            if verb == "drop" and not (self.machines[0].dropping & set(self.machines[0].points)):
                break
            death = ("", 1, 0.0)
        self.judge(verb, sequence)

    def judge(self, verb: str, sequence: int) -> None:
        """What was done is done."""
        self.nobody_ahead()
        for machine in self.machines:
            if verb == "cycle":
                machine.rolled_back = False
                assert machine.held() == machine.content, "the target is not the source"
            elif verb == "rollback":
                point = self.retained(machine).points.by_sequence(sequence)
                assert point is not None
                assert machine.held() == machine.points[point.id], "the rollback did not arrive"
            machine.dropping = set()


def kills(rng: random.Random, born: Birth) -> Counter[str]:
    """Processes die; see the module. Answers how often at which points."""
    with tempfile.TemporaryDirectory() as name:
        scene = Scene(Path(name), rng, born)
        for number in range(ACTS):
            scene.act(number == 0)
        return scene.happened
