"""The agent's part in a common point of its replication group: enrol, freeze, harvest, wait for the thaw."""

import threading
from collections.abc import Callable

from agent.errors import FrozenTooLong
from agent.ports import Quiesce
from drcore.clock import Clock
from drcore.limits import GROUP_FREEZE_SECONDS_MAX
from wireproto.barrier import Enrol, Frozen, Harvested, Prepare, Thaw
from wireproto.connection import SESSION_STREAM, Received
from wireproto.errors import MessageRefused
from wireproto.link import Link
from wireproto.messages import Alive, Report, error_of


class Barrier:
    """One round of one member. Whatever happens, the source is thawed when `run` is over, and in time."""

    def __init__(
        self,
        group: str,
        link: Link,
        quiesce: Quiesce,
        clock: Clock,
        frozen_seconds_max: float = GROUP_FREEZE_SECONDS_MAX,
    ) -> None:
        self._group = group
        self._link = link
        self._quiesce = quiesce
        self._clock = clock
        self._most = frozen_seconds_max
        self._lock = threading.Lock()
        self._frozen = False

    def run(self, other: Callable[[Received], None]) -> bytes:
        """The common point; every member stood still at one instant, and has harvested.

        `other` gets what comes in between and is not of the barrier. Errors: `FrozenTooLong` (HW-AGENT-010),
        `PeerReported` when the round is void, `ConnectionLost`, those of `Quiesce`.
        """
        self._link.send(SESSION_STREAM, Enrol(self._group))
        point = self._wait(Prepare, other)
        began = self._clock.monotonic()
        # The thaw does not depend on what hangs: the harvest, or the wait for the master target's word.
        limit = threading.Timer(self._most, self._thaw)
        limit.daemon = True
        try:
            self._frozen = True
            limit.start()
            self._quiesce.freeze()
            self._thaw_again_if_late()
            self._link.send(SESSION_STREAM, Frozen(point))
            self._quiesce.harvest()
            self._link.send(SESSION_STREAM, Harvested(point))
            if self._wait(Thaw, other) != point:
                raise MessageRefused(reason="a thaw of another point")
        finally:
            limit.cancel()
            in_time = self._thaw()
        if not in_time:
            raise FrozenTooLong(seconds=self._clock.monotonic() - began, most=self._most)
        return point

    def _thaw_again_if_late(self) -> None:
        """A freeze that was done only after the thaw does not last either."""
        with self._lock:
            if not self._frozen:
                self._quiesce.thaw()

    def _thaw(self) -> bool:
        """The source is thawed; answers whether it was frozen until now."""
        with self._lock:
            frozen, self._frozen = self._frozen, False
            if frozen:
                self._quiesce.thaw()
            return frozen

    def _wait(self, kind: type[Prepare] | type[Thaw], other: Callable[[Received], None]) -> bytes:
        while True:
            event = self._link.receive()
            if not isinstance(event, Received):
                raise MessageRefused(reason="a clear message in a session")
            match event.message:
                case Alive():
                    pass
                case Report() as report:
                    raise error_of(report)
                case Prepare(point) | Thaw(point):
                    if not isinstance(event.message, kind):
                        raise MessageRefused(reason="a word to a group out of turn")
                    return point
                case _:
                    other(event)
