"""How many lanes a run wants, on simulated lines; how orders are divided; what a lane that leaves waits for."""

import random
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import cast

import pytest

from agent.config import Compression
from agent.crew import at_once
from agent.descent import Ship
from agent.errors import Stopped
from agent.lanes import FEWER_SECONDS, LANES_FAR, MORE_SECONDS, LaneCount, Seen
from agent.pace import Bucket, Compressor
from agent.references import Referrals
from agent.ship import FRAME_BYTES_MIN, SECTOR_DIGESTS_BYTES, Lane, Source, Tally, Work, divided
from agent.window import Window
from agent.work import WorkQueue
from disks.digestmap import DigestMap
from disks.disk import Disk
from drcore.errors import HomewardError
from drcore.limits import GIB, LANES_MAX
from drcore.secret import Secret
from drcore.units import SPAN_BLOCKS, SPAN_BYTES
from wireproto.connection import Connection
from wireproto.errors import ConnectionLost
from wireproto.link import Link

TICK = 0.1
MBIT = 125_000.0


@dataclass
class SimulatedLine:
    """Lanes over a line: together at most `rate`, each at most `lane` (what its buffer or loss allows), bytes/s.

    A lane starts slowly: it doubles from `rate` 20 kB a round trip on. `noise` is the share by which a tick's bytes
    vary. What a lane could send and the line does not take is time that it waits for the line.
    """

    rate: Callable[[float], float]
    lane: Callable[[float], float]
    round_trip: float
    noise: float = 0.03
    busy: float = 1.0
    dice: random.Random = field(default_factory=lambda: random.Random(7))
    now: float = 0.0
    delivered: float = 0.0
    waited: float = 0.0
    idle: float = 0.0
    ages: list[float] = field(default_factory=lambda: [0.0])

    def step(self, wanted: int) -> Seen:
        """A tenth of a second with as many lanes as there are; the wanted number stands afterwards."""
        cap = self.lane(self.now)
        each = [min(cap, 20_000 * 2 ** min(age / self.round_trip, 30) / self.round_trip) for age in self.ages]
        carried = min(sum(each), self.rate(self.now)) * self.busy
        self.delivered += carried * TICK * (1 + self.dice.uniform(-self.noise, self.noise))
        self.waited += 0.95 * TICK * len(self.ages) * self.busy
        self.idle += TICK * len(self.ages) * (1 - self.busy)
        self.now += TICK
        self.ages = [age + TICK for age in self.ages[:wanted]] + [0.0] * (wanted - len(self.ages))
        return Seen(len(self.ages), round(self.delivered), self.waited, self.idle, self.round_trip)


def run(line: SimulatedLine, seconds: float, most: int = LANES_MAX) -> tuple[list[int], float]:
    """The number of lanes at every tick, and bytes a second over the whole time."""
    count = LaneCount(line.now, line.round_trip, most)
    began, before, lanes = line.now, line.delivered, []
    for _ in range(round(seconds / TICK)):
        seen = line.step(count.wanted)
        lanes.append(count.observe(line.now, seen))
    return lanes, (line.delivered - before) / (line.now - began)


@pytest.mark.parametrize("round_trip", [0.02, 0.08])
@pytest.mark.parametrize("rate", [100, 1000])
@pytest.mark.parametrize("share", [0.03, 0.3, 1.0])
def test_a_simulated_line_carries_nearly_what_sixteen_lanes_could(
    rate: int, round_trip: float, share: float
) -> None:
    """`share`: what one lane carries of the line's rate."""
    line = SimulatedLine(lambda _: rate * MBIT, lambda _: share * rate * MBIT, round_trip)
    lanes, found = run(line, 120)
    assert found >= 0.9 * min(1.0, LANES_MAX * share) * rate * MBIT
    if share < 1 / LANES_MAX:
        assert lanes[-1] >= 12, "every lane brings its share"
    if share == 1.0:
        assert lanes[-1] < LANES_FAR, "one would do"


def test_a_near_line_begins_with_one_lane_and_a_far_one_with_more() -> None:
    assert LaneCount(0.0, 0.0002).wanted == 1
    assert LaneCount(0.0, 0.02).wanted == LANES_FAR
    assert LaneCount(0.0, 0.02, most=3).wanted == 3


def test_a_line_that_one_lane_fills_is_tried_more_and_more_rarely() -> None:
    lanes, _ = run(SimulatedLine(lambda _: 1e9, lambda _: 2e9, 0.0002, noise=0.01), 300)
    more = [at for at, (old, new) in enumerate(pairwise(lanes)) if new > old]
    assert 3 <= len(more) <= 8
    pauses = [later - earlier for earlier, later in pairwise(more)]
    assert pauses == sorted(pauses)
    assert pauses[0] * TICK >= MORE_SECONDS
    assert lanes.count(1) > 0.9 * len(lanes)


def test_a_line_that_gets_worse_gets_more_lanes() -> None:
    """After a minute losses begin, and one lane carries a hundredth of the line."""
    line = SimulatedLine(lambda _: 1000 * MBIT, lambda now: (1000 if now < 60 else 10) * MBIT, 0.05)
    lanes, _ = run(line, 60)
    before = lanes[-1]
    lanes, _ = run_on(line, before, 400)
    assert before < LANES_FAR
    assert max(lanes) == LANES_MAX


def run_on(line: SimulatedLine, lanes: int, seconds: float) -> tuple[list[int], float]:
    """As `run`, by a count that has already come down to so many lanes."""
    count = LaneCount(line.now, line.round_trip)
    count.wanted = lanes
    found = []
    for _ in range(round(seconds / TICK)):
        found.append(count.observe(line.now, line.step(count.wanted)))
    return found, 0.0


def test_young_connections_that_are_fast_do_not_make_every_trial_vain() -> None:
    """Losses have not yet slowed the first lanes down when they are measured: what they carry then falls fivefold."""
    line = SimulatedLine(lambda _: 1000 * MBIT, lambda now: (60 if now < 3 else 12) * MBIT, 0.08)
    lanes, _ = run(line, 15)
    assert lanes[-1] == LANES_MAX


def test_lanes_without_work_are_not_judged() -> None:
    line = SimulatedLine(lambda _: 100 * MBIT, lambda _: 5 * MBIT, 0.02, busy=0.3)
    lanes, _ = run(line, 2 * FEWER_SECONDS)
    assert set(lanes) == {LANES_FAR}


def test_what_the_line_does_not_hold_up_gets_no_more_lanes() -> None:
    """The lanes wait for something else, such as a bandwidth that is set."""
    count = LaneCount(0.0, 0.02)
    for tick in range(150):
        seen = Seen(count.wanted, tick * 100_000, tick * TICK * 0.2, 0.0, 0.02)
        assert count.observe(tick * TICK, seen) == LANES_FAR


def test_a_refused_lane_is_not_wanted_again() -> None:
    line = SimulatedLine(lambda _: 1000 * MBIT, lambda _: 10 * MBIT, 0.02)
    count = LaneCount(0.0, 0.02)
    count.refused(3)
    assert count.wanted == 3
    for _ in range(600):
        assert count.observe(line.now, line.step(count.wanted)) <= 3


def test_nothing_is_judged_before_the_wanted_lanes_are_there() -> None:
    count = LaneCount(0.0, 0.02)
    for tick in range(600):
        assert count.observe(tick * TICK, Seen(2, tick * 10_000, tick * 0.2, 0.0, 0.02)) == LANES_FAR


def _link(stream: socket.socket) -> Link:
    connection = Connection(is_agent=True, shared=Secret(bytes(32)))
    return Link(connection, stream, threading.Lock(), time.monotonic, "a master target")


def test_lanes_are_opened_beside_each_other() -> None:
    together = threading.Barrier(4)
    pairs = [socket.socketpair() for _ in range(4)]

    def connect(number: int) -> Link:
        together.wait(10)  # one after the other, the first would wait for ever
        return _link(pairs[number - 1][0])

    links = at_once(connect, range(1, 5))
    assert [link.transport for link in links] == [ours for ours, _ in pairs]
    for link, (_, theirs) in zip(links, pairs, strict=True):
        link.close()
        theirs.close()


def test_where_one_of_the_lanes_is_refused_none_stays_open() -> None:
    ours, theirs = socket.socketpair()

    def connect(number: int) -> Link:
        if number == 2:
            raise ConnectionLost(peer="a master target", reason="no room")
        return _link(ours)

    with theirs, pytest.raises(ConnectionLost):
        at_once(connect, range(1, 3))
    assert ours.fileno() == -1


# Orders


@pytest.mark.parametrize("count", [1, 3, 4, 5, 64])
def test_a_divided_order_is_the_same_order_in_two(count: int) -> None:
    blocks, patched, fresh = 0b1011_0111, 0b0010_0101, 0b1000_0010
    sectors = b"".join(bytes([number]) * SECTOR_DIGESTS_BYTES for number in range(3))
    first, rest = divided(Ship(5, blocks, patched, fresh, sectors), count)
    assert first.blocks.bit_count() == min(count, 6)
    if rest is None:
        assert first == Ship(5, blocks, patched, fresh, sectors)
        return
    assert (first.span, rest.span) == (5, 5)
    assert (first.blocks | rest.blocks, first.blocks & rest.blocks) == (blocks, 0)
    assert first.blocks < rest.blocks & -rest.blocks, "the first ones"
    assert (first.patched | rest.patched, first.fresh | rest.fresh) == (patched, fresh)
    for part in (first, rest):
        assert part.patched & ~part.blocks == 0
        assert part.fresh & ~part.blocks == 0
        assert len(part.sectors) == SECTOR_DIGESTS_BYTES * part.patched.bit_count()
    assert first.sectors + rest.sectors == sectors


def test_what_is_put_back_comes_next_and_is_still_due() -> None:
    work: WorkQueue[int] = WorkQueue()
    work.put(1)
    work.put(2)
    assert work.get(None) == 1
    work.put_back(10)
    work.sent(1)
    assert [work.get(None), work.get(None)] == [10, 2]
    settled = threading.Thread(target=work.settle)
    settled.start()
    work.sent(1)
    settled.join(0.05)
    assert settled.is_alive()
    work.sent(1)
    settled.join(10)
    assert not settled.is_alive()


def test_a_lane_leaves_when_what_it_sent_is_durable_whatever_others_have_under_way() -> None:
    window = Window()
    for lane, sequence in ((1, 0), (1, 1), (2, 0)):
        window.acquire(100)
        window.sent(lane, 1, sequence, 100, 90)
    leaving = threading.Thread(target=window.settle, args=(1,))
    leaving.start()
    window.durable(1, 1, 0)
    leaving.join(0.05)
    assert leaving.is_alive()
    window.durable(1, 1, 1)
    leaving.join(10)
    assert not leaving.is_alive()


# The rate


class SharedClock:
    """Many wait on it; time passes when all of them sleep, up to the earliest that is due."""

    def __init__(self, sleepers: int) -> None:
        self.time = 50.0
        self._sleepers = sleepers
        self._due: list[float] = []
        self._changed = threading.Condition()

    def monotonic(self) -> float:
        return self.time

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        with self._changed:
            due = self.time + seconds
            self._due.append(due)
            self._pass()
            while self.time < due:
                self._changed.wait()
            self._due.remove(due)

    def leave(self) -> None:
        with self._changed:
            self._sleepers -= 1
            self._pass()

    def _pass(self) -> None:
        if self._due and len(self._due) >= self._sleepers:
            self.time = max(self.time, min(self._due))
            self._changed.notify_all()


@pytest.mark.parametrize("lanes", [1, 4, 16])
@pytest.mark.parametrize("after", [4_000_000, 250_000, None])
def test_a_new_rate_holds_at_once_for_all_lanes_together(lanes: int, after: int | None) -> None:
    clock = SharedClock(lanes)
    bucket = Bucket(1_000_000, clock)
    began, taken, changed = clock.time, [0], threading.Lock()

    def lane() -> None:
        while True:
            bucket.take(50_000)
            with changed:
                taken[0] += 50_000
                if taken[0] == 5_000_000:
                    at_change.append(clock.time)
                    bucket.set_rate(after)
                if taken[0] >= 10_000_000:
                    break
        clock.leave()

    at_change: list[float] = []
    threads = [threading.Thread(target=lane) for _ in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    slack = 0.2 + lanes * 50_000 / 1_000_000
    assert at_change[0] - began == pytest.approx(5.0, abs=slack)
    expected = 5_000_000 / after if after else 0.0
    assert clock.time - at_change[0] == pytest.approx(
        expected, abs=slack + lanes * 50_000 / (after or 1e9) + 0.2
    )


class Ledger:
    """The link and the disk of a lane: frames are taken at once and noted, with the time; every block holds ones."""

    transport = None
    connection = Connection(is_agent=True, shared=Secret(bytes(32)))

    def __init__(self, clock: SharedClock, at_frame: Callable[[int], None]) -> None:
        self.gone: list[tuple[float, int]] = []
        self._clock = clock
        self._at_frame = at_frame
        self._lock = threading.Lock()

    def send_data(self, stream: int, count: int, plain: memoryview) -> tuple[int, int]:
        with self._lock:
            self.gone.append((self._clock.monotonic(), len(plain)))
            self._at_frame(len(self.gone))
            return len(self.gone), len(plain)

    def read(self, offset: int, into: memoryview) -> None:
        into[:] = b"\1" * len(into)

    def before(self, span: int, blocks: int) -> int:
        return 0

    def mark(self, span: int, blocks: int) -> None:
        pass

    def close(self) -> None:
        pass

    def remove(self) -> None:
        pass


@pytest.mark.parametrize("lanes", [1, 4, 16])
@pytest.mark.parametrize("lowered_at", [0, 40])
def test_at_a_low_bandwidth_bytes_leave_at_once_and_others_follow_within_a_second(
    lanes: int, lowered_at: int, tmp_path: Path
) -> None:
    """Also where it was lowered while frames went without limit; those that the lanes have in the making go first."""
    rate, frames = 100_000, 40
    clock, window, work = SharedClock(lanes), Window(GIB), WorkQueue[Work]()
    bucket = Bucket(None if lowered_at else rate, clock, lambda: len(ledger.gone) >= lowered_at + frames)

    def at_frame(number: int) -> None:
        if number == lowered_at:
            bucket.set_rate(rate)
        if number == lowered_at + frames:
            window.fail(Stopped())

    ledger = Ledger(clock, at_frame)
    digests = DigestMap(32 * SPAN_BYTES, tmp_path)
    source = Source(1, cast(Disk, ledger), digests, bytes(192), ledger, Tally(), Referrals(digests))
    ends: list[HomewardError] = []

    def ended(error: HomewardError) -> None:
        ends.append(error)
        clock.leave()

    for span in range(32):
        blocks = (1 << SPAN_BLOCKS) - 1
        work.put((source, Ship(span, blocks, 0, blocks, b"", unread=True)))
    began, crew = clock.monotonic(), []
    for number in range(lanes):
        link = cast(Link, ledger)
        crew.append(Lane(number, link, work, window, bucket, Compressor(Compression.NEVER), clock, ended))
    for lane in crew:
        lane.start()
    for lane in crew:
        lane.join()
    digests.close()
    assert [type(error) for error in ends] == [Stopped] * lanes
    limited = ledger.gone[lowered_at:][:frames]
    assert limited[0][0] == began, "the first leaves at once"
    long = sum(size > FRAME_BYTES_MIN for _, size in limited)
    assert long <= (2 * lanes if lowered_at else 0), "what the lanes had at the bucket and in the making"
    for (earlier, size), (later, _) in pairwise(limited):
        assert later - earlier <= size / rate + 0.25
    spent = limited[-1][0] - began
    assert sum(size for _, size in limited[:-1]) == pytest.approx(rate * spent, rel=0.1)
