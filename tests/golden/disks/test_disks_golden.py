"""Images that qemu-img makes are read, and go on being its images after they were written here.

The recipes run at test time, so that every version of qemu-img on the way is a witness; `qemu-img --version` is
printed. Sparse files made by hand (GUEST below) hold data at both ends and in the middle.
"""

import random
import subprocess
from pathlib import Path

import pytest

from disks.catalogue import create, inspect, open_source, open_target, recognise
from disks.disk import ExtentKind, Format

RECIPES = [
    ("disk.vhd", "vpc", "subformat=fixed,force_size=on", Format.VHD_FIXED),
    ("disk.vhd", "vpc", "subformat=fixed", Format.VHD_FIXED),
    ("disk.vhd", "vpc", "subformat=dynamic,force_size=on", Format.VHD_DYNAMIC),
    ("disk.vhd", "vpc", "subformat=dynamic", Format.VHD_DYNAMIC),
    ("disk.vhdx", "vhdx", "subformat=fixed", Format.VHDX_FIXED),
    ("disk.vhdx", "vhdx", "subformat=dynamic", Format.VHDX_DYNAMIC),
    ("disk.vhdx", "vhdx", "subformat=dynamic,block_size=1M,log_size=3M", Format.VHDX_DYNAMIC),
    ("disk.vhdx", "vhdx", "subformat=dynamic,block_state_zero=off", Format.VHDX_DYNAMIC),
    ("disk.vmdk", "vmdk", "subformat=monolithicSparse", Format.VMDK_MONOLITHIC_SPARSE),
    ("disk.vmdk", "vmdk", "subformat=monolithicSparse,zeroed_grain=on", Format.VMDK_MONOLITHIC_SPARSE),
    ("disk.vmdk", "vmdk", "subformat=monolithicSparse,compat6", Format.VMDK_MONOLITHIC_SPARSE),
    ("disk.vmdk", "vmdk", "subformat=monolithicFlat", Format.VMDK_MONOLITHIC_FLAT),
]
every_recipe = pytest.mark.parametrize(
    ("name", "form", "options", "kind"), RECIPES, ids=[f"{form}-{options}" for _, form, options, _ in RECIPES]
)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw disk of 40 MiB and 3 sectors with data in some places, scattered by a fixed seed."""
    dice = random.Random(4711)
    path = tmp_path_factory.mktemp("guest") / "guest.raw"
    size = 40 * 1024 * 1024 + 3 * 512
    with path.open("wb") as file:
        file.truncate(size)
        for offset in (0, 65536 * 3, 2 * 1024 * 1024 - 512, 20_000_000, 39 * 1024 * 1024, size - 700):
            file.seek(offset)
            file.write(dice.randbytes(min(size - offset, 300_000)))
    print(subprocess.check_output(["qemu-img", "--version"], text=True))
    return path


def convert(guest: Path, folder: Path, name: str, form: str, options: str) -> Path:
    path = folder / name
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", form, "-o", options, guest, path], check=True)
    return path


@every_recipe
def test_what_qemu_wrote_is_read(
    guest: Path, tmp_path: Path, name: str, form: str, options: str, kind: Format
) -> None:
    path = convert(guest, tmp_path, name, form, options)
    expected = guest.read_bytes()
    assert recognise(path, None) is kind
    disk = open_source(path)
    # Without force_size qemu rounds a VHD up to a whole geometry.
    assert disk.size == len(expected) or (
        "vpc" in form and "force" not in options and disk.size > len(expected)
    )
    into = bytearray(disk.size)
    disk.read(0, memoryview(into))
    assert into == expected.ljust(disk.size, b"\0")
    zeroes = sum(extent.length for extent in disk.extents(0, disk.size) if extent.kind is ExtentKind.ZERO)
    assert zeroes > 20 * 1024 * 1024
    disk.close()
    info = inspect(path)
    assert info.allocated_bytes < max(16 * 1024 * 1024, 6 * (info.grain_size or 0))  # data lies in six places


@every_recipe
def test_an_image_of_qemu_goes_on_as_one(
    guest: Path, tmp_path: Path, name: str, form: str, options: str, kind: Format
) -> None:
    path = convert(guest, tmp_path, name, form, options)
    disk = open_target(path)
    model = bytearray(guest.read_bytes().ljust(disk.size, b"\0"))
    for offset, length, fill in (
        (0, 512, b"a"),
        (65536 * 3 + 5, 70_000, b"\0"),
        (10_000_001, 4_000_000, b"b"),
        (39 * 1024 * 1024, 1024 * 1024, b"\0"),
        (len(model) - 100, 100, b"c"),
    ):
        if fill == b"\0":
            disk.zero(offset, length)
        else:
            disk.write(offset, memoryview(fill * length))
        model[offset : offset + length] = fill * length
    disk.flush()
    disk.close()
    raw = tmp_path / "model.raw"
    raw.write_bytes(model)
    subprocess.run(
        ["qemu-img", "compare", "-f", form, "-F", "raw", path, raw], check=True, capture_output=True
    )
    if form in ("vmdk", "vhdx"):
        subprocess.run(["qemu-img", "check", "-f", form, path], check=True, capture_output=True)
    # ... and qemu goes on writing where we stopped.
    command = ["qemu-io", "-f", form, "-c", "write -P 0x5a 30000128 66048", "-c", "flush", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    model[30_000_128 : 30_000_128 + 66_048] = b"\x5a" * 66_048
    again = open_source(path)
    into = bytearray(again.size)
    again.read(0, memoryview(into))
    again.close()
    assert into == model


def test_what_identifies_an_image_survives_writing(guest: Path, tmp_path: Path) -> None:
    path = convert(guest, tmp_path, "disk.vhd", "vpc", "subformat=dynamic,force_size=on")
    footer = path.read_bytes()[-512:]
    disk = open_target(path)
    disk.write(8_000_000, memoryview(b"x" * 3_000_000))
    disk.flush()
    disk.close()
    assert path.read_bytes()[-512:] == footer == path.read_bytes()[:512]

    path = convert(guest, tmp_path, "disk.vmdk", "vmdk", "subformat=monolithicSparse,adapter_type=lsilogic")
    before = path.read_bytes()
    disk = open_target(path)
    disk.write(8_000_000, memoryview(b"x" * 3_000_000))
    disk.flush()
    disk.close()
    after = path.read_bytes()
    changed = [at for at in range(512 * 21) if before[at] != after[at]]
    cid = before.index(b"CID=") + 4
    assert changed
    assert set(changed) <= set(range(cid, cid + 8))


@pytest.mark.parametrize("kind", [Format.VHD_FIXED, Format.VHD_DYNAMIC], ids=lambda kind: kind.value)
def test_qemu_takes_a_vhd_of_ours_at_its_exact_size(kind: Format, tmp_path: Path) -> None:
    for size in (512, 3 * 512, 1_000_000_512, 127 * 1024**3 + 512):
        path = tmp_path / f"{size}.vhd"
        create(path, kind, size).close()
        answer = subprocess.check_output(["qemu-img", "info", "-f", "vpc", path], text=True)
        assert f"({size} bytes)" in answer
