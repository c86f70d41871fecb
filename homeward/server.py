"""The verbs of the configuration server: clients of its REST API, never of its database."""

import os
from pathlib import Path
from typing import Any, Final

import click

from drcore.errors import HomewardError, coded
from drcore.secret import Secret
from homeward import show
from homeward.errors import ServerUnreachable, TokenMissing
from wireproto.errors import PeerReported

DEFAULT_SERVER: Final = "http://127.0.0.1:8443"
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
        raise TokenMissing(reason="neither --token-file nor HOMEWARD_TOKEN_FILE nor HOMEWARD_TOKEN")
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
        return
    show.answer(f"{'ITEM':24} {'STATE':20} HEALTH")
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
    if item["replication"]:
        for word, value in _replication_words(item["replication"]):
            show.answer(f"{word:14} {value}")
    for disk in item["disks"]:
        show.answer(f"{'disk':14} {disk['disk']}  {disk['azure_disk'].rpartition('/')[2]}")


def _replication_words(found: dict[str, Any]) -> list[tuple[str, str]]:
    last = "none yet"
    if found["last_cycle_at"]:
        last = (
            f"{found['last_cycle_at']}, took {show.duration(found['last_cycle_seconds'])}: "
            f"{show.size(found['changed_bytes'])} had changed, {show.size(found['sent_bytes'])} sent"
        )
    every = show.duration(found["interval_seconds"])
    then = found["next_cycle_at"] or f"waits for {found['waits_for'] or 'a first cycle'}"
    lag = show.duration(found["lag_seconds"]) if found["last_cycle_at"] else "not known yet"
    over = " (EXCEEDED)" if found["lag_seconds"] > found["rpo_seconds"] else ""
    words = [
        ("last cycle", last),
        ("next cycle", f"{then}, one every {every}"),
        ("lag", f"{lag} of {show.duration(found['rpo_seconds'])} allowed{over}"),
    ]
    if found["last_failure"]:
        words.append(("newest cycle", f"failed: {found['last_failure']}; see homeward jobs list"))
    return words


MARKS: Final = {"ok": "ok  ", "no": "NO  ", "warn": "warn", "unknown": "?   ", "wait": "wait"}


def show_preflight(found: dict[str, Any]) -> None:
    """A line a check; what to do below those that are not well."""
    for check in found["checks"]:
        show.answer(
            f"{MARKS[check['result']]} {check['requirement']:5} {check['title']}: {check['observed']}"
        )
        if check["result"] != "ok":
            show.answer(f"           {check['code']}: expected {check['expected']}; do {check['remedy']}")
    show.answer(f"answer: {found['answer']}")


def show_plan(found: dict[str, Any], name: str) -> None:
    """Every step with what it would change."""
    show.answer(f"{found['verb']} of {name} would do this; nothing was touched:")
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
        return
    show.answer(f"{'JOB':36}  {'VERB':16} {'STATUS':10} CREATED")
    for job in jobs:
        show.answer(f"{job['id']}  {job['verb']:16} {job['status']:10} {job['created']}")


def show_job(job: dict[str, Any], name: str) -> None:
    """A job with its steps and its report; `name` is the item's."""
    from homeward.watch import outcome, standing_words, step_line

    show.answer(f"job {job['id']}: {job['verb']} of {name}, {job['status']}")
    for step in job["steps"]:
        show.answer(step_line(step))
        if not step["ended"] and step["total"]:
            show.answer(f"      {standing_words(step, 0.0, None)}")
    if job["status"] in OVER:
        for line in outcome(job):
            show.answer(line)
    show_proof(job)


def show_proof(job: dict[str, Any]) -> None:
    """The proof in the job's report, if there is one."""
    proof = job["report"].get("proof")
    if not proof:
        return
    show.answer(f"proof of point {proof['point']}: each role read its own medium again, in full")
    for disk in proof["disks"]:
        same = disk["source_content_root"] == disk["target_content_root"]
        show.answer(
            f"  disk {disk['disk']}, {show.size(disk['size'])}: {'the same' if same else 'DIFFERENT'}"
        )
        show.answer(f"    in Azure  {disk['source_content_root']}")
        show.answer(f"    at home   {disk['target_content_root']}")
    show.answer(f"  authenticated with the item's key: {proof['hmac_sha256']}")


server_option = click.option(
    "--server",
    envvar="HOMEWARD_SERVER",
    default=DEFAULT_SERVER,
    show_default=True,
    show_envvar=True,
    help="The configuration server.",
)
token_option = click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    envvar="HOMEWARD_TOKEN_FILE",
    show_envvar=True,
    help="The file with the bearer token; without one HOMEWARD_TOKEN holds the token itself.",
)
