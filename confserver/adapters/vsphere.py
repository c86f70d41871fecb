"""The port to a vCenter, through pyvmomi."""

from pyVmomi import vim

from confserver.adapters import vsphere_disks, vsphere_verbs
from confserver.adapters.vsphere_reading import datastores_on, lacking, look, look_at, names_on
from confserver.adapters.vsphere_session import Service, Session
from confserver.adapters.vsphere_trust import VsphereSettings
from confserver.ports import Datastore, Vcenter, Vm, VmDisk
from drcore.clock import Clock, SystemClock

__all__ = ["PyvmomiVSphere", "VsphereSettings"]


class PyvmomiVSphere:
    """One vCenter, as `confserver.ports.VSphere` describes it.

    It connects and logs in with the first call, and again after `close` or when the session expired. Threads may
    share it. Errors of all calls: HW-CONF-101 to -107 about vCenter and the account, -112 and -113 while the VM is
    busy, -126 to -130, and those that a verb names.
    """

    def __init__(self, settings: VsphereSettings, clock: Clock | None = None) -> None:
        self._session = Session(settings, clock or SystemClock())

    def vcenter(self) -> Vcenter:
        """vCenter answers in a live session (R077)."""

        def ask(service: Service) -> Vcenter:
            service.bound(vim.ServiceInstance, "ServiceInstance").CurrentTime()  # needs the session
            about = service.content.about
            return Vcenter(
                name=str(about.name), version=str(about.version), instance_uuid=str(about.instanceUuid)
            )

        return self._session.call(self._session.about("ask", "vCenter"), ask)

    def vm(self, name: str) -> Vm:
        """The VM of this name. Errors: HW-CONF-108 to -110."""
        return look_at(self._session, "read", name).vm

    def vms_on(self, host: str) -> tuple[str, ...]:
        """The names of the VMs on a host, in order (R202). Errors: HW-CONF-111."""
        about = self._session.about("read", f"host {host}")
        return self._session.call(about, lambda service: names_on(service, about.vcenter, host))

    def datastores(self, host: str) -> tuple[Datastore, ...]:
        """The datastores of the host that this account may browse (R079). Errors: HW-CONF-111."""
        about = self._session.about("read the datastores of", f"host {host}")
        return self._session.call(about, lambda service: datastores_on(service, about.vcenter, host))

    def missing_privileges(self, vm: str, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the wanted privileges that this account lacks on the VM, in their order."""
        about = self._session.about("read the privileges on", f"VM {vm}")

        def ask(service: Service) -> tuple[str, ...]:
            reference = look(service, about.vcenter, vm).vm.reference
            thing = service.bound(vim.VirtualMachine, reference)
            missing = lacking(service, [thing], wanted)[reference]
            return tuple(privilege for privilege in wanted if privilege in missing)

        return self._session.call(about, ask)

    def power_off(self, vm: str) -> None:
        """The VM is off."""
        vsphere_verbs.power_off(self._session, vm)

    def power_on(self, vm: str) -> None:
        """The VM runs. Errors: 8038."""
        vsphere_verbs.power_on(self._session, vm)

    def merge_snapshots(self, vm: str) -> None:
        """The VM has no snapshot and needs no consolidation (R052)."""
        vsphere_verbs.merge_snapshots(self._session, vm)

    def detach_disk(self, vm: str, uuid: str) -> None:
        """The disk hangs on the VM no more; its files stay. Errors: HW-CONF-117, HW-CONF-120."""
        vsphere_disks.detach_disk(self._session, vm, uuid)

    def attach_disk(self, vm: str, disk: VmDisk, keep_place: bool) -> None:
        """The disk's base file hangs on the VM. Errors: HW-CONF-116, -118, -119, -121, -131."""
        vsphere_disks.attach_disk(self._session, vm, disk, keep_place=keep_place)

    def create_snapshot(self, vm: str, name: str) -> None:
        """The VM has a snapshot of this name, without memory."""
        vsphere_verbs.create_snapshot(self._session, vm, name)

    def remove_snapshot(self, vm: str, name: str) -> None:
        """The VM has no snapshot of this name; its changes were merged."""
        vsphere_verbs.remove_snapshot(self._session, vm, name)

    def revert_and_drop_snapshot(self, vm: str, name: str) -> None:
        """The VM's disks are as when the snapshot was taken, and it is gone. The VM is off.

        Errors: HW-CONF-122, HW-CONF-123.
        """
        vsphere_verbs.revert_and_drop_snapshot(self._session, vm, name)

    def close(self) -> None:
        """The session at the vCenter has ended."""
        self._session.close()
