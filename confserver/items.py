"""Items, jobs and their plans as the configuration server remembers them. Pure data, with its JSON form."""

from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from confserver.ports import ReplicaDisk, ReplicaOrder, VmDisk
from confserver.states import State


class Health(Enum):
    """Replication health of an item."""

    HEALTHY = "healthy"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class ItemDisk:
    """Which disk in Azure belongs to which at home. `disk` is the VMware UUID, 32 hex digits."""

    disk: str
    azure_disk: str


@dataclass(frozen=True, slots=True)
class Item:
    """A replicated item. Names of VMs are those of the vCenter, `azure_vm` is a resource id, times are seconds UTC.

    `home` is how the VM was before the first reprotect touched it; None while nothing of it was touched.
    """

    id: str
    name: str
    vm: str
    instance_uuid: str
    masttarget: str
    azure_vm: str
    os_family: str
    disks: tuple[ItemDisk, ...]
    failed_over_at: float
    state: State = State.FAILED_OVER
    health: Health = Health.HEALTHY
    generation: int = 0
    home: "Home | None" = None
    job: str = ""
    last_point: str = ""
    last_point_at: float = 0.0

    def facts(self) -> dict[str, Any]:
        """What was told at enabling, as JSON."""
        return {
            "vm": self.vm,
            "instance_uuid": self.instance_uuid,
            "masttarget": self.masttarget,
            "azure_vm": self.azure_vm,
            "os_family": self.os_family,
            "disks": [asdict(disk) for disk in self.disks],
            "failed_over_at": self.failed_over_at,
        }


@dataclass(frozen=True, slots=True)
class Home:
    """The VM at home as it was found: its disks at their places, and whether it ran."""

    disks: tuple[VmDisk, ...]
    was_on: bool

    def as_json(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "Home":
        """The object of the JSON form."""
        return cls(tuple(VmDisk(**disk) for disk in found["disks"]), bool(found["was_on"]))


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a job of an item decides before it begins; kept with the job, never changed on the way.

    `disks` are the VM's disks at their original places (paths are those of base files), `azure_disks` their resource
    ids in the same order. `snapshot` is the name of the snapshot that a failback takes.
    """

    verb: str
    item: str
    vm: str
    masttarget: str
    azure_vm: str
    generation: int
    disks: tuple[VmDisk, ...]
    azure_disks: tuple[str, ...]
    was_on: bool
    snapshot: str
    agent_deadline: float

    @property
    def bytes_max(self) -> int:
        """The most that one pass over all disks can move (R100)."""
        return sum(disk.size for disk in self.disks)

    @property
    def azure_name(self) -> str:
        """The name of the machine in Azure, for people."""
        return self.azure_vm.rpartition("/")[2]

    def order(self) -> ReplicaOrder:
        """The plan's words for the data path."""
        disks = tuple(
            ReplicaDisk(disk.uuid, disk.base_path, disk.size, azure)
            for disk, azure in zip(self.disks, self.azure_disks, strict=True)
        )
        return ReplicaOrder(self.item, self.generation, disks)

    def as_json(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "Plan":
        """The object of the JSON form."""
        parts = dict(found)
        parts["disks"] = tuple(VmDisk(**disk) for disk in parts["disks"])
        parts["azure_disks"] = tuple(parts["azure_disks"])
        return cls(**parts)


class JobStatus(Enum):
    """Where a job stands."""

    WAITING = "waiting"
    """Recorded; its first step has not begun."""
    RUNNING = "running"
    UNDOING = "undoing"
    DONE = "done"
    FAILED = "failed"
    """Everything was undone; the item is as before."""
    STUCK = "stuck"
    """An undo failed too: needs a person; `retry` goes on with the undo."""


OVER = frozenset({JobStatus.DONE, JobStatus.FAILED})
"""A job that is one of these holds its item no more."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One run of a step (phase `do`) or of its way back (phase `undo`). Times in seconds UTC, 0 while open.

    `done` of `total` bytes are looked at, `bytes` were moved for it; `label` says what it is doing.
    """

    index: int
    name: str
    phase: str
    started: float
    ended: float = 0.0
    bytes: int = 0
    bytes_max: int = 0
    failure: str = ""
    done: int = 0
    total: int = 0
    label: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """One user operation on one item. `error` is the coded object of what ended it, `report` what it leaves to read."""

    id: str
    item: str
    verb: str
    status: JobStatus
    plan: Plan
    created: float
    started: float = 0.0
    ended: float = 0.0
    cancel_asked: bool = False
    retry_of: str = ""
    attempt: int = 1
    error: dict[str, str] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    steps: tuple[StepRecord, ...] = ()
