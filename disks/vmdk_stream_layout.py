"""The bytes of a stream-optimized VMDK beside those of `vmdk_layout`: markers, footer, and where a new one's lie.

Source: VMware, "Virtual Disk Format 5.0", "Stream-Optimized Compressed Sparse Extents". A stream is header, descriptor,
compressed grains each behind its marker, after every table's grains that table, at the end directory, footer and an
end mark; everything begins on a sector. Pure: no input or output.
"""

import struct
from array import array
from collections.abc import Callable
from dataclasses import replace
from enum import IntEnum
from typing import Final

from disks import vmdk_layout
from disks.layout import Malformed
from disks.vmdk_layout import (
    DESCRIPTOR_SECTORS,
    FLAG_COMPRESSED,
    FLAG_MARKERS,
    FLAG_NEWLINE,
    GD_AT_END,
    GRAIN_SECTORS,
    HEADER_BYTES,
    SECTOR,
    TABLE_SECTORS,
    SparseHeader,
)

# the grain's first sector in the virtual disk, bytes that follow
_GRAIN_MARKER: Final = struct.Struct("<QI")
GRAIN_MARKER_BYTES: Final = _GRAIN_MARKER.size
# sectors that follow, nought (no grain has no bytes), type
_MARKER: Final = struct.Struct("<QII")
FOOTER_FROM_END: Final = 2 * SECTOR
"""The footer stands before the end mark, the last sector."""
STREAM_GRAIN_SECTORS_MAX: Final = 1024
"""512 KiB are unpacked at once at most; every known writer makes grains of 64 KiB."""


class Marker(IntEnum):
    """Marker types."""

    END = 0
    TABLE = 1
    DIRECTORY = 2
    FOOTER = 3


def decode_grain_marker(raw: bytes) -> tuple[int, int]:
    """(first sector in the virtual disk, bytes of the compressed grain behind the marker)."""
    sector, length = _GRAIN_MARKER.unpack_from(raw)
    return sector, length


def decode_marker(raw: bytes) -> tuple[int, int, int]:
    """(sectors that follow, size: nought unless it is a grain's marker, type)."""
    sectors, size, kind = _MARKER.unpack_from(raw)
    return sectors, size, kind


def find_footer(header: SparseHeader, size: int, read: Callable[[int, int], bytes]) -> SparseHeader:
    """The header that tells the directory's place: the footer's where the first one leaves that to it.

    `size` is the file's, `read(offset, length)` gives its bytes. Raises Malformed.
    """
    if not header.flags & FLAG_COMPRESSED or not header.flags & FLAG_MARKERS:
        raise Malformed("the header's flags", 8, f"{header.flags:#x}", "compressed grains and markers")
    if header.grain > STREAM_GRAIN_SECTORS_MAX:
        wanted = f"at most {STREAM_GRAIN_SECTORS_MAX}"
        raise Malformed("the grain size", 20, f"{header.grain} sectors", wanted)
    if header.directory != GD_AT_END:
        return header
    at = size - FOOTER_FROM_END
    if at - SECTOR < HEADER_BYTES:
        raise Malformed("the footer", max(0, at), f"a file of {size} bytes", "a footer at its end")
    if decode_marker(read(at - SECTOR, SECTOR)) != (1, 0, Marker.FOOTER):
        raise Malformed("the footer's marker", at - SECTOR, "another one", "one sector of type 3")
    raw = read(at, HEADER_BYTES)
    try:
        footer = vmdk_layout.decode_header(raw)
    except Malformed as error:
        raise Malformed(
            f"the footer: {error.structure}", at + error.offset, error.seen, error.wanted
        ) from None
    if (footer.capacity, footer.grain, footer.flags) != (header.capacity, header.grain, header.flags):
        raise Malformed("the footer", at, "another size, grain or flags than the header's", "the same")
    if footer.directory == GD_AT_END:
        raise Malformed("the footer", at + 56, "no place of the grain directory", "one")
    return footer


def plan_stream(capacity: int) -> SparseHeader:
    """The header of a new stream of `capacity` sectors; grains begin behind `overhead` sectors."""
    return SparseHeader(
        version=3, flags=FLAG_NEWLINE | FLAG_COMPRESSED | FLAG_MARKERS, capacity=capacity, grain=GRAIN_SECTORS,
        descriptor_offset=1, descriptor_size=DESCRIPTOR_SECTORS, redundant_directory=0, directory=GD_AT_END,
        overhead=GRAIN_SECTORS,
    )  # fmt: skip


def encode_grain(sector: int, packed: bytes) -> bytes:
    """A compressed grain behind its marker, filled up to a whole sector."""
    return _padded(_GRAIN_MARKER.pack(sector, len(packed)) + packed)


def encode_table(table: "array[int]") -> bytes:
    """A grain table behind its marker."""
    return _padded(_MARKER.pack(TABLE_SECTORS, 0, Marker.TABLE)) + vmdk_layout.encode_entries(table)


def encode_end(header: SparseHeader, directory: "array[int]", sector: int) -> bytes:
    """Directory, footer and end mark, to stand at `sector`."""
    raw = _padded(vmdk_layout.encode_entries(directory))
    footer = replace(header, directory=sector + 1)
    return b"".join(
        (
            _padded(_MARKER.pack(len(raw) // SECTOR, 0, Marker.DIRECTORY)), raw,
            _padded(_MARKER.pack(1, 0, Marker.FOOTER)), vmdk_layout.encode_header(footer),
            _padded(_MARKER.pack(0, 0, Marker.END)),
        )
    )  # fmt: skip


def _padded(raw: bytes) -> bytes:
    return raw.ljust(-(-len(raw) // SECTOR) * SECTOR, b"\0")
