"""Opening a target: adoption, identity, sizes, and what is made of what an earlier run left."""

import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from disks.catalogue import create
from disks.disk import Disk, Format
from drcore.clock import SystemClock
from drcore.errors import HomewardError
from drcore.units import BLOCK_BYTES
from masttarget.adapters.files import LocalStore
from masttarget.adapters.retention_files import RetentionFiles
from masttarget.config import DiskConfig
from masttarget.errors import (
    JournalDamaged,
    NotAdopted,
    OtherTarget,
    TargetFailed,
    TargetLarger,
    TargetMissing,
    TargetTooSmall,
)
from masttarget.opening import OpenDisk, open_disk
from masttarget.points import Kind, PointDisk
from masttarget.reading_points import viewing
from masttarget.retention import ItemRetention, Policy, Retention
from masttarget.taking_back import take_back

SECRET = bytes(192)
SIZE = 5 * BLOCK_BYTES + 512
POINT = b"p" * 16


class Bench:
    """A folder with a target's place, opened as often as a test wants."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.store = LocalStore(folder)
        self.path = folder / "target.raw"
        self.journal = folder / "target.raw.homeward"
        self.stack = stack
        self.failures: list[HomewardError] = []
        item, disk = uuid.uuid4(), uuid.uuid4()
        self.config = DiskConfig(item, disk, self.path, "", "", False, False, self.journal)

    def open(self, size: int = SIZE, **changes: object) -> OpenDisk:
        config = replace(self.config, **changes)  # type: ignore[arg-type]
        found = open_disk(config, size, SECRET, self.store, SystemClock(), self.failures.append)
        self.stack.callback(self.close, found)
        return found

    def close(self, disk: OpenDisk) -> None:
        if disk.commit._thread.is_alive():
            disk.close(self.store)

    def begun_and_broken(self, **changes: object) -> None:
        """A session began, read the disk and broke off; the master target closed in order."""
        disk = self.open(**changes)  # type: ignore[arg-type]
        disk.begin(4, 9)
        for _ in disk.target.scanned(lambda position: None):
            pass
        self.close(disk)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(tmp_path, stack)


def test_a_missing_target_is_created_only_when_asked_for(bench: Bench) -> None:
    with pytest.raises(TargetMissing):
        bench.open()
    assert not bench.journal.exists()
    disk = bench.open(create="raw")
    assert (disk.empty, disk.resumed, disk.target.known) == (True, False, True)
    assert bench.path.stat().st_size == SIZE
    assert disk.record.created


def test_a_created_vmdk_holds_whole_sectors(bench: Bench, tmp_path: Path) -> None:
    disk = bench.open(size=1000, create="vmdk-monolithicSparse", path=tmp_path / "t.vmdk")
    assert disk.target.disk.size == 1024
    assert disk.target.data_bytes == 1000


def test_an_existing_target_has_to_be_adopted(bench: Bench) -> None:
    create(bench.path, Format.RAW, SIZE).close()
    with pytest.raises(NotAdopted) as caught:
        bench.open()
    assert str(SIZE) in caught.value.identity
    assert not bench.journal.exists()
    with bench.path.open("r+b") as file:
        file.write(b"content")
    disk = bench.open(adopt=True)
    assert (disk.empty, disk.resumed, disk.target.known) == (False, False, False)


def test_an_adopted_target_that_is_one_hole_needs_no_reading(bench: Bench) -> None:
    create(bench.path, Format.RAW, SIZE).close()
    disk = bench.open(adopt=True)
    assert (disk.empty, disk.resumed, disk.target.known) == (True, False, True)


@pytest.mark.parametrize(
    ("size", "allow", "error"),
    [
        (SIZE, False, None),
        (SIZE + 1, True, TargetTooSmall),
        (SIZE - 1, False, None),  # up to whole sectors
        (SIZE - 512, False, TargetLarger),
        (SIZE - 512, True, None),
    ],
)
def test_sizes(bench: Bench, size: int, allow: bool, error: type[HomewardError] | None) -> None:
    create(bench.path, Format.RAW, SIZE).close()
    if error is None:
        assert bench.open(size=size, adopt=True, allow_larger=allow).target.data_bytes == size
        return
    with pytest.raises(error):
        bench.open(size=size, adopt=True, allow_larger=allow)
    assert not bench.journal.exists()
    with pytest.raises(error):  # the failed one gave the lock back
        bench.open(size=size, adopt=True, allow_larger=allow)


def test_what_was_adopted_once_goes_on_without_being_asked_again(bench: Bench) -> None:
    create(bench.path, Format.RAW, SIZE).close()
    bench.begun_and_broken(adopt=True)
    again = bench.open()
    assert again.resumed
    assert (again.record.generation, again.record.session) == (4, 9)
    assert again.target.known, "nothing changed since the clean close"


def test_another_disk_in_its_place_is_refused(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "t.vmdk"
    journal = tmp_path / "t.vmdk.homeward"
    place = {"path": path, "journal": journal}
    create(path, Format.VMDK_MONOLITHIC_SPARSE, SIZE).close()
    bench.begun_and_broken(adopt=True, **place)
    path.unlink()
    create(path, Format.VMDK_MONOLITHIC_SPARSE, SIZE).close()  # same name and size, another UUID
    before = path.read_bytes()
    for adopt in (False, True):
        with pytest.raises(OtherTarget) as caught:
            bench.open(adopt=adopt, **place)  # type: ignore[arg-type]
        assert caught.value.journal == str(journal)
        assert caught.value.found_identity != caught.value.adopted_identity
    assert path.read_bytes() == before


def test_a_file_of_another_size_in_its_place_is_refused(bench: Bench) -> None:
    create(bench.path, Format.RAW, SIZE).close()
    bench.begun_and_broken(adopt=True)
    os.truncate(bench.path, SIZE + 512)
    with pytest.raises(OtherTarget):
        bench.open(allow_larger=True)


def test_a_journal_of_another_disk_is_damage(bench: Bench) -> None:
    create(bench.path, Format.RAW, SIZE).close()
    bench.begun_and_broken(adopt=True)
    for other in ({"disk": uuid.uuid4()}, {"item": uuid.uuid4()}):
        with pytest.raises(JournalDamaged):
            bench.open(**other)  # type: ignore[arg-type]


def test_a_creation_that_was_killed_is_known_to_be_ours(bench: Bench) -> None:
    disk = bench.open(create="raw")
    bench.close(disk)
    found = disk.journal.load()
    assert found is not None
    disk.journal.store(replace(found, identity={}, closed=None))
    again = bench.open(create="raw")
    assert again.resumed
    assert again.record.identity["size"] == str(SIZE)


def test_what_somebody_put_in_the_place_of_a_killed_creation_is_theirs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(disk: DiskConfig, size: int) -> Disk:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(bench.store, "create", die)
        with pytest.raises(Killed):
            bench.open(create="raw")
    theirs = bytes(SIZE - 1) + b"!"
    bench.path.write_bytes(theirs)
    with pytest.raises(NotAdopted):
        bench.open(create="raw")
    retention = RetentionFiles(bench.journal / "undo")
    item = Retention(retention, SystemClock(), Policy(), lambda event, /, **facts: None).item(
        bench.config.item.bytes
    )
    with pytest.raises(OtherTarget):
        take_back(bench.config, item, bench.store, lambda position: None)
    assert bench.path.read_bytes() == theirs
    disk = bench.open(create="raw", adopt=True)
    assert not disk.record.created, "what it holds is kept before it is overwritten"


def test_a_target_that_vanished_keeps_generation_and_session(bench: Bench) -> None:
    disk = bench.open(create="raw")
    disk.begin(5, 7)
    bench.close(disk)
    bench.path.unlink()
    again = bench.open(create="raw")
    assert (again.record.generation, again.record.session) == (5, 7)
    found = again.journal.load()
    assert found is not None
    assert (found.generation, found.session) == (5, 7)


def test_a_source_that_was_resized_in_an_open_cycle_is_remembered_as_it_is(bench: Bench) -> None:
    create(bench.path, Format.RAW, SIZE).close()
    bench.begun_and_broken(adopt=True)
    disk = bench.open(SIZE - 512, allow_larger=True)
    disk.begin(4, 10)
    found = disk.journal.load()
    assert found is not None
    assert found.source_bytes == SIZE - 512


@pytest.mark.parametrize("change", ["time", "inode", "size of the source", "digests"])
def test_the_kept_map_is_not_trusted_when_anything_changed(bench: Bench, change: str, tmp_path: Path) -> None:
    create(bench.path, Format.RAW, SIZE).close()
    bench.begun_and_broken(adopt=True)
    if change == "time":
        os.utime(bench.path)
    elif change == "inode":
        status = bench.path.stat()
        (tmp_path / "copy").write_bytes(bench.path.read_bytes())
        (tmp_path / "copy").rename(bench.path)
        os.utime(bench.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "digests":
        (bench.journal / "digests").write_bytes(b"\x01" * 96)
    size = SIZE - 512 if change == "size of the source" else SIZE
    assert not bench.open(size=size, allow_larger=True).target.known


def test_after_an_unclean_stop_the_medium_is_read_and_not_the_cache(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[Path] = []
    monkeypatch.setattr(bench.store, "forget", lambda disk: forgotten.append(disk.path))
    create(bench.path, Format.RAW, SIZE).close()
    bench.begun_and_broken(adopt=True)
    assert forgotten == [], "nobody of ours has written to it before"
    bench.close(bench.open())
    assert forgotten == [], "the last stop was in order"
    disk = bench.open()
    disk.begin(4, 10)
    disk.target.disk.close()
    disk.commit.stop()
    disk.journal.close()
    bench.close(bench.open())
    assert forgotten == [bench.path]
    finished = bench.open(keep_record=True)
    finished.begin(4, 11)
    finished.publish(POINT)
    finished.target.disk.close()
    finished.commit.stop()
    finished.journal.close()
    bench.close(bench.open(keep_record=True))
    assert forgotten == [bench.path] * 3, "a published cycle, too"


def test_a_map_is_kept_only_when_it_is_true(bench: Bench) -> None:
    bench.path.write_bytes(b"content".ljust(SIZE, b"\0"))
    disk = bench.open(adopt=True)
    disk.begin(1, 1)
    bench.close(disk)  # before the disk was read
    record = disk.journal.load()
    assert record is not None
    assert record.closed is None
    assert not bench.open().target.known


def test_a_published_cycle_leaves_nothing(bench: Bench) -> None:
    disk = bench.open(create="raw")
    disk.begin(1, 1)
    disk.publish(POINT)
    bench.close(disk)
    assert not bench.journal.exists()


def test_a_published_cycle_that_was_not_tidied_up_is_over_but_stays_adopted(bench: Bench) -> None:
    disk = bench.open(create="raw")
    disk.begin(1, 1)
    disk.publish(POINT)
    disk.commit.stop()  # killed here: the journal stays
    disk.target.disk.close()
    again = bench.open()
    assert (again.resumed, again.published_before, again.target.known) == (False, POINT, False)
    again.begin(1, 2)
    assert again.record.published == ""


def test_a_disk_that_failed_takes_no_new_session(bench: Bench) -> None:
    disk = bench.open(create="raw")
    disk.commit.failure = TargetFailed(path="x", reason="y")
    with pytest.raises(TargetFailed):
        disk.begin(1, 1)


def test_the_point_of_the_cycle_that_created_a_target_outlives_a_kill_before_the_record_has_it(
    bench: Bench, tmp_path: Path
) -> None:
    """The list has the point, the disk's record not yet: what the next cycle overwrites is kept."""

    def retained() -> ItemRetention:
        files = RetentionFiles(tmp_path / "retention")
        return Retention(files, SystemClock(), Policy(), lambda event, /, **facts: None).item(item)

    def opened() -> OpenDisk:
        config = replace(bench.config, create="raw", keep_record=True)
        found = open_disk(config, SIZE, SECRET, bench.store, SystemClock(), bench.failures.append, retained())
        bench.stack.callback(bench.close, found)
        return found

    item, name = bench.config.item.bytes, bench.config.disk.hex
    first = opened()
    assert first.retention is not None
    first.begin(1, 1)
    first.retention.begin([bench.config.disk.bytes])
    first.retention.publish(POINT, Kind.CRASH_CONSISTENT, [PointDisk(name, SIZE)])
    first.target.disk.close()  # killed here
    first.commit.stop()
    first.retention.close_disk(bench.config.disk.bytes)
    first.journal.close()

    second = opened()
    assert second.retention is not None
    assert [point.id for point in second.retention.points] == [POINT.hex()]
    second.begin(1, 2)
    second.retention.begin([bench.config.disk.bytes])
    assert second.target.undo is not None
    second.target.undo.before_overwrite(0, 1)
    second.target.disk.write(0, memoryview(b"later".ljust(BLOCK_BYTES, b"!")))
    config = replace(bench.config, keep_record=True)
    (point,) = second.retention.points
    with viewing(retained(), point, config, bench.store) as view:
        found = memoryview(bytearray(b"?" * BLOCK_BYTES))
        view.read(0, found)
    assert bytes(found) == bytes(BLOCK_BYTES), "the point has changed"


def test_a_target_that_vanished_takes_its_points_along(bench: Bench, tmp_path: Path) -> None:
    """What the new one's first cycle ends with is its own; the old one's points lead nowhere."""
    item, disk = bench.config.item.bytes, bench.config.disk
    files = RetentionFiles(tmp_path / "retention")
    for number in (1, 2):
        kept = Retention(files, SystemClock(), Policy(), lambda event, /, **facts: None).item(item)
        config = replace(bench.config, create="raw", keep_record=True)
        found = open_disk(config, SIZE, SECRET, bench.store, SystemClock(), bench.failures.append, kept)
        found.begin(1, number)
        kept.begin([disk.bytes])
        point = bytes([number]) * 16
        kept.publish(point, Kind.CRASH_CONSISTENT, [PointDisk(disk.hex, SIZE)])
        found.publish(point)
        bench.close(found)
        assert [one.id for one in kept.points] == [point.hex()]
        bench.path.unlink()
