"""The words of the NBD protocol that a read-only export needs, as bytes (doc/proto.md of nbd). No input or output."""

import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Final

from disks.disk import Extent, ExtentKind

ALLOCATION: Final = b"base:allocation"
"""The meta context in which a client asks what it need not read."""
CONTEXT_ID: Final = 1
EXTENTS_MAX: Final = 4096
"""Of one answer to BLOCK_STATUS, 32 KiB; a client asks again for what it was not told."""
NBDMAGIC, IHAVEOPT, REPLY_MAGIC = 0x4E42444D41474943, 0x49484156454F5054, 0x3E889045565A9
REQUEST_MAGIC, SIMPLE_MAGIC, CHUNK_MAGIC = 0x25609513, 0x67446698, 0x668E33EF
FIXED, NO_ZEROES = 1, 2
FLAGS: Final = 1 | 2 | 4 | 256
"""Of the export: has flags, read-only, takes flushes, any number of connections."""
REQ_ONE: Final = 8
"""Flag of BLOCK_STATUS: one extent, no longer than what was asked for."""
EPERM, EIO, EINVAL = 1, 5, 22
_DONE: Final = 1
_HOLE_THAT_READS_ZERO: Final = 3


class Option(IntEnum):
    """What a client may ask for before the export is chosen."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class Answer(IntEnum):
    """What an option is answered with."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = (1 << 31) | 1
    ERR_INVALID = (1 << 31) | 3


class Command(IntEnum):
    """What a client may ask for of the export; others are only told apart where they carry a payload, or write."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class Chunk(IntEnum):
    """The kinds of structured replies."""

    NONE = 0
    OFFSET_DATA = 1
    BLOCK_STATUS = 5
    ERROR = (1 << 15) | 1


def option_reply(option: int, kind: Answer, data: bytes = b"") -> bytes:
    """A reply to an option."""
    return struct.pack(">QIII", REPLY_MAGIC, option, kind, len(data)) + data


def simple_reply(cookie: int, error: int) -> bytes:
    """What stands in front of the data of a read, or alone."""
    return struct.pack(">IIQ", SIMPLE_MAGIC, error, cookie)


def chunk(cookie: int, kind: Chunk, length: int) -> bytes:
    """What stands in front of `length` bytes: the only, hence last chunk of a structured reply."""
    return struct.pack(">IHHQI", CHUNK_MAGIC, _DONE, kind, cookie, length)


def error_chunk(cookie: int, error: int) -> bytes:
    """A structured reply that says no, without words."""
    return chunk(cookie, Chunk.ERROR, 6) + struct.pack(">IH", error, 0)


def export_of(data: bytes) -> bytes | None:
    """The export's name in INFO and GO; None where the data cannot be one. What else is asked for need not be known."""
    if len(data) < 6:
        return None
    (length,) = struct.unpack_from(">I", data)
    return data[4 : 4 + length] if length <= len(data) - 6 else None


def queries_of(data: bytes) -> tuple[bytes, list[bytes]] | None:
    """The export's name and the queries of the two options about contexts; None where the data cannot be that."""
    words, at = [], 0
    try:
        (length,) = struct.unpack_from(">I", data)
        (count,) = struct.unpack_from(">I", data, 4 + length)
        name, at = data[4 : 4 + length], 8 + length
        for _ in range(min(count, len(data))):
            (length,) = struct.unpack_from(">I", data, at)
            words.append(data[at + 4 : at + 4 + length])
            at += 4 + length
    except struct.error:
        return None
    return (name, words) if at == len(data) and count == len(words) else None


def knows_allocation(queries: list[bytes], *, listing: bool) -> bool:
    """Whether the queries mean `base:allocation`: when listing also none at all, or the whole namespace."""
    if listing and (not queries or b"base:" in queries):
        return True
    return ALLOCATION in queries


def block_status(extents: Iterable[Extent], *, one: bool) -> bytes:
    """The payload of a BLOCK_STATUS chunk: extents that follow one another, neighbours of one kind as one."""
    found = list(_runs(extents, 1 if one else EXTENTS_MAX))
    return struct.pack(">I", CONTEXT_ID) + b"".join(
        struct.pack(">II", length, flags) for length, flags in found
    )


def _runs(extents: Iterable[Extent], most: int) -> Iterator[tuple[int, int]]:
    length = flags = given = 0
    for extent in extents:
        here = _HOLE_THAT_READS_ZERO if extent.kind is ExtentKind.ZERO else 0
        if length and here != flags:
            yield length, flags
            length, given = 0, given + 1
            if given == most:
                return
        length, flags = length + extent.length, here
    if length:
        yield length, flags
