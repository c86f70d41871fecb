"""A server that is killed after every step's work, before it is noted, ends its jobs all the same: nothing twice."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dbos import DBOS
from dbos._error import DBOSInitializationError

from confserver import jobs
from confserver.items import JobStatus
from confserver.states import State
from confserver.store import Store
from tests.unit.confserver_fakes import World
from tests.unit.confserver_rig import running


@pytest.fixture
def folder() -> Iterator[Path]:
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=place if place.is_dir() else None) as found:
        yield Path(found)


@pytest.fixture
def database(request: pytest.FixtureRequest, folder: Path) -> str:
    if getattr(request, "param", "sqlite") == "sqlite":
        return f"sqlite:///{folder / 'store.sqlite'}"
    found: str = request.getfixturevalue("cluster").create()
    return found


BOTH = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)


def run(folder: Path, database: str, *verbs: str) -> tuple[int, dict[str, Any]]:
    """How many processes died, and the world afterwards."""
    command = [sys.executable, "-m", "tests.unit.confserver_killed", str(folder), *verbs]
    told = {} if database.startswith("sqlite") else {"HOMEWARD_TEST_DATABASE": database}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=250, check=False, env={**os.environ, **told}
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((folder / "world.json").read_text())
    return int(done.stdout), found


REPROTECT = [
    "power-off-home",
    "merge",
    *("detach 1 web", "attach 1 mt", "detach 2 web", "attach 2 mt"),
    "take-disks",
]
FAILBACK = [
    "deallocate",
    "final-cycle",
    "release-disks",
    *("detach 1 mt", "attach 1 web", "detach 2 mt", "attach 2 web"),
    "snapshot",
    "power-on-home",
]
CAUGHT_UP = ["cycle 1", "fence 2", "cycle 2"]
"""The reprotect's cycle; the failback fences off whoever still works for it, then catches up."""
CANCEL = ["power-off-home", "revert", *REPROTECT[2:], "start-azure"]
DATA = ("cycle 1", "cycle 2", "cycle 3", "final-cycle")


def once(journal: list[str]) -> list[str]:
    """The journal with a data step that was run again after a kill counted once: it publishes a point each time."""
    return [
        name
        for number, name in enumerate(journal)
        if name not in DATA or journal[number - 1 : number] != [name]
    ]


def outcome(database: str) -> tuple[State, set[JobStatus]]:
    store = Store(database)
    found = store.items()[0].state, {job.status for job in store.jobs()}
    store.close()
    return found


@BOTH
def test_a_homecoming_survives_a_kill_after_every_step(folder: Path, database: str) -> None:
    deaths, world = run(folder, database, "reprotect!", "failback!", "commit!")
    assert deaths > 25
    expected = [*REPROTECT, *CAUGHT_UP, *FAILBACK, "merge-snapshot", "drop-points"]
    assert once(world["journal"]) == expected
    assert outcome(database) == (State.COMMITTED, {JobStatus.DONE})


def test_a_cancel_survives_a_kill_after_every_step(folder: Path, database: str) -> None:
    deaths, world = run(folder, database, "reprotect", "failback", "cancel!")
    assert deaths > 8
    expected = [*REPROTECT, *CAUGHT_UP, *FAILBACK, *CANCEL, "cycle 3"]
    assert once(world["journal"]) == expected
    assert outcome(database) == (State.PROTECTED, {JobStatus.DONE})


@BOTH
def test_an_undo_survives_a_kill_after_every_step(folder: Path, database: str) -> None:
    deaths, world = run(folder, database, "reprotect", "lie", "failback!")
    assert deaths > 10
    expected = [*REPROTECT, *CAUGHT_UP, "deallocate", "final-cycle", "start-azure"]
    assert once(world["journal"]) == expected
    assert outcome(database) == (State.PROTECTED, {JobStatus.DONE, JobStatus.FAILED})
    assert World(folder / "world.json").read()["grants"] == []


def left_behind(folder: Path, version: str) -> Path:
    """A script that begins a reprotect under that version of the workflow and dies in its first change."""
    script = folder / "left.py"
    script.write_text(
        f"""
import os, signal
from pathlib import Path
from confserver import jobs
from tests.unit.confserver_rig import Rig
jobs.WORKFLOW_VERSION = {version!r}
rig = Rig(Path({str(folder)!r}))
rig.world.on_change = lambda name: os.kill(os.getpid(), signal.SIGKILL)
rig.jobs.start()
rig.jobs.wait(rig.service.begin(rig.enable().id, "reprotect"))
"""
    )
    return script


def test_a_job_of_another_version_is_stuck_until_a_retry_undoes_it(folder: Path) -> None:
    command = [sys.executable, left_behind(folder, "homeward-jobs-0")]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": "."}, timeout=60, check=False, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    with running(folder) as rig:
        job = rig.store.jobs()[0]
        assert (job.status, job.error["code"]) == (JobStatus.STUCK, "HW-CONF-026")
        assert "homeward-jobs-0" in job.error["found"]
        assert rig.jobs.wait(rig.service.retry(job.id)).status is JobStatus.FAILED
        item, world = rig.store.item(job.item), rig.world.read()
        assert (item.state, item.job, world["home_power"]) == (State.FAILED_OVER, "", "on")


@pytest.mark.parametrize(("name", "taken"), [(jobs.APPLICATION, True), ("hw", False)])
def test_the_name_of_the_application_is_one_that_dbos_takes(name: str, taken: bool) -> None:
    with contextlib.nullcontext() if taken else pytest.raises(DBOSInitializationError):
        DBOS(config={"name": name})
    DBOS.destroy()
