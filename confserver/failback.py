"""Failback, commit and cancel: the machine comes home, or goes on in Azure as if nothing had been.

Between the two machines there is never a moment in which both run: the one in Azure is deallocated before the one at
home starts, and on the way back the one at home is off before the other starts.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

from confserver import proofs
from confserver.errors import DisksNotAsPlanned, HomeRuns, NotDeallocated
from confserver.items import Home, Plan
from confserver.ports import AzureVm, CycleReport, DiskProof, Power
from confserver.reprotect import adopt, cycle, hand_to_masttarget, start_replication, void
from confserver.states import Event
from confserver.steps import Step, Verb, Work, move_disks, names, nothing, raise_generation
from drcore.limits import BACKLOG_BYTES_SMALL, BACKLOG_CYCLES_MAX, SAS_SECONDS
from drcore.secret import Secret


def _catch_up(work: Work) -> None:
    """The backlog is small, or does not get smaller by waiting."""
    for _ in range(BACKLOG_CYCLES_MAX):
        if cycle(work) <= BACKLOG_BYTES_SMALL:
            return


def _stopped_vm(work: Work) -> AzureVm:
    """The machine in Azure, stopped for good. Errors: `NotDeallocated` (HW-CONF-016)."""
    vm = work.azure.vm(work.plan.azure_vm)
    if not vm.deallocated:
        raise NotDeallocated(vm=vm.name, power=vm.power.value, deallocated=vm.deallocated)
    present = {disk.resource_id.lower() for disk in vm.disks}
    for wanted in work.plan.azure_disks:
        if wanted.lower() not in present:
            raise DisksNotAsPlanned(vm=vm.name, disk=wanted, present=", ".join(sorted(present)))
    return vm


def _power_on_home(work: Work) -> None:
    """The VM at home runs; the machine in Azure was still stopped for good a moment before."""
    _stopped_vm(work)
    work.vsphere.power_on(work.plan.vm)


def _start_azure(work: Work) -> None:
    """The machine in Azure runs; the VM at home was off a moment before. Errors: `HomeRuns` (HW-CONF-025)."""
    power = work.vsphere.vm(work.plan.vm).power
    if power is not Power.OFF:
        raise HomeRuns(vm=work.plan.vm, power=power.value)
    work.azure.start(work.plan.azure_vm)


def _with_urls(work: Work, use: Callable[[tuple[Secret, ...]], None]) -> None:
    """`use` got a URL for each disk, read from after the machine was stopped; none of them is good any more."""
    _stopped_vm(work)
    with ExitStack() as stack:
        urls = []
        for disk in work.plan.azure_disks:
            stack.callback(work.azure.revoke_access, disk)
            urls.append(work.azure.grant_access(disk, SAS_SECONDS))
        use(tuple(urls))


def _final_point(work: Work) -> None:
    def read(urls: tuple[Secret, ...]) -> None:
        found: CycleReport = work.replication.final_cycle(work.plan.order(), urls, work.stopped, work.moved)
        work.moved_in_all(found.bytes_sent)
        work.store.note_point(work.plan.item, found.point, work.clock.now())
        work.report(point=found.point, final_bytes_sent=found.bytes_sent, roots=list(found.roots))

    _with_urls(work, read)


def _verify(work: Work) -> None:
    """Both sides hold the same, and the report proves it."""

    def read(urls: tuple[Secret, ...]) -> None:
        disks: tuple[DiskProof, ...] = work.replication.proof(
            work.plan.order(), urls, work.stopped, work.moved
        )
        point = str(work.reported()["point"])
        plan = work.plan
        work.report(proof=proofs.prove(plan.item, plan.generation, point, disks, work.clock.now(), work.key))

    _with_urls(work, read)


def _revoke(work: Work) -> None:
    for disk in work.plan.azure_disks:
        work.azure.revoke_access(disk)


def _drop_snapshot(work: Work) -> None:
    """The VM has not the job's snapshot, and its disks are as when that was taken."""
    vm = work.vsphere.vm(work.plan.vm)
    if any(snapshot.name == work.plan.snapshot for snapshot in vm.snapshots):
        work.vsphere.revert_and_drop_snapshot(work.plan.vm, work.plan.snapshot)


def _give_back() -> Step:
    return Step(
        "give-back-disks",
        lambda plan: (
            f"detach from master target VM {plan.masttarget}, files kept: {names(plan)}",
            *(
                f"attach to VM {plan.vm} at {disk.controller_type} {disk.controller_bus}:{disk.unit}: {disk.base_path}"
                for disk in plan.disks
            ),
        ),
        lambda work: move_disks(work, work.plan.masttarget, work.plan.vm, keep_place=True),
        lambda work: move_disks(work, work.plan.vm, work.plan.masttarget, keep_place=False),
        "the disks hang on the master target again",
    )


def _says_final(plan: Plan) -> tuple[str, ...]:
    grants = tuple(
        f"grant read access to disk {disk.rpartition('/')[2]} in Azure for {SAS_SECONDS} s, revoked afterwards"
        for disk in plan.azure_disks
    )
    return (*grants, f"what still differs goes to {names(plan)}; the final point is published")


FAILBACK: Final = Verb(
    "failback",
    Event.FAILBACK,
    (
        raise_generation(at_masttarget=True),
        Step(
            "catch-up",
            lambda plan: (
                f"at most {BACKLOG_CYCLES_MAX} cycles, until one finds {BACKLOG_BYTES_SMALL} bytes or less changed",
            ),
            _catch_up,
            nothing,
            "none: its points stay",
            moves_data=True,
        ),
        Step(
            "stop-azure",
            lambda plan: (f"stop and deallocate machine {plan.azure_name} in Azure: the downtime begins",),
            lambda work: work.azure.deallocate(work.plan.azure_vm),
            _start_azure,
            "the machine in Azure runs again",
        ),
        Step(
            "final-point", _says_final, _final_point, _revoke, "no URL to the disks is good", moves_data=True
        ),
        Step(
            "verify",
            lambda plan: (
                f"both roles read their side again, {plan.bytes_max} bytes each; the proof goes into the report",
            ),
            _verify,
            _revoke,
            "no URL to the disks is good",
            moves_data=True,
        ),
        Step(
            "release-disks",
            lambda plan: (f"the master target lets go of {names(plan)}",),
            lambda work: work.replication.stop(work.plan.order()),
            adopt,
            "the master target takes the disks again",
        ),
        _give_back(),
        Step(
            "take-snapshot",
            lambda plan: (f"snapshot {plan.snapshot} of VM {plan.vm}, without memory",),
            lambda work: work.vsphere.create_snapshot(work.plan.vm, work.plan.snapshot),
            _drop_snapshot,
            "the snapshot is reverted to and dropped",
        ),
        Step(
            "power-on-home",
            lambda plan: (f"power on VM {plan.vm}: the downtime ends",),
            _power_on_home,
            lambda work: work.vsphere.power_off(work.plan.vm),
            "the VM is off",
        ),
    ),
)


COMMIT: Final = Verb(
    "commit",
    Event.COMMIT,
    (
        Step(
            "merge-snapshot",
            lambda plan: (f"merge snapshot {plan.snapshot} of VM {plan.vm}: there is no way back after it",),
            lambda work: work.vsphere.remove_snapshot(work.plan.vm, work.plan.snapshot),
            nothing,
            "none: what was merged cannot be taken apart; commit again",
        ),
        Step(
            "drop-points",
            lambda plan: ("drop the item's recovery points",),
            lambda work: work.replication.forget(work.plan.order()),
            nothing,
            "none: commit again",
        ),
        Step(
            "forget-places",
            lambda plan: ("forget where the disks hung before the reprotect",),
            lambda work: work.store.remember_home(work.plan.item, None),
            nothing,
            "none: commit again",
        ),
    ),
)


CANCEL: Final = Verb(
    "cancel",
    Event.CANCEL,
    (
        raise_generation(),
        Step(
            "power-off-home",
            lambda plan: (f"power off VM {plan.vm}",),
            lambda work: work.vsphere.power_off(work.plan.vm),
            _power_on_home,
            "the VM runs again",
        ),
        Step(
            "drop-snapshot",
            lambda plan: (
                f"revert VM {plan.vm} to snapshot {plan.snapshot} and drop it: what it wrote since is gone",
            ),
            _drop_snapshot,
            lambda work: work.vsphere.create_snapshot(work.plan.vm, work.plan.snapshot),
            "a snapshot of that name is there again; what the VM wrote since the failback is gone",
        ),
        hand_to_masttarget(),
        start_replication(),
        Step(
            "start-azure",
            lambda plan: (f"start machine {plan.azure_name} in Azure",),
            _start_azure,
            lambda work: work.azure.deallocate(work.plan.azure_vm),
            "the machine in Azure is stopped and deallocated",
        ),
        Step(
            "replicate",
            lambda plan: (f"what differs goes to {names(plan)}; a point is published",),
            lambda work: void(cycle(work)),
            nothing,
            "none: what was written stays",
            moves_data=True,
        ),
    ),
)


CANCEL_REPROTECT: Final = Verb(
    "cancel-reprotect",
    Event.CANCEL,
    (
        raise_generation(at_masttarget=True),
        Step(
            "release-disks",
            lambda plan: (f"the master target lets go of {names(plan)}; replication ends",),
            lambda work: work.replication.stop(work.plan.order()),
            adopt,
            "the master target takes the disks again",
        ),
        _give_back(),
        Step(
            "forget-places",
            lambda plan: (
                f"forget where the disks hung; VM {plan.vm} stays off, its disks hold what was replicated last",
            ),
            lambda work: work.store.remember_home(work.plan.item, None),
            lambda work: work.store.remember_home(work.plan.item, Home(work.plan.disks, work.plan.was_on)),
            "the places are remembered again",
        ),
    ),
)
"""What `cancel` does for an item that is protected: the reprotect is taken back, the machine in Azure runs on."""
