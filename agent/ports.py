"""What the agent needs from outside."""

from dataclasses import dataclass
from typing import Protocol

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


@dataclass(frozen=True, slots=True)
class LineState:
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
