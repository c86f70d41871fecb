"""What the watcher of a job sees, and when; the words without a terminal."""

from typing import Any

import pytest

from homeward import watch
from homeward.errors import NothingToWatch, ServerUnreachable
from homeward.watch import Lines, Speed
from wireproto.errors import PeerReported


def step(name: str, **facts: Any) -> dict[str, Any]:
    found = {
        "name": name,
        "phase": "do",
        "started": "2026-01-01T00:00:00.000Z",
        "ended": None,
        "bytes": 0,
        "bytes_max": 0,
        "done": 0,
        "total": 0,
        "label": "",
        "failure": None,
    }
    return {**found, **facts}


def job(status: str, *steps: dict[str, Any], **facts: Any) -> dict[str, Any]:
    found = {
        "id": "j",
        "item": "i",
        "verb": "reprotect",
        "status": status,
        "started": "2026-01-01T00:00:00.000Z",
        "ended": "2026-01-01T00:01:30.000Z",
        "error": None,
        "report": {},
        "planned": ["one", "two"],
        "steps": list(steps),
    }
    return {**found, **facts}


ENDED = {"ended": "2026-01-01T00:00:02.000Z"}


class FakeClient:
    """Answers what it was given, in order; the last one for ever."""

    def __init__(self, jobs: list[Any], newest: str = "j") -> None:
        self.jobs = jobs
        self.newest = newest

    def get(self, path: str, **query: str) -> Any:
        if path == "/items/nobody":
            words = ("HW-CONF-002", "no item", "x", "y", "z", "permanent")
            names = ("code", "what", "found", "expected", "remedy", "retry")
            raise PeerReported(**{f"peer_{name}": word for name, word in zip(names, words, strict=True)})
        if path.startswith("/items/"):
            return {"id": "i", "name": "web", "job": ""}
        if path == "/jobs":
            return {"jobs": [{"id": self.newest}] if self.newest else []}
        found = self.jobs.pop(0) if len(self.jobs) > 1 else self.jobs[0]
        if isinstance(found, Exception):
            raise found
        return found


def lines_of(*jobs: dict[str, Any]) -> list[str]:
    said: list[str] = []
    view = Lines("web", said.append)
    for found in jobs:
        view.show(found)
    return said


def test_each_change_is_one_line_and_nothing_is_said_twice() -> None:
    one = step("one")
    said = lines_of(
        job("running", one), job("running", one), job("running", {**one, **ENDED}, step("two")), job("done")
    )
    assert said == ["reprotect of web: running", "  ▸ one", "  ✓ one                        2.0 s", "  ▸ two"]


def test_a_step_that_was_over_at_the_first_look_is_told_once() -> None:
    said = lines_of(job("done", step("one", **ENDED, bytes=2048)))
    assert said == ["  ✓ one                        2.0 s  2.0 KiB"]


def test_the_way_back_is_told_as_such_with_the_code_that_led_to_it() -> None:
    failed = step("two", **ENDED, failure="95226")
    said = lines_of(job("undoing", failed, step("two", phase="undo", **ENDED)))
    assert said == [
        "reprotect of web: undoing",
        "  ✗ two                        2.0 s  95226",
        "  ✓ undo two                   2.0 s",
    ]


def test_rate_and_time_left_speak_of_the_seconds_that_have_just_passed() -> None:
    speed = Speed()
    look = step("two", total=1000, label="comparing")
    assert speed.add(0.0, look) == (0.0, None)
    assert speed.add(2.0, {**look, "done": 500, "bytes": 100}) == (50.0, 2.0)
    later = {**look, "label": "sending the rest", "total": 10}
    assert speed.add(3.0, later) == (0.0, None), "another piece of work begins anew"


def test_progress_without_a_terminal_is_a_line_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("homeward.watch.time.monotonic", lambda: now[0])
    said: list[str] = []
    view = Lines("web", said.append)
    for second in range(31):
        now[0] = float(second)
        moved = second * 1024 * 1024
        view.show(job("running", step("two", total=64 * 2**20, done=moved, bytes=moved, label="comparing")))
    progress = [line for line in said if "%" in line]
    assert progress == [
        "      two: comparing: 16 % of 64.0 MiB, 10.0 MiB so far, 1.0 MiB/s, 54 s left",
        "      two: comparing: 31 % of 64.0 MiB, 20.0 MiB so far, 1.0 MiB/s, 44 s left",
        "      two: comparing: 47 % of 64.0 MiB, 30.0 MiB so far, 1.0 MiB/s, 34 s left",
    ]


def test_a_job_that_failed_ends_with_its_error_its_remedy_and_what_to_do_then() -> None:
    error = {"code": "8038", "error": "no memory", "found": "5", "expected": "9", "remedy": "make room"}
    said = watch.outcome(job("failed", error=error))
    assert said[0] == "reprotect: failed after 90 s; what it had done was undone"
    assert said[1:] == [
        "  8038: no memory",
        "  found:    5",
        "  expected: 9",
        "  do:       make room",
        "then: homeward jobs retry j",
    ]


def test_an_item_stands_for_its_newest_job_and_a_job_for_itself() -> None:
    assert watch.resolve(FakeClient([], "newest"), "web") == "newest"  # type: ignore[arg-type]
    assert watch.resolve(FakeClient([]), "nobody") == "nobody"  # type: ignore[arg-type]
    with pytest.raises(NothingToWatch):
        watch.resolve(FakeClient([], ""), "web")  # type: ignore[arg-type]


def test_a_server_that_restarts_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("homeward.watch.POLL_SECONDS", 0.0)
    away = ServerUnreachable(server="s", reason="refused")
    client = FakeClient([job("running", step("one")), away, away, job("done", step("one", **ENDED))])
    assert watch.watch(client, "j", lambda: False)["status"] == "done"  # type: ignore[arg-type]
    said = capsys.readouterr().err
    assert said.count("trying again") == 1


def test_a_server_that_stays_away_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("homeward.watch.POLL_SECONDS", 0.0)
    monkeypatch.setattr("homeward.watch.AWAY_SECONDS_MAX", 0.01)
    client = FakeClient([job("running"), ServerUnreachable(server="s", reason="refused")])
    with pytest.raises(ServerUnreachable) as caught:
        watch.watch(client, "j", lambda: False)  # type: ignore[arg-type]
    assert caught.value.code == "HW-HOME-008"
    assert str(caught.value).endswith("then homeward jobs watch web"), "the last words: the job is not lost"


def test_while_the_server_is_away_nothing_is_said_of_the_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("homeward.watch.POLL_SECONDS", 0.0)
    monkeypatch.setattr("homeward.show.LINE_SECONDS", 0.0)
    away = ServerUnreachable(server="s", reason="refused")
    client = FakeClient([job("running", step("one")), *[away] * 5, job("done", step("one", **ENDED))])
    watch.watch(client, "j", lambda: False)  # type: ignore[arg-type]
    assert capsys.readouterr().err.count("running for") == 1


def test_what_a_step_waits_for_is_said_at_once_and_once() -> None:
    waits = step("one", label="waits: the disk is in use")
    said = lines_of(
        job("running", step("one")), job("running", waits), job("running", waits), job("running", step("one"))
    )
    assert said[2:] == ["      one: waits: the disk is in use"]
    assert "; waits: the disk is in use" in watch.standing_words(waits, 0.0, None)


def test_a_watcher_that_is_stopped_gets_the_job_as_it_stands() -> None:
    found = watch.watch(FakeClient([job("running")]), "j", lambda: True)  # type: ignore[arg-type]
    assert found["status"] == "running"


def test_the_live_table_shows_what_runs_what_is_over_and_what_is_still_to_come() -> None:
    from io import StringIO

    from rich.console import Console
    from rich.live import Live

    from homeward.watch_live import LiveView

    out = StringIO()
    console = Console(file=out, force_terminal=True, width=120, color_system=None)
    with Live(console=console, auto_refresh=False) as live:
        view = LiveView("web", live, console)
        running = step("one", total=100, done=40, bytes=2048, label="comparing")
        view.show(job("running", running))
        view.show(job("failed", step("one", **ENDED, failure="95226"), step("one", phase="undo", **ENDED)))
    shown = out.getvalue()
    assert "reprotect of web: running" in shown
    assert " 40 %" in shown
    assert "· two" in shown, "a step that has not begun"
    assert "✗ one" in shown
    assert "undo one" in shown
