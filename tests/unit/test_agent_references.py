"""When the agent asks for an index, waits for it, refers to what the target may have, and stops doing so."""

import threading
from pathlib import Path

import pytest

from agent.descent import Descent, Ship, Supply
from agent.errors import Stopped
from agent.references import (
    BLOCKS_ENOUGH,
    BLOCKS_MIN,
    HOLD_SECONDS_MAX,
    PROBE_BLOCKS,
    Outlook,
    Referrals,
    block_bytes,
)
from disks.digestmap import DigestMap
from drcore.limits import REFERENCES_AHEAD_MAX
from drcore.units import BLOCK_BYTES, SPAN_BLOCKS
from wireproto.errors import MessageRefused
from wireproto.messages import Missing

ALL = (1 << SPAN_BLOCKS) - 1
SPANS = 64


def filled(tmp_path: Path, spans: int = SPANS) -> DigestMap:
    """The digest map of a disk that is full of data."""
    digests = DigestMap(spans * SPAN_BLOCKS * BLOCK_BYTES, tmp_path)
    digests.write(0, b"d" * 16 * digests.blocks)
    return digests


def watching(tmp_path: Path, spans: int = SPANS) -> Referrals:
    found = Referrals(filled(tmp_path, spans))
    found.begin(finds=True)
    return found


def order(span: int, blocks: int = ALL) -> Ship:
    return Ship(span, blocks, blocks, 0, b"")


def outlook(
    *,
    rate: float | None = None,
    scanned: float = 0.5,
    seconds: float = 1.0,
    now: float = 0.0,
    size: float | None = BLOCK_BYTES,
) -> Outlook:
    return Outlook(rate, scanned, seconds, now, size)


def used(tmp_path: Path) -> Referrals:
    found = watching(tmp_path)
    assert found.wants(order(0), outlook())
    assert found.ready()
    return found


def test_a_target_that_has_nothing_is_never_asked(tmp_path: Path) -> None:
    found = Referrals(filled(tmp_path))
    found.begin(finds=False)
    assert not any(found.wants(order(span), outlook(rate=1.0)) for span in range(SPANS))
    assert not found.used
    assert not found.ready()


def test_where_much_differs_the_index_is_asked_for_once_and_waited_for(tmp_path: Path) -> None:
    found = watching(tmp_path)
    assert not found.holds(outlook())
    assert found.wants(order(3), outlook())
    assert found.holds(outlook())
    assert not found.wants(order(4), outlook())
    assert not found.used
    assert found.ready()
    assert found.used
    assert not found.holds(outlook())
    assert not found.ready(), "nobody asked again"


def test_blocks_that_are_zero_at_the_target_count_and_those_that_are_due_whole_do_not(tmp_path: Path) -> None:
    assert watching(tmp_path).wants(Ship(0, ALL, 0, ALL, b""), outlook())
    assert not watching(tmp_path).wants(Ship(0, ALL, 0, 0, b""), outlook())


def test_one_changed_block_in_thirty_is_a_disk_at_work(tmp_path: Path) -> None:
    found = watching(tmp_path)
    assert not any(found.wants(order(span, 0b11), outlook()) for span in range(SPANS))


def test_a_sector_in_every_fourth_block_is_a_disk_at_work(tmp_path: Path) -> None:
    found = watching(tmp_path)
    for span in range(SPANS):
        size = 4096.0 if span > 2 else None
        assert not found.wants(order(span, 0xFFFF), outlook(size=size))


def test_a_little_is_not_worth_it_and_the_more_there_is_to_index_the_more_it_takes(tmp_path: Path) -> None:
    assert not watching(tmp_path, 1).wants(order(0, (1 << BLOCKS_MIN - 1) - 1), outlook())
    large = Referrals(DigestMap(1 << 40, tmp_path))
    large.begin(finds=True)
    told = [large.wants(order(span), outlook()) for span in range(2 * BLOCKS_ENOUGH // SPAN_BLOCKS)]
    assert told.index(True) == BLOCKS_ENOUGH // SPAN_BLOCKS - 1


def test_moved_files_behind_much_that_is_equal_are_noticed_soon(tmp_path: Path) -> None:
    found = watching(tmp_path)
    told = [found.wants(order(span), outlook()) for span in range(40, 44)]
    assert told.index(True) <= 1


def test_a_slow_line_makes_less_worth_it(tmp_path: Path) -> None:
    found = watching(tmp_path)
    slow = outlook(rate=1e6, seconds=0.5)
    told = [found.wants(order(span, 0b11), slow) for span in range(SPANS)]
    # 20 blocks take longer than a second; the index takes less than half of one.
    assert 7 <= told.index(True) <= 20
    assert not any(watching(tmp_path).wants(order(span, 0b11), outlook(rate=1e9)) for span in range(SPANS))


def test_orders_do_not_wait_for_an_index_that_takes_long(tmp_path: Path) -> None:
    found = watching(tmp_path)
    early = outlook(scanned=0.01, seconds=HOLD_SECONDS_MAX)
    assert found.wants(order(0), early)
    assert not found.holds(early)
    nearly = outlook(scanned=0.999, seconds=HOLD_SECONDS_MAX * 90)
    assert found.holds(nearly)


def test_orders_that_wait_go_when_the_index_takes_much_longer_than_it_should(tmp_path: Path) -> None:
    found = watching(tmp_path)
    assert found.wants(order(0), outlook(now=5.0))
    assert found.holds(outlook(now=5.0))
    assert found.holds(outlook(now=5.0 + HOLD_SECONDS_MAX))
    assert not found.holds(outlook(now=5.1 + 2 * HOLD_SECONDS_MAX))
    assert found.ready(), "what comes later may still be found"


def waits(found: Referrals, blocks: int) -> tuple[threading.Thread, list[BaseException]]:
    failures: list[BaseException] = []

    def acquire() -> None:
        try:
            found.acquire(blocks)
        except Stopped as error:
            failures.append(error)

    thread = threading.Thread(target=acquire, daemon=True)
    thread.start()
    thread.join(0.05)
    return thread, failures


def test_at_first_few_references_are_under_way_and_more_when_they_are_found(tmp_path: Path) -> None:
    found = used(tmp_path)
    found.acquire(PROBE_BLOCKS)
    thread, _ = waits(found, PROBE_BLOCKS)
    assert thread.is_alive()
    assert not found.answered(Missing(PROBE_BLOCKS, PROBE_BLOCKS * 16, ()))
    thread.join(10)
    assert not thread.is_alive()
    assert (found.blocks, found.sectors) == (PROBE_BLOCKS, PROBE_BLOCKS * 16)
    for _ in range(10):
        found.answered(Missing(0, 16, ()))
    found.acquire(REFERENCES_AHEAD_MAX - PROBE_BLOCKS)
    thread, _ = waits(found, 1)
    assert thread.is_alive()
    found.answered(Missing(1, 16, ()))
    thread.join(10)


def test_a_failure_wakes_a_lane_that_waits(tmp_path: Path) -> None:
    found, error = used(tmp_path), Stopped()
    found.acquire(PROBE_BLOCKS)
    thread, failures = waits(found, 1)
    found.fail(error)
    found.fail(Stopped())
    thread.join(10)
    assert failures == [error]


def test_when_too_little_is_found_references_end_once(tmp_path: Path) -> None:
    found = used(tmp_path)
    entries = tuple((block, 0xFFFF) for block in range(PROBE_BLOCKS - 1))
    found.acquire(2 * PROBE_BLOCKS)
    assert found.answered(Missing(PROBE_BLOCKS, 16, entries))
    assert not found.used
    assert not found.answered(Missing(PROBE_BLOCKS, 16, entries))
    assert (found.blocks, found.sectors) == (2, 32)


def test_a_few_misses_are_no_reason_to_end(tmp_path: Path) -> None:
    found = used(tmp_path)
    found.acquire(4)
    assert not found.answered(Missing(4, 0, tuple((block, 0xFFFF) for block in range(4))))
    assert found.used


def test_missing_sectors_are_due_as_data_span_by_span(tmp_path: Path) -> None:
    descent = Descent(filled(tmp_path, 3), bytes(192))
    descent.missed(((1, 0x8001), (63, 1), (64, 0xFFFF)))
    orders = [descent.next(), descent.next(), descent.next()]
    assert orders == [
        Supply(0, 1 << 1 | 1 << 63, b"\x01\x80\x01\x00"),
        Supply(1, 1, b"\xff\xff"),
        None,
    ]


def test_missing_sectors_of_a_block_that_cannot_have_been_named_are_refused(tmp_path: Path) -> None:
    descent = Descent(DigestMap(5 * BLOCK_BYTES + 4096, tmp_path), bytes(192))
    descent.missed(((4, 1),))
    for block in (5, 6, 2**40):
        with pytest.raises(MessageRefused):
            descent.missed(((block, 1),))


def test_what_a_block_takes_is_unknown_until_some_were_sent() -> None:
    assert block_bytes(10 * BLOCK_BYTES, BLOCKS_MIN - 1) is None
    assert block_bytes(BLOCKS_MIN * 4096, BLOCKS_MIN) == 4096
