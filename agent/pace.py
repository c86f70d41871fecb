"""How fast, and whether compressed: a token bucket for the rate, and a measuring choice of compression."""

import threading
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Final

from agent.config import Compression
from drcore.clock import Clock

BURST_SECONDS: Final = 0.05
SLICE_SECONDS: Final = 0.2
"""A stop, and a new rate, are heard at least so often, however low the rate."""
RATE_WORTH_COMPRESSING: Final = 400_000_000
"""Bytes a second: a bandwidth set below what LZ4 compresses on one core (0.45 GB/s) makes compression pay, and what the
first frames take, which go in one burst, says nothing of it."""
RATE_MEMORY: Final = 0.7
"""What a frame counts when the next is added: half of a rate is that of the last two."""
SAMPLES: Final = 5
"""Frames of each kind whose middle one counts: a flush at the other end holds up one in sixteen."""
PROBE_FRAMES: Final = 3
"""Frames that try the other way: most of the samples, and more than what a socket takes at once."""
CLEAR_SHARE: Final = 0.9
"""Of all pairs of a frame that went the other way and one that did not, so many have to speak for the other way. Were
both alike, that happened once in thirty tries; the middle ones alone say one or the other every time."""
PROBE_AFTER_MIN: Final = 8
PROBE_AFTER_FAR: Final = 32
"""On a far line, where sockets take the first plain frame of each lane at once and make a try look well: so many frames
until the first try, and …"""
PROBE_AFTER_MAX: Final = 2048
"""Frames between two tries, as links and contents change …"""
LINE_MEMORY: Final = 0.9
"""What a compressed frame counts for what the line takes when the next is added: the last ten make most of it, as a
socket takes some at once and lets others wait."""
PROBE_COST_MAX: Final = 0.02
"""… and tries of what costs more take at most this share of the time."""
REGRET_FRAMES: Final = 64
"""A change that is taken back within so many frames was a mistake: what lies between here and the line's end took the
few frames of the try at once. The next try comes four times as late as that one did."""
WORTH_TRYING: Final = 0.5
"""The other way is tried at once when its last try took less than this share of what the present way takes by now."""
WORTH_CHANGING: Final = 0.97
"""The other way is taken when it needs less than this share of the time: below that it may as well be chance."""


class Bucket:
    """Lets `rate` bytes a second through, all lanes together; without a rate, everything. Any thread.

    In no time more goes than the rate allows and, beside it, a burst and one frame.
    """

    def __init__(self, rate: int | None, clock: Clock, stopped: Callable[[], bool] = lambda: False) -> None:
        self._rate = rate
        self._stopped = stopped
        self._clock = clock
        self._lock = threading.Lock()
        self._since = clock.monotonic()
        self._asked = 0
        self._allowed = 0.0
        self._lanes = 0

    def join(self) -> None:
        """One lane more has a share of the rate."""
        with self._lock:
            self._lanes += 1

    def leave(self) -> None:
        """One lane less has a share of the rate."""
        with self._lock:
            self._lanes -= 1

    @property
    def share(self) -> float:
        """Bytes a second for each lane; infinite without a rate."""
        with self._lock:
            return inf if self._rate is None else self._rate / max(1, self._lanes)

    def set_rate(self, rate: int | None) -> None:
        """From now on so many bytes a second; who waits already waits at the new rate for what is left."""
        with self._lock:
            self._advance()
            self._rate = rate

    def take(self, count: int) -> None:
        """Returns when what was asked for before has gone, so that `count` bytes may begin; or soon after a stop.

        They are not saved up first: at a low rate the first ones would leave late, and no sooner would the last.
        """
        with self._lock:
            self._advance()
            mine = self._asked
            self._asked += count
        while not self._stopped():
            with self._lock:
                self._advance()
                if self._rate is None or mine - self._allowed < 1:
                    return
                wait = (mine - self._allowed) / self._rate
            self._clock.sleep(min(wait, SLICE_SECONDS))

    def _advance(self) -> None:
        """Silence earns no more than a burst."""
        now = self._clock.monotonic()
        seconds, self._since = now - self._since, now
        if self._rate is None:
            self._allowed = self._asked
        else:
            burst = self._rate * BURST_SECONDS
            self._allowed = min(self._allowed + seconds * self._rate, self._asked + burst)


class Rate:
    """Bytes a second of the last frames, older ones counting less and less."""

    def __init__(self) -> None:
        self._bytes = self._seconds = 0.0

    def add(self, count: int, seconds: float) -> None:
        """One more frame took so long."""
        self._bytes = RATE_MEMORY * self._bytes + count
        self._seconds = RATE_MEMORY * self._seconds + seconds

    @property
    def value(self) -> float:
        """Infinite for what took no time."""
        return self._bytes / self._seconds if self._seconds else inf


class Compressor:
    """Chooses the mode of `_native.pack` for the next frame by what the last ones took, either way. Any thread.

    What counts is the time that a byte of content keeps a lane busy, from packing until the socket has taken it:
    a slow line, a bandwidth, a slow target show there by themselves, as does a processor that has better to do.
    Plain content is not even tried while a byte of content, packed and sent, takes less than a byte on the line alone:
    with more bytes on it no byte gets over the line sooner.
    """

    NEVER, ALWAYS, SAMPLED = 0, 1, 2

    def __init__(self, setting: Compression, rate: int | None = None, *, near: bool = False) -> None:
        self._setting = setting
        self._lock = threading.Lock()
        self._samples: dict[bool, deque[float]] = {way: deque(maxlen=SAMPLES) for way in (False, True)}
        self._compresses = not near
        self._probe_in = self._pause = PROBE_AFTER_MIN if near else PROBE_AFTER_FAR
        self._kept = self._pause  # from before the last change, until it is known whether that was a mistake
        self._frames = 0
        self._changed_at = -REGRET_FRAMES
        self._content = self._wire = self._busy = self._sending = (
            0.0  # of compressed frames, older ones counting less
        )
        self.set_rate(rate)

    @property
    def stores(self) -> bool:
        """Whether no frame is ever compressed."""
        return self._setting is Compression.NEVER

    def set_rate(self, rate: int | None) -> None:
        """The bandwidth that is set from now on."""
        self._held_back = rate is not None and rate < RATE_WORTH_COMPRESSING

    def mode(self) -> int:
        """The mode for the next frame."""
        if self._setting is Compression.ALWAYS:
            return self.ALWAYS
        if self._setting is Compression.NEVER:
            return self.NEVER
        if self._held_back:
            return self.SAMPLED
        with self._lock:
            self._frames += 1
            self._probe_in -= 1
            if self._probe_in == -1 and not self._may_pay():
                self._probe_in = PROBE_AFTER_MIN
            probing = self._probe_in < 0
            if self._probe_in == -1:
                self._samples[not self._compresses].clear()  # contents have changed since the last try
            if self._probe_in <= -PROBE_FRAMES:
                self._probe_in = self._pause
            return self.SAMPLED if self._compresses != probing else self.NEVER

    def _may_pay(self) -> bool:
        """Whether the other way could turn out better than the present one, as far as that tells."""
        if len(self._samples[self._compresses]) < PROBE_FRAMES:
            return False
        return not self._compresses or self._busy * self._wire >= self._sending * self._content

    def packed(self, mode: int, content: int, wire: int, packing: float, sending: float) -> None:
        """A frame of `content` bytes, `wire` of them after packing, kept its lane busy for so many seconds."""
        if content == 0 or self._setting is not Compression.AUTO or self._held_back:
            return
        way, busy = mode != self.NEVER, packing + sending
        with self._lock:
            if way:
                self._content = LINE_MEMORY * self._content + content
                self._wire = LINE_MEMORY * self._wire + wire
                self._busy = LINE_MEMORY * self._busy + busy
                self._sending = LINE_MEMORY * self._sending + sending
            self._samples[way].append(busy / content)
            ours, other = self._samples[self._compresses], self._samples[not self._compresses]
            if min(len(ours), len(other)) < PROBE_FRAMES:
                return
            ours_seconds, other_seconds = _median(ours), _median(other)
            tried = way != self._compresses and self._probe_in >= 0
            regretted = self._frames - self._changed_at < REGRET_FRAMES
            if not (tried or regretted):  # judged with every frame, chance would change it
                if self._probe_in > 0 and other_seconds < WORTH_TRYING * ours_seconds:
                    self._probe_in = 0
                return
            if other_seconds < WORTH_CHANGING * ours_seconds and _clearly_less(other, ours):
                if regretted:
                    self._kept = self._pause = min(4 * self._kept, PROBE_AFTER_MAX)
                else:
                    self._kept, self._pause = self._pause, PROBE_AFTER_MIN
                self._compresses = not self._compresses
                self._changed_at = self._frames
                self._probe_in = self._pause
            elif tried:
                extra = PROBE_FRAMES * (other_seconds / max(ours_seconds, 1e-12) - 1)
                self._probe_in = round(min(max(self._pause, extra / PROBE_COST_MAX), PROBE_AFTER_MAX))


def _median(samples: "deque[float]") -> float:
    """The middle one, the lower of two; the statistics package takes 30 ms to import."""
    return sorted(samples)[(len(samples) - 1) // 2]


def _clearly_less(ones: "deque[float]", others: "deque[float]") -> bool:
    """Nearly every one is less than nearly every other: Mann and Whitney's count, 1947."""
    less = sum(one < other for one in ones for other in others)
    return less >= CLEAR_SHARE * len(ones) * len(others)
