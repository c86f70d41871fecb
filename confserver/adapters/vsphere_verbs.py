"""How a verb is carried out: look, act, look again; and the verbs for power and snapshots.

An answer can be lost, a task can fail after it had its effect, an earlier run of ours can still be at work in vCenter.
So a verb first waits for the VM's tasks that are under way, and counts as done when what was asked for is so.
"""

from collections.abc import Callable
from typing import Any, Final

from pyVmomi import vim

from confserver.adapters.vsphere_reading import Look, look_at
from confserver.adapters.vsphere_session import Service, Session, reference_of
from confserver.errors_fabric import EffectMissing, SnapshotAmbiguous, SnapshotMissing, TaskLate, VmBusy
from confserver.ports import Power
from drcore.errors import HomewardError
from drcore.limits import VCENTER_MERGE_SECONDS_MAX, VCENTER_TASK_SECONDS_MAX

Start = Callable[[Service, Any], Any]
"""Starts a task on a VM and answers it."""
Done = Callable[[Look], bool]
SETTLE_TURNS_MAX: Final = 10
"""So often a VM is looked at until nothing is under way on it; then somebody else keeps it busy without end."""


def settled(session: Session, verb: str, name: str, seconds: float) -> Look:
    """The VM as it is when no task is under way on it. Errors: HW-CONF-112 or -113 when that takes too long."""
    about = session.about(verb, f"VM {name}")
    now = look_at(session, verb, name)
    for _ in range(SETTLE_TURNS_MAX):
        if not now.tasks:
            return now
        for task in now.tasks:
            try:
                session.follow(about, task, seconds)
            except TaskLate:
                raise
            except HomewardError:
                continue  # how it ended is the matter of those who started it
        now = look_at(session, verb, name)
    raise VmBusy(verb=verb, subject=f"VM {name}", reason="one task after the other")


def reach(session: Session, verb: str, name: str, done: Done, start: Start, seconds: float) -> Look:
    """What `done` asks for is so, by the task that `start` starts if it was not. The answer is the VM afterwards.

    Errors: what the task or the call ended in, unless it had its effect nevertheless; HW-CONF-124 when vCenter
    reports a success that cannot be seen.
    """
    before = settled(session, verb, name, seconds)
    if done(before):
        return before
    about = session.about(verb, f"VM {name}")

    def begin(service: Service) -> str:
        return reference_of(start(service, service.bound(vim.VirtualMachine, before.vm.reference)))

    try:
        session.follow(about, session.call(about, begin), seconds)
    except HomewardError as error:
        after = _after_failure(session, verb, name, seconds, error)
        if not done(after):
            raise
        return after
    after = settled(session, verb, name, seconds)
    if not done(after):
        raise EffectMissing(verb=verb, subject=f"VM {name}", state=_state(after))
    return after


def _after_failure(session: Session, verb: str, name: str, seconds: float, error: HomewardError) -> Look:
    """The VM after a failed act; where that cannot be seen either, the first failure is the one to tell."""
    try:
        return settled(session, verb, name, seconds)
    except HomewardError as again:
        raise error from again


def _state(now: Look) -> str:
    vm = now.vm
    merging = ", consolidation needed" if vm.consolidation_needed else ""
    return (
        f"a VM that is {vm.power.value}, with {len(vm.disks)} disks, {len(vm.snapshots)} snapshots{merging}"
    )


def power_off(session: Session, name: str) -> None:
    """The VM is off. Its guest is not asked."""
    reach(
        session,
        "power off",
        name,
        done=lambda now: now.vm.power is Power.OFF,
        start=lambda _, vm: vm.PowerOffVM_Task(),
        seconds=VCENTER_TASK_SECONDS_MAX,
    )


def power_on(session: Session, name: str) -> None:
    """The VM runs. Errors: 8038."""
    reach(
        session,
        "power on",
        name,
        done=lambda now: now.vm.power is Power.ON,
        start=lambda _, vm: vm.PowerOnVM_Task(),
        seconds=VCENTER_TASK_SECONDS_MAX,
    )


def merge_snapshots(session: Session, name: str) -> None:
    """The VM has no snapshot and needs no consolidation."""
    reach(
        session,
        "merge the snapshots of",
        name,
        done=lambda now: not now.vm.snapshots,
        start=lambda _, vm: vm.RemoveAllSnapshots_Task(consolidate=True),
        seconds=VCENTER_MERGE_SECONDS_MAX,
    )
    consolidate(session, name)


def consolidate(session: Session, name: str) -> None:
    """No file of a removed snapshot is left in the VM's disks."""
    reach(
        session,
        "consolidate the disks of",
        name,
        done=lambda now: not now.vm.consolidation_needed,
        start=lambda _, vm: vm.ConsolidateVMDisks_Task(),
        seconds=VCENTER_MERGE_SECONDS_MAX,
    )


def create_snapshot(session: Session, name: str, snapshot: str) -> None:
    """The VM has a snapshot of that name: without memory, and without asking the guest."""
    reach(
        session,
        "take a snapshot of",
        name,
        done=lambda now: bool(now.snapshots(snapshot)),
        start=lambda _, vm: vm.CreateSnapshot_Task(name=snapshot, memory=False, quiesce=False),
        seconds=VCENTER_TASK_SECONDS_MAX,
    )


def remove_snapshot(session: Session, name: str, snapshot: str) -> None:
    """The VM has no snapshot of that name and nothing of it waits to be merged. Snapshots above it stay."""
    verb = "remove a snapshot of"
    for reference in settled(session, verb, name, VCENTER_MERGE_SECONDS_MAX).snapshots(snapshot):
        _remove(session, verb, name, snapshot, reference)
    consolidate(session, name)


def _remove(session: Session, verb: str, name: str, snapshot: str, reference: str) -> None:
    def start(service: Service, _: Any) -> Any:
        return service.bound(vim.vm.Snapshot, reference).RemoveSnapshot_Task(
            removeChildren=False, consolidate=True
        )

    reach(
        session,
        verb,
        name,
        done=lambda now: reference not in now.snapshots(snapshot),
        start=start,
        seconds=VCENTER_MERGE_SECONDS_MAX,
    )


def revert_and_drop_snapshot(session: Session, name: str, snapshot: str) -> None:
    """The VM's disks are as when the snapshot was taken, the snapshot is gone, the VM is off.

    Without the snapshot only a VM that is off can have been reverted before: that succeeds, as the end of an earlier
    run. Errors: HW-CONF-122 no such snapshot and not off, HW-CONF-123 several.
    """
    verb = "revert"
    now = settled(session, verb, name, VCENTER_MERGE_SECONDS_MAX)
    references = now.snapshots(snapshot)
    if len(references) > 1:
        raise SnapshotAmbiguous(vm=name, snapshot=snapshot, count=len(references))
    if references:
        power_off(session, name)
        _revert(session, verb, name, references[0])
        power_off(session, name)  # a snapshot with memory starts the machine
        _remove(session, verb, name, snapshot, references[0])
    elif now.vm.power is not Power.OFF:
        raise SnapshotMissing(vm=name, snapshot=snapshot)
    consolidate(session, name)


def _revert(session: Session, verb: str, name: str, reference: str) -> None:
    """The snapshot's state is the VM's. Reverting twice does no harm: nothing has written since, the VM is off."""
    about = session.about(verb, f"VM {name}")

    def begin(service: Service) -> str:
        task = service.bound(vim.vm.Snapshot, reference).RevertToSnapshot_Task(suppressPowerOn=True)
        return reference_of(task)

    session.follow(about, session.call(about, begin), VCENTER_TASK_SECONDS_MAX)
