"""The control port: what a test asks of the stand-in itself. Plain HTTP on the loopback, JSON both ways."""

from dataclasses import asdict
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from simlab.azure import refusals
from simlab.azure.actions import Actions
from simlab.azure.faults import Fault, Faults, Journal
from simlab.azure.inventory import Power
from simlab.azure.model import Machine, Volume
from simlab.azure.refusals import Refused


class PowerOrder(BaseModel):
    """Somebody else than our client switches a machine, or the guest shuts itself down."""

    model_config = ConfigDict(extra="forbid")

    group: str
    machine: str
    power: Power


class Control:
    """The control port's verbs."""

    def __init__(self, actions: Actions, faults: Faults, journal: Journal) -> None:
        self._actions: Final = actions
        self._estate: Final = actions.estate
        self._faults: Final = faults
        self._journal: Final = journal

    def application(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/inventory", self._inventory),
                Route("/events", self._events),
                Route("/calls", self._calls),
                Route("/faults", self._list_faults),
                Route("/faults", self._add_fault, methods=["POST"]),
                Route("/faults", self._clear_faults, methods=["DELETE"]),
                Route("/power", self._power, methods=["POST"]),
            ]
        )

    async def _inventory(self, request: Request) -> Response:
        return JSONResponse(
            {
                "subscription": self._estate.subscription,
                "machines": [
                    _machine(machine)
                    for group in self._estate.groups.values()
                    for machine in group.machines.values()
                ],
                "volumes": [self._volume(volume) for volume in self._estate.volumes()],
            }
        )

    async def _events(self, request: Request) -> Response:
        after = _number(request.query_params.get("after"))
        events = [asdict(event) for event in self._actions.power_events if event.sequence > after]
        return JSONResponse({"events": events})

    async def _calls(self, request: Request) -> Response:
        query = request.query_params
        return JSONResponse(
            {"calls": self._journal.listing(query.get("operation", "*"), _number(query.get("after")))}
        )

    async def _list_faults(self, request: Request) -> Response:
        return JSONResponse({"faults": self._faults.listing()})

    async def _add_fault(self, request: Request) -> Response:
        try:
            self._faults.add(Fault.model_validate_json(await request.body()))
        except ValidationError as error:
            return _invalid(error)
        return JSONResponse({"faults": self._faults.listing()}, 201)

    async def _clear_faults(self, request: Request) -> Response:
        self._faults.clear()
        return Response(status_code=204)

    async def _power(self, request: Request) -> Response:
        try:
            order = PowerOrder.model_validate_json(await request.body())
            machine = self._estate.machine(self._estate.subscription, order.group, order.machine)
            if machine.busy:
                raise refusals.concurrent()
            if order.power not in (Power.RUNNING, Power.STOPPED, Power.DEALLOCATED):
                raise refusals.bad_parameter("power", "expected running, stopped or deallocated")
            if order.power is Power.RUNNING:
                self._estate.check_startable(machine)
        except ValidationError as error:
            return _invalid(error)
        except Refused as refused:
            return JSONResponse(refused.body(), refused.status)
        self._actions.set_power(machine, order.power, "operator")
        return JSONResponse(_machine(machine))

    def _volume(self, volume: Volume) -> dict[str, Any]:
        access = volume.access_at(self._estate.clock())
        return {
            "id": volume.id,
            "kind": volume.kind.value,
            "group": volume.group,
            "name": volume.name,
            "file": str(volume.file),
            "size": volume.size,
            "state": self._estate.disk_state(volume),
            "busy": volume.busy,
            "machine": volume.machine.name if volume.machine is not None else None,
            "export_expires": access.expires.isoformat() if access is not None else None,
        }


def _machine(machine: Machine) -> dict[str, Any]:
    return {
        "id": machine.id,
        "group": machine.group,
        "name": machine.name,
        "power": machine.power.value,
        "provisioning": machine.provisioning.value,
        "busy": machine.busy,
        "disks": [disk.name for disk in machine.disks],
    }


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0


def _invalid(error: ValidationError) -> Response:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"]) or "the whole"
    return JSONResponse(refusals.bad_body(f"{place}: {first['msg']}").body(), 400)
