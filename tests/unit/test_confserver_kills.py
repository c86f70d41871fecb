"""A server that is killed after every step's work, before it is noted, ends its jobs all the same: nothing twice."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from confserver.items import JobStatus
from confserver.states import State
from confserver.store import Store
from tests.unit.confserver_fakes import World


@pytest.fixture
def folder() -> Iterator[Path]:
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=place if place.is_dir() else None) as found:
        yield Path(found)


def run(folder: Path, *verbs: str) -> tuple[int, dict[str, Any]]:
    """How many processes died, and the world afterwards."""
    command = [sys.executable, "-m", "tests.unit.confserver_killed", str(folder), *verbs]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
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
CANCEL = ["power-off-home", "revert", *REPROTECT[2:], "start-azure"]
DATA = ("cycle 1", "cycle 2", "cycle 3", "final-cycle")


def once(journal: list[str]) -> list[str]:
    """The journal with a data step that was run again after a kill counted once: it publishes a point each time."""
    return [
        name
        for number, name in enumerate(journal)
        if name not in DATA or journal[number - 1 : number] != [name]
    ]


def outcome(folder: Path) -> tuple[State, set[JobStatus]]:
    store = Store(f"sqlite:///{folder / 'store.sqlite'}")
    found = store.items()[0].state, {job.status for job in store.jobs()}
    store.close()
    return found


def test_a_homecoming_survives_a_kill_after_every_step(folder: Path) -> None:
    deaths, world = run(folder, "reprotect!", "failback!", "commit!")
    assert deaths > 25
    expected = [*REPROTECT, "cycle 1", "cycle 2", *FAILBACK, "merge-snapshot", "drop-points"]
    assert once(world["journal"]) == expected
    assert outcome(folder) == (State.COMMITTED, {JobStatus.DONE})


def test_a_cancel_survives_a_kill_after_every_step(folder: Path) -> None:
    deaths, world = run(folder, "reprotect", "failback", "cancel!")
    assert deaths > 8
    expected = [*REPROTECT, "cycle 1", "cycle 2", *FAILBACK, *CANCEL, "cycle 3"]
    assert once(world["journal"]) == expected
    assert outcome(folder) == (State.PROTECTED, {JobStatus.DONE})


def test_an_undo_survives_a_kill_after_every_step(folder: Path) -> None:
    deaths, world = run(folder, "reprotect", "lie", "failback!")
    assert deaths > 10
    expected = [*REPROTECT, "cycle 1", "cycle 2", "deallocate", "final-cycle", "start-azure"]
    assert once(world["journal"]) == expected
    assert outcome(folder) == (State.PROTECTED, {JobStatus.DONE, JobStatus.FAILED})
    assert World(folder / "world.json").read()["grants"] == []
