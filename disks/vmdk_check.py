"""What `info --check` looks at in a VMDK: tables, twins, places taken twice or by nobody, every extent and parent.

Source: VMware, "Virtual Disk Format 5.0"; which section, say the layout modules.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from disks import vmdk_delta_layout, vmdk_layout, vmdk_stream_layout
from disks.backing import Backing
from disks.check import Claims, Finding, Severity, damage, note
from disks.disk import Format
from disks.errors import ImageDamaged
from disks.layout import Malformed
from disks.table_layer import Entries
from disks.vmdk_chain import EXTENT_KINDS, open_parent, read_told
from disks.vmdk_extents import check_lines, identity_of, open_named
from disks.vmdk_grains import ZERO, GrainLayer, cowd_layer, hosted_layer, sesparse_layer
from disks.vmdk_layout import (
    HEADER_BYTES,
    NO_PARENT,
    SECTOR,
    TABLE_BYTES,
    Descriptor,
    ExtentLine,
    SparseHeader,
)

UNCLEAN_AT: Final = 72
CLEAN: Final = "nought, as after an orderly end"


def check_vmdk(backing: Backing, kind: Format) -> Iterator[Finding]:
    """What is wrong with the image and every image below it. Errors: as opening them."""
    told = read_told(backing, kind)
    yield from _image(backing, kind, told)
    child, seen = backing, {identity_of(backing)}
    try:
        while told.parent_cid != NO_PARENT:
            parent, kind, told = open_parent(child, told, seen)
            if child is not backing:
                child.close()
            child = parent
            yield from _named(child.path.name, _image(child, kind, told))
    finally:
        if child is not backing:
            child.close()


def _named(name: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """The findings, told of the file `name`; a structure that stops the check of this file is its last one."""
    try:
        for each in findings:
            yield each if each.path else replace(each, path=name)
    except (Malformed, ImageDamaged) as error:
        yield Finding(Severity.DAMAGE, error.structure, error.offset, error.seen, error.wanted, name)


def _image(backing: Backing, kind: Format, told: Descriptor) -> Iterator[Finding]:
    if kind not in EXTENT_KINDS:
        yield from _hosted(backing)
        return
    check_lines(backing.path, told, (*EXTENT_KINDS[kind], "ZERO"), writable=False)
    for line in told.extents:
        if line.kind != "ZERO":
            extent = open_named(backing.path, line.name, backing.access)
            try:
                yield from _named(line.name, EXTENTS[line.kind](extent, line))
            finally:
                extent.close()


def _flat(extent: Backing, line: ExtentLine) -> Iterator[Finding]:
    wanted = f"{line.sectors} sectors from sector {line.offset} on, as its descriptor says"
    needed = (line.offset + line.sectors) * SECTOR
    if extent.size < needed:
        yield damage("the extent's length", 0, f"{extent.size} bytes", wanted)
    elif extent.size > needed and not line.offset:
        yield note("the extent's length", needed, f"{extent.size - needed} bytes more", wanted)


def _sparse(extent: Backing, line: ExtentLine) -> Iterator[Finding]:
    yield from _capacity(hosted_layer(extent), line)
    yield from _hosted(extent)


def _capacity(layer: GrainLayer, line: ExtentLine) -> Iterator[Finding]:
    if layer.grains.capacity != line.sectors:
        seen = f"{layer.grains.capacity} sectors"
        yield damage("the capacity", 12, seen, f"{line.sectors}, as the descriptor says")


def _hosted(backing: Backing) -> Iterator[Finding]:
    """A hosted sparse or stream-optimized extent."""
    layer = hosted_layer(backing)
    raw = backing.read_bytes(0, HEADER_BYTES)
    header = vmdk_layout.decode_header(raw)
    claims = Claims()
    claims.add("the header", 0, HEADER_BYTES, 0)
    if header.descriptor_offset:
        claims.add("the descriptor", header.descriptor_offset * SECTOR, header.descriptor_size * SECTOR, 28)
    if header.stream:
        end = backing.size - vmdk_stream_layout.FOOTER_FROM_END
        header = vmdk_stream_layout.find_footer(header, backing.size, backing.read_bytes)
        claims.add("the footer", end, vmdk_stream_layout.FOOTER_FROM_END, end)
        yield from _tables(layer, claims, header.directory, packed=True)
    else:
        if raw[UNCLEAN_AT]:
            yield note("the header's mark of an unclean shutdown", UNCLEAN_AT, str(raw[UNCLEAN_AT]), CLEAN)
        yield from _tables(layer, claims, header.directory)
        if header.redundant:
            yield from _twins(backing, header, layer, claims)
    yield from claims.findings(backing, header.overhead * SECTOR)


def _tables(layer: GrainLayer, claims: Claims, directory: int, *, packed: bool = False) -> Iterator[Finding]:
    """Directory, tables and grains claim their places; a table that cannot be believed is told and passed over."""
    grains, backing = layer.grains, layer.backing
    claims.add(
        "the grain directory", directory * SECTOR, len(grains.directory) * grains.directory.itemsize, 56
    )
    for number, entry in enumerate(grains.directory):
        if not entry:
            continue
        try:
            place = grains.table_place(number)
            named_at = directory * SECTOR + number * grains.directory.itemsize
            claims.add("a grain table", place * SECTOR, grains.table_bytes, named_at)
            table = layer.table(number)
            assert table is not None
            yield from _claim_grains(layer, claims, number, table, packed=packed)
        except (Malformed, ImageDamaged) as error:
            yield damage(error.structure, error.offset, error.seen, error.wanted)
    if grains.first * SECTOR > backing.size:
        yield damage(
            "the overhead", 64, f"{grains.first} sectors", f"at most the file's {backing.size} bytes"
        )


def _claim_grains(
    layer: GrainLayer,
    claims: Claims,
    number: int,
    table: Entries,
    *,
    packed: bool,
) -> Iterator[Finding]:
    """The table's grains claim their places. A compressed one is unpacked: nothing else tells that it can be read."""
    grains = layer.grains
    base = grains.table_place(number) * SECTOR
    width = grains.table_bytes // grains.table_entries
    for index, place in enumerate(table):
        if place > ZERO:
            sector = (number * grains.table_entries + index) * grains.grain
            start, room = place * SECTOR, grains.grain * SECTOR
            if packed:
                try:
                    room = vmdk_stream_layout.GRAIN_MARKER_BYTES + layer.packed_length(start, sector)
                    layer.unpacked_grain(start, sector * SECTOR)
                except ImageDamaged as error:
                    yield damage(error.structure, error.offset, error.seen, error.wanted)
                    continue
            elif sector + grains.grain > grains.capacity:  # the end of the file may cut the disk's last grain
                room = min(room, max((grains.capacity - sector) * SECTOR, layer.backing.size - start))
            claims.add("a grain", start, room, base + index * width)


def _twins(backing: Backing, header: SparseHeader, layer: GrainLayer, claims: Claims) -> Iterator[Finding]:
    """The redundant directory and its tables say what the others say; a power cut leaves twins that differ."""
    start, size = header.redundant_directory * SECTOR, header.tables * 4
    claims.add("the redundant grain directory", start, size, 48)
    if start + size > backing.size:
        return  # its claim says so
    twins = vmdk_layout.decode_entries(backing.read_bytes(start, size))
    for number, (one, other) in enumerate(zip(layer.grains.directory, twins, strict=True)):
        if bool(one) != bool(other):
            seen, wanted = f"sector {other}", "a table in both directories or in none"
            yield damage("an entry of the redundant grain directory", start + number * 4, seen, wanted)
        if not other:
            continue
        claims.add("a redundant grain table", other * SECTOR, TABLE_BYTES, start + number * 4)
        inside = max(one, other) * SECTOR + TABLE_BYTES <= backing.size
        if (
            one
            and inside
            and backing.read_bytes(one * SECTOR, TABLE_BYTES)
            != backing.read_bytes(other * SECTOR, TABLE_BYTES)
        ):
            wanted = f"what its twin at {one * SECTOR} says; the next writer makes them one"
            yield note("a redundant grain table", other * SECTOR, "other entries", wanted)


def _cowd(extent: Backing, line: ExtentLine) -> Iterator[Finding]:
    layer = cowd_layer(extent)
    yield from _capacity(layer, line)
    header = vmdk_delta_layout.decode_cowd(extent.read_bytes(0, vmdk_delta_layout.COWD_HEADER_BYTES))
    if header.unclean:
        yield note(
            "the header's mark of an unclean shutdown", vmdk_delta_layout.COWD_UNCLEAN_AT, "set", CLEAN
        )
    claims = Claims()
    claims.add("the header", 0, vmdk_delta_layout.COWD_HEADER_BYTES, 0)
    yield from _tables(layer, claims, header.directory)
    yield from claims.findings(extent, layer.grains.first * SECTOR)


def _sesparse(extent: Backing, line: ExtentLine) -> Iterator[Finding]:
    layer = sesparse_layer(extent)
    yield from _capacity(layer, line)
    header = vmdk_delta_layout.decode_se(extent.read_bytes(0, vmdk_delta_layout.SE_HEADER_BYTES))
    claims = Claims()
    claims.add("the header", 0, vmdk_delta_layout.SE_HEADER_BYTES, 0)
    for index, name in enumerate(vmdk_delta_layout.SE_REGIONS):
        place, size = header.regions[name]
        if size and name not in ("grain directory", "grain tables", "grains"):
            claims.add(f"the {name}", place * SECTOR, size * SECTOR, 80 + index * 16)
    yield from _tables(layer, claims, header.regions["grain directory"][0])
    # Tables and grains that no entry names are given out in advance there: room, not a leak.
    yield from (found for found in claims.findings(extent) if found.severity is not Severity.LEAK)


EXTENTS: Final[dict[str, Callable[[Backing, ExtentLine], Iterator[Finding]]]] = {
    "FLAT": _flat,
    "VMFS": _flat,
    "SPARSE": _sparse,
    "VMFSSPARSE": _cowd,
    "SESPARSE": _sesparse,
}
"""What is looked at in an extent of each kind that a descriptor may name."""
