"""`info --check`: what is wrong is told with structure, offset and severity; sound images have nothing to tell."""

import random
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from disks import catalogue
from disks.catalogue import CheckedImage, check, create
from disks.check import Claims, Severity
from disks.disk import Format
from disks.vhd_layout import checksum
from drcore.limits import CHECK_FINDINGS_MAX
from tests.fuzz.vhdx_images import header_slots, sealed
from tests.system.command import homeward

MIB = 1024 * 1024
SIZE = 7 * MIB + 512
KINDS = {
    Format.VHD_FIXED: "vhd",
    Format.VHD_DYNAMIC: "vhd",
    Format.VHDX_FIXED: "vhdx",
    Format.VHDX_DYNAMIC: "vhdx",
}


def image(folder: Path, kind: Format) -> Path:
    path = folder / f"disk.{KINDS[kind]}"
    disk = create(path, kind, SIZE)
    for offset in (0, 3 * MIB, SIZE - 512):
        disk.write(offset, memoryview(b"x" * 512))
    disk.flush()
    disk.close()
    return path


def told(checked: CheckedImage) -> list[tuple[str, str, int]]:
    return [(each.severity.value, each.structure, each.offset) for each in checked.findings]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.value)
def test_a_sound_image_has_no_findings(kind: Format, tmp_path: Path) -> None:
    path = image(tmp_path, kind)
    found = check(path)
    assert found.findings == ()
    assert found.info == catalogue.inspect(path)
    # A format without a checker of its own is checked by opening it.
    raw = tmp_path / "disk.raw"
    raw.write_bytes(b"x" * 512)
    assert check(raw).findings == ()


@pytest.mark.parametrize(("form", "suffix"), [("vpc", "vhd"), ("vhdx", "vhdx")])
@pytest.mark.parametrize("subformat", ["fixed", "dynamic"])
def test_images_of_others_are_sound(form: str, suffix: str, subformat: str, tmp_path: Path) -> None:
    raw, path = tmp_path / "guest.raw", tmp_path / f"disk.{suffix}"
    raw.write_bytes(b"guest" * 2_000_000)
    command = ["qemu-img", "convert", "-f", "raw", "-O", form, "-o", f"subformat={subformat}", raw, path]
    subprocess.run(command, check=True)
    assert check(path).findings == ()


def patch(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def table_entry(path: Path, block: int) -> int:
    with path.open("rb") as file:
        file.seek(1536 + 4 * block)
        return int.from_bytes(file.read(4), "big")


def harm_footer(path: Path) -> tuple[str, int]:
    patch(path, path.stat().st_size - 400, b"\xff")
    return "the footer", path.stat().st_size - 512


def harm_copy(path: Path) -> tuple[str, int]:
    patch(path, 70, b"\xff\xee\xdd")
    return "the footer's checksum of the copy", 64


def other_copy(path: Path) -> tuple[str, int]:
    raw = bytearray(path.read_bytes()[:512])
    raw[70] ^= 1
    struct.pack_into(">I", raw, 64, checksum(bytes(raw), 64))
    patch(path, 0, bytes(raw))
    return "the footer's copy", min(at for at in range(64, 71) if raw[at] != path.read_bytes()[-512 + at])


def harm_vhd_header(path: Path) -> tuple[str, int]:
    patch(path, 512 + 30, b"\x55")
    return "the dynamic header's checksum", 512 + 36


def block_beyond(path: Path) -> tuple[str, int]:
    patch(path, 1536 + 4, struct.pack(">I", 0x7FFFFFFF))
    return "an entry of the block allocation table", 1540


def block_twice(path: Path) -> tuple[str, int]:
    patch(path, 1536 + 8, struct.pack(">I", table_entry(path, 0)))
    return "a block", 1536 + 8


def block_over_table(path: Path) -> tuple[str, int]:
    patch(path, 1536 + 8, struct.pack(">I", 3))
    return "a block", 1536 + 8


@pytest.mark.parametrize(
    "harm",
    [harm_footer, harm_copy, other_copy, harm_vhd_header, block_beyond, block_twice, block_over_table],
)
def test_damage_to_a_vhd_is_told_with_its_place(
    harm: Callable[[Path], tuple[str, int]], tmp_path: Path
) -> None:
    path = image(tmp_path, Format.VHD_DYNAMIC)
    structure, offset = harm(path)
    found = check(path, Format.VHD_DYNAMIC)
    assert found.damaged
    assert ("damage", structure, offset) in told(found)
    answer = homeward("info", path, "--check", "--json", "--format", "vhd-dynamic")
    assert answer.code == 1
    assert (structure, offset) in [(each["structure"], each["offset"]) for each in answer.answer()["check"]]


def test_leaks_are_told_and_are_no_damage(tmp_path: Path) -> None:
    path = image(tmp_path, Format.VHD_DYNAMIC)
    lost = table_entry(path, 0) * 512
    patch(path, 1536, b"\xff" * 4)
    found = check(path)
    assert not found.damaged
    (leak,) = found.findings
    assert (leak.severity, leak.structure) == (Severity.LEAK, "room that nothing refers to")
    assert lost - 4096 < leak.offset <= lost
    answer = homeward("info", path, "--check")
    assert answer.code == 0
    assert "leak" in answer.stdout
    assert answer.stdout.endswith("check          sound\n")


BAT = 3 * MIB


def harm_header(path: Path) -> tuple[str, str, int]:
    patch(path, 64 * 1024 + 100, b"\xff")
    return "note", "the checksum of a header", 64 * 1024 + 4


def same_sequence(path: Path) -> tuple[str, str, int]:
    raw = bytearray(path.read_bytes()[: 132 * 1024])
    for slot in header_slots():
        raw[slot + 8 : slot + 16] = (7).to_bytes(8, "little")
        raw[slot : slot + 4096] = sealed(bytes(raw[slot : slot + 4096]))
    raw[64 * 1024 + 16] ^= 1
    raw[64 * 1024 : 68 * 1024] = sealed(bytes(raw[64 * 1024 : 68 * 1024]))
    patch(path, 0, bytes(raw))
    return "damage", "the headers", 64 * 1024 + 8


def harm_regions(path: Path) -> tuple[str, str, int]:
    patch(path, 256 * 1024 + 20, b"\xff")
    return "damage", "the checksum of a region table", 256 * 1024 + 4


def entry(path: Path, index: int) -> int:
    with path.open("rb") as file:
        file.seek(BAT + 8 * index)
        return int.from_bytes(file.read(8), "little")


def reserved_bits(path: Path) -> tuple[str, str, int]:
    patch(path, BAT + 24, (entry(path, 3) | 8).to_bytes(8, "little"))
    return "damage", "a BAT entry", BAT + 24


def undefined_state(path: Path) -> tuple[str, str, int]:
    patch(path, BAT + 32, (5).to_bytes(8, "little"))
    return "damage", "a BAT entry", BAT + 32


def partly_present(path: Path) -> tuple[str, str, int]:
    patch(path, BAT, (entry(path, 0) | 7).to_bytes(8, "little"))
    return "damage", "a BAT entry", BAT


def beyond(path: Path) -> tuple[str, str, int]:
    patch(path, BAT + 8, (2**63 | 6).to_bytes(8, "little"))
    return "damage", "a BAT entry", BAT + 8


def twice(path: Path) -> tuple[str, str, int]:
    patch(path, BAT + 8, entry(path, 0).to_bytes(8, "little"))
    return "damage", "a block", BAT + 8


def lost_block(path: Path) -> tuple[str, str, int]:
    where = entry(path, 3) & ~0xFFFFF
    patch(path, BAT + 24, bytes(8))
    return "leak", "room that nothing refers to", where


@pytest.mark.parametrize(
    "harm",
    [
        harm_header, same_sequence, harm_regions, reserved_bits, undefined_state, partly_present, beyond, twice,
        lost_block,
    ],
)  # fmt: skip
def test_findings_in_a_vhdx_are_told_with_their_place(
    harm: Callable[[Path], tuple[str, str, int]], tmp_path: Path
) -> None:
    path = image(tmp_path, Format.VHDX_DYNAMIC)
    severity, structure, offset = harm(path)
    found = check(path)
    assert (severity, structure, offset) in told(found)
    assert found.damaged == (severity == "damage")


def test_an_image_that_cannot_be_opened_has_its_reason_among_the_findings(tmp_path: Path) -> None:
    path = image(tmp_path, Format.VHDX_DYNAMIC)
    for slot in header_slots():
        patch(path, slot, b"nope")
    answer = homeward("info", path, "--check", "--json")
    assert answer.code == 1
    told_json = answer.answer()
    assert told_json["virtual_size"] is None
    (finding,) = told_json["check"]
    assert finding["severity"] == "damage"
    assert finding["offset"] == 64 * 1024
    assert {"structure", "found", "expected", "path"} < set(finding)
    assert homeward("info", path).refused("HW-DISKS-009")


def test_a_table_of_nonsense_is_told_up_to_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    create(path, Format.VHDX_DYNAMIC, 1024 * MIB).close()
    patch(path, BAT, (0x77_7777).to_bytes(8, "little") * 1000)
    found = check(path)
    assert len(found.findings) == CHECK_FINDINGS_MAX + 1
    assert found.findings[-1].severity is Severity.NOTE


def test_claims_of_one_structure_are_kept_as_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 20_000)
    backing = catalogue.open_source(path, Format.RAW)
    claims = Claims()
    for number in range(10):
        claims.add("a block", number * 1000, 1000, number)
    assert len(claims._starts) == 1
    claims.add("a header", 9_500, 100, 77)
    claims.add("a block", 19_500, 1000, 88)
    found = list(claims.findings(backing._backing))  # type: ignore[attr-defined]
    backing.close()
    assert [(each.structure, each.offset) for each in found] == [
        ("a header", 77),
        ("a block", 88),
        ("room that nothing refers to", 10_000),
    ]


@pytest.mark.parametrize(
    ("form", "options"), [("vmdk", ("-o", "subformat=streamOptimized")), ("qcow2", ("-c",))]
)
def test_compressed_content_that_cannot_be_unpacked_is_damage(
    form: str, options: tuple[str, ...], tmp_path: Path, dice: random.Random
) -> None:
    raw, path = tmp_path / "disk.raw", tmp_path / f"disk.{form}"
    raw.write_bytes(bytes(dice.choices(range(16), k=1 << 20)))  # deflates to a half
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", form, *options, raw, path], check=True)
    assert not check(path).damaged
    patch(
        path, path.stat().st_size // 2, b"\xff" * 65536
    )  # longer than one: a cluster's beginning is hit, too
    found = check(path)
    assert found.damaged
    assert "compressed" in found.findings[0].structure
    homeward("info", "--check", path, "--json").answer()
    assert homeward("info", "--check", path).code == 1


@pytest.mark.parametrize(
    "line",
    [
        'RW 2048 FLAT "made-flat.vmdk" 0000000000000000001',
        'RW 9223372036854775807 FLAT "made-flat.vmdk" 0',
        'RW 2048 FLAT "made-flat.vmdk" 1x',
        'RW 2048 FLAT "made-flat.vmdk" -1',
        'RW 2048x FLAT "made-flat.vmdk" 0',
        'RW 2048 FLAT "made-flat.vmdk"0',
    ],
)
def test_an_extent_line_that_says_something_else_is_named_and_not_cut(line: str, tmp_path: Path) -> None:
    create(tmp_path / "made.vmdk", Format.VMDK_MONOLITHIC_FLAT, 1 << 20).close()
    path = tmp_path / "made.vmdk"
    text = path.read_text()
    good = 'RW 2048 FLAT "made-flat.vmdk" 0'
    assert good in text
    path.write_text(text.replace(good, line))
    told = homeward("info", path, "--json").refused("HW-DISKS-009")
    assert line.replace('"', "") in told.replace('"', "").replace("\\", "")


def test_what_is_no_image_is_told_in_words_and_not_in_pythons(tmp_path: Path) -> None:
    path = tmp_path / "disk.vmdk"
    path.write_bytes(bytes(4096))
    assert "begins with 00 00 00 00 00 00 00 00" in homeward("info", path, "--json").refused("HW-DISKS-006")
