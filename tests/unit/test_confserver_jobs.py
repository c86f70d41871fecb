"""Reprotect, failback, commit and cancel through DBOS on SQLite and PostgreSQL, with fabrics that live in a file."""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from confserver import proofs
from confserver.errors import ItemBusy, JobOver, PreflightRefused, StoreFailed, TransitionIllegal
from confserver.items import Item, JobStatus
from confserver.service import VERBS
from confserver.states import State
from tests.unit.confserver_fakes import DISKS
from tests.unit.confserver_rig import KEY, Rig, running


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    database = ""
    if request.param == "postgresql":
        database = request.getfixturevalue("cluster").create()
    # In memory where there is such a place: a durable commit for every step of every test would take minutes.
    place = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(dir=place if place.is_dir() else None) as folder,
        running(Path(folder), database) as found,
    ):
        yield found


_NUMBERS = itertools.count()


@pytest.fixture
def item(rig: Rig) -> Item:
    rig.saboteur.times = 0
    return rig.another(f"web{next(_NUMBERS)}")


WAYS = {
    "reprotect": (),
    "replicate": ("reprotect",),
    "failback": ("reprotect",),
    "commit": ("reprotect", "failback"),
    "cancel": ("reprotect", "failback"),
    "cancel-reprotect": ("reprotect",),
}
"""What has to be done before a verb."""


def standing(rig: Rig) -> dict[str, Any]:
    """What a job may not leave changed when it failed. Points stay, and a merge of old snapshots."""
    state = rig.world.read()
    names = ("home_power", "on", "places", "azure", "taken", "grants")
    return {name: state[name] for name in names} | {"snapshots": sorted(set(state["snapshots"]) - {"old"})}


def get_to(rig: Rig, item: Item, verb: str) -> None:
    for before in WAYS[verb]:
        assert rig.do(item, before).status is JobStatus.DONE


def test_a_machine_comes_home_and_is_committed(rig: Rig, item: Item) -> None:
    assert rig.do(item, "reprotect").status is JobStatus.DONE
    assert rig.store.item(item.id).state is State.PROTECTED
    assert rig.world.read()["home_power"] == "off"
    job = rig.do(item, "failback")
    assert job.status is JobStatus.DONE, job.error
    assert rig.store.item(item.id).state is State.FAILED_BACK
    state = rig.world.read()
    assert (state["home_power"], state["azure"], state["taken"], state["grants"]) == ("on", "off", False, [])
    assert state["places"] == {
        disk.uuid: [disk.controller_type, disk.controller_bus, disk.unit] for disk in DISKS
    }
    assert state["snapshots"] == [job.plan.snapshot]
    order = state["journal"]
    assert order.index("deallocate") < order.index("final-cycle") < order.index("release-disks")
    assert order.index("snapshot") < order.index("power-on-home")
    assert rig.do(item, "commit").status is JobStatus.DONE
    found = rig.store.item(item.id)
    assert (found.state, found.home, rig.world.read()["snapshots"]) == (State.COMMITTED, None, [])


def test_a_failback_can_be_cancelled_and_replication_goes_on(rig: Rig, item: Item) -> None:
    rig.do(item, "reprotect")
    protected = standing(rig)
    rig.do(item, "failback")
    job = rig.jobs.wait(rig.service.cancel(item.id))
    assert job.status is JobStatus.DONE, job.error
    assert (rig.store.item(item.id).state, standing(rig)) == (State.PROTECTED, protected)
    assert rig.do(item, "replicate").status is JobStatus.DONE
    assert rig.do(item, "failback").status is JobStatus.DONE


def test_each_verb_that_changes_sides_raises_the_generation(rig: Rig, item: Item) -> None:
    seen = [item.generation]
    for verb in ("reprotect", "failback", "cancel"):
        rig.do(item, verb)
        seen.append(rig.store.item(item.id).generation)
    assert seen == [0, 1, 2, 3]


def test_the_report_proves_both_sides_with_the_items_key(rig: Rig, item: Item) -> None:
    rig.do(item, "reprotect")
    proof = rig.do(item, "failback").report["proof"]
    assert proofs.authentic(proof, KEY)
    assert not proofs.authentic({**proof, "point": "0" * 32}, KEY)
    assert [disk["disk"] for disk in proof["disks"]] == [disk.uuid for disk in DISKS]
    assert "sig=" not in str(rig.store.jobs())


def test_a_failback_whose_sides_differ_is_undone(rig: Rig, item: Item) -> None:
    rig.do(item, "reprotect")
    before = standing(rig)
    rig.world.set(lie="dd")
    job = rig.do(item, "failback")
    assert (job.status, job.error["code"]) == (JobStatus.FAILED, "HW-CONF-017")
    assert (rig.store.item(item.id).state, standing(rig)) == (State.PROTECTED, before)


EVERY_STEP = [
    (verb.name, step.name, after) for verb in VERBS.values() for step in verb.steps for after in (False, True)
]


class Prepared:
    """An item that stands where a verb may begin, kept from one failed job to the next: each leaves it as it was."""

    def __init__(self) -> None:
        self._kept: tuple[Rig, str, Item] | None = None

    def take(self, rig: Rig, verb: str) -> Item:
        """The item; nobody's again until it is given back."""
        kept, self._kept = self._kept, None
        if kept is not None and (kept[0], kept[1]) == (rig, verb):
            return kept[2]
        item = rig.another(f"web{next(_NUMBERS)}")
        get_to(rig, item, verb)
        return item

    def give_back(self, rig: Rig, verb: str, item: Item) -> None:
        """The item stands as it stood."""
        self._kept = rig, verb, item


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    return Prepared()


@pytest.mark.parametrize(("verb", "step", "after"), EVERY_STEP)
def test_a_step_that_fails_leaves_everything_as_before(
    rig: Rig, prepared: Prepared, verb: str, step: str, after: bool
) -> None:
    item = prepared.take(rig, verb)
    before, state = standing(rig), rig.store.item(item.id).state
    saboteur = rig.saboteur
    saboteur.verb, saboteur.step, saboteur.phase, saboteur.after, saboteur.times = verb, step, "do", after, 1
    job = rig.do(item, verb)
    assert (job.status, job.error["code"]) == (JobStatus.FAILED, "HW-CONF-014")
    written = bool(job.report.get("written"))
    if written:  # by a cycle of the reprotect: the VM must not run on overwritten disks
        before["home_power"] = "off"
    merged = verb == "commit" and (step != "merge-snapshot" or after)
    if merged:
        before["snapshots"] = []  # a merge has no way back; the commit is run again
    found = rig.store.item(item.id)
    assert (found.state, found.job, standing(rig)) == (state, "", before)
    if not (written or merged or (step, after) == (VERBS[verb].steps[-1].name, True)):
        prepared.give_back(rig, verb, item)
    else:
        assert rig.jobs.wait(rig.service.retry(job.id)).status is JobStatus.DONE


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_step_and_every_undo_may_run_twice(rig: Rig, item: Item, verb: str) -> None:
    get_to(rig, item, verb)
    job = rig.do(item, verb)
    steps, done = VERBS[verb].steps, len(rig.world.journal)
    for number, step in enumerate(steps):
        if not step.moves_data:
            rig.jobs._attempt(job.id, number, "do")
    assert rig.world.journal[done:] == []
    for number in reversed(range(len(steps))):
        assert rig.jobs._attempt(job.id, number, "undo")["ok"]
    undone = len(rig.world.journal)
    for number in reversed(range(len(steps))):
        assert rig.jobs._attempt(job.id, number, "undo")["ok"]
    assert rig.world.journal[undone:] == []


def test_a_failed_undo_holds_the_item_until_a_retry_succeeds(rig: Rig, item: Item) -> None:
    get_to(rig, item, "failback")
    before = standing(rig)
    rig.world.set(lie="dd")
    saboteur = rig.saboteur
    saboteur.verb, saboteur.step, saboteur.phase, saboteur.after, saboteur.times = (
        "failback",
        "stop-azure",
        "undo",
        False,
        1,
    )
    job = rig.do(item, "failback")
    assert (job.status, job.error["code"]) == (JobStatus.STUCK, "HW-CONF-017")
    found = rig.store.item(item.id)
    assert (found.state, found.job, found.health.value) == (State.FAILING_BACK, job.id, "critical")
    with pytest.raises(TransitionIllegal):
        rig.service.begin(item.id, "failback")
    ended = rig.jobs.wait(rig.service.retry(job.id))
    assert ended.status is JobStatus.FAILED
    assert (rig.store.item(item.id).state, standing(rig)) == (State.PROTECTED, before)
    with pytest.raises(JobOver):
        rig.jobs.undo_again(job.id)


def test_a_job_that_is_cancelled_undoes_what_it_did(rig: Rig, item: Item) -> None:
    before = standing(rig)
    jobs: list[str] = []

    def ask(name: str) -> None:
        if name == "attach 2 mt":
            jobs.append(rig.service.cancel(item.id).id)

    rig.world.on_change = ask
    job = rig.do(item, "reprotect")
    rig.world.on_change = lambda name: None
    assert (jobs, job.status, job.error["code"]) == ([job.id], JobStatus.FAILED, "HW-CONF-007")
    assert (rig.store.item(item.id).state, standing(rig)) == (State.FAILED_OVER, before)
    with pytest.raises(JobOver):
        rig.jobs.cancel(job.id)


def test_reprotect_waits_for_the_agent_to_register(rig: Rig, item: Item) -> None:
    rig.world.set(agent_ready=False)
    began, sleep = rig.clock.seconds, rig.clock.sleep

    def passing(seconds: float) -> None:
        sleep(seconds)
        rig.world.set(agent_ready=rig.clock.seconds - began > 60)

    rig.clock.sleep = passing  # type: ignore[method-assign]
    try:
        job = rig.do(item, "reprotect")
    finally:
        rig.clock.sleep = sleep  # type: ignore[method-assign]
    assert job.status is JobStatus.DONE, job.error
    assert 60 < rig.clock.seconds - began < 120


def test_reprotect_gives_up_on_an_agent_after_its_15_minutes(rig: Rig, item: Item) -> None:
    rig.world.set(agent_ready=False)
    began = rig.clock.seconds
    job = rig.do(item, "reprotect")
    assert (job.status, job.error["code"]) == (JobStatus.FAILED, "HW-CONF-009")
    assert rig.clock.seconds - began == pytest.approx(900)
    assert rig.world.journal == []


def test_catching_up_ends_when_little_changes(rig: Rig, item: Item) -> None:
    rig.world.set(cycles=[2**30, 2**30, 2**29, 2**20, 0, 0, 0])
    rig.do(item, "reprotect")
    rig.do(item, "failback")
    assert rig.world.journal.count("cycle 2") == 3


def test_steps_tell_when_they_ran_and_what_they_moved(rig: Rig, item: Item) -> None:
    rig.world.set(cycles=[12345])
    job = rig.do(item, "reprotect")
    assert [step.name for step in job.steps] == [step.name for step in VERBS["reprotect"].steps]
    assert all(step.ended >= step.started > 0 for step in job.steps)
    last = job.steps[-1]
    assert (last.bytes, last.bytes_max) == (12345, sum(disk.size for disk in DISKS))


def test_a_plan_lists_every_step_and_touches_nothing(rig: Rig, item: Item) -> None:
    before = rig.world.path.read_bytes()
    plan, effects = rig.service.plan(item.id, "reprotect")
    assert [entry["step"] for entry in effects] == [step.name for step in VERBS["reprotect"].steps]
    assert effects[-1]["bytes_max"] == plan.bytes_max == sum(disk.size for disk in DISKS)
    assert rig.world.path.read_bytes() == before
    assert (rig.store.item(item.id), rig.store.jobs(item.id)) == (item, ())


def test_a_preflight_that_says_no_starts_nothing(rig: Rig, item: Item) -> None:
    rig.world.set(azure="off")
    with pytest.raises(PreflightRefused) as caught:
        rig.service.begin(item.id, "reprotect")
    assert "78093" in str(caught.value)
    assert (rig.world.journal, rig.store.item(item.id).state) == ([], State.FAILED_OVER)


def test_an_item_has_one_job_at_a_time(rig: Rig, item: Item) -> None:
    caught: list[str] = []

    def ask(name: str) -> None:
        if name == "merge":
            with pytest.raises(TransitionIllegal):
                rig.service.begin(item.id, "reprotect")
            with pytest.raises(ItemBusy) as busy:
                rig.store.move(item.id, VERBS["commit"].event)
            caught.append(busy.value.code)

    rig.world.on_change = ask
    assert rig.do(item, "reprotect").status is JobStatus.DONE
    rig.world.on_change = lambda name: None
    assert caught == ["HW-CONF-005"]


def test_a_machine_in_azure_that_was_started_again_is_not_read(rig: Rig, item: Item) -> None:
    rig.do(item, "reprotect")

    def start(name: str) -> None:
        if name == "deallocate":
            rig.world.set(azure="on")

    rig.world.on_change = start
    job = rig.do(item, "failback")
    rig.world.on_change = lambda name: None
    assert (job.status, job.error["code"]) == (JobStatus.FAILED, "HW-CONF-016")
    assert "final-cycle" not in rig.world.journal
    assert rig.store.item(item.id).state is State.PROTECTED


def test_the_machine_in_azure_never_starts_beside_a_running_one_at_home(rig: Rig, item: Item) -> None:
    rig.do(item, "reprotect")
    rig.do(item, "failback")

    def turn_on(name: str) -> None:
        if name == "take-disks":
            rig.world.set(home_power="on")

    rig.world.on_change = turn_on
    job = rig.do(item, "cancel")
    rig.world.on_change = lambda name: None
    assert (job.error["code"], rig.world.read()["azure"]) == ("HW-CONF-025", "off")


@pytest.mark.parametrize("verb", ["set_status", "begin_step", "end_step", "end_job", "note_error"])
def test_a_job_waits_for_its_books(rig: Rig, item: Item, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    keeping, left = getattr(rig.store, verb), [7]

    def failing(*asked: Any, **words: Any) -> Any:
        if left[0] > 0:
            left[0] -= 1
            raise StoreFailed(url="sqlite://", reason="disk I/O error")
        return keeping(*asked, **words)

    rig.saboteur.verb, rig.saboteur.step, rig.saboteur.phase = "reprotect", "power-off-home", "do"
    rig.saboteur.times = int(verb == "note_error")
    before = standing(rig)
    monkeypatch.setattr(rig.store, verb, failing)
    job = rig.do(item, "reprotect")
    assert left == [0]
    if verb == "note_error":
        assert (job.status, job.error["code"]) == (JobStatus.FAILED, "HW-CONF-014")
        assert standing(rig) == before
    else:
        assert (job.status, job.error) == (JobStatus.DONE, {})


def test_a_job_that_is_done_has_no_error(rig: Rig, item: Item) -> None:
    def note(name: str) -> None:  # as a step that was killed after its failure was noted, and then passed
        rig.store.note_error(rig.store.item(item.id).job, {"code": "HW-CONF-014"})

    rig.world.on_change = note
    job = rig.do(item, "reprotect")
    rig.world.on_change = lambda name: None
    assert (job.status, job.error) == (JobStatus.DONE, {})


def test_a_failback_that_cannot_raise_the_generation_lets_cycles_go_on(
    rig: Rig, item: Item, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise StoreFailed(url="sqlite://", reason="disk I/O error")

    rig.do(item, "reprotect")
    with monkeypatch.context() as patch:
        patch.setattr(rig.store, "raise_generation", failing)
        assert rig.do(item, "failback").error["code"] == "HW-CONF-021"
    before = rig.world.read()["generation"]
    assert rig.store.item(item.id).generation == before, "the master target is not ahead of the item"
    assert rig.do(item, "replicate").status is JobStatus.DONE
