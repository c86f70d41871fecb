"""Both roles, wired as in their own main modules, but with SIGKILL waiting at a named point.

`python -m tests.campaigns.dying masttarget|agent CONFIG POINT COUNT`: the process kills itself when it comes to the
point for the COUNT-th time. An empty point: never.
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
from drcore.errors import HomewardError
from masttarget import config as masttarget_config
from masttarget.adapters.files import LocalStore
from masttarget.main import Master, stop_on_signals

MASTTARGET_POINTS = (
    *(f"{side} {verb}" for verb in ("write", "flush", "zero") for side in ("before", "after")),
    *(
        f"{side} {verb}"
        for verb in ("store", "append_applied", "start_applied")
        for side in ("before", "after")
    ),
    *(f"{side} create" for side in ("before", "after")),
    "before remove",
    "after remove",
)
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

    def __init__(self, inner: Any, death: Death, verbs: tuple[str, ...]) -> None:
        self.inner = inner
        self._death = death
        self._verbs = verbs

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        return self._passing(name, found) if name in self._verbs else found

    def _passing(self, name: str, verb: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **words: Any) -> Any:
            self._death.at(f"before {name}")
            answer = verb(*args, **words)
            self._death.at(f"after {name}")
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

    def journal(self, disk: Any) -> Any:
        verbs = ("store", "append_applied", "start_applied", "remove")
        return Dying(super().journal(disk), self._death, verbs)


def run_masttarget(path: Path, death: Death) -> int:
    config = masttarget_config.load(path)
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


def main() -> int:
    role, path, point, count = sys.argv[1:]
    death = Death(point, int(count))
    try:
        return (run_masttarget if role == "masttarget" else run_agent)(Path(path), death)
    except HomewardError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
