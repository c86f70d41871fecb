"""VMware's formats and qcow2 against readers of others: qemu-img, vmdkinfo (libvmdk), 7-Zip, dissect.hypervisor.

The recipes are in `tests/images.py` and `tests/vmdk_deltas.py` and run at test time, so that every version of the
others on the way is a witness; versions are printed.
"""

import importlib.metadata
import random
import subprocess
import sys
from pathlib import Path

import pytest

from disks.catalogue import check, create, inspect, open_source, open_target, write_whole
from disks.disk import Disk, ExtentKind, Format
from disks.errors import TargetExists
from tests import vmdk_deltas
from tests.images import SOURCES, converted, maker, qemu, vmfs
from tests.system.command import write_sparse

MIB = 1024 * 1024
SIZE = 34 * MIB + 3 * 512
"""Two grain tables of a VMDK, of which one maps 32 MiB."""
SEVERAL_TABLES = ("vmdk-monolithicSparse", "vmdk-streamOptimized", "vmdk-snapshots")


@pytest.fixture(scope="module")
def guest() -> bytes:
    """40 MiB and 3 sectors with data in some places, scattered by a fixed seed."""
    dice, content = random.Random(4711), bytearray(SIZE)
    for offset in (0, 65536 * 3, 2 * MIB - 512, 20_000_000, 33 * MIB, SIZE - 700):
        piece = dice.randbytes(min(SIZE - offset, 300_000))
        content[offset : offset + len(piece)] = piece
    content[29_000_000:29_400_000] = b"words " * 66_666 + b"...."
    print(subprocess.check_output(["qemu-img", "--version"], text=True))
    print("dissect.hypervisor", importlib.metadata.version("dissect.hypervisor"))
    return bytes(content)


def content_of(path: Path) -> bytes:
    disk = open_source(path)
    into = bytearray(disk.size)
    disk.read(0, memoryview(into))
    disk.close()
    return bytes(into)


def reads_for_qemu_as(path: Path, content: bytes | bytearray) -> None:
    """qemu-img reads from the image what is given, and so do we."""
    expected = write_sparse(path.with_name("expected.raw"), content)
    qemu("compare", "-q", "-f", path.suffix[1:], "-F", "raw", path, expected)
    assert content_of(path) == content


DISSECT = """
import pathlib, sys
path, offset, length = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
if path.suffix == ".qcow2":
    from dissect.hypervisor.disk.qcow2 import QCow2
    disk = QCow2(path.open("rb")).open()
else:
    from dissect.hypervisor.disk.vmdk import VMDK
    disk = VMDK(path)
disk.seek(offset)
sys.stdout.buffer.write(disk.read(length))
"""


def read_by_dissect(path: Path, size: int, offset: int = 0) -> bytes:
    """What dissect.hypervisor reads, up to the last whole 8 KiB: what is behind it, it cannot read.

    In a process of its own, since it leaves its files open.
    """
    length = max(0, size // 8192 * 8192 - offset)
    command = [sys.executable, "-W", "ignore", "-c", DISSECT, path, str(offset), str(length)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def kinds_in(path: Path) -> dict[ExtentKind, int]:
    disk = open_source(path)
    found = dict.fromkeys(ExtentKind, 0)
    for extent in disk.extents(0, disk.size):
        found[extent.kind] += extent.length
    disk.close()
    return found


@pytest.mark.parametrize("name", [name for name in SOURCES if "vmdk" in name or "qcow2" in name])
def test_what_others_made_is_read_and_sound(name: str, guest: bytes, tmp_path: Path) -> None:
    content = guest if name in SEVERAL_TABLES else guest[-(3 * MIB + 512) :]
    path = SOURCES[name](tmp_path, content)
    reads_for_qemu_as(path, content)
    found = kinds_in(path)
    assert sum(found.values()) == len(content)
    assert found[ExtentKind.ZERO] > len(content) // 2 or name in ("vmdk-vmfsSparse", "vmdk-seSparse")
    assert inspect(path).allocated_bytes >= found[ExtentKind.DATA]
    assert not [each for each in check(path).findings if each.severity.value == "damage"]


@pytest.mark.parametrize(
    ("options", "more", "size"),
    [
        ("compat=0.10", (), 3 * MIB),
        ("compat=1.1,cluster_size=512", ("-c",), MIB + 512),
        ("compat=1.1,cluster_size=2M", (), SIZE),
        ("compat=1.1,cluster_size=2M", ("-c",), 5 * MIB),
    ],
)
def test_qcow2_of_every_cluster_size_is_read(
    options: str, more: tuple[str, ...], size: int, guest: bytes, tmp_path: Path
) -> None:
    path = converted(tmp_path / "disk.qcow2", guest[:size], "qcow2", options, *more)
    assert content_of(path) == guest[:size]
    assert read_by_dissect(path, size) == guest[: size // 8192 * 8192]
    assert check(path).findings == ()


def test_a_qcow2_shows_its_present_state_not_its_snapshots(guest: bytes, tmp_path: Path) -> None:
    path = maker(Format.QCOW2)(tmp_path, guest)
    qemu("snapshot", "-c", "before", path)
    writes = ["-c", "write -P 7 0 1M", "-c", "write -z 2M 1M", "-c", "discard 20M 1M"]
    subprocess.run(["qemu-io", "-f", "qcow2", *writes, path], check=True, capture_output=True)
    expected = bytearray(guest)
    for at, fill in ((0, 7), (2 * MIB, 0), (20 * MIB, 0)):
        expected[at : at + MIB] = bytes([fill]) * MIB
    reads_for_qemu_as(path, expected)
    assert check(path).findings == ()


def test_a_backing_file_that_is_shorter_shows_zeroes_behind_its_end(guest: bytes, tmp_path: Path) -> None:
    write_sparse(tmp_path / "base.raw", guest)
    path = tmp_path / "disk.qcow2"
    command = ("create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base.raw", path, str(SIZE + 3 * MIB))
    qemu(*command, cwd=tmp_path)
    assert content_of(path) == guest + bytes(3 * MIB)
    assert kinds_in(path)[ExtentKind.ZERO] > 20 * MIB


@pytest.mark.parametrize("kind", ["vmfsSparse", "seSparse"])
def test_deltas_of_esxi_read_as_qemu_and_dissect_read_them(kind: str, guest: bytes, tmp_path: Path) -> None:
    dice = random.Random(3)
    last = SIZE // 4096
    grains = {number: dice.randbytes(4096) for number in (0, 5, 6, 7, 4095, 4096, 8000)}
    grains[last] = dice.randbytes(SIZE - last * 4096)
    parent = vmfs(tmp_path, guest)
    child = tmp_path / "child.vmdk"
    expected, alone = bytearray(guest), bytearray(SIZE)
    if kind == "vmfsSparse":
        vmdk_deltas.vmfs_sparse(child, SIZE, grains, parent)
    else:
        # type 1 (unmapped): zeroes, says qemu; dissect takes it for the parent's, so it is not asked
        vmdk_deltas.se_sparse(child, SIZE, grains, parent, zeroes={10: 2, 20: 1, 4100: 2})
        for number in (10, 20, 4100):
            expected[number * 4096 : (number + 1) * 4096] = bytes(4096)
    for number, piece in grains.items():
        expected[number * 4096 : number * 4096 + len(piece)] = piece
        alone[number * 4096 : number * 4096 + len(piece)] = piece
    reads_for_qemu_as(child, expected)
    extent = child.with_name(child.stem + vmdk_deltas.EXTENTS[kind][1])
    assert read_by_dissect(extent, SIZE) == alone[: SIZE // 8192 * 8192]
    disk = open_source(child)
    assert disk.disk_uuid == "6000c2937d5f21ba0f5731b40b1e5d3c"  # the base's: deltas have none
    disk.close()
    assert check(child).findings == ()


def test_vmfs_sparse_grains_of_one_sector_are_read(guest: bytes, tmp_path: Path) -> None:
    grains = {number: bytes([number % 251 + 1]) * 512 for number in (0, 1, 2, 8000, SIZE // 512 - 1)}
    expected = bytearray(guest)
    for number, piece in grains.items():
        expected[number * 512 : (number + 1) * 512] = piece
    child = vmdk_deltas.vmfs_sparse(
        tmp_path / "child.vmdk", SIZE, grains, vmfs(tmp_path, guest), grain_sectors=1
    )
    reads_for_qemu_as(child, expected)


class Memory:
    """Bytes as a source; what `write_whole` needs of a disk."""

    def __init__(self, content: bytes, folder: Path) -> None:
        path = folder / "content.raw"
        path.write_bytes(content)
        self.disk = open_source(path)

    def written(self, path: Path) -> Path:
        seen: list[bytes] = []

        def verify(disk: Disk) -> None:
            into = bytearray(disk.size)
            disk.read(0, memoryview(into))
            seen.append(bytes(into))
            assert not path.exists()

        write_whole(path, self.disk, lambda position: None, verify)
        self.disk.close()
        assert seen == [content_of(path)]
        return path


@pytest.mark.parametrize("size", [700, 32 * MIB, SIZE - 100])
def test_a_stream_of_ours_is_read_by_everybody(size: int, guest: bytes, tmp_path: Path) -> None:
    content = guest[-size:]
    path = Memory(content, tmp_path).written(tmp_path / "stream.vmdk")
    whole = content.ljust(-(-size // 512) * 512, b"\0")
    reads_for_qemu_as(path, whole)
    qemu("check", "-q", path)
    assert read_by_dissect(path, len(whole)) == whole[: len(whole) // 8192 * 8192]
    assert subprocess.check_output(["7z", "x", "-so", "-tVMDK", path], stderr=subprocess.DEVNULL) == whole
    told = subprocess.check_output(["vmdkinfo", path], text=True)
    assert "Stream optimized" in told
    assert f"({len(whole)} bytes)" in told
    assert check(path).findings == ()
    assert path.stat().st_size < SIZE // 4


def test_an_empty_stream_and_a_taken_name(tmp_path: Path) -> None:
    path = Memory(bytes(SIZE), tmp_path).written(tmp_path / "stream.vmdk")
    reads_for_qemu_as(path, bytes(SIZE))
    before = path.read_bytes()
    with pytest.raises(TargetExists):
        Memory(b"x" * 512, tmp_path).written(path)
    assert path.read_bytes() == before


def test_a_stream_that_does_not_read_back_or_is_stopped_leaves_nothing(tmp_path: Path, guest: bytes) -> None:
    source = Memory(guest, tmp_path).disk

    def stop(position: int) -> None:
        if position > 20_000_000:
            raise KeyboardInterrupt

    def differs(disk: Disk) -> None:
        raise ValueError

    for on_bytes, verify in ((stop, lambda disk: None), (lambda position: None, differs)):
        with pytest.raises((KeyboardInterrupt, ValueError)):
            write_whole(tmp_path / "stream.vmdk", source, on_bytes, verify)
    source.close()
    assert [path.name for path in tmp_path.iterdir()] == ["content.raw"]


@pytest.mark.parametrize("kind", [Format.VMDK_TWO_GB_SPARSE, Format.VMDK_TWO_GB_FLAT, Format.VMDK_VMFS])
def test_what_we_made_of_several_files_is_read_by_everybody(kind: Format, tmp_path: Path) -> None:
    path, size = tmp_path / "disk.vmdk", 5 * 1024 * MIB + 512
    if kind is Format.VMDK_VMFS:
        size = SIZE
    border = 4192256 * 512
    pieces = {0: b"first", border - 700: b"over the border" * 100, 2 * border: b"third", size - 5: b"ended"}
    disk = create(path, kind, size)
    for offset, piece in pieces.items():
        if offset + len(piece) <= size:
            disk.write(offset, memoryview(piece))
    disk.flush()
    disk.close()
    told = subprocess.check_output(["vmdkinfo", path], text=True)
    assert f"({size} bytes)" in told
    assert f"({size} bytes)" in qemu("info", path)
    for offset, piece in pieces.items():
        if offset + len(piece) <= size:
            there = read_by_dissect(path, min(size, offset + 16384), offset)
            assert there.startswith(piece) or offset + len(piece) == size
            pattern = subprocess.check_output(["qemu-io", "-r", "-c", f"read -v {offset} {len(piece)}", path])
            assert piece[:4].hex(" ").encode() in pattern
    assert check(path).findings == ()
    extents = {Format.VMDK_TWO_GB_SPARSE: "-s{:03d}", Format.VMDK_TWO_GB_FLAT: "-f{:03d}"}.get(kind)
    if extents:
        names = {f"disk{extents.format(number)}.vmdk" for number in (1, 2, 3)}
        assert {each.name for each in tmp_path.iterdir()} == {"disk.vmdk", *names}


def test_a_disk_of_esxi_keeps_all_but_its_cid(guest: bytes, tmp_path: Path) -> None:
    path = vmfs(tmp_path, guest)
    before = path.read_text()
    target = open_target(path)
    old = target.change_mark
    target.write(70_000, memoryview(b"changed"))
    target.flush()
    new = target.change_mark
    target.close()
    assert old
    assert new not in (None, old)
    assert path.read_text() == before.replace(old, str(new))
    assert before.count(old) == 2  # the long content id ends in it
