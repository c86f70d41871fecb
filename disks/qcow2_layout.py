"""The bytes of a qcow2 image, as far as reading and checking it need them.

Source: QEMU's published specification, docs/interop/qcow2.txt ("Header", "Header extensions", "Host cluster
management", "Cluster mapping"). Integers are big-endian, offsets are in bytes. Pure: no input or output.
"""

import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from disks.layout import Malformed
from disks.magic import QCOW2
from drcore.limits import DISK_BYTES_MAX, QCOW2_TABLE_BYTES_MAX

HEADER_BYTES: Final = 104
"""A version 3 header; version 2 has the first 72."""
CLUSTER_BITS_MIN: Final = 9
CLUSTER_BITS_MAX: Final = 21
BACKING_NAME_BYTES_MAX: Final = 1023
EXTENSIONS_BYTES_MAX: Final = 64 * 1024
"""Header extensions and backing file name lie in the first cluster; none of any known writer is longer."""

# magic, version, backing name at, its length, cluster bits, size, encryption, L1 entries, L1 at, refcount table at,
# its clusters, snapshots, snapshot table at
_HEADER: Final = struct.Struct(">4sIQIIQIIQQIIQ")
# incompatible, compatible, autoclear, refcount order, header length, compression type
_HEADER_3: Final = struct.Struct(">QQQIIB")
_EXTENSION: Final = struct.Struct(">II")

INCOMPATIBLE_DIRTY: Final = 1 << 0
INCOMPATIBLE_CORRUPT: Final = 1 << 1
INCOMPATIBLE_DATA_FILE: Final = 1 << 2
INCOMPATIBLE_COMPRESSION: Final = 1 << 3
INCOMPATIBLE_EXTENDED_L2: Final = 1 << 4

EXTENSION_END: Final = 0
EXTENSION_BACKING_FORMAT: Final = 0xE2792ACA

ZLIB: Final = 0
ZSTD: Final = 1

COPIED: Final = 1 << 63
COMPRESSED: Final = 1 << 62
READS_ZERO: Final = 1
OFFSET: Final = 0x00FFFFFFFFFFFE00
"""Bits 9 to 55 of an entry: where a cluster or table lies."""
REFCOUNT_OFFSET: Final = 0xFFFFFFFFFFFFFE00


@dataclass(frozen=True, slots=True)
class Header:
    """ "Header" of the specification; places and sizes in bytes."""

    version: int
    cluster_bits: int
    size: int
    encryption: int
    l1_entries: int
    l1: int
    refcounts: int
    refcount_clusters: int
    snapshots: int
    snapshot_table: int
    incompatible: int
    refcount_order: int
    length: int
    compression: int
    backing: tuple[int, int]
    """(offset, length) of the backing file's name; (0, 0) for none."""

    @property
    def cluster(self) -> int:
        """Bytes of a cluster."""
        return 1 << self.cluster_bits

    @property
    def l2_entries(self) -> int:
        """Clusters that one L2 table maps."""
        return 1 << self.cluster_bits - 3


def decode_header(raw: bytes) -> Header:
    """The header at the start of the file (`raw`: 104 bytes, or the whole of a shorter file); raises Malformed."""
    if len(raw) < _HEADER.size:
        raise Malformed("the header", 0, f"{len(raw)} bytes", f"at least {_HEADER.size}")
    (
        magic, version, name_at, name_length, bits, size, encryption, l1_entries, l1, refcounts, refcount_clusters,
        snapshots, snapshot_table,
    ) = _HEADER.unpack_from(raw)  # fmt: skip
    if magic != QCOW2:
        raise Malformed("the header", 0, repr(bytes(magic)), repr(QCOW2))
    if version not in (2, 3):
        raise Malformed("the header's version", 4, str(version), "2 or 3")
    if not CLUSTER_BITS_MIN <= bits <= CLUSTER_BITS_MAX:
        wanted = f"{CLUSTER_BITS_MIN} to {CLUSTER_BITS_MAX}"
        raise Malformed("the cluster size", 20, f"2^{bits} bytes", wanted)
    incompatible, order, length, compression = 0, 4, _HEADER.size, ZLIB
    if version == 3:
        if len(raw) < HEADER_BYTES:
            raise Malformed("the header", 0, f"{len(raw)} bytes", f"at least {HEADER_BYTES}")
        rest = raw[_HEADER.size :].ljust(_HEADER_3.size, b"\0")
        incompatible, _, _, order, length, compression = _HEADER_3.unpack_from(rest)
        if length < HEADER_BYTES or length % 8 or length > 1 << bits:
            raise Malformed(
                "the header's length", 100, str(length), f"a multiple of 8 from {HEADER_BYTES} on"
            )
        if length == HEADER_BYTES:
            compression = ZLIB
        if order > 6:
            raise Malformed("the refcount order", 96, str(order), "0 to 6")
    header = Header(
        version, bits, size, encryption, l1_entries, l1, refcounts, refcount_clusters, snapshots, snapshot_table,
        incompatible, order, length, compression, (name_at, name_length) if name_at else (0, 0),
    )  # fmt: skip
    _check(header)
    return header


def _check(header: Header) -> None:
    if not 0 < header.size <= DISK_BYTES_MAX:
        raise Malformed("the virtual size", 24, f"{header.size} bytes", f"1 to {DISK_BYTES_MAX}")
    clusters = -(-header.size // header.cluster)
    needed = -(-clusters // header.l2_entries)
    if not needed <= header.l1_entries <= QCOW2_TABLE_BYTES_MAX // 8:
        wanted = f"{needed} for the size, at most {QCOW2_TABLE_BYTES_MAX // 8}"
        raise Malformed("the L1 table's length", 36, f"{header.l1_entries} entries", wanted)
    places = (
        ("L1 table", 40, header.l1),
        ("refcount table", 48, header.refcounts),
        ("snapshot table", 64, header.snapshot_table if header.snapshots else header.cluster),
    )
    for name, at, place in places:
        if not 0 < place < 1 << 56 or place % header.cluster:
            wanted = f"a multiple of {header.cluster}"
            raise Malformed(f"the place of the {name}", at, f"offset {place}", wanted)
    at, length = header.backing
    if at and (length > BACKING_NAME_BYTES_MAX or not length or at + length > header.cluster or at < 72):
        wanted = f"1 to {BACKING_NAME_BYTES_MAX} bytes in the first cluster"
        raise Malformed("the backing file's name", 8, f"{length} bytes at {at}", wanted)


def extensions(raw: bytes, start: int, end: int) -> dict[int, bytes]:
    """The header extensions between `start` and `end` by their type; raises Malformed."""
    at, found = start, dict[int, bytes]()
    while at + _EXTENSION.size <= end:
        kind, length = _EXTENSION.unpack_from(raw, at)
        if kind == EXTENSION_END:
            break
        begin = at + _EXTENSION.size
        if begin + length > end:
            raise Malformed("a header extension", at, f"{length} bytes", f"at most {end - begin}")
        found[kind] = raw[begin : begin + length]
        at = begin + -(-length // 8) * 8
    return found


def backing_format(raw: bytes, start: int, end: int) -> str | None:
    """The backing file's format as a header extension between `start` and `end` names it; raises Malformed."""
    found = extensions(raw, start, end).get(EXTENSION_BACKING_FORMAT)
    return None if found is None else found.decode("utf-8", "replace")


def decode_entries(raw: bytes | memoryview) -> "array[int]":
    """The entries of an L1, L2 or refcount table."""
    entries = array("Q")
    entries.frombytes(raw)
    if sys.byteorder == "little":
        entries.byteswap()
    return entries


def named(table: "array[int]") -> Iterator[tuple[int, int]]:
    """(index, entry) up to the last entry that names anything: the tables of small disks are mostly empty."""
    used = -(-len(table.tobytes().rstrip(b"\0")) // table.itemsize)
    return enumerate(table[:used])


def compressed_place(entry: int, cluster_bits: int) -> tuple[int, int]:
    """(offset, length) of the compressed bytes that an L2 entry names; the last sector may hold others' too."""
    bits = 62 - (cluster_bits - 8)
    offset = entry & (1 << bits) - 1
    sectors = (entry >> bits & (1 << cluster_bits - 8) - 1) + 1
    return offset, sectors * 512 - offset % 512


def decode_refcounts(raw: bytes, order: int) -> "array[int]":
    """The refcounts in a refcount block, of 2^order bits each; those below a byte begin at its lowest bit."""
    if order < 3:
        width = 1 << order
        mask = (1 << width) - 1
        return array("Q", (byte >> at & mask for byte in raw for at in range(0, 8, width)))
    counts = array("BHIQ"[order - 3])
    counts.frombytes(raw)
    if sys.byteorder == "little":
        counts.byteswap()
    return counts
