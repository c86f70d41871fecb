"""What the configuration server needs from the two fabrics. Adapters answer in these words and raise coded errors only.

Every changing verb is idempotent: asked for what is already so, it does nothing and succeeds. So a step that was killed
half-way can simply be run again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from drcore.secret import Secret


class Power(Enum):
    """Whether a machine runs."""

    ON = "on"
    OFF = "off"
    SUSPENDED = "suspended"
    CHANGING = "changing"


@dataclass(frozen=True, slots=True)
class VmDisk:
    """A virtual disk as it hangs on a VM. `path` is vSphere's `[datastore] folder/name.vmdk`; of a chain, the top.

    `base_path` is the bottom of the chain (the same where there is no snapshot); `uuid` 32 lower-case hex digits.
    """

    uuid: str
    path: str
    base_path: str
    size: int
    controller_type: str
    controller_bus: int
    unit: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One snapshot of a VM; `reference` names it for the adapter."""

    reference: str
    name: str


@dataclass(frozen=True, slots=True)
class Vm:
    """A VM of the vCenter. `reference` names it for the adapter and stays the same while it is registered."""

    reference: str
    name: str
    instance_uuid: str
    power: Power
    host: str
    memory_bytes: int
    tools_running: bool
    enable_uuid: bool
    controllers: tuple[str, ...]
    """Types of its SCSI controllers: `VirtualLsiLogicController`, `ParaVirtualSCSIController`, …"""
    disks: tuple[VmDisk, ...]
    snapshots: tuple[Snapshot, ...]
    consolidation_needed: bool


@dataclass(frozen=True, slots=True)
class Datastore:
    """A datastore as one host sees it. `kind` is vSphere's summary type: VMFS, vsan, NFS, NFS41, …"""

    name: str
    kind: str
    accessible: bool
    read_write: bool
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Vcenter:
    """The vCenter behind the connection."""

    name: str
    version: str
    instance_uuid: str


class VSphere(Protocol):
    """One vCenter. Errors: `VcenterUnreachable`, `VcenterRefused`, `VmMissing`, … (HW-CONF codes), all coded."""

    def vcenter(self) -> Vcenter:
        """The vCenter answers (R077)."""
        ...

    def vm(self, name: str) -> Vm:
        """The VM of this name. Errors: `VmMissing`."""
        ...

    def vms_on(self, host: str) -> tuple[str, ...]:
        """The names of the VMs on a host (R202)."""
        ...

    def datastores(self, host: str) -> tuple[Datastore, ...]:
        """The datastores that the host sees and this account may browse; empty for a read-only account (R079)."""
        ...

    def missing_privileges(self, vm: str, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the wanted privileges that this account lacks on the VM."""
        ...

    def power_off(self, vm: str) -> None:
        """The VM is off."""
        ...

    def power_on(self, vm: str) -> None:
        """The VM runs. Errors: 8038 when its host has too little memory."""
        ...

    def merge_snapshots(self, vm: str) -> None:
        """The VM has no snapshot and needs no consolidation (R052)."""
        ...

    def detach_disk(self, vm: str, uuid: str) -> None:
        """The disk hangs on the VM no more; its files stay."""
        ...

    def attach_disk(self, vm: str, disk: VmDisk, keep_place: bool) -> None:
        """The disk's base file hangs on the VM: with `keep_place` at its controller and unit, else where room is."""
        ...

    def create_snapshot(self, vm: str, name: str) -> None:
        """The VM has a snapshot of this name, without memory."""
        ...

    def remove_snapshot(self, vm: str, name: str) -> None:
        """The VM has no snapshot of this name; its changes were merged."""
        ...

    def revert_and_drop_snapshot(self, vm: str, name: str) -> None:
        """The VM's disks are as when the snapshot was taken, and it is gone. The VM is off."""
        ...

    def close(self) -> None:
        """The session at the vCenter has ended."""
        ...


@dataclass(frozen=True, slots=True)
class AzureDisk:
    """A managed disk of a machine in Azure; the OS disk has no LUN."""

    resource_id: str
    name: str
    lun: int | None
    size: int
    state: str
    """Azure's diskState: Attached, Reserved, ActiveSAS, Unattached, …"""


@dataclass(frozen=True, slots=True)
class AzureVm:
    """A machine in Azure."""

    resource_id: str
    name: str
    location: str
    power: Power
    deallocated: bool
    provisioning: str
    agent_ready: bool
    disks: tuple[AzureDisk, ...]


class Azure(Protocol):
    """One subscription. Errors: `AzureUnreachable`, `AzureRefused`, `AzureVmMissing`, … (HW-CONF codes), all coded."""

    def vm(self, resource_id: str) -> AzureVm:
        """The machine as it is now. Errors: `AzureVmMissing`."""
        ...

    def deallocate(self, resource_id: str) -> None:
        """The machine is stopped and deallocated; nothing writes to its disks any more."""
        ...

    def start(self, resource_id: str) -> None:
        """The machine runs."""
        ...

    def grant_access(self, disk_id: str, seconds: int) -> Secret:
        """A URL with which the disk can be read as a page blob (a fixed VHD) for so long."""
        ...

    def revoke_access(self, disk_id: str) -> None:
        """No URL to the disk is good any more."""
        ...


@dataclass(frozen=True, slots=True)
class ReplicaDisk:
    """A disk of an item on its way home. `disk` is its identity everywhere, the VMware UUID as 32 hex digits.

    `path` is the target as vSphere names it where it hangs on the master target; `azure_disk` a resource id.
    """

    disk: str
    path: str
    size: int
    azure_disk: str


@dataclass(frozen=True, slots=True)
class ReplicaOrder:
    """What the replication of one item is about. `generation` fences off whoever has an older one."""

    item: str
    generation: int
    disks: tuple[ReplicaDisk, ...]


@dataclass(frozen=True, slots=True)
class CycleReport:
    """A cycle that ended with a published point. All counts are bytes; `content_bytes` is what had changed."""

    point: str
    content_bytes: int
    bytes_sent: int
    seconds: float
    roots: tuple[str, ...]
    """The root of each disk, hex, in the order of the disks."""


@dataclass(frozen=True, slots=True)
class DiskProof:
    """Both sides' content roots of one disk, hex: read again from Azure and from the medium at home."""

    disk: str
    size: int
    source_content_root: str
    target_content_root: str


Stopped = Callable[[], bool]
"""Whether the operator wants the work to end; asked at least every second."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where work stands: bytes `moved` so far over the line, or read; `done` of `total` bytes; what is being done."""

    moved: int
    done: int
    total: int
    label: str


Moved = Callable[[Standing], None]
"""Told now and then where the work stands."""


class Replication(Protocol):
    """The data path of an item, agent to master target. Errors: HW-CONF-007 when stopped, 010 to 018, coded."""

    def generation(self, order: ReplicaOrder) -> int:
        """The newest generation that is durable at the master target for any of the disks; 0 where none is.

        Touches nothing. It may be newer than the configuration server's own, whose database was restored.
        """
        ...

    def start(self, order: ReplicaOrder) -> None:
        """The master target has taken the disks: each is there, with the UUID and size of the order (adoption).

        The order's generation is durable there, as by `fence`.
        """
        ...

    def cycle(self, order: ReplicaOrder, stopped: Stopped, moved: Moved) -> CycleReport:
        """The disks at home hold what the running machine's disks held; a point is published."""
        ...

    def final_cycle(
        self, order: ReplicaOrder, urls: tuple[Secret, ...], stopped: Stopped, moved: Moved
    ) -> CycleReport:
        """The disks at home hold what the page blobs behind the URLs (one for each disk) hold."""
        ...

    def proof(
        self, order: ReplicaOrder, urls: tuple[Secret, ...], stopped: Stopped, moved: Moved
    ) -> tuple[DiskProof, ...]:
        """Both sides' content roots; each role has read its own medium again in full. It judges nothing."""
        ...

    def stop(self, order: ReplicaOrder) -> None:
        """The master target holds none of the disks any more, and no URL or copy of theirs is left here."""
        ...

    def fence(self, order: ReplicaOrder) -> None:
        """The order's generation is durable at the master target, which has the disks: older peers are refused."""
        ...

    def forget(self, order: ReplicaOrder) -> None:
        """The item's points are gone (R143); the disks stay."""
        ...


class Network(Protocol):
    """Whether a TCP port answers."""

    def reach(self, host: str, port: int) -> str:
        """Why nothing answers there; empty when something does."""
        ...
