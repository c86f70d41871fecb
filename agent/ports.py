"""What the agent needs from outside."""

from pathlib import Path
from typing import Protocol

from drcore.record import Record
from wireproto.link import Transport


class SentRecord(Protocol):
    """Which blocks were sent in this and in earlier, broken runs. Survives the process, not the machine."""

    def before(self, span: int, blocks: int) -> int:
        """Those of the span's blocks (a bitmap) that an earlier run sent already."""
        ...

    def mark(self, span: int, blocks: int) -> None:
        """The span's blocks are sent now."""
        ...

    def close(self) -> None:
        """Given back; kept for the next run."""
        ...

    def remove(self) -> None:
        """Nothing of it is left."""
        ...


class SourceMark(Protocol):
    """What tells whether somebody wrote to a source."""

    def __call__(self) -> str:
        """How the source's files or device look now, for comparison and for people; empty where nothing tells."""
        ...


class LineState(Record):
    """What a connection tells of the line below it."""

    delivered_bytes: int
    """What the other end has received, since the connection began."""
    round_trip: float
    """The shortest that was seen, in seconds."""


class Quiesce(Protocol):
    """What makes the source stand still for a common point of a replication group. Failures are coded errors."""

    def freeze(self) -> None:
        """Nothing writes to the sources until `thaw`."""
        ...

    def harvest(self) -> None:
        """What the sources hold now is what the cycle will read, whatever is written after the thaw."""
        ...

    def thaw(self) -> None:
        """The sources may be written to again. Called after each `freeze`, also after one that failed, and
        already during one that takes too long, from another thread."""
        ...


class StillSource:
    """A source that nothing writes to (a stopped machine, a snapshot): there is nothing to do."""

    def freeze(self) -> None:
        """See `Quiesce`."""

    def harvest(self) -> None:
        """See `Quiesce`."""

    def thaw(self) -> None:
        """See `Quiesce`."""


class Programs(Protocol):
    """The programs of the administrator."""

    def run(self, phase: str, program: tuple[str, ...], seconds: float, facts: dict[str, str]) -> None:
        """It ended well, in time. Errors: `ScriptFailed` (HW-AGENT-011); it is killed then, with its children."""
        ...


class Freezer(Protocol):
    """What makes file systems stand still."""

    def check(self, mounts: tuple[Path, ...], own: tuple[Path, ...]) -> None:
        """The mount points can be frozen without what needs `own` waiting for itself. Errors: `FreezeRefused` (013)."""
        ...

    def freeze(self, mounts: tuple[Path, ...], seconds: float) -> None:
        """Nothing writes to them until `thaw`, or for so long, or until this process ends. Errors: `FreezeFailed`."""
        ...

    def thaw(self) -> str:
        """None is frozen by us any more; answers the mount point that was thawed before, empty when none was."""
        ...


class LastTime(Protocol):
    """When something was done last; seconds since 1970."""

    def load(self) -> float | None:
        """The time; None where it is not known."""
        ...

    def store(self, seconds: float) -> None:
        """It was done then. Errors: `StateFailed` (HW-AGENT-004)."""
        ...


class Connect(Protocol):
    """How to reach the master target."""

    def __call__(self) -> Transport:
        """A new connection. Errors: `MasttargetUnreachable` (HW-AGENT-003)."""
        ...

    def line(self, transport: Transport) -> LineState | None:
        """What is known of the line of one of its connections; None where nothing tells, or once it is closed."""
        ...

    @property
    def peer(self) -> str:
        """The address, for people."""
        ...
