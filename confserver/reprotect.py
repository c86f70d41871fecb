"""Reprotect, original location: the VM's own disks at home are handed to the master target and brought up to date.

From the first written byte on, the disks at home hold neither the old nor the new state until the cycle ends. So a
failed reprotect puts everything back to its place, but turns the VM on again only if nothing was written.
"""

from typing import Final

from confserver.errors import AgentNotReady, JobCancelled
from confserver.items import Home, Plan
from confserver.states import Event
from confserver.steps import Step, Verb, Work, move_disks, names, nothing, raise_generation, require_disks
from drcore.units import counted

AGENT_SECONDS_MAX: Final = 15 * 60
"""An agent takes up to so long to register again after the machine started (R096)."""
ASK_SECONDS: Final = 5.0
"""Pause between two questions whether it has."""


def _await_agent(work: Work) -> None:
    """The agent reported. Errors: `AgentNotReady` (HW-CONF-009) once its 15 minutes are over."""
    while not (vm := work.azure.vm(work.plan.azure_vm)).agent_ready:
        left = work.plan.agent_deadline - work.clock.now()
        if left <= 0:
            raise AgentNotReady(vm=vm.name, minutes=AGENT_SECONDS_MAX // 60)
        if work.stopped():
            raise JobCancelled()
        work.report(waiting_for="agent", seconds_left=round(left))
        work.clock.sleep(min(ASK_SECONDS, left))
    if "waiting_for" in work.reported():
        work.report(waiting_for="", seconds_left=0)


def _remember(work: Work) -> None:
    work.store.remember_home(work.plan.item, Home(work.plan.disks, work.plan.was_on))


def _forget(work: Work) -> None:
    work.store.remember_home(work.plan.item, None)


def _power_on_again(work: Work) -> None:
    """The VM runs again if it did before and its disks are still the old ones."""
    if not work.plan.was_on:
        return
    if work.reported().get("written"):
        work.report(warning="the VM at home stays off: its disks were partly overwritten; reprotect again")
        return
    work.vsphere.power_on(work.plan.vm)


def _replicate(work: Work) -> None:
    """The first point is published."""
    work.report(written=True)
    cycle(work)


def cycle(work: Work) -> int:
    """A cycle of the running machine is published as the item's last point; answers the bytes that had changed."""
    began = work.clock.now()
    found = work.replication.cycle(work.plan.order(), work.stopped, work.moved)
    work.moved_in_all(found.bytes_sent)
    work.store.note_point(work.plan.item, found.point, work.clock.now())
    work.report(
        point=found.point,
        content_bytes=found.content_bytes,
        bytes_sent=found.bytes_sent,
        cycle_began=began,
        cycle_seconds=found.seconds,
    )
    return found.content_bytes


def adopt(work: Work) -> None:
    """The master target has taken the disks that hang on its VM, each recognised by UUID and size."""
    require_disks(work, work.plan.masttarget)
    work.replication.start(work.plan.order())


def hand_to_masttarget() -> Step:
    """The step that moves the disks from the VM to the master target, files untouched."""
    return Step(
        "hand-to-masttarget",
        lambda plan: (
            f"detach from VM {plan.vm}, files kept: {names(plan)}",
            f"attach to master target VM {plan.masttarget}: {names(plan)}",
        ),
        lambda work: move_disks(work, work.plan.vm, work.plan.masttarget, keep_place=False),
        lambda work: move_disks(work, work.plan.masttarget, work.plan.vm, keep_place=True),
        "the disks hang on the VM again, each at its old controller and unit",
    )


def start_replication() -> Step:
    """The step that makes the master target take the disks."""
    return Step(
        "adopt-disks",
        lambda plan: tuple(
            f"the master target takes {disk.base_path}: UUID {disk.uuid}, {disk.size} bytes"
            for disk in plan.disks
        ),
        adopt,
        lambda work: work.replication.stop(work.plan.order()),
        "the master target lets go of the disks",
    )


def _says_cycle(plan: Plan) -> tuple[str, ...]:
    return (
        f"the differences go from machine {plan.azure_name} in Azure to {names(plan)}",
        "a point is published",
    )


REPROTECT: Final = Verb(
    "reprotect",
    Event.REPROTECT,
    (
        Step(
            "await-agent",
            lambda plan: (
                "wait until the agent has registered, at most 15 minutes after the machine's start",
            ),
            _await_agent,
            nothing,
            "none: nothing was changed",
        ),
        raise_generation(),
        Step(
            "remember-places",
            lambda plan: (f"remember the places of {counted(len(plan.disks), 'disk')} on VM {plan.vm}",),
            _remember,
            _forget,
            "the places are forgotten",
        ),
        Step(
            "power-off-home",
            lambda plan: (f"power off VM {plan.vm}",) if plan.was_on else (),
            lambda work: work.vsphere.power_off(work.plan.vm),
            _power_on_again,
            "the VM runs again if it did before and nothing was written to its disks",
        ),
        Step(
            "merge-snapshots",
            lambda plan: (f"merge all snapshots of VM {plan.vm}",),
            lambda work: work.vsphere.merge_snapshots(work.plan.vm),
            nothing,
            "none: a merge changes no content; the snapshots are gone",
        ),
        hand_to_masttarget(),
        start_replication(),
        Step(
            "replicate",
            _says_cycle,
            _replicate,
            nothing,
            "none: what was written stays and the next reprotect goes on from there",
            moves_data=True,
        ),
    ),
)

REPLICATE: Final = Verb(
    "replicate",
    Event.REPLICATE,
    (
        Step(
            "replicate",
            _says_cycle,
            lambda work: void(cycle(work)),
            nothing,
            "none: the last point stays the last",
            moves_data=True,
        ),
    ),
)


def void(_: object) -> None:
    """For a step that is done with the answer."""
