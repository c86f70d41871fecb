"""What users ask of the configuration server, decided here: facts, pre-flight, plan, and the job that follows."""

import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Final, TypeVar

from confserver import preflight
from confserver.errors import DiskMissing, DisksNotAsPlanned, ItemBusy, JobOver, PreflightRefused
from confserver.failback import CANCEL, CANCEL_REPROTECT, COMMIT, FAILBACK
from confserver.items import OVER, Item, ItemDisk, Job, JobStatus, Plan
from confserver.jobs import WAIT_SECONDS, Jobs, new_job, require_retryable, side_effects
from confserver.ports import AzureVm, Network, Power, Vm, VmDisk
from confserver.preflight import Check, Facts, Path
from confserver.preflight_tables import BACK_CHECKS, CYCLE_CHECKS, FAILBACK_CHECKS, REPROTECT_CHECKS
from confserver.reprotect import AGENT_SECONDS_MAX, REPLICATE, REPROTECT
from confserver.states import State, after
from confserver.steps import Ports, Verb, disk_on
from confserver.store import Store
from drcore.clock import Clock
from drcore.errors import HomewardError

VERBS: Final[Mapping[str, Verb]] = MappingProxyType(
    {verb.name: verb for verb in (REPROTECT, REPLICATE, FAILBACK, COMMIT, CANCEL, CANCEL_REPROTECT)}
)
CHECKS: Final = MappingProxyType(
    {
        "reprotect": REPROTECT_CHECKS,
        "failback": FAILBACK_CHECKS,
        "replicate": CYCLE_CHECKS,
        "commit": BACK_CHECKS,
        "cancel": BACK_CHECKS,
        "cancel-reprotect": BACK_CHECKS,
    }
)
FENCING: Final = frozenset({"reprotect", "failback", "cancel", "cancel-reprotect"})
"""The verbs that raise the item's generation."""
GIVE_WAY_SECONDS: Final = 180.0
"""A cycle that is asked to end lets its master target flush, which may take two minutes."""
PRIVILEGES: Final = (
    "VirtualMachine.Config.AddExistingDisk",
    "VirtualMachine.Config.RemoveDisk",
    "VirtualMachine.Interact.PowerOff",
    "VirtualMachine.Interact.PowerOn",
    "VirtualMachine.State.CreateSnapshot",
    "VirtualMachine.State.RemoveSnapshot",
    "VirtualMachine.State.RevertToSnapshot",
)
"""What reprotect, failback, commit and cancel do to the VM at home; vSphere's names."""

_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True)
class Enabling:
    """What a user tells when a failed-over machine becomes an item."""

    name: str
    vm: str
    masttarget: str
    azure_vm: str
    os_family: str
    disks: tuple[ItemDisk, ...]
    failed_over_at: float
    instance_uuid: str


@dataclass(frozen=True, slots=True)
class Site:
    """What the configuration says about the surroundings: the master target's family, and ports that have to answer."""

    masttarget_os: str
    paths: tuple[tuple[str, int], ...]


class Service:
    """See the module. Any thread."""

    def __init__(
        self, store: Store, jobs: Jobs, ports: Ports, network: Network, clock: Clock, site: Site
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._ports = ports
        self._network = network
        self._clock = clock
        self._site = site

    # Items

    def enable(self, told: Enabling) -> Item:
        """The machine is an item, and Azure has its disks.

        Errors: HW-CONF-023, 024, those of Azure, and those of vCenter when it has to be asked for the VM.
        """
        instance = told.instance_uuid or self._ports.vsphere.vm(told.vm).instance_uuid
        disks = tuple(ItemDisk(uuid.UUID(disk.disk).hex, disk.azure_disk) for disk in told.disks)
        _require_in_azure(self._ports.azure.vm(told.azure_vm), disks)
        return self._store.enable(
            Item(
                id=str(uuid.uuid4()),
                name=told.name,
                vm=told.vm,
                instance_uuid=instance,
                masttarget=told.masttarget,
                azure_vm=told.azure_vm,
                os_family=told.os_family,
                disks=disks,
                failed_over_at=told.failed_over_at or self._clock.now(),
            )
        )

    # Verbs

    def preflight(self, reference: str, verb: str) -> tuple[Check, ...]:
        """The findings of every check of the verb. Touches nothing. Errors: `ItemMissing` (HW-CONF-002), 021."""
        return preflight.run(CHECKS[verb], self._facts(self._store.item(reference), verb))

    def plan(self, reference: str, verb: str) -> tuple[Plan, list[dict[str, Any]]]:
        """The plan and every side effect of the verb in order. Touches nothing. Errors: HW-CONF-002, 004, 010."""
        item = self._store.item(reference)
        verb = _verb_for(item, verb)
        after(State.PROTECTED if _gives_way(item, verb) else item.state, VERBS[verb].event)
        plan = self._make_plan(item, verb)
        return plan, side_effects(VERBS[verb], plan)

    def begin(self, reference: str, verb: str, retry_of: str = "") -> Job:
        """The verb's job is under way; a cycle that runs gives way to a failback.

        Errors: HW-CONF-002, 004, 005, and `PreflightRefused` (HW-CONF-006).
        """
        item = self._store.item(reference)
        if _gives_way(item, verb):
            self._require_ready(item, verb)
            with suppress(JobOver):
                self._jobs.cancel(item.job)
            self._await_end(item)
        job = self.record(reference, verb, retry_of)
        self._jobs.run(job)
        return job

    def record(self, reference: str, verb: str, retry_of: str = "") -> Job:
        """The verb's job holds its item and waits to be run. Errors: as `begin`."""
        item = self._store.item(reference)
        verb = _verb_for(item, verb)
        after(item.state, VERBS[verb].event)
        self._require_ready(item, verb)
        plan = self._make_plan(item, verb)
        return self._store.begin_job(
            new_job(VERBS[verb], plan, self._clock.now(), retry_of), VERBS[verb].event
        )

    def _await_end(self, item: Item) -> None:
        """The item's job is over. Errors: `ItemBusy` (HW-CONF-005) when it does not end in time."""
        deadline = self._clock.monotonic() + GIVE_WAY_SECONDS
        # Not by the workflow: of a job that was recorded a moment ago there is none yet.
        while self._store.job(item.job).status not in OVER:
            if self._clock.monotonic() > deadline:
                raise ItemBusy(item=item.name, job=item.job)
            self._clock.sleep(WAIT_SECONDS)

    def _require_ready(self, item: Item, verb: str) -> None:
        """Pre-flight does not say no. Errors: `PreflightRefused` (HW-CONF-006)."""
        in_the_way = preflight.refused(self.preflight(item.id, verb))
        if in_the_way:
            reasons = "; ".join(f"{check.code} {check.title}: {check.observed}" for check in in_the_way)
            raise PreflightRefused(verb=verb, item=item.name, count=len(in_the_way), reasons=reasons)

    def retry(self, reference: str) -> Job:
        """A failed job's verb runs anew as a new job; a stuck job goes on with its undo. Errors: HW-CONF-003, 008."""
        job = self._store.job(reference)
        require_retryable(job)
        if job.status is JobStatus.STUCK:
            return self._jobs.undo_again(reference)
        return self.begin(job.item, job.verb, retry_of=job.id)

    def cancel(self, reference: str) -> Job:
        """The item's job will end and undo; when it has none, a job of its own takes the failback or reprotect back."""
        item = self._store.item(reference)
        if item.job:
            return self._jobs.cancel(item.job)
        return self.begin(reference, "cancel")

    # Plans

    def _make_plan(self, item: Item, verb: str) -> Plan:
        if item.home is not None:
            disks, was_on = item.home.disks, item.home.was_on
        else:
            vm = self._ports.vsphere.vm(item.vm)
            disks, was_on = _places(item, vm), vm.power is Power.ON
        azure = {disk.disk: disk.azure_disk for disk in item.disks}
        plan = Plan(
            verb=verb,
            item=item.id,
            vm=item.vm,
            masttarget=item.masttarget,
            azure_vm=item.azure_vm,
            generation=item.generation,
            disks=disks,
            azure_disks=tuple(azure[disk.uuid] for disk in disks),
            was_on=was_on,
            snapshot=f"homeward-failback-{item.id}",
            agent_deadline=item.failed_over_at + AGENT_SECONDS_MAX,
        )
        if verb not in FENCING:
            return plan
        # A database that was restored may know an older one than the master target, where generations never fall.
        newest = max(item.generation, self._ports.replication.generation(plan.order()))
        return replace(plan, generation=newest + 1)

    # Facts

    def _facts(self, item: Item, verb: str) -> Facts:
        gaps: dict[str, str] = {}

        def ask(name: str, question: Callable[[], _Found]) -> _Found | None:
            try:
                return question()
            except HomewardError as error:
                gaps[name] = str(error)
                return None

        vsphere = self._ports.vsphere
        checks = CHECKS[verb]
        vcenter = ask("vcenter", vsphere.vcenter) if checks is not CYCLE_CHECKS else None
        nobody = Facts(
            item=item,
            azure=None,
            vcenter=vcenter,
            vm=None,
            masttarget=None,
            host_vms=None,
            datastores=None,
            missing_privileges=None,
            masttarget_os=self._site.masttarget_os,
            reserved_disks=0,
            paths=(),
            now=self._clock.now(),
            gaps=gaps,
        )
        if checks in (BACK_CHECKS, CYCLE_CHECKS):
            return nobody
        facts = replace(
            nobody,
            azure=ask("azure", lambda: self._ports.azure.vm(item.azure_vm)),
            reserved_disks=self._reserved(item),
            paths=tuple(Path(host, port, self._network.reach(host, port)) for host, port in self._site.paths),
        )
        if vcenter is None:
            return facts
        masttarget = ask("masttarget", lambda: vsphere.vm(item.masttarget))
        facts = replace(
            facts,
            vm=ask("vm", lambda: vsphere.vm(item.vm)),
            masttarget=masttarget,
            missing_privileges=ask(
                "missing_privileges", lambda: vsphere.missing_privileges(item.vm, PRIVILEGES)
            ),
        )
        if masttarget is None:
            return facts
        return replace(
            facts,
            host_vms=ask("host_vms", lambda: vsphere.vms_on(masttarget.host)),
            datastores=ask("datastores", lambda: vsphere.datastores(masttarget.host)),
        )

    def _reserved(self, item: Item) -> int:
        """Disks of other items on their way to the same master target that do not hang on it yet."""
        return sum(
            len(other.disks)
            for other in self._store.items()
            if other.id != item.id
            and other.masttarget == item.masttarget
            and other.state in (State.REPROTECTING, State.CANCELLING)
        )


def _require_in_azure(vm: AzureVm, disks: tuple[ItemDisk, ...]) -> None:
    """The machine has every one of the disks. Errors: `DisksNotAsPlanned` (HW-CONF-024)."""
    present = {disk.resource_id.lower(): disk.resource_id for disk in vm.disks}
    for disk in disks:
        if disk.azure_disk.lower() not in present:
            told = ", ".join(sorted(present.values())) or "none"
            raise DisksNotAsPlanned(vm=vm.name, disk=disk.azure_disk, present=told)


def _verb_for(item: Item, verb: str) -> str:
    """The verb that is meant: of an item that is protected, `cancel` takes the reprotect back."""
    return CANCEL_REPROTECT.name if verb == "cancel" and item.state is State.PROTECTED else verb


def _gives_way(item: Item, verb: str) -> bool:
    """Whether the job that holds the item is a cycle, and what is asked for a failback, which does its own cycles."""
    return verb == "failback" and item.state is State.REPLICATING and bool(item.job)


def _places(item: Item, vm: Vm) -> tuple[VmDisk, ...]:
    """The item's disks as they hang on the VM, by their base files. Errors: `DiskMissing` (HW-CONF-010)."""
    found = []
    for wanted in item.disks:
        disk = disk_on(vm, wanted.disk)
        if disk is None:
            present = ", ".join(other.uuid for other in vm.disks) or "none"
            raise DiskMissing(disk=wanted.disk, vm=item.vm, present=present)
        found.append(replace(disk, path=disk.base_path))
    return tuple(found)
