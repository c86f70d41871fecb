"""Images made to hurt: whatever a structure says, the answer is a disk or a coded error, in little memory.

`ROUNDS` and `SEED` in the environment make it a campaign.
"""

import os
import random
import struct
import tracemalloc
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from disks import vhd_layout, vhdx_layout, vhdx_log, vmdk_layout
from disks.catalogue import create, identity, open_source, open_target, recognise
from disks.disk import Format
from disks.errors import FormatNotSupported, ImageDamaged
from disks.layout import Malformed
from drcore.errors import HomewardError
from drcore.limits import TIB
from tests.fuzz import vhdx_images

MIB = 1024 * 1024
SIZE = 5 * MIB + 512
FORMATS = {
    Format.VHD_FIXED: "vhd",
    Format.VHD_DYNAMIC: "vhd",
    Format.VMDK_MONOLITHIC_SPARSE: "vmdk",
    Format.VMDK_MONOLITHIC_FLAT: "vmdk",
    Format.VMDK_VMFS: "vmdk",
}
ROUNDS = int(os.environ.get("ROUNDS", "200"))
SEED = int(os.environ.get("SEED") or random.randrange(2**32))
EDGES = [
    0,
    1,
    2,
    3,
    0x7F,
    0x80,
    0xFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFE,
    0xFFFFFFFF,
    2**63,
    2**64 - 1,
    2**40,
]


def image(folder: Path, kind: Format) -> Path:
    path = folder / f"disk.{FORMATS[kind]}"
    disk = create(path, kind, SIZE)
    for offset in (0, 100_000, 4 * MIB, SIZE - 512):
        disk.write(offset, memoryview(b"x" * min(70_000, SIZE - offset)))
    disk.flush()
    disk.close()
    return path


def use(path: Path, kind: Format) -> None:
    """Everything that a user may do with an image. Only coded errors come out."""
    for told in (None, kind):
        try:
            recognise(path, told)
            disk = open_source(path, told)
            try:
                assert 0 < disk.size <= 64 * 1024**4
                piece = memoryview(bytearray(min(disk.size, MIB)))
                for offset in range(0, min(disk.size, 8 * MIB), len(piece)):
                    disk.read(offset, piece[: min(len(piece), disk.size - offset)])
                for count, _ in enumerate(disk.extents(0, disk.size)):
                    if count > 1000:
                        break
                disk.allocated_bytes()
                identity(disk)
            finally:
                disk.close()
            target = open_target(path, told)
            try:
                target.write(
                    max(0, min(3 * MIB, target.size - 5000)), memoryview(b"y" * min(5000, target.size))
                )
                target.zero(0, min(target.size, MIB))
                target.flush()
            finally:
                target.close()
        except HomewardError as error:
            error.as_json()


def mutate(raw: bytearray, dice: random.Random, hot: list[int]) -> None:
    """Some of the bytes that matter are changed: noise, edge values in both byte orders, moved pieces, a cut."""
    for _ in range(dice.choice([1, 1, 2, 5])):
        at = dice.choice(hot) if dice.random() < 0.9 else dice.randrange(len(raw))
        match dice.randrange(4):
            case 0:
                raw[at] = dice.randrange(256)
            case 1:
                width, order = dice.choice([2, 4, 8]), dice.choice(["little", "big"])
                value = dice.choice(EDGES) if dice.random() < 0.7 else dice.randrange(len(raw) // 512 + 5)
                data = (value % 2 ** (8 * width)).to_bytes(width, order)  # type: ignore[arg-type]
                raw[at : at + width] = data[: max(0, len(raw) - at)]
            case 2:
                other = dice.choice(hot)
                raw[at : at + 4] = raw[other : other + 4]
            case _:
                raw[at : at + 8] = dice.randbytes(min(8, len(raw) - at))
    if dice.random() < 0.1:
        del raw[dice.randrange(len(raw)) :]


def checked(size: int) -> tuple[tuple[int, int, bytes, int], ...]:
    """(offset, length, cookie, where in it the checksum stands) of the structures of a VHD's file of this size."""
    return (
        (0, 512, vhd_layout.COOKIE, 64),
        (size - 512, 512, vhd_layout.COOKIE, 64),
        (512, 1024, vhd_layout.DYNAMIC_COOKIE, 36),
    )


def sealed(structure: bytes, place: int) -> bytes:
    """The structure with the right checksum at its place."""
    sum_ = struct.pack(">I", vhd_layout.checksum(structure, place))
    return structure[:place] + sum_ + structure[place + 4 :]


def seal(raw: bytearray) -> None:
    """Checksums of a VHD are right again, so that what they protect is looked at."""
    for at, length, cookie, place in checked(len(raw)):
        if raw[at : at + 8] == cookie and 0 <= at <= len(raw) - length:
            raw[at : at + length] = sealed(bytes(raw[at : at + length]), place)


@pytest.mark.parametrize("kind", FORMATS, ids=lambda kind: kind.value)
def test_a_mutated_image_gives_a_disk_or_a_coded_error(kind: Format, tmp_path: Path) -> None:
    print(f"seed {SEED}")
    dice = random.Random(SEED)
    path = image(tmp_path, kind)
    good = path.read_bytes()
    hot = [at for at in range(min(len(good), 65536)) if good[at]]
    if "vhd" in kind.value:
        hot = [at for at in (*range(1700), *range(len(good) - 512, len(good))) if good[at]]
    for number in range(ROUNDS):
        raw = bytearray(good)
        mutate(raw, dice, hot)
        if raw and "vhd" in kind.value and dice.random() < 0.8:
            seal(raw)
        path.write_bytes(raw)
        try:
            use(path, kind)
        except Exception as error:
            raise AssertionError(f"seed {SEED}, round {number}") from error


def patched(path: Path, at: int, data: bytes) -> None:
    raw = bytearray(path.read_bytes())
    raw[at : at + len(data)] = data
    if path.suffix == ".vhd":
        seal(raw)
    path.write_bytes(raw)


def test_a_table_far_larger_than_its_file_is_refused_in_little_memory(tmp_path: Path) -> None:
    cases: list[tuple[Format, int, bytes]] = [
        (Format.VHD_DYNAMIC, 512 + 32, struct.pack(">I", 4096)),  # small blocks make a long table
        (Format.VMDK_MONOLITHIC_SPARSE, 12, struct.pack("<Q", 64 * 1024**4 // 512)),
        (Format.VMDK_MONOLITHIC_SPARSE, 28, struct.pack("<QQ", 1, 2**40)),
    ]
    for kind, at, data in cases:
        path = image(tmp_path, kind)
        patched(path, at, data)
        if kind is Format.VHD_DYNAMIC:
            for copy in (0, path.stat().st_size - 512):
                patched(path, copy + 48, struct.pack(">Q", 2040 * 1024**3))
            patched(path, 512 + 28, struct.pack(">I", 0xFFFFFFFF))
        tracemalloc.start()
        try:
            with pytest.raises(ImageDamaged):
                open_source(path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 4 * path.stat().st_size + MIB
        path.unlink()


def first_grain_table(path: Path) -> int:
    raw = path.read_bytes()
    directory = vmdk_layout.decode_header(raw[:512]).directory * 512
    return int.from_bytes(raw[directory : directory + 4], "little") * 512


@pytest.mark.parametrize(
    "change",
    [
        lambda table, end: struct.pack("<I", end // 512),  # behind the end of the file
        lambda table, end: struct.pack("<I", 0xFFFFFFFF),
        lambda table, end: struct.pack("<I", table // 512),  # the table itself
        lambda table, end: struct.pack("<I", 1),  # a zero grain, where the header allows none
        lambda table, end: struct.pack("<II", end // 512 - 128, end // 512 - 128),  # one place twice
    ],
    ids=["behind the end", "the largest", "itself", "zero grain", "twice"],
)
def test_a_grain_that_cannot_be_there_is_named_with_its_offset(
    change: Callable[[int, int], bytes], tmp_path: Path
) -> None:
    path = image(tmp_path, Format.VMDK_MONOLITHIC_SPARSE)
    table = first_grain_table(path)
    patched(path, table, change(table, path.stat().st_size))
    with pytest.raises(ImageDamaged) as caught:
        open_target(path)
    assert table <= caught.value.offset < table + 2048
    assert "grain table" in caught.value.structure


@pytest.mark.parametrize("sector", [0, 1, 3, 0x7FFFFFFF, 0xFFFFFFFE], ids=hex)
def test_a_block_that_cannot_be_there_is_named_with_its_offset(sector: int, tmp_path: Path) -> None:
    path = image(tmp_path, Format.VHD_DYNAMIC)
    patched(path, 1536 + 8, struct.pack(">I", sector))
    for opener in (open_source, open_target):
        with pytest.raises(ImageDamaged) as caught:
            opener(path)
        assert caught.value.offset == 1536 + 8


def test_two_blocks_in_one_place_are_refused(tmp_path: Path) -> None:
    path = image(tmp_path, Format.VHD_DYNAMIC)
    patched(path, 1536 + 4, path.read_bytes()[1536:1540])
    with pytest.raises(ImageDamaged):
        open_source(path)


def test_a_header_changed_by_a_text_transfer_is_refused(tmp_path: Path) -> None:
    path = image(tmp_path, Format.VMDK_MONOLITHIC_SPARSE)
    patched(path, 73, b"\r\n \r\n")
    with pytest.raises(ImageDamaged):
        open_source(path)


def test_a_sector_whose_bit_is_clear_reads_as_zeroes_and_stays_so(tmp_path: Path) -> None:
    path = image(tmp_path, Format.VHD_DYNAMIC)
    bitmap = int.from_bytes(path.read_bytes()[1536:1540], "big") * 512
    patched(path, bitmap, b"\x00\x7f")  # sectors 0 to 8 never written; their old bytes are still there
    source = open_source(path)
    into = bytearray(10 * 512)
    source.read(0, memoryview(into))
    assert into == bytes(9 * 512) + b"x" * 512
    kinds = [(extent.offset, extent.kind.value) for extent in source.extents(0, 10 * 512)]
    assert kinds == [(0, "zero"), (9 * 512, "data")]
    source.close()
    target = open_target(path)
    target.write(512 + 5, memoryview(b"yy"))
    target.flush()
    target.close()
    expected = bytearray(10 * 512)
    expected[517:519] = b"yy"
    expected[9 * 512 :] = b"x" * 512
    assert path.read_bytes()[bitmap : bitmap + 512] == b"\xff" * 512
    source = open_source(path)
    source.read(0, memoryview(into))
    source.close()
    assert into == expected


def test_an_old_footer_of_511_bytes_is_read(tmp_path: Path) -> None:
    for kind in (Format.VHD_FIXED, Format.VHD_DYNAMIC):
        path = image(tmp_path, kind)
        expected = bytearray(SIZE)
        disk = open_source(path)
        disk.read(0, memoryview(expected))
        disk.close()
        os.truncate(path, path.stat().st_size - 1)
        target = open_target(path)
        target.write(3 * MIB, memoryview(b"z" * 1000))
        target.flush()
        target.close()
        expected[3 * MIB : 3 * MIB + 1000] = b"z" * 1000
        disk = open_source(path)
        into = bytearray(disk.size)
        disk.read(0, memoryview(into))
        disk.close()
        assert into == expected
        path.unlink()


def test_twins_that_a_power_cut_left_apart_are_made_one_by_the_next_writer(tmp_path: Path) -> None:
    path = image(tmp_path, Format.VMDK_MONOLITHIC_SPARSE)
    raw = path.read_bytes()
    header = vmdk_layout.decode_header(raw[:512])
    twin = int.from_bytes(raw[header.redundant_directory * 512 :][:4], "little") * 512
    table = first_grain_table(path)
    patched(path, twin, bytes(4))  # the twin does not know the first grain yet
    target = open_target(path)
    target.write(10, memoryview(b"in place"))
    target.flush()
    target.close()
    raw = path.read_bytes()
    assert raw[twin : twin + 2048] == raw[table : table + 2048]


@pytest.mark.parametrize("sequence", [2**63 + 1, 2**64 - 1])
def test_a_vhdx_whose_sequence_number_cannot_rise_is_read_and_not_written(
    sequence: int, tmp_path: Path
) -> None:
    path = tmp_path / "disk.vhdx"
    disk = create(path, Format.VHDX_DYNAMIC, 4 * MIB)
    disk.write(0, memoryview(b"x" * 4096))
    disk.flush()
    disk.close()
    raw = bytearray(path.read_bytes())
    for at in vhdx_images.header_slots():
        raw[at + 8 : at + 16] = sequence.to_bytes(8, "little")
        raw[at : at + 4096] = vhdx_images.sealed(bytes(raw[at : at + 4096]))
    path.write_bytes(raw)
    source = open_source(path, Format.VHDX_DYNAMIC)
    found = bytearray(4096)
    source.read(0, memoryview(found))
    source.close()
    assert found == b"x" * 4096
    with pytest.raises(ImageDamaged, match="sequence number"):
        open_target(path, Format.VHDX_DYNAMIC)
    assert path.read_bytes() == raw


def test_a_log_that_makes_a_file_absurdly_long_is_refused() -> None:
    log = uuid.uuid4()
    header = vhdx_layout.Header(1, uuid.uuid4(), uuid.uuid4(), log, MIB, MIB)
    for last, good in ((8 * MIB, True), (TIB + 4 * MIB, True), (TIB + 5 * MIB, False), (100 * TIB, False)):
        raw = vhdx_log.encode_entry(log, 1, [(4 * MIB, bytes(4096))], 4 * MIB, last).ljust(MIB, b"\0")
        if good:
            assert vhdx_log.find(raw, header, 4 * MIB).file_bytes == last
            continue
        with pytest.raises(Malformed, match="how far a log reaches"):
            vhdx_log.find(raw, header, 4 * MIB)


def test_what_a_version_3_vmdk_or_another_extent_kind_needs_is_refused_for_writing(tmp_path: Path) -> None:
    path = image(tmp_path, Format.VMDK_MONOLITHIC_SPARSE)
    patched(path, 4, struct.pack("<I", 3))
    open_source(path).close()
    with pytest.raises(FormatNotSupported):
        open_target(path)
    patched(path, 8, struct.pack("<I", 1 << 16))
    with pytest.raises(ImageDamaged) as caught:
        open_source(path)
    assert caught.value.offset == 77
