"""Sizes, scratch, images and the report; the tables are printed, and a full run writes them into the document."""

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import images, limits
from benchmarks.published import Report, Settings, write
from benchmarks.racing import HOMEWARD, command
from drcore.limits import GIB, MIB

DOCUMENT = Path(__file__).parent.parent / "docs" / "benchmarks.md"
REPORT = pytest.StashKey[Report]()


def _settings() -> Settings:
    quick = bool(os.environ.get("QUICK"))
    return Settings(
        quick=quick,
        image_bytes=int(os.environ.get("BENCH_BYTES") or (512 * MIB if quick else 4 * GIB)),
        buffer_bytes=64 * MIB if quick else 256 * MIB,
        rounds=int(os.environ.get("ROUNDS") or (2 if quick else 5)),
        seed=int(os.environ.get("SEED") or random.SystemRandom().randrange(2**32)),
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REPORT] = Report(_settings())


def pytest_report_header(config: pytest.Config) -> str:
    settings = config.stash[REPORT].settings
    return f"benchmarks: {settings.image_bytes} bytes of disk, {settings.rounds} rounds, SEED={settings.seed}"


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    report = config.stash[REPORT]
    terminalreporter.write_line(report.markdown())
    whole = not config.option.keyword and len(config.args) == 1 and not config.option.collectonly
    if exitstatus == 0 and whole and not report.settings.quick:
        write(report, DOCUMENT)
        terminalreporter.write_line(f"written into {DOCUMENT.name}")


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Report:
    return pytestconfig.stash[REPORT]


@pytest.fixture(scope="session")
def settings(report: Report) -> Settings:
    return report.settings


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A directory with room for five images, gone afterwards; TMPDIR says where."""
    with tempfile.TemporaryDirectory(prefix="homeward-bench-") as directory:
        _keep_bytecode(Path(directory))
        yield Path(directory)


def _keep_bytecode(directory: Path) -> None:
    """Every Python that is started from now on finds its bytecode ready, as an installed package's is."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(directory / "bytecode")
    source, target = directory / "small.img", directory / "twin.img"
    for disk in (source, target):
        disk.write_bytes(bytes(MIB))
    command(HOMEWARD, "compare", source, target)()
    command(HOMEWARD, "sync", source, target)()
    images.remove(source, target)


@pytest.fixture(scope="session")
def changes(scratch: Path, settings: Settings) -> images.Changes:
    """Two images of which one block in a hundred differs."""
    before = images.make(scratch / "before.img", settings.image_bytes, settings.seed)
    return images.change(before, scratch / "after.img", settings.seed + 1)


@pytest.fixture(scope="session")
def content(changes: images.Changes, settings: Settings) -> bytes:
    """File contents in memory, longer than any cache: whole spans."""
    pieces, left = [], settings.buffer_bytes
    with changes.before.path.open("rb") as file:
        for offset, length in changes.before.runs:
            file.seek(offset)
            pieces.append(file.read(min(length, left)))
            left -= len(pieces[-1])
    assert left == 0, "the image is smaller than the buffer"
    return b"".join(pieces)


@pytest.fixture(scope="session")
def rates(report: Report, content: bytes, changes: images.Changes, scratch: Path) -> dict[str, float]:
    """What the machine gets through each step of the work, measured once, and published."""
    images.settle(changes.before.path)
    report.rates = limits.measure(content, changes.before, scratch)
    return report.rates


@pytest.fixture
def targets(scratch: Path) -> Iterator[Path]:
    """A directory for the targets of one measurement, gone after it."""
    with tempfile.TemporaryDirectory(prefix="targets-", dir=scratch) as directory:
        yield Path(directory)
