"""An item's points: choosing, keeping, giving up; the volume that they lie on; the slots of a master target."""

import fcntl
import random
import shutil
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from drcore.limits import MASTTARGET_DISKS_MAX
from drcore.units import BLOCK_BYTES
from masttarget import volume
from masttarget.adapters.retention_files import ListFile, RetentionFiles
from masttarget.adapters.segment_files import SegmentFiles
from masttarget.adapters.volumes import candidates, claim, volume_of
from masttarget.config import MasttargetConfig, load
from masttarget.errors import ConfigRefused
from masttarget.errors_retention import (
    ClockBackwards,
    LastPoint,
    PointInUse,
    PointsDamaged,
    PointUnknown,
    RetentionBusy,
    RetentionFailed,
    RetentionFull,
    RetentionRefused,
    SegmentMissing,
    SlotsTaken,
)
from masttarget.points import Kind, Point, PointDisk, Points
from masttarget.receive import Reception
from masttarget.retention import ItemRetention, Policy, Retention, Step, prunable
from masttarget.standing import standing
from masttarget.undo import Identity, whole
from masttarget.view import PointView
from tests.conftest import MountPoint
from tests.fault.media import MemoryDisk
from tests.unit.test_masttarget_undo import Hands

ITEM, DISK = b"i" * 16, b"d" * 16
HOUR = 3600.0
MIB = 1 << 20


def item_of(folder: Path, clock: Hands, policy: Policy | None = None) -> ItemRetention:
    store = RetentionFiles(folder / "retention")
    return Retention(store, clock, policy or Policy(), lambda event, /, **facts: None).item(ITEM)


def a_point(sequence: int, time_s: float, kind: Kind = Kind.CRASH_CONSISTENT) -> Point:
    return Point(f"{sequence:032x}", sequence, int(time_s * 1000), kind, (PointDisk(DISK.hex(), 1),))


def test_a_day_of_points_every_five_minutes_keeps_the_window_and_finds_in_few_steps(tmp_path: Path) -> None:
    clock = Hands()
    item = item_of(tmp_path, clock)
    disk = MemoryDisk(40 * BLOCK_BYTES)
    journal = item.open_disk(
        Identity(ITEM, DISK, disk.size), disk.read, seeding=False, durable=(0, 0), void=False
    )
    item.begin([DISK])
    for number in range(2 * 288):
        journal.before_overwrite(number % 40, 1)
        disk.write(number % 40 * BLOCK_BYTES, memoryview(b"%d" % number))
        clock.time += 300
        item.publish(number.to_bytes(16, "big"), Kind.CRASH_CONSISTENT, [PointDisk(DISK.hex(), disk.size)])
    assert len(item.points) in (288, 289)
    steps = [0]

    class Counting(list[int]):
        def __getitem__(self, index):  # type: ignore[no-untyped-def]
            steps[0] += 1
            return super().__getitem__(index)

    item.points._times = Counting(item.points._times)
    for point in list(item.points):
        found = item.points.at(point.time_ms)
        assert found is point
    assert steps[0] <= 12 * len(item.points), "bisection, not a walk"
    again = item_of(tmp_path, clock)
    assert [point.id for point in again.points] == [point.id for point in item.points]
    item.close_disk(DISK)


def test_choices_are_those_of_a_failover() -> None:
    """R142."""
    points = Points(ListFile(Path("/nonexistent/points")), ITEM.hex())
    for point in (
        a_point(1, 1000, Kind.AS_FOUND),
        a_point(2, 2000),
        a_point(3, 3000, Kind.APP_CONSISTENT),
        a_point(4, 4000),
        a_point(5, 5000, Kind.BEFORE_ROLLBACK),
    ):
        points._add(point)

    def chosen(words: str) -> int:
        return points.choose(words).sequence

    assert chosen("latest") == chosen("latest-processed") == 4
    assert chosen("latest-app-consistent") == 3
    assert chosen("5") == 5
    assert chosen(f"{4:032x}") == 4
    assert chosen("1970-01-01T00:50:00Z") == 3
    assert chosen("1970-01-01T00:49:59+00:00") == 2
    for words in ("1970-01-01T00:20:00Z", "yesterday", "99", "", "9" * 5000):
        with pytest.raises(PointUnknown):
            points.choose(words)


def test_the_window_goes_first_but_never_the_last_good_point() -> None:
    old = [a_point(1, 0, Kind.AS_FOUND), a_point(2, 10), a_point(3, 20, Kind.BEFORE_ROLLBACK)]
    assert [one.sequence for one in prunable(old, int(100 * HOUR * 1000), Policy())] == [1]
    young = [a_point(number, number * HOUR) for number in range(1, 30)]
    assert [one.sequence for one in prunable(young, int(29 * HOUR * 1000), Policy())] == [1, 2, 3, 4]


def test_a_ladder_thins_what_is_older(tmp_path: Path) -> None:
    points = [a_point(number, number * 300.0) for number in range(1, 289)]
    policy = Policy(24 * HOUR, (Step(2 * HOUR, HOUR), Step(12 * HOUR, 4 * HOUR)))
    gone = {one.sequence for one in prunable(points, 288 * 300_000, policy)}
    kept = [one for one in points if one.sequence not in gone]
    newest = [one for one in kept if one.time_ms >= 22 * HOUR * 1000]
    assert len(newest) == 25, "the last two hours stay whole"
    assert 12 <= len(kept) - len(newest) <= 16
    again = {one.sequence for one in prunable(kept, 288 * 300_000, policy)}
    assert again == set(), "a ladder is climbed once"


def test_a_list_is_damaged_or_torn(tmp_path: Path) -> None:
    clock = Hands()
    item = item_of(tmp_path, clock)
    item.begin([])
    for number in range(4):
        item.publish(bytes([number]) * 16, Kind.CRASH_CONSISTENT, [PointDisk(DISK.hex(), 1)])
    path = next((tmp_path / "retention").rglob("points"))
    good = path.read_bytes()
    path.write_bytes(good[:-5])
    assert len(item_of(tmp_path, clock).points) == 3, "a torn line was never answered"
    for at in (40, len(good) // 2):
        bad = bytearray(good)
        bad[at] ^= 1
        path.write_bytes(bad)
        points = Points(ListFile(path), ITEM.hex())
        with pytest.raises(PointsDamaged) as caught:
            points.load()
        assert caught.value.offset <= at
        assert len(points) < 4
    path.write_bytes(b"")
    points = Points(ListFile(path), ITEM.hex())
    points.add(a_point(1, 2000))
    points.add(a_point(2, 1000))
    late = Points(ListFile(path), ITEM.hex())
    with pytest.raises(ClockBackwards):
        late.load()
    assert len(late) == 1


def test_a_point_whose_segments_went_with_others_cannot_be_used(tmp_path: Path) -> None:
    clock = Hands()
    item = item_of(tmp_path, clock)
    disk = MemoryDisk(8 * BLOCK_BYTES)
    journal = item.open_disk(
        Identity(ITEM, DISK, disk.size), disk.read, seeding=False, durable=(0, 0), void=False
    )
    journal._segment_bytes = 1
    item.begin([DISK])
    for number in range(5):
        journal.before_overwrite(number, 1)
        disk.write(number * BLOCK_BYTES, memoryview(b"%d" % number))
        item.publish(bytes([number]) * 16, Kind.CRASH_CONSISTENT, [PointDisk(DISK.hex(), disk.size)])
    segments = item.store.segments(ITEM, DISK)
    whole = standing(segments, ITEM, DISK, whole=True)
    assert [whole.reason(sequence) for sequence in (1, 2, 3)] == [None] * 3
    item.drop([point for point in item.points if point.sequence < 4])
    for every_byte in (True, False):
        left = standing(segments, ITEM, DISK, whole=every_byte)
        assert [left.reason(point.sequence) for point in item.points] == [None] * 3
        assert isinstance(left.reason(2), SegmentMissing)
        assert left.errors == []
    item.close_disk(DISK)


def test_a_list_that_is_made_shorter_gives_no_number_twice(tmp_path: Path) -> None:
    path = tmp_path / "points"
    points = Points(ListFile(path), ITEM.hex())
    for number in (1, 2, 3):
        points.add(a_point(number, number))
    points._lines = 5000  # as after a day of many points
    points.drop([1, 3], "operator")
    assert len(path.read_bytes().splitlines()) == 3
    again = Points(ListFile(path), ITEM.hex())
    again.load()
    assert [point.sequence for point in again] == [2]
    assert (again.last_sequence, again.last_time_ms) == (3, 3000)
    again.add(a_point(4, 4))
    assert [point.sequence for point in again] == [2, 4]


def test_who_begins_to_read_while_a_claim_ends_is_seen_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, flock = RetentionFiles(tmp_path), fcntl.flock
    with store.hold(ITEM, "point"):
        pass
    claims: list[int] = []

    def late(descriptor: int, mode: int) -> None:
        if mode & fcntl.LOCK_SH and not claims:
            claims.append(descriptor)
            with store.claim(ITEM, "point"):
                pass
        flock(descriptor, mode)

    monkeypatch.setattr(fcntl, "flock", late)
    with store.hold(ITEM, "point"), pytest.raises(PointInUse), store.claim(ITEM, "point"):
        pass
    assert claims
    with store.claim(ITEM, "point"):
        pass


def test_the_last_good_point_and_one_in_use_stay(tmp_path: Path) -> None:
    item = item_of(tmp_path, Hands())
    for number in range(3):
        item.publish(bytes([number]) * 16, Kind.CRASH_CONSISTENT, [PointDisk(DISK.hex(), 1)])
    points = list(item.points)
    with item.store.hold(ITEM, points[0].id), pytest.raises(PointInUse):
        item.drop(points[:1])
    item.drop(points[:2])
    with pytest.raises(LastPoint):
        item.drop(points[2:])
    item.drop(points[2:], last=True)
    assert len(item.points) == 0


def test_a_point_speaks_only_of_the_disks_whose_cycle_it_ends(tmp_path: Path) -> None:
    item = item_of(tmp_path, Hands())
    names = (DISK, b"e" * 16)
    disks = {name: MemoryDisk(4 * BLOCK_BYTES) for name in names}
    journals = {
        name: item.open_disk(
            Identity(ITEM, name, disk.size), disk.read, seeding=False, durable=(0, 0), void=False
        )
        for name, disk in disks.items()
    }
    held: dict[tuple[int, bytes], bytes] = {}

    def write(name: bytes, block: int, content: bytes) -> None:
        journals[name].before_overwrite(block, 1)
        disks[name].write(block * BLOCK_BYTES, memoryview(content))

    def publish(*those: bytes) -> None:
        point = [PointDisk(name.hex(), disks[name].size, root=disks[name].content().hex()) for name in those]
        found = item.publish(item.cycle.to_bytes(16, "big"), Kind.CRASH_CONSISTENT, point)
        held.update({(found.sequence, name): disks[name].content() for name in those})

    item.begin(names)
    for name in names:
        write(name, 0, b"first")
    publish(*names)
    for name in names:
        write(name, 1, b"half a cycle")
    item.begin(names[:1])  # a session without the other disk, whose cycle broke off
    publish(*names[:1])
    item.begin(names)
    assert item.points.latest is not None
    assert item.points.latest.kind is Kind.AS_FOUND, "what the other holds is no point's content"
    held.update({(item.points.latest.sequence, name): disks[name].content() for name in names})
    for name in names:
        write(name, 1, b"second")
    publish(*names)
    for name in names:
        write(name, 1, b"later")
    for point in item.points:
        for one in point.disks:
            name = bytes.fromhex(one.disk)
            view = PointView(
                disks[name], item.store.segments(ITEM, name), journals[name].identity, point.sequence
            )
            into = memoryview(bytearray(view.size))
            view.read(0, into)
            assert point.sequence == 1 or into == held.pop((point.sequence, name))
            assert one.root in ("", bytes(into).hex()), (point.sequence, name)
    assert held == {}
    for name in names:
        item.close_disk(name)


@pytest.mark.parametrize("ladder", [(), (Step(HOUR, 2 * HOUR),)])
def test_what_is_read_stays_though_older_and_newer_points_go(
    tmp_path: Path, ladder: tuple[Step, ...]
) -> None:
    clock = Hands()
    item = item_of(tmp_path, clock, Policy(24 * HOUR if not ladder else 1000 * HOUR, ladder))
    disk = MemoryDisk(8 * BLOCK_BYTES)
    journal = item.open_disk(
        Identity(ITEM, DISK, disk.size), disk.read, seeding=False, durable=(0, 0), void=False
    )
    journal._segment_bytes = 1
    item.begin([DISK])
    for number in range(6):
        journal.before_overwrite(number, 1)
        disk.write(number * BLOCK_BYTES, memoryview(b"%d" % number))
        clock.time += 60
        item.publish(bytes([number]) * 16, Kind.CRASH_CONSISTENT, [PointDisk(DISK.hex(), disk.size)])
        if number == 2:
            content, (point, *_) = disk.content(), reversed(list(item.points))
    clock.time += 72 * HOUR
    with item.store.hold(ITEM, point.id):
        gone = [one.sequence for one in item.prune()]
        assert point.sequence not in gone
        assert min(gone) < point.sequence < max(gone)
        view = PointView(disk, item.store.segments(ITEM, DISK), journal.identity, point.sequence)
        into = memoryview(bytearray(disk.size))
        view.read(0, into)
        assert into == content
    assert point in item.prune(), "nobody reads from it any more"
    item.close_disk(DISK)


def test_a_full_volume_costs_the_oldest_points_then_makes_the_cycle_wait_and_goes_on_by_itself(
    tmp_path: Path, mount_point: MountPoint, dice: random.Random
) -> None:
    point = mount_point("tmpfs", 4 * MIB)
    clock = Hands()
    item = item_of(point, clock)
    disk = MemoryDisk(100 * BLOCK_BYTES)
    for block in range(100):
        disk.write(block * BLOCK_BYTES, memoryview(dice.randbytes(BLOCK_BYTES)))
    journal = item.open_disk(
        Identity(ITEM, DISK, disk.size), disk.read, seeding=False, durable=(0, 0), void=False
    )
    journal._segment_bytes = 256 * 1024
    item.begin([DISK])
    for number in range(8):  # 1.25 MiB each
        journal.before_overwrite(number * 10, 20)
        clock.time += 300
        item.publish(bytes([number]) * 16, Kind.CRASH_CONSISTENT, [PointDisk(DISK.hex(), disk.size)])
    assert 1 <= len(item.points) <= 4
    assert item.points.latest is not None
    assert item.points.latest.sequence == 9

    item.drop(list(item.points)[:-1])
    ballast = point / "ballast"
    ballast.write_bytes(bytes(max(0, item.store.free_bytes() - 300 * 1024)))
    waiting = threading.Thread(target=journal.before_overwrite, args=(0, 30), daemon=True)
    waiting.start()
    waiting.join(1.5)
    assert waiting.is_alive()
    assert item.critical
    assert len(item.points) == 1
    ballast.unlink()
    waiting.join(20)
    assert not waiting.is_alive()
    assert not item.critical
    assert not journal.missing(0, whole(0xFFFF))
    item.close_disk(DISK)


def test_a_journal_whose_writer_is_at_work_is_pruned_by_another_disk_only_afterwards(tmp_path: Path) -> None:
    """Its undo records are made durable by its own writer; nobody may take part in that from outside."""
    item = item_of(tmp_path, Hands())
    reading, go_on = threading.Event(), threading.Event()
    disk = MemoryDisk(40 * BLOCK_BYTES)

    def read(offset: int, into: memoryview) -> None:
        if offset == 39 * BLOCK_BYTES:
            reading.set()
            assert go_on.wait(20)
        disk.read(offset, into)

    other = b"e" * 16
    journals = [
        item.open_disk(Identity(ITEM, one, disk.size), read, seeding=False, durable=(0, 0), void=False)
        for one in (DISK, other)
    ]
    item.begin([DISK, other])
    points = [PointDisk(one.hex(), disk.size) for one in (DISK, other)]
    for number in range(4):
        for journal in journals:
            journal._segment_bytes = 1
            journal.before_overwrite(number, 1)
        item.publish(bytes([number]) * 16, Kind.CRASH_CONSISTENT, points)
    before = [journal.segments.numbers() for journal in journals]
    writer = threading.Thread(target=journals[1].before_overwrite, args=(39, 1), daemon=True)
    writer.start()
    assert reading.wait(20)
    item.drop(list(item.points)[:2])
    after = [journal.segments.numbers() for journal in journals]
    go_on.set()
    writer.join(20)
    assert len(after[0]) < len(before[0])
    assert after[1] == before[1]
    assert not journals[1].missing(0, whole(1 << 39))
    item.make_room(RetentionFull(path="x", free=0, wanted=0))
    assert len(journals[1].segments.numbers()) < len(before[1])
    for one in (DISK, other):
        item.close_disk(one)


def test_a_point_stands_although_pruning_failed_and_the_next_point_prunes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Hands()
    item = item_of(tmp_path, clock, Policy(600))
    for number in range(3):
        item.publish(bytes([number]) * 16, Kind.CRASH_CONSISTENT, [PointDisk(DISK.hex(), 1)])
        clock.time += 300
    clock.time += 3600

    def fail(*_: object) -> None:
        raise RetentionFailed(path="x", reason="Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Points, "drop", fail)
        assert (
            item.publish(b"n" * 16, Kind.CRASH_CONSISTENT, [PointDisk(DISK.hex(), 1)]).id == (b"n" * 16).hex()
        )
    assert [point.sequence for point in item.points] == [1, 2, 3, 4]
    assert item.cycle == 5
    item.publish(b"o" * 16, Kind.CRASH_CONSISTENT, [PointDisk(DISK.hex(), 1)])
    assert [point.sequence for point in item.points] == [4, 5]


def test_a_point_whose_head_could_not_be_written_is_not_published_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item, disk = item_of(tmp_path, Hands()), MemoryDisk(4 * BLOCK_BYTES)
    journal = item.open_disk(
        Identity(ITEM, DISK, disk.size), disk.read, seeding=False, durable=(0, 0), void=False
    )
    item.begin([DISK])
    journal.before_overwrite(0, 4)
    disks = [PointDisk(DISK.hex(), disk.size)]

    def fail(*_: object) -> None:
        raise RetentionFailed(path="x", reason="Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(SegmentFiles, "store_head", fail)
        with pytest.raises(RetentionFailed):
            item.publish(b"n" * 16, Kind.CRASH_CONSISTENT, disks)
    again = item.publish(b"n" * 16, Kind.CRASH_CONSISTENT, disks)
    assert (again.sequence, item.cycle) == (2, 3)
    assert [point.sequence for point in item.points] == [1, 2], "the point as found, and this one once"
    assert item.publish(b"o" * 16, Kind.CRASH_CONSISTENT, disks).sequence == 3
    item.close_disk(DISK)


def test_an_item_goes_as_a_whole_and_what_a_kill_left_of_it_goes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Hands()
    item = item_of(tmp_path, clock)
    item.publish(b"n" * 16, Kind.CRASH_CONSISTENT, [PointDisk(DISK.hex(), 1)])

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            item.remove()
    assert item.store.disks(ITEM) == []
    again = item_of(tmp_path, clock)
    assert len(again.points) == 0
    again.publish(b"o" * 16, Kind.CRASH_CONSISTENT, [PointDisk(DISK.hex(), 1)])
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            again.remove()
    item_of(tmp_path, clock).remove()
    item_of(tmp_path, clock).remove()
    assert not (tmp_path / "retention").exists()


def test_who_waits_for_room_gives_up_when_a_newer_session_comes(tmp_path: Path) -> None:
    item = item_of(tmp_path, Hands())
    failures: list[RetentionFull] = []
    full = RetentionFull(path="x", free=0, wanted=1 << 62)

    def wait() -> None:
        try:
            item.make_room(full)
        except RetentionFull as error:
            failures.append(error)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    waiting.join(0.3)
    item.interrupt()
    waiting.join(10)
    assert failures == [full]


def settings(folder: Path) -> MasttargetConfig:
    return MasttargetConfig("127.0.0.1", 0, folder / "key", folder / "state")


def test_a_volume_of_its_own_is_taken_once(tmp_path: Path, mount_point: MountPoint) -> None:
    point = mount_point("ext4", 128 * MIB)
    found = volume_of(point, settings(tmp_path))
    assert (found.mount_point, found.kind) == (str(point), "ext4")
    assert any(one.mount_point == str(point) for one in candidates(settings(tmp_path)))
    volume.check(found)
    give_back = claim(point, [ITEM])
    claim(point, [b"o" * 16])()  # one volume for many machines, each with a master target of its own
    with pytest.raises(RetentionBusy):
        claim(point, [b"o" * 16, ITEM])
    give_back()
    claim(point, [ITEM])()
    # What homeward keeps there does not make it somebody else's.
    item = ItemRetention(ITEM, RetentionFiles(point), Hands(), Policy(), lambda event, /, **facts: None)
    with item.changing():
        volume.check(volume_of(point, settings(tmp_path)))


def test_memory_a_small_volume_a_directory_and_files_of_others_are_refused(
    tmp_path: Path, mount_point: MountPoint
) -> None:
    for kind, size, reasons in (
        ("tmpfs", 128 * MIB, ["R065"]),
        ("tmpfs", 64 << 10, ["R065", "R071"]),
        ("ext4", 16 * MIB, ["R071"]),
    ):
        found = volume.obstacles(volume_of(mount_point(kind, size), settings(tmp_path)))
        assert [reason[-5:-1] for reason in found] == reasons
    point = mount_point("ext4", 128 * MIB)
    (inside,) = volume.obstacles(volume_of(point / "lost+found", settings(tmp_path)))
    assert str(point) in inside
    (point / "photos").mkdir()
    (foreign,) = volume.obstacles(volume_of(point, settings(tmp_path)))
    assert "photos" in foreign


def test_a_volume_that_is_used_otherwise_is_refused_with_every_reason(
    tmp_path: Path, mount_point: MountPoint
) -> None:
    point = mount_point("ext4", 128 * MIB)
    good = volume_of(point, settings(tmp_path))
    assert volume.obstacles(good) == []
    for changed, requirement in (
        (replace(good, mount_point="/"), "R065"),
        (replace(good, targets=(good.device,)), "R067"),
        (replace(good, read_only=True), "R068"),
        (replace(good, caches=(good.device,)), "R069"),
        (replace(good, installation=good.device), "R069"),
        (replace(good, kind="vfat"), "R070"),
        (replace(good, kind="ramfs"), "R065"),
        (replace(good, capacity_bytes=0), "R071"),
    ):
        with pytest.raises(RetentionRefused, match=requirement):
            volume.check(changed)
    with pytest.raises(RetentionRefused, match="R065"):
        volume_of(tmp_path / "nothing", settings(tmp_path))
    subprocess.run(["mount", "-o", "remount,ro", point], check=True)
    assert any("R068" in reason for reason in volume.obstacles(volume_of(point, settings(tmp_path))))
    inside = MasttargetConfig("127.0.0.1", 0, tmp_path / "key", point)
    assert any("R069" in reason for reason in volume.obstacles(volume_of(point, inside)))


def test_the_sixty_first_disk_is_refused_before_anything_changes() -> None:
    reception = Reception.__new__(Reception)
    reception._open = dict.fromkeys(bytes([n]) * 16 for n in range(MASTTARGET_DISKS_MAX - 2))  # type: ignore[arg-type]
    reception._wanted = {b"i" * 16: {b"z" * 16}}
    reception._check_slots({b"x" * 16, b"\0" * 16})
    with pytest.raises(SlotsTaken) as caught:
        reception._check_slots({b"x" * 16, b"y" * 16})
    assert (caught.value.attached, caught.value.wanted, caught.value.most) == (59, 2, 60)
    assert "another master target" in str(caught.value)


def test_the_ladder_is_a_setting(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"

    def ladder(text: str) -> Policy:
        path.write_text(f'[masttarget]\nkey_file = "/key"\nretention_ladder = "{text}"\n')
        found = load(path)
        return Policy.of(found.retention_seconds, found.retention_ladder)

    assert ladder("") == Policy()
    assert ladder(" 2h:30m,12h:4h ") == Policy(
        24 * HOUR, (Step(2 * HOUR, HOUR / 2), Step(12 * HOUR, 4 * HOUR))
    )
    for words in ("2h", "2h:0m", "2x:1h", "2h:1h,1h:2h", "2h:1h,3h:1h", "24h:2h", "2h:1h,", "-2h:1h"):
        with pytest.raises(ConfigRefused, match="retention_ladder"):
            ladder(words)
