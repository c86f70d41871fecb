"""Both roles, wired as in their own main modules, but with SIGKILL waiting at a named point.

`python -m tests.campaigns.dying masttarget|agent|rollback|drop CONFIG POINT COUNT [SEQUENCE]`: the process kills itself
when it comes to the point for the COUNT-th time. An empty point: never. `rollback` and `drop` are the operator's verbs
on the first disk's item, for the point of that sequence.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent import config as agent_config
from agent.adapters import sent_file
from agent.main import Agent
from disks import catalogue
from drcore.clock import SystemClock
from drcore.errors import HomewardError
from masttarget import config as masttarget_config
from masttarget.adapters.files import LocalStore
from masttarget.adapters.group_files import GroupFiles
from masttarget.adapters.retention_files import RetentionFiles
from masttarget.going_back import go_back
from masttarget.main import Master, stop_on_signals
from masttarget.retention import Policy, Retention

CREATE_POINTS = ("before create", "after create")
MASTTARGET_POINTS = (
    *(f"{side} {verb}" for verb in ("write", "flush", "zero") for side in ("before", "after")),
    *(
        f"{side} {verb}"
        for verb in ("store", "append_applied", "start_applied")
        for side in ("before", "after")
    ),
    *CREATE_POINTS,
    "before remove",
    "after remove",
)
RETENTION_POINTS = tuple(
    f"{side} {verb}"
    for verb in (
        *(f"segment {verb}" for verb in ("start", "append", "flush", "remove", "store_head")),
        *(f"list {verb}" for verb in ("append", "replace")),
        *(f"verified {verb}" for verb in ("reset", "write", "flush")),
    )
    for side in ("before", "after")
)
GROUP_POINTS = tuple(f"{side} note {verb}" for verb in ("store", "remove") for side in ("before", "after"))
AGENT_POINTS = ("before read", "before mark", "after mark", "before remove", "after remove")


class Death:
    """Counts how often a point was reached."""

    def __init__(self, point: str, count: int) -> None:
        self._point = point
        self._left = count
        self._lock = threading.Lock()

    def at(self, point: str) -> None:
        if point != self._point:
            return
        with self._lock:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


class Dying:
    """Stands before an object; the named verbs pass two points."""

    def __init__(self, inner: Any, death: Death, verbs: tuple[str, ...], kind: str = "") -> None:
        self.inner = inner
        self._kind = kind
        self._death = death
        self._verbs = verbs

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        return self._passing(name, found) if name in self._verbs else found

    def _passing(self, name: str, verb: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **words: Any) -> Any:
            self._death.at(f"before {self._kind}{name}")
            answer = verb(*args, **words)
            self._death.at(f"after {self._kind}{name}")
            return answer

        return call


class DyingStore(LocalStore):
    """The real store; disks and journals pass the points."""

    def __init__(self, scratch: Path, death: Death) -> None:
        super().__init__(scratch)
        self._death = death

    def _wrap(self, disk: Any) -> Any:
        return Dying(disk, self._death, ("write", "flush", "zero"))

    def open(self, disk: Any) -> Any:
        return self._wrap(super().open(disk))

    def create(self, disk: Any, size: int) -> Any:
        self._death.at("before create")
        made = super().create(disk, size)
        self._death.at("after create")
        return self._wrap(made)

    def identity(self, disk: Any) -> Any:
        return super().identity(disk.inner)

    def file_marks(self, disk: Any) -> Any:
        return super().file_marks(disk.inner)

    def change_mark(self, disk: Any) -> str:
        return super().change_mark(disk.inner)

    def forget(self, disk: Any) -> None:
        super().forget(disk.inner)

    def journal(self, disk: Any) -> Any:
        verbs = ("store", "append_applied", "start_applied", "remove")
        return Dying(super().journal(disk), self._death, verbs)


class DyingRetention(RetentionFiles):
    """The real retention volume; lists and segments pass the points."""

    def __init__(self, path: Path, death: Death) -> None:
        super().__init__(path)
        self._death = death

    def points(self, item: bytes) -> Any:
        return Dying(super().points(item), self._death, ("append", "replace"), "list ")

    def segments(self, item: bytes, disk: bytes) -> Any:
        verbs = ("start", "append", "flush", "remove", "store_head")
        return Dying(super().segments(item, disk), self._death, verbs, "segment ")

    def verified(self, item: bytes, disk: bytes) -> Any:
        return Dying(super().verified(item, disk), self._death, ("reset", "write", "flush"), "verified ")


def run_masttarget(path: Path, death: Death) -> int:
    config = masttarget_config.load(path)
    wiring: Any = sys.modules["masttarget.main"]
    wiring.RetentionFiles = lambda path: DyingRetention(path, death)
    wiring.GroupFiles = lambda path: Dying(GroupFiles(path), death, ("store", "remove"), "note ")
    master = Master(config, lambda event, /, **facts: None, DyingStore(config.state_directory, death))
    stop_on_signals(master.stop)
    print(master.address[1], flush=True)
    master.run()
    return 0


def run_agent(path: Path, death: Death) -> int:
    opening, marking = catalogue.open_source, sent_file.SentFile

    def open_source(*args: Any) -> Any:
        return Dying(opening(*args), death, ("read",))

    def sent(*args: Any) -> Any:
        return Dying(marking(*args), death, ("mark", "remove"))

    catalogue.open_source = open_source  # type: ignore[assignment]
    sys.modules["agent.main"].SentFile = sent  # type: ignore[attr-defined]
    report = Agent(agent_config.load(path), lambda error, wait: None).run()
    print(report.disks[0].bytes_resent, int(report.resumed), flush=True)
    return 0


def run_verb(verb: str, path: Path, death: Death, sequence: int) -> int:
    config = masttarget_config.load(path)
    assert config.retention is not None
    quiet: Any = lambda event, /, **facts: None  # noqa: E731
    files = DyingRetention(config.retention, death)
    item = Retention(files, SystemClock(), Policy(config.retention_seconds), quiet).item(
        config.disks[0].item.bytes
    )
    point = item.points.by_sequence(sequence)
    assert point is not None, f"no point {sequence}"
    if verb == "rollback":
        go_back(config.disks, point, item, DyingStore(config.state_directory, death), lambda position: None)
    else:
        item.drop([point])
        item.tidy()
    return 0


def main() -> int:
    role, path, point, count, *words = sys.argv[1:]
    death = Death(point, int(count))
    try:
        if words:
            return run_verb(role, Path(path), death, int(words[0]))
        return (run_masttarget if role == "masttarget" else run_agent)(Path(path), death)
    except HomewardError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
