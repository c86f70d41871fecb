"""What people see: sizes, times, progress in plain words, and nothing on stdout but the answer."""

import json
import os
import sys
import threading
from contextlib import suppress
from io import FileIO, TextIOWrapper

import pytest

from homeward import server, show
from homeward.logs import log_to_stderr
from homeward.show import Standing


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 * 1024, "1.5 MiB"),
        (16 << 40, "16.0 TiB"),
        (5000 << 40, "5000.0 TiB"),
    ],
)
def test_sizes(number: int, text: str) -> None:
    assert show.size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (10, "10 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "2 h 0 min"),
        (9000, "2 h 30 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert show.duration(seconds) == text


def test_a_count_has_its_thousands_apart() -> None:
    assert show.count(1234567) == "1,234,567"


def test_the_json_answer_is_one_line_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    show.answer_json({"a": "two\nlines", "b": None})
    show.say("for people")
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert json.loads(out) == {"a": "two\nlines", "b": None}
    assert err == "for people\n"


def test_progress_without_a_terminal_is_a_line_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "LINE_SECONDS", 0.01)
    told = threading.Event()
    say = show.say

    def noted(text: str) -> None:
        say(text)
        told.set()

    monkeypatch.setattr(show, "say", noted)
    done = iter(range(1, 1_000_000))
    with show.progress(lambda: Standing(min(next(done), 80), 100, 5 << 20, "comparing")):
        assert told.wait(10)
    out, err = capsys.readouterr()
    assert out == ""
    first = err.splitlines()[0]
    assert first.startswith("comparing: ")
    for word in ("% of 100 B", "5.0 MiB so far", "/s, "):
        assert word in first


def test_progress_of_nothing_divides_by_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = threading.Event()
    monkeypatch.setattr(show, "LINE_SECONDS", 0.01)
    monkeypatch.setattr(show, "say", lambda text: (told.set(), lines.append(text)))
    lines: list[str] = []
    with show.progress(lambda: Standing(0, 0, 0, "starting")):
        assert told.wait(10)
    assert lines[0] == "starting: 0 B so far, 0 B/s"


def test_progress_ends_with_the_work_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError), show.progress(lambda: Standing(0, 1, 0, "x")):
        raise KeyError
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_lists_have_a_head_whose_words_stand_above_their_columns(capsys: pytest.CaptureFixture[str]) -> None:
    server.show_items([{"name": "web", "state": "protected", "health": "healthy", "job": None}])
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["ITEM", "STATE", "HEALTH"]
    assert head.index("STATE") == line.index("protected")
    assert head.index("HEALTH") == line.index("healthy")
    server.show_jobs([{"id": "1" * 36, "verb": "reprotect", "status": "done", "created": "today"}])
    head, line = capsys.readouterr().out.splitlines()
    assert head.index("CREATED") == line.index("today")
    server.show_items([])
    assert "ITEM" not in capsys.readouterr().out


def test_the_help_names_the_variables_for_server_and_token() -> None:
    from click.testing import CliRunner

    from homeward.control import items

    told = CliRunner().invoke(items, ["list", "--help"]).output
    told = " ".join(told.split())
    for variable in ("HOMEWARD_SERVER", "HOMEWARD_TOKEN_FILE", "HOMEWARD_TOKEN holds"):
        assert variable in told


def test_one_of_something_is_no_plural() -> None:
    assert show.counted(1, "block") == "1 block"
    assert show.counted(0, "block") == "0 blocks"
    assert show.counted(1252, "block") == "1,252 blocks"


def test_a_rate_is_never_negative_when_a_new_session_counts_from_zero() -> None:
    rate = show._Rate()
    rate.add(0.0, Standing(0, 0, 5_000_000, "sending"))
    speed, left = rate.add(5.0, Standing(0, 0, 1000, "sending"))
    assert (speed, left) == (0.0, None)
    speed, _ = rate.add(10.0, Standing(0, 0, 6000, "sending"))
    assert speed == 1000


def test_a_line_about_nothing_ordered_yet_tells_no_share() -> None:
    assert show._line(Standing(0, 0, 2048, "waiting"), 0.0, None) == "waiting: 2.0 KiB so far, 0 B/s"


def test_a_log_that_is_full_stops_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    stream = TextIOWrapper(FileIO(full, "w"), write_through=True)
    monkeypatch.setattr(sys, "stderr", stream)
    log_to_stderr()("disk failed", code="HW-DISKS-003")
    with suppress(OSError):
        stream.close()
