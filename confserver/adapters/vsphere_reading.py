"""What vCenter shows, in the words of the ports. Leaf properties only, by property collector: some servers answer
whole structures such as `vm.runtime` with values that no client can parse.
"""

from dataclasses import dataclass
from typing import Any, Final

from pyVmomi import vim

from confserver.adapters.vsphere_faults import About, kind_of
from confserver.adapters.vsphere_session import Found, Service, Session, reference_of, step
from confserver.errors_fabric import DatastoreMissing, HostMissing, VmAmbiguous, VmInaccessible, VmMissing
from confserver.ports import Datastore, Power, Snapshot, Vm, VmDisk

VM_PATHS: Final = [
    "name",
    "config.changeVersion",
    "config.extraConfig",
    "config.hardware.device",
    "config.hardware.memoryMB",
    "config.instanceUuid",
    "guest.toolsRunningStatus",
    "runtime.connectionState",
    "runtime.consolidationNeeded",
    "runtime.host",
    "runtime.powerState",
    "snapshot",
]
POWERS: Final = {"poweredOn": Power.ON, "poweredOff": Power.OFF, "suspended": Power.SUSPENDED}
ENABLE_UUID: Final = "disk.enableuuid"
BROWSE: Final = "Datastore.Browse"
MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Look:
    """A VM as it is at one instant, with what the verbs need beyond the port's words."""

    vm: Vm
    devices: tuple[Any, ...]
    change_version: str | None
    """Changes with the configuration; vCenter refuses a change that names an older one."""
    host_reference: str | None
    tasks: tuple[str, ...]
    """References of the tasks on the VM that are not over."""

    def hanging(self, file: str) -> VmDisk | None:
        """The disk that stands on this file, directly or through snapshots."""
        return next((disk for disk in self.vm.disks if file in (disk.path, disk.base_path)), None)

    def device_of(self, disk: VmDisk) -> Any:
        """The device that the disk is."""
        return next(d for d in self.devices if is_file_disk(d) and d.backing.fileName == disk.path)

    def snapshots(self, name: str) -> tuple[str, ...]:
        """References of the snapshots of that name."""
        return tuple(snapshot.reference for snapshot in self.vm.snapshots if snapshot.name == name)


def look(service: Service, vcenter: str, name: str) -> Look:
    """The VM of that name as it is now. Errors: HW-CONF-108 missing, -109 several, -110 not readable."""
    fitting = [one for one in service.every(vim.VirtualMachine, ["name"]) if named(one) == name]
    if not fitting:
        raise VmMissing(vcenter=vcenter, vm=name)
    if len(fitting) > 1:
        raise VmAmbiguous(vcenter=vcenter, vm=name, count=len(fitting))
    found = service.read(
        [fitting[0].thing],
        (vim.VirtualMachine, VM_PATHS),
        (vim.Task, ["info.state"]),
        (vim.HostSystem, ["name"]),
        through=(step(vim.VirtualMachine, "recentTask"), step(vim.VirtualMachine, "runtime.host")),
    )
    machine = next(one for one in found if isinstance(one.thing, vim.VirtualMachine))
    values = machine.values
    if "config.hardware.device" not in values or "runtime.powerState" not in values:
        state = str(values.get("runtime.connectionState", "without a configuration"))
        raise VmInaccessible(vcenter=vcenter, vm=name, state=state)
    devices = tuple(values["config.hardware.device"])
    host = values.get("runtime.host")
    running = (vim.TaskInfo.State.queued, vim.TaskInfo.State.running)
    return Look(
        vm=Vm(
            reference=reference_of(machine.thing),
            name=named(machine),
            instance_uuid=str(values.get("config.instanceUuid", "")),
            power=POWERS.get(str(values["runtime.powerState"]), Power.CHANGING),
            host=next((named(one) for one in found if isinstance(one.thing, vim.HostSystem)), ""),
            memory_bytes=int(values.get("config.hardware.memoryMB", 0)) * MIB,
            tools_running=values.get("guest.toolsRunningStatus") == "guestToolsRunning",
            enable_uuid=_enable_uuid(values.get("config.extraConfig", ())),
            controllers=tuple(
                kind_of(d) for d in devices if isinstance(d, vim.vm.device.VirtualSCSIController)
            ),
            disks=disks_of(devices),
            snapshots=_snapshots(values["snapshot"].rootSnapshotList) if "snapshot" in values else (),
            consolidation_needed=bool(values.get("runtime.consolidationNeeded", False)),
        ),
        devices=devices,
        change_version=values.get("config.changeVersion"),
        host_reference=None if host is None else reference_of(host),
        tasks=tuple(reference_of(one.thing) for one in found if one.values.get("info.state") in running),
    )


def look_at(session: Session, verb: str, name: str) -> Look:
    """`look` as one call of the session."""
    about = session.about(verb, f"VM {name}")
    return session.call(about, lambda service: look(service, about.vcenter, name))


def names_on(service: Service, vcenter: str, host: str) -> tuple[str, ...]:
    """The names of the VMs on that host, in order. Errors: HW-CONF-111."""
    thing = _host(service, vcenter, host)
    through = (step(vim.HostSystem, "vm"),)
    found = service.read([thing], (vim.VirtualMachine, ["name"]), through=through)
    return tuple(sorted(named(one) for one in found))


def datastores_on(service: Service, vcenter: str, host: str) -> tuple[Datastore, ...]:
    """The datastores of that host that the account may browse, in the order of names. Errors: HW-CONF-111."""
    thing = _host(service, vcenter, host)
    paths = ["summary.name", "summary.type", "summary.accessible", "summary.freeSpace", "host"]
    found = service.read([thing], (vim.Datastore, paths), through=(step(vim.HostSystem, "datastore"),))
    closed = lacking(service, [one.thing for one in found], (BROWSE,))
    mine = (_datastore(one, thing) for one in found if not closed[reference_of(one.thing)])
    return tuple(sorted(mine, key=lambda one: one.name))


def lacking(service: Service, things: list[Any], wanted: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """For each thing's reference those of the wanted privileges that the account lacks on it."""
    if not things or not wanted:
        return {reference_of(thing): () for thing in things}
    manager = service.content.authorizationManager
    return {
        reference_of(one.entity): tuple(p.privId for p in one.privAvailability if not p.isGranted)
        for one in manager.HasPrivilegeOnEntities(things, service.session_key, list(wanted))
    }


def holder_of(service: Service, about: About, around: Look, file: str) -> str | None:
    """The name of another VM with the file in one of its disks; only VMs of the file's datastore can have it.

    Errors: HW-CONF-131 the host of the VM `around` does not show the datastore.
    """
    stores = []
    if around.host_reference is not None:
        host = service.bound(vim.HostSystem, around.host_reference)
        stores = service.read([host], (vim.Datastore, ["name"]), through=(step(vim.HostSystem, "datastore"),))
    store = next((one.thing for one in stores if file.startswith(f"[{named(one)}] ")), None)
    if store is None:
        seen = ", ".join(sorted(named(one) for one in stores)) or "none"
        reason = f"datastores of its host {around.vm.host}: {seen}"
        raise DatastoreMissing(verb=about.verb, subject=about.subject, file=file, reason=reason)
    paths = ["name", "config.hardware.device"]
    others = service.read([store], (vim.VirtualMachine, paths), through=(step(vim.Datastore, "vm"),))
    for other in others:
        disks = [d for d in other.values.get("config.hardware.device", ()) if is_file_disk(d)]
        itself = reference_of(other.thing) == around.vm.reference
        if not itself and any(file in files_of(disk) for disk in disks):
            return named(other)
    return None


def disks_of(devices: tuple[Any, ...]) -> tuple[VmDisk, ...]:
    """The virtual disks among the devices that stand on files."""
    controllers = {d.key: d for d in devices if isinstance(d, vim.vm.device.VirtualController)}
    return tuple(
        _disk(device, controllers[device.controllerKey])
        for device in devices
        if is_file_disk(device) and device.controllerKey in controllers
    )


def is_file_disk(device: Any) -> bool:
    """Whether the device is a virtual disk that stands on a file."""
    return isinstance(device, vim.vm.device.VirtualDisk) and bool(getattr(device.backing, "fileName", None))


def plain_uuid(text: str | None) -> str:
    """32 lower-case digits, however vSphere groups them; empty where there is no UUID."""
    return "".join(digit for digit in (text or "").lower() if digit in "0123456789abcdef")


def named(found: Found) -> str:
    """The object's name as a person wrote it: vCenter escapes three characters in names (ManagedEntity.name)."""
    name = str(found.values.get("name", ""))
    return name.replace("%2f", "/").replace("%5c", "\\").replace("%25", "%")


def files_of(device: Any) -> tuple[str, ...]:
    """The files of the disk's chain, from the one that is written to the base."""
    files, backing = [], device.backing
    while backing is not None:
        files.append(str(backing.fileName))
        backing = getattr(backing, "parent", None)
    return tuple(files)


def _disk(device: Any, controller: Any) -> VmDisk:
    files = files_of(device)
    return VmDisk(
        uuid=plain_uuid(getattr(device.backing, "uuid", None)),
        path=files[0],
        base_path=files[-1],
        size=int(device.capacityInBytes or device.capacityInKB * 1024),
        controller_type=kind_of(controller),
        controller_bus=int(controller.busNumber),
        unit=int(device.unitNumber),
    )


def _snapshots(nodes: Any) -> tuple[Snapshot, ...]:
    """The tree, flattened, each before its children."""
    flat: list[Snapshot] = []
    rest = list(nodes)
    while rest:
        node = rest.pop(0)
        flat.append(Snapshot(reference=reference_of(node.snapshot), name=str(node.name)))
        rest[:0] = list(node.childSnapshotList)
    return tuple(flat)


def _enable_uuid(extra_config: Any) -> bool:
    return any(
        str(option.key).lower() == ENABLE_UUID and str(option.value).lower() in ("true", "1")
        for option in extra_config
    )


def _host(service: Service, vcenter: str, name: str) -> Any:
    for one in service.every(vim.HostSystem, ["name"]):
        if named(one) == name:
            return one.thing
    raise HostMissing(vcenter=vcenter, host=name)


def _datastore(found: Found, host: Any) -> Datastore:
    """As this host sees it; without a mount of its own, not accessible to it."""
    mount = next((m.mountInfo for m in found.values.get("host", ()) if m.key == host), None)
    reached = mount is not None and mount.accessible is not False and mount.mounted is not False
    return Datastore(
        name=str(found.values["summary.name"]),
        kind=str(found.values["summary.type"]),
        accessible=bool(found.values["summary.accessible"]) and reached,
        read_write=mount is not None and mount.accessMode == "readWrite",
        free_bytes=int(found.values.get("summary.freeSpace", 0)),
    )
