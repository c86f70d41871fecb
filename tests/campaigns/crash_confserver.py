"""SIGKILL of the configuration server at every step boundary, around every call, and at random instants.

One machine comes home again and again on both stand-ins with the real roles. A round is one job of it: a reprotect, a
failback, a commit, a cancel, or a verb that fails and is undone. Whatever dies on the way, the job ends as one that
nobody killed: everything that others can see is so, and so is what was done to both fabrics, and how often.

The boundaries (see `dying_server`) are drawn without repetition until each was died at once.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Final

import httpx

from confserver.service import VERBS
from tests.campaigns.homecoming import ONCE, Look, Stage, stage, undone
from tests.campaigns.runner import Round

JOB_SECONDS_MAX: Final = 120.0
POLL_SECONDS: Final = 0.03
OVER: Final = ("done", "failed", "stuck")
TASK_SECONDS: Final = (0.0, 0.0, 0.3)
"""How long tasks of the vCenter take in a round: at once, or so long that some are under way at a death."""

Point = tuple[str, int]
"""A point of `dying_server`, and which pass of it is meant."""
Death = Point | float
"""At a point, or so many seconds after the job or the server was started."""


@dataclass(frozen=True, slots=True)
class Play:
    """A verb, what makes it fail if anything does, and which points its job passes."""

    verb: str
    sabotage: Callable[[Stage], Callable[[], None]] | None
    points: tuple[Point, ...]


def _steps(
    verb: str, phase: str, calls: Mapping[int, tuple[str, ...]], last: int | None = None
) -> list[Point]:
    """The points of the steps (0 to `last`) in the order in which the job passes them; `calls` by their steps."""
    numbers = list(range(len(VERBS[verb].steps) if last is None else last + 1))
    passed: Counter[str] = Counter()
    points: list[Point] = []
    for number in numbers if phase == "do" else reversed(numbers):
        points += [(f"{side} begin_step {phase} {number}", 1) for side in ("before", "after")]
        for name in calls.get(number, ()):
            passed[name] += 1
            points += [(f"{side} {phase} {name}", passed[name]) for side in ("before", "after")]
        points += [(f"{side} end_step {phase} {number}", 1) for side in ("before", "after")]
    return points


def _whole(verb: str, calls: Mapping[int, tuple[str, ...]]) -> tuple[Point, ...]:
    """All points of a job that is done."""
    start = [(f"{side} {name}", 1) for name in ("begin_job", "set_status") for side in ("before", "after")]
    return (*start, *_steps(verb, "do", calls), ("before end_job", 1), ("after end_job", 1))


def _back(verb: str, calls: Mapping[int, tuple[str, ...]], last: int | None = None) -> tuple[Point, ...]:
    """All points of a job's way back from the step `last`."""
    turn = [("before set_status", 2), ("after set_status", 2)]
    return (*turn, *_steps(verb, "undo", calls, last), ("before end_job", 1), ("after end_job", 1))


def _short_of_memory(scene: Stage) -> Callable[[], None]:
    """The VM at home cannot be powered on, once: the last step of a failback."""
    fault = "InsufficientMemoryResourcesFault"
    scene.lab.vcenter.arrange("PowerOnVM_Task", fault=fault, detail={"unreserved": 5, "requested": 9})
    return scene.lab.vcenter.clear


def _second_disk_refused(scene: Stage) -> Callable[[], None]:
    """The master target's VM gets the first disk and not the second, once."""
    scene.lab.vcenter.arrange("ReconfigVM_Task", entity="mt", skip=1, fault="GenericVmConfigFault")
    return scene.lab.vcenter.clear


def _source_away(scene: Stage) -> Callable[[], None]:
    """The running machine's second disk cannot be read until this is taken back: the last step of a reprotect."""
    there = scene.lab.source("data")
    away = there.with_suffix(".away")
    there.rename(away)

    def restore() -> None:
        away.rename(there)

    return restore


_MOVE: Final = ("detach_disk", "attach_disk", "detach_disk", "attach_disk")
_READ: Final = ("grant_access", "grant_access", "revoke_access", "revoke_access")
_FINAL: Final = (*_READ[:2], "final_cycle", *_READ[2:])
_PROOF: Final = (*_READ[:2], "proof", *_READ[2:])
PLAYS: Final[Mapping[str, Play]] = {
    "reprotect": Play(
        "reprotect",
        None,
        _whole(
            "reprotect",
            {3: ("power_off",), 4: ("merge_snapshots",), 5: _MOVE, 6: ("adopt",), 7: ("cycle",)},
        ),
    ),
    "failback": Play(
        "failback",
        None,
        _whole(
            "failback",
            {
                0: ("fence",),
                1: ("cycle",),
                2: ("deallocate",),
                3: _FINAL,
                4: _PROOF,
                5: ("release",),
                6: _MOVE,
                7: ("create_snapshot",),
                8: ("power_on",),
            },
        ),
    ),
    "commit": Play("commit", None, _whole("commit", {0: ("remove_snapshot",), 1: ("forget",)})),
    "cancel": Play(
        "cancel",
        None,
        _whole(
            "cancel",
            {
                1: ("power_off",),
                2: ("revert_and_drop_snapshot",),
                3: _MOVE,
                4: ("adopt",),
                5: ("start_azure",),
                6: ("cycle",),
            },
        ),
    ),
    "cancel-reprotect": Play(
        "cancel-reprotect", None, _whole("cancel-reprotect", {0: ("fence",), 1: ("release",), 2: _MOVE})
    ),
    "reprotect without room": Play(
        "reprotect", _second_disk_refused, _back("reprotect", {5: _MOVE, 3: ("power_on",)}, 5)
    ),
    "reprotect without source": Play(
        "reprotect", _source_away, _back("reprotect", {6: ("release",), 5: _MOVE})
    ),
    "failback without memory": Play(
        "failback",
        _short_of_memory,
        _back(
            "failback",
            {
                8: ("power_off",),
                7: ("revert_and_drop_snapshot",),
                6: _MOVE,
                5: ("adopt",),
                4: _READ[2:],
                3: _READ[2:],
                2: ("start_azure",),
            },
        ),
    ),
}
PROGRAMME: Final[Mapping[str, tuple[str, ...]]] = {
    "failed-over": ("reprotect", "reprotect without room", "reprotect without source"),
    "protected": ("failback", "failback without memory", "cancel-reprotect"),
    "failed-back": ("commit", "cancel"),
}
"""What may be played, by the item's state."""
POINTS_MAX: Final = 4
"""At so many points one job dies, and perhaps at an instant between them."""


@dataclass
class Tally:
    """Which points are still to come, and how often the server died."""

    left: dict[str, list[Point]] = field(default_factory=dict)
    at_points: int = 0
    at_instants: int = 0
    missed: int = 0
    seen: set[tuple[str, Point]] = field(default_factory=set)

    def draw(self, play: str, chance: Random, count: int) -> list[Point]:
        """Points of the play, each once before any comes again; in the order in which the job passes them."""
        order = PLAYS[play].points
        drawn: list[Point] = []
        for _ in range(count):
            left = self.left.setdefault(play, [])
            if not left:
                left.extend(order)
            drawn.append(left.pop(chance.randrange(len(left))))
        return sorted(set(drawn), key=order.index)

    def unseen(self, play: str) -> int:
        """How many points of the play nobody died at yet."""
        return sum((play, point) not in self.seen for point in PLAYS[play].points)

    def miss(self, play: str, point: Point) -> None:
        """The job did not pass the point: after a death a step has less to do than before. It comes again."""
        self.missed += 1
        self.left[play].append(point)

    def say(self) -> str:
        """One line."""
        points = sum(len(play.points) for play in PLAYS.values())
        return (
            f"crash confserver: died {self.at_points} times at {len(self.seen)} of {points} points and "
            f"{self.at_instants} times at random instants; {self.missed} times a point was not passed"
        )


class Troupe:
    """Plays rounds on one stage, which is set up anew after a round that did not hold."""

    def __init__(self) -> None:
        self.tally = Tally()
        self._stack = ExitStack()
        self._stage: Stage | None = None
        self._serial = 0

    def close(self) -> None:
        """The stage is gone."""
        self._stage = None
        self._stack.close()

    def round(self, chance: Random, _: int) -> None:
        """One round; see the module."""
        try:
            self._round(chance)
        except BaseException:
            if self._stage is not None:
                print(self._stage.say(), file=sys.stderr)
            self.close()
            raise

    def _round(self, chance: Random) -> None:
        if self._stage is None:
            self._stage = self._stack.enter_context(stage(Random(chance.random())))
        scene = self._stage
        if scene.state() == "committed":
            scene.fail_over()
        plays = PROGRAMME[scene.state()]
        play = chance.choices(plays, [1 + self.tally.unseen(play) for play in plays])[0]
        scene.lab.vcenter.task_seconds(chance.choice(TASK_SECONDS))
        if PLAYS[play].verb == "reprotect":
            scene.begin(chance)
        elif PLAYS[play].verb == "failback":
            scene.lab.write(chance)
        deaths: list[Death] = [*self.tally.draw(play, chance, POINTS_MAX)]
        if chance.random() < 0.6:
            deaths.insert(chance.randrange(len(deaths) + 1), chance.uniform(0.0, 2.5))
        self._act(scene, play, deaths, chance)

    # One job

    def _act(self, scene: Stage, name: str, deaths: list[Death], chance: Random) -> None:
        play = PLAYS[name]
        lab = scene.lab
        before = scene.look()
        scene.effects()
        known = {job["id"] for job in lab.ask("GET", "/jobs")["jobs"]}
        restore = play.sabotage(scene) if play.sabotage else lambda: None
        try:
            job = self._to_its_end(scene, name, list(deaths), chance, known)
        finally:
            restore()
        self._judge(scene, name, job, before, known)

    def _to_its_end(
        self, scene: Stage, name: str, deaths: list[Death], chance: Random, known: set[str]
    ) -> dict[str, Any]:
        """The play's job, over; the server died on the way as told, and was started again each time."""
        lab = scene.lab
        fate = lab.folder / "die-at"
        armed: Point | None = None
        instant = float("inf")
        job = ""
        deadline = time.monotonic() + JOB_SECONDS_MAX

        def arm() -> None:
            nonlocal armed, instant
            armed, instant = None, float("inf")
            if not deaths:
                return
            death = deaths.pop(0)
            if isinstance(death, float):
                instant = time.monotonic() + death
                return
            armed = death
            self._serial += 1
            new = fate.with_suffix(".new")
            new.write_text(f"{death[0]},{death[1]},{self._serial}")
            new.rename(fate)

        def revive() -> None:
            if armed is not None:
                self.tally.at_points += 1
                self.tally.seen.add((name, armed))
            time.sleep(chance.choice((0.0, 0.1, 0.5)))
            arm()
            lab.start()

        arm()
        while True:
            assert time.monotonic() < deadline, f"{name}: not over in {JOB_SECONDS_MAX} s"
            assert lab.process is not None
            if time.monotonic() > instant:
                self.tally.at_instants += 1
                lab.kill()
                revive()
            elif lab.process.poll() is not None:
                status = lab.gone()
                assert status == -9, f"the server ended by itself with {status}"
                revive()
            try:
                if not job:
                    job = self._begun(scene, PLAYS[name].verb, known)
                found: dict[str, Any] = lab.ask("GET", f"/jobs/{job}")
                if found["status"] in OVER and not (armed and found["status"] == "stuck"):
                    break
                scene.no_two_owners()
            except httpx.TransportError:
                pass  # dying
            time.sleep(POLL_SECONDS)
        fate.unlink(missing_ok=True)
        if armed is not None:
            self.tally.miss(name, armed)
        return found

    def _begun(self, scene: Stage, verb: str, known: set[str]) -> str:
        """The id of the verb's job, which an earlier server may have recorded before it died."""
        for job in scene.lab.ask("GET", "/jobs")["jobs"]:
            if job["id"] not in known:
                return str(job["id"])
        asked = "cancel" if verb == "cancel-reprotect" else verb
        return str(scene.lab.ask("POST", f"/items/web/{asked}")["id"])

    def _judge(self, scene: Stage, name: str, job: dict[str, Any], before: Look, known: set[str]) -> None:
        """The job ended as it would have without any death, or went back as one that failed by itself does."""
        lab = scene.lab
        status = job["status"]
        wanted = ("done", "failed") if PLAYS[name].sabotage else ("done",)
        assert status in wanted, f"{name} ended {status}: {job['error']}"
        new = [found["id"] for found in lab.ask("GET", "/jobs")["jobs"] if found["id"] not in known]
        assert new == [job["id"]], f"{name} became the jobs {new}"
        assert all(step["ended"] for step in job["steps"]), job["steps"]
        scene.no_roles()
        scene.no_two_owners()
        after, effects = scene.look(), scene.effects()
        scene.nothing_left(after)
        verb = PLAYS[name].verb
        if status == "failed":
            undone(job, before, after)
            return
        wanted_look = replace(scene.expected(verb), files=after.files)
        assert after == wanted_look, f"{name}: {after} is not {wanted_look}"
        assert effects == ONCE[verb], f"{name}: {effects} is not {ONCE[verb]}"
        if verb not in ("commit", "cancel-reprotect"):
            assert lab.equal(), f"{name}: both sides differ"


@contextmanager
def confserver() -> Iterator[Round]:
    """One machine comes home, again and again, in spite of kills of the configuration server."""
    troupe = Troupe()
    try:
        yield troupe.round
    finally:
        troupe.close()
        print(troupe.tally.say(), file=sys.stderr)
