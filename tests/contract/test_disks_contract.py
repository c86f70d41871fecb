"""One contract for every format: what is written is read, zeroed is zero, flushed is durable, in every odd size."""

import json
import random
import subprocess
import threading
from pathlib import Path

import pytest

from disks.catalogue import Image, change_mark, create, inspect, open_source, open_target, recognise
from disks.disk import ExtentKind, Format
from disks.errors import DiskReadOnly, OutsideDisk, SizeNotPossible, TargetExists

SUFFIX = {Format.RAW: "raw"} | dict.fromkeys((Format.VHD_FIXED, Format.VHD_DYNAMIC), "vhd")
SUFFIX |= dict.fromkeys((Format.VHDX_FIXED, Format.VHDX_DYNAMIC), "vhdx")
QEMU = {"raw": "raw", "vhd": "vpc", "vhdx": "vhdx"}
FORMATS = [
    Format.RAW,
    Format.VHD_FIXED,
    Format.VHD_DYNAMIC,
    Format.VHDX_FIXED,
    Format.VHDX_DYNAMIC,
    Format.VMDK_MONOLITHIC_SPARSE,
    Format.VMDK_MONOLITHIC_FLAT,
    Format.VMDK_VMFS,
    Format.VMDK_TWO_GB_SPARSE,
    Format.VMDK_TWO_GB_FLAT,
]
SIZES = [512, 65536 - 512, 2 * 1024 * 1024 + 512, 33 * 1024 * 1024 + 7 * 512]

every_format = pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.value)


def place(folder: Path, kind: Format, name: str = "disk") -> Path:
    return folder / f"{name}.{SUFFIX.get(kind, 'vmdk')}"


def content(disk: Image, offset: int = 0, length: int | None = None) -> bytes:
    into = bytearray(disk.size - offset if length is None else length)
    disk.read(offset, memoryview(into))
    return bytes(into)


def judged_equal(path: Path, kind: Format, model: bytes, folder: Path) -> None:
    """qemu-img finds the image sound, as large as it should be, and equal to the model."""
    raw = folder / "model.raw"
    raw.write_bytes(model)
    form = QEMU.get(SUFFIX.get(kind, ""), "vmdk")
    info = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", "-f", form, path]))
    assert info["virtual-size"] == len(model)
    if form in ("vmdk", "vhdx"):
        subprocess.run(["qemu-img", "check", "-f", form, path], check=True, capture_output=True)
    subprocess.run(
        ["qemu-img", "compare", "-f", form, "-F", "raw", path, raw], check=True, capture_output=True
    )


def check_extents(disk: Image, model: bytes) -> None:
    """Extents cover the disk, alternate, and call nothing zero that is not."""
    at, last = 0, None
    for extent in disk.extents(0, disk.size):
        assert extent.offset == at
        assert extent.kind is not last
        at, last = at + extent.length, extent.kind
        if extent.kind is ExtentKind.ZERO:
            assert not any(model[extent.offset : at])
    assert at == disk.size


@every_format
@pytest.mark.parametrize("size", SIZES)
def test_a_new_disk_is_sparse_zeroes_of_exactly_the_size(kind: Format, size: int, tmp_path: Path) -> None:
    path = place(tmp_path, kind)
    disk = create(path, kind, size)
    assert (disk.format, disk.size, disk.path) == (kind, size, path)
    assert content(disk) == bytes(size)
    disk.close()
    assert sum(file.stat().st_blocks for file in tmp_path.iterdir()) * 512 < 256 * 1024
    assert recognise(path, None) is kind
    judged_equal(path, kind, bytes(size), tmp_path)


@every_format
@pytest.mark.parametrize("size", SIZES)
def test_random_verbs_agree_with_plain_memory_and_with_qemu(kind: Format, size: int, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    path = place(tmp_path, kind)
    disk, model = create(path, kind, size), bytearray(size)
    for _ in range(60):
        offset = dice.randrange(size)
        length = min(size - offset, dice.choice([1, 511, 512, 4096, 65536, 200_001, 3_000_000]))
        match dice.randrange(10):
            case 0 | 1 | 2 | 3:
                data = bytes([dice.randrange(256)]) * length
                disk.write(offset, memoryview(data))
                model[offset : offset + length] = data
            case 4 | 5:
                disk.zero(offset, length)
                model[offset : offset + length] = bytes(length)
            case 6 | 7:
                assert content(disk, offset, length) == model[offset : offset + length]
            case 8:
                check_extents(disk, bytes(model))
            case _:
                disk.flush()
                disk.close()
                disk = open_target(path)
    disk.flush()
    assert content(disk) == model
    check_extents(disk, bytes(model))
    assert inspect_matches(disk)
    disk.close()
    judged_equal(path, kind, bytes(model), tmp_path)
    source = open_source(path)
    assert content(source) == model
    source.close()


def inspect_matches(disk: Image) -> bool:
    info = inspect(disk.path)
    return (info.format, info.virtual_size, info.grain_size) == (disk.format, disk.size, disk.grain_size)


@every_format
def test_zeroing_gives_space_back_and_allocates_none(kind: Format, tmp_path: Path) -> None:
    path, size = place(tmp_path, kind), 24 * 1024 * 1024
    disk = create(path, kind, size)
    disk.zero(0, size)
    disk.flush()
    used = sum(file.stat().st_blocks for file in tmp_path.iterdir())
    disk.write(0, memoryview(b"x" * size))
    disk.flush()
    assert sum(file.stat().st_blocks for file in tmp_path.iterdir()) >= size // 512
    disk.zero(0, size)
    disk.flush()
    after = sum(file.stat().st_blocks for file in tmp_path.iterdir())
    assert used * 512 < 256 * 1024
    assert after * 512 < 512 * 1024
    assert content(disk) == bytes(size)
    disk.close()
    judged_equal(path, kind, bytes(size), tmp_path)


@every_format
def test_allocated_bytes_follow_what_is_written(kind: Format, tmp_path: Path) -> None:
    disk = create(place(tmp_path, kind), kind, 64 * 1024 * 1024)
    assert disk.allocated_bytes() < 65536
    disk.write(5_000_000, memoryview(b"x" * 65536))
    disk.flush()
    grain = disk.grain_size or 4096
    assert 65536 <= disk.allocated_bytes() <= 65536 + 2 * grain
    disk.close()


@every_format
def test_nothing_outside_the_disk_is_touched(kind: Format, tmp_path: Path) -> None:
    path = place(tmp_path, kind)
    disk = create(path, kind, 8192)
    for offset, length in ((8192, 1), (0, 8193), (-1, 1), (2**64, 1)):
        with pytest.raises(OutsideDisk):
            disk.write(offset, memoryview(b"x" * length))
        with pytest.raises(OutsideDisk):
            disk.read(offset, memoryview(bytearray(length)))
        with pytest.raises(OutsideDisk):
            disk.zero(offset, length)
        with pytest.raises(OutsideDisk):
            disk.extents(offset, length)
    disk.close()
    judged_equal(path, kind, bytes(8192), tmp_path)


@every_format
def test_a_source_refuses_to_change(kind: Format, tmp_path: Path) -> None:
    path = place(tmp_path, kind)
    create(path, kind, 8192).close()
    before = [file.read_bytes() for file in sorted(tmp_path.iterdir())]
    source = open_source(path)
    with pytest.raises(DiskReadOnly):
        source.write(0, memoryview(b"x"))
    with pytest.raises(DiskReadOnly):
        source.zero(0, 512)
    source.flush()
    source.close()
    assert [file.read_bytes() for file in sorted(tmp_path.iterdir())] == before


@every_format
def test_creation_overwrites_nothing(kind: Format, tmp_path: Path) -> None:
    path = place(tmp_path, kind)
    path.write_bytes(b"precious")
    with pytest.raises(TargetExists):
        create(path, kind, 8192)
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


@every_format
def test_sizes_that_the_format_cannot_hold_are_refused(kind: Format, tmp_path: Path) -> None:
    path = place(tmp_path, kind)
    bad = [-1, 2**70] if kind is Format.RAW else [0, 511, 513, -512, 2**60]
    for size in bad:
        with pytest.raises(SizeNotPossible):
            create(path, kind, size)
    assert not list(tmp_path.iterdir())


@every_format
def test_an_opening_for_writing_changes_nothing_by_itself(kind: Format, tmp_path: Path) -> None:
    path = place(tmp_path, kind)
    disk = create(path, kind, 8 * 1024 * 1024)
    disk.write(70_000, memoryview(b"x" * 70_000))
    disk.flush()
    disk.close()
    before = [file.read_bytes() for file in sorted(tmp_path.iterdir())]
    target = open_target(path)
    target.flush()
    content(target)
    list(target.extents(0, target.size))
    target.close()
    assert [file.read_bytes() for file in sorted(tmp_path.iterdir())] == before


@pytest.mark.parametrize(
    "kind",
    [Format.VMDK_MONOLITHIC_SPARSE, Format.VMDK_MONOLITHIC_FLAT, Format.VMDK_VMFS],
    ids=lambda k: k.value,
)
def test_the_cid_changes_once_per_opening_with_the_first_write(kind: Format, tmp_path: Path) -> None:
    path = place(tmp_path, kind)
    disk = create(path, kind, 8 * 1024 * 1024)
    marks = [change_mark(disk)]
    disk.write(0, memoryview(b"x"))
    assert change_mark(disk) == marks[0]
    uuid = disk.disk_uuid
    assert uuid is not None
    assert uuid.startswith("6000c29")
    disk.close()
    for verb in ("write", "zero"):
        target = open_target(path)
        assert change_mark(target) == marks[-1]
        for _ in range(3):
            if verb == "write":
                target.write(9, memoryview(b"y"))
            else:
                target.zero(0, 65536)
        marks.append(change_mark(target))
        assert target.disk_uuid == uuid
        target.close()
        text = path.read_bytes()
        assert f"CID={marks[-1]}".encode() in text
        assert f'{marks[-1]}"'.encode() in text  # the long content id ends in it
    assert len(set(marks)) == 3


@every_format
def test_threads_that_touch_different_bytes_do_not_disturb_each_other(kind: Format, tmp_path: Path) -> None:
    path, size, parts = place(tmp_path, kind), 16 * 1024 * 1024, 4
    disk = create(path, kind, size)

    def work(lane: int) -> None:
        # Lanes interleave at 10,000 bytes, so that they share grains, blocks and tables.
        for number in range(lane, size // 10_000, parts):
            disk.write(number * 10_000, memoryview(bytes([lane + 1]) * 10_000))
            if number % 97 == lane:
                disk.flush()

    threads = [threading.Thread(target=work, args=(lane,)) for lane in range(parts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    disk.flush()
    disk.close()
    whole = b"".join(bytes([number % parts + 1]) * 10_000 for number in range(size // 10_000))
    judged_equal(path, kind, whole.ljust(size, b"\0"), tmp_path)
