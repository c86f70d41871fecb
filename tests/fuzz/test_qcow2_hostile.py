"""qcow2s made to hurt: each is one coded error that names structure and offset, soon and in little memory."""

import os
import struct
import zlib
from pathlib import Path

import pytest

from disks.catalogue import check
from disks.disk import Format
from disks.errors import ImageDamaged, ParentUnusable
from disks.errors_vmdk import FeatureNotSupported
from drcore.errors import HomewardError
from tests.fuzz.refusing import CONTENT, patched, read_through, refused
from tests.images import converted, maker, qcow2_backing, qemu


@pytest.fixture
def qcow2(tmp_path: Path) -> Path:
    """Clusters of 64 KiB; header, refcounts, L1 and L2 in the first five clusters, as qemu-img lays them."""
    return maker(Format.QCOW2)(tmp_path, CONTENT)


L1_AT, L1_PLACE = 40, 0x30000
L2_PLACE = 0x40000


def be(format_: str, *values: int) -> bytes:
    return struct.pack(">" + format_, *values)


@pytest.mark.parametrize(
    ("at", "data", "words"),
    [
        (4, be("I", 1), "the header's version at offset 4"),
        (4, be("I", 4), "the header's version at offset 4"),
        (20, be("I", 8), "the cluster size at offset 20"),
        (20, be("I", 63), "the cluster size at offset 20"),
        (24, be("Q", 0), "the virtual size at offset 24"),
        (24, be("Q", 2**63), "the virtual size at offset 24"),
        (24, be("Q", 2**45), "the L1 table's length at offset 36"),
        (36, be("I", 0), "the L1 table's length at offset 36"),
        (36, be("I", 2**31), "the L1 table's length at offset 36"),
        (36, be("I", 2**20), "the L1 table at offset 40"),
        (40, be("Q", 12), "the place of the L1 table at offset 40"),
        (40, be("Q", 2**55), "the L1 table at offset 40"),
        (40, be("Q", 2**63), "the place of the L1 table at offset 40"),
        (48, be("Q", 1), "the place of the refcount table at offset 48"),
        (100, be("I", 50), "the header's length at offset 100"),
        (8, be("QI", 120, 2**31), "the backing file's name at offset 8"),
        (8, be("QI", 2**60, 5), "the backing file's name at offset 8"),
        (L1_PLACE, be("Q", 1 << 63 | 2**40), f"an L1 entry at offset {L1_PLACE}"),
        (L1_PLACE, be("Q", 1 << 63 | 0x40200), f"an L1 entry at offset {L1_PLACE}"),
        (L1_PLACE, be("Q", 1 << 62 | 0x40000), f"an L1 entry at offset {L1_PLACE}"),
        (L2_PLACE, be("Q", 1 << 63 | 2**40), f"an L2 entry at offset {L2_PLACE}"),
        (L2_PLACE, be("Q", 1 << 63 | 0x50200), f"an L2 entry at offset {L2_PLACE}"),
        (L2_PLACE, be("Q", 1 << 62 | 2**50), f"an L2 entry at offset {L2_PLACE}"),
        (L2_PLACE, be("Q", 1 << 62), f"an L2 entry at offset {L2_PLACE}"),
        (L2_PLACE, be("Q", 2), f"an L2 entry at offset {L2_PLACE}"),
    ],
)
def test_a_qcow2_that_contradicts_itself_is_refused(qcow2: Path, at: int, data: bytes, words: str) -> None:
    assert int.from_bytes(qcow2.read_bytes()[L1_AT : L1_AT + 8], "big") == L1_PLACE
    assert int.from_bytes(qcow2.read_bytes()[L1_PLACE : L1_PLACE + 8], "big") & ~(1 << 63) == L2_PLACE
    patched(qcow2, at, data)
    assert words in str(refused(qcow2, ImageDamaged))
    assert check(qcow2).damaged


def test_a_cluster_that_two_entries_name_is_found_by_its_references(qcow2: Path) -> None:
    patched(qcow2, L2_PLACE + 8, qcow2.read_bytes()[L2_PLACE : L2_PLACE + 8])
    (twice, *others) = check(qcow2).findings
    assert "referred to 2 times" in twice.seen
    assert [each.severity.value for each in others] == ["leak"]


def test_compressed_clusters_of_garbage_are_refused(tmp_path: Path) -> None:
    path = converted(tmp_path / "disk.qcow2", CONTENT, "qcow2", "compat=1.1", "-c")
    entry = int.from_bytes(path.read_bytes()[L2_PLACE : L2_PLACE + 8], "big")
    assert entry >> 62 == 1
    at = entry & (1 << 54) - 1
    for data in (b"\xff" * 40, zlib.compress(b"short")[2:]):
        patched(path, at, data)
        error = refused(path, ImageDamaged)
        assert isinstance(error, ImageDamaged)
        assert (error.structure, error.offset) == ("a compressed cluster", at)


@pytest.mark.parametrize(
    ("at", "data", "words"),
    [
        (32, be("I", 1), "encrypted"),
        (32, be("I", 2), "encrypted"),
        (72, be("Q", 1), "dirty"),
        (72, be("Q", 2), "corrupt"),
        (72, be("Q", 4), "external data file"),
        (72, be("Q", 16), "extended L2"),
        (72, be("Q", 1 << 40), "incompatible features 0x10000000000"),
    ],
)
def test_a_qcow2_that_needs_more_than_is_understood_is_refused(
    qcow2: Path, at: int, data: bytes, words: str
) -> None:
    patched(qcow2, at, data)
    assert words in str(refused(qcow2, FeatureNotSupported))


def test_a_compression_nobody_knows_is_refused_and_zstd_is_where_its_library_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = converted(tmp_path / "disk.qcow2", CONTENT, "qcow2", "compat=1.1,compression_type=zstd", "-c")
    assert read_through(path) == CONTENT
    monkeypatch.setattr("disks.qcow2.zstandard", lambda: None)
    assert "zstd" in str(refused(path, FeatureNotSupported))
    patched(path, 104, b"\7")
    assert "compression type 7" in str(refused(path, FeatureNotSupported))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("missing", "No such file"),
        ("absolute", "an absolute path"),
        ("upwards", "a path that leads upwards"),
        ("link", "a link"),
        ("device", "a device"),
        ("itself", "in the chain already"),
        ("format", "a backing file of the format"),
        ("raw name", "which is always raw"),
        ("unsure", "HW-DISKS-006"),
    ],
)
def test_a_backing_file_that_is_not_plainly_one_is_refused(change: str, words: str, tmp_path: Path) -> None:
    path = qcow2_backing(tmp_path, CONTENT)
    middle = tmp_path / "middle.qcow2"
    told = {"format": "vdi", "unsure": ""}.get(change, "qcow2")
    name = {
        "missing": "gone.qcow2", "absolute": str(middle), "upwards": "../middle.qcow2", "itself": "disk.qcow2",
        "raw name": "middle.img", "unsure": "middle.bin",
    }.get(change, "middle.qcow2")  # fmt: skip
    if change in ("raw name", "unsure"):
        middle.rename(tmp_path / name)
    elif change in ("link", "device"):
        middle.unlink()
        if change == "link":
            middle.symlink_to(tmp_path / "base.qcow2")
        else:
            os.mknod(middle, 0o020600, os.makedev(1, 5))
    options = ["-F", told] if told else ["-F", "qcow2"]
    qemu("rebase", "-u", *options, "-b", name, path)
    if not told:
        raw = path.read_bytes()
        path.write_bytes(raw.replace(be("I", 0xE2792ACA), be("I", 0x12345678), 1))
    if change == "unsure":
        with pytest.raises(HomewardError) as caught:
            read_through(path)
        assert words in str(caught.value)
        return
    assert words in str(refused(path, ParentUnusable))
