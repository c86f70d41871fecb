"""VMDKs and qcow2s made to hurt: each is one coded error that names structure and offset, soon and in little memory.

`ROUNDS` and `SEED` in the environment make the mutations a campaign.
"""

import os
import random
import re
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from disks.catalogue import check, open_source, write_whole
from disks.disk import Format
from disks.errors import FormatContradicted, FormatNotSupported, ImageDamaged, ParentUnusable
from disks.errors_vmdk import FeatureNotSupported
from drcore.errors import HomewardError
from drcore.limits import PARENTS_MAX
from tests import vmdk_deltas
from tests.fuzz import vmware_images
from tests.fuzz.refusing import CONTENT, MIB, SIZE, patched, read_through, refused
from tests.images import maker, vmdk_snapshots
from tests.system.command import write_sparse

ROUNDS = int(os.environ.get("ROUNDS", "12"))
SEED = int(os.environ.get("SEED") or random.randrange(2**32))


def u32(path: Path, at: int) -> int:
    return int.from_bytes(path.read_bytes()[at : at + 4], "little")


# Streams


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    """With its directory at the end, as VMware makes them and qemu-img does not."""
    return streamed(tmp_path, random.Random(1).randbytes(70_000) + CONTENT[70_000:])


def streamed(folder: Path, content: bytes) -> Path:
    raw = write_sparse(folder / "content.raw", content)
    source = open_source(raw)
    write_whole(folder / "disk.vmdk", source, lambda position: None, lambda disk: None)
    source.close()
    raw.unlink()
    return folder / "disk.vmdk"


def first_table(path: Path) -> tuple[int, int]:
    """(where the grain directory's first entry stands, where the first table does), from the footer."""
    raw = path.read_bytes()
    directory = int.from_bytes(raw[-1024 + 56 :][:8], "little") * 512
    return directory, int.from_bytes(raw[directory : directory + 4], "little") * 512


@pytest.mark.parametrize(
    ("at", "data", "words"),
    [
        (12, struct.pack("<Q", 2**63), "the capacity at offset 12"),
        (12, struct.pack("<Q", 0), "the capacity at offset 12"),
        (20, struct.pack("<Q", 4096), "the grain size at offset 20"),
        (20, struct.pack("<Q", 3), "the grain size at offset 20"),
        (44, struct.pack("<I", 2**31), "the entries per grain table at offset 44"),
        (77, struct.pack("<H", 9), "the compression at offset 77"),
        (-1024 + 56, struct.pack("<Q", 2**40), "the footer: the place of the grain directory"),
        (-1024 + 12, struct.pack("<Q", 99), "the footer at offset"),
        (-1024, b"VDMK", "the footer: the sparse header at offset"),
        (-1536 + 12, struct.pack("<I", 2), "the footer's marker at offset"),
        (-1024 + 56, struct.pack("<Q", 2**31), "the grain directory at offset"),
    ],
)
def test_a_stream_that_contradicts_itself_is_refused(stream: Path, at: int, data: bytes, words: str) -> None:
    patched(stream, at, data)
    assert words in str(refused(stream, ImageDamaged))


def test_a_stream_without_its_end_is_refused(stream: Path) -> None:
    for size in (stream.stat().st_size - 512, stream.stat().st_size // 1024 * 512, 1024, 513):
        os.truncate(stream, size)
        error = refused(stream, ImageDamaged)
        assert "footer" in str(error) or "descriptor" in str(error)


def test_grains_of_a_stream_that_lie_are_refused_where_they_stand(stream: Path) -> None:
    _, table = first_table(stream)
    grain = u32(stream, table) * 512
    whole = stream.read_bytes()
    bomb = zlib.compress(bytes(20 * MIB))[:30_000]
    cases = [
        (table, struct.pack("<I", 0xFFFFFFF0), "a grain table entry", table),
        (table, struct.pack("<I", 1), "a grain table entry", table),
        (table, struct.pack("<I", table // 512), "a grain's marker", table),
        (grain, struct.pack("<Q", 128), "a grain's marker", grain),
        (grain + 8, struct.pack("<I", 0xFFFFFFFF), "a grain's marker", grain + 8),
        (grain + 8, struct.pack("<I", 0), "a grain's marker", grain + 8),
        (grain + 12, b"\xff" * 30, "a compressed grain", grain + 12),
        (grain + 8, struct.pack("<I", len(bomb)) + bomb, "a compressed grain", grain + 12),
        (grain + 8, struct.pack("<I", 20) + zlib.compress(b"short"), "a compressed grain", grain + 12),
    ]
    for at, data, structure, offset in cases:
        stream.write_bytes(whole)
        patched(stream, at, data)
        error = refused(stream, ImageDamaged)
        assert isinstance(error, ImageDamaged)
        assert (error.structure, error.offset) == (structure, offset)
        assert (
            any(each.severity.value == "damage" for each in check(stream).findings)
            or "compressed" in structure
        )


def test_tables_of_a_stream_that_overlap_are_refused(tmp_path: Path) -> None:
    path = streamed(tmp_path, b"x" * 512 + bytes(40 * MIB) + b"x" * 512)
    directory, table = first_table(path)
    patched(path, directory + 4, struct.pack("<I", table // 512 + 1))
    error = refused(path, ImageDamaged)
    assert isinstance(error, ImageDamaged)
    assert (error.structure, error.offset) == ("a grain directory entry", directory + 4)


# Descriptors and chains


def descriptor_of(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: re.sub(r"^RW .*\n", "", text, flags=re.MULTILINE),
        lambda text: re.sub(r"^(RW .*\n)", r"\1" * 1200, text, flags=re.MULTILINE),
        lambda text: text.replace("RW ", "NOACCESS "),
        lambda text: text.replace(" SPARSE ", " FLAT "),
        lambda text: text.replace(" SPARSE ", " SESPARSE "),
        lambda text: re.sub(r"^RW \d+", "RW 0", text, flags=re.MULTILINE),
        lambda text: re.sub(r"^RW \d+", "RW 99999999999999999", text, flags=re.MULTILINE),
        lambda text: re.sub(r"^RW \d+", "RW 137438953472", text, flags=re.MULTILINE),
        lambda text: re.sub(r"^RW \d+", "RW 8", text, flags=re.MULTILINE),
        lambda text: text.replace("CID=", "CID=zz", 1),
        lambda text: text + "#" * 65536,
    ],
)
def test_a_descriptor_that_makes_no_disk_is_refused(change: Callable[[str], str], tmp_path: Path) -> None:
    path = maker(Format.VMDK_TWO_GB_SPARSE)(tmp_path, CONTENT)
    descriptor_of(path, change)
    refused(path, ImageDamaged)


def test_an_extent_of_zeroes_needs_no_file_in_a_snapshot(tmp_path: Path) -> None:
    parent = maker(Format.VMDK_MONOLITHIC_SPARSE)(tmp_path, CONTENT)
    child = vmdk_deltas.vmfs_sparse(tmp_path / "child.vmdk", SIZE, {}, parent)
    descriptor_of(child, lambda text: re.sub(r'VMFSSPARSE ".*"', "ZERO", text))
    assert read_through(child) == bytes(SIZE)


def cycle(folder: Path) -> Path:
    """disk's parent is middle, whose parent is disk."""
    path = vmdk_snapshots(folder, CONTENT)
    cid = re.search(rb"\nCID=(\w+)", path.read_bytes())
    assert cid
    middle = folder / "middle.vmdk"
    raw = middle.read_bytes()
    text = re.sub(rb"parentCID=\w+", b"parentCID=" + cid[1], raw[512:10752].rstrip(b"\0"), count=1)
    text = text.replace(b'"base.vmdk"', b'"disk.vmdk"', 1)
    middle.write_bytes(raw[:512] + text.ljust(10240, b"\0") + raw[10752:])
    return path


def own_parent(folder: Path) -> Path:
    path = vmdk_snapshots(folder, CONTENT)
    raw = path.read_bytes().replace(b'"middle.vmdk"', b'"disk.vmdk"  ', 1)
    path.write_bytes(raw)
    return path


def written_parent(folder: Path) -> Path:
    path = vmdk_snapshots(folder, CONTENT)
    middle = folder / "middle.vmdk"
    raw = middle.read_bytes()
    text = re.sub(rb"\nCID=\w+", b"\nCID=0badcafe", raw[512:10752].rstrip(b"\0"), count=1)
    middle.write_bytes(raw[:512] + text.ljust(10240, b"\0") + raw[10752:])
    return path


def missing_parent(folder: Path) -> Path:
    path = vmdk_snapshots(folder, CONTENT)
    (folder / "base.vmdk").unlink()
    return path


def linked_parent(folder: Path) -> Path:
    path = vmdk_snapshots(folder, CONTENT)
    (folder / "base.vmdk").rename(folder / "real.vmdk")
    (folder / "base.vmdk").symlink_to(folder / "real.vmdk")
    return path


def parent_of_another_size(folder: Path) -> Path:
    parent = maker(Format.VMDK_MONOLITHIC_SPARSE)(folder, CONTENT + bytes(512))
    return vmdk_deltas.vmfs_sparse(folder / "child.vmdk", SIZE, {}, parent)


def unnamed_parent(folder: Path) -> Path:
    path = vmdk_snapshots(folder, CONTENT)
    path.write_bytes(path.read_bytes().replace(b"parentFileNameHint", b"parentFileNameHin_", 1))
    return path


def parent_that_is_an_extent(folder: Path) -> Path:
    parent = maker(Format.VMDK_MONOLITHIC_FLAT)(folder, CONTENT)
    child = vmdk_deltas.vmfs_sparse(folder / "child.vmdk", SIZE, {}, parent)
    descriptor_of(child, lambda text: text.replace('"disk.vmdk"', '"disk-flat.vmdk"'))
    return child


def parent_that_is_no_vmdk(folder: Path) -> Path:
    (folder / "base.bin").write_bytes(b"\nCID=12345678\n".ljust(SIZE, b"\0"))
    return vmdk_deltas.vmfs_sparse(folder / "child.vmdk", SIZE, {}, folder / "base.bin")


def long_chain(folder: Path) -> Path:
    below = maker(Format.VMDK_MONOLITHIC_SPARSE)(folder, CONTENT)
    for number in range(PARENTS_MAX + 1):
        below = vmdk_deltas.vmfs_sparse(folder / f"child-{number}.vmdk", SIZE, {}, below)
    return below


def upward_parent(folder: Path) -> Path:
    path = vmdk_snapshots(folder, CONTENT)
    path.write_bytes(path.read_bytes().replace(b'"middle.vmdk"', b'"../mid.vmdk"', 1))
    return path


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (cycle, "in the chain already"),
        (own_parent, "in the chain already"),
        (written_parent, "CID=0badcafe, written to since"),
        (missing_parent, "No such file"),
        (linked_parent, "a link"),
        (parent_of_another_size, f"{SIZE + 512} bytes"),
        (unnamed_parent, "no parentFileNameHint"),
        (parent_that_is_an_extent, "the name of an extent"),
        (parent_that_is_no_vmdk, "no magic number"),
        (long_chain, f"more than {PARENTS_MAX} images"),
        (upward_parent, "upwards"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_parent_that_is_not_the_one_is_refused(
    made: Callable[[Path], Path], words: str, tmp_path: Path
) -> None:
    path = made(tmp_path)
    assert words in str(refused(path, ParentUnusable))
    assert words in " ".join(each.seen for each in check(path).findings)


# ESXi's deltas


@pytest.fixture
def cowd(tmp_path: Path) -> Path:
    """The extent of a vmfsSparse snapshot; its descriptor is child.vmdk."""
    parent = maker(Format.VMDK_MONOLITHIC_SPARSE)(tmp_path, CONTENT)
    vmdk_deltas.vmfs_sparse(
        tmp_path / "child.vmdk", SIZE, {0: b"a" * 512, 4200: b"b" * 512}, parent, grain_sectors=1
    )
    return tmp_path / "child-delta.vmdk"


@pytest.mark.parametrize(
    ("at", "data", "words"),
    [
        (0, b"DWOC", "the vmfsSparse header at offset 0"),
        (4, struct.pack("<I", 2), "the header's version at offset 4"),
        (8, struct.pack("<I", 0), "the header's flags at offset 8"),
        (12, struct.pack("<I", 0), "the capacity at offset 12"),
        (12, struct.pack("<I", 8), "the capacity at offset 12"),
        (16, struct.pack("<I", 2**31), "the grain size at offset 16"),
        (20, struct.pack("<I", 0), "the place of the grain directory at offset 20"),
        (20, struct.pack("<I", 2**31), "the grain directory at offset"),
        (24, struct.pack("<I", 1), "the entries of the grain directory at offset 24"),
        (2048, struct.pack("<I", 0xFFFFFFFF), "a grain table at offset"),
        (2048, struct.pack("<II", 5, 6), "a grain directory entry at offset 2052"),
        (2560, struct.pack("<I", 0xFFFFFFFF), "a grain table entry at offset 2560"),
        (2560, struct.pack("<I", 1), "a grain table entry at offset 2560"),
        (2560, struct.pack("<I", 4), "a grain table entry at offset 2560"),
    ],
)
def test_a_vmfs_sparse_extent_that_contradicts_itself_is_refused(
    cowd: Path, at: int, data: bytes, words: str
) -> None:
    patched(cowd, at, data)
    path = cowd.with_name("child.vmdk")
    assert words in str(refused(path, ImageDamaged))
    assert any(each.severity.value == "damage" for each in check(path).findings)


@pytest.fixture
def sesparse(tmp_path: Path) -> Path:
    """The extent of an seSparse snapshot of 40 MiB; its descriptor is child.vmdk."""
    parent = maker(Format.VMDK_MONOLITHIC_SPARSE)(tmp_path, CONTENT.ljust(40 * MIB, b"\0"))
    grains = {0: b"a" * 4096, 4096: b"b" * 4096}
    vmdk_deltas.se_sparse(tmp_path / "child.vmdk", 40 * MIB, grains, parent)
    return tmp_path / "child-sesparse.vmdk"


DIRECTORY, TABLES = 2048 * 512, 2056 * 512


@pytest.mark.parametrize(
    ("at", "data", "words"),
    [
        (0, struct.pack("<Q", 0xCAFED00D), "the seSparse header at offset 0"),
        (8, struct.pack("<Q", 1), "the header's version at offset 8"),
        (16, struct.pack("<Q", 2**63), "the capacity at offset 16"),
        (16, struct.pack("<Q", 2**37), "the grain directory's size at offset 136"),
        (24, struct.pack("<Q", 16), "the grain size at offset 24"),
        (32, struct.pack("<Q", 2**40), "the grain table size at offset 32"),
        (40, struct.pack("<Q", 1), "the flags at offset 40"),
        (72, struct.pack("<Q", 1), "reserved field 4 at offset 72"),
        (128, struct.pack("<Q", 2**63), "the place of the grain directory at offset 128"),
        (128, struct.pack("<Q", 2**40), "the grain directory at offset"),
        (512, struct.pack("<Q", 1), "the volatile header at offset 512"),
        (DIRECTORY, struct.pack("<Q", 2), f"a grain directory entry at offset {DIRECTORY}"),
        (DIRECTORY, struct.pack("<Q", 1 << 60 | 99), f"a grain directory entry at offset {DIRECTORY}"),
        (DIRECTORY, struct.pack("<QQ", 1 << 60, 1 << 60), "the grain directory at offset"),
        (144, struct.pack("<Q", 2**40), "a grain table at offset"),
        (TABLES + 32768, struct.pack("<Q", 4 << 60), f"a grain table entry at offset {TABLES + 32768}"),
        (TABLES + 32768, struct.pack("<Q", 5), f"a grain table entry at offset {TABLES + 32768}"),
        (TABLES + 32768, struct.pack("<Q", 2**62 - 1), f"a grain table entry at offset {TABLES + 32768}"),
    ],
)
def test_an_sesparse_extent_that_contradicts_itself_is_refused(
    sesparse: Path, at: int, data: bytes, words: str
) -> None:
    patched(sesparse, at, data)
    path = sesparse.with_name("child.vmdk")
    assert words in str(refused(path, ImageDamaged))
    assert any(each.severity.value == "damage" for each in check(path).findings)


def test_an_sesparse_extent_with_a_journal_to_replay_is_refused(sesparse: Path) -> None:
    patched(sesparse, 512 + 24, struct.pack("<Q", 1))
    assert "journal" in str(refused(sesparse.with_name("child.vmdk"), FeatureNotSupported))


# Everything


def test_what_the_campaign_starts_from_is_taken_whole() -> None:
    for good, decode in vmware_images.DECODERS:
        decode(good)


@pytest.mark.parametrize("name", vmware_images.NAMES)
def test_a_mutated_image_gives_a_disk_or_a_coded_error(
    name: str, tmp_path: Path, small: dict[str, vmware_images.Victim]
) -> None:
    print(f"seed {SEED}")
    dice, victim = random.Random(f"{SEED} {name}"), small[name]
    for number in range(ROUNDS):
        path = vmware_images.damage(victim, tmp_path, dice)
        try:
            vmware_images.use(path, victim.kind)
        except Exception as error:
            raise AssertionError(f"seed {SEED}, round {number}") from error


@pytest.fixture(scope="module")
def small() -> "dict[str, vmware_images.Victim]":
    with vmware_images.victims() as found:
        return found


def test_a_guest_that_writes_a_container_into_sector_0_changes_nothing(tmp_path: Path) -> None:
    """A flat extent is raw to its descriptor, whatever its first sector says; named itself it is refused."""
    path = maker(Format.VMDK_VMFS)(tmp_path, CONTENT)
    extent = next(tmp_path.glob("*-flat.vmdk"))
    for start in (b"KDMV", b"QFI\xfb", b'# Disk DescriptorFile\nRW 8 FLAT "/etc/shadow" 0', b"COWD"):
        patched(extent, 0, start.ljust(512, b"\0"))
        assert read_through(path)[: len(start)] == start
        with pytest.raises(HomewardError) as caught:
            open_source(extent)
        assert "one part of a disk" in str(caught.value) or isinstance(caught.value, ImageDamaged)


def test_an_unreadable_kind_is_named(tmp_path: Path) -> None:
    path = maker(Format.VMDK_VMFS)(tmp_path, CONTENT)
    for kind in ("vmfsRawDeviceMap", "fullDevice", "custom", "streamOptimized"):
        text = path.read_text()
        path.write_text(text.replace('createType="vmfs"', f'createType="{kind}"'))
        assert kind in str(refused(path, FormatNotSupported))
        path.write_text(text)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "other.vmdk", "1M"], check=True)
    with pytest.raises(FormatContradicted):
        open_source(tmp_path / "other.vmdk", Format.VMDK_VMFS)
