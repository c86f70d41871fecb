"""What each pre-flight check looks at. A field that its rule needs is not None here.

The assertions only tell the type checker.
"""

from collections.abc import Callable, Iterable
from typing import Final

from confserver.ports import Datastore, Power
from confserver.preflight import Facts, Result, verdict
from confserver.reprotect import AGENT_SECONDS_MAX
from confserver.states import State
from drcore.limits import MASTTARGET_DISKS_MAX
from drcore.units import counted


def eligible(facts: Facts) -> tuple[Result, str]:
    assert facts.item is not None
    item = facts.item
    protected_before = bool(item.instance_uuid and item.disks)
    good = protected_before and item.state in (State.FAILED_OVER, State.REPROTECTING)
    origin = (
        f"VM {item.vm}, {counted(len(item.disks), 'disk')}" if protected_before else "none: born in the cloud"
    )
    return verdict(good, f"state {item.state.value}, origin {origin}")


def not_migrated(facts: Facts) -> tuple[Result, str]:
    assert facts.item is not None
    return verdict(facts.item.state is not State.MIGRATED, f"state {facts.item.state.value}")


def known(facts: Facts) -> tuple[Result, str]:
    if facts.item is None:
        return Result.NO, facts.gap("item")
    return Result.OK, f"item {facts.item.id}"


def azure_runs(facts: Facts) -> tuple[Result, str]:
    assert facts.azure is not None
    vm = facts.azure
    # Failed is what Azure says of its last operation, not of the machine: one that runs may come home.
    settled = vm.provisioning.lower() in ("succeeded", "failed")
    good = vm.power is Power.ON and not vm.deallocated and settled
    return verdict(good, f"power {vm.power.value}, provisioning {vm.provisioning}")


def agent_ready(facts: Facts) -> tuple[Result, str] | tuple[Result, str, float]:
    assert facts.azure is not None
    assert facts.item is not None
    if facts.azure.agent_ready:
        return Result.OK, "the agent has registered"
    left = facts.item.failed_over_at + AGENT_SECONDS_MAX - facts.now
    if left > 0:
        return Result.WAIT, f"no agent yet, {left:.0f} s of its 15 minutes are left", left
    return Result.NO, "no agent, and its 15 minutes are over"


def paths(facts: Facts) -> tuple[Result, str]:
    if not facts.paths:
        return Result.WARN, "no path is configured to be probed"
    told = ", ".join(f"{path.host}:{path.port} {path.reason or 'answers'}" for path in facts.paths)
    return verdict(all(not path.reason for path in facts.paths), told)


def os_family(facts: Facts) -> tuple[Result, str]:
    assert facts.item is not None
    if not facts.masttarget_os or not facts.item.os_family:
        return Result.WARN, "the family of one of them is not known"
    told = f"machine {facts.item.os_family}, master target {facts.masttarget_os}"
    return verdict(facts.item.os_family == facts.masttarget_os, told)


def sixty_disks(facts: Facts) -> tuple[Result, str]:
    assert facts.item is not None
    assert facts.masttarget is not None
    attached = {disk.uuid for disk in facts.masttarget.disks}
    coming = sum(disk.disk not in attached for disk in facts.item.disks)
    total = len(attached) + facts.reserved_disks + coming
    told = (
        f"{len(attached)} attached + {facts.reserved_disks} of other jobs + {coming} of this item = {total}"
    )
    return verdict(total <= MASTTARGET_DISKS_MAX, told)


def no_snapshots(facts: Facts) -> tuple[Result, str]:
    assert facts.masttarget is not None
    found = [snapshot.name for snapshot in facts.masttarget.snapshots]
    return verdict(not found, f"snapshots: {', '.join(found) or 'none'}")


def enable_uuid(facts: Facts) -> tuple[Result, str]:
    assert facts.masttarget is not None
    value = "TRUE" if facts.masttarget.enable_uuid else "not TRUE"
    return verdict(facts.masttarget.enable_uuid, f"disk.EnableUUID is {value}")


def controllers(facts: Facts) -> tuple[Result, str]:
    assert facts.masttarget is not None
    found = facts.masttarget.controllers
    good = any("LsiLogic" in kind for kind in found) and not any("ParaVirtual" in kind for kind in found)
    return verdict(good, f"controllers: {', '.join(found) or 'none'}")


def tools(facts: Facts) -> tuple[Result, str]:
    assert facts.masttarget is not None
    return verdict(facts.masttarget.tools_running, f"tools running: {facts.masttarget.tools_running}")


def _told(datastores: Iterable[Datastore]) -> str:
    return ", ".join(f"{store.name} ({store.kind})" for store in datastores) or "none"


def vmfs(facts: Facts) -> tuple[Result, str]:
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


NEEDS_HOMES: Final = ("item", "vm", "masttarget", "datastores")


def _each_home(facts: Facts, good: Callable[[Datastore], bool], word: str) -> tuple[Result, str]:
    names, seen = _homes(facts)
    bad = [name for name in names if name not in seen or not good(seen[name])]
    told = f"on {', '.join(names) or 'none'}; not {word}: {', '.join(bad) or 'none'}"
    return verdict(bool(names) and not bad, told)


def read_write(facts: Facts) -> tuple[Result, str]:
    return _each_home(facts, lambda store: store.read_write, "read/write")


def accessible(facts: Facts) -> tuple[Result, str]:
    return _each_home(facts, lambda store: store.accessible, "accessible")


def kinds(facts: Facts) -> tuple[Result, str]:
    names, seen = _homes(facts)
    bad = [seen[name] for name in names if name in seen and seen[name].kind.lower() not in ("vmfs", "vsan")]
    return verdict(not bad, f"on {', '.join(names) or 'none'}; of another kind: {_told(bad)}")


def uuid_clash(facts: Facts) -> tuple[Result, str]:
    assert facts.vm is not None
    assert facts.masttarget is not None
    own = {disk.uuid: disk.base_path for disk in facts.vm.disks}
    bad = [
        disk.uuid for disk in facts.masttarget.disks if own.get(disk.uuid, disk.base_path) != disk.base_path
    ]
    return verdict(not bad, f"UUIDs on both: {', '.join(bad) or 'none'}")


def discovery(facts: Facts) -> tuple[Result, str]:
    assert facts.datastores is not None
    assert facts.missing_privileges is not None
    missing = ", ".join(facts.missing_privileges) or "none"
    told = f"{counted(len(facts.datastores), 'datastore')} listed, missing privileges: {missing}"
    return verdict(bool(facts.datastores) and not facts.missing_privileges, told)


def connected(facts: Facts) -> tuple[Result, str]:
    if facts.vcenter is None:
        return Result.NO, facts.gap("vcenter")
    return Result.OK, f"{facts.vcenter.name} {facts.vcenter.version}"


def no_namesake(facts: Facts) -> tuple[Result, str]:
    assert facts.item is not None
    assert facts.vm is not None
    assert facts.masttarget is not None
    assert facts.host_vms is not None
    own = int(facts.vm.host == facts.masttarget.host)
    strays = max(facts.host_vms.count(facts.item.vm) - own, 0)
    told = f"{counted(strays, 'other VM')} named {facts.item.vm} on {facts.masttarget.host}"
    return verdict(not strays, told)


def same_vm(facts: Facts) -> tuple[Result, str]:
    assert facts.item is not None
    assert facts.vm is not None
    return verdict(
        facts.vm.instance_uuid == facts.item.instance_uuid, f"instance UUID {facts.vm.instance_uuid}"
    )


def disks_fit(facts: Facts) -> tuple[Result, str]:
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
    return verdict(
        not bad, "; ".join(bad) or f"{counted(len(facts.item.disks), 'disk')}, equal on both sides in size"
    )


def protected(facts: Facts) -> tuple[Result, str]:
    assert facts.item is not None
    # A cycle that is under way gives way to the failback.
    good = (State.PROTECTED, State.REPLICATING, State.FAILING_BACK)
    return verdict(facts.item.state in good, f"state {facts.item.state.value}")


def home_off(facts: Facts) -> tuple[Result, str]:
    assert facts.vm is not None
    return verdict(facts.vm.power is Power.OFF, f"power {facts.vm.power.value}")


def on_masttarget(facts: Facts) -> tuple[Result, str]:
    assert facts.item is not None
    assert facts.masttarget is not None
    places = {disk.uuid: disk.base_path for disk in facts.masttarget.disks}
    home = facts.item.home.disks if facts.item.home else ()
    bad = [disk.base_path for disk in home if places.get(disk.uuid) != disk.base_path]
    told = f"not where they were attached: {', '.join(bad) or 'none'}"
    return verdict(bool(home) and not bad, told)
