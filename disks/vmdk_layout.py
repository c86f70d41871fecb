"""The bytes of a VMDK: sparse extent header, grain directories and tables, the text descriptor.

Source: VMware, "Virtual Disk Format 5.0" (technical note, 2011); section names are given with each structure.
Integers are little-endian, offsets are in sectors of 512 bytes. Pure: no input or output.
"""

import re
import struct
import sys
from array import array
from dataclasses import dataclass
from typing import Final

from disks import magic
from disks.layout import Malformed
from drcore.limits import DISK_BYTES_MAX, MIB

SECTOR: Final = 512
MAGIC: Final = magic.VMDK
ESX_MAGIC: Final = b"COWD"
DESCRIPTOR_START: Final = magic.VMDK_DESCRIPTOR
HEADER_BYTES: Final = 512
TABLE_ENTRIES: Final = 512
"""Grain table entries per table: the specification knows no other number for hosted sparse extents."""
TABLE_BYTES: Final = TABLE_ENTRIES * 4
TABLE_SECTORS: Final = TABLE_BYTES // SECTOR
GRAIN_SECTORS: Final = 128
"""The default grain, 64 KiB."""
GRAIN_SECTORS_MIN: Final = 8
GRAIN_SECTORS_MAX: Final = 32 * MIB // SECTOR
ZERO_GRAIN: Final = 1
"""Grain table entry: reads as zeroes; allowed where the header's flag says so."""
SECTORS_MAX: Final = 1 << 32
"""A grain table entry names a sector in 32 bits."""
NO_PARENT: Final = 0xFFFFFFFF
GD_AT_END: Final = 0xFFFFFFFFFFFFFFFF
DESCRIPTOR_SECTORS: Final = 20
"""Room for the embedded descriptor, as VMware's own tools leave it."""

FLAG_NEWLINE: Final = 1 << 0
FLAG_REDUNDANT: Final = 1 << 1
FLAG_ZERO_GRAIN: Final = 1 << 2
FLAG_COMPRESSED: Final = 1 << 16
FLAG_MARKERS: Final = 1 << 17

# magic, version, flags, capacity, grain size, descriptor offset, descriptor size, entries per table,
# redundant directory, directory, overhead, unclean shutdown, four newline characters, compression
_HEADER: Final = struct.Struct("<4sIIQQQQIQQQB4sH")
_NEWLINES: Final = b"\n \r\n"


@dataclass(frozen=True, slots=True)
class SparseHeader:
    """ "Hosted Sparse Extents", SparseExtentHeader; all places and sizes in sectors."""

    version: int
    flags: int
    capacity: int
    grain: int
    descriptor_offset: int
    descriptor_size: int
    redundant_directory: int
    directory: int
    overhead: int

    @property
    def tables(self) -> int:
        """How many grain tables, and so directory entries, cover the capacity."""
        return -(-self.capacity // (self.grain * TABLE_ENTRIES))

    @property
    def zero_grains(self) -> bool:
        """Whether a grain table entry may say 'zeroes' (ZERO_GRAIN)."""
        return bool(self.flags & FLAG_ZERO_GRAIN)

    @property
    def redundant(self) -> bool:
        """Whether a second directory with its own tables is kept."""
        return bool(self.flags & FLAG_REDUNDANT)

    @property
    def stream(self) -> bool:
        """Whether it is a stream-optimized extent: compressed grains, markers, or the directory at the end."""
        return bool(self.flags & (FLAG_COMPRESSED | FLAG_MARKERS)) or self.directory == GD_AT_END


@dataclass(frozen=True, slots=True)
class ExtentLine:
    """One line of the descriptor's extent description ("The Extent Description")."""

    access: str
    sectors: int
    kind: str
    name: str
    offset: int


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What is used of a text descriptor ("The Descriptor File")."""

    create_type: str
    cid: int
    parent_cid: int
    extents: tuple[ExtentLine, ...]
    disk_uuid: str | None
    parent_hint: str | None = None
    """The parent's file name as the descriptor tells it; None where it tells none."""


def decode_header(raw: bytes) -> SparseHeader:
    """The sparse header in the first 512 bytes; raises Malformed."""
    (
        magic, version, flags, capacity, grain, text, text_size, entries, redundant, directory, overhead,
        _, newlines, compression,
    ) = _HEADER.unpack_from(raw)  # fmt: skip
    if magic != MAGIC:
        raise Malformed("the sparse header", 0, repr(bytes(magic)), repr(MAGIC))
    if version not in (1, 2, 3):
        raise Malformed("the header's version", 4, str(version), "1, 2 or 3")
    header = SparseHeader(version, flags, capacity, grain, text, text_size, redundant, directory, overhead)
    if flags & FLAG_NEWLINE and newlines != _NEWLINES:
        # They are there to give away a file that a text-mode transfer changed.
        raise Malformed("the newline test", 73, repr(bytes(newlines)), repr(_NEWLINES))
    if compression != header.stream:
        wanted = f"{int(header.stream)}, as the flags {flags:#x} say (1: deflate)"
        raise Malformed("the compression", 77, str(compression), wanted)
    if not 0 < capacity <= DISK_BYTES_MAX // SECTOR:
        raise Malformed("the capacity", 12, f"{capacity} sectors", f"1 to {DISK_BYTES_MAX // SECTOR}")
    if grain & (grain - 1) or not GRAIN_SECTORS_MIN <= grain <= GRAIN_SECTORS_MAX:
        raise Malformed(
            "the grain size", 20, f"{grain} sectors", f"a power of two from {GRAIN_SECTORS_MIN} on"
        )
    if entries != TABLE_ENTRIES:
        raise Malformed("the entries per grain table", 44, str(entries), str(TABLE_ENTRIES))
    if text >= SECTORS_MAX or text_size >= SECTORS_MAX:
        wanted = "sectors within 2 TiB"
        raise Malformed("the place of the descriptor", 28, f"{text_size} sectors from {text} on", wanted)
    if header.stream and directory == GD_AT_END:
        return header  # the footer repeats the header and tells the place
    for name, at, place in (("grain directory", 56, directory), ("redundant grain directory", 48, redundant)):
        if not 0 < place < SECTORS_MAX and (at == 56 or header.redundant):
            raise Malformed(f"the place of the {name}", at, f"sector {place}", "a sector within 2 TiB")
    if not 0 < overhead < SECTORS_MAX:
        raise Malformed("the overhead", 64, f"{overhead} sectors", "the sectors before the first grain")
    return header


def encode_header(header: SparseHeader) -> bytes:
    """A new image's header."""
    raw = _HEADER.pack(
        MAGIC, header.version, header.flags, header.capacity, header.grain, header.descriptor_offset,
        header.descriptor_size, TABLE_ENTRIES, header.redundant_directory, header.directory, header.overhead,
        0, _NEWLINES, int(header.stream),
    )  # fmt: skip
    return raw.ljust(HEADER_BYTES, b"\0")


def plan_sparse(capacity: int) -> SparseHeader:
    """Where everything of a new image of `capacity` sectors lies: two directories with their tables, then grains."""
    tables = -(-capacity // (GRAIN_SECTORS * TABLE_ENTRIES))
    directory_sectors = -(-tables * 4 // SECTOR)
    redundant = 1 + DESCRIPTOR_SECTORS
    directory = redundant + directory_sectors + tables * TABLE_SECTORS
    end = directory + directory_sectors + tables * TABLE_SECTORS
    overhead = -(-end // GRAIN_SECTORS) * GRAIN_SECTORS
    return SparseHeader(
        version=1, flags=FLAG_NEWLINE | FLAG_REDUNDANT, capacity=capacity, grain=GRAIN_SECTORS,
        descriptor_offset=1, descriptor_size=DESCRIPTOR_SECTORS,
        redundant_directory=redundant, directory=directory, overhead=overhead,
    )  # fmt: skip


def plan_directory(header: SparseHeader, directory: int) -> bytes:
    """A new image's directory whose tables follow it at once."""
    first = directory + -(-header.tables * 4 // SECTOR)
    return encode_entries(array("I", range(first, first + header.tables * TABLE_SECTORS, TABLE_SECTORS)))


def decode_entries(raw: bytes | memoryview) -> "array[int]":
    """Directory or table entries."""
    entries = array("I")
    entries.frombytes(raw)
    if sys.byteorder == "big":
        entries.byteswap()
    return entries


def encode_entries(entries: "array[int]") -> bytes:
    """Directory or table entries as they lie in the file."""
    if sys.byteorder == "big":
        entries = array("I", entries)
        entries.byteswap()
    return entries.tobytes()


_KEY = rb"(?im)^[ \t]*%s[ \t]*=[ \t]*\"?([^\"\r\n]*?)\"?[ \t]*\r?$"
_EXTENT = re.compile(
    rb"(?m)^[ \t]*(RW|RDONLY|NOACCESS)[ \t]+(\d+)[ \t]+([A-Z]{3,16})"
    rb'(?:[ \t]+"([^"\r\n]+)"(?:[ \t]+(\d+)(?![^ \t\r\n]))?)?(?:[ \t]+[^-+\d" \t\r\n][^\r\n]*)?[ \t]*\r?$'
)
_EXTENT_LINE = re.compile(rb"(?m)^[ \t]*(?:RW|RDONLY|NOACCESS)[ \t][^\r\n]*")
_SECTORS_DIGITS: Final = 18
"""Of a number of sectors in the descriptor: more than any disk has."""


def decode_descriptor(text: bytes, offset: int) -> Descriptor:
    """The descriptor in `text`, found at `offset` in its file; raises Malformed. File names keep their bytes."""
    text = text.split(b"\0", 1)[0]
    if not text.lstrip().startswith(DESCRIPTOR_START):
        raise Malformed("the descriptor", offset, repr(text[:24]), repr(DESCRIPTOR_START))
    create_type = _value(text, b"createType")
    if create_type is None:
        raise Malformed("the descriptor's createType", offset, "none", "one")
    extents = tuple(_extent(text, line, offset) for line in _EXTENT_LINE.finditer(text))
    uuid = _value(text, b"ddb\\.uuid")
    digits = re.sub(r"[^0-9a-f]", "", uuid.lower()) if uuid else ""
    return Descriptor(
        create_type,
        _hexadecimal(text, b"CID", offset),
        _hexadecimal(text, b"parentCID", offset),
        extents,
        digits if len(digits) == 32 else None,
        _value(text, b"parentFileNameHint"),
    )


def change_cid(text: bytes, cid: int) -> bytes:
    """The descriptor with another CID (and a long content id that ends in it, where there is one), equally long."""

    def digits(value: int, width: int) -> bytes:
        return (b"%0*x" % (width, value))[-width:]

    def replace_cid(found: re.Match[bytes]) -> bytes:
        return found[1] + digits(cid, len(found[2]))

    def replace_long(found: re.Match[bytes]) -> bytes:
        return found[1] + found[2][:-8] + digits(cid, 8)

    text = re.sub(rb"(?im)^([ \t]*CID[ \t]*=[ \t]*\"?)([0-9a-f]{1,8})", replace_cid, text, count=1)
    return re.sub(
        rb"(?im)^([ \t]*ddb\.longContentID[ \t]*=[ \t]*\")([0-9a-f]{32})", replace_long, text, count=1
    )


@dataclass(frozen=True, slots=True)
class NewDescriptor:
    """What a new image's descriptor says; `uuid` and `content` are 16 fresh random bytes each."""

    create_type: str
    extent: str
    sectors: int
    uuid: bytes
    content: bytes
    thin: bool = False
    """Whether ESXi is told that the flat extent is allocated as it is written."""

    def text(self) -> bytes:
        """The descriptor. The adapter is LSI Logic, whose geometry is 255 heads and 63 sectors."""
        # VMware's own disk UUIDs begin with its NAA identifier, 60:00:C2:9.
        uuid = bytes([0x60, 0x00, 0xC2, 0x90 | self.uuid[3] & 0x0F]) + self.uuid[4:]
        pairs = uuid.hex(" ")
        cylinders = min(65535, max(1, self.sectors // (255 * 63)))
        lines = (
            "# Disk DescriptorFile", "version=1", 'encoding="UTF-8"', f"CID={self.content[-4:].hex()}",
            "parentCID=ffffffff", f'createType="{self.create_type}"', "", "# Extent description", self.extent, "",
            "# The Disk Data Base", "#DDB", "", 'ddb.adapterType = "lsilogic"',
            f'ddb.geometry.cylinders = "{cylinders}"', 'ddb.geometry.heads = "255"', 'ddb.geometry.sectors = "63"',
            f'ddb.longContentID = "{self.content.hex()}"', f'ddb.uuid = "{pairs[:23]}-{pairs[24:]}"',
            *(['ddb.thinProvisioned = "1"'] if self.thin else []), 'ddb.virtualHWVersion = "8"', "",
        )  # fmt: skip
        return "\n".join(lines).encode("utf-8", "surrogateescape")


def _extent(text: bytes, line: re.Match[bytes], offset: int) -> ExtentLine:
    """The extent in a line; raises Malformed. No line is passed over: the disk would be another one without it."""
    found = _EXTENT.match(text, line.start())
    if found is None or max(len(found[2]), len(found[5] or b"")) > _SECTORS_DIGITS:
        seen = repr(line[0].strip()[:80].decode("utf-8", "replace"))
        wanted = f'access, sectors, kind, "file name", offset; numbers of at most {_SECTORS_DIGITS} digits'
        raise Malformed("an extent's line", offset + line.start(), seen, wanted)
    return ExtentLine(
        found[1].decode(), int(found[2]), found[3].decode(),
        (found[4] or b"").decode("utf-8", "surrogateescape"), int(found[5] or 0),
    )  # fmt: skip


def _value(text: bytes, key: bytes) -> str | None:
    found = re.search(_KEY % key, text)
    return found[1].decode("utf-8", "replace") if found else None


def _hexadecimal(text: bytes, key: bytes, offset: int) -> int:
    value = _value(text, key)
    if value is None or not re.fullmatch(r"[0-9a-fA-F]{1,8}", value):
        raise Malformed(
            f"the descriptor's {key.decode()}", offset, repr(value), "up to eight hexadecimal digits"
        )
    return int(value, 16)
