"""The inventory file: which subscription, groups, machines and disks the stand-in shows."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from simlab.azure.errors import InventoryUnreadable

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$")]
Seconds = Annotated[float, Field(ge=0, le=3600)]


class Power(Enum):
    """A machine's power state; the values are the ends of Azure's `PowerState/…` codes."""

    RUNNING = "running"
    STOPPED = "stopped"
    DEALLOCATED = "deallocated"
    STARTING = "starting"
    STOPPING = "stopping"
    DEALLOCATING = "deallocating"


class BackingFormat(Enum):
    """How a disk's content lies in its local file."""

    RAW = "raw"
    VHD_FIXED = "vhd-fixed"


class System(Enum):
    """The guest's operating system, in Azure's words."""

    LINUX = "Linux"
    WINDOWS = "Windows"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkCard(_Part):
    """A network interface with its private address."""

    name: Name
    address: str = "10.0.0.4"


class DiskEntry(_Part):
    """A managed disk and the local file that holds its content; a relative path starts at the inventory."""

    name: Name
    file: Path
    format: BackingFormat = BackingFormat.RAW
    os: System | None = None
    sku: str = "Premium_LRS"
    tags: dict[str, str] = {}


class MachineEntry(_Part):
    """A virtual machine; its first disk is the system disk, the others are data disks by their order."""

    name: Name
    size: str = "Standard_D2s_v5"
    os: System = System.LINUX
    power: Power = Power.RUNNING
    generation: Annotated[str, Field(pattern="^V[12]$")] = "V2"
    disks: Annotated[list[Name], Field(min_length=1, max_length=65)]
    networks: list[NetworkCard] = []
    tags: dict[str, str] = {}


class GroupEntry(_Part):
    """A resource group with all that is in it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_().-]{0,89}[A-Za-z0-9_()-]$")]
    location: str = "westeurope"
    machines: list[MachineEntry] = []
    disks: list[DiskEntry] = []

    @model_validator(mode="after")
    def _disks_exist_once(self) -> Self:
        names = [disk.name.lower() for disk in self.disks]
        machines = [machine.name.lower() for machine in self.machines]
        used = [name.lower() for machine in self.machines for name in machine.disks]
        for found in (names, machines, used):
            twice = {name for name in found if found.count(name) > 1}
            if twice:
                raise ValueError(f"group {self.name} names {', '.join(sorted(twice))} twice")
        missing = set(used) - set(names)
        if missing:
            raise ValueError(f"group {self.name} has no disk {', '.join(sorted(missing))}")
        return self


class Durations(_Part):
    """How long an operation stays under way, in seconds of real time, beyond the work it really does."""

    start: Seconds = 0.2
    deallocate: Seconds = 0.2
    power_off: Seconds = 0.2
    access: Seconds = 0.0
    write: Seconds = 0.0


class Inventory(_Part):
    """All that the stand-in begins with."""

    subscription: UUID
    tenant: UUID = UUID(int=0)
    groups: Annotated[list[GroupEntry], Field(min_length=1)]
    seconds: Durations = Durations()
    retry_after_seconds: Annotated[int, Field(ge=0, le=3600)] = 1
    """Whole seconds, as HTTP wants them; at 0 a client polls at its own interval."""
    page_size: Annotated[int, Field(ge=1, le=1000)] = 50

    @model_validator(mode="after")
    def _groups_once(self) -> Self:
        names = [group.name.lower() for group in self.groups]
        if len(names) != len(set(names)):
            raise ValueError("a group is named twice")
        return self


def read_inventory(path: Path) -> Inventory:
    """The file's inventory, checked, with every disk's file as an absolute path. Errors: HW-SIMLAB-101."""
    try:
        inventory = Inventory.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InventoryUnreadable(path=str(path), reason=error.strerror or type(error).__name__) from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise InventoryUnreadable(path=str(path), reason=f"{place}: {first['msg']}") from error
    base = path.resolve().parent
    groups = [
        group.model_copy(
            update={"disks": [disk.model_copy(update={"file": base / disk.file}) for disk in group.disks]}
        )
        for group in inventory.groups
    ]
    return inventory.model_copy(update={"groups": groups})
