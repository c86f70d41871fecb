"""Formats are told, or plain from suffix and magic number together; guest bytes decide nothing."""

import os
import subprocess
from pathlib import Path

import pytest

from disks.catalogue import create, open_source, open_target, recognise
from disks.disk import Format
from disks.errors import (
    FormatContradicted,
    FormatNotSupported,
    FormatUnknown,
    ImageDamaged,
    OpenFailed,
    SizeNotPossible,
    TargetExists,
)

SIZE = 4 * 1024 * 1024


def image(folder: Path, name: str, kind: Format) -> Path:
    """An image of `kind` that is called `name` in the end."""
    made = folder / f"made.{'vhd' if 'vhd' in kind.value else 'vmdk'}"
    create(made, kind, SIZE).close()
    return made.rename(folder / name)


@pytest.mark.parametrize("name", ["guest.raw", "guest.img", "GUEST.IMG"])
@pytest.mark.parametrize(
    "kind", [Format.VHD_DYNAMIC, Format.VMDK_MONOLITHIC_SPARSE], ids=lambda kind: kind.value
)
def test_a_raw_disk_stays_raw_whatever_its_guest_wrote(name: str, kind: Format, tmp_path: Path) -> None:
    path = image(tmp_path, name, kind)
    assert recognise(path, None) is Format.RAW
    assert recognise(path, Format.RAW) is Format.RAW
    with pytest.raises(FormatContradicted) as caught:
        recognise(path, kind)
    assert "always raw" in str(caught.value)
    disk = open_source(path)
    assert disk.size == path.stat().st_size
    disk.close()


def test_a_link_changes_nothing_about_raw(tmp_path: Path) -> None:
    path = image(tmp_path, "guest.img", Format.VHD_DYNAMIC)
    (tmp_path / "link.vhd").symlink_to(path)
    assert recognise(tmp_path / "link.vhd", None) is Format.RAW
    other = image(tmp_path, "image.vhd", Format.VHD_DYNAMIC)
    (tmp_path / "link.raw").symlink_to(other)
    assert recognise(tmp_path / "link.raw", None) is Format.RAW


def test_a_fixed_vhd_stays_fixed_although_its_guest_forged_a_dynamic_header(tmp_path: Path) -> None:
    path = image(tmp_path, "disk.vhd", Format.VHD_FIXED)
    forged = image(tmp_path, "forged.vhd", Format.VHD_DYNAMIC).read_bytes()
    disk = open_target(path)
    disk.write(0, memoryview(forged[:4096]))
    disk.close()
    assert recognise(path, None) is Format.VHD_FIXED
    with pytest.raises(FormatContradicted):
        recognise(path, Format.VHD_DYNAMIC)


def test_a_header_copy_alone_has_to_be_told(tmp_path: Path) -> None:
    path = image(tmp_path, "disk.vhd", Format.VHD_DYNAMIC)
    os.truncate(path, path.stat().st_size - 512)
    with pytest.raises(FormatUnknown):
        recognise(path, None)
    disk = open_target(path, Format.VHD_DYNAMIC)
    disk.write(0, memoryview(b"x" * 5000))
    disk.flush()
    disk.close()
    assert recognise(path, None) is Format.VHD_DYNAMIC


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("disk.vmdk", Format.VHD_DYNAMIC),
        ("disk.vhd", Format.VMDK_MONOLITHIC_SPARSE),
        ("disk", Format.VMDK_MONOLITHIC_SPARSE),
        ("disk.bin", Format.VHD_FIXED),
        ("disk-flat.vmdk", Format.VMDK_MONOLITHIC_SPARSE),
    ],
)
def test_suffix_and_magic_that_disagree_have_to_be_told(name: str, kind: Format, tmp_path: Path) -> None:
    path = image(tmp_path, name, kind)
    with pytest.raises(FormatUnknown) as caught:
        recognise(path, None)
    assert "--source-format" in caught.value.sentence("remedy")
    assert "--target-format" in caught.value.sentence("remedy")
    assert recognise(path, kind) is kind


@pytest.mark.parametrize("name", ["disk.vhd", "disk.vmdk", "disk.bin"])
@pytest.mark.parametrize("size", [0, 100, 511, 512, SIZE])
def test_a_file_without_a_magic_number_has_to_be_told(name: str, size: int, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"\xee" * size)
    with pytest.raises(FormatUnknown):
        recognise(path, None)
    for kind in Format:
        if kind is Format.RAW:
            assert recognise(path, kind) is kind
        else:
            with pytest.raises(FormatContradicted):
                recognise(path, kind)


def test_what_is_told_has_to_be_so(tmp_path: Path) -> None:
    path = image(tmp_path, "disk.vhd", Format.VHD_DYNAMIC)
    for told in (Format.VHD_FIXED, Format.VMDK_MONOLITHIC_SPARSE, Format.VMDK_MONOLITHIC_FLAT):
        with pytest.raises(FormatContradicted) as caught:
            open_source(path, told)
        assert "dynamic VHD" in str(caught.value)


@pytest.mark.parametrize("options", ["subformat=streamOptimized", "subformat=twoGbMaxExtentSparse"])
def test_kinds_that_cannot_be_used_are_named(options: str, tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", "-o", options, path, "10M"], check=True)
    with pytest.raises(FormatNotSupported) as caught:
        open_source(path)
    assert options.partition("=")[2] in str(caught.value)


def test_an_image_with_a_parent_is_refused(tmp_path: Path) -> None:
    path = image(tmp_path, "disk.vmdk", Format.VMDK_MONOLITHIC_SPARSE)
    path.write_bytes(path.read_bytes().replace(b"parentCID=ffffffff", b"parentCID=12345678"))
    with pytest.raises(FormatNotSupported):
        open_target(path)


@pytest.mark.parametrize("name", ["missing", "missing/disk.raw", "nul\0.raw", "x" * 300])
def test_paths_that_lead_nowhere_get_a_coded_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(OpenFailed):
        open_source(tmp_path / name)
    if name != "missing":
        with pytest.raises(OpenFailed):
            create(tmp_path / name, Format.RAW, 512)


def test_what_is_neither_file_nor_device_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.raw")
    (tmp_path / "folder.raw").mkdir()
    (tmp_path / "loop.raw").symlink_to(tmp_path / "loop.raw")
    for name in ("pipe.raw", "folder.raw", "loop.raw", "/dev/null"):
        with pytest.raises(OpenFailed):
            open_source(tmp_path / name)
        with pytest.raises(OpenFailed):
            open_target(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["../secret.bin", "/etc/hostname", "link.bin", "pipe", "folder", "..", "missing"]
)
def test_a_descriptor_reaches_nothing_but_plain_files_beside_it(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "folder").mkdir(parents=True)
    (tmp_path / "secret.bin").write_bytes(bytes(SIZE))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    os.mkfifo(folder / "pipe")
    path = image(folder, "disk.vmdk", Format.VMDK_MONOLITHIC_FLAT)
    path.write_bytes(path.read_bytes().replace(b"made-flat.vmdk", name.encode()))
    for opener in (open_source, open_target):
        with pytest.raises((OpenFailed, ImageDamaged)):
            opener(path)


def test_a_descriptor_of_more_than_64_kib_is_refused(tmp_path: Path) -> None:
    path = image(tmp_path, "disk.vmdk", Format.VMDK_MONOLITHIC_FLAT)
    text = path.read_bytes()
    path.write_bytes(text + b"#" * (65536 - len(text)))
    open_source(path).close()
    path.write_bytes(text + b"#" * (65537 - len(text)))
    with pytest.raises(ImageDamaged):
        open_source(path)


def test_an_extent_shorter_than_its_descriptor_says_is_refused(tmp_path: Path) -> None:
    path = image(tmp_path, "disk.vmdk", Format.VMDK_MONOLITHIC_FLAT)
    os.truncate(tmp_path / "made-flat.vmdk", SIZE - 512)
    with pytest.raises(ImageDamaged):
        open_source(path)


def test_a_name_that_means_raw_is_given_to_no_other_format(tmp_path: Path) -> None:
    with pytest.raises(FormatContradicted):
        create(tmp_path / "disk.img", Format.VMDK_MONOLITHIC_SPARSE, SIZE)
    with pytest.raises(SizeNotPossible):
        create(tmp_path / "disk.vhd", Format.VHD_DYNAMIC, 2041 * 1024**3)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_creation_left_is_taken_up(tmp_path: Path) -> None:
    flat = tmp_path / "disk-flat.vmdk"
    flat.touch()
    os.truncate(flat, SIZE)
    (tmp_path / ".disk.vmdk.homeward-new").write_bytes(b"half a descriptor")
    create(tmp_path / "disk.vmdk", Format.VMDK_MONOLITHIC_FLAT, SIZE).close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["disk-flat.vmdk", "disk.vmdk"]


@pytest.mark.parametrize("left", [bytes(SIZE - 512), b"x".ljust(SIZE, b"\0")])
def test_an_extent_that_is_not_a_left_over_is_never_taken_up(left: bytes, tmp_path: Path) -> None:
    (tmp_path / "disk-flat.vmdk").write_bytes(left)
    with pytest.raises(TargetExists):
        create(tmp_path / "disk.vmdk", Format.VMDK_MONOLITHIC_FLAT, SIZE)
    assert [file.name for file in tmp_path.iterdir()] == ["disk-flat.vmdk"]
    assert (tmp_path / "disk-flat.vmdk").read_bytes() == left
