"""A disk that somebody else uses is refused: mounts, holders, loop devices, locks of ours and of qemu."""

import contextlib
import fcntl
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from disks.catalogue import create, identity, inspect, open_source, open_target
from disks.disk import Format
from disks.errors import DiskInUse, FormatContradicted

SIZE = 32 * 1024 * 1024


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def write_partition_table(path: Path) -> None:
    """One Linux partition from 1 MiB to the end."""
    with path.open("r+b") as disk:
        disk.seek(440)
        disk.write(
            struct.pack("<IHB3sB3sII", 0xC0FFEE, 0, 0, bytes(3), 0x83, bytes(3), 2048, SIZE // 512 - 2048)
        )
        disk.seek(510)
        disk.write(b"\x55\xaa")


@contextlib.contextmanager
def loop(path: Path, *options: str) -> Iterator[Path]:
    device = Path(run("losetup", "-f", "--show", *options, path))
    try:
        yield device
    finally:
        run("losetup", "-d", device)


@contextlib.contextmanager
def mount(device: Path, point: Path, *options: str) -> Iterator[None]:
    point.mkdir(exist_ok=True)
    run("mount", *options, device, point)
    try:
        yield
    finally:
        run("umount", point)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "disk with space.raw"
    create(path, Format.RAW, SIZE).close()
    run("mkfs.ext4", "-q", "-F", path)
    return path


def test_a_device_is_read_and_written_like_a_file(file: Path) -> None:
    with loop(file) as device:
        disk = open_target(device)
        assert (disk.format, disk.size, disk.grain_size) == (Format.RAW, SIZE, None)
        assert disk.allocated_bytes() == SIZE
        disk.write(1_000_001, memoryview(b"x" * 300_000))
        disk.zero(1_100_001, 100_007)
        disk.flush()
        into = bytearray(300_000)
        disk.read(1_000_001, memoryview(into))
        expected = b"x" * 100_000 + bytes(100_007) + b"x" * 99_993
        assert into == expected
        disk.close()
        with pytest.raises(FormatContradicted):
            open_source(device, Format.VHD_FIXED)
    assert file.read_bytes()[1_000_001:1_300_001] == expected


def test_what_is_mounted_is_no_target_and_read_write_no_source(file: Path, tmp_path: Path) -> None:
    with loop(file) as device:
        with mount(device, tmp_path / "point"):
            for path in (file, device):
                for opener in (open_source, open_target):
                    with pytest.raises(DiskInUse):
                        opener(path)
                assert inspect(path).virtual_size == SIZE
        with mount(device, tmp_path / "point", "-o", "ro,noload"):
            for path in (file, device):
                open_source(path).close()
                with pytest.raises(DiskInUse):
                    open_target(path)


def test_a_mounted_partition_counts_for_the_whole_disk(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    create(path, Format.RAW, SIZE).close()
    write_partition_table(path)
    with loop(path, "-P") as device:
        run("partx", "-u", device)  # kernels without a parser for partition tables are told by partx
        part = Path(f"{device}p1")
        run("mkfs.ext4", "-q", "-F", part)
        with mount(part, tmp_path / "point"):
            for used in (path, device, part):
                for opener in (open_source, open_target):
                    with pytest.raises(DiskInUse):
                        opener(used)


def test_a_file_behind_a_loop_device_is_no_target_even_when_idle(file: Path) -> None:
    with loop(file):
        with pytest.raises(DiskInUse):
            open_target(file)
        open_source(file).close()
    open_target(file).close()


def test_a_held_device_is_no_target(file: Path) -> None:
    with loop(file) as device:
        holder = os.open(device, os.O_RDONLY | os.O_EXCL)
        with pytest.raises(DiskInUse):
            open_target(device)
        os.close(holder)
        one = open_target(device)
        with pytest.raises(DiskInUse):
            open_target(device)
        one.close()


@pytest.mark.parametrize(
    "kind", [Format.RAW, Format.VMDK_MONOLITHIC_FLAT, Format.VHD_DYNAMIC], ids=lambda k: k.value
)
def test_one_writer_or_many_readers(kind: Format, tmp_path: Path) -> None:
    path = tmp_path / {Format.RAW: "disk.raw", Format.VHD_DYNAMIC: "disk.vhd"}.get(kind, "disk.vmdk")
    created = create(path, kind, SIZE)
    for opener in (open_source, open_target):
        with pytest.raises(DiskInUse):
            opener(path)
    created.close()
    one, two = open_source(path), open_source(path)
    with pytest.raises(DiskInUse):
        open_target(path)
    one.close()
    two.close()
    target = open_target(path)
    with pytest.raises(DiskInUse):
        open_source(path)
    target.close()
    target.close()
    open_target(path).close()


def test_what_somebody_locks_with_flock_is_in_use(file: Path) -> None:
    with file.open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_SH)
        with pytest.raises(DiskInUse) as caught:
            open_target(file)
        assert "lslocks" in str(caught.value)
        open_source(file).close()
        fcntl.flock(holder, fcntl.LOCK_EX)
        for opener in (open_source, open_target):
            with pytest.raises(DiskInUse):
                opener(file)
        fcntl.flock(holder, fcntl.LOCK_UN)
        target = open_target(file)
        with pytest.raises(BlockingIOError):
            fcntl.flock(holder, fcntl.LOCK_SH | fcntl.LOCK_NB)
        target.close()


def test_a_look_of_udev_at_a_device_is_waited_for(file: Path) -> None:
    with loop(file) as device, device.open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_SH)
        timer = threading.Timer(0.3, lambda: fcntl.flock(holder, fcntl.LOCK_UN))
        timer.start()
        try:
            open_target(device).close()
        finally:
            timer.join()


def test_an_image_that_qemu_has_open_is_in_use(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    create(path, Format.VMDK_MONOLITHIC_SPARSE, SIZE).close()
    served = subprocess.Popen(
        ["qemu-nbd", "-f", "vmdk", "-k", tmp_path / "socket", "--persistent", path], stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 20
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            while client.connect_ex(str(tmp_path / "socket")):
                assert time.monotonic() < deadline
                assert served.poll() is None
            assert client.recv(8) == b"NBDMAGIC"  # it greets when it has opened the image
        for opener in (open_source, open_target):
            with pytest.raises(DiskInUse):
                opener(path)
    finally:
        served.terminate()
        served.communicate()
    target = open_target(path)
    refused = subprocess.run(
        ["qemu-io", "-f", "vmdk", "-c", "write 0 512", path], capture_output=True, text=True
    )
    assert "lock" in refused.stderr
    target.close()


def test_a_reader_and_a_reading_qemu_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    create(path, Format.VMDK_MONOLITHIC_SPARSE, SIZE).close()
    source = open_source(path)
    writer = subprocess.run(
        ["qemu-io", "-f", "vmdk", "-c", "write 0 512", path], capture_output=True, text=True
    )
    assert "lock" in writer.stderr
    source.close()
    command = ["qemu-io", "-r", "-f", "vmdk", path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdin
        assert reader.stdout
        reader.stdin.write("read 0 512\n")
        reader.stdin.flush()
        while "512/512" not in reader.stdout.readline():
            assert reader.poll() is None
        open_source(path).close()
        with pytest.raises(DiskInUse):
            open_target(path)
        reader.stdin.close()


def test_an_identity_tells_disks_apart_and_stays_the_same(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.raw"
    create(other, Format.RAW, SIZE).close()
    run("mkfs.ext4", "-q", "-F", other)
    write_partition_table(other)
    blank = tmp_path / "blank.vmdk"
    create(blank, Format.VMDK_MONOLITHIC_SPARSE, SIZE).close()
    seen = []
    for path in (file, file, other, blank):
        disk = open_source(path)
        seen.append(identity(disk))
        disk.close()
    one, again, two, empty = seen
    assert one == again
    assert one.partition_fingerprint is None
    assert two.partition_fingerprint is not None
    assert one.file_system_fingerprint not in (None, two.file_system_fingerprint)
    assert (empty.partition_fingerprint, empty.file_system_fingerprint) == (None, None)
    assert empty.disk_uuid is not None
    assert len(empty.disk_uuid) == 32
    assert (one.path, one.size, one.disk_uuid) == (str(file), SIZE, None)
