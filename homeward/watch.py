"""A job as it happens: a live table on a terminal, else a line a change and one every ten seconds; both on stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol

from homeward import show
from homeward.errors import NothingToWatch, ServerAway, ServerUnreachable
from homeward.server import GOOD, OVER, Client
from wireproto.errors import PeerReported

POLL_SECONDS: Final = 0.5
AWAY_SECONDS_MAX: Final = 60.0  # docs/configuration-confserver.md tells it
"""A server that restarts is waited for so long; its jobs go on by themselves."""
RATE_SECONDS: Final = 10.0
FRAMES_A_SECOND: Final = 4
ITEM_MISSING: Final = "HW-CONF-002"
BAR_CELLS: Final = 24


@dataclass(slots=True)
class Speed:
    """Bytes a second and seconds left of the step that runs, from what was seen in the last seconds."""

    _key: tuple[str, str, str, int] = ("", "", "", 0)
    _seen: list[tuple[float, int, int]] = field(default_factory=list)

    def add(self, now: float, step: dict[str, Any]) -> tuple[float, float | None]:
        """The speed with one more look at the step; another piece of work begins anew."""
        key = (step["phase"], step["name"], step["label"], step["total"])
        if key != self._key:
            self._key, self._seen = key, []
        self._seen.append((now, step["bytes"], step["done"]))
        while len(self._seen) > 2 and now - self._seen[0][0] > RATE_SECONDS:
            self._seen.pop(0)
        then, moved, done = self._seen[0]
        passed = now - then
        if passed <= 0:
            return 0.0, None
        pace = (step["done"] - done) / passed
        return (step["bytes"] - moved) / passed, (step["total"] - step["done"]) / pace if pace > 0 else None


class View(Protocol):
    """How a job is shown while it runs."""

    def show(self, job: dict[str, Any]) -> None:
        """The job stands there now."""
        ...

    def say(self, text: str) -> None:
        """A word that is no change of the job."""
        ...


def resolve(client: Client, reference: str) -> str:
    """The job that is meant: the item's newest one, or the job of this id. Errors: `NothingToWatch` (HW-HOME-011)."""
    try:
        item = client.get(f"/items/{reference}")
    except PeerReported as error:
        if error.peer_code != ITEM_MISSING:
            raise
        return reference
    if item["job"]:
        return str(item["job"])
    found = client.get("/jobs", item=item["id"])["jobs"]
    if not found:
        raise NothingToWatch(item=item["name"])
    return str(found[-1]["id"])


def watch(client: Client, job: str, stopped: Callable[[], bool]) -> dict[str, Any]:
    """The job when it is over, or as it stood when the watcher was stopped. Errors: those of the server."""
    first: dict[str, Any] = client.get(f"/jobs/{job}")
    name = client.get(f"/items/{first['item']}")["name"]
    with _view(name) as view:
        found, away_since = first, 0.0
        while True:
            if not away_since:  # else nobody knows where the job stands
                view.show(found)
            if found["status"] in OVER or stopped():
                return found
            time.sleep(POLL_SECONDS)
            try:
                found, away_since = client.get(f"/jobs/{job}"), 0.0
            except ServerUnreachable as error:
                now = time.monotonic()
                if not away_since:
                    away_since = now
                    view.say(
                        "the server does not answer; its jobs go on when it is back; "
                        f"trying again for {show.duration(AWAY_SECONDS_MAX)}"
                    )
                if now - away_since > AWAY_SECONDS_MAX:
                    raise ServerAway(server=error.server, reason=error.reason, item=name) from error


@contextmanager
def _view(name: str) -> Iterator[View]:
    if not sys.stderr.isatty():
        yield Lines(name)
        return
    # Imported here: a script never pays for it.
    from homeward.watch_live import live

    with live(name) as view:
        yield view


class Lines:
    """One line on stderr for each change, and one every ten seconds for the step that moves data."""

    def __init__(self, name: str, say: Callable[[str], None] = show.say) -> None:
        self._name = name
        self.say = say
        self._told: set[tuple[str, str, bool]] = set()
        self._status = ""
        self._speed = Speed()
        self._waits_for = ""
        self._progress_at = time.monotonic()

    def show(self, job: dict[str, Any]) -> None:
        """See `View`."""
        changed, self._status = job["status"] != self._status, job["status"]
        if changed and self._status not in OVER:
            self.say(f"{job['verb']} of {self._name}: {self._status}")
        for step in job["steps"]:
            over = bool(step["ended"])
            for ended in (False, True)[: 1 + over]:
                key = (step["phase"], step["name"], ended)
                if key not in self._told:
                    self._told.add(key)
                    if over == ended:  # one that was over before it was seen is told once
                        self.say(step_line(step))
        running = current(job)
        if running is None:
            return
        now = time.monotonic()
        rate, left = self._speed.add(now, running)
        waits_for = "" if running["total"] else running["label"]
        if waits_for and waits_for != self._waits_for:
            self._progress_at = now
            self.say(f"      {running['name']}: {waits_for}")
        self._waits_for = waits_for or self._waits_for
        if now - self._progress_at >= show.LINE_SECONDS:
            self._progress_at = now
            self.say(f"      {running['name']}: {standing_words(running, rate, left)}")


def current(job: dict[str, Any]) -> dict[str, Any] | None:
    """The step that runs, with what it has moved; None where none does."""
    return next((step for step in reversed(job["steps"]) if not step["ended"]), None)


def step_line(step: dict[str, Any]) -> str:
    """A step in one line."""
    return f"  {mark(step)} {name_of(step):<26} {step_words(step)}".rstrip()


def name_of(step: dict[str, Any]) -> str:
    """The step's name, with the word undo on its way back."""
    return f"undo {step['name']}" if step["phase"] == "undo" else str(step["name"])


def mark(step: dict[str, Any]) -> str:
    """A sign of how the step stands: failed, done, under way."""
    return "✗" if step["failure"] else "✓" if step["ended"] else "▸"


def step_words(step: dict[str, Any]) -> str:
    """How long it took, what it moved, with what it failed."""
    if not step["ended"]:
        return ""
    words = [show.duration(seconds_between(step["started"], step["ended"]))]
    if step["bytes"]:
        words.append(show.size(step["bytes"]))
    if step["failure"]:
        words.append(step["failure"])
    return "  ".join(words)


def standing_words(step: dict[str, Any], rate: float, left: float | None) -> str:
    """Label, share, bytes, rate and time left of a step that runs."""
    if not step["total"]:
        passed = show.duration(max(time.time() - seconds_of(step["started"]), 0.0))
        return f"running for {passed}" + (f"; {step['label']}" if step["label"] else "")
    share = 100 * step["done"] / step["total"]
    eta = f"{show.duration(left)} left" if left is not None else "time left not known yet"
    return (
        f"{step['label']}: {share:.0f} % of {show.size(step['total'])}, {show.size(step['bytes'])} so far, "
        f"{show.size(rate)}/s, {eta}"
    )


def outcome(job: dict[str, Any]) -> list[str]:
    """What is left to say when a job is over and its steps were shown."""
    took = seconds_between(job["started"], job["ended"]) if job["started"] and job["ended"] else 0.0
    ends = {
        GOOD: f"{job['verb']}: done in {show.duration(took)}",
        "failed": f"{job['verb']}: failed after {show.duration(took)}; what it had done was undone",
        "stuck": f"{job['verb']}: stuck: its way back failed too and needs you; the item is held until then",
    }
    lines = [ends.get(job["status"], f"{job['verb']}: {job['status']}")]
    if job["error"]:
        lines += error_lines(job["error"])
    if undo_error := job["report"].get("undo_error"):
        lines += ["on the way back:", *error_lines(undo_error)]
    if warning := job["report"].get("warning"):
        lines.append(f"warning: {warning}")
    if job["status"] in ("failed", "stuck"):
        lines.append(f"then: homeward jobs retry {job['id']}")
    return lines


def error_lines(error: dict[str, str]) -> list[str]:
    """A coded error, a fact a line."""
    return [
        f"  {error['code']}: {error['error']}",
        f"  found:    {error['found']}",
        f"  expected: {error['expected']}",
        f"  do:       {error['remedy']}",
    ]


def seconds_of(time_text: str | None) -> float:
    """Seconds UTC of a time of the API; 0 of none."""
    return datetime.fromisoformat(time_text).timestamp() if time_text else 0.0


def seconds_between(first: str | None, last: str | None) -> float:
    """Seconds from one time of the API to another."""
    return max(seconds_of(last) - seconds_of(first), 0.0)
