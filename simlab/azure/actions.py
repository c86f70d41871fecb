"""What the verbs do: power, exports, snapshots, new and removed volumes. All of it runs on the one event loop.

Each `begin_*` decides at once, holds what it touches, and leaves the rest to a long-running operation. Only the
blob service and file copies run in threads; they see a volume that nothing else may touch meanwhile.
"""

import asyncio
import logging
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from drcore.limits import GIB
from simlab.azure import refusals
from simlab.azure.blobs import PageBlobs
from simlab.azure.content import copy_sparsely
from simlab.azure.inventory import Durations, Power, System
from simlab.azure.model import Access, Estate, Group, Kind, Machine, Origin, Provisioning, Volume
from simlab.azure.operations import Area, Operation, Operations
from simlab.azure.refusals import Refused
from simlab.azure.shapes import volume_document

log = logging.getLogger(__name__)

EXPORT_SECONDS_MAX: Final = 60 * 86400
"""Azure limits an export to 60 days (Microsoft Learn, `Download a Windows VHD from Azure`, since 2025-02-15)."""
DISK_GIB_MAX: Final = 32767


@dataclass(frozen=True, slots=True)
class PowerStep:
    """How a power verb goes: through which state, to which, and from which there is nothing to do."""

    name: str
    through: Power
    to: Power


START: Final = PowerStep("virtualMachines/start", Power.STARTING, Power.RUNNING)
POWER_OFF: Final = PowerStep("virtualMachines/powerOff", Power.STOPPING, Power.STOPPED)
DEALLOCATE: Final = PowerStep("virtualMachines/deallocate", Power.DEALLOCATING, Power.DEALLOCATED)


@dataclass(frozen=True, slots=True)
class PowerEvent:
    """A machine's power state changed; `by` is the verb, or `operator` for the control port."""

    sequence: int
    time: str
    machine: str
    power: str
    by: str


class Actions:
    """The verbs, over one estate."""

    def __init__(
        self,
        estate: Estate,
        operations: Operations,
        blobs: PageBlobs,
        durations: Durations,
        base: str,
        files: Path,
    ) -> None:
        """`base` is the address under which clients reach exports; `files` takes the content of new volumes."""
        self.estate: Final = estate
        self.operations: Final = operations
        self.power_events: Final[list[PowerEvent]] = []
        self._blobs: Final = blobs
        self._durations: Final = durations
        self._base: Final = base
        self._files: Final = files
        files.mkdir(exist_ok=True)

    # Power

    def set_power(self, machine: Machine, power: Power, by: str) -> None:
        """The machine is in that power state, and an event tells it."""
        machine.power = power
        machine.power_since = self.estate.clock()
        self.power_events.append(
            PowerEvent(
                len(self.power_events) + 1, machine.power_since.isoformat(), machine.name, power.value, by
            )
        )

    def begin_power(self, machine: Machine, step: PowerStep, doom: Refused | None) -> Operation:
        """The machine is on its way to the step's state. Refuses: 409."""
        if machine.busy:
            raise refusals.concurrent()
        if step is START:
            self.estate.check_startable(machine)
        seconds = self._seconds(step)
        before = machine.power
        # What is deallocated holds no hardware that could be powered off.
        idle = before is step.to or (step is POWER_OFF and before is Power.DEALLOCATED)
        machine.busy = True
        if not idle:
            machine.provisioning = Provisioning.UPDATING
            self.set_power(machine, step.through, step.name)

        async def work(operation: Operation) -> None:
            try:
                await operation.pass_time(0 if idle else seconds)
            except Refused:
                machine.provisioning = Provisioning.FAILED
                if not idle:
                    self.set_power(machine, before, step.name)
                raise
            finally:
                machine.busy = False
            machine.provisioning = Provisioning.SUCCEEDED
            if not idle:
                self.set_power(machine, step.to, step.name)

        return self.operations.begin(step.name, Area.COMPUTE, machine.location, work, doom)

    def _seconds(self, step: PowerStep) -> float:
        if step is START:
            return self._durations.start
        return self._durations.deallocate if step is DEALLOCATE else self._durations.power_off

    # Exports

    def begin_access(self, volume: Volume, body: dict[str, Any], doom: Refused | None) -> Operation:
        """The volume's content of now is on its way into its blob, to be read by a signed URL. Refuses: 400, 409.

        Where an export is in force already, the operation answers its URL again.
        """
        duration = body.get("durationInSeconds")
        if body.get("access") != "Read":
            raise refusals.bad_parameter("access", "the stand-in grants Read only")
        if (
            not isinstance(duration, int)
            or isinstance(duration, bool)
            or not 0 < duration <= EXPORT_SECONDS_MAX
        ):
            raise refusals.bad_parameter("durationInSeconds", f"expected 1 to {EXPORT_SECONDS_MAX}")
        self.estate.check_exportable(volume)
        volume.busy = True

        async def work(operation: Operation) -> dict[str, Any]:
            try:
                await operation.pass_time(self._durations.access)
                access = volume.access_at(self.estate.clock())
                if access is None:
                    access = await self._export(volume, duration)
                    volume.access = access
                return {"accessSAS": access.url}
            finally:
                volume.busy = False

        return self.operations.begin(
            f"{volume.kind.value}/beginGetAccess", Area.DISK, volume.location, work, doom
        )

    async def _export(self, volume: Volume, duration: int) -> Access:
        published = await asyncio.to_thread(self._blobs.publish, volume)
        log.info(
            "%s: %d bytes written, %d cleared", volume.id, published.written_bytes, published.cleared_bytes
        )
        policy = str(uuid4())
        expires = self.estate.clock() + timedelta(seconds=duration)
        return Access(
            policy, expires, self._base + await asyncio.to_thread(self._blobs.allow, volume, policy, expires)
        )

    def begin_end_access(self, volume: Volume, doom: Refused | None) -> Operation:
        """The export is on its way to be over; without one there is nothing to do. Refuses: 409."""
        if volume.busy:
            raise refusals.concurrent()
        volume.busy = True

        async def work(operation: Operation) -> None:
            try:
                await operation.pass_time(self._durations.access)
                if volume.access is not None:
                    await asyncio.to_thread(self._blobs.revoke, volume)
                    volume.access = None
            finally:
                volume.busy = False

        return self.operations.begin(
            f"{volume.kind.value}/endGetAccess", Area.DISK, volume.location, work, doom
        )

    # New and removed volumes

    def begin_put(
        self, kind: Kind, group: Group, name: str, body: dict[str, Any], doom: Refused | None
    ) -> tuple[Volume, Operation]:
        """The disk (Empty or Copy) or snapshot (Copy) is on its way to exist. Refuses: 400, 404, 409.

        Asked for again with the same origin it stays as it is; its tags are those of the last call.
        """
        properties = body.get("properties")
        creation = properties.get("creationData") if isinstance(properties, dict) else None
        if (
            not isinstance(properties, dict)
            or not isinstance(creation, dict)
            or not isinstance(body.get("location"), str)
        ):
            raise refusals.bad_body("location and properties.creationData are required")
        source = self._source(kind, creation)
        known = group.volumes(kind).get(name.lower())
        if known is not None:
            return known, self._put_again(known, creation, source, body, doom)
        size = source.size if source is not None else _gib(properties.get("diskSizeGB")) * GIB
        volume = Volume(
            kind,
            self.estate.subscription,
            group.name,
            body["location"],
            name,
            self._files / f"{uuid4().hex}.raw",
            size,
            Origin(
                str(creation["createOption"]),
                source.id if source is not None else None,
                str(source.unique_id) if source is not None else None,
            ),
            self.estate.clock(),
            source.os if source is not None else _system(properties.get("osType")),
            generation=source.generation if source is not None else "V2",
            sku=str((body.get("sku") or {}).get("name", "Standard_LRS")),
            tags=dict(body.get("tags") or {}),
            incremental=kind is Kind.SNAPSHOT and properties.get("incremental") is True,
            busy=True,
            provisioning=Provisioning.UPDATING,
        )
        group.volumes(kind)[name.lower()] = volume

        async def work(operation: Operation) -> dict[str, Any]:
            try:
                await asyncio.to_thread(_make_file, volume, source)
                await operation.pass_time(self._durations.write)
            except BaseException:
                volume.provisioning = Provisioning.FAILED
                raise
            finally:
                volume.busy = False
            volume.provisioning = Provisioning.SUCCEEDED
            return volume_document(self.estate, volume)

        return volume, self.operations.begin(f"{kind.value}/put", Area.DISK, volume.location, work, doom)

    def _source(self, kind: Kind, creation: dict[str, Any]) -> Volume | None:
        option = creation.get("createOption")
        if option == "Copy" and isinstance(creation.get("sourceResourceId"), str):
            return self.estate.volume_by_id(creation["sourceResourceId"])
        if option == "Empty" and kind is Kind.DISK:
            return None
        raise refusals.bad_parameter(
            "createOption", "the stand-in makes disks by Empty and Copy, snapshots by Copy"
        )

    def _put_again(
        self,
        known: Volume,
        creation: dict[str, Any],
        source: Volume | None,
        body: dict[str, Any],
        doom: Refused | None,
    ) -> Operation:
        if known.busy:
            raise refusals.concurrent()
        if known.origin.option != creation["createOption"] or known.origin.source_id != (
            source.id if source else None
        ):
            raise refusals.exists_differently(known.name)
        known.tags = dict(body.get("tags") or {})

        async def work(operation: Operation) -> dict[str, Any]:
            await operation.pass_time(self._durations.write)
            return volume_document(self.estate, known)

        return self.operations.begin(f"{known.kind.value}/put", Area.DISK, known.location, work, doom)

    def begin_delete(self, group: Group, volume: Volume, doom: Refused | None) -> Operation:
        """The volume is on its way to be gone. Refuses: 409. A file that the inventory named stays where it is."""
        self.estate.check_deletable(volume)
        volume.busy = True

        async def work(operation: Operation) -> None:
            try:
                await operation.pass_time(self._durations.write)
                await asyncio.to_thread(self._blobs.remove, volume)
            finally:
                volume.busy = False
            if volume.file.parent == self._files:
                volume.file.unlink(missing_ok=True)
            del group.volumes(volume.kind)[volume.name.lower()]

        return self.operations.begin(f"{volume.kind.value}/delete", Area.DISK, volume.location, work, doom)


def _make_file(volume: Volume, source: Volume | None) -> None:
    if source is not None:
        copy_sparsely(source.file, volume.file, volume.size)
        return
    with volume.file.open("xb") as new:
        new.truncate(volume.size)


def _gib(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= DISK_GIB_MAX:
        raise refusals.bad_parameter("diskSizeGB", f"expected 1 to {DISK_GIB_MAX}")
    return value


def _system(value: object) -> System | None:
    return next((system for system in System if system.value == value), None)
