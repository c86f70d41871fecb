"""Differencing VHDs, made from the specification: read as 7-Zip reads them, written in place, bad parents refused."""

import os
import random
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from disks.catalogue import create, inspect, open_source, open_target, recognise
from disks.disk import ExtentKind, Format
from disks.errors import FormatNotSupported, ImageDamaged, ParentUnusable
from tests.golden.disks import differencing
from tests.golden.disks.differencing import make, read_by_7zip, sealed, told_by_libvhdi

SIZE = 5 * 1024 * 1024 + 7 * 512
LAST = SIZE // 512 - 1
SECTORS = {0: b"a" * 512, 5: b"b" * 512, 5000: b"c" * 512, LAST: b"z" * 512}


@pytest.fixture
def guest() -> bytearray:
    """What the parent holds: noise, and a hole that reaches over the second block."""
    content = bytearray(random.Random(4711).randbytes(SIZE))
    content[1024 * 1024 : 4 * 1024 * 1024 + 512] = bytes(3 * 1024 * 1024 + 512)
    return content


@pytest.fixture(params=["dynamic", "fixed"])
def parent(request: pytest.FixtureRequest, guest: bytearray, tmp_path: Path) -> Path:
    return made_by_qemu(tmp_path, guest, request.param)


def made_by_qemu(folder: Path, content: bytes | bytearray, subformat: str) -> Path:
    raw, path = folder / "guest.raw", folder / "parent.vhd"
    raw.write_bytes(content)
    options = f"subformat={subformat},force_size=on"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", options, raw, path], check=True)
    # Last written to at another time than its footer says that it was made.
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 3600))
    return path


def laid_over(content: bytearray, sectors: dict[int, bytes]) -> bytearray:
    model = bytearray(content)
    for number, held in sectors.items():
        model[number * 512 : (number + 1) * 512] = held
    return model


def content_of(path: Path) -> bytearray:
    disk = open_source(path)
    into = bytearray(disk.size)
    disk.read(0, memoryview(into))
    at = 0
    for extent in disk.extents(0, disk.size):
        assert extent.offset == at
        at += extent.length
        assert extent.kind is ExtentKind.DATA or not any(into[extent.offset : at])
    assert at == disk.size
    disk.close()
    return into


def test_a_chain_reads_as_others_read_it(parent: Path, guest: bytearray) -> None:
    child = make(parent.with_name("child.vhd"), parent, SECTORS)
    model = laid_over(guest, SECTORS)
    assert recognise(child, None) is Format.VHD_DIFFERENCING
    assert read_by_7zip(child) == model == content_of(child)
    assert "Parent filename\t\t: parent.vhd" in told_by_libvhdi(child)
    # The grandchild's bitmap hides some of the child's sectors and shows others.
    more = {4: b"d" * 512, 5: b"e" * 512, 9000: bytes(512)}
    grandchild = make(parent.with_name("grandchild.vhd"), child, more)
    assert content_of(grandchild) == laid_over(model, more) == read_by_7zip(grandchild)
    info = inspect(grandchild)
    assert (info.virtual_size, info.grain_size) == (SIZE, 2 * 1024 * 1024)


def test_writes_go_to_the_child_alone_and_keep_its_identity(parent: Path, guest: bytearray) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    child = make(parent.with_name("child.vhd"), parent, SECTORS)
    before, start = parent.read_bytes(), child.read_bytes()[:1536]
    model = laid_over(guest, SECTORS)
    target = open_target(child)
    for number in range(40):
        offset = dice.randrange(SIZE)
        length = min(SIZE - offset, dice.choice([1, 100, 512, 5000, 70_000, 2_000_000]))
        if dice.random() < 0.3:
            target.zero(offset, length)
            model[offset : offset + length] = bytes(length)
        else:
            target.write(offset, memoryview(bytes([number + 1]) * length))
            model[offset : offset + length] = bytes([number + 1]) * length
        if number % 9 == 8:
            target.flush()
        if number == 20:
            target.flush()
            target.close()
            target = open_target(child)
    into = bytearray(SIZE)
    target.read(0, memoryview(into))
    assert into == model
    target.flush()
    target.close()
    assert content_of(child) == model == read_by_7zip(child)
    assert parent.read_bytes() == before
    raw = child.read_bytes()
    assert raw[:1536] == start
    assert raw[-512:] == start[:512]


def test_zeroing_what_the_parent_does_not_hold_takes_no_room(guest: bytearray, tmp_path: Path) -> None:
    parent = tmp_path / "parent.vhd"
    create(parent, Format.VHD_DYNAMIC, SIZE).close()
    child = make(tmp_path / "child.vhd", parent, {})
    target = open_target(child)
    target.zero(0, SIZE)
    target.flush()
    assert target.allocated_bytes() == 0
    target.close()


def test_no_tool_makes_one_and_neither_do_we(tmp_path: Path) -> None:
    with pytest.raises(FormatNotSupported):
        create(tmp_path / "child.vhd", Format.VHD_DIFFERENCING, SIZE)
    assert not list(tmp_path.iterdir())


def missing(child: Path, parent: Path) -> None:
    parent.unlink()


def link(child: Path, parent: Path) -> None:
    parent.rename(parent.with_name("elsewhere.vhd"))
    parent.symlink_to("elsewhere.vhd")


def directory(child: Path, parent: Path) -> None:
    parent.unlink()
    parent.mkdir()


def device(child: Path, parent: Path) -> None:
    parent.unlink()
    os.mknod(parent, 0o600 | 0o060000, os.makedev(7, 0))


def another_id(child: Path, parent: Path) -> None:
    status = parent.stat()
    raw = bytearray(parent.read_bytes())
    for at in (len(raw) - 512, 0):
        if raw[at : at + 8] == b"conectix":
            raw[at + 68] ^= 1
            raw[at : at + 512] = sealed(bytes(raw[at : at + 512]), 64)
    parent.write_bytes(raw)
    os.utime(parent, ns=(status.st_atime_ns, status.st_mtime_ns))


def written_to_since(child: Path, parent: Path) -> None:
    os.utime(parent, (parent.stat().st_atime, parent.stat().st_mtime + 100))


def cut(child: Path, parent: Path) -> None:
    status = parent.stat()
    os.truncate(parent, status.st_size - 700)
    os.utime(parent, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("harm", [missing, link, directory, device, another_id, written_to_since, cut])
def test_a_parent_that_is_not_the_one_is_refused(
    harm: Callable[[Path, Path], None], guest: bytearray, tmp_path: Path
) -> None:
    parent = made_by_qemu(tmp_path, guest, "dynamic")
    child = make(tmp_path / "child.vhd", parent, SECTORS)
    harm(child, parent)
    for opener in (open_source, open_target, inspect):
        with pytest.raises(ParentUnusable) as caught:
            opener(child)
        assert caught.value.parent == "parent.vhd"


def test_a_parent_of_another_size_is_refused(guest: bytearray, tmp_path: Path) -> None:
    parent = made_by_qemu(tmp_path, guest, "fixed")
    child = make(tmp_path / "child.vhd", parent, {})
    short = made_by_qemu(tmp_path, guest[:-512], "fixed")
    raw, old = bytearray(short.read_bytes()), child.read_bytes()
    raw[-512 + 68 : -512 + 84] = old[512 + 40 : 512 + 56]
    raw[-512:] = sealed(bytes(raw[-512:]), 64)
    short.write_bytes(raw)
    os.utime(short, (0, 946_684_800 + struct.unpack_from(">I", old, 512 + 56)[0]))
    with pytest.raises(ParentUnusable, match=str(SIZE)):
        open_source(child)


def test_a_chain_that_bites_its_tail_is_refused(guest: bytearray, tmp_path: Path) -> None:
    parent = made_by_qemu(tmp_path, guest, "dynamic")
    one, two = tmp_path / "one.vhd", tmp_path / "two.vhd"
    make(two, parent, {}, names={b"W2ru": "one.vhd"}, unique_id=b"2" * 16, parent_time=0)
    make(one, two, {}, names={b"W2ru": "two.vhd"}, unique_id=b"1" * 16, parent_time=0)
    raw = bytearray(two.read_bytes())
    raw[552:568] = b"1" * 16  # the id of its parent
    raw[512:1536] = sealed(bytes(raw[512:1536]), 36)
    two.write_bytes(raw)
    for path in (one, two):
        with pytest.raises(ParentUnusable, match="ancestor"):
            open_source(path)


@pytest.mark.parametrize(
    "names",
    [
        {b"W2ru": "..\\parent.vhd"},
        {b"W2ru": ".\\sub\\parent.vhd"},
        {b"W2ku": "C:\\machines\\parent.vhd"},
        {b"W2ru": "/etc/parent.vhd"},
        {b"W2ru": ".."},
        {b"W2ru": "parent.vhd:stream"},
        {b"Wi2r": "parent.vhd"},
        {},
    ],
    ids=str,
)
def test_only_plain_names_in_the_childs_own_directory_are_followed(
    names: dict[bytes, str], guest: bytearray, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    parent = made_by_qemu(tmp_path, guest, "dynamic")
    shutil.copy2(parent, tmp_path / "sub")
    child = make(tmp_path / "sub" / "child.vhd", parent, SECTORS, names=names)
    with pytest.raises(ParentUnusable):
        open_source(child)


@pytest.mark.parametrize(
    ("length", "offset"), [(2**32 - 1, 1536), (10, 2**64 - 4), (10, 2**63), (0, 1536), (9, 1536)], ids=str
)
def test_a_locator_that_points_nowhere_is_named_with_its_offset(
    length: int, offset: int, guest: bytearray, tmp_path: Path
) -> None:
    parent = made_by_qemu(tmp_path, guest, "dynamic")
    child = make(tmp_path / "child.vhd", parent, {}, names={b"W2ru": "parent.vhd"})
    raw = bytearray(child.read_bytes())
    struct.pack_into(">IIQ", raw, 512 + 576 + 8, length, 0, offset)
    if length == 9:
        raw[1536:1540] = b"\x00\xdc\x00\xdc"  # half a pair is no UTF-16
    raw[512:1536] = sealed(bytes(raw[512:1536]), 36)
    child.write_bytes(raw)
    with pytest.raises(ImageDamaged) as caught:
        open_source(child)
    assert "parent locator" in caught.value.structure or "overlaps" in str(caught.value)


def test_the_recipe_is_what_the_specification_says(tmp_path: Path, guest: bytearray) -> None:
    """The fields that no reader above looks at."""
    child = make(tmp_path / "child.vhd", made_by_qemu(tmp_path, guest, "dynamic"), SECTORS)
    raw = child.read_bytes()
    assert raw[:512] == raw[-512:]
    assert int.from_bytes(raw[60:64], "big") == 4
    assert raw[512 + 64 : 512 + 84].decode("utf-16-be") == "parent.vhd"
    assert differencing.footer(SIZE, raw[68:84]) == raw[:512]
