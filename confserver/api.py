"""The REST API: items, pre-flight, verbs, jobs. Every answer is one of the shapes, every error a coded object."""

import hmac
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, Literal

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from confserver.errors import (
    DisksNotAsPlanned,
    ItemBusy,
    ItemExists,
    ItemMissing,
    JobMissing,
    JobOver,
    PreflightRefused,
    RequestMalformed,
    TokenRefused,
    TransitionIllegal,
)
from confserver.items import Item
from confserver.schedule import Replication
from confserver.service import Service
from confserver.shapes import (
    EffectShape,
    EnableShape,
    ErrorShape,
    ItemShape,
    ItemsShape,
    JobShape,
    JobsShape,
    PlanShape,
    PreflightShape,
)
from confserver.states import Event
from confserver.store import Store
from drcore.errors import HomewardError, Retry, coded
from drcore.limits import REQUEST_BYTES_MAX
from drcore.secret import Secret

STATUSES: Final[dict[type[HomewardError], int]] = {
    DisksNotAsPlanned: 409,
    ItemMissing: 404,
    JobMissing: 404,
    TransitionIllegal: 409,
    ItemBusy: 409,
    ItemExists: 409,
    JobOver: 409,
    PreflightRefused: 412,
    RequestMalformed: 400,
    TokenRefused: 401,
}
"""HTTP status of an error; of the others, 503 for what may pass by itself and 500 for the rest."""
VerbName = Literal["reprotect", "replicate", "failback", "commit", "cancel"]
Inert = Annotated[bool, Query(description="only tell what would be done; touches nothing")]


ReplicationOf = Callable[[Item], Replication | None]


def build(
    service: Service, store: Store, token: Secret, replication: ReplicationOf = lambda item: None
) -> FastAPI:
    """The application. Whoever calls has to have the token, but for /openapi.json and /health."""
    app = FastAPI(
        title="homeward configuration server",
        version="1",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    guard = Depends(_guard(token))
    errors: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorShape}, "5XX": {"model": ErrorShape}}
    _translate_errors(app)
    app.middleware("http")(_limit_body)

    @app.get("/health")
    def health() -> dict[str, str]:
        """The server answers."""
        return {"status": "ok"}

    _item_routes(app, service, store, replication, [guard], errors)
    _job_routes(app, service, store, [guard], errors)
    return app


def _item_routes(
    app: FastAPI,
    service: Service,
    store: Store,
    replication: ReplicationOf,
    guards: list[Any],
    errors: dict[int | str, dict[str, Any]],
) -> None:
    def shape(item: Item) -> ItemShape:
        return ItemShape.of(item, replication(item))

    @app.get("/items", dependencies=guards, responses=errors)
    def list_items() -> ItemsShape:
        """All items, by name."""
        return ItemsShape(items=tuple(shape(item) for item in store.items()))

    @app.post("/items", dependencies=guards, responses=errors)
    def enable_item(told: EnableShape) -> ItemShape:
        """The machine is an item; the same again changes nothing."""
        return shape(service.enable(told.told()))

    @app.get("/items/{item}", dependencies=guards, responses=errors)
    def show_item(item: str) -> ItemShape:
        """The item of this id or name."""
        return shape(store.item(item))

    @app.post("/items/{item}/events/{event}", dependencies=guards, responses=errors)
    def note_event(
        item: str, event: Literal["complete-migration", "stop-replication", "fail-over"]
    ) -> ItemShape:
        """Something that happened outside is known: it moves the item without a job."""
        return shape(store.move(item, Event(event)))

    @app.get("/items/{item}/preflight", dependencies=guards, responses=errors)
    def preflight(item: str, verb: VerbName = "reprotect") -> PreflightShape:
        """What every check of the verb found; touches nothing."""
        return PreflightShape.of(item, verb, service.preflight(item, verb))

    @app.post("/items/{item}/{verb}", dependencies=guards, responses=errors, status_code=202)
    def run_verb(item: str, verb: VerbName, plan: Inert = False) -> JobShape | PlanShape:
        """The verb's job is under way; with `plan=true` only what it would do. `cancel` ends a job that runs."""
        if plan:
            made, effects = service.plan(item, verb)
            steps = tuple(EffectShape(**effect) for effect in effects)
            return PlanShape(item=made.item, verb=made.verb, generation=made.generation, steps=steps)
        return JobShape.of(service.cancel(item) if verb == "cancel" else service.begin(item, verb))


def _job_routes(
    app: FastAPI, service: Service, store: Store, guards: list[Any], errors: dict[int | str, dict[str, Any]]
) -> None:
    @app.get("/jobs", dependencies=guards, responses=errors)
    def list_jobs(item: str = "") -> JobsShape:
        """All jobs, or those of an item, the oldest first, without their steps."""
        found = store.item(item).id if item else ""
        return JobsShape(jobs=tuple(JobShape.of(job) for job in store.jobs(found)))

    @app.get("/jobs/{job}", dependencies=guards, responses=errors)
    def show_job(job: str) -> JobShape:
        """The job with its steps and its report."""
        return JobShape.of(store.job(job))

    @app.post("/jobs/{job}/cancel", dependencies=guards, responses=errors, status_code=202)
    def cancel_job(job: str) -> JobShape:
        """The job will end and undo what it did."""
        return JobShape.of(store.ask_cancel(job))

    @app.post("/jobs/{job}/retry", dependencies=guards, responses=errors, status_code=202)
    def retry_job(job: str) -> JobShape:
        """A failed job's verb runs anew as a new job; a stuck job goes on with its undo."""
        return JobShape.of(service.retry(job))


def _guard(token: Secret) -> Callable[[Request], None]:
    wanted = token.reveal()

    def check(request: Request) -> None:
        scheme, _, told = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not told:
            raise TokenRefused(reason="no bearer token")
        if not hmac.compare_digest(told.strip().encode(), wanted):
            raise TokenRefused(reason="another token")

    return check


async def _limit_body(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
    length = request.headers.get("content-length", "0")
    chunked = "transfer-encoding" in request.headers
    if chunked or not length.isdigit() or int(length) > REQUEST_BYTES_MAX:
        return _answer(
            RequestMalformed(reason=f"a body that is not announced, or above {REQUEST_BYTES_MAX} bytes")
        )
    return await go_on(request)


def _answer(error: HomewardError) -> JSONResponse:
    status = STATUSES.get(type(error), 503 if error.retry is not Retry.PERMANENT else 500)
    return JSONResponse(error.as_json(), status)


def _translate_errors(app: FastAPI) -> None:
    @app.exception_handler(HomewardError)
    def known(_: Request, error: Exception) -> JSONResponse:
        return _answer(coded(error))

    @app.exception_handler(Exception)
    def unknown(_: Request, error: Exception) -> JSONResponse:
        return _answer(coded(error))

    @app.exception_handler(RequestValidationError)
    def malformed(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return _answer(RequestMalformed(reason=f"{place}: {first['msg']}"))

    @app.exception_handler(HTTPException)
    def unrouted(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        body = RequestMalformed(reason=str(error.detail)).as_json()
        return JSONResponse(body, error.status_code)
