"""What a cycle reads: a snapshot of one instant, made by the administrator's program, app-consistent when it is due.

For an app-consistent point the applications are told (`pre_freeze`), the file systems frozen, the snapshot made, the
file systems thawed and the applications told again (`post_thaw`). The agent has no change tracker: to read a whole disk
takes longer than a file system may stand still, so only a snapshot can be of one instant. Whatever of that fails, the
cycle reads a snapshot that was made without it, is crash-consistent, and somebody is told why; never the other way.
"""

from collections.abc import Callable
from enum import Enum
from pathlib import Path

from agent.config import QuiesceConfig
from agent.errors import FreezeFailed
from agent.ports import Freezer, LastTime, Programs
from drcore.clock import Clock
from drcore.errors import HomewardError


class Phase(Enum):
    """When a program is called; it finds the value in HOMEWARD_PHASE."""

    PRE_FREEZE = "pre-freeze"
    SNAPSHOT = "snapshot"
    POST_THAW = "post-thaw"
    RELEASE = "release"


class Stand:
    """The snapshot of one run of the agent: `begin`, the cycle, `end`. One thread."""

    def __init__(
        self,
        config: QuiesceConfig,
        item: str,
        own: tuple[Path, ...],
        programs: Programs,
        freezer: Freezer,
        last: LastTime,
        clock: Clock,
        warn: Callable[[HomewardError], None],
    ) -> None:
        """`own` are directories that the agent writes to itself; `warn` is told why a point is crash-consistent."""
        self._config = config
        self._item = item
        self._own = own
        self._programs = programs
        self._freezer = freezer
        self._last = last
        self._clock = clock
        self._warn = warn
        self._made_at = 0.0
        self._app_consistent = False

    @property
    def due(self) -> bool:
        """Whether the next point should be app-consistent; a clock that went back makes it due."""
        if not self._config.interval_seconds:
            return False
        last = self._last.load()
        return last is None or not 0 <= self._clock.now() - last < self._config.interval_seconds

    def begin(self) -> bool:
        """The snapshot is there; answers whether it is app-consistent.

        Errors: `ScriptFailed` (HW-AGENT-011) when not even a crash-consistent one could be made.
        """
        self._app_consistent = False
        if self.due:
            try:
                self._make_app_consistent()
                self._app_consistent = True
                return True
            except HomewardError as error:
                self._warn(error)
                self.end()  # what was made, if it was, is not of the instant that it was to be of
        self._call(Phase.SNAPSHOT, self._config.snapshot, self._config.script_seconds)
        return False

    def _make_app_consistent(self) -> None:
        config = self._config
        self._freezer.check(config.freeze, self._own)
        try:
            self._call(Phase.PRE_FREEZE, config.pre_freeze, config.script_seconds)
            self._make_frozen()
        finally:
            # Also when the first program failed half-way: the applications go on in any case.
            self._call(Phase.POST_THAW, config.post_thaw, config.script_seconds)

    def _make_frozen(self) -> None:
        """The snapshot was made while every file system stood still, from before it began until after it was done."""
        began = self._clock.monotonic()
        self._made_at = self._clock.now()
        try:
            self._freezer.freeze(self._config.freeze, self._config.freeze_seconds)
            left = self._config.freeze_seconds - (self._clock.monotonic() - began)
            self._call(Phase.SNAPSHOT, self._config.snapshot, max(left, 0.0))
        finally:
            early = self._freezer.thaw()
        if early:
            raise FreezeFailed(mount=early, reason="it was thawed before the snapshot was done")

    def end(self) -> None:
        """The snapshot is given back, as far as the program can; that it cannot is told."""
        try:
            self._call(Phase.RELEASE, self._config.release, self._config.script_seconds)
        except HomewardError as error:
            self._warn(error)

    def published(self) -> None:
        """The point stands: an app-consistent one is due again after the interval."""
        if self._app_consistent:
            self._last.store(self._made_at)

    def _call(self, phase: Phase, program: tuple[str, ...], seconds: float) -> None:
        if program:
            facts = {"HOMEWARD_PHASE": phase.value, "HOMEWARD_ITEM": self._item}
            self._programs.run(phase.value, program, seconds, facts)
