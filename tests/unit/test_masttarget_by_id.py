"""Disks found by their VMware disk UUID: udev's view in a folder, real block devices behind it."""

import os
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from drcore.units import BLOCK_BYTES
from masttarget import offline
from masttarget.adapters.by_id import device_of
from masttarget.adapters.files import LocalStore
from masttarget.config import load
from masttarget.errors import ConfigRefused, DiskNotAttached, DiskUuidAmbiguous, OtherTarget
from tests.conftest import LoopDevice

UUID = "6000c29a1b2c3d4e5f60718293a4b5c6"
OTHER = "6000c29a1b2c3d4e5f60718293a4b5c7"


class Udev:
    """`/dev/disk/by-id` as udev keeps it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "by-id"
        self.path.mkdir()

    def add(self, disk_uuid: str, device: Path, *, partitions: int = 1) -> None:
        for name in (f"wwn-0x{disk_uuid}", f"scsi-3{disk_uuid}"):
            (self.path / name).symlink_to(os.path.relpath(device, self.path))
            for number in range(1, partitions + 1):
                (self.path / f"{name}-part{number}").symlink_to(f"{device}p{number}")

    def remove(self, disk_uuid: str) -> None:
        for path in list(self.path.iterdir()):
            if disk_uuid in path.name:
                path.unlink()


class Room:
    """A master target's machine to which disks are attached."""

    def __init__(self, folder: Path, loop_device: LoopDevice) -> None:
        self.folder, self.loop_device = folder, loop_device
        self.udev = Udev(folder)
        self.store = LocalStore(folder / "state", self.udev.path)
        settings = folder / "masttarget.toml"
        settings.write_text(
            f'[masttarget]\nkey_file = "/key"\nstate_directory = "{folder / "state"}"\n'
            f'[[disk]]\nitem = "{uuid.uuid4()}"\ndisk = "{uuid.uuid4()}"\nadopt = true\n'
            'path = "disk-uuid:6000C29a-1b2c-3d4e-5f60-718293a4b5c6"\n'
        )
        self.config = load(settings).disks[0]

    def device(self, name: str) -> Path:
        path = self.folder / name
        path.write_bytes(os.urandom(4 * BLOCK_BYTES))
        return self.loop_device(path)


@pytest.fixture
def room(tmp_path: Path, loop_device: LoopDevice) -> Room:
    return Room(tmp_path, loop_device)


def test_a_disk_is_found_and_known_again_under_another_device(room: Room) -> None:
    first, decoy = room.device("first.img"), room.device("decoy.img")
    room.udev.add(UUID, first)
    room.udev.add(OTHER, decoy)
    assert device_of(UUID, room.udev.path) == first
    offline.adopt((room.config,), 1, room.store)
    record = room.store.journal(room.config).load()
    assert record is not None
    assert record.identity["uuid"] == UUID
    assert record.identity["path"] == f"disk-uuid:{UUID}"
    assert room.config.journal.parent == room.folder / "state", "not beside a path that is none"

    again = room.loop_device(room.folder / "decoy.img")  # the kernel gave the disk another name
    room.udev.remove(UUID)
    room.udev.add(UUID, again)
    offline.adopt((room.config,), 2, LocalStore(room.folder / "state", room.udev.path))
    look = room.store.look(room.config)
    content = memoryview(bytearray(BLOCK_BYTES))
    look.read(0, content)
    look.close()
    assert content == (room.folder / "decoy.img").read_bytes()[:BLOCK_BYTES]


def test_a_device_by_its_path_is_not_taken_for_the_disk_that_had_it_before(room: Room) -> None:
    device = room.device("disk.img")
    room.udev.add(UUID, device)
    room.store.open(room.config).close()
    plain = replace(room.config, path=device, disk_uuid="")
    disk = room.store.open(plain)
    found = room.store.identity(disk)
    disk.close()
    assert (found["uuid"], found["path"]) == ("none", str(device))


def test_another_size_under_the_uuid_is_another_disk(room: Room) -> None:
    room.udev.add(UUID, room.device("disk.img"))
    offline.adopt((room.config,), 1, room.store)
    room.udev.remove(UUID)
    larger = room.folder / "larger.img"
    larger.write_bytes(bytes(8 * BLOCK_BYTES))
    room.udev.add(UUID, room.loop_device(larger))
    with pytest.raises(OtherTarget):
        offline.adopt((room.config,), 2, room.store)


def test_none_is_refused(room: Room) -> None:
    with pytest.raises(DiskNotAttached, match="no disk of that UUID"):
        room.store.open(room.config)
    assert room.store.exists(room.config), "it is never created"
    with pytest.raises(DiskNotAttached):
        device_of(UUID, room.folder / "nowhere")
    room.udev.add(OTHER, room.device("other.img"))
    (room.udev.path / f"wwn-0x{UUID}-part1").symlink_to(room.device("partition.img"))
    with pytest.raises(DiskNotAttached, match="no disk of that UUID"):
        room.store.look(room.config)


@pytest.mark.parametrize("stale", ["/dev/sd-that-went", "file"])
def test_a_name_that_leads_to_no_device_is_refused_even_beside_one_that_does(room: Room, stale: str) -> None:
    (room.folder / "file").touch()
    (room.udev.path / f"scsi-3{UUID}").symlink_to(stale if stale[0] == "/" else room.folder / stale)
    (room.udev.path / f"wwn-0x{UUID}").symlink_to(room.device("disk.img"))
    with pytest.raises(DiskNotAttached, match="no block device"):
        room.store.open(room.config)


def test_several_are_refused_by_name(room: Room) -> None:
    one, two = room.device("one.img"), room.device("two.img")
    (room.udev.path / f"wwn-0x{UUID}").symlink_to(one)
    (room.udev.path / f"scsi-3{UUID.upper()}").symlink_to(two)
    with pytest.raises(DiskUuidAmbiguous) as caught:
        room.store.open(room.config)
    assert str(one) in str(caught.value)
    assert str(two) in str(caught.value)


def test_a_disk_that_goes_while_it_is_opened_is_given_back(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.udev.add(UUID, room.device("disk.img"))
    from disks import catalogue

    real = catalogue.open_target

    def replaced(*arguments):  # type: ignore[no-untyped-def]
        disk = real(*arguments)
        room.udev.remove(UUID)
        room.udev.add(UUID, room.device("another.img"))
        return disk

    monkeypatch.setattr(catalogue, "open_target", replaced)
    with pytest.raises(DiskNotAttached, match="before"):
        room.store.open(room.config)
    monkeypatch.undo()
    room.store.open(room.config).close()


@pytest.mark.parametrize(
    "line",
    [
        'path = "disk-uuid:6000C29"',
        'path = "disk-uuid:6000c29a1b2c3d4e5f60718293a4b5cg"',
        'path = "disk-uuid:"',
        'path = "relative/target.raw"',
        f'path = "disk-uuid:{UUID}"\ncreate = "raw"',
        f'path = "disk-uuid:{UUID}"\nformat = "vmdk-vmfs"',
    ],
)
def test_settings_that_name_no_disk_are_refused(line: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(
        f'[masttarget]\nkey_file = "/key"\n[[disk]]\nitem = "{uuid.uuid4()}"\ndisk = "{uuid.uuid4()}"\n{line}\n'
    )
    with pytest.raises(ConfigRefused):
        load(path)


def test_one_uuid_in_two_spellings_is_one_target(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    tables = "".join(
        f'[[disk]]\nitem = "{uuid.uuid4()}"\ndisk = "{uuid.uuid4()}"\npath = "disk-uuid:{spelling}"\n'
        for spelling in (UUID, UUID.upper())
    )
    path.write_text(f'[masttarget]\nkey_file = "/key"\n{tables}')
    with pytest.raises(ConfigRefused, match="same path"):
        load(path)
