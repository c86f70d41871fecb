"""How every disk is doing: bytes, rate, backlog, lag, the RPO threshold. It tells, and changes nothing (R139).

Time comes from the injected clock; who asks, and how often, is not this module's affair.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from enum import Enum

from drcore.clock import Clock
from drcore.errors import HomewardError
from drcore.limits import RATE_WINDOW_SECONDS
from drcore.record import Changing, Record, made
from drcore.units import BLOCK_BYTES
from masttarget.points import GOOD, Points
from masttarget.ports import Log
from masttarget.retention import Retention


class Health(Enum):
    """Of a disk's replication; the values are what users see."""

    HEALTHY = "healthy"
    WARNING = "warning"
    """No recovery point was made within the RPO threshold."""
    CRITICAL = "critical"
    """It cannot go on by itself: the disk failed, or its cycle waits for room on the retention volume."""


class Meter(Changing):
    """What one configured disk went through since the master target started; written by whoever does it."""

    item: str
    disk: str
    session: int = 0
    """The current one; 0 while there is none."""
    size_bytes: int = 0
    compared_bytes: int = 0
    received_bytes: int = 0
    written_bytes: int = 0
    backlog_blocks: Callable[[], int] = lambda: 0
    point: str = ""
    in_sync_at: float | None = None
    """When the target last held what the source held (UTC); None when nobody knows."""
    failure: str = ""
    """The code of the error that stopped the disk; empty while it works."""
    waits: Callable[[], bool] = lambda: False
    """Whether its cycle waits for room on the retention volume."""

    def begin(self, session: int, size_bytes: int, backlog_blocks: Callable[[], int]) -> None:
        """A session has begun."""
        self.session, self.size_bytes, self.compared_bytes = session, size_bytes, 0
        self.backlog_blocks, self.failure = backlog_blocks, ""

    def end(self, session: int) -> None:
        """The session is over, unless a newer one has taken its place already."""
        if self.session == session:
            self.session, self.backlog_blocks = 0, lambda: 0

    def publish(self, point: str, now: float) -> None:
        """Both sides hold the same."""
        self.point, self.in_sync_at = point, now


class DiskHealth(Record):
    """One disk as of one instant. `eta_seconds` is None where nothing tells it."""

    item: str
    disk: str
    session: int
    size_bytes: int
    compared_bytes: int
    received_bytes: int
    written_bytes: int
    rate_bytes: float
    """A second, over the last half minute."""
    backlog_bytes: int
    eta_seconds: float | None
    lag_seconds: float
    point: str
    in_sync_at: float | None
    rpo_exceeded: bool
    health: Health
    failure: str


class _Track(Changing):
    samples: deque[tuple[float, int]] = made(factory=deque)
    exceeded: bool = False
    health: Health = Health.HEALTHY


class Watch:
    """Looks at the meters. `look` may be called from any thread; `tell` also logs what is news."""

    def __init__(self, meters: Iterable[Meter], clock: Clock, log: Log, rpo_seconds: float) -> None:
        self._meters = tuple(meters)
        self._clock = clock
        self._log = log
        self.rpo_seconds = rpo_seconds
        self._began = clock.now()
        self._tracks = {meter.disk: _Track() for meter in self._meters}
        self._lock = threading.Lock()

    def look(self) -> tuple[DiskHealth, ...]:
        """Every disk as of now."""
        with self._lock:
            return tuple(self._one(meter, self._tracks[meter.disk]) for meter in self._meters)

    def tell(self) -> None:
        """Every disk that has a session was told of, and of every one what is news."""
        for one in self.look():
            track = self._tracks[one.disk]
            if one.session:
                self._log(
                    "disk progress",
                    item=one.item,
                    disk_id=one.disk,
                    session=one.session,
                    size_bytes=one.size_bytes,
                    compared_bytes=one.compared_bytes,
                    received_bytes=one.received_bytes,
                    rate_bytes=round(one.rate_bytes),
                    backlog_bytes=one.backlog_bytes,
                    eta_seconds=None if one.eta_seconds is None else round(one.eta_seconds, 1),
                    lag_seconds=round(one.lag_seconds, 1),
                    point=one.point,
                    health=one.health.value,
                )
            if one.rpo_exceeded != track.exceeded:
                track.exceeded = one.rpo_exceeded
                self._log(
                    "RPO threshold exceeded" if one.rpo_exceeded else "within the RPO threshold again",
                    item=one.item,
                    disk_id=one.disk,
                    lag_seconds=round(one.lag_seconds, 1),
                    rpo_seconds=self.rpo_seconds,
                    point=one.point,
                )
            if one.health is not track.health:
                self._log(
                    "health changed",
                    item=one.item,
                    disk_id=one.disk,
                    before=track.health.value,
                    health=one.health.value,
                    code=one.failure,
                )
                track.health = one.health

    def _one(self, meter: Meter, track: _Track) -> DiskHealth:
        # A point that is published meanwhile may only make the lag shorter than it was.
        since = meter.in_sync_at if meter.in_sync_at is not None else self._began
        lag = max(self._clock.now() - since, 0.0)
        rate = self._rate(meter, track)
        backlog = min(meter.backlog_blocks() * BLOCK_BYTES, meter.size_bytes) if meter.session else 0
        exceeded = lag > self.rpo_seconds
        health = Health.WARNING if exceeded else Health.HEALTHY
        if meter.failure or meter.waits():
            health = Health.CRITICAL
        return DiskHealth(
            item=meter.item,
            disk=meter.disk,
            session=meter.session,
            size_bytes=meter.size_bytes,
            compared_bytes=meter.compared_bytes,
            received_bytes=meter.received_bytes,
            written_bytes=meter.written_bytes,
            rate_bytes=rate,
            backlog_bytes=backlog,
            eta_seconds=backlog / rate if meter.session and rate > 0 else None,
            lag_seconds=lag,
            point=meter.point,
            in_sync_at=meter.in_sync_at,
            rpo_exceeded=exceeded,
            health=health,
            failure=meter.failure,
        )

    def _rate(self, meter: Meter, track: _Track) -> float:
        now, samples = self._clock.monotonic(), track.samples
        if not samples or now > samples[-1][0]:
            samples.append((now, meter.received_bytes))
        while len(samples) > 2 and samples[1][0] <= now - RATE_WINDOW_SECONDS:
            samples.popleft()
        (start, before), (end, after) = samples[0], samples[-1]
        return (after - before) / (end - start) if end > start else 0.0


def remember(meters: Iterable[Meter], retention: Retention) -> None:
    """Of items without a session the newest point is known, also where a verb beside this process went back.

    Where a list cannot be read nothing is learnt; the item's own session tells what is wrong with it.
    """
    items: dict[str, list[Meter]] = {}
    for meter in meters:
        items.setdefault(meter.item, []).append(meter)
    for name, found in items.items():
        with suppress(HomewardError):
            item = retention.item(bytes.fromhex(name))
            if item.points.written and not any(meter.session for meter in found):
                with item.changing():
                    recall(found, item.points)


def recall(meters: Iterable[Meter], points: Points) -> None:
    """Of disks that have a good recovery point, the newest one and its time are known."""
    for meter in meters:
        good = [point for point in points if point.kind in GOOD and point.disk(meter.disk) is not None]
        if not good:
            continue
        newest = point = good[-1]
        while point.base_cycle >= 0 and (base := points.by_sequence(point.base_cycle)) is not None:
            point = base  # what a rollback made anew is as old as what it went back to
        meter.publish(newest.id, point.time_ms / 1000)
