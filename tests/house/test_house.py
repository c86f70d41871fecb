"""The house rules that no other program checks: layers of .pyx, sizes, names, documents against code."""

import importlib
import inspect
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from drcore.errors import HomewardError

ROOT = Path(__file__).parents[2]
ROOMS = {
    "_native",
    "agent",
    "benchmarks",
    "confserver",
    "disks",
    "drcore",
    "homeward",
    "masttarget",
    "procserver",
    "simlab",
    "tests",
    "wireproto",
}
MODULE_LINES_MAX = 600
FORBIDDEN_NAMES = re.compile(r"(?:^|[/_])(utils?|helpers?|common|managers?)\.(py|pyx|pxd|c|h)$")
# Written so that this file does not hold what it looks for.
FORBIDDEN_WORDS = ("/wor" + "k/", "../shar" + "ed", "TO" + "DO", "FIX" + "ME")
FORBIDDEN_IN_TESTS = ("mark.sk" + "ip", "mark.xfa" + "il", "pytest.sk" + "ip(")


def shipped() -> list[Path]:
    """Every text file that git keeps."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    return [path for path in paths if path.is_file()]


def text_of(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError:
        return ""


def rooms() -> list[str]:
    """The packages that are shipped, from pyproject.toml."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return sorted({name.split(".")[0] for name in settings["tool"]["setuptools"]["packages"]})


def test_native_code_imports_nothing_of_ours() -> None:
    statement = re.compile(r"^\s*(?:from|cimport|import)\s+([A-Za-z_][\w.]*)", re.MULTILINE)
    seen = 0
    for path in [*(ROOT / "_native").glob("*.pyx"), *(ROOT / "_native").glob("*.pxd")]:
        for module in statement.findall(path.read_text()):
            seen += 1
            assert module.split(".")[0] not in ROOMS - {"_native"}, f"{path.name}: {module}"
    assert seen > 5


def test_native_code_opens_nothing() -> None:
    calls = re.compile(r"\b(fopen|open|openat|socket|connect|system|popen)\s*\(")
    for path in (ROOT / "_native").rglob("*"):
        if path.suffix in (".pyx", ".c", ".h") and "build" not in path.parts:
            assert not calls.search(path.read_text()), path


def test_the_rooms_import_no_stand_ins() -> None:
    statement = re.compile(r"^\s*(?:from|import)\s+(simlab|tests|benchmarks)\b", re.MULTILINE)
    for room in rooms():
        if room != "simlab":
            for path in (ROOT / room).rglob("*.py"):
                assert not statement.search(path.read_text()), path


def test_modules_are_small_enough_to_read() -> None:
    for path in shipped():
        if path.suffix in (".py", ".pyx", ".c", ".h"):
            lines = text_of(path).count("\n")
            assert lines <= MODULE_LINES_MAX, f"{path.relative_to(ROOT)} has {lines} lines"


def test_no_module_is_a_drawer_for_everything() -> None:
    for path in shipped():
        assert not FORBIDDEN_NAMES.search(str(path.relative_to(ROOT))), path


def test_every_package_module_says_what_it_is() -> None:
    for room in rooms():
        for path in (ROOT / room).rglob("*.py"):
            start = path.read_text().lstrip()
            assert start.startswith('"""'), f"{path.relative_to(ROOT)} has no docstring"


@pytest.mark.parametrize("word", FORBIDDEN_WORDS)
def test_the_project_speaks_of_itself_only(word: str) -> None:
    for path in shipped():
        assert word not in text_of(path), f"{path.relative_to(ROOT)} says {word}"


def test_no_test_is_skipped_or_expected_to_fail() -> None:
    for path in shipped():
        if path.suffix == ".py" and "tests" in path.parts:
            for word in FORBIDDEN_IN_TESTS:
                assert word not in text_of(path), f"{path.relative_to(ROOT)} says {word}"


def test_only_config_modules_read_the_environment() -> None:
    """Settings come from one place; the command line may name an environment variable for an option."""
    for room in ("agent", "masttarget", "disks", "wireproto", "drcore"):
        for path in (ROOT / room).rglob("*.py"):
            if path.name != "config.py":
                assert "os.environ" not in path.read_text(), path


def registry() -> dict[str, type[HomewardError]]:
    """All coded errors of the shipped rooms; tests may have declared others."""
    for room in rooms():
        for path in sorted((ROOT / room).rglob("*.py")):
            if path.name != "__main__.py":
                module = path.parent if path.name == "__init__.py" else path.with_suffix("")
                importlib.import_module(".".join(module.relative_to(ROOT).parts))
    return {
        code: kind
        for code, kind in HomewardError.registry.items()
        if kind.__module__.split(".")[0] in rooms()
    }


def test_every_error_code_is_explained_and_nothing_else_is() -> None:
    documented = set(re.findall(r"\bHW-[A-Z]+-\d{3}\b", (ROOT / "docs" / "errors.md").read_text()))
    shipped_codes = {code for code in documented if not code.startswith("HW-SIMLAB-")}
    assert {code for code in registry() if code.startswith("HW-")} == shipped_codes


def test_every_error_fills_its_sentences() -> None:
    found = registry()
    assert len(found) > 50
    for kind in found.values():
        facts = {
            name: "seven" if annotation in (str, "str") else 7
            for each in kind.__mro__
            for name, annotation in inspect.get_annotations(each).items()
            if name in kind._facts
        }
        line = str(kind(**facts))
        assert "{" not in line.replace("{path}", ""), line
        assert "\n" not in line
        for part in ("what", "found", "expected", "remedy"):
            assert kind(**facts).sentence(part), f"{kind.__name__} has no {part}"


def test_codes_named_in_code_exist() -> None:
    known = set(registry())
    for room in rooms():
        for path in (ROOT / room).rglob("*.py"):
            for code in re.findall(r"\bHW-[A-Z]+-\d{3}\b", path.read_text()):
                example = path.name == "errors.py" and path.parent.name == "drcore"
                assert code in known or example, f"{path.relative_to(ROOT)} names {code}"


def make_targets() -> set[str]:
    heads = re.findall(r"^([a-z][\w -]*):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return {target for head in heads for target in head.split()}


def test_commands_in_the_documents_are_make_targets() -> None:
    targets = make_targets()
    assert {"build", "demo", "test", "check", "bench"} <= targets
    seen = 0
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for word in re.findall(r"`(?:\w+=\S+ )?make ([a-z][\w-]*)", path.read_text()):
            seen += 1
            assert word in targets, f"{path.name} speaks of make {word}"
    assert seen


def test_the_pipeline_runs_make_targets_only() -> None:
    targets = make_targets()
    for line in (ROOT / ".ci" / "run").read_text().splitlines():
        if line.startswith("make "):
            assert line.split()[1] in targets
