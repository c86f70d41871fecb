"""The address of the exports: HTTPS in front of Azurite, with faults, the journal, and what Azurite lacks.

Every request goes to Azurite as it came, so Azurite judges its signature. Azurite ignores `prevsnapshot` and would
answer all ranges; here a question for differences is answered from the snapshots' files when it is asked Azure's
way for managed disks (Get Page Ranges with `x-ms-previous-snapshot-url`), and refused when it is not.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Final
from urllib.parse import urlsplit
from uuid import uuid4
from xml.etree import ElementTree

import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from drcore.limits import SIMLAB_BODY_BYTES_MAX
from simlab.azure.blobs import ACCOUNT, BLOB_NAME
from simlab.azure.content import Run, differences
from simlab.azure.faults import Call, Effect, Faults, Journal
from simlab.azure.listening import Connections
from simlab.azure.model import Estate, Kind, Volume
from simlab.azure.refusals import Refused

HOP_HEADERS: Final = frozenset({"host", "connection", "keep-alive", "transfer-encoding", "expect", "date"})
BACKEND_SECONDS_MAX: Final = 60.0
PREVIOUS: Final = "x-ms-previous-snapshot-url"


class BlobFront:
    """The ASGI application."""

    def __init__(
        self, estate: Estate, backend: str, faults: Faults, journal: Journal, connections: Connections
    ) -> None:
        """`backend` is where Azurite listens, without a path."""
        self._estate: Final = estate
        self._backend: Final = backend
        self._faults: Final = faults
        self._journal: Final = journal
        self._connections: Final = connections
        self._client: Final = httpx.AsyncClient(timeout=BACKEND_SECONDS_MAX, trust_env=False)

    async def close(self) -> None:
        """The connections to Azurite are gone."""
        await self._client.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The call is in the journal and answered, unless a fault cuts it."""
        request = Request(scope, receive)
        operation = _operation(request)
        path = request.url.path
        call = self._journal.note("blob", operation, request.method, path, dict(request.headers))
        fault = self._faults.take(operation)
        if fault is not None:
            if fault.effect is Effect.DROP:
                call.cut = True
                await self._connections.cut(scope, sent_first=False)
                return
            await asyncio.sleep(fault.seconds)
        try:
            if fault is not None and fault.effect is Effect.ANSWER:
                raise fault.refusal()
            if _asks_difference(request):
                response = await self._difference(request)
            elif fault is not None and fault.effect is Effect.DROP_ANSWER:
                await self._pass_half(scope, request, call, send)
                return
            else:
                response = await self._pass(request)
        except Refused as refused:
            response = _storage_error(refused)
        except httpx.HTTPError as error:
            response = _storage_error(
                Refused(503, "ServerBusy", f"The blob service did not answer: {error!r}")
            )
        except ClientDisconnect:
            call.cut = True
            return
        call.status = response.status_code
        if fault is not None and fault.effect is Effect.DROP_ANSWER:
            call.cut = True
            await self._connections.cut(scope, sent_first=False)
            return
        await response(scope, receive, send)

    async def _ask(self, request: Request, *, body: bool = True) -> httpx.Response:
        query = request.scope["query_string"]
        target = request.scope["raw_path"] + (b"?" + query if query else b"")
        headers = [
            (name, value) for name, value in request.headers.raw if name.decode("latin-1") not in HOP_HEADERS
        ]
        outgoing = self._client.build_request(
            request.method,
            httpx.URL(self._backend).copy_with(raw_path=target),
            headers=headers,
            content=(await _body(request) or None) if body else None,
        )
        return await self._client.send(outgoing, stream=True)

    async def _pass(self, request: Request) -> Response:
        answer = await self._ask(request)

        async def stream() -> AsyncIterator[bytes]:
            try:
                async for part in answer.aiter_raw():
                    yield part
            finally:
                await answer.aclose()

        response = StreamingResponse(stream(), answer.status_code)
        response.raw_headers = _answer_headers(answer)
        return response

    async def _pass_half(self, scope: Scope, request: Request, call: Call, send: Send) -> None:
        answer = await self._ask(request)
        content = await answer.aread()
        call.status, call.cut = answer.status_code, True
        await send(
            {"type": "http.response.start", "status": answer.status_code, "headers": _answer_headers(answer)}
        )
        await send({"type": "http.response.body", "body": content[: len(content) // 2], "more_body": True})
        await self._connections.cut(scope, sent_first=True)

    # Differences of snapshots

    async def _difference(self, request: Request) -> Response:
        if "prevsnapshot" in request.query_params:
            raise Refused(
                501, "NotImplemented", "The stand-in knows differences by x-ms-previous-snapshot-url only."
            )
        answer = await self._ask(request, body=False)
        try:
            await answer.aread()
        finally:
            await answer.aclose()
        if answer.status_code != 200:
            return Response(answer.content, answer.status_code, dict(answer.headers))
        target = self._snapshot(request.url.path)
        previous_url = request.headers[PREVIOUS]
        await self._check_readable(previous_url)
        previous = self._snapshot(urlsplit(previous_url).path)
        _check_lineage(target, previous)
        first, end = _range(request.headers, target.size)
        runs = await asyncio.to_thread(
            lambda: list(differences(target.file, previous.file, target.size, first, end))
        )
        kept = ("etag", "last-modified", "x-ms-version", "x-ms-blob-content-length")
        headers = {name: answer.headers[name] for name in kept if name in answer.headers}
        return Response(_page_list(runs), 200, {**headers, **_ids()}, "application/xml")

    def _snapshot(self, path: str) -> Volume:
        parts = path.strip("/").split("/")
        for volume in self._estate.volumes():
            if (
                parts == [ACCOUNT, volume.container, BLOB_NAME]
                and volume.kind is Kind.SNAPSHOT
                and volume.incremental
            ):
                return volume
        raise Refused(409, "InvalidOperation", "Differences exist between incremental snapshots only.")

    async def _check_readable(self, url: str) -> None:
        parts = urlsplit(url)
        raw = f"{parts.path}?{parts.query}&comp=pagelist".encode()
        answer = await self._client.get(
            httpx.URL(self._backend).copy_with(raw_path=raw), headers={"x-ms-range": "bytes=0-511"}
        )
        if answer.status_code != 200:
            raise Refused(403, "CannotVerifyCopySource", "The previous snapshot's URL is not valid.")


def _operation(request: Request) -> str:
    component = request.query_params.get("comp")
    if component == "pagelist":
        return "blob/differences" if _asks_difference(request) else "blob/pages"
    if request.method == "GET" and component is None:
        return "blob/read"
    if request.method == "HEAD" and component is None:
        return "blob/properties"
    return "blob/write" if request.method == "PUT" and component == "page" else "blob/other"


def _asks_difference(request: Request) -> bool:
    return request.query_params.get("comp") == "pagelist" and (
        PREVIOUS in request.headers or "prevsnapshot" in request.query_params
    )


def _check_lineage(target: Volume, previous: Volume) -> None:
    if target.origin.source_unique_id != previous.origin.source_unique_id:
        raise Refused(409, "InvalidOperation", "The two snapshots are not of the same disk.")
    if previous.created > target.created:
        raise Refused(
            409, "PreviousSnapshotCannotBeNewer", "The previous snapshot is newer than the snapshot."
        )


def _range(headers: Mapping[str, str], size: int) -> tuple[int, int]:
    text = headers.get("x-ms-range") or headers.get("range") or f"bytes=0-{size - 1}"
    first, dash, last = text.removeprefix("bytes=").partition("-")
    if not dash or not first.isdecimal() or not (last == "" or last.isdecimal()):
        raise Refused(
            400, "InvalidHeaderValue", "The value for one of the HTTP headers is not in the correct format."
        )
    return int(first), int(last) + 1 if last else size


def _page_list(runs: Iterable[Run]) -> bytes:
    root = ElementTree.Element("PageList")
    for run in runs:
        element = ElementTree.SubElement(root, "ClearRange" if run.zero else "PageRange")
        ElementTree.SubElement(element, "Start").text = str(run.offset)
        ElementTree.SubElement(element, "End").text = str(run.offset + run.length - 1)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document


def _storage_error(refused: Refused) -> Response:
    root = ElementTree.Element("Error")
    ElementTree.SubElement(root, "Code").text = refused.code
    ElementTree.SubElement(root, "Message").text = refused.message
    document = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    headers = {"x-ms-error-code": refused.code, **_ids(), **refused.headers}
    return Response(document, refused.status, headers, "application/xml")


def _ids() -> dict[str, str]:
    return {"x-ms-request-id": str(uuid4())}


def _answer_headers(answer: httpx.Response) -> list[tuple[bytes, bytes]]:
    return [
        (name.lower(), value)
        for name, value in answer.headers.raw
        if name.decode("latin-1").lower() not in HOP_HEADERS
    ]


async def _body(request: Request) -> bytes:
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > SIMLAB_BODY_BYTES_MAX:
            raise Refused(413, "RequestBodyTooLarge", f"More than {SIMLAB_BODY_BYTES_MAX} bytes.")
    return data
