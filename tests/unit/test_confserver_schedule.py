"""Cycles that come by themselves: after which jobs, until when, and what an item's standing says of them."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dbos import DBOS

from confserver import schedule as schedules
from confserver.errors import JobCancelled
from confserver.items import Item, JobStatus
from confserver.ports import CycleReport, Moved, ReplicaOrder, Stopped
from confserver.schedule import RPO_SECONDS, Schedule
from confserver.states import State
from tests.unit.confserver_fakes import FakeReplication
from tests.unit.confserver_rig import Rig

INTERVAL, POLL = 0.3, 0.05
QUIET = 3 * INTERVAL


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Rig, Schedule]]:
    rig = Rig(tmp_path_factory.mktemp("rig"))
    schedule = Schedule(rig.jobs, rig.store, rig.service.record, rig.clock, INTERVAL, POLL)
    rig.jobs.start()
    schedule.start()
    try:
        yield rig, schedule
    finally:
        rig.jobs.close()
        rig.store.close()


_numbers = iter(range(1000))


@pytest.fixture
def item(site: tuple[Rig, Schedule]) -> Iterator[Item]:
    rig, _ = site
    found = rig.another(f"item{next(_numbers)}")
    yield found
    # Nothing of this item comes due in a later test, whose world it would find.
    rig.saboteur.times = 0
    deadline = time.monotonic() + 30
    while rig.store.item(found.id).job and time.monotonic() < deadline:
        time.sleep(0.05)
    if rig.store.item(found.id).state is State.PROTECTED:
        rig.do(found, "cancel")


def cycles(rig: Rig, item: Item) -> int:
    return sum(job.verb == "replicate" for job in rig.store.jobs(item.id))


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_protected_item_gets_cycle_after_cycle(site: tuple[Rig, Schedule], item: Item) -> None:
    rig, schedule = site
    rig.world.set(cycles=[4096, 8192, 12288, 0, 0, 0])
    assert schedule.standing(item) is None, "nothing replicates yet"
    assert rig.do(item, "reprotect").status is JobStatus.DONE
    standing = schedule.standing(rig.store.item(item.id))
    assert standing is not None
    assert (standing.changed_bytes, standing.interval_seconds, standing.last_failure) == (4096, INTERVAL, "")
    assert standing.next_cycle_at > 0
    wait(lambda: cycles(rig, item) >= 2)
    wait(lambda: rig.store.last_jobs(item.id, ("replicate",))[1] is not None)
    point = rig.store.item(item.id).last_point
    wait(lambda: rig.store.item(item.id).last_point != point)


def test_a_failback_pauses_the_cycles_and_a_cancel_lets_them_go_on(
    site: tuple[Rig, Schedule], item: Item
) -> None:
    rig, schedule = site
    rig.do(item, "reprotect")
    while rig.store.item(item.id).state is not State.PROTECTED:
        time.sleep(0.05)
    rig.do(item, "failback")
    found = rig.store.item(item.id)
    assert (found.state, schedule.standing(found)) == (State.FAILED_BACK, None)
    before = cycles(rig, item)
    time.sleep(QUIET)
    assert cycles(rig, item) == before, "nothing replicates towards a machine that runs"
    rig.do(item, "cancel")
    wait(lambda: cycles(rig, item) > before)


def test_a_cancelled_reprotect_ends_them_and_gives_the_disks_back(
    site: tuple[Rig, Schedule], item: Item
) -> None:
    rig, _ = site
    rig.do(item, "reprotect")
    job = rig.jobs.wait(rig.service.cancel(item.id))
    assert (job.verb, job.status) == ("cancel-reprotect", JobStatus.DONE), job.error
    found = rig.store.item(item.id)
    assert (found.state, found.home, rig.world.read()["taken"]) == (State.FAILED_OVER, None, False)
    assert set(rig.world.read()["on"].values()) == {"web"}
    assert rig.world.read()["generation"] == found.generation == 2
    before = cycles(rig, item)
    time.sleep(QUIET)
    assert cycles(rig, item) == before


def test_a_cycle_that_an_operator_cancelled_has_no_successor_until_he_asks(
    site: tuple[Rig, Schedule], item: Item
) -> None:
    rig, schedule = site

    def cancel(name: str) -> None:
        if name.startswith("cycle") and rig.store.item(item.id).state is State.REPLICATING:
            rig.store.ask_cancel(rig.store.item(item.id).job)

    rig.do(item, "reprotect")
    rig.saboteur.verb, rig.saboteur.step, rig.saboteur.phase = "replicate", "replicate", "do"
    rig.saboteur.after, rig.saboteur.times = True, 1
    rig.world.on_change = cancel
    wait(lambda: any(job.status is JobStatus.FAILED for job in rig.store.jobs(item.id)))
    rig.world.on_change = lambda name: None
    wait(lambda: rig.store.item(item.id).job == "")
    standing = schedule.standing(rig.store.item(item.id))
    assert standing is not None
    assert (standing.next_cycle_at, standing.last_failure) == (0.0, "HW-CONF-014")
    assert "homeward replicate" in standing.waits_for
    before = cycles(rig, item)
    time.sleep(QUIET)
    assert cycles(rig, item) == before
    assert rig.do(item, "replicate").status is JobStatus.DONE
    wait(lambda: cycles(rig, item) > before + 1)


def test_a_cycle_that_fails_is_tried_again_after_the_interval_and_the_lag_grows(
    site: tuple[Rig, Schedule], item: Item
) -> None:
    rig, schedule = site
    rig.do(item, "reprotect")
    rig.saboteur.verb, rig.saboteur.step, rig.saboteur.phase = "replicate", "replicate", "do"
    rig.saboteur.after, rig.saboteur.times = False, 1
    wait(lambda: rig.saboteur.times == 0 and rig.store.item(item.id).job == "")
    rig.clock.seconds += RPO_SECONDS + 1
    standing = schedule.standing(rig.store.item(item.id))
    assert standing is not None
    assert standing.late
    failed = cycles(rig, item)
    wait(lambda: cycles(rig, item) > failed)


def test_a_cycle_that_came_due_for_an_older_job_does_nothing(site: tuple[Rig, Schedule], item: Item) -> None:
    rig, schedule = site
    first = rig.do(item, "reprotect")
    wait(lambda: cycles(rig, item) >= 1)
    assert schedule._begin(first.id) == schedules.NOT_DUE


def test_a_cycle_that_runs_gives_way_to_a_failback(
    site: tuple[Rig, Schedule], item: Item, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, _ = site
    rig.do(item, "reprotect")
    runs = FakeReplication.cycle

    def dawdling(self: FakeReplication, order: ReplicaOrder, stopped: Stopped, moved: Moved) -> CycleReport:
        if rig.store.item(item.id).state is State.REPLICATING:
            wait(stopped)
            raise JobCancelled()
        return runs(self, order, stopped, moved)

    monkeypatch.setattr(FakeReplication, "cycle", dawdling)
    wait(lambda: rig.store.item(item.id).state is State.REPLICATING)
    plan, effects = rig.service.plan(item.id, "failback")
    assert (plan.verb, bool(effects)) == ("failback", True)
    job = rig.do(item, "failback")
    assert (job.status, rig.store.item(item.id).state) == (JobStatus.DONE, State.FAILED_BACK), job.error
    jobs = [(each.verb, each.status) for each in rig.store.jobs(item.id)]
    assert (jobs[-2], jobs[-1][0]) == (("replicate", JobStatus.FAILED), "failback")


def test_a_cycle_that_is_due_outlives_the_server(tmp_path: Path) -> None:
    """In a process of its own database: arranged, killed before it came due, run after the next start."""
    DBOS.destroy()
    rig = Rig(tmp_path)
    schedule = Schedule(rig.jobs, rig.store, rig.service.record, rig.clock, INTERVAL, POLL)
    rig.jobs.start()
    schedule.start()
    item = rig.enable()
    rig.do(item, "reprotect")
    rig.jobs.close()
    again = Rig(tmp_path)
    later = Schedule(again.jobs, again.store, again.service.record, again.clock, INTERVAL, POLL)
    again.jobs.start()
    later.start()
    try:
        wait(lambda: cycles(again, item) >= 1)
    finally:
        again.jobs.close()
        again.store.close()
        rig.store.close()
