"""Pre-flight checks: what was observed, what is expected, what to do. Pure functions over facts gathered before.

A check never changes anything and never raises: what could not be found out is `unknown`, with the reason as observed.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from confserver.items import Item
from confserver.ports import AzureVm, Datastore, Power, Vcenter, Vm
from confserver.reprotect import AGENT_SECONDS_MAX
from confserver.states import State
from drcore.limits import MASTTARGET_DISKS_MAX
from drcore.units import counted


class Result(Enum):
    """What a check says."""

    OK = "ok"
    NO = "no"
    WARN = "warn"
    UNKNOWN = "unknown"
    WAIT = "wait"
    """Not yet, but soon by itself; `wait_seconds` says when."""


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `requirement` is its number in docs/requirements.md; `code` the sources' own where they have one."""

    requirement: str
    code: str
    title: str
    result: Result
    observed: str
    expected: str
    remedy: str
    wait_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Path:
    """One probed network path; `reason` is empty when something answered."""

    host: str
    port: int
    reason: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that the checks look at; what nobody knows is None, with a reason in `gaps` under its name."""

    item: Item | None
    azure: AzureVm | None
    vcenter: Vcenter | None
    vm: Vm | None
    masttarget: Vm | None
    host_vms: tuple[str, ...] | None
    """Names of the VMs on the master target's host."""
    datastores: tuple[Datastore, ...] | None
    """What the master target's host sees."""
    missing_privileges: tuple[str, ...] | None
    masttarget_os: str
    reserved_disks: int
    """Disks of other items whose jobs are about to attach them to the same master target."""
    paths: tuple[Path, ...]
    now: float
    gaps: dict[str, str]

    def gap(self, name: str) -> str:
        """Why the field is None."""
        return self.gaps.get(name, "not asked, because something before it failed")


@dataclass(frozen=True, slots=True)
class _Rule:
    """A check before it has looked: without the facts in `needs` it is unknown; `look` gives result and sight."""

    requirement: str
    code: str
    title: str
    expected: str
    remedy: str
    needs: tuple[str, ...]
    look: Callable[[Facts], tuple[Result, str] | tuple[Result, str, float]]


def run(rules: Iterable[_Rule], facts: Facts) -> tuple[Check, ...]:
    """Every check's finding, in the order of the rules."""
    return tuple(_run(rule, facts) for rule in rules)


def refused(checks: Iterable[Check]) -> tuple[Check, ...]:
    """The checks that stand in the way: those that say no, and those that could not look."""
    return tuple(check for check in checks if check.result in (Result.NO, Result.UNKNOWN))


def _run(rule: _Rule, facts: Facts) -> Check:
    wait = 0.0
    missing = next((name for name in rule.needs if getattr(facts, name) is None), None)
    if missing is not None:
        result, observed = Result.UNKNOWN, f"{missing} is not known: {facts.gap(missing)}"
    else:
        result, observed, *rest = rule.look(facts)
        wait = rest[0] if rest else 0.0
    code = rule.code or f"HW-CHECK-{rule.requirement[1:]}"
    return Check(rule.requirement, code, rule.title, result, observed, rule.expected, rule.remedy, wait)


def _verdict(good: bool, observed: str) -> tuple[Result, str]:
    return (Result.OK if good else Result.NO), observed


# What the checks look at. A field that `needs` names is not None here; the assertions only tell the type checker.


def _eligible(facts: Facts) -> tuple[Result, str]:
    assert facts.item is not None
    item = facts.item
    protected_before = bool(item.instance_uuid and item.disks)
    good = protected_before and item.state in (State.FAILED_OVER, State.REPROTECTING)
    origin = (
        f"VM {item.vm}, {counted(len(item.disks), 'disk')}" if protected_before else "none: born in the cloud"
    )
    return _verdict(good, f"state {item.state.value}, origin {origin}")


def _not_migrated(facts: Facts) -> tuple[Result, str]:
    assert facts.item is not None
    return _verdict(facts.item.state is not State.MIGRATED, f"state {facts.item.state.value}")


def _known(facts: Facts) -> tuple[Result, str]:
    if facts.item is None:
        return Result.NO, facts.gap("item")
    return Result.OK, f"item {facts.item.id}"


def _azure_runs(facts: Facts) -> tuple[Result, str]:
    assert facts.azure is not None
    vm = facts.azure
    good = vm.power is Power.ON and not vm.deallocated and vm.provisioning.lower() == "succeeded"
    return _verdict(good, f"power {vm.power.value}, provisioning {vm.provisioning}")


def _agent_ready(facts: Facts) -> tuple[Result, str] | tuple[Result, str, float]:
    assert facts.azure is not None
    assert facts.item is not None
    if facts.azure.agent_ready:
        return Result.OK, "the agent has registered"
    left = facts.item.failed_over_at + AGENT_SECONDS_MAX - facts.now
    if left > 0:
        return Result.WAIT, f"no agent yet, {left:.0f} s of its 15 minutes are left", left
    return Result.NO, "no agent, and its 15 minutes are over"


def _paths(facts: Facts) -> tuple[Result, str]:
    if not facts.paths:
        return Result.WARN, "no path is configured to be probed"
    told = ", ".join(f"{path.host}:{path.port} {path.reason or 'answers'}" for path in facts.paths)
    return _verdict(all(not path.reason for path in facts.paths), told)


def _os_family(facts: Facts) -> tuple[Result, str]:
    assert facts.item is not None
    if not facts.masttarget_os or not facts.item.os_family:
        return Result.WARN, "the family of one of them is not known"
    told = f"machine {facts.item.os_family}, master target {facts.masttarget_os}"
    return _verdict(facts.item.os_family == facts.masttarget_os, told)


def _sixty_disks(facts: Facts) -> tuple[Result, str]:
    assert facts.item is not None
    assert facts.masttarget is not None
    attached = {disk.uuid for disk in facts.masttarget.disks}
    coming = sum(disk.disk not in attached for disk in facts.item.disks)
    total = len(attached) + facts.reserved_disks + coming
    told = (
        f"{len(attached)} attached + {facts.reserved_disks} of other jobs + {coming} of this item = {total}"
    )
    return _verdict(total <= MASTTARGET_DISKS_MAX, told)


def _no_snapshots(facts: Facts) -> tuple[Result, str]:
    assert facts.masttarget is not None
    found = [snapshot.name for snapshot in facts.masttarget.snapshots]
    return _verdict(not found, f"snapshots: {', '.join(found) or 'none'}")


def _enable_uuid(facts: Facts) -> tuple[Result, str]:
    assert facts.masttarget is not None
    value = "TRUE" if facts.masttarget.enable_uuid else "not TRUE"
    return _verdict(facts.masttarget.enable_uuid, f"disk.EnableUUID is {value}")


def _controllers(facts: Facts) -> tuple[Result, str]:
    assert facts.masttarget is not None
    found = facts.masttarget.controllers
    good = any("LsiLogic" in kind for kind in found) and not any("ParaVirtual" in kind for kind in found)
    return _verdict(good, f"controllers: {', '.join(found) or 'none'}")


def _tools(facts: Facts) -> tuple[Result, str]:
    assert facts.masttarget is not None
    return _verdict(facts.masttarget.tools_running, f"tools running: {facts.masttarget.tools_running}")


def _told(datastores: Iterable[Datastore]) -> str:
    return ", ".join(f"{store.name} ({store.kind})" for store in datastores) or "none"


def _vmfs(facts: Facts) -> tuple[Result, str]:
    assert facts.datastores is not None
    kinds = {store.kind.lower() for store in facts.datastores if store.accessible}
    told = f"datastores: {_told(facts.datastores)}"
    if "vmfs" in kinds:
        return Result.OK, told
    return (Result.WARN if "vsan" in kinds else Result.NO), told


def _homes(facts: Facts) -> tuple[list[str], dict[str, Datastore]]:
    """The names of the datastores on which the item's disks lie, and all that the master target's host sees."""
    assert facts.vm is not None
    assert facts.masttarget is not None
    assert facts.item is not None
    assert facts.datastores is not None
    wanted = {disk.disk for disk in facts.item.disks}
    present = (*facts.vm.disks, *facts.masttarget.disks)
    names = {disk.base_path.partition("]")[0].lstrip("[") for disk in present if disk.uuid in wanted}
    return sorted(names), {store.name: store for store in facts.datastores}


_NEEDS_HOMES: Final = ("item", "vm", "masttarget", "datastores")


def _read_write(facts: Facts) -> tuple[Result, str]:
    names, seen = _homes(facts)
    bad = [name for name in names if name not in seen or not seen[name].read_write]
    return _verdict(
        bool(names) and not bad,
        f"on {', '.join(names) or 'none'}; not read/write: {', '.join(bad) or 'none'}",
    )


def _accessible(facts: Facts) -> tuple[Result, str]:
    names, seen = _homes(facts)
    bad = [name for name in names if name not in seen or not seen[name].accessible]
    return _verdict(
        bool(names) and not bad,
        f"on {', '.join(names) or 'none'}; not accessible: {', '.join(bad) or 'none'}",
    )


def _kinds(facts: Facts) -> tuple[Result, str]:
    names, seen = _homes(facts)
    bad = [seen[name] for name in names if name in seen and seen[name].kind.lower() not in ("vmfs", "vsan")]
    return _verdict(not bad, f"on {', '.join(names) or 'none'}; of another kind: {_told(bad)}")


def _uuid_clash(facts: Facts) -> tuple[Result, str]:
    assert facts.vm is not None
    assert facts.masttarget is not None
    own = {disk.uuid: disk.base_path for disk in facts.vm.disks}
    bad = [
        disk.uuid for disk in facts.masttarget.disks if own.get(disk.uuid, disk.base_path) != disk.base_path
    ]
    return _verdict(not bad, f"UUIDs on both: {', '.join(bad) or 'none'}")


def _discovery(facts: Facts) -> tuple[Result, str]:
    assert facts.datastores is not None
    assert facts.missing_privileges is not None
    missing = ", ".join(facts.missing_privileges) or "none"
    told = f"{counted(len(facts.datastores), 'datastore')} listed, missing privileges: {missing}"
    return _verdict(bool(facts.datastores) and not facts.missing_privileges, told)


def _connected(facts: Facts) -> tuple[Result, str]:
    if facts.vcenter is None:
        return Result.NO, facts.gap("vcenter")
    return Result.OK, f"{facts.vcenter.name} {facts.vcenter.version}"


def _no_namesake(facts: Facts) -> tuple[Result, str]:
    assert facts.item is not None
    assert facts.vm is not None
    assert facts.masttarget is not None
    assert facts.host_vms is not None
    own = int(facts.vm.host == facts.masttarget.host)
    strays = facts.host_vms.count(facts.item.vm) - own
    return _verdict(
        strays <= 0,
        f"{counted(max(strays, 0), 'other VM')} named {facts.item.vm} on {facts.masttarget.host}",
    )


def _same_vm(facts: Facts) -> tuple[Result, str]:
    assert facts.item is not None
    assert facts.vm is not None
    return _verdict(
        facts.vm.instance_uuid == facts.item.instance_uuid, f"instance UUID {facts.vm.instance_uuid}"
    )


def _disks_fit(facts: Facts) -> tuple[Result, str]:
    assert facts.item is not None
    assert facts.vm is not None
    assert facts.masttarget is not None
    assert facts.azure is not None
    home = {disk.uuid: disk.size for disk in (*facts.masttarget.disks, *facts.vm.disks)}
    away = {disk.resource_id.lower(): disk.size for disk in facts.azure.disks}
    bad = []
    for disk in facts.item.disks:
        here, there = home.get(disk.disk), away.get(disk.azure_disk.lower())
        if here is None:
            bad.append(f"{disk.disk}: neither {facts.item.vm} nor the master target has a disk of that UUID")
        if there is None:
            bad.append(f"{disk.disk}: {facts.azure.name} in Azure has no disk {disk.azure_disk}")
        if here is not None and there is not None and here != there:
            bad.append(f"{disk.disk}: {here} bytes at home, {there} bytes in Azure")
    unknown = len(away.keys() - {disk.azure_disk.lower() for disk in facts.item.disks})
    if not bad and unknown:
        return (
            Result.WARN,
            f"in Azure {counted(unknown, 'further disk')} that the item does not name: left behind",
        )
    return _verdict(
        not bad, "; ".join(bad) or f"{counted(len(facts.item.disks), 'disk')}, equal on both sides in size"
    )


def _protected(facts: Facts) -> tuple[Result, str]:
    assert facts.item is not None
    # A cycle that is under way gives way to the failback.
    good = (State.PROTECTED, State.REPLICATING, State.FAILING_BACK)
    return _verdict(facts.item.state in good, f"state {facts.item.state.value}")


def _home_off(facts: Facts) -> tuple[Result, str]:
    assert facts.vm is not None
    return _verdict(facts.vm.power is Power.OFF, f"power {facts.vm.power.value}")


def _on_masttarget(facts: Facts) -> tuple[Result, str]:
    assert facts.item is not None
    assert facts.masttarget is not None
    places = {disk.uuid: disk.base_path for disk in facts.masttarget.disks}
    home = facts.item.home.disks if facts.item.home else ()
    bad = [disk.base_path for disk in home if places.get(disk.uuid) != disk.base_path]
    told = f"not where they were attached: {', '.join(bad) or 'none'}"
    return _verdict(bool(home) and not bad, told)


_ITEM_KNOWN: Final = _Rule(
    "R015", "", "the item is known", "an item in the database", "enable the machine as an item", (), _known
)
_VCENTER: Final = _Rule(
    "R077",
    "",
    "vCenter is connected",
    "a vCenter that answers",
    "check its address, its certificate and the account; detach and attach need it",
    (),
    _connected,
)
_PATHS: Final = _Rule(
    "R042",
    "95226",
    "the ports answer",
    "an answer on every configured port",
    "open the ports; the way from Azure is a site-to-site VPN or ExpressRoute private peering (R037, R046, R199)",
    (),
    _paths,
)
_AZURE_RUNS: Final = _Rule(
    "R009",
    "78093",
    "the machine in Azure runs",
    "power on, provisioning succeeded",
    "start (or restart) the machine in Azure, check its network, then run this again",
    ("azure",),
    _azure_runs,
)

REPROTECT_CHECKS: Final = (
    _ITEM_KNOWN,
    _Rule(
        "R001",
        "",
        "the machine was protected and failed over",
        "an item that is failed over from a VM at home",
        "only such a machine can come home; for one born in the cloud there is no original",
        ("item",),
        _eligible,
    ),
    _Rule(
        "R002",
        "",
        "migration was not completed",
        "an item for which complete migration was not run",
        "there is no way back from it: protect the machine anew",
        ("item",),
        _not_migrated,
    ),
    _AZURE_RUNS,
    _Rule(
        "R096",
        "",
        "the agent has registered",
        "an agent that reports, up to 15 minutes after the start",
        "wait; after that check that the agent's service runs and starts automatically (R031, R200)",
        ("item", "azure"),
        _agent_ready,
    ),
    _PATHS,
    _VCENTER,
    _Rule(
        "R085",
        "",
        "the VM at home is the original",
        "the instance UUID that the item was enabled with",
        "enable the item with the right VM; a VM of the same name is another machine",
        ("item", "vm"),
        _same_vm,
    ),
    _Rule(
        "R101",
        "",
        "the disks at home and in Azure belong together",
        "each disk of the item on both sides, of one size",
        "enable the item with the disks as they are; a disk that grew in Azure has to grow at home first",
        ("item", "vm", "masttarget", "azure"),
        _disks_fit,
    ),
    _Rule(
        "R049",
        "",
        "master target and machine are of one family",
        "Linux with Linux, Windows with Windows",
        "choose a master target of the machine's family",
        ("item",),
        _os_family,
    ),
    _Rule(
        "R050",
        "",
        "the master target has room for the disks",
        f"at most {MASTTARGET_DISKS_MAX} disks, those of all jobs counted",
        "wait until other items came home, or choose another master target",
        ("item", "masttarget"),
        _sixty_disks,
    ),
    _Rule(
        "R051",
        "",
        "the master target has no snapshots",
        "none",
        "delete the master target's snapshots (R207)",
        ("masttarget",),
        _no_snapshots,
    ),
    _Rule(
        "R054",
        "",
        "the master target shows disk UUIDs",
        "disk.EnableUUID is TRUE",
        "power the master target off, add disk.EnableUUID = TRUE to its configuration parameters, power it on",
        ("masttarget",),
        _enable_uuid,
    ),
    _Rule(
        "R055",
        "",
        "the master target has LSI Logic controllers only",
        "at least one LSI Logic controller and no paravirtual one",
        "add an LSI Logic controller and remove the paravirtual one (R209)",
        ("masttarget",),
        _controllers,
    ),
    _Rule(
        "R056",
        "",
        "VMware Tools run on the master target",
        "running",
        "install or start VMware Tools there; without them its datastores are not detected",
        ("masttarget",),
        _tools,
    ),
    _Rule(
        "R059",
        "",
        "the master target's host has a VMFS datastore",
        "at least one VMFS datastore (vSAN alone: a warning)",
        "attach a VMFS datastore to the host",
        ("datastores",),
        _vmfs,
    ),
    _Rule(
        "R060",
        "",
        "the VM's datastores are mounted read/write there",
        "read/write on the master target's host",
        "mount the datastores read/write on that host",
        _NEEDS_HOMES,
        _read_write,
    ),
    _Rule(
        "R204",
        "8061",
        "the VM's datastores are accessible there",
        "accessible from the master target's host",
        "check the storage paths of that host and the master target's prerequisites",
        _NEEDS_HOMES,
        _accessible,
    ),
    _Rule(
        "R080",
        "",
        "the VM's datastores are of a supported kind",
        "VMFS or vSAN",
        "move the disks off NFS to a VMFS datastore (R081)",
        _NEEDS_HOMES,
        _kinds,
    ),
    _Rule(
        "R062",
        "",
        "no disk UUID is on both VMs",
        "no UUID of the VM on another file of the master target",
        "deploy the master target from another template (R208)",
        ("vm", "masttarget"),
        _uuid_clash,
    ),
    _Rule(
        "R079",
        "",
        "the vCenter account sees datastores and may do what is needed",
        "at least one datastore and no missing privilege",
        "give the account the missing privileges (a read-only account cannot reprotect), then run this again",
        ("datastores", "missing_privileges"),
        _discovery,
    ),
    _Rule(
        "R202",
        "78052",
        "no other VM of that name is on the master target's host",
        "none",
        "choose a master target on another host, move it there, or rename the stray VM",
        ("item", "vm", "masttarget", "host_vms"),
        _no_namesake,
    ),
)
"""Before reprotect."""

FAILBACK_CHECKS: Final = (
    _ITEM_KNOWN,
    _Rule(
        "R186",
        "",
        "the item is protected",
        "state protected",
        "reprotect it first and wait for the job",
        ("item",),
        _protected,
    ),
    _AZURE_RUNS,
    _PATHS,
    _VCENTER,
    _Rule(
        "R099",
        "",
        "the VM at home is off",
        "a VM that nobody turned on after the reprotect",
        "power it off and find out who turned it on",
        ("vm",),
        _home_off,
    ),
    _Rule(
        "R058",
        "",
        "the disks hang on the master target where they were attached",
        "every disk under the path that it had",
        "find the files, attach them again; keep master targets out of Storage vMotion (R057, R211)",
        ("item", "masttarget"),
        _on_masttarget,
    ),
    _Rule(
        "R051",
        "",
        "the master target has no snapshots",
        "none",
        "delete the master target's snapshots (R207)",
        ("masttarget",),
        _no_snapshots,
    ),
)
"""Before failback."""

BACK_CHECKS: Final = (_ITEM_KNOWN, _VCENTER)
"""Before commit and cancel: their steps ask for everything else as they come to it."""

CYCLE_CHECKS: Final = (_ITEM_KNOWN,)
"""Before a cycle: neither vCenter nor Azure's control plane has a part in it, so it goes on while they are away."""
