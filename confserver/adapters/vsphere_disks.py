"""Disks taken from a VM and hung on one: by UUID off, by file on, and where on which controller."""

from dataclasses import dataclass
from typing import Any, Final

from pyVmomi import vim

from confserver.adapters.vsphere_faults import kind_of
from confserver.adapters.vsphere_reading import Look, holder_of, plain_uuid
from confserver.adapters.vsphere_session import Service, Session
from confserver.adapters.vsphere_verbs import reach, settled
from confserver.errors_fabric import (
    DiskAmbiguous,
    DiskInUse,
    DiskIsAnother,
    DiskOnChain,
    DiskPlaceTaken,
    NoRoomForDisk,
)
from confserver.ports import VmDisk
from drcore.limits import MASTER_TARGET_DISKS_MAX, VCENTER_TASK_SECONDS_MAX

LSI_LOGIC: Final = "VirtualLsiLogicController"
SCSI_UNITS: Final = 16
SCSI_OWN_UNIT: Final = 7
"""The controller itself, as on every SCSI bus."""
SCSI_BUSES: Final = 4
SCSI_KINDS: Final = frozenset(
    {LSI_LOGIC, "VirtualLsiLogicSASController", "VirtualBusLogicController", "ParaVirtualSCSIController"}
)
OTHER_KINDS: Final = frozenset({"VirtualAHCIController", "VirtualNVMEController"})
"""Kinds besides SCSI that a VM may lose and get again; the two IDE controllers always stay."""
NEW_CONTROLLER_KEY: Final = -100
"""Negative keys name what one and the same change adds."""
NEW_DISK_KEY: Final = -200


@dataclass(frozen=True, slots=True)
class Place:
    """Where a disk goes: a controller's key and a unit, with the controller if it has to be added."""

    controller_key: int
    unit: int
    controller: Any = None


def detach_disk(session: Session, name: str, uuid: str) -> None:
    """No disk of that UUID hangs on the VM; the files stay. Errors: HW-CONF-117 it is a chain, HW-CONF-120 several."""
    wanted = plain_uuid(uuid)
    verb = "detach a disk from"

    def has_gone(now: Look) -> bool:
        return not any(disk.uuid == wanted for disk in now.vm.disks)

    now = settled(session, verb, name, VCENTER_TASK_SECONDS_MAX)
    if has_gone(now):
        return
    disks = [disk for disk in now.vm.disks if disk.uuid == wanted]
    if len(disks) > 1:
        files = ", ".join(disk.path for disk in disks)
        raise DiskAmbiguous(vm=name, uuid=wanted, count=len(disks), files=files)
    if disks[0].path != disks[0].base_path:
        raise DiskOnChain(vm=name, file=disks[0].path, base=disks[0].base_path)
    _detach(session, verb, name, now, disks[0])


def attach_disk(session: Session, name: str, disk: VmDisk, *, keep_place: bool) -> None:
    """The disk's base file hangs on the VM, as the disk of its UUID; with `keep_place` where it hung.

    Errors: HW-CONF-116 it hangs on another VM, -118 its place is taken, -119 no room, -121 the file is another disk.
    """
    verb, file = "attach a disk to", disk.base_path
    now = settled(session, verb, name, VCENTER_TASK_SECONDS_MAX)
    hanging = now.hanging(file)
    if hanging is None:
        about = session.about(verb, f"VM {name}")
        holder = session.call(about, lambda service: holder_of(service, about, now, file))
        if holder is not None:
            raise DiskInUse(file=file, vm=name, holder=holder)
        place = kept_place(now, disk) if keep_place else free_place(now)
        after = _attach(session, verb, name, now, file, place)
        new = after.hanging(file)
        assert new is not None
        if _is_another(new, disk):
            _detach(session, verb, name, after, new)
            raise DiskIsAnother(file=file, vm=name, actual=new.uuid, uuid=plain_uuid(disk.uuid))
    elif _is_another(hanging, disk):
        raise DiskIsAnother(file=file, vm=name, actual=hanging.uuid, uuid=plain_uuid(disk.uuid))
    elif keep_place and place_of(hanging) != place_of(disk):
        where = f"{hanging.controller_type} {hanging.controller_bus}, unit {hanging.unit}"
        raise _taken(now, disk, f"it hangs at {where} already")


def place_of(disk: VmDisk) -> tuple[str, int, int]:
    """Controller type, bus and unit."""
    return disk.controller_type, disk.controller_bus, disk.unit


def free_place(now: Look) -> Place:
    """The first free unit on an LSI Logic controller, on a new one where all are full. Errors: HW-CONF-119."""
    scsi = [d for d in now.devices if isinstance(d, vim.vm.device.VirtualSCSIController)]
    full = NoRoomForDisk(
        vm=now.vm.name,
        disks=len(now.vm.disks),
        controllers=len(scsi),
        disks_max=MASTER_TARGET_DISKS_MAX,
    )
    if len(now.vm.disks) >= MASTER_TARGET_DISKS_MAX:
        raise full
    for controller in sorted(scsi, key=lambda d: int(d.busNumber)):
        if kind_of(controller) != LSI_LOGIC:
            continue
        taken = {d.unitNumber for d in now.devices if d.controllerKey == controller.key} | {SCSI_OWN_UNIT}
        for unit in range(SCSI_UNITS):
            if unit not in taken:
                return Place(controller_key=controller.key, unit=unit)
    for bus in range(SCSI_BUSES):
        if bus not in {d.busNumber for d in scsi}:
            return _on_new(LSI_LOGIC, bus, 0)
    raise full


def kept_place(now: Look, disk: VmDisk) -> Place:
    """The disk's own controller and unit, the controller added if it is gone. Errors: HW-CONF-118."""
    family = SCSI_KINDS if disk.controller_type in SCSI_KINDS else frozenset({disk.controller_type})
    there = [
        device
        for device in now.devices
        if isinstance(device, vim.vm.device.VirtualController)
        and kind_of(device) in family
        and device.busNumber == disk.controller_bus
    ]
    if not there:
        if disk.controller_type not in SCSI_KINDS | OTHER_KINDS:
            raise _taken(now, disk, "no such controller, and none can be added")
        return _on_new(disk.controller_type, disk.controller_bus, disk.unit)
    controller = there[0]
    if kind_of(controller) != disk.controller_type:
        raise _taken(now, disk, f"a {kind_of(controller)} has that bus")
    for device in now.devices:
        if device.controllerKey == controller.key and device.unitNumber == disk.unit:
            label = device.deviceInfo.label if device.deviceInfo else kind_of(device)
            raise _taken(now, disk, f"{label} is there")
    return Place(controller_key=controller.key, unit=disk.unit)


def _taken(now: Look, disk: VmDisk, reason: str) -> DiskPlaceTaken:
    return DiskPlaceTaken(
        file=disk.base_path,
        vm=now.vm.name,
        controller=disk.controller_type,
        bus=disk.controller_bus,
        unit=disk.unit,
        reason=reason,
    )


def _on_new(kind: str, bus: int, unit: int) -> Place:
    controller = getattr(vim.vm.device, kind)(key=NEW_CONTROLLER_KEY, busNumber=bus)
    if kind in SCSI_KINDS:
        controller.sharedBus = vim.vm.device.VirtualSCSIController.Sharing.noSharing
    return Place(controller_key=NEW_CONTROLLER_KEY, unit=unit, controller=controller)


def _is_another(hanging: VmDisk, disk: VmDisk) -> bool:
    wanted = plain_uuid(disk.uuid)
    return bool(wanted) and hanging.uuid != wanted


def _attach(session: Session, verb: str, name: str, before: Look, file: str, place: Place) -> Look:
    backing = vim.vm.device.VirtualDisk.FlatVer2BackingInfo(fileName=file, diskMode="persistent")
    disk = vim.vm.device.VirtualDisk(
        key=NEW_DISK_KEY, controllerKey=place.controller_key, unitNumber=place.unit, backing=backing
    )
    changes = [_change("add", device) for device in (place.controller, disk) if device is not None]
    return reach(
        session,
        verb,
        name,
        done=lambda now: now.hanging(file) is not None,
        start=lambda _, vm: vm.ReconfigVM_Task(_spec(before, changes)),
        seconds=VCENTER_TASK_SECONDS_MAX,
    )


def _detach(session: Session, verb: str, name: str, before: Look, disk: VmDisk) -> None:
    """The disk hangs on the VM no more; no file operation is asked for, so the files stay."""
    device = before.device_of(disk)

    def start(_: Service, vm: Any) -> Any:
        return vm.ReconfigVM_Task(_spec(before, [_change("remove", device)]))

    reach(
        session,
        verb,
        name,
        done=lambda now: now.hanging(disk.path) is None,
        start=start,
        seconds=VCENTER_TASK_SECONDS_MAX,
    )


def _change(operation: str, device: Any) -> Any:
    return vim.vm.device.VirtualDeviceSpec(operation=operation, device=device)


def _spec(before: Look, changes: list[Any]) -> Any:
    """A change of the VM as it was looked at: vCenter refuses it when the VM has been changed since."""
    return vim.vm.ConfigSpec(changeVersion=before.change_version, deviceChange=changes)
