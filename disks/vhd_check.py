"""What is wrong with a VHD's structure: both footers, header, table, where blocks lie, what nothing refers to.

Source: the VHD specification 1.0, sections as named in `vhd_layout`.
"""

from collections.abc import Generator, Iterator

from disks import vhd_layout
from disks.backing import Backing
from disks.check import Claims, Finding, damage, note
from disks.disk import Format
from disks.layout import Malformed
from disks.structures import vhd_footer
from disks.vhd_layout import DYNAMIC_BYTES, FOOTER_BYTES, SECTOR, UNUSED, Dynamic, Footer
from drcore.limits import VHD_TABLE_BYTES_MAX


def check_fixed(backing: Backing, kind: Format) -> Iterator[Finding]:
    """The footer and what it says of the file."""
    found = vhd_footer(backing)
    if found is None:
        yield damage("the footer", max(0, backing.size - FOOTER_BYTES), "none that is sound", "a footer")
        return
    footer, length = found
    at = backing.size - length
    yield from _geometry(footer, at)
    if footer.current_size > at:
        yield damage("the current size", at + 48, str(footer.current_size), f"at most {at} bytes of data")
        return
    claims = Claims()
    claims.add("the disk", 0, footer.current_size, at + 48)
    claims.add("the footer", at, length, at)
    yield from claims.findings(backing)


def check_dynamic(backing: Backing, kind: Format) -> Iterator[Finding]:
    """Both footers, the header, the table and every block's place; of a differencing image the locators' too."""
    found = vhd_footer(backing)
    if found is None:
        seen = "none that is sound; the copy at the start is used instead"
        yield damage("the footer", max(0, backing.size - FOOTER_BYTES), seen, "a footer")
    footer = yield from _copy(backing, found[0] if found is not None else None)
    end = backing.size - found[1] if found is not None else backing.size
    yield from _geometry(footer, end)
    if footer.data_offset % SECTOR or footer.data_offset + DYNAMIC_BYTES > end:
        yield damage("the footer's data offset", end + 16, str(footer.data_offset), "sectors within the file")
        return
    raw = backing.read_bytes(footer.data_offset, DYNAMIC_BYTES)
    header = vhd_layout.decode_dynamic(raw, footer.data_offset)
    yield from _table(backing, footer, header, end)


def _copy(backing: Backing, footer: Footer | None) -> Generator[Finding, None, Footer]:
    """The copy at the start; answers the footer that counts."""
    try:
        copy = vhd_layout.decode_footer(backing.read_bytes(0, min(backing.size, FOOTER_BYTES)), 0)
    except Malformed as error:
        if footer is None:
            raise
        yield damage(f"{error.structure} of the copy", error.offset, error.seen, error.wanted)
        return footer
    if footer is None:
        return copy
    # The last byte is missing where the creator wrote footers of 511 bytes.
    if copy.raw[:511] != footer.raw[:511]:
        first = next(at for at in range(511) if copy.raw[at] != footer.raw[at])
        yield damage("the footer's copy", first, "other bytes than in the footer", "the same")
    return footer


def _geometry(footer: Footer, at: int) -> Iterator[Finding]:
    """Cylinders, heads and sectors per track name a disk that is not larger than the current size."""
    cylinders, heads, sectors = int.from_bytes(footer.raw[56:58], "big"), footer.raw[58], footer.raw[59]
    named = cylinders * heads * sectors * SECTOR
    if named > footer.current_size and (cylinders, heads) != (65535, 16):
        yield note("the geometry", at + 56, f"a disk of {named} bytes", f"at most {footer.current_size}")


def _table(backing: Backing, footer: Footer, header: Dynamic, end: int) -> Iterator[Finding]:
    blocks = -(-footer.current_size // header.block_bytes)
    if header.entries < blocks:
        at = footer.data_offset + 28
        yield damage("the number of table entries", at, str(header.entries), f"at least {blocks}")
        return
    if blocks * 4 > VHD_TABLE_BYTES_MAX or header.table_offset + blocks * 4 > end:
        seen = f"{blocks * 4} bytes before byte {end}"
        yield damage("the block allocation table", header.table_offset, seen, "a table within the file")
        return
    claims = Claims()
    claims.add("the footer's copy", 0, FOOTER_BYTES, 0)
    claims.add("the dynamic header", footer.data_offset, DYNAMIC_BYTES, 16)
    table_bytes = -(-header.entries * 4 // SECTOR) * SECTOR
    claims.add("the block allocation table", header.table_offset, table_bytes, footer.data_offset + 16)
    if end < backing.size:
        claims.add("the footer", end, backing.size - end, end)
    for locator in header.locators:
        if locator.offset + locator.length > end:
            place = f"{locator.length} bytes at {locator.offset}"
            yield damage("a parent locator", locator.named_at, place, "a name within the file")
        elif locator.length:
            claims.add("a parent locator", locator.offset, locator.length, locator.named_at)
    stride = header.bitmap_bytes + header.block_bytes
    table = vhd_layout.decode_table(backing.read_bytes(header.table_offset, blocks * 4))
    for block, entry in enumerate(table):
        if entry == UNUSED:
            continue
        at = header.table_offset + block * 4
        if entry * SECTOR + stride > end:
            yield damage(
                "an entry of the block allocation table", at, f"sector {entry}", f"a block before byte {end}"
            )
        else:
            claims.add("a block", entry * SECTOR, stride, at)
    yield from claims.findings(backing)
