"""What people see: progress on stderr, summaries, sizes and times in plain words. Scripts get JSON instead."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import FileIO, TextIOWrapper
from typing import TYPE_CHECKING, Any, Final

from drcore.record import Record
from homeward.errors import OutputFailed

if TYPE_CHECKING:
    from disks.catalogue import ImageInfo
    from disks.check import Finding
    from disks.disk import Format
    from disks.identity import DiskIdentity

WAITS_FOR_ROOM: Final = (
    "waiting: the retention volume of the master target is full (HW-MT-036). Make room there, or give points up with "
    "homeward points drop, and the cycle goes on by itself; or stop it with Ctrl-C, and the same command goes on later"
)
LINE_SECONDS: Final = 10.0
FRAME_SECONDS: Final = 0.2
RATE_SECONDS: Final = 10.0
"""The rate and the ETA speak of so many seconds that have just passed."""


class Standing(Record):
    """Where a long piece of work stands. `done` and `total` measure the bar; `moved` is what the rate speaks of."""

    done: int
    total: int
    moved: int
    label: str


def size(count: float) -> str:
    """Bytes in the unit that leaves three or four digits."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def count(number: int) -> str:
    """A number with its thousands apart."""
    return f"{number:,}"


def counted(number: int, noun: str) -> str:
    """So many of something."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


class _Rate:
    """Bytes a second and time left, from the last seconds."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int, int]] = []

    def add(self, now: float, standing: Standing) -> tuple[float, float | None]:
        if self._seen and standing.moved < self._seen[-1][2]:
            self._seen.clear()  # a new session counts from zero
        self._seen.append((now, standing.done, standing.moved))
        while len(self._seen) > 2 and now - self._seen[0][0] > RATE_SECONDS:
            self._seen.pop(0)
        then, done, moved = self._seen[0]
        passed = max(now - then, 1e-6)
        speed = (standing.done - done) / passed
        left = (standing.total - standing.done) / speed if speed > 0 else None
        return (standing.moved - moved) / passed, left


def _line(standing: Standing, rate: float, left: float | None) -> str:
    if not standing.total:
        return f"{standing.label}: {size(standing.moved)} so far, {size(rate)}/s"
    share = 100 * standing.done / standing.total
    eta = f"{duration(left)} left" if left is not None else "time left not known yet"
    return (
        f"{standing.label}: {share:.0f} % of {size(standing.total)}, {size(standing.moved)} so far, "
        f"{size(rate)}/s, {eta}"
    )


@contextmanager
def progress(standing: Callable[[], Standing]) -> Iterator[None]:
    """While the block runs, stderr shows where it stands: a live bar on a terminal, else a line every ten seconds."""
    over, failed = threading.Event(), threading.Event()
    show = _bar if sys.stderr.isatty() else _lines
    thread = threading.Thread(target=show, args=(standing, over, failed), name="progress", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        failed.set()
        raise
    finally:
        over.set()
        thread.join()


def _lines(standing: Callable[[], Standing], over: threading.Event, _: threading.Event) -> None:
    rate = _Rate()
    rate.add(time.monotonic(), standing())
    told = time.monotonic()
    while not over.wait(FRAME_SECONDS):
        now, moment = standing(), time.monotonic()
        if moment - told >= LINE_SECONDS:
            told = moment
            say(_line(now, *rate.add(moment, now)))
    standing()


def _bar(standing: Callable[[], Standing], over: threading.Event, failed: threading.Event) -> None:
    # Imported here: a script never pays for it.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[words]}"),
    )
    rate = _Rate()
    with Progress(*columns, console=console, expand=True) as bar:
        task = bar.add_task(standing().label, total=1, words="")
        while True:
            last = over.wait(FRAME_SECONDS)
            now = standing()
            speed, left = rate.add(time.monotonic(), now)
            eta = f"ETA {duration(left)}" if left is not None else "ETA unknown"
            total, done = now.total, now.done
            if last:
                good = done >= total and not failed.is_set()
                eta = "done" if good else "stopped"
                if good and not total:
                    total = done = 1  # nothing was to be done, and all of it is
            words = f"{size(now.moved)}  {size(speed)}/s  {eta}"
            bar.update(task, total=max(total, 1), completed=done, description=now.label, words=words)
            if last:
                return


def say(text: str) -> None:
    """A line for people on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def answer(text: str) -> None:
    """A line of the result on stdout."""
    _result(text + "\n")


def finish() -> None:
    """What was answered has left this process. Errors: `OutputFailed` (HW-HOME-010)."""
    _result("", last=True)


def _result(text: str, *, last: bool = False) -> None:
    try:
        sys.stdout.write(text)
        if last:
            sys.stdout.flush()
    except BrokenPipeError:  # a reader that has seen enough, such as head(1)
        raise
    except OSError as error:
        sys.stdout = TextIOWrapper(FileIO(os.devnull, "w"))
        raise OutputFailed(reason=error.strerror or str(error)) from error


def answer_json(found: dict[str, Any]) -> None:
    """The one JSON object on stdout."""
    import json  # here: people never pay for it

    _result(json.dumps(found) + "\n")


def image(found: "ImageInfo | None", told: "Format | None") -> dict[str, Any]:
    """The object that `info --json` prints; everything but a told format is null of an image that cannot be opened."""
    if found is None:
        unknown = dict.fromkeys(("virtual_size", "allocated_bytes", "grain_size"))
        return {"format": told.value if told else None, **unknown}
    return {
        "format": found.format.value,
        "virtual_size": found.virtual_size,
        "allocated_bytes": found.allocated_bytes,
        "grain_size": found.grain_size,
    }


def identity(label: str, found: "DiskIdentity") -> None:
    """Who a disk is, for the eyes that confirm an adoption; on stderr."""
    say(f"{label:<18}{found.path}, {size(found.size)} ({count(found.size)} bytes)")
    say(f"  disk UUID       {found.disk_uuid or 'none'}")
    say(f"  partition table {found.partition_table}")
    for system in found.file_systems or ("none that is known",):
        say(f"  file system     {system}")


def findings(found: "Sequence[Finding]") -> list[dict[str, Any]]:
    """The list `check` of `info --check --json`."""
    return [
        {
            "severity": each.severity.value,
            "path": each.path or None,
            "structure": each.structure,
            "offset": each.offset,
            "found": each.seen,
            "expected": each.wanted,
        }
        for each in found
    ]


def finding_line(found: "Finding") -> str:
    """A finding in one line for people."""
    where = f" of {found.path}" if found.path else ""
    return (
        f"{found.severity.value:<14} {found.structure} at offset {found.offset}{where}; found {found.seen}; "
        f"expected {found.wanted}"
    )
