"""The bytes of ESXi's delta extents: vmfsSparse ("COWD") and seSparse.

Sources: vmfsSparse from VMware, "Virtual Disk Format 5.0", "ESX Server Sparse Extents" (COWDisk_Header); seSparse, of
which VMware published no layout, from what qemu's block/vmdk.c documents of it (const and volatile header, entries of
directory and tables). Integers are little-endian, places are sectors of 512 bytes. Pure: no input or output.
"""

import struct
import sys
from array import array
from dataclasses import dataclass
from typing import Final

from disks.layout import Malformed
from disks.vmdk_layout import ESX_MAGIC, SECTOR
from drcore.limits import DISK_BYTES_MAX

COWD_HEADER_BYTES: Final = 2048
COWD_TABLE_ENTRIES: Final = 4096
COWD_GRAIN_SECTORS_MAX: Final = 2048
"""A grain is one sector as ESXi makes it; vmkfstools takes up to 1 MiB."""
# magic, version, flags, sectors, grain, place of the directory, its entries, next free sector
_COWD: Final = struct.Struct("<4s7I")
COWD_UNCLEAN_AT: Final = 1648

SE_HEADER_BYTES: Final = 512
SE_VERSION: Final = 0x0000000200000001
SE_GRAIN_SECTORS: Final = 8
SE_TABLE_SECTORS: Final = 64
SE_TABLE_ENTRIES: Final = SE_TABLE_SECTORS * SECTOR // 8
SE_VOLATILE_MAGIC: Final = 0xCAFECAFE
# magic, version, capacity, grain, table size, flags, four reserved, then (place, size) of: volatile header, journal
# header, journal, grain directory, grain tables, free bitmap, back map, grains
_SE: Final = struct.Struct("<26Q")
# magic, free table, next transaction, whether the journal has to be replayed
_SE_VOLATILE: Final = struct.Struct("<4Q")
SE_REGIONS: Final = (
    "volatile header", "journal header", "journal", "grain directory", "grain tables", "free bitmap", "back map",
    "grains",
)  # fmt: skip

SE_TYPE: Final = 0xF << 60
SE_DIRECTORY_ENTRY: Final = 1 << 60
"""A directory entry is nought or this type with a table's number in the low 32 bits."""
SE_UNMAPPED: Final = 1 << 60
"""A grain that the guest gave back (SCSI UNMAP): reads as zeroes, as qemu reads it."""
SE_ZERO: Final = 2 << 60
SE_ALLOCATED: Final = 3 << 60


@dataclass(frozen=True, slots=True)
class CowdHeader:
    """ "ESX Server Sparse Extents", COWDisk_Header, as far as reading needs it; places and sizes in sectors."""

    capacity: int
    grain: int
    directory: int
    tables: int
    free: int
    unclean: bool


@dataclass(frozen=True, slots=True)
class SeHeader:
    """The constant header of an seSparse extent; places and sizes in sectors."""

    capacity: int
    regions: dict[str, tuple[int, int]]
    """(place, size) by the names in `SE_REGIONS`."""

    @property
    def tables(self) -> int:
        """How many directory entries cover the capacity."""
        return -(-self.capacity // (SE_GRAIN_SECTORS * SE_TABLE_ENTRIES))


def decode_cowd(raw: bytes) -> CowdHeader:
    """The header in the first 2048 bytes of a vmfsSparse extent; raises Malformed."""
    magic, version, flags, capacity, grain, directory, tables, free = _COWD.unpack_from(raw)
    if magic != ESX_MAGIC:
        raise Malformed("the vmfsSparse header", 0, repr(bytes(magic)), repr(ESX_MAGIC))
    if version != 1:
        raise Malformed("the header's version", 4, str(version), "1")
    if flags & 3 != 3:
        raise Malformed("the header's flags", 8, f"{flags:#x}", "3")
    if not capacity:
        raise Malformed("the capacity", 12, "0 sectors", "at least one")
    if not 0 < grain <= COWD_GRAIN_SECTORS_MAX:
        raise Malformed("the grain size", 16, f"{grain} sectors", f"1 to {COWD_GRAIN_SECTORS_MAX}")
    if directory * SECTOR < COWD_HEADER_BYTES:
        raise Malformed(
            "the place of the grain directory", 20, f"sector {directory}", "one behind the header"
        )
    needed = -(-capacity // (grain * COWD_TABLE_ENTRIES))
    if tables < needed:
        raise Malformed("the entries of the grain directory", 24, str(tables), f"{needed} for the capacity")
    (unclean,) = struct.unpack_from("<I", raw, COWD_UNCLEAN_AT)
    return CowdHeader(capacity, grain, directory, needed, free, bool(unclean))


def decode_se(raw: bytes) -> SeHeader:
    """The constant header in the first 512 bytes of an seSparse extent; raises Malformed."""
    fields = _SE.unpack_from(raw)
    wanted = (
        ("the seSparse header", 0, 0xCAFEBABE),
        ("the header's version", 1, SE_VERSION),
        ("the grain size", 3, SE_GRAIN_SECTORS),
        ("the grain table size", 4, SE_TABLE_SECTORS),
        ("the flags", 5, 0),
        *((f"reserved field {number}", 5 + number, 0) for number in range(1, 5)),
        ("the volatile header's place", 10, 1),
        ("the volatile header's size", 11, 1),
    )
    for name, index, value in wanted:
        if fields[index] != value:
            raise Malformed(name, index * 8, f"{fields[index]:#x}", f"{value:#x}")
    capacity = fields[2]
    if not 0 < capacity <= DISK_BYTES_MAX // SECTOR:
        raise Malformed("the capacity", 16, f"{capacity} sectors", f"1 to {DISK_BYTES_MAX // SECTOR}")
    regions = dict(zip(SE_REGIONS, zip(fields[10::2], fields[11::2], strict=True), strict=True))
    for index, (name, (place, size)) in enumerate(regions.items()):
        if place > 2**53 or size > 2**53 or (size and not place):
            raise Malformed(f"the place of the {name}", 80 + index * 16, f"{size} from {place}", "a place")
    return SeHeader(capacity, regions)


def decode_se_volatile(raw: bytes) -> bool:
    """Whether the journal has to be replayed before anything else is believed; raises Malformed."""
    magic, _, _, replay = _SE_VOLATILE.unpack_from(raw)
    if magic != SE_VOLATILE_MAGIC:
        raise Malformed("the volatile header", SECTOR, f"{magic:#x}", f"{SE_VOLATILE_MAGIC:#x}")
    return bool(replay)


def se_table_number(entry: int) -> int | None:
    """The number of the table that a directory entry names; None for none. Raises ValueError."""
    if not entry:
        return None
    if entry >> 32 != SE_DIRECTORY_ENTRY >> 32:
        raise ValueError(f"{entry:#018x}")
    return entry & 0xFFFFFFFF


def se_places(raw: bytes, grains: int) -> "array[int] | range":
    """The sectors that a table's entries name, `grains` being that of the first grain; 0: none, 1: zeroes.

    A range where the grains lie one behind the other. Raises ValueError with the index of the first entry that means
    nothing.
    """
    entries = se_entries(raw)
    if entries[0] & SE_TYPE == entries[-1] & SE_TYPE == SE_ALLOCATED:
        first, last = _se_grain(entries[0]), _se_grain(entries[-1])
        if last - first == len(entries) - 1 and entries == _se_row(first, len(entries)):
            return range(
                grains + first * SE_GRAIN_SECTORS, grains + last * SE_GRAIN_SECTORS + 1, SE_GRAIN_SECTORS
            )
    places = array("Q", bytes(len(raw)))
    for index, entry in enumerate(entries):
        if not entry:
            continue
        kind = entry & SE_TYPE
        if kind == SE_ALLOCATED:
            places[index] = grains + _se_grain(entry) * SE_GRAIN_SECTORS
        elif kind in (SE_UNMAPPED, SE_ZERO):
            places[index] = 1
        else:
            raise ValueError(index)
    return places


def _se_grain(entry: int) -> int:
    """A grain's number: its low 12 bits stand in bits 48 to 59 of the entry, the rest in bits 0 to 47."""
    return (entry >> 48 & 0xFFF) | (entry & 0xFFFFFFFFFFFF) << 12


def _se_row(first: int, count: int) -> "array[int]":
    """The entries of so many grains, at most 4096, one behind the other."""
    entries = array("Q")
    turn = min(count, 4096 - first % 4096)  # the low bits begin again there
    for number, length in ((first, turn), (first + turn, count - turn)):
        start = SE_ALLOCATED | number % 4096 << 48 | number >> 12
        entries.extend(range(start, start + (length << 48), 1 << 48))
    return entries


def se_entries(raw: bytes) -> "array[int]":
    """A directory's or table's entries."""
    entries = array("Q")
    entries.frombytes(raw)
    if sys.byteorder == "big":
        entries.byteswap()
    return entries
