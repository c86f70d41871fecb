"""The lanes of one run: opens and closes them as `LaneCount` wants, and looks at what they bring."""

import threading
from collections.abc import Callable
from typing import Final

from agent.lanes import LaneCount, Seen
from agent.ports import LineState
from agent.ship import Lane
from drcore.clock import Clock
from drcore.errors import HomewardError, coded
from drcore.limits import LANES_MAX
from wireproto.link import Link

LOOK_SECONDS: Final = 0.1
"""Between two looks at the lanes: the shortest period that is measured is ten of them."""


def at_once(connect: Callable[[int], Link], lanes: range) -> list[Link]:
    """These lanes' links, opened beside each other, as each takes three round trips. Errors: the first one's."""
    found: dict[int, Link | HomewardError] = {}

    def open_one(lane: int) -> None:
        try:
            found[lane] = connect(lane)
        except Exception as error:
            found[lane] = coded(error)

    threads = [
        threading.Thread(target=open_one, args=(lane,), name=f"join {lane}", daemon=True) for lane in lanes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcomes = [found[lane] for lane in lanes]
    links = [outcome for outcome in outcomes if isinstance(outcome, Link)]
    for outcome in outcomes:
        if isinstance(outcome, HomewardError):
            for link in links:
                link.close()
            raise outcome
    return links


class Crew:
    """Every lane of a run, also those that have left; lane 0 stays to the end. Any thread.

    `connect` answers the link of a further lane with this number, or raises; `enlist` has the lane work over it.
    """

    def __init__(
        self,
        connect: Callable[[int], Link],
        enlist: Callable[[int, Link], Lane],
        line: Callable[[Link], LineState | None],
        clock: Clock,
        done: threading.Event,
    ) -> None:
        self.lanes: list[Lane] = []
        self.most = 0
        """The largest number of lanes that worked at the same time."""
        self._connect = connect
        self._enlist = enlist
        self._line = line
        self._clock = clock
        self._done = done
        self._lock = threading.RLock()
        self._closed = False
        self._joining: set[int] = set()
        self._refused = False
        self._delivered: dict[int, int] = {}
        self._told: set[int] = set()
        self._round_trip = 0.0

    def add(self, number: int, link: Link) -> None:
        """The lane works, unless the run is over: then its link is closed."""
        with self._lock:
            if self._closed:
                link.close()
                return
            self.lanes.append(self._enlist(number, link))
            self.most = max(self.most, len(self.working))

    @property
    def working(self) -> list[Lane]:
        """The lanes that take work."""
        return [lane for lane in self.lanes if not lane.retired]

    def steer(self) -> None:
        """Until the run is over there are as many lanes as bring something."""
        count: LaneCount | None = None
        while not self._done.is_set():
            now, seen = self._clock.monotonic(), self._look()
            if count is None:
                count = LaneCount(now, seen.round_trip)
            if self._refused:
                count.refused(seen.lanes)
                self._refused = False
            self._adjust(count.observe(now, seen))
            self._done.wait(LOOK_SECONDS)

    def close(self) -> None:
        """No lane is added any more; those that are there have ended (their links have been closed before)."""
        with self._lock:
            self._closed = True
        for lane in self.lanes:
            lane.link.close()
        for lane in self.lanes:
            lane.join()

    def _look(self) -> Seen:
        lanes = list(self.lanes)
        for index, lane in enumerate(lanes):
            state = None if lane.left else self._line(lane.link)
            if state is not None:
                self._told.add(index)
                self._delivered[index] = state.delivered_bytes
                known = self._round_trip or state.round_trip
                self._round_trip = min(known, state.round_trip)
            elif index not in self._told:
                self._delivered[index] = lane.link.bytes_sent
        return Seen(
            lanes=len(self.working),
            delivered_bytes=sum(self._delivered.values()),
            line_seconds=sum(lane.line_seconds for lane in lanes),
            idle_seconds=sum(lane.idle_seconds for lane in lanes),
            round_trip=self._round_trip,
        )

    def _adjust(self, wanted: int) -> None:
        """Lanes are on their way in or out until `wanted` work; the youngest leave first, lane 0 never."""
        with self._lock:
            working = self.working
            for lane in working[max(1, wanted) :]:
                lane.retire()
            missing = wanted - len(working) - len(self._joining)
            taken = {lane.number for lane in self.lanes if not lane.left} | self._joining
            free = [number for number in range(1, LANES_MAX) if number not in taken]
            joining = free[: max(0, missing)]
            self._joining.update(joining)
        for number in joining:
            threading.Thread(target=self._join, args=(number,), name=f"join {number}", daemon=True).start()

    def _join(self, number: int) -> None:
        """One lane more, or it is known that there is none to have: the run goes on with those that it has."""
        link = None
        try:
            link = self._connect(number)
        except HomewardError:
            self._refused = True
        with self._lock:
            self._joining.discard(number)
            if link is not None:
                self.add(number, link)
