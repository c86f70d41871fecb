"""The bytes of a VHDX: headers, region table, metadata, block allocation table.

Source: Microsoft, "[MS-VHDX]: Virtual Hard Disk v2 (VHDX) File Format"; section numbers are given with each structure.
All integers are little-endian, GUIDs in Microsoft's mixed order. Pure: no input or output.
"""

import struct
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from _native.crc32c import crc32c
from disks import magic
from disks.layout import Malformed
from drcore.limits import DISK_BYTES_MAX, KIB, MIB

ALIGNMENT: Final = MIB
"""Regions, the log and blocks begin at whole megabytes, and so does the end of the file (2.1)."""
CREATOR: Final = "homeward"
HEADERS_AT: Final = (64 * KIB, 128 * KIB)
HEADER_BYTES: Final = 4 * KIB
REGION_TABLES_AT: Final = (192 * KIB, 256 * KIB)
REGION_TABLE_BYTES: Final = 64 * KIB
HEAD_BYTES: Final = MIB
"""Header section: file identifier, two headers, two region tables, reserved (2.2)."""
ENTRIES_MAX: Final = 2047
"""Entries of a region table or a metadata table (2.2.3.1, 2.6.1.1)."""
NO_GUID: Final = uuid.UUID(int=0)

BAT_REGION: Final = uuid.UUID("2DC27766-F623-4200-9D64-115E9BFD4A08")
METADATA_REGION: Final = uuid.UUID("8B7CA206-4790-4B9A-B8FE-575F050F886E")

FILE_PARAMETERS: Final = uuid.UUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
VIRTUAL_DISK_SIZE: Final = uuid.UUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
VIRTUAL_DISK_ID: Final = uuid.UUID("BECA12AB-B2E6-4523-93EF-C309E000C746")
LOGICAL_SECTOR_SIZE: Final = uuid.UUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
PHYSICAL_SECTOR_SIZE: Final = uuid.UUID("CDA348C7-445D-4471-9CC9-E9885251C556")
PARENT_LOCATOR: Final = uuid.UUID("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")

BLOCK_BYTES_MIN: Final = 1 * MIB
BLOCK_BYTES_MAX: Final = 256 * MIB
BLOCK_BYTES: Final = 32 * MIB
"""What Hyper-V takes for a new dynamic disk (New-VHD, BlockSizeBytes)."""
SECTOR_SIZES: Final = (512, 4096)
CHUNK_SECTORS: Final = 1 << 23
"""Sectors whose bits fill a sector bitmap block of 1 MiB (2.5)."""

# signature, checksum, sequence number, file write, data write and log GUID, log version, version, log length and offset
_HEADER: Final = struct.Struct("<4sIQ16s16s16sHHIQ")
_CHECKSUM_AT: Final = 4
_TABLE: Final = struct.Struct("<4sIII")  # signature, checksum, entries, reserved
_REGION: Final = struct.Struct("<16sQII")  # GUID, file offset, length, required
_METADATA: Final = struct.Struct("<8sHH20s")  # signature, reserved, entries, reserved
_ITEM: Final = struct.Struct("<16sIIII")  # item, offset, length, flags, reserved
_PARAMETERS: Final = struct.Struct("<II")  # block size, flags
LEAVE_BLOCKS_ALLOCATED: Final = 1
HAS_PARENT: Final = 2
ITEM_IS_USER: Final = 1
ITEM_IS_VIRTUAL_DISK: Final = 2
ITEM_IS_REQUIRED: Final = 4


class BlockState(IntEnum):
    """2.5.1.1, payload BAT entry states."""

    NOT_PRESENT = 0
    UNDEFINED = 1
    ZERO = 2
    UNMAPPED = 3
    FULLY_PRESENT = 6
    PARTIALLY_PRESENT = 7


STATE_MASK: Final = 7
OFFSET_SHIFT: Final = 20
RESERVED_MASK: Final = 0xFFFF8
"""Bits 3 to 19 of a BAT entry."""
OFFSET_MASK: Final = ~(ALIGNMENT - 1)
"""A BAT entry's upper 44 bits count megabytes: what is left without the lower 20 is the offset in bytes."""
SEQUENCE_MAX: Final = 2**63
"""Of a header that is to be written over: the number has 64 bits, rises with each header and never begins again."""


@dataclass(frozen=True, slots=True)
class Header:
    """2.2.2: where the log lies, whether it holds something, and what changes with every opening for writing."""

    sequence: int
    file_write: uuid.UUID
    data_write: uuid.UUID
    log: uuid.UUID
    log_offset: int
    log_bytes: int

    def next(self, **changes: uuid.UUID) -> "Header":
        """The header that replaces this one; a writer has seen to it that there is one (`SEQUENCE_MAX`)."""
        return replace(self, sequence=self.sequence + 1, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Region:
    """2.2.3.2: a region that the region table names, and the offset of the entry that does."""

    kind: uuid.UUID
    offset: int
    length: int
    required: bool
    named_at: int


@dataclass(frozen=True, slots=True)
class Metadata:
    """2.6.2: what a disk is."""

    size: int
    block_bytes: int
    sector_bytes: int
    physical_sector_bytes: int
    disk_id: uuid.UUID
    fixed: bool
    """LeaveBlocksAllocated: every block has its place."""
    has_parent: bool

    @property
    def chunk_ratio(self) -> int:
        """Payload blocks before each sector bitmap block (2.5)."""
        return CHUNK_SECTORS * self.sector_bytes // self.block_bytes

    @property
    def blocks(self) -> int:
        """Payload blocks of the disk."""
        return -(-self.size // self.block_bytes)

    @property
    def entries(self) -> int:
        """BAT entries, those of sector bitmaps between them included (2.5)."""
        if self.has_parent:
            return -(-self.blocks // self.chunk_ratio) * (self.chunk_ratio + 1)
        return self.blocks + (self.blocks - 1) // self.chunk_ratio

    def entry(self, block: int) -> int:
        """The index of the BAT entry of a payload block."""
        return block + block // self.chunk_ratio


def _sealed(raw: bytes) -> bytes:
    """The structure with its checksum, which counts itself as zero, at byte 4."""
    blank = raw[:_CHECKSUM_AT] + bytes(4) + raw[_CHECKSUM_AT + 4 :]
    return raw[:_CHECKSUM_AT] + struct.pack("<I", crc32c(blank)) + raw[_CHECKSUM_AT + 4 :]


def check_sum(raw: bytes, structure: str, offset: int) -> None:
    """The structure's checksum at byte 4 is right; raises Malformed."""
    (found,) = struct.unpack_from("<I", raw, _CHECKSUM_AT)
    blank = crc32c(raw[_CHECKSUM_AT + 4 :], crc32c(bytes(4), crc32c(raw[:_CHECKSUM_AT])))
    if found != blank:
        raise Malformed(f"the checksum of {structure}", offset + _CHECKSUM_AT, hex(found), hex(blank))


def encode_identifier() -> bytes:
    """The file type identifier (2.2.1), without the zeroes behind."""
    return magic.VHDX + CREATOR.encode("utf-16-le")


def decode_header(raw: bytes, offset: int) -> Header:
    """The header found at `offset`; raises Malformed."""
    signature, _, sequence, file_write, data_write, log, log_version, version, log_bytes, log_offset = (
        _HEADER.unpack_from(raw)
    )
    if signature != b"head":
        raise Malformed("a header", offset, repr(bytes(signature)), "b'head'")
    check_sum(raw[:HEADER_BYTES], "a header", offset)
    if version != 1:
        raise Malformed("a header's version", offset + 66, str(version), "1")
    if log_version != 0:
        raise Malformed("a header's log version", offset + 64, str(log_version), "0")
    if log_bytes % ALIGNMENT or log_offset % ALIGNMENT or log_bytes == 0 or log_offset < HEAD_BYTES:
        seen = f"{log_bytes} bytes at {log_offset}"
        raise Malformed("the log's place", offset + 68, seen, "whole megabytes behind the header section")
    return Header(sequence, _guid(file_write), _guid(data_write), _guid(log), log_offset, log_bytes)


def encode_header(header: Header) -> bytes:
    """The header in 4 KiB."""
    raw = _HEADER.pack(
        b"head", 0, header.sequence, header.file_write.bytes_le, header.data_write.bytes_le, header.log.bytes_le, 0, 1,
        header.log_bytes, header.log_offset,
    )  # fmt: skip
    return _sealed(raw.ljust(HEADER_BYTES, b"\0"))


def decode_regions(raw: bytes, offset: int) -> list[Region]:
    """The region table found at `offset`; its regions lie apart from each other. Raises Malformed."""
    signature, _, count, _ = _TABLE.unpack_from(raw)
    if signature != b"regi":
        raise Malformed("a region table", offset, repr(bytes(signature)), "b'regi'")
    check_sum(raw, "a region table", offset)
    if count > ENTRIES_MAX:
        raise Malformed("a region table's count", offset + 8, str(count), f"at most {ENTRIES_MAX}")
    regions: list[Region] = []
    for number in range(count):
        at = _TABLE.size + number * _REGION.size
        kind, start, length, required = _REGION.unpack_from(raw, at)
        if start % ALIGNMENT or length % ALIGNMENT or start < HEAD_BYTES or length == 0:
            seen = f"{length} bytes at {start}"
            raise Malformed("a region", offset + at, seen, "whole megabytes behind the header section")
        regions.append(Region(_guid(kind), start, length, bool(required & 1), offset + at))
    if len({region.kind for region in regions}) != len(regions):
        raise Malformed("a region table", offset, "a region named twice", "each once")
    return regions


def encode_regions(regions: Iterable[Region]) -> bytes:
    """The region table in 64 KiB."""
    rows = [
        _REGION.pack(each.kind.bytes_le, each.offset, each.length, int(each.required)) for each in regions
    ]
    raw = _TABLE.pack(b"regi", 0, len(rows), 0) + b"".join(rows)
    return _sealed(raw.ljust(REGION_TABLE_BYTES, b"\0"))


def decode_metadata(raw: bytes, offset: int) -> Metadata:
    """The metadata region found at `offset`, as far as anything in it is used; raises Malformed."""
    items = _items(raw, offset)
    block_bytes, flags = _PARAMETERS.unpack(_item(items, FILE_PARAMETERS, "the file parameters", offset, 8))
    at = items[FILE_PARAMETERS][0]
    if block_bytes & (block_bytes - 1) or not BLOCK_BYTES_MIN <= block_bytes <= BLOCK_BYTES_MAX:
        raise Malformed("the block size", at, str(block_bytes), "a power of two from 1 to 256 MiB")
    sector = _number(items, LOGICAL_SECTOR_SIZE, "the logical sector size", offset, 4)
    if sector not in SECTOR_SIZES:
        raise Malformed("the logical sector size", items[LOGICAL_SECTOR_SIZE][0], str(sector), "512 or 4096")
    physical = _number(items, PHYSICAL_SECTOR_SIZE, "the physical sector size", offset, 4)
    if physical not in SECTOR_SIZES:
        raise Malformed(
            "the physical sector size", items[PHYSICAL_SECTOR_SIZE][0], str(physical), "512 or 4096"
        )
    size = _number(items, VIRTUAL_DISK_SIZE, "the virtual disk size", offset, 8)
    if size % sector or not 0 < size <= DISK_BYTES_MAX:
        wanted = f"whole sectors of {sector}, at most {DISK_BYTES_MAX} bytes"
        raise Malformed("the virtual disk size", items[VIRTUAL_DISK_SIZE][0], str(size), wanted)
    disk_id = _guid(_item(items, VIRTUAL_DISK_ID, "the virtual disk id", offset, 16))
    return Metadata(
        size, block_bytes, sector, physical, disk_id, bool(flags & LEAVE_BLOCKS_ALLOCATED), bool(flags & HAS_PARENT)
    )  # fmt: skip


KNOWN_ITEMS: Final = (
    FILE_PARAMETERS,
    VIRTUAL_DISK_SIZE,
    VIRTUAL_DISK_ID,
    LOGICAL_SECTOR_SIZE,
    PHYSICAL_SECTOR_SIZE,
    PARENT_LOCATOR,
)


def _items(raw: bytes, offset: int) -> dict[uuid.UUID, tuple[int, bytes]]:
    """Offset in the file and bytes of each item that is known (2.6.1)."""
    signature, _, count, _ = _METADATA.unpack_from(raw)
    if signature != b"metadata":
        raise Malformed("the metadata table", offset, repr(bytes(signature)), "b'metadata'")
    if count > ENTRIES_MAX:
        raise Malformed("the metadata table's count", offset + 10, str(count), f"at most {ENTRIES_MAX}")
    items: dict[uuid.UUID, tuple[int, bytes]] = {}
    for number in range(count):
        at = _METADATA.size + number * _ITEM.size
        kind, start, length, flags, _ = _ITEM.unpack_from(raw, at)
        item = _guid(kind)
        if item not in KNOWN_ITEMS or flags & ITEM_IS_USER:
            if flags & ITEM_IS_REQUIRED:
                raise Malformed(
                    "a metadata item", offset + at, f"the unknown item {item}", "items that are known"
                )
            continue
        if item in items:
            raise Malformed("a metadata item", offset + at, f"{item} a second time", "each once")
        if start < 64 * KIB or start + length > len(raw):
            seen = f"{length} bytes at {start} of the region"
            raise Malformed("a metadata item", offset + at, seen, f"64 KiB or more into its {len(raw)} bytes")
        items[item] = (offset + start, raw[start : start + length])
    return items


def _item(
    items: dict[uuid.UUID, tuple[int, bytes]], kind: uuid.UUID, name: str, offset: int, length: int
) -> bytes:
    if kind not in items:
        raise Malformed("the metadata table", offset, f"no item for {name}", "one")
    at, raw = items[kind]
    if len(raw) != length:
        raise Malformed(name, at, f"{len(raw)} bytes", str(length))
    return raw


def _number(
    items: dict[uuid.UUID, tuple[int, bytes]], kind: uuid.UUID, name: str, offset: int, length: int
) -> int:
    return int.from_bytes(_item(items, kind, name, offset, length), "little")


def encode_metadata(metadata: Metadata) -> tuple[bytes, bytes]:
    """The metadata table, and the items that lie 64 KiB behind its start."""
    flags = LEAVE_BLOCKS_ALLOCATED if metadata.fixed else 0
    system, disk = ITEM_IS_REQUIRED, ITEM_IS_REQUIRED | ITEM_IS_VIRTUAL_DISK
    items = (
        (FILE_PARAMETERS, _PARAMETERS.pack(metadata.block_bytes, flags), system),
        (VIRTUAL_DISK_SIZE, metadata.size.to_bytes(8, "little"), disk),
        (VIRTUAL_DISK_ID, metadata.disk_id.bytes_le, disk),
        (LOGICAL_SECTOR_SIZE, metadata.sector_bytes.to_bytes(4, "little"), disk),
        (PHYSICAL_SECTOR_SIZE, metadata.physical_sector_bytes.to_bytes(4, "little"), disk),
    )
    table = _METADATA.pack(b"metadata", 0, len(items), bytes(20))
    content = b""
    for kind, raw, bits in items:
        table += _ITEM.pack(kind.bytes_le, 64 * KIB + len(content), len(raw), bits, 0)
        content += raw
    return table, content


def _guid(raw: bytes) -> uuid.UUID:
    return uuid.UUID(bytes_le=bytes(raw))
