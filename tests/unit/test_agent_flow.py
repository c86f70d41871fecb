"""What holds the agent's lanes together: the window, the queue of orders, the pace, the record of what was sent."""

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.adapters.sent_file import SentFile
from agent.config import Compression
from agent.errors import StateFailed, Stopped
from agent.pace import BURST_SECONDS, PROBE_AFTER_FAR, PROBE_AFTER_MAX, PROBE_FRAMES, Bucket, Compressor
from agent.window import Window
from agent.work import PENDING_MAX, WorkQueue


class HandTurnedClock:
    """Time passes only by `sleep`."""

    def __init__(self) -> None:
        self.time = 100.0
        self.slept = 0.0

    def monotonic(self) -> float:
        return self.time

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.time += seconds
        self.slept += seconds


class Waiting:
    """A call in a thread of its own: whether it waits, and how it ended."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.error: BaseException | None = None
        self._thread.start()
        self._thread.join(0.05)

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self.error = error

    @property
    def waits(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> BaseException | None:
        self._thread.join(10)
        assert not self._thread.is_alive()
        return self.error


def test_the_window_holds_back_what_is_beyond_its_limit() -> None:
    window = Window(100)
    window.acquire(60)
    window.sent(0, 1, 0, 60, 50)
    window.acquire(50)
    window.sent(1, 1, 0, 50, 50)
    waiting = Waiting(lambda: window.acquire(1))
    assert waiting.waits
    assert window.durable(0, 1, 0) == 50
    assert waiting.end() is None


def test_the_window_waits_for_nothing_of_a_disk_that_has_failed() -> None:
    window = Window(100)
    for stream in (1, 2):
        window.acquire(50)
        window.sent(0, stream, 0, 50, 50)
    waiting = Waiting(lambda: window.acquire(40))
    assert waiting.waits
    window.forsake(1)
    assert waiting.end() is None
    window.sent(0, 1, 1, 40, 40)
    assert window.forsook(1)
    settling = Waiting(lambda: window.settle(0))
    assert settling.waits
    assert window.durable(0, 2, 0) == 50
    assert settling.end() is None
    window.acquire(100)


def test_the_window_counts_each_lane_and_stream_by_itself() -> None:
    window = Window(1000)
    for sequence in range(3):
        window.acquire(10)
        window.sent(0, 1, sequence, 10, 10)
    window.acquire(10)
    window.sent(0, 2, 0, 10, 10)
    assert window.durable(1, 1, 2) == 0
    assert window.durable(0, 1, 1) == 20
    assert window.durable(0, 1, 1) == 0
    assert window.durable(0, 1, 9) == 10
    assert window.durable(0, 2, 0) == 10


def test_a_frame_beyond_the_limit_goes_when_nothing_else_is_under_way() -> None:
    window = Window(10)
    window.acquire(500)
    window.sent(0, 1, 0, 500, 500)
    waiting = Waiting(lambda: window.acquire(1))
    assert waiting.waits
    window.durable(0, 1, 0)
    assert waiting.end() is None


def test_a_failure_wakes_whoever_waits_for_the_window() -> None:
    window, first = Window(10), Stopped()
    window.acquire(10)
    waiting = Waiting(lambda: window.acquire(10))
    assert waiting.waits
    window.fail(first)
    window.fail(Stopped())
    assert waiting.end() is first
    with pytest.raises(Stopped):
        window.acquire(1)


def test_orders_come_out_as_they_went_in_and_settle_when_sent() -> None:
    work: WorkQueue[int] = WorkQueue()
    for number in range(3):
        work.put(number)
    assert [work.get(None) for _ in range(3)] == [0, 1, 2]
    settling = Waiting(work.settle)
    assert settling.waits
    work.sent(2)
    assert settling.waits
    work.sent(1)
    assert settling.end() is None
    assert work.get(0.001) is None


def test_a_full_queue_makes_the_comparison_wait() -> None:
    work: WorkQueue[int] = WorkQueue()
    for number in range(PENDING_MAX):
        work.put(number)
    waiting = Waiting(lambda: work.put(99))
    assert waiting.waits
    assert work.get(None) == 0
    assert waiting.end() is None


def test_a_closed_queue_still_gives_what_is_in_it() -> None:
    work: WorkQueue[int] = WorkQueue()
    work.put(5)
    work.close()
    assert work.closed
    assert work.get(None) == 5
    assert work.get(None) is None


@pytest.mark.parametrize("verb", ["put", "get", "settle"])
def test_a_failure_wakes_whoever_waits_for_work(verb: str) -> None:
    work: WorkQueue[int] = WorkQueue()
    if verb == "put":
        for number in range(PENDING_MAX):
            work.put(number)
    elif verb == "settle":
        work.put(1)
        work.get(None)
    calls: dict[str, Callable[[], object]] = {
        "put": lambda: work.put(1),
        "get": lambda: work.get(None),
        "settle": work.settle,
    }
    waiting = Waiting(calls[verb])
    assert waiting.waits
    error = Stopped()
    work.fail(error)
    assert waiting.end() is error
    with pytest.raises(Stopped):
        work.put(1)


def test_the_bucket_lets_through_its_rate_and_no_burst() -> None:
    clock = HandTurnedClock()
    bucket = Bucket(1000, clock)
    for _ in range(50):
        bucket.take(100)
    assert clock.slept == pytest.approx(5.0, abs=0.2)
    clock.time += 3600  # an hour of silence earns no more than the burst
    slept = clock.slept
    for _ in range(3):
        bucket.take(1000)
    assert 2.0 - 2 * BURST_SECONDS <= clock.slept - slept <= 2.0


def test_a_bucket_without_a_rate_never_waits() -> None:
    clock = HandTurnedClock()
    Bucket(None, clock).take(10**15)
    assert clock.slept == 0


def modes(
    compressor: Compressor, frames: int, packing: float, ratio: float, wire_seconds: float
) -> list[int]:
    """What it chooses when compressing costs `packing` s a byte, leaves `ratio`, and a wire byte `wire_seconds`."""
    out = []
    for _ in range(frames):
        mode = compressor.mode()
        out.append(mode)
        wire = round(1000 * ratio) if mode else 1000
        compressor.packed(mode, 1000, wire, 1000 * (packing if mode else 1e-10), wire * wire_seconds)
    return out


def test_compression_follows_what_pays() -> None:
    assert set(modes(Compressor(Compression.ALWAYS), 100, 1.0, 1.0, 1e-9)) == {Compressor.ALWAYS}
    assert set(modes(Compressor(Compression.NEVER), 100, 0.0, 0.1, 1.0)) == {Compressor.NEVER}
    slow_link = modes(Compressor(Compression.AUTO), 320, 1e-9, 0.5, 1e-7)
    assert slow_link.count(Compressor.SAMPLED) > 300
    fast_link = modes(Compressor(Compression.AUTO), 320, 1e-9, 0.9, 1e-10)
    assert fast_link[PROBE_AFTER_FAR:].count(Compressor.NEVER) > 320 - PROBE_AFTER_FAR - 20


def test_a_near_target_gets_its_first_frames_as_they_are_and_a_far_one_compressed() -> None:
    assert set(modes(Compressor(Compression.AUTO, near=True), 8, 1e-9, 0.5, 1e-10)) == {Compressor.NEVER}
    assert set(modes(Compressor(Compression.AUTO), 8, 1e-9, 0.5, 1e-10)) == {Compressor.SAMPLED}


@pytest.mark.parametrize("wire_seconds", [8e-8, 8e-9, 2e-9, 2e-10])
@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.97, 1.0])
@pytest.mark.parametrize("near", [True, False])
def test_automatic_compression_takes_little_longer_than_the_better_way(
    wire_seconds: float, ratio: float, near: bool
) -> None:
    """LZ4 at 0.45 GB/s, lines of 100 Mbit/s to 5 GB/s, contents that compress and that do not.

    A far line's first frames are compressed whatever that costs.
    """
    plain, packed = 2e-10 + wire_seconds, 2.2e-9 + ratio * wire_seconds
    found = modes(Compressor(Compression.AUTO, near=near), 4000, 2.2e-9, ratio, wire_seconds)
    spent = sum(packed if mode else plain for mode in found)
    first = 0.0 if near else PROBE_AFTER_FAR * max(0.0, packed - plain)
    assert spent <= 1.05 * len(found) * min(plain, packed) + first


@pytest.mark.parametrize("wire_seconds", [64e-8, 64e-9])
def test_where_the_line_holds_up_nothing_is_tried_plain(wire_seconds: float) -> None:
    """Eight lanes on 100 Mbit/s and on 1 Gbit/s, contents that change, and sockets that take every other frame."""
    compressor, dice = Compressor(Compression.AUTO), random.Random(1)
    for number in range(5000):
        mode, wire = compressor.mode(), round(1000 * dice.uniform(0.3, 0.7))
        assert mode == Compressor.SAMPLED
        compressor.packed(mode, 1000, wire, 1000 * 4e-9, 2 * wire * wire_seconds * (number % 2))


def test_nothing_is_tried_before_anything_was_sent() -> None:
    """Many lanes begin many frames before the first one has gone."""
    for near in (True, False):
        compressor = Compressor(Compression.AUTO, near=near)
        assert len({compressor.mode() for _ in range(64)}) == 1


def test_a_line_that_swallows_the_tries_does_not_deceive_for_long() -> None:
    """Busy processors make compressing slow; what is tried plain goes into buffers at once, until those are full."""
    compressor = Compressor(Compression.AUTO)
    plain, swallowed = 0, 0.0
    for _ in range(6000):
        mode = compressor.mode()
        swallowed = max(0.0, swallowed + (1.0 if mode == Compressor.NEVER else -2.0))
        plain += mode == Compressor.NEVER
        full = 64e-9 if swallowed > 6 else 2e-9
        compressor.packed(
            mode, 1000, 500 if mode else 1000, 1000 * (9e-9 if mode else 0), 1000 * (1e-9 if mode else full)
        )
    assert plain < 80


def test_a_single_stall_does_not_change_the_way() -> None:
    compressor = Compressor(Compression.AUTO, near=True)
    modes(compressor, 100, 1e-9, 0.99, 1e-10)
    before = compressor.mode()
    compressor.packed(before, 1000, 1000, 0.0, 1.0)
    assert modes(compressor, 20, 1e-9, 0.99, 1e-10).count(before) >= 20 - PROBE_FRAMES


@pytest.mark.parametrize("slower", [2.5, 6.0])
def test_a_machine_that_gets_busy_is_no_reason_to_change_the_way(slower: float) -> None:
    """Both ways slow down; what the other one took in the calm before is no evidence, at most a reason to try it."""
    compressor, compressed = Compressor(Compression.AUTO, near=True), 0
    for number in range(120):
        mode = compressor.mode()
        compressed += number >= 60 and mode != Compressor.NEVER
        seconds = 1e-9 if mode == Compressor.NEVER else 1.8e-9
        compressor.packed(mode, 1000, 1000, 0.0, 1000 * seconds * (1 if number < 60 else slower))
    assert compressed <= PROBE_FRAMES


def test_content_that_begins_to_compress_is_noticed_before_the_next_try_is_due() -> None:
    """A try that was costly puts the next one off; what takes a hundred times as long as it did brings it forward."""
    compressor = Compressor(Compression.AUTO, near=True)
    modes(compressor, 100, 1e-9, 0.99, 1e-10)
    assert modes(compressor, 40, 1e-9, 0.3, 1e-7)[-20:].count(Compressor.SAMPLED) >= 20 - PROBE_FRAMES


def test_the_choice_of_compression_is_tried_again_now_and_then() -> None:
    compressor = Compressor(Compression.AUTO)
    modes(compressor, 100, 1e-9, 0.99, 1e-10)
    later = modes(compressor, 400, 1e-9, 0.3, 1e-7)
    assert later[-100:].count(Compressor.SAMPLED) > 90
    much_later = modes(compressor, 2 * PROBE_AFTER_MAX, 1e-8, 0.9, 1e-10)
    assert much_later[-100:].count(Compressor.NEVER) > 90


def test_frames_of_no_content_teach_nothing() -> None:
    compressor = Compressor(Compression.AUTO)
    for mode in (Compressor.NEVER, Compressor.SAMPLED) * 10:
        compressor.packed(mode, 0, 0, 0.0, 1.0 if mode else 1e-9)
    assert compressor.mode() == Compressor.SAMPLED


def test_the_record_of_sent_blocks_counts_earlier_runs_only(tmp_path: Path) -> None:
    first = SentFile(tmp_path / "state", "disk")
    first.mark(0, 0b111)
    assert first.before(0, 0b110) == 0, "sent twice in one run is not sent by an earlier one"
    first.mark(70_000, 1 << 63)
    first.close()
    second = SentFile(tmp_path / "state", "disk")
    assert second.before(0, 0b1010) == 0b010
    second.mark(0, 0b1010)
    second.close()
    third = SentFile(tmp_path / "state", "disk")
    assert third.before(0, 0b1111) == 0b1111
    assert third.before(70_000, (1 << 64) - 1) == 1 << 63
    third.remove()
    assert list((tmp_path / "state").iterdir()) == []


def test_a_state_directory_that_cannot_be_is_a_coded_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateFailed):
        SentFile(tmp_path / "file" / "state", "disk")


def test_a_low_bandwidth_makes_compression_pay_from_the_first_frame_whatever_the_first_burst_took() -> None:
    compressor = Compressor(Compression.AUTO, 50_000_000)
    for _ in range(100):
        mode = compressor.mode()
        assert mode == Compressor.SAMPLED
        compressor.packed(mode, 65536, 65536, 0.0, 1.0)
    assert Compressor(Compression.NEVER, 50_000_000).mode() == Compressor.NEVER
