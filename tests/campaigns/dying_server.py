"""`homeward confserver serve`, but with SIGKILL waiting at a named point.

`python -m tests.campaigns.dying_server CONFIG`: a nursery, which has loaded everything that a server needs and lets one
live at a time, as a process of its own. For each line on its standard input a server is born; it says its process id
and where it listens, and when it has died the nursery says how. With its standard input the nursery ends.

The file `die-at` beside the configuration holds a point, the how
manieth pass of it is meant (from 1), and a number that tells it from earlier ones: `after do attach_disk,2,17`. It may
be written at any time; the process removes it and dies there.

Points of a job: `before begin_job`, `after begin_job`; so for `set_status` and `end_job`. Of the run of a step, with
its phase and number: `before begin_step do 3` (the step before is recorded everywhere), `after begin_step do 3`
(nothing was done yet), `before end_step do 3` (all was done, nothing is recorded), `after end_step do 3` (recorded by
the store and not yet by DBOS). Of a call to a fabric or the data path, with the phase: `before do attach_disk`.
"""

import importlib
import os
import select
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from dbos import _dbos as dbos_inside

from confserver import config as settings
from confserver import jobs
from confserver import main as server
from confserver.adapters import azure_arm, replication
from confserver.store import Store
from homeward.cli import main as homeward
from tests.campaigns.dying import Dying

VSPHERE: Final = {
    name: name
    for name in (
        "power_off",
        "power_on",
        "merge_snapshots",
        "detach_disk",
        "attach_disk",
        "create_snapshot",
        "remove_snapshot",
        "revert_and_drop_snapshot",
    )
}
AZURE: Final = {
    "deallocate": "deallocate",
    "start": "start_azure",
    "grant_access": "grant_access",
    "revoke_access": "revoke_access",
}
REPLICATION: Final = {
    "start": "adopt",
    "fence": "fence",
    "cycle": "cycle",
    "final_cycle": "final_cycle",
    "proof": "proof",
    "stop": "release",
    "forget": "forget",
}
"""By the verbs of the ports, what their points are called."""
LOADED: Final = (
    "uvicorn",
    "confserver.api",
    "confserver.adapters.vsphere",
    "confserver.adapters.azure_arm",
    "confserver.adapters.replication",
    "azure.storage.blob",
)
PAUSES: Final = (0.1, 0.2, 0.5, 2.0, 5.0)
POLL_SECONDS: Final = 0.05
"""Instead of whole seconds, so that a campaign has its rounds."""


class Fate:
    """The file that names a point, looked at whenever one is passed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._told = ""
        self._passed = 0
        self.phase = "do"

    def at(self, point: str) -> None:
        """The process dies if this is its point."""
        with self._lock:
            try:
                told = self._path.read_text()
            except FileNotFoundError:
                return
            if told != self._told:
                self._told, self._passed = told, 0
            wanted, count, _ = told.split(",")
            if wanted == point:
                self._passed += 1
                if self._passed == int(count):
                    self._path.unlink()
                    os.kill(os.getpid(), signal.SIGKILL)


class Watched(Dying):
    """A port whose calls pass points; `names` says what a verb is called there, for those that are watched."""

    def __init__(self, inner: Any, fate: Any, names: dict[str, str]) -> None:
        super().__init__(inner, fate, tuple(names))
        self._names = names
        self._fate = fate

    def _passing(self, name: str, verb: Any) -> Any:
        def call(*args: Any, **words: Any) -> Any:
            point = f"{self._fate.phase} {self._names[name]}"
            self._fate.at(f"before {point}")
            answer = verb(*args, **words)
            self._fate.at(f"after {point}")
            return answer

        return call


class DyingStore(Store):
    """The real store; what is recorded passes the points."""

    fate: Fate

    def begin_job(self, *args: Any) -> Any:
        return self._passing("begin_job", super().begin_job, *args)

    def set_status(self, *args: Any) -> Any:
        return self._passing("set_status", super().set_status, *args)

    def end_job(self, *args: Any) -> Any:
        return self._passing("end_job", super().end_job, *args)

    def begin_step(self, job: str, step: Any) -> Any:
        self.fate.phase = step.phase
        return self._passing(f"begin_step {step.phase} {step.index}", super().begin_step, job, step)

    def end_step(self, job: str, phase: str, number: int, *args: Any) -> Any:
        return self._passing(f"end_step {phase} {number}", super().end_step, job, phase, number, *args)

    def _passing(self, name: str, verb: Any, *args: Any) -> Any:
        self.fate.at(f"before {name}")
        answer = verb(*args)
        self.fate.at(f"after {name}")
        return answer


def serve(path: Path) -> None:
    """What the command does, with points on its way."""
    fate: Any = Fate(path.with_name("die-at"))
    DyingStore.fate = fate
    ports, load = server.Ports, settings.load

    def wired(vsphere: Any, azure: Any, replication: Any) -> Any:
        return ports(
            Watched(vsphere, fate, VSPHERE),  # type: ignore[arg-type]
            Watched(azure, fate, AZURE),  # type: ignore[arg-type]
            Watched(replication, fate, REPLICATION),  # type: ignore[arg-type]
        )

    def quickly(*args: Any) -> Any:
        found = load(*args)
        return replace(found, azure=replace(found.azure, poll_seconds=POLL_SECONDS))  # type: ignore[arg-type]

    jobs.RETRY_SECONDS = PAUSES
    replication.HANDOVER_SECONDS = PAUSES
    azure_arm.PAUSE_SECONDS = POLL_SECONDS
    server.Store = DyingStore  # type: ignore[misc]
    server.Ports = wired  # type: ignore[misc,assignment]
    settings.load = quickly
    dbos_inside._get_or_create_dbos_registry().get_internal_queue()._polling_interval_sec = POLL_SECONDS
    sys.argv = ["homeward", "confserver", "serve", "--json", "--config", str(path)]
    homeward()


def main() -> None:
    """See the module."""
    path = Path(sys.argv[1])
    for name in LOADED:
        importlib.import_module(name)
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            sys.stdout.write(f"{os.getpid()}\n")
            sys.stdout.flush()
            serve(path)
            os._exit(0)
        sys.stdout.write(f"{live(child)}\n")
        sys.stdout.flush()


def live(child: int) -> int:
    """How the child's life ended; it ends with the standard input, too."""
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        ready, _, _ = select.select([sys.stdin], [], [], POLL_SECONDS)
        if ready:  # nothing is said while a server lives
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            sys.exit(0)


if __name__ == "__main__":
    main()
