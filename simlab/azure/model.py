"""The estate: machines, disks and snapshots, who holds what, and what that forbids. One event loop owns it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4, uuid5

from simlab.azure import refusals
from simlab.azure.content import FOOTER_BYTES, PAGE_BYTES
from simlab.azure.errors import DiskFileUnfit
from simlab.azure.inventory import (
    BackingFormat,
    DiskEntry,
    GroupEntry,
    Inventory,
    MachineEntry,
    NetworkCard,
    Power,
    System,
)

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The time of day, in UTC."""
    return datetime.now(UTC)


class Kind(Enum):
    """What exports its content by shared access; the values are the resource types."""

    DISK = "disks"
    SNAPSHOT = "snapshots"


class Provisioning(Enum):
    """Azure's `provisioningState`."""

    SUCCEEDED = "Succeeded"
    UPDATING = "Updating"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True)
class Access:
    """A granted export: the stored access policy behind it, its end, and the URL with the signature."""

    policy: str
    expires: datetime
    url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a volume's content came from, as `creationData` tells it."""

    option: str
    source_id: str | None = None
    source_unique_id: str | None = None


@dataclass(slots=True, eq=False)
class Volume:
    """A managed disk or a snapshot of one: `size` bytes of content in `file`."""

    kind: Kind
    subscription: str
    group: str
    location: str
    name: str
    file: Path
    size: int
    origin: Origin
    created: datetime
    os: System | None = None
    generation: str = "V2"
    sku: str = "Premium_LRS"
    tags: dict[str, str] = field(default_factory=dict)
    incremental: bool = False
    unique_id: UUID = field(default_factory=uuid4)
    machine: "Machine | None" = None
    access: Access | None = None
    busy: bool = False
    provisioning: Provisioning = Provisioning.SUCCEEDED

    @property
    def id(self) -> str:
        """The resource id."""
        return resource_id(self.subscription, self.group, f"Microsoft.Compute/{self.kind.value}", self.name)

    @property
    def container(self) -> str:
        """The blob container that holds the export and nothing else, so that its access policy is this volume's own."""
        return f"md-{self.unique_id.hex}"

    def access_at(self, now: datetime) -> Access | None:
        """The export that is in force at `now`."""
        return self.access if self.access is not None and self.access.expires > now else None


@dataclass(slots=True, eq=False)
class Machine:
    """A virtual machine; `disks[0]` is its system disk, the others are data disks by their order."""

    subscription: str
    group: str
    location: str
    name: str
    size: str
    os: System
    generation: str
    power: Power
    created: datetime
    disks: list[Volume]
    networks: list[NetworkCard]
    tags: dict[str, str]
    vm_id: UUID
    busy: bool = False
    provisioning: Provisioning = Provisioning.SUCCEEDED
    power_since: datetime = field(default_factory=utc_now)

    @property
    def id(self) -> str:
        """The resource id."""
        return resource_id(self.subscription, self.group, "Microsoft.Compute/virtualMachines", self.name)


@dataclass(slots=True, eq=False)
class Group:
    """A resource group; the keys are names in lower case, as Azure compares them."""

    name: str
    location: str
    machines: dict[str, Machine] = field(default_factory=dict)
    disks: dict[str, Volume] = field(default_factory=dict)
    snapshots: dict[str, Volume] = field(default_factory=dict)

    def volumes(self, kind: Kind) -> dict[str, Volume]:
        """The group's disks or its snapshots."""
        return self.disks if kind is Kind.DISK else self.snapshots


def resource_id(subscription: str, group: str, kind: str, name: str) -> str:
    """A resource's id as the Resource Manager writes it."""
    return f"/subscriptions/{subscription}/resourceGroups/{group}/providers/{kind}/{name}"


class Estate:
    """All resources of the one subscription, with the look-ups and refusals that depend on nothing else."""

    def __init__(self, inventory: Inventory, clock: Clock = utc_now) -> None:
        self.clock: Final = clock
        self.subscription: Final = str(inventory.subscription)
        self.tenant: Final = str(inventory.tenant)
        self.groups: Final = {group.name.lower(): self._group(group) for group in inventory.groups}

    def _group(self, entry: GroupEntry) -> Group:
        group = Group(entry.name, entry.location)
        for disk in entry.disks:
            group.disks[disk.name.lower()] = self._disk(entry, disk)
        for machine in entry.machines:
            group.machines[machine.name.lower()] = self._machine(group, machine)
        return group

    def _disk(self, group: GroupEntry, entry: DiskEntry) -> Volume:
        return Volume(
            Kind.DISK,
            self.subscription,
            group.name,
            group.location,
            entry.name,
            entry.file,
            content_bytes(entry),
            Origin("Empty"),
            self.clock(),
            entry.os,
            sku=entry.sku,
            tags=dict(entry.tags),
            unique_id=self._identity(group.name, "disks", entry.name),
        )

    def _machine(self, group: Group, entry: MachineEntry) -> Machine:
        disks = [group.disks[name.lower()] for name in entry.disks]
        machine = Machine(
            self.subscription,
            group.name,
            group.location,
            entry.name,
            entry.size,
            entry.os,
            entry.generation,
            entry.power,
            self.clock(),
            disks,
            list(entry.networks),
            dict(entry.tags),
            self._identity(group.name, "virtualMachines", entry.name),
            power_since=self.clock(),
        )
        for disk in disks:
            disk.machine = machine
            disk.generation = entry.generation
        disks[0].os = entry.os
        return machine

    def _identity(self, group: str, kind: str, name: str) -> UUID:
        # The same inventory gives the same identities, so that a test may start the stand-in anew.
        return uuid5(UUID(self.subscription), f"{group}/{kind}/{name}".lower())

    def group(self, subscription: str, name: str) -> Group:
        """The group of that name. Refuses: 404."""
        self.check_subscription(subscription)
        group = self.groups.get(name.lower())
        if group is None:
            raise refusals.no_group(name)
        return group

    def check_subscription(self, subscription: str) -> None:
        """The subscription is the one there is. Refuses: 404."""
        if subscription.lower() != self.subscription.lower():
            raise refusals.no_subscription(subscription)

    def machine(self, subscription: str, group: str, name: str) -> Machine:
        """The machine of that name. Refuses: 404."""
        machine = self.group(subscription, group).machines.get(name.lower())
        if machine is None:
            raise refusals.no_resource("Microsoft.Compute/virtualMachines", name, group)
        return machine

    def volume(self, kind: Kind, subscription: str, group: str, name: str) -> Volume:
        """The disk or snapshot of that name. Refuses: 404."""
        volume = self.group(subscription, group).volumes(kind).get(name.lower())
        if volume is None:
            raise refusals.no_resource(f"Microsoft.Compute/{kind.value}", name, group)
        return volume

    def volume_by_id(self, identity: str) -> Volume:
        """The disk or snapshot that a resource id names. Refuses: 400, 404."""
        parts = identity.strip("/").split("/")
        kinds = {f"microsoft.compute/{kind.value}": kind for kind in Kind}
        kind = kinds.get("/".join(parts[5:7]).lower())
        if len(parts) != 8 or kind is None:
            raise refusals.bad_parameter(
                "sourceResourceId", f"'{identity}' names neither a disk nor a snapshot"
            )
        return self.volume(kind, parts[1], parts[3], parts[7])

    def volumes(self) -> Iterable[Volume]:
        """Every disk and every snapshot."""
        for group in self.groups.values():
            yield from group.disks.values()
            yield from group.snapshots.values()

    def disk_state(self, volume: Volume) -> str:
        """Azure's `diskState`."""
        if volume.access_at(self.clock()) is not None:
            return "ActiveSAS"
        if volume.machine is None:
            return "Unattached"
        return "Reserved" if volume.machine.power is Power.DEALLOCATED else "Attached"

    def check_exportable(self, volume: Volume) -> None:
        """An export may be granted now. Refuses: 409 while an operation, or a machine not deallocated, holds it."""
        if volume.machine is not None and volume.machine.power is not Power.DEALLOCATED:
            raise refusals.attached_to_running(volume.name, volume.machine.id)
        if volume.busy:
            raise refusals.concurrent()

    def check_startable(self, machine: Machine) -> None:
        """The machine may start now. Refuses: 409 while an operation or an export holds it or one of its disks."""
        if machine.busy or any(disk.busy for disk in machine.disks):
            raise refusals.concurrent()
        for disk in machine.disks:
            if disk.access_at(self.clock()) is not None:
                raise refusals.shared_access(disk.name)

    def check_deletable(self, volume: Volume) -> None:
        """The volume may go. Refuses: 409 while a machine, an export or an operation holds it."""
        if volume.machine is not None:
            raise refusals.attached(volume.name, volume.machine.id)
        if volume.access_at(self.clock()) is not None:
            raise refusals.shared_access(volume.name)
        if volume.busy:
            raise refusals.concurrent()


def content_bytes(entry: DiskEntry) -> int:
    """Bytes of the disk that the entry's file holds. Errors: HW-SIMLAB-102."""
    try:
        size = entry.file.stat().st_size
        entry.file.open("rb").close()
    except OSError as error:
        raise DiskFileUnfit(
            path=str(entry.file), disk=entry.name, reason=error.strerror or type(error).__name__
        ) from error
    if entry.format is BackingFormat.VHD_FIXED:
        size -= FOOTER_BYTES
    if size <= 0 or size % PAGE_BYTES:
        raise DiskFileUnfit(path=str(entry.file), disk=entry.name, reason=f"{size} bytes of content")
    return size
