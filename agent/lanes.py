"""How many lanes: more while they bring more, fewer while that costs nothing. Decides; opens and closes none.

One lane carries at most its socket's buffer in a round trip, and on a line that loses packets what loss leaves to one
connection. Both are unknown beforehand, so the number is tried: doubled while the line is what the lanes wait for, and
kept where that brings at least a tenth; a quarter less now and then, and kept where that costs nothing. Trying more
costs next to nothing, trying fewer may, so that is rarer and gentler.

A trial is compared with what the old number carried before, and, when it was given up, also with what the old number
carries afterwards: a young connection is faster than a loss later lets it be, and would make every trial look vain.
"""

from typing import Final

from drcore.limits import LANES_MAX
from drcore.record import Changing, Record

NEAR_SECONDS: Final = 0.001
"""Within a machine or a building, where one lane's buffer (4 MiB) carries 4 GB/s; a wide area takes longer."""
LANES_FAR: Final = LANES_MAX
"""The first number on a longer line: a trial needs seconds to show that more are needed, and those that bring nothing
are dropped by trials."""
LINE_SHARE_MIN: Final = 0.5
"""More lanes are tried when the lanes spend this share of their time waiting for the line."""
IDLE_SHARE_MAX: Final = 0.5
"""A period in which the lanes had nothing to do for longer than this share says nothing of the line."""
GAIN_MIN: Final = 1.1
"""Twice as many lanes stay when they bring a tenth more: below that it may as well be chance."""
LOSS_MIN: Final = 0.97
"""A quarter fewer lanes stay when they carry as much, but for chance."""
SETTLE_SECONDS: Final = 0.5
SETTLE_ROUND_TRIPS: Final = 12
"""How long a change takes to show: doubling in each round trip from ten packets, TCP reaches 40 MB under way in 12."""
PERIOD_SECONDS: Final = 1.0
PERIOD_ROUND_TRIPS: Final = 10
"""How long a rate is measured: acknowledgements come in bursts of a round trip."""
MORE_SECONDS: Final = 10.0
FEWER_SECONDS: Final = 20.0
"""After a trial of more, or of fewer, that was in vain: so long until the next, twice as long each time …"""
PAUSE_SECONDS_MAX: Final = 320.0
"""… but not longer."""


class Seen(Record):
    """What the lanes have done since the run began. Seconds are those of all lanes together."""

    lanes: int
    delivered_bytes: int
    line_seconds: float
    idle_seconds: float
    round_trip: float
    """The shortest that was seen, in seconds; 0 where nothing tells."""


class _Rate(Changing):
    """What `lanes` lanes carried when they were last measured."""

    lanes: int
    rate: float


class _Pause(Changing):
    """When a kind of trial is due again."""

    first: float
    due: float
    seconds: float = 0.0

    def failed(self, now: float) -> None:
        self.seconds = min(max(self.first, 2 * self.seconds), PAUSE_SECONDS_MAX)
        self.due = now + self.seconds

    def passed(self, now: float) -> None:
        """The next one may follow at once."""
        self.due, self.seconds = now, 0.0


class LaneCount:
    """The number of lanes that a run wants. One owner tells it what was seen, and when."""

    def __init__(self, now: float, round_trip: float, most: int = LANES_MAX) -> None:
        self._most = most
        self.wanted = min(LANES_FAR, most) if round_trip >= NEAR_SECONDS else 1
        self._before: _Rate | None = None  # while a number is tried
        self._given_up: _Rate | None = (
            None  # after more were tried in vain, until the old number is measured again
        )
        self._more = _Pause(MORE_SECONDS, now)
        self._fewer = _Pause(FEWER_SECONDS, now + FEWER_SECONDS)
        self._since: tuple[float, Seen] | None = None
        self._settled_at = self._settled(now, round_trip)

    def refused(self, lanes: int) -> None:
        """No lane more than these can be had: the number is never wanted again."""
        self._most = max(1, lanes)
        self.wanted = min(self.wanted, self._most)
        self._before = self._given_up = None

    def observe(self, now: float, seen: Seen) -> int:
        """The number that is wanted from now on."""
        if seen.lanes != self.wanted:
            self._change(now, self.wanted, seen)
        elif now >= self._settled_at:
            if self._since is None:
                self._since = (now, seen)
            began, before = self._since
            if now - began >= max(PERIOD_SECONDS, PERIOD_ROUND_TRIPS * seen.round_trip):
                self._judge(now, now - began, before, seen)
        return self.wanted

    def _settled(self, now: float, round_trip: float) -> float:
        return now + max(SETTLE_SECONDS, SETTLE_ROUND_TRIPS * round_trip)

    def _change(self, now: float, lanes: int, seen: Seen) -> None:
        self.wanted = lanes
        self._since = None
        self._settled_at = self._settled(now, seen.round_trip)

    def _judge(self, now: float, seconds: float, before: Seen, seen: Seen) -> None:
        self._since = (now, seen)
        spent = seconds * seen.lanes
        if seen.idle_seconds - before.idle_seconds > IDLE_SHARE_MAX * spent:
            return
        rate = (seen.delivered_bytes - before.delivered_bytes) / seconds
        if not self._confirmed(now, rate, seen):
            return
        waits_for_line = seen.line_seconds - before.line_seconds >= LINE_SHARE_MIN * spent
        if waits_for_line and self.wanted < self._most and now >= self._more.due:
            self._try(now, min(2 * self.wanted, self._most), rate, seen)
        elif self.wanted > 1 and now >= self._fewer.due:
            self._try(now, self.wanted - max(1, self.wanted // 4), rate, seen)

    def _try(self, now: float, lanes: int, rate: float, seen: Seen) -> None:
        self._before = _Rate(self.wanted, rate)
        self._change(now, lanes, seen)

    def _confirmed(self, now: float, rate: float, seen: Seen) -> bool:
        """Whether the number stays as it is; otherwise it has been changed back."""
        before, self._before = self._before, None
        given_up, self._given_up = self._given_up, None
        if before is None:
            if given_up is None or given_up.lanes > self._most or given_up.rate < GAIN_MIN * rate:
                return True
            self._more.passed(now)
            self._change(now, given_up.lanes, seen)
            return False
        more = self.wanted > before.lanes
        pause = self._more if more else self._fewer
        if rate >= (GAIN_MIN if more else LOSS_MIN) * before.rate:
            pause.passed(now)
            return True
        pause.failed(now)
        if more:
            self._given_up = _Rate(self.wanted, rate)
        self._change(now, before.lanes, seen)
        return False
