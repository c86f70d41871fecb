"""Formats are told, or plain from suffix and magic number together; guest bytes decide nothing."""

import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from disks.catalogue import create, disguised, open_source, open_target, recognise
from disks.disk import Format
from disks.errors import (
    FooterMissing,
    FormatContradicted,
    FormatNotSupported,
    FormatUnknown,
    ImageDamaged,
    OpenFailed,
    SizeNotPossible,
    TargetExists,
)
from disks.errors_vmdk import ExtentNamed, ExtentRefused, NotWritableInPlace, WrittenWholeOnly

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
    with pytest.raises(FooterMissing) as caught:
        recognise(path, None)
    assert "was probably cut" in caught.value.sentence("remedy")
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
    assert "--format (info)" in caught.value.sentence("remedy")
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


@pytest.mark.parametrize("options", ["subformat=streamOptimized", "subformat=monolithicSparse"])
def test_what_is_only_read_is_never_a_target(options: str, tmp_path: Path) -> None:
    stream = "stream" in options
    path = tmp_path / "disk.vmdk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", "-o", options, path, "10M"], check=True)
    if not stream:
        child = tmp_path / "child.vmdk"
        command = ["qemu-img", "create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", "disk.vmdk", child]
        subprocess.run(command, check=True, cwd=tmp_path)
        path = child
    before = path.read_bytes()
    with pytest.raises(NotWritableInPlace) as caught:
        open_target(path)
    assert ("streamOptimized" if stream else "its parent disk.vmdk") in str(caught.value)
    assert path.read_bytes() == before
    open_source(path).close()


def test_a_stream_is_never_created_empty(tmp_path: Path) -> None:
    with pytest.raises(WrittenWholeOnly):
        create(tmp_path / "disk.vmdk", Format.VMDK_STREAM_OPTIMIZED, SIZE)
    for kind in (Format.VMDK_VMFS_SPARSE, Format.VMDK_SESPARSE, Format.QCOW2):
        with pytest.raises(FormatNotSupported) as caught:
            create(tmp_path / "disk.vmdk", kind, SIZE)
        assert kind.value not in caught.value.sentence("expected")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "monolithicFlat"])
def test_an_extent_named_instead_of_its_descriptor_is_told_so(options: str, tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    command = ["qemu-img", "create", "-q", "-f", "vmdk", "-o", f"subformat={options}", path, "10M"]
    subprocess.run(command, check=True)
    (extent,) = set(tmp_path.iterdir()) - {path}
    with pytest.raises(ExtentNamed) as caught:
        open_source(extent)
    assert caught.value.descriptor == str(path)
    assert f"name {path} instead" in str(caught.value)
    assert recognise(extent, Format.RAW) is Format.RAW
    assert recognise(path, None).value == f"vmdk-{options}"


@pytest.mark.parametrize(
    ("start", "suffix"),
    [
        (b"KDMV", ".vmdk"),
        (b"# Disk DescriptorFile", ".vmdk"),
        (b"QFI\xfb", ".qcow2"),
        (b"conectix", ".vhd"),
        (b"vhdxfile", ".vhdx"),
    ],
)
def test_a_raw_file_that_begins_as_a_container_is_raw_with_a_notice(
    start: bytes, suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / "guest.img"
    path.write_bytes(start.ljust(4096, b"\0"))
    found = disguised(path)
    assert found is not None
    assert found.suffix == suffix
    assert recognise(path, None) is Format.RAW
    plain = tmp_path / "plain.raw"
    plain.write_bytes(b"\xeb\x63\x90")
    assert disguised(plain) is None
    other = path.rename(tmp_path / f"guest{suffix}")
    assert disguised(other) is None


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
    ("name", "words"),
    [
        ("../secret.bin", "upwards"),
        ("folder/../../secret.bin", "upwards"),
        ("folder/disk.bin", "another directory"),
        ("/etc/hostname", "absolute"),
        ("C:\\disks\\disk.bin", "Windows"),
        ("link.bin", "a link"),
        ("dangling.bin", "a link"),
        ("pipe", "no regular file"),
        ("folder", "a directory"),
        ("..", "no file's name"),
        ("device", "a device"),
    ],
)
@pytest.mark.parametrize("kind", [Format.VMDK_MONOLITHIC_FLAT, Format.VMDK_VMFS, Format.VMDK_TWO_GB_FLAT])
def test_a_descriptor_reaches_nothing_but_plain_files_beside_it(
    kind: Format, name: str, words: str, tmp_path: Path
) -> None:
    folder = tmp_path / "images"
    (folder / "folder").mkdir(parents=True)
    (tmp_path / "secret.bin").write_bytes(bytes(SIZE))
    (folder / "folder" / "disk.bin").write_bytes(bytes(SIZE))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "dangling.bin").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe")
    os.mknod(folder / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 5))
    path = image(folder, "disk.vmdk", kind)
    text = re.sub(rb'"made-\w+\.vmdk"', lambda _: b'"' + name.encode() + b'"', path.read_bytes())
    path.write_bytes(text)
    for opener in (open_source, open_target):
        with pytest.raises(ExtentRefused) as caught:
            opener(path)
        assert words in str(caught.value)


def test_a_descriptor_that_names_a_missing_file_or_one_file_twice_is_refused(tmp_path: Path) -> None:
    path = image(tmp_path, "disk.vmdk", Format.VMDK_TWO_GB_FLAT)
    text = path.read_bytes()
    line = f'RW {SIZE // 512} FLAT "made-f001.vmdk" 0\n'.encode()
    assert line in text
    for twice in (line + line, line + line.replace(b"made-f001.vmdk", b"disk.vmdk")):
        path.write_bytes(text.replace(line, twice))
        with pytest.raises(ImageDamaged):
            open_source(path)
    path.write_bytes(text.replace(b"made-f001", b"gone-f001"))
    with pytest.raises(OpenFailed):
        open_source(path)


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
