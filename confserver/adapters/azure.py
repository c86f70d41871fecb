"""Azure as the configuration server needs it: machines, their disks, power, and read access to stopped disks."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from confserver.adapters.azure_settings import AzureSettings
from confserver.errors_azure import (
    AzureAnswerStrange,
    AzureDiskExported,
    AzureDiskInUse,
    AzureDiskMissing,
    AzureDiskUnmanaged,
    AzureIdWrong,
    AzurePackageMissing,
    AzureRefused,
    AzureStateUnexpected,
    AzureVmMissing,
)
from confserver.ports import AzureDisk, AzureVm, Power
from drcore.clock import Clock, SystemClock
from drcore.errors import HomewardError
from drcore.secret import Secret

if TYPE_CHECKING:
    from confserver.adapters.azure_arm import Call, Deadline, Document

__all__ = ["AzureSettings", "ResourceManagerAzure"]

MACHINE_VERSION: Final = "2024-07-01"
DISK_VERSION: Final = "2024-03-02"
NAME: Final = r"[\w.()-]{1,90}"
RESOURCE: Final = re.compile(
    rf"/subscriptions/(?P<subscription>[0-9a-f-]{{36}})/resourceGroups/(?P<group>{NAME})"
    rf"/providers/Microsoft\.Compute/(?P<kind>\w+)/(?P<name>{NAME})/?",
    re.IGNORECASE,
)
MACHINES: Final = ("virtualMachines",)
EXPORTABLE: Final = ("disks", "snapshots")
POWERS: Final = {"running": Power.ON, "stopped": Power.OFF, "deallocated": Power.OFF}
"""The end of Azure's PowerState code; whatever else stands there is on its way."""
SETTLE_LOOKS: Final = 6
"""The instance view may lag behind an operation that has ended; so often it is looked at, a poll apart."""


@dataclass(frozen=True, slots=True)
class Place:
    """A resource: its id, its path in a URL, its name."""

    resource_id: str
    path: str
    name: str


class ResourceManagerAzure:
    """One subscription, by the Azure Resource Manager; satisfies `confserver.ports.Azure`.

    Every verb may be called from any thread, blocks at most `operation_seconds_max`, and raises HW-CONF-150 to 169.
    """

    def __init__(self, settings: AzureSettings, clock: Clock | None = None) -> None:
        """Nothing is sent yet. Errors: AzurePackageMissing."""
        self._settings: Final = settings
        self._clock: Final = clock or SystemClock()
        try:
            from confserver.adapters.azure_arm import Call, ResourceManager
        except ImportError as error:
            raise AzurePackageMissing(package="azure-mgmt-core requests") from error
        self._call_type: Final = Call
        self._arm: Final = ResourceManager(settings, self._clock)

    def vm(self, resource_id: str) -> AzureVm:
        """The machine as it is now, its disks in the order of their LUNs behind the system disk.

        Errors: AzureVmMissing, AzureDiskMissing, AzureDiskUnmanaged.
        """
        place = self._place(resource_id, MACHINES, "a virtual machine")
        deadline = self._arm.deadline()
        return self._machine(place, deadline)

    def deallocate(self, resource_id: str) -> None:
        """The machine is stopped and deallocated, which was looked at afterwards; nothing writes to its disks any more.

        Errors: AzureStateUnexpected when somebody starts it meanwhile, AzureOperationFailed, AzureBusy, ….
        """
        place = self._place(resource_id, MACHINES, "a virtual machine")
        deadline = self._arm.deadline()
        if self._power(place, deadline) == (Power.OFF, True):
            return
        call = self._vm_call("the deallocation of", place)
        self._arm.run(call, f"{place.path}/deallocate", MACHINE_VERSION, deadline)
        self._settle(call, place, (Power.OFF, True), deadline)

    def start(self, resource_id: str) -> None:
        """The machine runs. Errors: AzureDiskExported while one of its disks can be read by a signed URL."""
        place = self._place(resource_id, MACHINES, "a virtual machine")
        deadline = self._arm.deadline()
        if self._power(place, deadline) == (Power.ON, False):
            return

        def explain() -> HomewardError | None:
            machine = self._machine(place, deadline)
            disks = [disk.name for disk in machine.disks if _is_exported(disk)]
            return AzureDiskExported(vm=place.resource_id, disks=", ".join(disks)) if disks else None

        call = self._call_type(f"the start of {place.resource_id}", _vm_missing(place), explain)
        self._arm.run(call, f"{place.path}/start", MACHINE_VERSION, deadline)
        self._settle(call, place, (Power.ON, False), deadline)

    def grant_access(self, disk_id: str, seconds: int) -> Secret:
        """A URL with which the disk (or snapshot) is readable for so long; an older one is good no more.

        Granted already, the access is revoked and granted anew: Azure would answer the old URL with what is left of
        its time, and a URL that a killed step has lost would stay good. Errors: AzureDiskInUse, AzureDiskMissing.
        """
        place = self._place(disk_id, EXPORTABLE, "a disk or snapshot")
        deadline = self._arm.deadline()
        if _is_exported(self._disk(place, None, deadline)):
            self._revoke(place, deadline)

        def explain() -> HomewardError | None:
            state = self._disk(place, None, deadline).state
            return AzureDiskInUse(disk=place.resource_id, state=state) if state == "Attached" else None

        call = self._call_type(f"read access to {place.resource_id}", _disk_missing(place), explain)
        body: Document = {"access": "Read", "durationInSeconds": seconds}
        document = self._arm.run(call, f"{place.path}/beginGetAccess", DISK_VERSION, deadline, body) or {}
        with _understood(call):
            # Older versions of the interface wrap the result in the operation's own document.
            found = document.get("accessSAS") or document["properties"]["output"]["accessSAS"]
            if not isinstance(found, str) or not found.startswith("https://"):
                raise ValueError("accessSAS is no https URL")
        return Secret(found.encode())

    def revoke_access(self, disk_id: str) -> None:
        """No URL to the disk is good any more, which was looked at afterwards. Errors: AzureDiskMissing, ….

        Azure is asked even when no access shows, because a grant that is still under way shows none yet.
        """
        self._revoke(self._place(disk_id, EXPORTABLE, "a disk or snapshot"), self._arm.deadline())

    def close(self) -> None:
        """The connections are gone."""
        self._arm.close()

    def _revoke(self, place: Place, deadline: "Deadline") -> None:
        call = self._disk_call("the end of access to", place)
        refused: HomewardError | None = None
        try:
            self._arm.run(call, f"{place.path}/endGetAccess", DISK_VERSION, deadline)
        except AzureRefused as error:
            refused = error
        disk = self._disk(place, None, deadline)
        if _is_exported(disk):
            raise refused or AzureStateUnexpected(
                resource_id=place.resource_id, call=call.words, seen=disk.state, wanted="no access granted"
            )

    def _settle(self, call: "Call", place: Place, wanted: tuple[Power, bool], deadline: "Deadline") -> None:
        """The machine is seen in the wanted state; raises AzureStateUnexpected when it is not in the end."""
        for look in range(SETTLE_LOOKS):
            found = self._power(place, deadline)
            if found == wanted:
                return
            if look + 1 == SETTLE_LOOKS or not deadline.pause(self._settings.poll_seconds):
                break
        raise AzureStateUnexpected(
            resource_id=place.resource_id,
            call=call.words,
            seen=_state_words(found),
            wanted=_state_words(wanted),
        )

    def _power(self, place: Place, deadline: "Deadline") -> tuple[Power, bool]:
        call = self._vm_call("the state of", place)
        document = self._view(call, place, deadline)
        with _understood(call):
            return _power_of(document["properties"])

    def _machine(self, place: Place, deadline: "Deadline") -> AzureVm:
        call = self._vm_call("the state of", place)
        document = self._view(call, place, deadline)
        with _understood(call):
            properties = document["properties"]
            power, deallocated = _power_of(properties)
            profile = properties["storageProfile"]
            attached: list[tuple[int | None, Document]] = [(None, profile["osDisk"])]
            attached += [(int(disk["lun"]), disk) for disk in profile.get("dataDisks") or []]
            attached.sort(key=lambda found: -1 if found[0] is None else found[0])
            disks = tuple(self._attached(place, lun, disk, deadline) for lun, disk in attached)
            return AzureVm(
                resource_id=str(document["id"]),
                name=str(document["name"]),
                location=str(document["location"]),
                power=power,
                deallocated=deallocated,
                provisioning=str(properties["provisioningState"]),
                agent_ready=_agent_ready(properties),
                disks=disks,
            )

    def _view(self, call: "Call", place: Place, deadline: "Deadline") -> "Document":
        query = {"api-version": MACHINE_VERSION, "$expand": "instanceView"}
        return self._arm.get(call, place.path, query, deadline)

    def _attached(self, vm: Place, lun: int | None, disk: "Document", deadline: "Deadline") -> AzureDisk:
        managed = disk.get("managedDisk") or {}
        if "id" not in managed:
            raise AzureDiskUnmanaged(vm=vm.resource_id, disk=str(disk.get("name", "a disk without a name")))
        return self._disk(self._place(managed["id"], EXPORTABLE, "a disk"), lun, deadline)

    def _disk(self, place: Place, lun: int | None, deadline: "Deadline") -> AzureDisk:
        # Size and state come from the disk: of a deallocated machine's disks the machine's document tells neither.
        call = self._disk_call("the state of", place)
        document = self._arm.get(call, place.path, {"api-version": DISK_VERSION}, deadline)
        with _understood(call):
            properties = document["properties"]
            return AzureDisk(
                resource_id=str(document["id"]),
                name=str(document["name"]),
                lun=lun,
                size=int(properties["diskSizeBytes"]),
                state=str(properties["diskState"]),
            )

    def _vm_call(self, words: str, place: Place) -> "Call":
        return self._call_type(f"{words} {place.resource_id}", _vm_missing(place))

    def _disk_call(self, words: str, place: Place) -> "Call":
        return self._call_type(f"{words} {place.resource_id}", _disk_missing(place))

    def _place(self, resource_id: str, kinds: tuple[str, ...], what: str) -> Place:
        """The parts of a resource id of this subscription; raises AzureIdWrong."""
        found = RESOURCE.fullmatch(resource_id)
        seen = ""
        if found is None or any(not found[part].strip(".") for part in ("group", "name")):
            seen = "another form"
        elif found["kind"].lower() not in {kind.lower() for kind in kinds}:
            seen = f"one of {found['kind']}"
        elif found["subscription"].lower() != self._settings.subscription.lower():
            seen = f"one of subscription {found['subscription']}"
        if found is None or seen:
            raise AzureIdWrong(
                resource_id=resource_id[:300], kind=what, seen=seen, subscription=self._settings.subscription,
                pattern=" or ".join(kinds),
            )  # fmt: skip
        return Place(resource_id, quote(resource_id.rstrip("/"), safe="/()"), found["name"])


def _vm_missing(place: Place) -> Callable[[str, str], HomewardError]:
    return lambda code, message: AzureVmMissing(
        resource_id=place.resource_id, azure_code=code, message=message
    )


def _disk_missing(place: Place) -> Callable[[str, str], HomewardError]:
    return lambda code, message: AzureDiskMissing(
        resource_id=place.resource_id, azure_code=code, message=message
    )


def _power_of(properties: "Document") -> tuple[Power, bool]:
    """Power, and whether the machine is deallocated, from its instance view."""
    codes = [str(status["code"]) for status in properties["instanceView"]["statuses"]]
    ends = [code.partition("/")[2].lower() for code in codes if code.lower().startswith("powerstate/")]
    end = ends[-1] if ends else ""
    # A hibernated machine is deallocated too, but its memory waits on the disk: it is not stopped for good.
    hibernated = any(code.lower() == "hibernationstate/hibernated" for code in codes)
    return Power.SUSPENDED if hibernated else POWERS.get(end, Power.CHANGING), end == "deallocated"


def _state_words(state: tuple[Power, bool]) -> str:
    power, deallocated = state
    return f"{power.value}, {'' if deallocated else 'not '}deallocated"


def _agent_ready(properties: "Document") -> bool:
    agent = properties["instanceView"].get("vmAgent") or {}
    return any(
        str(status.get("code", "")).lower() == "provisioningstate/succeeded"
        for status in agent.get("statuses") or []
    )


def _is_exported(disk: AzureDisk) -> bool:
    # ActiveSAS, and ActiveSASFrozen of a hibernated machine's disk.
    return disk.state.startswith("ActiveSAS")


@contextmanager
def _understood(call: "Call") -> Iterator[None]:
    """What lacks in a document becomes AzureAnswerStrange."""
    seen = ""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        seen = f"no {error}" if isinstance(error, KeyError) else f"{type(error).__name__} in a property"
    if seen:
        raise AzureAnswerStrange(call=call.words, seen=seen, wanted="the properties that Azure documents")
