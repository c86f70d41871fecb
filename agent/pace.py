"""How fast, and whether compressed: a token bucket for the rate, and a measuring choice of compression."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

from agent.config import Compression
from drcore.clock import Clock

BURST_SECONDS = 0.05
SLICE_SECONDS = 0.2
"""A stop is heard at least so often, however low the rate."""
RATE_WORTH_COMPRESSING = 400_000_000
"""Bytes a second: a bandwidth set below what LZ4 compresses on one core (0.45 GB/s) makes compression pay, and what the
first frames take, which go in one burst, says nothing of it."""
PROBE_FRAMES = 32
"""Every so many frames the choice is tried the other way, as links and contents change."""


class Bucket:
    """Lets `rate` bytes a second through, all lanes together; without a rate, everything. Any thread."""

    def __init__(self, rate: int | None, clock: Clock, stopped: Callable[[], bool] = lambda: False) -> None:
        self._rate = rate
        self._stopped = stopped
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = clock.monotonic()

    def take(self, count: int) -> None:
        """Returns when `count` bytes may go, or soon after a stop."""
        if self._rate is None:
            return
        with self._lock:
            now = self._clock.monotonic()
            start = max(self._free_at, now - BURST_SECONDS)
            self._free_at = start + count / self._rate
            wait = self._free_at - now
        while wait > 0 and not self._stopped():
            self._clock.sleep(min(wait, SLICE_SECONDS))
            wait -= SLICE_SECONDS


@dataclass(slots=True)
class _Average:
    value: float = 0.0
    known: bool = False

    def add(self, value: float) -> None:
        self.value = value if not self.known else 0.8 * self.value + 0.2 * value
        self.known = True


class Compressor:
    """Chooses the mode of `_native.pack` for the next frame of one lane from what the last ones took."""

    NEVER, ALWAYS, SAMPLED = 0, 1, 2

    def __init__(self, setting: Compression, rate: int | None = None) -> None:
        self._setting = setting
        self._held_back = rate is not None and rate < RATE_WORTH_COMPRESSING
        self._frames = 0
        self._packing = (_Average(), _Average())  # seconds a byte of content, plain and compressing
        self._ratio = _Average()  # bytes on the wire for a byte of content, compressing
        self._sending = _Average()  # seconds a byte on the wire

    def mode(self) -> int:
        """The mode for the next frame."""
        if self._setting is Compression.ALWAYS:
            return self.ALWAYS
        if self._setting is Compression.NEVER:
            return self.NEVER
        if self._held_back:
            return self.SAMPLED
        self._frames += 1
        better = self._pays()
        if self._frames % PROBE_FRAMES == 0:
            better = not better
        return self.SAMPLED if better else self.NEVER

    def _pays(self) -> bool:
        plain, compressing = self._packing
        if not (plain.known and compressing.known and self._sending.known):
            return not compressing.known or plain.known
        with_it = compressing.value + self._ratio.value * self._sending.value
        return with_it < plain.value + self._sending.value

    def packed(self, mode: int, content: int, wire: int, pack_seconds: float, send_seconds: float) -> None:
        """A frame of `content` bytes before and `wire` bytes after packing took so long to pack and to send."""
        if content == 0 or wire == 0:
            return
        self._packing[mode != self.NEVER].add(pack_seconds / content)
        if mode != self.NEVER:
            self._ratio.add(wire / content)
        self._sending.add(send_seconds / wire)
