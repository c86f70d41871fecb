"""VHDX beyond what every disk promises: logs of others, block and sector sizes, tables that reach far, identity."""

import json
import os
import random
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dissect.hypervisor.disk import vhdx as dissect_vhdx

from disks.catalogue import Image, check, create, inspect, open_source, open_target
from disks.disk import Format
from disks.errors import FormatNotSupported, ImageDamaged
from disks.vhdx import create_with
from tests.fuzz.vhdx_images import header_slots, sealed
from tests.golden.disks.vhdx_log_recipe import GUID, LOG_AT, entry, name_log, put

MIB = 1024 * 1024
GIB = 1024 * MIB
SIZE = 40 * MIB + 512
QEMU_TABLE = 2 * MIB
OUR_TABLE = 3 * MIB


def content(path: Path) -> bytes:
    disk = open_source(path)
    into = bytearray(disk.size)
    disk.read(0, memoryview(into))
    disk.close()
    return bytes(into)


def findings(path: Path) -> list[tuple[str, str]]:
    """What is more than room that qemu left between its structures."""
    found = ((each.severity.value, each.structure) for each in check(path).findings)
    return [each for each in found if each[0] != "leak"]


def judged(path: Path, model: bytes, folder: Path) -> None:
    raw = folder / "model.raw"
    raw.write_bytes(model)
    subprocess.run(["qemu-img", "check", "-f", "vhdx", path], check=True, capture_output=True)
    subprocess.run(
        ["qemu-img", "compare", "-f", "vhdx", "-F", "raw", path, raw], check=True, capture_output=True
    )


def log_guids(path: Path) -> list[bytes]:
    raw = path.read_bytes()[: 132 * 1024]
    return [raw[at + 48 : at + 64] for at in header_slots()]


def current(path: Path) -> bytes:
    raw = path.read_bytes()[: 132 * 1024]
    return max((raw[at : at + 4096] for at in header_slots()), key=lambda header: header[8:16][::-1])


def qemu_io(path: Path, *commands: str) -> None:
    words = [word for command in commands for word in ("-c", command)]
    subprocess.run(["qemu-io", "-f", "vhdx", *words, path], check=True, capture_output=True)


@pytest.fixture
def waiting(tmp_path: Path) -> tuple[Path, bytes]:
    """An image of qemu's whose log holds qemu's own entry for a page of the table that was lost; and its content."""
    path = tmp_path / "disk.vhdx"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "vhdx", "-o", "block_size=1M", path, str(SIZE)], check=True
    )
    old_table = path.read_bytes()[QEMU_TABLE : QEMU_TABLE + 4096]
    qemu_io(path, "write -P 5 20m 70k")
    model = bytearray(SIZE)
    model[20 * MIB : 20 * MIB + 70 * 1024] = b"\5" * 70 * 1024
    raw = bytearray(path.read_bytes())
    assert raw[LOG_AT : LOG_AT + 4] == b"loge"
    raw[QEMU_TABLE : QEMU_TABLE + 4096] = old_table
    path.write_bytes(raw)
    assert content(path) == bytes(SIZE)
    name_log(path, bytes(raw[LOG_AT + 32 : LOG_AT + 48]))
    return path, bytes(model)


def test_a_source_shows_what_the_log_of_qemu_holds_and_stays_as_it_is(waiting: tuple[Path, bytes]) -> None:
    path, model = waiting
    before = path.read_bytes()
    assert content(path) == model
    source = open_source(path)
    assert sum(extent.length for extent in source.extents(0, SIZE) if extent.kind.value == "data") == MIB
    source.close()
    assert findings(path) == [("note", "the log")]
    assert path.read_bytes() == before


def test_a_target_replays_the_log_of_qemu_to_disk_first(waiting: tuple[Path, bytes], tmp_path: Path) -> None:
    path, model = waiting
    open_target(path).close()
    assert findings(path) == []
    assert current(path)[48:64] == bytes(16)
    judged(path, model, tmp_path)


def test_a_torn_entry_is_none(waiting: tuple[Path, bytes]) -> None:
    path, _ = waiting
    raw = bytearray(path.read_bytes())
    raw[LOG_AT + 5000] ^= 1
    path.write_bytes(raw)
    assert content(path) == bytes(SIZE)
    assert findings(path) == [("note", "the log")]


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A dynamic image of ours: blocks of 1 MiB, of which 0 and 7 hold something."""
    path = tmp_path / "disk.vhdx"
    disk = create(path, Format.VHDX_DYNAMIC, SIZE)
    disk.write(0, memoryview(b"a" * 512))
    disk.write(7 * MIB, memoryview(b"b" * 512))
    disk.flush()
    disk.close()
    return path


def table_page(path: Path) -> bytes:
    return path.read_bytes()[OUR_TABLE : OUR_TABLE + 4096]


def swapped(page: bytes) -> bytes:
    """The table's page with blocks 0 and 7 for each other."""
    entries = list(struct.unpack("<512Q", page))
    entries[0], entries[7] = entries[7], entries[0]
    return struct.pack("<512Q", *entries)


def test_sequences_wrap_and_the_newest_counts(ours: Path, tmp_path: Path) -> None:
    page, length = table_page(ours), ours.stat().st_size
    block = int.from_bytes(page[:8], "little") & ~0xFFFFF
    facts = {"flushed": length, "last": length + 3 * MIB}
    one = entry(2**32 + 5, 0xFD000, [(OUR_TABLE, bytes(4096))], **facts)  # two sectors: 0xFD000 to 0xFF000
    two = entry(2**32 + 6, 0xFD000, [(block, 8192), (OUR_TABLE, swapped(page))], **facts)  # goes on at 0
    three = entry(2**32 + 7, 0xFD000, [(block + 4096, b"c" * 4096)], **facts)
    stale = entry(2**32 + 3, 0x8000, [(OUR_TABLE, bytes(4096))], **facts)
    foreign = entry(2**40, 0x20000, [(OUR_TABLE, bytes(4096))], guid=b"x" * 16, **facts)
    put(ours, [(0xFD000, one), (0xFF000, two), (0x1000, three), (0x8000, stale), (0x20000, foreign)])
    name_log(ours)
    model = bytearray(SIZE)
    model[0:512] = b"b" * 512
    model[7 * MIB + 4096 : 7 * MIB + 8192] = b"c" * 4096
    assert content(ours) == bytes(model)
    target = open_target(ours)
    target.write(30 * MIB, memoryview(b"d" * 512))
    target.flush()
    target.close()
    model[30 * MIB : 30 * MIB + 512] = b"d" * 512
    judged(ours, bytes(model), tmp_path)
    assert ours.stat().st_size == length + 3 * MIB
    assert check(ours).findings == ()


@pytest.mark.parametrize(
    ("sectors", "structure"),
    [
        ([(64 * 1024, b"h" * 4096)], "a log entry's descriptor"),
        ([(LOG_AT + 8192, b"h" * 4096)], "a log entry's descriptor"),
        ([(OUR_TABLE + 512, b"h" * 4096)], "a log entry's descriptor"),
        ([(2**63, b"h" * 4096)], "a log entry's descriptor"),
        ([(OUR_TABLE, 2**64 - 4096)], "a log entry's descriptor"),
        ([(OUR_TABLE, 100)], "a log entry's descriptor"),
        ([(2 * MIB, b"h" * 4096)], "the metadata table"),
    ],
    ids=str,
)
def test_an_entry_that_writes_where_it_may_not_is_named(
    sectors: list[tuple[int, bytes | int]], structure: str, ours: Path
) -> None:
    put(ours, [(0, entry(1, 0, sectors, flushed=MIB, last=MIB))])
    name_log(ours)
    before = ours.read_bytes()
    for opener in (open_source, open_target, inspect):
        with pytest.raises(ImageDamaged) as caught:
            opener(ours)
        assert caught.value.structure == structure
    assert ours.read_bytes() == before


@pytest.mark.parametrize(("flushed", "last"), [(2**62, 0), (0, 2**63), (100 * MIB, 100 * MIB)])
def test_a_log_for_a_file_of_another_length_is_refused(flushed: int, last: int, ours: Path) -> None:
    put(ours, [(0, entry(1, 0, [(OUR_TABLE, table_page(ours))], flushed=flushed, last=last))])
    name_log(ours)
    with pytest.raises(ImageDamaged) as caught:
        open_target(ours)
    assert LOG_AT <= caught.value.offset < LOG_AT + 64


def test_a_log_of_entries_within_entries_ends_soon(tmp_path: Path) -> None:
    """Each sector says that it begins an entry as long as the ring: nothing is read over and over."""
    path = tmp_path / "disk.vhdx"
    create(path, Format.VHDX_DYNAMIC, 8 * MIB).close()
    raw = bytearray(path.read_bytes())
    head = struct.pack("<4sIIIQII", b"loge", 0, MIB, 0, 1, 1, 0) + GUID
    for at in range(LOG_AT, LOG_AT + MIB, 4096):
        raw[at : at + len(head)] = head
    path.write_bytes(raw)
    name_log(path)
    with pytest.raises(ImageDamaged, match="lie in each other"):
        open_source(path)


GEOMETRY = [(block, sector) for block in (1, 2, 32, 256) for sector in (512, 4096)]


@pytest.mark.parametrize(("block", "sector"), GEOMETRY)
def test_every_block_and_sector_size_reaches_over_its_sector_bitmaps(
    block: int, sector: int, tmp_path: Path
) -> None:
    """A chunk of payload entries is followed by one for a sector bitmap: at 4 GiB, or 32 GiB with large sectors."""
    path = tmp_path / "disk.vhdx"
    chunk = 2**23 * sector
    size = chunk + 3 * GIB + 7 * sector
    disk = create_with(path, Format.VHDX_DYNAMIC, size, block_bytes=block * MIB, sector_bytes=sector)
    pieces = {0: b"first", chunk - 3: b"border", chunk + 256 * MIB: b"behind", size - 5: b"final"}
    for at, word in pieces.items():
        disk.write(at, memoryview(word))
    disk.flush()
    disk.close()
    assert check(path).findings == ()
    again = open_source(path)
    with path.open("rb") as file:
        foreign = dissect_vhdx.VHDX(file)
        assert (foreign.size, foreign.sector_size, foreign.block_size) == (size, sector, block * MIB)
        for at, word in pieces.items():
            into = bytearray(len(word))
            again.read(at, memoryview(into))
            foreign.seek(at)
            assert into == word == foreign.read(len(word))
    again.close()
    if sector == 512:  # qemu knows no other
        subprocess.run(["qemu-img", "check", "-f", "vhdx", path], check=True, capture_output=True)
        told = json.loads(subprocess.check_output(["qemu-img", "map", "--output=json", "-f", "vhdx", path]))
        for at in pieces:
            assert any(each["data"] and each["start"] <= at < each["start"] + each["length"] for each in told)


def test_an_entry_of_this_recipe_is_replayed_by_qemu_too(ours: Path, tmp_path: Path) -> None:
    length = ours.stat().st_size
    put(ours, [(0, entry(5, 0, [(OUR_TABLE, swapped(table_page(ours)))], flushed=length, last=length))])
    name_log(ours)
    model = bytearray(SIZE)
    model[0:512], model[7 * MIB : 7 * MIB + 512] = b"b" * 512, b"a" * 512
    assert content(ours) == bytes(model)
    subprocess.run(["qemu-img", "check", "-r", "all", "-f", "vhdx", ours], check=True, capture_output=True)
    judged(ours, bytes(model), tmp_path)


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory on tmpfs, whose files may be as long as a VHDX gets."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.mark.parametrize("kind", [Format.VHDX_FIXED, Format.VHDX_DYNAMIC], ids=lambda kind: kind.value)
def test_64_tib_stay_sparse(kind: Format, memory: Path) -> None:
    size = 64 * 1024 * GIB
    path = memory / "disk.vhdx"
    disk = create(path, kind, size)
    for at in (0, size // 2 + 5, size - 512):
        disk.write(at, memoryview(b"far" * 100))
    disk.flush()
    disk.close()
    assert path.stat().st_blocks * 512 < (64 if kind is Format.VHDX_FIXED else 4) * MIB
    again = open_target(path)
    into = bytearray(512)
    again.read(size - 512, memoryview(into))
    assert into == (b"far" * 100).ljust(512, b"\0")
    # A page beside each of the three writes is in the file system's hands.
    held = [each for each in again.extents(size - GIB, GIB) if each.kind.value == "data"]
    assert sum(each.length for each in held) <= 4096
    again.close()
    reading = ["qemu-io", "-f", "vhdx", "-r", "-c", f"read -P 0x66 {size - 512} 1", path]
    if kind is Format.VHDX_DYNAMIC:
        subprocess.run(reading, check=True, capture_output=True)
    with path.open("rb") as file:
        foreign = dissect_vhdx.VHDX(file)
        foreign.seek(size // 2 + 5)
        assert foreign.read(6) == b"farfar"


def test_a_fixed_image_of_qemu_keeps_its_length_when_written_to(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    options = ["-f", "vhdx", "-o", "subformat=fixed,block_size=1M"]
    subprocess.run(["qemu-img", "create", "-q", *options, path, str(SIZE)], check=True)
    length = path.stat().st_size
    disk = open_target(path)
    model = bytearray(SIZE)
    dice = random.Random(1)
    for number in range(12):
        at = dice.randrange(SIZE - 100_000)
        disk.write(at, memoryview(bytes([number + 1]) * 100_000))
        model[at : at + 100_000] = bytes([number + 1]) * 100_000
    disk.flush()
    disk.close()
    assert path.stat().st_size == length
    judged(path, bytes(model), tmp_path)


def test_write_guids_change_once_an_opening_and_identity_stays(ours: Path) -> None:
    def guids() -> tuple[bytes, bytes]:
        header = current(ours)
        return header[16:32], header[32:48]

    identity = ours.read_bytes()[2 * MIB : 2 * MIB + 128 * 1024]
    before = guids()
    marks = set()
    for change in (write, zero):
        disk = open_target(ours)
        assert guids() == before
        assert disk.change_mark is not None
        marks.add(disk.change_mark)
        change(disk)
        first = guids()
        assert all(one != two for one, two in zip(before, first, strict=True))
        assert disk.change_mark not in marks
        change(disk)
        disk.flush()
        change(disk)
        disk.close()
        assert guids() == first
        before = first
    assert ours.read_bytes()[2 * MIB : 2 * MIB + 128 * 1024] == identity
    assert set(log_guids(ours)) != {GUID}


def write(disk: Image) -> None:
    disk.write(5 * MIB, memoryview(b"w" * 512))


def zero(disk: Image) -> None:
    disk.zero(7 * MIB, 512)


def harmed_region(raw: bytearray) -> None:
    raw[192 * 1024 + 16 : 192 * 1024 + 20] = b"\1\2\3\4"  # a region that nobody knows, and required
    raw[192 * 1024 + 44] = 1


def overlapping_regions(raw: bytearray) -> None:
    raw[192 * 1024 + 32 : 192 * 1024 + 40] = raw[192 * 1024 + 64 : 192 * 1024 + 72]


def region_over_log(raw: bytearray) -> None:
    raw[192 * 1024 + 32 : 192 * 1024 + 40] = MIB.to_bytes(8, "little")


def region_beyond(raw: bytearray) -> None:
    raw[192 * 1024 + 64 : 192 * 1024 + 72] = (2**62).to_bytes(8, "little")


@pytest.mark.parametrize("harm", [harmed_region, overlapping_regions, region_over_log, region_beyond])
def test_regions_that_cannot_be_are_named_with_their_entry(
    harm: Callable[[bytearray], None], ours: Path
) -> None:
    raw = bytearray(ours.read_bytes())
    harm(raw)
    raw[192 * 1024 : 256 * 1024] = sealed(bytes(raw[192 * 1024 : 256 * 1024]))
    ours.write_bytes(raw)
    with pytest.raises(ImageDamaged) as caught:
        open_source(ours)
    assert 192 * 1024 <= caught.value.offset < 193 * 1024 or caught.value.offset % (64 * 1024) == 68


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (0, (3 * MIB).to_bytes(4, "little")),
        (0, (512 * MIB).to_bytes(4, "little")),
        (8, (0).to_bytes(8, "little")),
        (8, (513).to_bytes(8, "little")),
        (8, (2**63).to_bytes(8, "little")),
        (8, (2**32 * 1000).to_bytes(8, "little")),  # a table that its region has no room for
        (32, (1024).to_bytes(4, "little")),
    ],
)
def test_metadata_that_cannot_be_is_named_with_its_place(at: int, value: bytes, ours: Path) -> None:
    with ours.open("r+b") as file:
        os.pwrite(file.fileno(), value, 2 * MIB + 64 * 1024 + at)
    with pytest.raises(ImageDamaged) as caught:
        open_source(ours)
    assert caught.value.offset in (2 * MIB + 64 * 1024 + at, 192 * 1024 + 48 + 24)


def test_a_differencing_vhdx_is_refused(ours: Path) -> None:
    with ours.open("r+b") as file:
        os.pwrite(file.fileno(), (2).to_bytes(4, "little"), 2 * MIB + 64 * 1024 + 4)
    for told in (None, Format.VHDX_DYNAMIC):
        with pytest.raises(Exception, match="differencing VHDX") as caught:
            open_source(ours, told)
        assert hasattr(caught.value, "code")
    with pytest.raises(FormatNotSupported):
        open_source(ours)
