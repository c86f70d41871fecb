"""Every step of reprotect and failback made to fail, once and for good, by faults of the stand-ins, roles and books.

A round is one case of the table. A fault that passes is outlived: the job is done, and each effect was brought about
once. A fault that does not pass ends the job with a coded error: it is undone, everything is as before, and replication
goes on; afterwards the verb succeeds.
"""

import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Final

from confserver.service import VERBS
from disks import guard
from tests.campaigns.homecoming import ONCE, Stage, roles, stage, undone
from tests.campaigns.runner import Round

Hit = Callable[[], bool]
"""Whether the fault has met what it was meant for; it is over then."""
Fault = Callable[[Stage], Hit]
WATCH_SECONDS_MAX: Final = 60.0
POLL_SECONDS: Final = 0.01
HELD_SECONDS: Final = 0.3


@dataclass(frozen=True, slots=True)
class Case:
    """A fault at a step. `code`: of the error that ends the job; empty: the job outlives it."""

    verb: str
    step: str
    fault: Fault
    code: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.step} {'for good' if self.code else 'once'}"


def vcenter(method: str, entity: str = "", **rule: Any) -> Fault:
    """A call of the vCenter meets a mishap."""

    def arrange(scene: Stage) -> Hit:
        lab = scene.lab.vcenter
        lab.arrange(method, **({"entity": entity} if entity else {}), **rule)
        return lambda: not lab.arranged()

    return arrange


def azure(operation: str, effect: str = "answer", **rule: Any) -> Fault:
    """A call of the Resource Manager, or of a blob, meets a mishap."""

    def arrange(scene: Stage) -> Hit:
        driver = scene.lab.azure
        driver.fault(operation, effect, **rule)

        def hit() -> bool:
            found = [rule["hits"] for rule in driver.control("GET", "/faults")["faults"]]
            driver.control("DELETE", "/faults")
            return bool(found) and all(found)

        return hit

    return arrange


def killed(*words: str) -> Fault:
    """The first process of a role with these words on its command line dies."""

    def arrange(scene: Stage) -> Hit:
        struck = threading.Event()

        def strike() -> None:
            deadline = time.monotonic() + WATCH_SECONDS_MAX
            while time.monotonic() < deadline:
                for pid, line in roles(scene.lab.folder):
                    if all(word in line for word in words):
                        os.kill(pid, signal.SIGKILL)
                        struck.set()
                        return
                time.sleep(POLL_SECONDS)

        thread = threading.Thread(target=strike)
        thread.start()

        def hit() -> bool:
            thread.join()
            return struck.is_set()

        return hit

    return arrange


def source_away(scene: Stage) -> Hit:
    """The running machine's second disk cannot be read."""
    there = scene.lab.source("data")
    away = there.with_suffix(".away")
    there.rename(away)

    def hit() -> bool:
        away.rename(there)
        return True

    return hit


def disk_held(scene: Stage) -> Hit:
    """Somebody holds the second disk at home for longer than a master target waits."""
    file = scene.lab.target("data").open("r+b")
    guard.lock(file.fileno(), scene.lab.target("data"), exclusive=True)

    def hit() -> bool:
        file.close()
        return True

    return hit


def books(table: str, column: str, step: str, *, passing: bool) -> Fault:
    """The store's database refuses to fill a column, until the step has been at it for a while or for good.

    It lets a column be emptied: a full disk has no room for more, and the way back needs none.
    """

    def arrange(scene: Stage) -> Hit:
        path = scene.lab.folder / "state" / "items.sqlite"
        _sql(
            path,
            f"CREATE TRIGGER fault BEFORE UPDATE OF {column} ON {table} WHEN NEW.{column} <> '' "
            "BEGIN SELECT RAISE(ABORT, 'a fault of the database'); END",
        )
        seen = threading.Event()

        def watch() -> None:
            deadline = time.monotonic() + WATCH_SECONDS_MAX
            while time.monotonic() < deadline and not seen.is_set():
                if _at(path, step):
                    time.sleep(HELD_SECONDS)
                    seen.set()
                time.sleep(POLL_SECONDS)
            if passing:
                _sql(path, "DROP TRIGGER fault")

        thread = threading.Thread(target=watch)
        thread.start()

        def hit() -> bool:
            thread.join()
            if not passing:
                _sql(path, "DROP TRIGGER fault")
            return seen.is_set()

        return hit

    return arrange


def _sql(path: Path, statement: str) -> list[Any]:
    link = sqlite3.connect(path, timeout=30, isolation_level=None)
    try:
        return link.execute(statement).fetchall()
    finally:
        link.close()


def _at(path: Path, step: str) -> bool:
    found = _sql(path, f"SELECT 1 FROM homeward_steps WHERE name = '{step}' AND phase = 'do' AND ended = 0")
    return bool(found)


_BROKEN: Final = {"fault": "GenericVmConfigFault"}
_BUSY: Final = {"http": 503}
_FORBIDDEN: Final = {"status": 403, "code": "AuthorizationFailed"}
_REFUSED: Final = "HW-CONF-128"
CASES: Final = (
    Case("reprotect", "await-agent", azure("virtualMachines/get", status=503, skip=1)),
    Case("reprotect", "await-agent", azure("virtualMachines/get", skip=1, **_FORBIDDEN), "HW-CONF-154"),
    Case(
        "reprotect",
        "raise-generation",
        books("homeward_items", "generation", "raise-generation", passing=True),
    ),
    Case(
        "reprotect",
        "raise-generation",
        books("homeward_items", "generation", "raise-generation", passing=False),
        "HW-CONF-021",
    ),
    Case("reprotect", "remember-places", books("homeward_items", "home", "remember-places", passing=True)),
    Case(
        "reprotect",
        "remember-places",
        books("homeward_items", "home", "remember-places", passing=False),
        "HW-CONF-021",
    ),
    Case("reprotect", "power-off-home", vcenter("PowerOffVM_Task", **_BUSY)),
    Case("reprotect", "power-off-home", vcenter("PowerOffVM_Task", drop="after")),
    Case("reprotect", "power-off-home", vcenter("PowerOffVM_Task", **_BROKEN), _REFUSED),
    Case("reprotect", "merge-snapshots", vcenter("RemoveAllSnapshots_Task", **_BUSY)),
    Case("reprotect", "merge-snapshots", vcenter("RemoveAllSnapshots_Task", **_BROKEN), _REFUSED),
    Case("reprotect", "hand-to-masttarget", vcenter("ReconfigVM_Task", "mt", **_BUSY)),
    Case("reprotect", "hand-to-masttarget", vcenter("ReconfigVM_Task", "web", drop="after")),
    Case("reprotect", "hand-to-masttarget", vcenter("ReconfigVM_Task", "mt", skip=1, **_BROKEN), _REFUSED),
    Case("reprotect", "adopt-disks", killed("masttarget", "adopt")),
    Case("reprotect", "adopt-disks", disk_held, "HW-CONF-014"),
    Case("reprotect", "replicate", killed("agent", "sync")),
    Case("reprotect", "replicate", killed("masttarget", "serve")),
    Case("reprotect", "replicate", source_away, "HW-CONF-014"),
    Case("failback", "raise-generation", killed("masttarget", "adopt")),
    Case(
        "failback",
        "raise-generation",
        books("homeward_items", "generation", "raise-generation", passing=False),
        "HW-CONF-021",
    ),
    Case("failback", "catch-up", killed("agent", "sync")),
    Case("failback", "catch-up", source_away, "HW-CONF-014"),
    Case("failback", "stop-azure", azure("virtualMachines/deallocate", status=429, retry_after=0)),
    Case("failback", "stop-azure", azure("virtualMachines/deallocate", "drop-answer")),
    Case(
        "failback",
        "stop-azure",
        azure("virtualMachines/deallocate", "fail-operation", status=409, code="OperationNotAllowed"),
        "HW-CONF-160",
    ),
    Case("failback", "final-point", azure("blob/read", status=503, code="ServerBusy")),
    Case("failback", "final-point", azure("disks/beginGetAccess", **_FORBIDDEN), "HW-CONF-154"),
    Case("failback", "verify", killed("agent", "prove")),
    Case("failback", "verify", azure("disks/beginGetAccess", skip=2, **_FORBIDDEN), "HW-CONF-154"),
    Case("failback", "give-back-disks", vcenter("ReconfigVM_Task", "web", **_BUSY)),
    Case("failback", "give-back-disks", vcenter("ReconfigVM_Task", "web", skip=1, **_BROKEN), _REFUSED),
    Case("failback", "take-snapshot", vcenter("CreateSnapshot_Task", drop="after")),
    Case("failback", "take-snapshot", vcenter("CreateSnapshot_Task", **_BROKEN), _REFUSED),
    Case("failback", "power-on-home", vcenter("PowerOnVM_Task", **_BUSY)),
    Case(
        "failback",
        "power-on-home",
        vcenter(
            "PowerOnVM_Task",
            fault="InsufficientMemoryResourcesFault",
            detail={"unreserved": 5, "requested": 9},
        ),
        "8038",
    ),
)
"""In both verbs `release-disks` only removes files and ends no other way than well."""
BEGINS: Final = {"reprotect": "failed-over", "failback": "protected"}
TO: Final = {
    ("failed-over", "protected"): "reprotect",
    ("protected", "failed-over"): "cancel",
    ("failed-back", "protected"): "cancel",
    ("failed-back", "failed-over"): "commit",
}


class Bench:
    """Cases on one stage, which is set up anew after a round that did not hold."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._stage: Stage | None = None
        self._left: list[Case] = []

    def close(self) -> None:
        """The stage is gone."""
        self._stage = None
        self._stack.close()

    def round(self, chance: Random, _: int) -> None:
        """One case, each once before any comes again."""
        if self._stage is None:
            self._stage = self._stack.enter_context(stage(Random(chance.random())))
        if not self._left:
            self._left = list(CASES)
        state = self._stage.state()
        near = [case for case in self._left if BEGINS[case.verb] == state] or self._left
        case = near[chance.randrange(len(near))]
        self._left.remove(case)
        try:
            self._play(self._stage, case, chance)
        except BaseException:
            print(f"fault confserver: {case}\n{self._stage.say()}", file=sys.stderr)
            self.close()
            raise

    def _play(self, scene: Stage, case: Case, chance: Random) -> None:
        self._go_to(scene, BEGINS[case.verb])
        if case.verb == "reprotect":
            scene.begin(chance)
        else:
            scene.lab.write(chance)
        before = scene.look()
        scene.effects()
        hit = case.fault(scene)
        try:
            job = scene.lab.ask("POST", f"/items/web/{case.verb}")
            job = scene.lab.wait(job["id"], "failed" if case.code else "done")
        finally:
            struck = hit()
        scene.lab.vcenter.clear()
        assert struck, f"{case}: the fault met nothing"
        scene.no_roles()
        scene.no_two_owners()
        after = scene.look()
        scene.nothing_left(after)
        if not case.code:
            wanted = replace(scene.expected(case.verb), files=after.files)
            assert after == wanted, f"{case}: {after} is not {wanted}"
            effects = scene.effects()
            assert effects == ONCE[case.verb], f"{case}: {effects} is not {ONCE[case.verb]}"
            assert scene.lab.equal()
            assert not job["error"], job["error"]
            return
        self._failed(case, job)
        undone(job, before, after)
        if case.verb == "failback":  # replication goes on
            scene.lab.write(chance)
            scene.lab.run("replicate")
            assert scene.lab.equal()

    def _failed(self, case: Case, job: dict[str, Any]) -> None:
        error = job["error"]
        assert error["code"] == case.code, f"{case}: {error}"
        assert all(error[part] for part in ("error", "found", "expected", "remedy")), error
        done = [step for step in job["steps"] if step["phase"] == "do"]
        assert (done[-1]["name"], done[-1]["failure"]) == (case.step, case.code), f"{case}: {done[-1]}"
        back = [step["name"] for step in job["steps"] if step["phase"] == "undo"]
        assert sorted(back) == sorted(step["name"] for step in done), f"{case}: undone were {back}"
        assert not any(step["failure"] for step in job["steps"] if step["phase"] == "undo"), job["steps"]

    def _go_to(self, scene: Stage, state: str) -> None:
        while (now := scene.state()) != state:
            if now == "committed":
                scene.fail_over()
            else:
                scene.lab.run(TO[now, state])


def covered() -> set[tuple[str, str]]:
    """The steps that the table has."""
    return {(case.verb, case.step) for case in CASES}


def steps() -> set[tuple[str, str]]:
    """The steps of both verbs that can fail."""
    return {
        (verb, step.name) for verb in BEGINS for step in VERBS[verb].steps if step.name != "release-disks"
    }


@contextmanager
def confserver() -> Iterator[Round]:
    """Steps fail, once or for good."""
    bench = Bench()
    try:
        yield bench.round
    finally:
        bench.close()
