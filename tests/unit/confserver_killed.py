"""Runs an item's verbs in child processes that die by SIGKILL: after each step's work, before anybody could note it.

    python -m tests.unit.confserver_killed FOLDER VERB…

Every (phase, step) of a verb with an exclamation mark kills one process, and so does the first change inside it. `lie`
in the place of a verb makes both sides differ, so that the next failback is undone. Prints how many processes died.
HOMEWARD_TEST_DATABASE may hold the URL of a database; otherwise SQLite's files are in the folder.
"""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from confserver.items import OVER
from confserver.steps import Step, Verb, Work
from tests.unit import confserver_rig
from tests.unit.confserver_fakes import World
from tests.unit.confserver_rig import Rig, Saboteur


class Killer(Saboteur):
    """Kills this process once for every step and phase, at its end, and once at the first change within it."""

    def __init__(self, marks: Path, *, armed: bool) -> None:
        super().__init__()
        self.marks = marks
        self.armed = armed
        self.now = ""

    def strike(self, mark: str) -> None:
        """The process dies unless it did so here before."""
        place = self.marks / mark
        if self.armed and not place.exists():
            place.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def changed(self, name: str) -> None:
        """A fabric was changed."""
        if self.now:
            self.strike(f"{self.now} change")

    def _action(
        self, verb: str, name: str, phase: str, action: Callable[[Work], None]
    ) -> Callable[[Work], None]:
        def watched(work: Work) -> None:
            self.now = f"{verb} {phase} {name}"
            action(work)
            self.strike(f"{self.now} end")
            self.now = ""

        return watched

    def wrap(self, verb: Verb) -> Verb:
        steps: list[Step] = []
        for step in verb.steps:
            do = self._action(verb.name, step.name, "do", step.do)
            steps.append(replace(step, do=do, undo=self._action(verb.name, step.name, "undo", step.undo)))
        return replace(verb, steps=tuple(steps))


def child(folder: Path, told: str) -> None:
    """One life: goes on with the job of the verb, or begins it, and waits for its end."""
    verb = told.rstrip("!")
    killer = Killer(folder / "marks", armed=told != verb)
    confserver_rig.Saboteur = lambda: killer  # type: ignore[assignment,misc]
    rig = Rig(folder, os.environ.get("HOMEWARD_TEST_DATABASE", ""))
    rig.world.on_change = killer.changed
    rig.jobs.start()
    item = rig.enable()
    jobs = [job for job in rig.store.jobs(item.id) if job.verb == verb]
    job = jobs[-1] if jobs else rig.service.begin(item.id, verb)
    if job.status not in OVER:
        rig.jobs.wait(job)


def main() -> None:
    """Each verb has ended, however often its process died."""
    folder = Path(sys.argv[1])
    (folder / "marks").mkdir()
    deaths = 0
    for verb in sys.argv[2:]:
        if verb == "lie":
            World(folder / "world.json").set(lie="dd")
            continue
        while True:
            process = os.fork()
            if process == 0:
                child(folder, verb)
                os._exit(0)
            _, status = os.waitpid(process, 0)
            if os.WIFEXITED(status):
                if os.WEXITSTATUS(status):
                    sys.exit(f"{verb}: exit status {os.WEXITSTATUS(status)}")
                break
            deaths += 1
    sys.stdout.write(f"{deaths}\n")


if __name__ == "__main__":
    main()
