"""Group commit: target flushed, then applied record durable, then the acknowledgement; a failure is final."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from disks.errors import FlushFailed
from drcore.errors import HomewardError
from drcore.limits import COMMIT_BYTES, COMMIT_RUNS_MAX
from masttarget.commit import GroupCommit
from masttarget.errors import JournalFailed
from masttarget.target import Applied, AppliedRun
from tests.fault.media import MemoryDisk, MemoryJournal, Steps

FLUSH_FAILED = FlushFailed(path="memory", reason="Input/output error (EIO)")
JOURNAL_FAILED = JournalFailed(path="memory", reason="No space left on device")


class FrozenClock:
    """A clock whose hands stand still: only size, `settle` and `stop` commit."""

    def monotonic(self) -> float:
        return 0.0

    def now(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        raise AssertionError


class Bench:
    """A commit loop between a disk and a journal that note one common list of steps."""

    def __init__(self) -> None:
        self.steps: Steps = []
        self.disk = MemoryDisk(1 << 20, self.steps)
        self.journal = MemoryJournal(self.steps)
        self.failures: list[HomewardError] = []
        self.acknowledged = threading.Event()
        self.commit = GroupCommit(self.disk, self.journal, FrozenClock(), self.failures.append)

    def acknowledge(self, stream: int, sequence: int) -> None:
        self.steps.append(f"acknowledge {stream}/{sequence}")
        self.acknowledged.set()

    def add(self, stream: int, sequence: int, written: int) -> None:
        applied = Applied([AppliedRun(sequence, 1, b"d" * 16)], written)
        self.commit.add(1, stream, sequence, applied, self.acknowledge)


@contextmanager
def running(bench: Bench) -> Iterator[Bench]:
    bench.commit.start()
    try:
        yield bench
    finally:
        bench.commit.stop()


@pytest.fixture
def bench() -> Iterator[Bench]:
    with running(Bench()) as bench:
        yield bench


def test_the_order_is_flush_record_acknowledge(bench: Bench) -> None:
    for sequence in range(3):
        bench.add(1, sequence, 100)
    bench.add(2, 0, 100)
    assert not bench.acknowledged.is_set()
    bench.commit.settle()
    assert bench.steps == ["flush", "append_applied", "acknowledge 1/2", "acknowledge 2/0"]
    assert [(frame.stream, frame.sequence) for frame in bench.journal.frames] == [
        (1, 0),
        (1, 1),
        (1, 2),
        (2, 0),
    ]
    assert bench.commit.durable_bytes == 400


def test_a_full_batch_commits_by_itself(bench: Bench) -> None:
    bench.add(1, 0, COMMIT_BYTES - 1)
    assert not bench.acknowledged.is_set()
    bench.add(1, 1, 1)
    assert bench.acknowledged.wait(10)
    assert bench.steps[:2] == ["flush", "append_applied"]


def test_time_commits_what_is_little() -> None:
    bench = Bench()
    ticks = iter(range(1000))
    bench.commit._clock.monotonic = lambda: float(next(ticks))  # type: ignore[method-assign]
    with running(bench):
        bench.add(1, 0, 1)
        assert bench.acknowledged.wait(10)


def test_a_frame_that_wrote_nothing_needs_no_flush(bench: Bench) -> None:
    bench.add(1, 0, 0)
    bench.commit.settle()
    assert bench.steps == ["append_applied", "acknowledge 1/0"]


def test_before_a_point_the_disk_is_flushed_though_no_frame_wrote_to_it(bench: Bench) -> None:
    bench.commit.settle(whole=True)
    assert bench.steps == ["flush"]
    bench.add(1, 0, 100)
    bench.commit.settle(whole=True)
    assert bench.steps[1:] == ["flush", "append_applied", "acknowledge 1/0"]
    bench.disk.fails["flush"] = FLUSH_FAILED
    with pytest.raises(FlushFailed):
        bench.commit.settle(whole=True)


def test_nobody_waits_for_the_flush_of_a_disk_that_is_closed() -> None:
    with running(Bench()) as bench:
        pass
    bench.commit.settle(whole=True)
    assert bench.steps == []


def test_what_comes_faster_than_the_medium_takes_it_waits(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushing, go_on = threading.Event(), threading.Event()

    def flush() -> None:
        flushing.set()
        assert go_on.wait(60)

    monkeypatch.setattr(bench.disk, "flush", flush)
    bench.add(1, 0, COMMIT_BYTES)
    assert flushing.wait(10)
    runs = [AppliedRun(0, 1, b"")] * 4096
    frames = 3 * COMMIT_RUNS_MAX // len(runs)

    def flood() -> None:
        for sequence in range(1, frames + 1):
            bench.commit.add(1, 1, sequence, Applied(list(runs), 1), bench.acknowledge)

    flooding = threading.Thread(target=flood)
    flooding.start()
    flooding.join(0.5)
    assert flooding.is_alive()
    assert bench.commit._batch.runs < COMMIT_RUNS_MAX + 2 * len(runs)
    go_on.set()
    flooding.join(60)
    bench.commit.settle()
    assert bench.steps[-1] == f"acknowledge 1/{frames}"


def test_a_failed_flush_is_final(bench: Bench) -> None:
    bench.disk.fails["flush"] = FLUSH_FAILED
    bench.add(1, 0, 100)
    with pytest.raises(FlushFailed):
        bench.commit.settle()
    bench.disk.fails.clear()
    with pytest.raises(FlushFailed):
        bench.add(1, 1, 100)
    with pytest.raises(FlushFailed):
        bench.commit.settle()
    assert bench.steps == ["flush"]
    assert bench.failures == [FLUSH_FAILED]
    assert bench.journal.frames == []


def test_a_failed_journal_is_final_and_nothing_is_acknowledged(bench: Bench) -> None:
    bench.journal.fails["append_applied"] = JOURNAL_FAILED
    bench.add(1, 0, 100)
    with pytest.raises(JournalFailed):
        bench.commit.settle()
    bench.journal.fails.clear()
    with pytest.raises(JournalFailed):
        bench.add(1, 1, 100)
    assert bench.steps == ["flush", "append_applied"]
    assert bench.failures == [JOURNAL_FAILED]


def test_a_stop_makes_durable_what_was_added() -> None:
    bench = Bench()
    with running(bench):
        bench.add(1, 0, 5)
    assert bench.steps == ["flush", "append_applied", "acknowledge 1/0"]


def test_frames_of_two_lanes_are_acknowledged_to_their_own(bench: Bench) -> None:
    told: list[tuple[str, int, int]] = []
    applied = Applied([], 10)
    bench.commit.add(1, 1, 0, applied, lambda stream, sequence: told.append(("a", stream, sequence)))

    def other(stream: int, sequence: int) -> None:
        told.append(("b", stream, sequence))

    bench.commit.add(1, 1, 0, applied, other)
    bench.commit.add(1, 1, 1, applied, other)
    bench.commit.settle()
    assert sorted(told) == [("a", 1, 0), ("b", 1, 1)]
