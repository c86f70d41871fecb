"""Content roots of points: what is read again, what is believed after a stop of any kind, and what a lie brings."""

import json
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from disks import content
from disks.disk import Disk
from disks.image import Image
from drcore.units import BLOCK_BYTES
from masttarget.adapters.files import LocalStore
from masttarget.adapters.retention_files import DigestsFile, RetentionFiles
from masttarget.errors_retention import PointChanged, RetentionFull
from masttarget.main import Master
from masttarget.points import Kind, Point, PointDisk
from masttarget.reading_points import prove
from masttarget.retention import ItemRetention, Policy, Retention
from masttarget.undo import Identity, UndoJournal
from masttarget.verified import Blocks, Verified, open_verified
from masttarget.verified_layout import PAGE_BLOCKS, PAGE_BYTES
from masttarget.verify import verify
from masttarget.view import PointView
from tests.fault.media import MemoryDisk
from tests.system.command import write_sparse
from tests.system.roles import Pair, Site
from tests.unit.test_masttarget_undo import Hands
from wireproto.errors import PeerReported

ITEM, DISK = b"i" * 16, b"d" * 16
BLOCKS = 2 * PAGE_BLOCKS + 40
SIZE = BLOCKS * BLOCK_BYTES - 1000


class Home:
    """A disk with retention whose points are verified."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk = MemoryDisk(SIZE)
        self.events: list[str] = []
        self.number = 0
        self.path = folder / "retention" / ITEM.hex() / DISK.hex() / "verified"

    @contextmanager
    def open(self, *, void: bool = False) -> Iterator[None]:
        files = RetentionFiles(self.folder / "retention")
        log = lambda event, /, **facts: self.events.append(event)  # noqa: E731
        self.item: ItemRetention = Retention(files, Hands(), Policy(verify_points=True), log).item(ITEM)
        identity = Identity(ITEM, DISK, SIZE)
        self.journal: UndoJournal = self.item.open_disk(
            identity, self.disk.read, seeding=False, durable=(0, 0), void=void
        )
        self.verified: Verified = open_verified(self.item, identity)
        self.item.begin([DISK])
        try:
            yield
        finally:
            self.verified.close()
            self.item.close_disk(DISK)

    def write(self, block: int, data: bytes) -> None:
        self.verified.touch(block, 1)
        self.journal.before_overwrite(block, 1)
        if any(data):
            self.disk.write(block * BLOCK_BYTES, memoryview(data))
        else:
            self.disk.zero(block * BLOCK_BYTES, len(data))

    def read_again(self, going_on: Callable[[], None] = lambda: None) -> int:
        """How many bytes were read again."""
        before = self.disk.bytes_read
        self.verified.read_again(
            self.disk, threading.Lock(), lambda: None, lambda first, count, found: None, going_on
        )
        return self.disk.bytes_read - before

    def publish(self) -> Point:
        found = self.verified.content
        self.number += 1
        one = PointDisk(DISK.hex(), SIZE, "", found.root, found.verified)
        point = self.item.publish(self.number.to_bytes(16, "big"), Kind.CRASH_CONSISTENT, [one])
        self.verified.settle(point)
        return point

    def root(self) -> str:
        """By reading everything."""
        return content.content_root(SIZE, [(0, self.disk.content())], lambda position: None)


@pytest.fixture
def home(tmp_path: Path, dice: random.Random) -> Home:
    made = Home(tmp_path)
    for block in range(0, BLOCKS - 30, 3):
        length = min(BLOCK_BYTES, SIZE - block * BLOCK_BYTES)
        made.disk.write(block * BLOCK_BYTES, memoryview(dice.randbytes(length)))
    with made.open():
        made.read_again()
        first = made.publish()
    assert first.disks[0].content_root == made.root()
    assert first.disks[0].verified == "full"
    return made


def test_the_second_point_reads_only_what_was_written(home: Home, dice: random.Random) -> None:
    for _ in range(2):
        with home.open():
            assert home.verified.due is False
            home.write(7, dice.randbytes(BLOCK_BYTES))
            home.write(BLOCKS - 1, dice.randbytes(BLOCK_BYTES - 1000))
            home.write(3, bytes(BLOCK_BYTES))
            assert home.verified.due is True
            assert home.read_again() == 2 * BLOCK_BYTES - 1000, "zeroes are known without reading"
            point = home.publish()
            assert (point.disks[0].content_root, point.disks[0].verified) == (home.root(), "written")
            assert home.read_again() == 0
            assert home.verified.content.root == home.root()
    assert verify(home.folder / "retention")[0].disks[0].verified_point == point.sequence


def test_a_cycle_that_broke_off_is_read_again_by_the_undo_journal(home: Home, dice: random.Random) -> None:
    with home.open():
        home.write(11, dice.randbytes(BLOCK_BYTES))
        home.read_again()  # and then it dies: pages are new, the point is not
        home.write(12, dice.randbytes(BLOCK_BYTES))
    assert verify(home.folder / "retention")[0].good
    with home.open():
        assert list(home.verified._written.runs()) == [(11, 2)]
        assert home.read_again() == 2 * BLOCK_BYTES
        point = home.publish()
        assert (point.disks[0].content_root, point.disks[0].verified) == (home.root(), "written")


def test_points_without_it_in_between_are_made_up_for(home: Home, dice: random.Random) -> None:
    """Also what a verb that knows nothing of the file wrote, in another process."""
    for block in (20, 21, 200):
        with home.open():
            home.journal.before_overwrite(block, 1)
            home.disk.write(block * BLOCK_BYTES, memoryview(dice.randbytes(BLOCK_BYTES)))
            home.number += 1
            home.item.publish(
                home.number.to_bytes(16, "big"), Kind.BEFORE_ROLLBACK, [PointDisk(DISK.hex(), SIZE)]
            )
    with home.open():
        assert home.read_again() == 3 * BLOCK_BYTES
        assert home.publish().disks[0].content_root == home.root()


@pytest.mark.parametrize("reason", ["outside", "dropped", "no header", "cut", "gone"])
def test_a_file_that_speaks_of_nothing_listed_is_not_believed(home: Home, reason: str) -> None:
    with home.open():
        if reason == "dropped":
            home.item.drop(list(home.item.points), last=True)
    if reason == "gone":
        home.path.unlink()
    if reason == "cut":
        os.truncate(home.path, 100)
    if reason == "no header":
        home.path.write_bytes(bytes(PAGE_BYTES) + home.path.read_bytes()[PAGE_BYTES:])
    with home.open(void=reason == "outside"):
        home.read_again()
        assert home.verified.content.verified == "full"
        assert home.publish().disks[0].content_root == home.root()


def test_a_flipped_bit_anywhere_is_never_believed(home: Home, dice: random.Random) -> None:
    good = home.path.read_bytes()
    for _ in range(40):
        with home.open():
            home.write(dice.randrange(BLOCKS - 1), dice.randbytes(BLOCK_BYTES))
            if dice.random() < 0.5:
                home.read_again()
        good = home.path.read_bytes()
        at = dice.choice((dice.randrange(128), dice.randrange(PAGE_BYTES, len(good))))
        bad = bytearray(good)
        bad[at] ^= 1 << dice.randrange(8)
        home.path.write_bytes(bad)
        with home.open():
            home.read_again()
            assert home.publish().disks[0].content_root == home.root(), f"byte {at}"
    assert home.path.stat().st_size == len(good)


def test_a_page_that_rots_while_it_is_open_gives_no_root_and_then_a_full_one(home: Home) -> None:
    with home.open():
        home.write(1, b"x" * BLOCK_BYTES)
        with home.path.open("r+b") as file:
            file.seek(2 * PAGE_BYTES + 100)
            file.write(b"rot")
        home.read_again()
        assert home.verified.content.root == ""
        assert home.publish().disks[0].content_root == ""
        home.read_again()
        assert home.verified.content.verified == "full"
        assert home.publish().disks[0].content_root == home.root()
    assert any("no content root" in event for event in home.events)


def test_a_reading_that_is_stopped_forgets_nothing(home: Home, dice: random.Random) -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    with home.open():
        home.write(5, dice.randbytes(BLOCK_BYTES))
        with pytest.raises(Stop):
            home.read_again(stop)
        assert home.verified.due
        assert home.read_again() == BLOCK_BYTES
        assert home.publish().disks[0].content_root == home.root()


def test_a_full_retention_volume_costs_the_root_and_not_the_point(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: DigestsFile, offset: int, data: bytes) -> None:
        raise RetentionFull(path="x", free=0, wanted=1)

    with home.open():
        home.write(5, b"y" * BLOCK_BYTES)
        with monkeypatch.context() as patch:
            patch.setattr(DigestsFile, "write", full)
            home.read_again()
            assert home.publish().disks[0].content_root == ""
        home.read_again()
        assert home.publish().disks[0].content_root == home.root()


def test_a_point_whose_content_changed_does_not_verify(home: Home) -> None:
    with home.open():
        point = home.item.points.latest
        assert point is not None
        view = PointView(home.disk, home.journal.segments, Identity(ITEM, DISK, SIZE), point.sequence)
        prove(view, point, DISK.hex(), bytes(192), lambda position: None)
        home.disk.write(5, memoryview(b"rotten"))
        with pytest.raises(PointChanged):
            prove(view, point, DISK.hex(), bytes(192), lambda position: None)


def test_the_second_opinion_finds_what_is_broken(home: Home) -> None:
    good = home.path.read_bytes()
    for at in (3, 30, 64, 80, PAGE_BYTES + 5, PAGE_BYTES + 20, 2 * PAGE_BYTES + 99):
        bad = bytearray(good)
        bad[at] ^= 4
        home.path.write_bytes(bad)
        verdict = verify(home.folder / "retention")[0]
        assert [error.code for error in verdict.disks[0].errors] == ["HW-MT-056"], at
    home.path.write_bytes(good)
    points = home.path.parents[1] / "points"
    lines = points.read_text().splitlines()
    assert json.loads(lines[-1][33:])["point"]["disks"][0]["verified"] == "full"


def test_a_set_of_blocks_is_the_blocks_that_were_added(dice: random.Random) -> None:
    for _ in range(30):
        size = dice.choice((1, 63, 64, 65, 1000, 70_000, 200_000))
        found, expected = Blocks(size), set()
        other = Blocks(size)
        for _ in range(dice.randrange(6)):
            first = dice.randrange(size)
            count = dice.randrange(1, min(size - first, dice.choice((1, 5, 100_000))) + 1)
            dice.choice((found, other)).add(first, count)
            expected.update(range(first, first + count))
        found.join(other)
        assert bool(found) == bool(expected)
        assert [block for first, count in found.runs() for block in range(first, first + count)] == sorted(
            expected
        )
    assert list(Blocks(9, everything=True).runs()) == [(0, 9)]


class Lying(LocalStore):
    """A medium that loses one write, which shows as soon as the cache is given up."""

    lies = 1

    def forget(self, disk: Disk) -> None:
        super().forget(disk)
        if self.lies:
            self.lies -= 1
            assert isinstance(disk, Image)
            with disk.path.open("r+b") as file:
                file.seek(3 * BLOCK_BYTES + 17)
                file.write(b"what was there before")


def test_a_medium_that_lost_a_write_gets_no_point_and_is_written_again(
    tmp_path: Path, dice: random.Random
) -> None:
    source = write_sparse(tmp_path / "source.raw", dice.randbytes(9 * BLOCK_BYTES + 512))
    site = Site(tmp_path, Pair(source, tmp_path / "target.raw", create="raw"))
    config = site.masttarget()
    disks = tuple(replace(disk, keep_record=True) for disk in config.disks)
    folder = tmp_path / "retention"
    config = replace(config, disks=disks, retention=folder, retention_own_volume=False, verify_points=True)
    events: list[str] = []
    master = Master(config, lambda event, /, **facts: events.append(event), Lying(tmp_path))
    thread = threading.Thread(target=master.run)
    thread.start()
    try:
        port = master.address[1]
        with pytest.raises(PeerReported, match="HW-MT-055"):
            site.sync(port)
        assert events.count("point published") == 0
        site.sync(port)
    finally:
        master.stop()
        thread.join(60)
    assert source.read_bytes() == (tmp_path / "target.raw").read_bytes()
    files = RetentionFiles(folder)
    item = Retention(files, Hands(), Policy(), lambda event, /, **facts: None).item(site.item.bytes)
    assert item.points.latest is not None
    (disk,) = item.points.latest.disks
    size = source.stat().st_size
    assert disk.content_root == content.content_root(size, [(0, source.read_bytes())], lambda position: None)
    assert disk.verified == "full"
