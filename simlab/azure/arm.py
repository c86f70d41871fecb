"""The Resource Manager over HTTP: which path means which verb, tokens, API versions, long-running answers.

Paths and api-versions are those of Microsoft's published interface; names in paths are compared without case.
"""

import asyncio
import hmac
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlencode
from uuid import uuid4

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from drcore.limits import SIMLAB_BODY_BYTES_MAX
from simlab.azure import refusals
from simlab.azure.actions import DEALLOCATE, POWER_OFF, START, Actions
from simlab.azure.faults import Effect, Faults, Journal
from simlab.azure.listening import Connections
from simlab.azure.model import Group, Kind, Machine, Volume, resource_id
from simlab.azure.operations import Area, Operation, Status
from simlab.azure.refusals import Refused
from simlab.azure.shapes import (
    group_document,
    interface_document,
    machine_document,
    view_document,
    volume_document,
)

SUBSCRIPTION: Final = "/subscriptions/(?P<subscription>[^/]+)"
GROUP: Final = SUBSCRIPTION + "/resourcegroups/(?P<group>[^/]+)"
EITHER: Final = SUBSCRIPTION + "(?:/resourcegroups/(?P<group>[^/]+))?"
COMPUTE: Final = r"/providers/microsoft\.compute"
MACHINE: Final = GROUP + COMPUTE + "/virtualmachines/(?P<name>[^/]+)"
VOLUME: Final = GROUP + COMPUTE + "/(?P<kind>disks|snapshots)/(?P<name>[^/]+)"

# fmt: off
COMPUTE_VERSIONS: Final = (
    "2019-03-01", "2019-07-01", "2019-12-01", "2020-06-01", "2020-12-01", "2021-03-01", "2021-04-01", "2021-07-01",
    "2021-11-01", "2022-03-01", "2022-08-01", "2022-11-01", "2023-03-01", "2023-07-01", "2023-09-01", "2024-03-01",
    "2024-07-01", "2024-11-01", "2025-04-01", "2026-04-01",
)
DISK_VERSIONS: Final = (
    "2019-03-01", "2019-07-01", "2019-11-01", "2020-05-01", "2020-06-30", "2020-09-30", "2020-12-01", "2021-04-01",
    "2021-08-01", "2021-12-01", "2022-03-02", "2022-07-02", "2023-01-02", "2023-04-02", "2023-10-02", "2024-03-02",
    "2025-01-02", "2026-03-02",
)
GROUP_VERSIONS: Final = ("2019-08-01", "2019-10-01", "2020-06-01", "2021-04-01", "2022-09-01", "2024-03-01")
NETWORK_VERSIONS: Final = ("2019-11-01", "2020-11-01", "2021-08-01", "2022-07-01", "2023-09-01", "2024-05-01")
# fmt: on
VERSIONS: Final[Mapping[str, Sequence[str]]] = {
    "virtualMachines": COMPUTE_VERSIONS,
    "disks": DISK_VERSIONS,
    "snapshots": DISK_VERSIONS,
    "operations": tuple(sorted({*COMPUTE_VERSIONS, *DISK_VERSIONS})),
    "resourceGroups": GROUP_VERSIONS,
    "networkInterfaces": NETWORK_VERSIONS,
}


@dataclass(frozen=True, slots=True)
class Manners:
    """How the manager answers: the one bearer token that it accepts (None: any), its Retry-After, its lists' pages."""

    token: str | None = field(repr=False)
    retry_after_seconds: int
    page_size: int


@dataclass(frozen=True, slots=True)
class Asked:
    """One understood call: the names in its path, its query, its body, and the failure laid on its operation."""

    path: str
    names: Mapping[str, str]
    query: Mapping[str, str]
    body: dict[str, Any]
    base: str
    doom: Refused | None

    @property
    def kind(self) -> Kind:
        """Disk or snapshot, by the path."""
        return Kind(self.names["kind"].lower())


Handler = Callable[[Asked], Awaitable[Response]]


class ResourceManager:
    """The ASGI application."""

    def __init__(
        self, actions: Actions, faults: Faults, journal: Journal, connections: Connections, manners: Manners
    ) -> None:
        """`connections` are those of the server that runs the application."""
        self._actions: Final = actions
        self._estate: Final = actions.estate
        self._operations: Final = actions.operations
        self._faults: Final = faults
        self._journal: Final = journal
        self._connections: Final = connections
        self._token: Final = manners.token
        self._retry_after: Final = {"Retry-After": str(manners.retry_after_seconds)}
        self._page_size: Final = manners.page_size
        table: tuple[tuple[str, str, str, Handler], ...] = (
            ("GET", SUBSCRIPTION + "/resourcegroups", "resourceGroups/list", self._groups),
            ("GET", GROUP, "resourceGroups/get", self._group),
            ("GET", EITHER + COMPUTE + "/virtualmachines", "virtualMachines/list", self._machines),
            ("GET", MACHINE, "virtualMachines/get", self._machine),
            ("GET", MACHINE + "/instanceview", "virtualMachines/instanceView", self._view),
            ("POST", MACHINE + "/start", "virtualMachines/start", self._start),
            ("POST", MACHINE + "/poweroff", "virtualMachines/powerOff", self._power_off),
            ("POST", MACHINE + "/deallocate", "virtualMachines/deallocate", self._deallocate),
            ("GET", EITHER + COMPUTE + "/(?P<kind>disks|snapshots)", "{kind}/list", self._volumes),
            ("GET", VOLUME, "{kind}/get", self._volume),
            ("PUT", VOLUME, "{kind}/put", self._put),
            ("DELETE", VOLUME, "{kind}/delete", self._delete),
            ("POST", VOLUME + "/begingetaccess", "{kind}/beginGetAccess", self._begin_access),
            ("POST", VOLUME + "/endgetaccess", "{kind}/endGetAccess", self._end_access),
            (
                "GET",
                SUBSCRIPTION + COMPUTE + "/locations/(?P<location>[^/]+)/(?:disk)?operations/(?P<name>[^/]+)",
                "operations/get",
                self._operation,
            ),
            (
                "GET",
                GROUP + r"/providers/microsoft\.network/networkinterfaces/(?P<name>[^/]+)",
                "networkInterfaces/get",
                self._interface,
            ),
        )
        self._table: Final = [
            (method, re.compile(pattern + "/?", re.IGNORECASE), operation, handler)
            for method, pattern, operation, handler in table
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The call is in the journal and answered, unless a fault cuts it."""
        request = Request(scope, receive)
        method, path = request.method, request.url.path
        operation, handler, names = self._route(method, path)
        call = self._journal.note("arm", operation, method, path, {**request.query_params, **request.headers})
        fault = self._faults.take(operation)
        effect = fault.effect if fault is not None else None
        if effect is Effect.DROP:
            call.cut = True
            await self._connections.cut(scope, sent_first=False)
            return
        doom = None
        try:
            if fault is not None:
                doom = fault.refusal() if effect is Effect.FAIL_OPERATION else None
                await asyncio.sleep(fault.seconds)
                if effect is Effect.ANSWER:
                    raise fault.refusal()
            self._check_token(request)
            if handler is None:
                raise refusals.no_such_path(method, path)
            self._check_version(operation, request)
            body = await _body(request)
            base = f"https://{request.headers.get('host', '')}"
            response = await handler(Asked(path, names, request.query_params, body, base, doom))
        except Refused as refused:
            response = JSONResponse(refused.body(), refused.status, refused.headers)
        except ClientDisconnect:
            call.cut = True
            return
        call.status = response.status_code
        if effect is Effect.DROP_ANSWER:
            call.cut = True
            await self._connections.cut(scope, sent_first=False)
            return
        response.headers["x-ms-request-id"] = str(uuid4())
        response.headers["x-ms-correlation-request-id"] = request.headers.get(
            "x-ms-correlation-request-id", str(uuid4())
        )
        await response(scope, receive, send)

    def _route(self, method: str, path: str) -> tuple[str, Handler | None, Mapping[str, str]]:
        for wanted, pattern, operation, handler in self._table:
            match = pattern.fullmatch(path)
            if match is not None and method == wanted:
                names = {key: value for key, value in match.groupdict().items() if value is not None}
                return operation.format(kind=names.get("kind", "").lower()), handler, names
        return "unknown", None, {}

    def _check_token(self, request: Request) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if not scheme:
            raise refusals.no_token("The 'Authorization' header is missing.")
        if scheme.lower() != "bearer" or not token.strip():
            raise refusals.no_token("The 'Authorization' header carries no bearer token.")
        if self._token is not None and not hmac.compare_digest(token.strip().encode(), self._token.encode()):
            raise refusals.no_token("The access token is invalid.")

    def _check_version(self, operation: str, request: Request) -> None:
        version = request.query_params.get("api-version")
        if not version:
            raise refusals.no_api_version()
        kind = operation.partition("/")[0]
        if version not in VERSIONS[kind]:
            location = next(iter(self._estate.groups.values())).location
            raise refusals.wrong_api_version(kind, location, version, VERSIONS[kind])

    # Groups and machines

    async def _groups(self, asked: Asked) -> Response:
        self._estate.check_subscription(asked.names["subscription"])
        return self._page(
            asked, [group_document(self._estate, group) for group in self._estate.groups.values()]
        )

    async def _group(self, asked: Asked) -> Response:
        group = self._estate.group(asked.names["subscription"], asked.names["group"])
        return JSONResponse(group_document(self._estate, group))

    async def _machines(self, asked: Asked) -> Response:
        with_view = asked.query.get("statusOnly") == "true" or _expands_view(asked)
        documents = []
        for group in self._groups_of(asked):
            for machine in group.machines.values():
                document = machine_document(machine, with_view)
                # A list of machines names the group in capitals: who compares ids must do so without case.
                kind = "Microsoft.Compute/virtualMachines"
                document["id"] = resource_id(machine.subscription, machine.group.upper(), kind, machine.name)
                documents.append(document)
        return self._page(asked, documents)

    async def _machine(self, asked: Asked) -> Response:
        return JSONResponse(machine_document(self._machine_of(asked), _expands_view(asked)))

    async def _view(self, asked: Asked) -> Response:
        return JSONResponse(view_document(self._machine_of(asked)))

    async def _start(self, asked: Asked) -> Response:
        return self._accepted(asked, self._actions.begin_power(self._machine_of(asked), START, asked.doom))

    async def _power_off(self, asked: Asked) -> Response:
        return self._accepted(
            asked, self._actions.begin_power(self._machine_of(asked), POWER_OFF, asked.doom)
        )

    async def _deallocate(self, asked: Asked) -> Response:
        return self._accepted(
            asked, self._actions.begin_power(self._machine_of(asked), DEALLOCATE, asked.doom)
        )

    async def _interface(self, asked: Asked) -> Response:
        name = asked.names["name"]
        for machine in self._estate.group(
            asked.names["subscription"], asked.names["group"]
        ).machines.values():
            if any(card.name.lower() == name.lower() for card in machine.networks):
                return JSONResponse(interface_document(machine, name))
        raise refusals.no_resource("Microsoft.Network/networkInterfaces", name, asked.names["group"])

    # Disks and snapshots

    async def _volumes(self, asked: Asked) -> Response:
        volumes = [
            volume for group in self._groups_of(asked) for volume in group.volumes(asked.kind).values()
        ]
        return self._page(asked, [volume_document(self._estate, volume) for volume in volumes])

    async def _volume(self, asked: Asked) -> Response:
        return JSONResponse(volume_document(self._estate, self._volume_of(asked)))

    async def _put(self, asked: Asked) -> Response:
        group = self._estate.group(asked.names["subscription"], asked.names["group"])
        volume, operation = self._actions.begin_put(
            asked.kind, group, asked.names["name"], asked.body, asked.doom
        )
        return self._accepted(asked, operation, volume_document(self._estate, volume))

    async def _delete(self, asked: Asked) -> Response:
        group = self._estate.group(asked.names["subscription"], asked.names["group"])
        volume = group.volumes(asked.kind).get(asked.names["name"].lower())
        if volume is None:
            return Response(status_code=204)
        return self._accepted(asked, self._actions.begin_delete(group, volume, asked.doom))

    async def _begin_access(self, asked: Asked) -> Response:
        return self._accepted(
            asked, self._actions.begin_access(self._volume_of(asked), asked.body, asked.doom)
        )

    async def _end_access(self, asked: Asked) -> Response:
        return self._accepted(asked, self._actions.begin_end_access(self._volume_of(asked), asked.doom))

    # Long-running operations

    def _accepted(
        self, asked: Asked, operation: Operation, document: dict[str, Any] | None = None
    ) -> Response:
        headers = {**self._addresses(asked, operation), **self._retry_after}
        if document is None:
            return Response(status_code=202, headers=headers)
        return JSONResponse(document, 202, headers)

    def _addresses(self, asked: Asked, operation: Operation) -> dict[str, str]:
        query = urlencode({"api-version": asked.query["api-version"]})
        place = (
            f"{asked.base}/subscriptions/{self._estate.subscription}/providers/Microsoft.Compute"
            f"/locations/{operation.location}/{operation.area.value}/{operation.id}"
        )
        return {"Azure-AsyncOperation": f"{place}?{query}", "Location": f"{place}?monitor=true&{query}"}

    async def _operation(self, asked: Asked) -> Response:
        self._estate.check_subscription(asked.names["subscription"])
        operation = self._operations.find(asked.names["name"])
        area = Area.DISK if "/diskoperations/" in asked.path.lower() else Area.COMPUTE
        if operation is None or operation.area is not area:
            raise Refused(404, "OperationNotFound", f"The operation '{asked.names['name']}' was not found.")
        running = operation.status is Status.IN_PROGRESS
        if asked.query.get("monitor") != "true":
            return JSONResponse(operation.document(), headers=self._retry_after if running else None)
        if running:
            return self._accepted(asked, operation)
        if operation.error is not None:
            raise operation.error
        return Response(status_code=200) if operation.output is None else JSONResponse(operation.output)

    # What handlers share

    def _groups_of(self, asked: Asked) -> list[Group]:
        if "group" in asked.names:
            return [self._estate.group(asked.names["subscription"], asked.names["group"])]
        self._estate.check_subscription(asked.names["subscription"])
        return list(self._estate.groups.values())

    def _machine_of(self, asked: Asked) -> Machine:
        return self._estate.machine(asked.names["subscription"], asked.names["group"], asked.names["name"])

    def _volume_of(self, asked: Asked) -> Volume:
        names = asked.names
        return self._estate.volume(asked.kind, names["subscription"], names["group"], names["name"])

    def _page(self, asked: Asked, documents: list[dict[str, Any]]) -> Response:
        token = asked.query.get("$skiptoken", "0")
        if not token.isdecimal():
            raise refusals.bad_parameter("$skiptoken", f"'{token[:40]}'")
        start = int(token)
        answer: dict[str, Any] = {"value": documents[start : start + self._page_size]}
        if start + self._page_size < len(documents):
            query = urlencode({**asked.query, "$skiptoken": str(start + self._page_size)})
            answer["nextLink"] = f"{asked.base}{asked.path}?{query}"
        return JSONResponse(answer)


def _expands_view(asked: Asked) -> bool:
    return asked.query.get("$expand", "").lower() == "instanceview"


async def _body(request: Request) -> dict[str, Any]:
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > SIMLAB_BODY_BYTES_MAX:
            raise Refused(413, "RequestContentTooLarge", f"More than {SIMLAB_BODY_BYTES_MAX} bytes.")
    if not data:
        return {}
    try:
        body = json.loads(data)
    except ValueError as error:
        raise refusals.bad_body("no JSON") from error
    if not isinstance(body, dict):
        raise refusals.bad_body("no JSON object")
    return body
