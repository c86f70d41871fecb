"""What a step is: the smallest reversible action, as data. A verb is a list of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from confserver.errors import DiskMissing
from confserver.items import Plan
from confserver.ports import Azure, Replication, Standing, Vm, VmDisk, VSphere
from confserver.states import Event
from confserver.store import Store
from drcore.clock import Clock
from drcore.secret import Secret

NOTE_SECONDS: Final = 1.0
"""Progress is written to the database at most so often."""


@dataclass(frozen=True, slots=True)
class Ports:
    """What the steps touch."""

    vsphere: VSphere
    azure: Azure
    replication: Replication


class Work:
    """One run of one step, or of its way back: its plan, the ports, and where it tells what it did."""

    def __init__(
        self,
        job: str,
        plan: Plan,
        ports: Ports,
        store: Store,
        clock: Clock,
        key: Secret,
        phase: str,
        number: int,
    ) -> None:
        self.job = job
        self.plan = plan
        self.vsphere = ports.vsphere
        self.azure = ports.azure
        self.replication = ports.replication
        self.store = store
        self.clock = clock
        self.key = key
        self.phase = phase
        self._number = number
        self._noted = -NOTE_SECONDS
        self._label = ""

    def stopped(self) -> bool:
        """Whether the operator wants the job to end; a way back is never stopped."""
        return self.phase == "do" and self.store.cancel_asked(self.job)

    def moved(self, standing: Standing) -> None:
        """The step's work stands there; written down about once a second, and when it is about something else."""
        now = self.clock.monotonic()
        if now - self._noted >= NOTE_SECONDS or standing.label != self._label:
            self._noted, self._label = now, standing.label
            self.store.note_progress(self.job, self.phase, self._number, standing)

    def moved_in_all(self, count: int) -> None:
        """The step moved so many bytes; nothing of it is left to do."""
        self.store.note_progress(self.job, self.phase, self._number, Standing(count, 0, 0, ""))

    def report(self, **entries: Any) -> None:
        """The job's report has these entries."""
        self.store.note_report(self.job, **entries)

    def reported(self) -> dict[str, Any]:
        """The job's report so far."""
        return self.store.job(self.job).report


@dataclass(frozen=True, slots=True)
class Step:
    """`do` and `undo` are idempotent: each may run again after a kill half-way. `effects` says what `do` changes.

    `undo` is also run for a step that failed half-way, and has to cope with whatever part was done. `way_back` says in
    words what it does, or why there is nothing to do. `moves_data` marks the steps that may move up to every byte.
    """

    name: str
    effects: Callable[[Plan], tuple[str, ...]]
    do: Callable[[Work], None]
    undo: Callable[[Work], None]
    way_back: str
    moves_data: bool = False


@dataclass(frozen=True, slots=True)
class Verb:
    """A user's operation on an item: the event that begins it, and its steps in order."""

    name: str
    event: Event
    steps: tuple[Step, ...]


def nothing(_: Work) -> None:
    """There is nothing to undo; the step's `way_back` says why."""


def raise_generation(*, at_masttarget: bool = False) -> Step:
    """The step that fences off everybody who still works for an earlier verb (generations never fall).

    With `at_masttarget` it has the disks already and refuses older agents from now on; without, it does so from the
    step in which it takes the disks.
    """

    def do(work: Work) -> None:
        # The item first: were the master target ahead of it after a failure, the next cycle would be fenced off there.
        work.store.raise_generation(work.plan.item, work.plan.generation)
        if at_masttarget:
            work.replication.fence(work.plan.order())

    return Step(
        "raise-generation",
        lambda plan: (f"the item's generation becomes {plan.generation}; agents of older ones are refused",),
        do,
        nothing,
        "none: a generation never falls, the next verb takes the one after",
    )


def disk_on(vm: Vm, uuid: str) -> VmDisk | None:
    """The disk of this UUID as it hangs on the VM."""
    return next((disk for disk in vm.disks if disk.uuid == uuid), None)


def names(plan: Plan) -> str:
    """The plan's disks in words."""
    return ", ".join(disk.base_path for disk in plan.disks)


def move_disks(work: Work, source: str, target: str, *, keep_place: bool) -> None:
    """Every disk of the plan hangs on `target` and not on `source`. Disk by disk, so that no kill leaves two owners.

    Errors: `DiskMissing` (HW-CONF-010) when a disk hangs on neither and its file cannot be attached either.
    """
    for planned in work.plan.disks:
        there = disk_on(work.vsphere.vm(target), planned.uuid)
        if there is not None:
            continue
        work.vsphere.detach_disk(source, planned.uuid)
        work.vsphere.attach_disk(target, planned, keep_place)
    require_disks(work, target)


def require_disks(work: Work, name: str) -> Vm:
    """The VM, with every disk of the plan on it. Errors: `DiskMissing` (HW-CONF-010)."""
    vm = work.vsphere.vm(name)
    for planned in work.plan.disks:
        if disk_on(vm, planned.uuid) is None:
            present = ", ".join(disk.uuid for disk in vm.disks) or "none"
            raise DiskMissing(disk=planned.uuid, vm=name, present=present)
    return vm
