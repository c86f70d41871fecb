"""The bytes of a VHD: footer, dynamic header, geometry, block allocation table, sector bitmaps.

Source: Microsoft, "Virtual Hard Disk Image Format Specification", version 1.0 (October 11, 2006); section names are
given with each structure. All integers are big-endian. Pure: no input or output.
"""

import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from disks import magic
from disks.layout import Malformed
from drcore.limits import GIB

SECTOR: Final = 512
COOKIE: Final = magic.VHD
DYNAMIC_COOKIE: Final = b"cxsparse"
FOOTER_BYTES: Final = 512
OLD_FOOTER_BYTES: Final = 511
"""Creators before Virtual PC 2004 wrote a footer of 511 bytes ("Hard Disk Footer Format")."""
DYNAMIC_BYTES: Final = 1024
UNUSED: Final = 0xFFFFFFFF
"""BAT entry of a block that is not in the file ("Block Allocation Table and Data Blocks")."""
NO_OFFSET: Final = 0xFFFFFFFFFFFFFFFF
VERSION: Final = 0x00010000
SIZE_MAX: Final = 2040 * GIB
"""The largest disk that Virtual PC and Hyper-V take; its file stays below the 2 TiB that a BAT entry can name."""
BLOCK_BYTES: Final = 2 * 1024 * 1024
"""The specification's default block size."""
BLOCK_BYTES_MIN: Final = 4096
BLOCK_BYTES_MAX: Final = 256 * 1024 * 1024

# cookie, features, version, data offset, time stamp, creator application, creator version, creator host,
# original size, current size, cylinders, heads, sectors, disk type, checksum, unique id, saved state
_FOOTER: Final = struct.Struct(">8sIIQI4sI4sQQHBBII16sB")
_CHECKSUM_AT: Final = 64
# cookie, data offset, table offset, header version, max table entries, block size, checksum, parent id, parent time
_DYNAMIC: Final = struct.Struct(">8sQQIIII16sI")
_DYNAMIC_CHECKSUM_AT: Final = 36
# platform code, data space, data length, reserved, data offset
_LOCATOR: Final = struct.Struct(">4sIIIQ")
_LOCATORS_AT: Final = 576
LOCATORS: Final = 8
RELATIVE: Final = b"W2ru"
"""Platform code: a path relative to the child's, UTF-16."""
ABSOLUTE: Final = b"W2ku"
"""Platform code: an absolute path, UTF-16."""

# qemu and others take the size from the geometry, which is rounded, unless the creator is known to mean the field
# "current size"; Hyper-V's name is known to all of them.
CREATOR: Final = b"win "
CREATOR_VERSION: Final = 0x000A0000
CREATOR_HOST: Final = b"Wi2k"


class DiskType(IntEnum):
    """ "Hard Disk Footer Format", disk type; the others are reserved or deprecated."""

    FIXED = 2
    DYNAMIC = 3
    DIFFERENCING = 4


@dataclass(frozen=True, slots=True)
class Footer:
    """What is used of a footer, and its bytes as they were, because an existing image keeps its identity."""

    disk_type: DiskType
    current_size: int
    data_offset: int
    creator: bytes
    unique_id: bytes
    raw: bytes
    time_stamp: int = 0
    """Seconds since 2000-01-01T00:00Z."""


@dataclass(frozen=True, slots=True)
class Locator:
    """ "Dynamic Disk Header Format", parent locator entry: where a name of the parent stands, and of what kind."""

    platform: bytes
    length: int
    offset: int
    named_at: int
    """The offset of the entry."""


@dataclass(frozen=True, slots=True)
class Dynamic:
    """What is used of a dynamic disk header."""

    table_offset: int
    entries: int
    block_bytes: int
    parent_id: bytes = bytes(16)
    parent_time: int = 0
    locators: tuple[Locator, ...] = ()

    @property
    def bitmap_bytes(self) -> int:
        """Bytes of a block's sector bitmap: one bit a sector, padded to whole sectors."""
        return -(-self.block_bytes // (SECTOR * 8 * SECTOR)) * SECTOR


def checksum(structure: bytes, at: int) -> int:
    """The one's complement of the sum of all bytes but the checksum's own four at `at`."""
    return ~(sum(structure) - sum(structure[at : at + 4])) & 0xFFFFFFFF


def decode_footer(structure: bytes, offset: int) -> Footer:
    """The footer in 512 or 511 bytes found at `offset`; raises Malformed."""
    raw = structure.ljust(FOOTER_BYTES, b"\0")[:FOOTER_BYTES]
    fields = _FOOTER.unpack_from(raw)
    cookie, version, data_offset, creator = fields[0], fields[2], fields[3], fields[5]
    if cookie != COOKIE:
        raise Malformed("the footer", offset, repr(bytes(cookie)), repr(COOKIE))
    if fields[14] != checksum(raw, _CHECKSUM_AT):
        raise Malformed(
            "the footer's checksum", offset + _CHECKSUM_AT, hex(fields[14]), hex(checksum(raw, _CHECKSUM_AT))
        )
    if version >> 16 != VERSION >> 16:
        raise Malformed("the footer's version", offset + 12, hex(version), hex(VERSION))
    try:
        disk_type = DiskType(fields[13])
    except ValueError as error:
        raise Malformed("the disk type", offset + 60, str(fields[13]), "2, 3 or 4") from error
    size = fields[9]
    if size % SECTOR or not 0 < size <= SIZE_MAX:
        raise Malformed(
            "the current size", offset + 48, str(size), f"whole sectors, at most {SIZE_MAX} bytes"
        )
    return Footer(disk_type, size, data_offset, creator, fields[15], raw, fields[4])


def encode_footer(disk_type: DiskType, size: int, unique_id: bytes, seconds: int) -> bytes:
    """A new image's footer; `seconds` since 2000-01-01T00:00Z."""
    cylinders, heads, sectors = geometry(size // SECTOR)
    fixed = disk_type is DiskType.FIXED
    raw = bytearray(FOOTER_BYTES)
    _FOOTER.pack_into(
        raw, 0,
        COOKIE, 2, VERSION, NO_OFFSET if fixed else FOOTER_BYTES, seconds & 0xFFFFFFFF, CREATOR, CREATOR_VERSION,
        CREATOR_HOST, size, size, cylinders, heads, sectors, disk_type, 0, unique_id, 0,
    )  # fmt: skip
    struct.pack_into(">I", raw, _CHECKSUM_AT, checksum(bytes(raw), _CHECKSUM_AT))
    return bytes(raw)


def decode_dynamic(structure: bytes, offset: int) -> Dynamic:
    """The dynamic disk header found at `offset` ("Dynamic Disk Header Format"); raises Malformed."""
    cookie, _, table, version, entries, block, found, parent_id, parent_time = _DYNAMIC.unpack_from(structure)
    if cookie != DYNAMIC_COOKIE:
        raise Malformed("the dynamic header", offset, repr(bytes(cookie)), repr(DYNAMIC_COOKIE))
    wanted = checksum(structure[:DYNAMIC_BYTES], _DYNAMIC_CHECKSUM_AT)
    if found != wanted:
        raise Malformed(
            "the dynamic header's checksum", offset + _DYNAMIC_CHECKSUM_AT, hex(found), hex(wanted)
        )
    if version >> 16 != VERSION >> 16:
        raise Malformed("the dynamic header's version", offset + 24, hex(version), hex(VERSION))
    if block & (block - 1) or not BLOCK_BYTES_MIN <= block <= BLOCK_BYTES_MAX:
        raise Malformed(
            "the block size", offset + 32, str(block), f"a power of two from {BLOCK_BYTES_MIN} on"
        )
    if table % SECTOR or table < SECTOR:
        raise Malformed("the table offset", offset + 16, str(table), "whole sectors behind the footer's copy")
    return Dynamic(table, entries, block, parent_id, parent_time, tuple(_locators(structure, offset)))


def _locators(structure: bytes, offset: int) -> Iterator[Locator]:
    """The entries that are in use."""
    for number in range(LOCATORS):
        at = _LOCATORS_AT + number * _LOCATOR.size
        platform, _, length, _, place = _LOCATOR.unpack_from(structure, at)
        if platform != bytes(4):
            yield Locator(platform, length, place, offset + at)


def decode_parent_name(raw: bytes, offset: int) -> str:
    """The name that a locator of the kinds RELATIVE and ABSOLUTE points to: UTF-16, little-endian. Raises Malformed."""
    try:
        return raw.decode("utf-16-le").rstrip("\0")
    except UnicodeDecodeError as error:
        raise Malformed("a parent locator's name", offset, repr(raw[:32]), "UTF-16") from error


def encode_dynamic(header: Dynamic) -> bytes:
    """A new image's dynamic header."""
    raw = bytearray(DYNAMIC_BYTES)
    _DYNAMIC.pack_into(
        raw, 0, DYNAMIC_COOKIE, NO_OFFSET, header.table_offset, VERSION, header.entries, header.block_bytes, 0,
        bytes(16), 0,
    )  # fmt: skip
    struct.pack_into(">I", raw, _DYNAMIC_CHECKSUM_AT, checksum(bytes(raw), _DYNAMIC_CHECKSUM_AT))
    return bytes(raw)


def geometry(sectors: int) -> tuple[int, int, int]:
    """Cylinders, heads, sectors per track of a disk of so many sectors ("Appendix: CHS Calculation")."""
    sectors = min(sectors, 65535 * 16 * 255)
    if sectors >= 65535 * 16 * 63:
        return sectors // 255 // 16, 16, 255
    track = 17
    rows = sectors // track
    heads = max(4, (rows + 1023) // 1024)
    if rows >= heads * 1024 or heads > 16:
        track, heads = 31, 16
        rows = sectors // track
    if rows >= heads * 1024:
        track, heads = 63, 16
        rows = sectors // track
    return rows // heads, heads, track


def decode_table(raw: bytes) -> "array[int]":
    """The BAT's entries: the sector in the file at which each block's bitmap begins, or UNUSED."""
    table = array("I", raw)
    if sys.byteorder == "little":
        table.byteswap()
    return table


def encode_table(table: "array[int]") -> bytes:
    """The BAT's entries as they lie in the file."""
    raw = array("I", table)
    if sys.byteorder == "little":
        raw.byteswap()
    return raw.tobytes()


def bitmap_runs(bitmap: bytes, sectors: int) -> list[tuple[int, int, bool]]:
    """(first sector, sectors, whether data) runs of a sector bitmap; its highest bit is the first sector."""
    bits = format(int.from_bytes(bitmap, "big"), f"0{len(bitmap) * 8}b")[:sectors]
    runs = []
    first = 0
    while first < sectors:
        end = bits.find("0" if bits[first] == "1" else "1", first)
        end = sectors if end < 0 else end
        runs.append((first, end - first, bits[first] == "1"))
        first = end
    return runs
