"""The verbs of the configuration server: clients of its REST API, never of its database."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from drcore.errors import HomewardError, coded
from drcore.secret import Secret
from homeward import show
from homeward.errors import ServerUnreachable, TokenMissing
from wireproto.errors import PeerReported

DEFAULT_SERVER: Final = "http://127.0.0.1:8443"
POLL_SECONDS: Final = 0.5
ANSWER_SECONDS: Final = 120.0
OVER: Final = frozenset({"done", "failed", "stuck"})
GOOD: Final = "done"


class Client:
    """One server and the token for it. Errors: `ServerUnreachable`, `TokenMissing`, what it reports."""

    def __init__(self, server: str, token_file: Path | None) -> None:
        # Imported here: a client of HTTP is nothing that info or sync should wait for.
        import httpx

        self._failures = (httpx.HTTPError, httpx.InvalidURL)
        self._server = server
        headers = {"Authorization": f"Bearer {_token(token_file).reveal().decode()}"}
        try:
            self._client = httpx.Client(base_url=server, headers=headers, timeout=ANSWER_SECONDS)
        except self._failures as error:
            raise ServerUnreachable(server=server, reason=str(error)) from error

    def get(self, path: str, **query: str) -> Any:
        """The answer to a question."""
        return self._ask("GET", path, query, None)

    def post(self, path: str, body: Any = None, **query: str) -> Any:
        """The answer to an order."""
        return self._ask("POST", path, query, body)

    def _ask(self, method: str, path: str, query: dict[str, str], body: Any) -> Any:
        try:
            answer = self._client.request(method, path, params=query, json=body)
            found = answer.json()
        except ValueError as error:
            raise ServerUnreachable(server=self._server, reason="an answer that is no JSON") from error
        except self._failures as error:
            raise ServerUnreachable(server=self._server, reason=str(error) or type(error).__name__) from error
        if answer.is_success:
            return found
        raise _error(found)


def _token(path: Path | None) -> Secret:
    try:
        if path is not None:
            return Secret(path.read_bytes().strip())
    except OSError as error:
        raise TokenMissing(reason=f"{path}: {error.strerror or error}") from error
    told = os.environ.get("HOMEWARD_TOKEN", "")
    if not told:
        raise TokenMissing(reason="neither --token-file nor HOMEWARD_TOKEN")
    return Secret(told.strip().encode())


def _error(found: Any) -> HomewardError:
    if not isinstance(found, dict) or not {"error", "code", "found", "expected", "remedy"} <= set(found):
        return coded(ValueError("an error answer without a code"))
    return PeerReported(
        peer_code=str(found["code"]),
        peer_what=str(found["error"]),
        peer_found=str(found["found"]),
        peer_expected=str(found["expected"]),
        peer_remedy=str(found["remedy"]),
        peer_retry="permanent",
    )


# What people see


def show_items(items: list[dict[str, Any]]) -> None:
    """A line an item."""
    if not items:
        show.answer("no items yet: homeward items enable --help")
    for item in items:
        busy = f", job {item['job']}" if item["job"] else ""
        show.answer(f"{item['name']:24} {item['state']:20} {item['health']}{busy}")


def show_item(item: dict[str, Any]) -> None:
    """An item, a fact a line."""
    for word, value in (
        ("name", item["name"]),
        ("state", item["state"]),
        ("health", item["health"]),
        ("direction", item["direction"]),
        ("generation", item["generation"]),
        ("VM at home", item["vm"]),
        ("master target", item["masttarget"]),
        ("VM in Azure", item["azure_vm"]),
        (
            "last point",
            f"{item['last_point']} of {item['last_point_at']}" if item["last_point"] else "none yet",
        ),
        ("job", item["job"] or "none"),
    ):
        show.answer(f"{word:14} {value}")
    for disk in item["disks"]:
        show.answer(f"{'disk':14} {disk['disk']}  {disk['azure_disk'].rpartition('/')[2]}")


MARKS: Final = {"ok": "ok  ", "no": "NO  ", "warn": "warn", "unknown": "?   ", "wait": "wait"}


def show_preflight(found: dict[str, Any]) -> None:
    """A line a check; what to do below those that are not well."""
    for check in found["checks"]:
        show.answer(
            f"{MARKS[check['result']]} {check['requirement']:5} {check['title']}: {check['observed']}"
        )
        if check["result"] != "ok":
            show.answer(f"           {check['code']}: expected {check['expected']}; do: {check['remedy']}")
    show.answer(f"answer: {found['answer']}")


def show_plan(found: dict[str, Any]) -> None:
    """Every step with what it would change."""
    show.answer(f"{found['verb']} of {found['item']} would do this; nothing was touched:")
    for number, step in enumerate(found["steps"], start=1):
        show.answer(f"{number:3}  {step['step']}")
        for effect in step["effects"]:
            show.answer(f"       {effect}")
        if step["bytes_max"]:
            low, high = show.size(step["bytes_min"]), show.size(step["bytes_max"])
            show.answer(f"       moves {low} to {high} (a bound, not a measurement)")
        show.answer(f"       way back: {step['way_back']}")


def show_jobs(jobs: list[dict[str, Any]]) -> None:
    """A line a job."""
    if not jobs:
        show.answer("no jobs yet")
    for job in jobs:
        show.answer(f"{job['id']}  {job['verb']:10} {job['status']:10} {job['created']}")


def show_job(job: dict[str, Any]) -> None:
    """A job with its steps and its report."""
    show.answer(f"job {job['id']}: {job['verb']} of {job['item']}, {job['status']}")
    for step in job["steps"]:
        show.answer(_step_line(step))
    if job["error"]:
        error = job["error"]
        show.answer(f"{error['code']}: {error['error']}; found {error['found']}; do: {error['remedy']}")
    proof = job["report"].get("proof")
    if proof:
        show.answer(f"proof of point {proof['point']}, both sides read again in full:")
        for disk in proof["disks"]:
            show.answer(f"  disk {disk['disk']}")
            show.answer(f"    source {disk['source_content_root']}")
            show.answer(f"    target {disk['target_content_root']}")
        show.answer(f"  authenticated with the item's key: {proof['hmac_sha256']}")


def _step_line(step: dict[str, Any]) -> str:
    mark = "x" if step["failure"] else "+" if step["ended"] else ">"
    undo = "undo " if step["phase"] == "undo" else ""
    moved = f"  {show.size(step['bytes'])}" if step["bytes"] else ""
    if step["bytes_max"] and not step["ended"]:
        moved += f" of at most {show.size(step['bytes_max'])}"
    failure = f"  {step['failure']}" if step["failure"] else ""
    return f"  {mark} {step['started'] or '':24}  {undo}{step['name']}{moved}{failure}"


def wait_for(client: Client, job: str, stopped: Callable[[], bool]) -> dict[str, Any]:
    """The job when it is over, or when the watcher was stopped; its steps appear on stderr as they begin and end."""
    told: set[tuple[int, bool]] = set()
    while True:
        found: dict[str, Any] = client.get(f"/jobs/{job}")
        for number, step in enumerate(found["steps"]):
            key = (number, bool(step["ended"] or step["failure"]))
            if key not in told:
                told.add(key)
                show.say(_step_line(step))
        if found["status"] in OVER or stopped():
            return found
        time.sleep(POLL_SECONDS)


server_option = click.option(
    "--server",
    envvar="HOMEWARD_SERVER",
    default=DEFAULT_SERVER,
    show_default=True,
    help="The configuration server.",
)
token_option = click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    envvar="HOMEWARD_TOKEN_FILE",
    help="The file with the bearer token (or the environment variable HOMEWARD_TOKEN).",
)
