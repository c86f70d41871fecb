"""How a disk is doing: the backlog as it is counted, rates and the RPO threshold under a clock that is set."""

import random
from pathlib import Path

import pytest

from drcore.limits import RPO_SECONDS
from drcore.units import BLOCK_BYTES, SPAN_BLOCKS
from masttarget.adapters.retention_files import ListFile, RetentionFiles
from masttarget.config import load
from masttarget.due import Due
from masttarget.errors import ConfigRefused
from masttarget.health import Health, Meter, Watch, recall, remember
from masttarget.points import Kind, Point, PointDisk, Points
from masttarget.retention import Policy, Retention
from tests.unit.test_masttarget_undo import Hands

ITEM, DISK = "1" * 32, "2" * 32


def test_the_backlog_is_what_differs_and_has_not_come(dice: random.Random) -> None:
    blocks = 70 * SPAN_BLOCKS + 5
    due, slow = Due(blocks, everything=False), set[int]()
    for _ in range(400):
        first = dice.randrange(blocks)
        if dice.random() < 0.5:
            span, bits = first // SPAN_BLOCKS * SPAN_BLOCKS, dice.getrandbits(SPAN_BLOCKS)
            bits &= (1 << min(SPAN_BLOCKS, blocks - span)) - 1
            due.add(span, bits)
            slow |= {span + bit for bit in range(SPAN_BLOCKS) if bits >> bit & 1}
        else:
            count = dice.randrange(1, min(300, blocks - first + 1))
            due.take(first, count)
            slow -= set(range(first, first + count))
        assert due.left == len(slow)
    due.take(0, blocks)
    assert due.left == 0


def test_an_empty_target_has_at_most_what_lies_behind_the_last_block() -> None:
    due = Due(100, everything=True)
    assert due.left == 100
    due.take(10, 30)
    assert due.left == 60
    due.settle()
    assert due.left == 0


class Told:
    """A watch over one disk, and what it said."""

    def __init__(self) -> None:
        self.clock = Hands()
        self.meter = Meter(ITEM, DISK)
        self.events: list[tuple[str, dict[str, object]]] = []
        self.watch = Watch([self.meter], self.clock, self.log, RPO_SECONDS)

    def log(self, event: str, /, **facts: object) -> None:
        self.events.append((event, facts))

    def after(self, seconds: float) -> list[str]:
        self.clock.time += seconds
        self.events.clear()
        self.watch.tell()
        return [event for event, _ in self.events]


def test_the_threshold_alerts_once_and_says_when_it_is_kept_again() -> None:
    """R139: it tells, and changes nothing."""
    told = Told()
    assert told.after(RPO_SECONDS) == [], "not before"
    assert told.after(1) == ["RPO threshold exceeded", "health changed"]
    assert told.events[0][1] == {
        "item": ITEM, "disk_id": DISK, "lag_seconds": RPO_SECONDS + 1, "rpo_seconds": RPO_SECONDS, "point": "",
    }  # fmt: skip
    assert told.watch.look()[0].health is Health.WARNING
    assert told.after(10) == [], "once"
    told.meter.publish("ab", told.clock.now())
    assert told.after(1) == ["within the RPO threshold again", "health changed"]
    assert told.watch.look()[0].lag_seconds == 1
    told.clock.time -= 100
    assert told.watch.look()[0].lag_seconds == 0, "a clock that goes back makes no negative lag"


def test_progress_has_rate_backlog_and_eta() -> None:
    told = Told()
    told.meter.begin(7, 1000 * BLOCK_BYTES, lambda: 600)
    assert told.after(1) == ["disk progress"]
    for _ in range(6):
        told.meter.received_bytes += 100 * BLOCK_BYTES
        told.after(10)
    one = told.watch.look()[0]
    assert one.rate_bytes == 10 * BLOCK_BYTES
    assert one.backlog_bytes == 600 * BLOCK_BYTES
    assert one.eta_seconds == 60
    assert told.events[0][1]["eta_seconds"] == 60
    told.after(60)
    assert told.watch.look()[0].rate_bytes == 0, "an old rate is none"
    assert told.watch.look()[0].eta_seconds is None
    told.meter.end(6)
    assert told.after(1) == ["disk progress"], "a newer session goes on"
    told.meter.end(7)
    assert told.after(1) == []
    assert told.watch.look()[0].backlog_bytes == 0


def test_a_disk_that_failed_or_waits_is_critical() -> None:
    told = Told()
    told.meter.failure = "HW-DISKS-001"
    assert told.after(1) == ["health changed"]
    assert told.events[0][1]["code"] == "HW-DISKS-001"
    told.meter.begin(1, 1, lambda: 0)
    assert told.watch.look()[0].health is Health.HEALTHY
    told.meter.waits = lambda: True
    assert told.watch.look()[0].health is Health.CRITICAL


def test_a_restart_knows_the_last_point_and_how_old_its_content_is() -> None:
    points = Points(ListFile(Path("/nonexistent/points")), ITEM)
    disks = (PointDisk(DISK, 1),)
    points._add(Point("01", 1, 1000, Kind.AS_FOUND, disks))
    meter = Meter(ITEM, DISK)
    recall([meter], points)
    assert (meter.point, meter.in_sync_at) == ("", None), "nobody knows what was found"
    points._add(Point("02", 2, 2000, Kind.CRASH_CONSISTENT, disks))
    points._add(Point("03", 3, 3000, Kind.CRASH_CONSISTENT, disks))
    points._add(Point("04", 4, 4000, Kind.CRASH_CONSISTENT, disks, base_cycle=2))
    recall([meter], points)
    assert (meter.point, meter.in_sync_at) == ("04", 2.0)


def test_going_back_beside_a_master_target_makes_the_lag_what_it_is(tmp_path: Path) -> None:
    def of(now: float) -> Retention:
        clock = Hands()
        clock.time = now
        return Retention(RetentionFiles(tmp_path), clock, Policy(), lambda event, /, **facts: None)

    mine, item = of(1000.0), bytes.fromhex(ITEM)
    meter = Meter(ITEM, DISK)
    remember([meter], mine)
    assert (meter.point, list(tmp_path.iterdir())) == ("", []), "looking leaves nothing"
    for number, now in enumerate((1000.0, 2000.0), start=1):
        of(now).item(item).publish(bytes([number]) * 16, Kind.CRASH_CONSISTENT, [PointDisk(DISK, 1)])
    mine = of(2000.0)
    remember([meter], mine)
    assert meter.in_sync_at == 2000.0
    of(3000.0).item(item).publish(bytes([3]) * 16, Kind.CRASH_CONSISTENT, [PointDisk(DISK, 1)], base_cycle=1)
    meter.begin(1, 1, lambda: 0)
    remember([meter], mine)
    assert meter.in_sync_at == 2000.0, "a session knows better"
    meter.end(1)
    remember([meter], mine)
    assert (meter.point, meter.in_sync_at) == ("03" * 16, 1000.0)


@pytest.mark.parametrize(
    "address", ["0.0.0.0:1", "10.0.0.1:9464", "example.org:9464", "9464", "127.0.0.1:http"]
)
def test_metrics_stay_on_this_machine(address: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(f'[masttarget]\nkey_file = "/key"\nmetrics = "{address}"\n')
    with pytest.raises(ConfigRefused, match="metrics"):
        load(path)
