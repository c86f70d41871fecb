"""VMware's formats and qcow2 at the command line: what is made, told, refused, and how large it may be."""

import random
import subprocess
from pathlib import Path

import pytest

from disks.catalogue import check, create, inspect, open_source, write_whole
from disks.disk import Format
from drcore.limits import TIB
from tests import vmdk_deltas
from tests.conftest import MountPoint
from tests.images import SOURCES, maker, qemu
from tests.system.command import changed, homeward, left_beside, some_content, write_sparse

SIZE = 3 * 1024 * 1024 + 512


def test_a_stream_is_created_whole_and_never_written_again(tmp_path: Path, dice: random.Random) -> None:
    content = some_content(dice, SIZE)
    source = write_sparse(tmp_path / "source.raw", content)
    target = tmp_path / "target.vmdk"
    answer = homeward("sync", source, target, "--create", "vmdk-streamOptimized", "--json").answer()
    assert answer["virtual_size"] == SIZE
    assert answer["bytes_sent"] == 0
    assert len(answer["root"]) == 64
    qemu("check", "-q", target)
    qemu("compare", "-q", "-f", "raw", "-F", "vmdk", source, target)
    assert homeward("info", target, "--json", "--check").answer()["format"] == "vmdk-streamOptimized"
    assert homeward("compare", source, target).code == 0
    before = target.read_bytes()
    for more in ((), ("--create", "vmdk-streamOptimized")):
        line = homeward("sync", source, target, "--json", *more).refused("HW-DISKS-050")
        assert "--create" in line
    assert target.read_bytes() == before
    assert left_beside(target) == []
    missing = homeward("sync", source, tmp_path / "no" / "a.vmdk", "--create", "vmdk-streamOptimized")
    missing.refused("HW-DISKS-005")


@pytest.mark.parametrize("name", ["qcow2-backing", "vmdk-snapshots", "vmdk-seSparse", "vmdk-vmfsSparse"])
def test_what_is_read_only_is_refused_as_a_target_untouched(
    name: str, tmp_path: Path, dice: random.Random
) -> None:
    content = bytes(some_content(dice, SIZE))
    folder = tmp_path / "images"
    folder.mkdir()
    target = SOURCES[name](folder, content)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    source = write_sparse(tmp_path / "source.raw", changed(dice, content))
    homeward("sync", source, target).refused("HW-DISKS-050")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_container_under_a_raw_name_is_raw_and_its_owner_is_told(tmp_path: Path) -> None:
    disguised = maker(Format.QCOW2)(tmp_path, b"x" * 65536).rename(tmp_path / "cloud.img")
    plain = write_sparse(tmp_path / "plain.raw", disguised.read_bytes())
    assert homeward("info", disguised, "--json").answer()["format"] == "raw"
    for words in (
        ("info", disguised),
        ("compare", disguised, plain),
        ("sync", disguised, tmp_path / "t.raw"),
    ):
        more = ("--create", "raw") if words[0] == "sync" else ()
        done = homeward(*words, *more, "--json")
        assert done.code == 0, done
        notices = [line for line in done.stderr.splitlines() if line.startswith("notice: HW-DISKS-055: ")]
        assert len(notices) == (2 if words[0] == "compare" else 1)
        assert ".qcow2" in notices[0]
    assert (tmp_path / "t.raw").read_bytes() == disguised.read_bytes()


def test_damage_is_told_by_the_check_with_its_place(tmp_path: Path) -> None:
    path = maker(Format.QCOW2)(tmp_path, b"x" * 200_704)
    assert homeward("info", "--check", path).code == 0
    with path.open("r+b") as file:
        file.seek(0x40000 + 8)
        file.write((1 << 63 | 1 << 40).to_bytes(8, "big"))
    done = homeward("info", "--check", path, "--json")
    assert done.code == 1
    (found, *_) = done.answer()["check"]
    assert (found["severity"], found["offset"]) == ("damage", 0x40008)


def test_disks_of_64_tib_are_handled_in_little_time_and_space(mount_point: MountPoint) -> None:
    folder, size = mount_point("tmpfs", 256 * 1024 * 1024), 64 * TIB
    flat = create(folder / "flat.vmdk", Format.VMDK_VMFS, size)
    flat.write(size - 512, memoryview(b"e" * 512))
    flat.flush()
    flat.close()
    delta = vmdk_deltas.se_sparse(
        folder / "delta.vmdk", size, {0: b"a", size // 4096 - 2: b"b"}, folder / "flat.vmdk"
    )
    qcow2 = folder / "disk.qcow2"
    qemu("create", "-q", "-f", "qcow2", qcow2, "64T")
    writes = ["-c", f"write -P 1 {size - 65536} 64k", "-c", "write -P 2 0 64k"]
    subprocess.run(["qemu-io", "-f", "qcow2", *writes, qcow2], check=True, capture_output=True)
    source = open_source(qcow2)
    write_whole(folder / "stream.vmdk", source, lambda position: None, lambda disk: None)
    source.close()
    ends = {
        delta: (b"a", b"e" * 512),
        qcow2: (b"\2", b"\1" * 512),
        folder / "stream.vmdk": (b"\2", b"\1" * 512),
    }
    for path, (first, last) in ends.items():
        found = inspect(path)
        assert found.virtual_size == size
        assert found.allocated_bytes <= 3 * 65536
        disk = open_source(path)
        into = bytearray(512)
        disk.read(0, memoryview(into))
        assert into.startswith(first)
        disk.read(size - 512, memoryview(into))
        assert into == last
        disk.close()
        assert check(path).findings == ()
    assert sum(path.stat().st_blocks for path in folder.iterdir()) * 512 < 128 * 1024 * 1024
