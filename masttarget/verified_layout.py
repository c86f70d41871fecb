"""The file `verified` as bytes: of one disk, what its medium held when it was last read again.

A header and pages, each with its own checksum: what is torn or broken is unknown, and read again. Byte tables:
docs/journal.md.
"""

import struct
from typing import Final, Protocol

from _native import undo
from drcore.record import Record
from drcore.units import DIGEST_BYTES, parts

MAGIC: Final = b"HWVF"
VERSION: Final = 1
CONTENT_DIGEST_BYTES: Final = 32
PAGE_BYTES: Final = 4096
PAGE_BLOCKS: Final = 127
"""Digests of one page: 16 bytes of checksum, 16 of its number, the rest are digests."""
HEADER_BYTES: Final = 128
_HEADER: Final = struct.Struct("<16s4sHH16s16sQQ16s32sI4x")
_PAGE: Final = struct.Struct("<16sQ8x")
_WHOLE: Final = 1


class VerifiedHeader(Record):
    """Which state the pages speak of: that of the point `point` with this `cycle`, whose content root is `root`.

    Unless `whole`, pages are being changed: of blocks that were written since the point they may hold either digest.
    """

    item: bytes
    disk: bytes
    data_bytes: int
    cycle: int
    point: bytes
    root: bytes
    whole: bool

    def encode(self) -> bytes:
        """128 bytes, checksum first."""
        body = _HEADER.pack(
            b"", MAGIC, VERSION, HEADER_BYTES, self.item, self.disk, self.data_bytes, self.cycle,
            self.point, self.root, _WHOLE if self.whole else 0,
        )[DIGEST_BYTES:]  # fmt: skip
        return undo.checksum(body) + body

    @classmethod
    def decode(cls, data: bytes) -> "VerifiedHeader":
        """The header in the first bytes of a file. Errors: `ValueError` with a reason."""
        if len(data) < HEADER_BYTES:
            raise ValueError("a header that is cut")
        checksum, magic, version, length, item, disk, size, cycle, point, root, state = _HEADER.unpack_from(
            data
        )
        if magic != MAGIC or undo.checksum(data[DIGEST_BYTES:HEADER_BYTES]) != checksum:
            raise ValueError("a header whose checksum is wrong")
        if (version, length) != (VERSION, HEADER_BYTES) or state not in (0, _WHOLE):
            raise ValueError(f"a header of version {version}, state {state}")
        return cls(item, disk, size, cycle, point, root, state == _WHOLE)


def file_bytes(blocks: int) -> int:
    """How long the file of a disk of so many blocks is."""
    return PAGE_BYTES + parts(blocks, PAGE_BLOCKS) * PAGE_BYTES


def page_offset(page: int) -> int:
    """Where the page is in the file."""
    return PAGE_BYTES + page * PAGE_BYTES


def encode_page(page: int, digests: bytes | bytearray) -> bytes:
    """The page; fewer digests than it has room for are filled up with zeroes."""
    body = _PAGE.pack(b"", page)[DIGEST_BYTES:] + digests
    body += bytes(PAGE_BYTES - DIGEST_BYTES - len(body))
    return undo.checksum(body) + body


def decode_page(page: int, data: bytes) -> bytes:
    """The 127 digests of the page. Errors: `ValueError` when it is none, or another one."""
    if len(data) < PAGE_BYTES:
        raise ValueError("a page that is cut")
    checksum, number = _PAGE.unpack_from(data)
    if undo.checksum(data[DIGEST_BYTES:PAGE_BYTES]) != checksum or number != page:
        raise ValueError("a page whose checksum is wrong")
    return data[_PAGE.size : PAGE_BYTES]


class VerifiedFile(Protocol):
    """Where the digests are. Errors: `RetentionFailed` (HW-MT-037), `RetentionFull` (036)."""

    @property
    def path(self) -> str:
        """Where it is, for people."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """So many bytes, fewer at the end; none where there is no file."""
        ...

    def write(self, offset: int, data: bytes) -> None:
        """The bytes are there, not yet durable."""
        ...

    def flush(self) -> None:
        """Everything written before the call is durable."""
        ...

    def reset(self, length: int) -> None:
        """There is a file of so many bytes, all of them zero; it may take a `flush` until that is durable."""
        ...

    def close(self) -> None:
        """The descriptor is given back."""
        ...
