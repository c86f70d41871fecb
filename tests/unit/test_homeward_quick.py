"""The plain command lines are read without click exactly as click reads them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from homeward import comparing, syncing
from homeward.cli import cli
from homeward.quick import HEEDED, OPTIONS, understood

VERBS = {"compare": (comparing, "compare"), "sync": (syncing, "sync")}


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in HEEDED:
        monkeypatch.delenv(name, raising=False)


def read_quickly(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> dict[str, Any] | None:
    """What the verb is called with; None when it is not read here."""
    seen: dict[str, Any] = {}
    module, name = VERBS[words[0]]
    real = getattr(module, name)

    def verb(source: Path, target: Path, **named: Any) -> int:
        seen.update(real.__kwdefaults__ | {"source": source, "target": target} | named)
        return 7

    monkeypatch.setattr(module, name, verb)
    command = understood(words)
    if command is None:
        return None
    assert command() == 7
    return seen


def read_by_click(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    module, name = VERBS[words[0]]
    monkeypatch.setattr(
        module, name, lambda source, target, **named: seen.update(source=source, target=target, **named)
    )
    cli.main(words, standalone_mode=False, obj=type("Run", (), {})())
    return seen


def lines() -> list[list[str]]:
    found = []
    for verb, options in OPTIONS.items():
        found.append([verb, "a.img", "dir/b.img"])
        for option, values in options.items():
            for value in values or (None,):
                given = [option] if value is None else [option, value]
                found += [[verb, *given, "a", "b"], [verb, "a", *given, "b"], [verb, "a", "b", *given]]
    return [
        *found,
        ["sync", "a", "b", "--json", "--create", "raw", "--json", "--adopt", "--create", "vhd-fixed"],
    ]


@pytest.mark.parametrize("words", lines(), ids=" ".join)
def test_what_is_read_is_what_click_reads(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    assert read_quickly(monkeypatch, words) == read_by_click(monkeypatch, words)


@pytest.mark.parametrize("verb", OPTIONS)
def test_options_are_those_of_click(verb: str) -> None:
    told = {
        option: tuple(parameter.type.choices) if isinstance(parameter.type, click.Choice) else ()
        for parameter in cli.commands[verb].params
        if isinstance(parameter, click.Option)
        for option in parameter.opts
    }
    assert OPTIONS[verb].items() <= told.items()


@pytest.mark.parametrize(
    "line",
    [
        "",
        "info a",
        "compare",
        "compare a",
        "compare a b c",
        "compare --help",
        "compare a b -h",
        "compare a b --source-format",
        "compare a b --source-format nonsense",
        "compare a b --source-format=raw",
        "compare a b --jso",
        "compare -- a b",
        "compare - b",
        "sync --undo b",
        "sync a b --bandwidth 50M",
        "sync a b --lanes 2",
        "sync a b --state-directory c",
        "sync a",
        "--debug compare a b",
    ],
)
def test_what_is_not_plain_is_for_click(line: str) -> None:
    assert understood(line.split()) is None


@pytest.mark.parametrize("name", HEEDED)
def test_variables_that_click_heeds_are_for_click(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "x")
    assert understood(["sync", "a", "b"]) is None
    assert understood(["compare", "a", ""]) is None


def test_a_plain_compare_loads_neither_click_nor_inspect(tmp_path: Path) -> None:
    for name in ("a.img", "b.img"):
        (tmp_path / name).write_bytes(bytes(65536))
    script = (
        "import os, sys\n"
        "leave = os._exit\n"
        "def told(code):\n"
        "    print(sorted({'click', 'inspect', 'dataclasses', 'json'} & set(sys.modules)), flush=True)\n"
        "    leave(code)\n"
        "os._exit = told\n"
        "from homeward.__main__ import main\n"
        "main()\n"
    )
    line = [sys.executable, "-c", script, "compare", tmp_path / "a.img", tmp_path / "b.img"]
    done = subprocess.run(line, capture_output=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.splitlines()[-1] == b"[]"
