"""The typed messages inside the seal, and how each lies in bytes.

Every message starts with the same 16 bytes: type, flags, level, a zero, count (u32), index (u64), little-endian. What
follows depends on the type (docs/protocol.md has the table). Decoding checks every count and length before use;
bulk content (digests, a data frame's entries) stays in the frame's plaintext and is lent out as a memoryview that is
valid until the next frame is opened.
"""

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Final, TypeAlias

from drcore.errors import HomewardError
from drcore.limits import DISK_BYTES_MAX
from drcore.record import Record
from drcore.units import BLOCK_BYTES, BLOCK_SECTORS, DIGEST_BYTES, FANOUT, SECTOR_BYTES
from wireproto.barrier import Enrol, Frozen, Harvested, Prepare, Thaw, decode_enrol
from wireproto.errors import LimitExceeded, MessageRefused, PeerReported
from wireproto.words import decode_words, encode_words

PREFIX: Final = struct.Struct("<BBBBIQ")
PREFIX_BYTES: Final = PREFIX.size
_RANGE: Final = struct.Struct("<QQ")
_MAPS: Final = struct.Struct("<QQ")
_POINT_BYTES: Final = 16
_TOTALS: Final = struct.Struct("<QQ32s")
_OPENED: Final = struct.Struct("<QB7x")
_ASKED: Final = struct.Struct("<Q")
_MISSING: Final = struct.Struct("<QH6x")

BLOCKS_MAX: Final = DISK_BYTES_MAX // BLOCK_BYTES
RANGES_MAX: Final = 4096
"""Zero ranges in one message: 64 KiB of them, a fraction of a frame."""
REGIONS_MAX: Final = 4096
"""Region digests in one message; a run of zero regions is one entry whatever its length."""
REFERENCES_MAX: Final = 1024
"""Blocks in one message of references: they may bring 64 MiB about, applied while nothing else is."""
REPORT_TEXTS: Final = 6
SECTOR_DIGESTS_BYTES: Final = 16 * DIGEST_BYTES
DISKS_MAX: Final = 255
"""Streams of a connection less the session's own."""


class MessageType(IntEnum):
    """The first byte inside the seal."""

    OPEN = 1
    OPENED = 2
    SCANNED = 3
    CHILDREN = 4
    DIFFER = 5
    DATA = 6
    ZEROES = 7
    DURABLE = 8
    MISMATCH = 9
    COMMIT = 10
    PUBLISHED = 11
    UNSETTLED = 12
    REPORT = 13
    BYE = 14
    ALIVE = 15
    SEEK = 16
    READY = 17
    REFER = 18
    MISSING = 19
    ENROL = 20
    PREPARE = 21
    FROZEN = 22
    HARVESTED = 23
    THAW = 24
    FAILED = 25


class Open(Record):
    """Agent: proves the fresh key; the session or lane that the handshake asked for shall begin."""


class DiskState(Record):
    """What the master target says of one of its disks at the opening."""

    target_bytes: int
    empty: bool
    """Created for this session: reads as zeroes from end to end."""
    resumed: bool
    """An earlier session of this cycle broke off."""
    finds: bool = False
    """SEEK and REFER are understood, and there is content that can be found."""


class Opened(Record):
    """Master target: the session has begun and older ones are fenced off; repeats the last published point."""

    session: int
    published: bytes
    """16 bytes; zeroes when no point was published yet."""
    disks: tuple[DiskState, ...]


class Scanned(Record):
    """Master target: digests of `count` regions from `first` on; `digests` is empty when all of them are zero."""

    first: int
    count: int
    digests: memoryview


class Children(Record):
    """Agent: digests of the children (spans of a region, level 2; blocks of a span, level 1) of node `node`."""

    level: int
    node: int
    digests: memoryview


class Differ(Record):
    """Master target's answer to `Children`: bitmaps of the children that differ and, of those, that are zero here.

    At level 1 `sectors` holds 16 sector digests (256 bytes) for each block that differs and is zero on neither side.
    """

    level: int
    node: int
    differing: int
    zero: int
    sectors: memoryview


class Data(Record, often=True):
    """Agent: `count` entries of new content (the layout is `_native.pack`'s)."""

    count: int
    entries: memoryview


class Zeroes(Record):
    """Agent: runs of blocks (first, count) that become zero."""

    ranges: tuple[tuple[int, int], ...]


class Durable(Record):
    """Master target: every frame of the stream up to `sequence` is durable, its applied record too."""

    sequence: int


class Mismatch(Record):
    """Master target: laying sectors over these blocks did not give the digest that was told; send them whole."""

    blocks: tuple[int, ...]


class DiskTotals(Record):
    """What a commit says of one disk: frames and bytes of plaintext in its streams, and the root."""

    frames: int
    plain_bytes: int
    root: bytes


class Commit(Record):
    """Agent: everything is sent; publish `point` if counts and roots agree."""

    point: bytes
    previous: bytes
    disks: tuple[DiskTotals, ...]
    app_consistent: bool = False
    """Applications had come to rest before the sources were read; else the point is crash-consistent."""


class Published(Record):
    """Master target: the point is durable."""

    point: bytes


class Unsettled(Record):
    """Master target: blocks named in `Mismatch` are still due; commit again after them."""


class Report(Record):
    """Either side: the dialogue ends with this error."""

    code: str
    what: str
    found: str
    expected: str
    remedy: str
    retry: str
    """The retry class by its name (see `drcore.errors.Retry`)."""


class Failed(Record):
    """Master target: this disk has stopped with this error and takes nothing more; the session's others go on."""

    report: Report


class Bye(Record):
    """Either side: the dialogue ends here without an error (stopped by an operator, or done)."""


class Alive(Record):
    """Either side: nothing to say, but still here. A frame that follows also brings lost bytes to light."""

    waits: bool = False
    """Master target: it takes nothing for now, as it waits for room to keep what is overwritten."""


class Seek(Record):
    """Agent: make ready to find content of this disk by its digests; `over`: no reference will come any more."""

    over: bool


class Ready(Record):
    """Master target's answer to `Seek`: the index is whole and holds so many sectors."""

    known: int


class Refer(Record):
    """Agent: `count` blocks whose content the target may have already, by digests (the layout is `_native.refer`'s)."""

    count: int
    entries: memoryview


class Missing(Record):
    """Master target's answer to each `Refer` of `blocks` blocks: `found` sectors are applied, those listed are not.

    A block is listed with the bitmap of its named sectors that are due as data.
    """

    blocks: int
    found: int
    entries: tuple[tuple[int, int], ...]


Message: TypeAlias = (
    Open
    | Opened
    | Scanned
    | Children
    | Differ
    | Data
    | Zeroes
    | Durable
    | Mismatch
    | Commit
    | Published
    | Unsettled
    | Report
    | Bye
    | Alive
    | Seek
    | Ready
    | Enrol
    | Prepare
    | Frozen
    | Harvested
    | Thaw
    | Failed
    | Refer
    | Missing
)

EMPTY: Final = memoryview(b"")


def report_of(error: HomewardError) -> Report:
    """The message that carries `error` to the peer."""
    if isinstance(error, PeerReported):
        return Report(
            error.peer_code,
            error.peer_what,
            error.peer_found,
            error.peer_expected,
            error.peer_remedy,
            error.peer_retry,
        )
    words = error.as_json()
    return Report(
        error.code, words["error"], words["found"], words["expected"], words["remedy"], error.retry.value
    )


def report_words(report: Report) -> list[str]:
    """The report's texts in the order in which they travel."""
    return [report.code, report.what, report.found, report.expected, report.remedy, report.retry]


def error_of(report: Report) -> PeerReported:
    """The error that a peer's report becomes on this side."""
    return PeerReported(
        peer_code=report.code,
        peer_what=report.what,
        peer_found=report.found,
        peer_expected=report.expected,
        peer_remedy=report.remedy,
        peer_retry=report.retry,
    )


def _prefix(kind: MessageType, count: int = 0, index: int = 0, level: int = 0, flags: int = 0) -> bytes:
    return PREFIX.pack(kind, flags, level, 0, count, index)


def encode(message: Message) -> list[bytes | memoryview]:
    """The message's plaintext in pieces, in order (pieces are lent, not copied)."""
    match message:
        case Open():
            return [_prefix(MessageType.OPEN)]
        case Opened(session, published, disks):
            body = b"".join(
                _OPENED.pack(d.target_bytes, d.empty | d.resumed << 1 | d.finds << 2) for d in disks
            )
            return [_prefix(MessageType.OPENED, len(disks), session), published, body]
        case Scanned(first, count, digests):
            return [_prefix(MessageType.SCANNED, count, first, flags=int(len(digests) == 0)), digests]
        case Children(level, node, digests):
            return [_prefix(MessageType.CHILDREN, len(digests) // DIGEST_BYTES, node, level), digests]
        case Differ(level, node, differing, zero, sectors):
            count = len(sectors) // SECTOR_DIGESTS_BYTES
            return [_prefix(MessageType.DIFFER, count, node, level), _MAPS.pack(differing, zero), sectors]
        case Data(count, entries):
            return [_prefix(MessageType.DATA, count), entries]
        case Zeroes(ranges):
            return [_prefix(MessageType.ZEROES, len(ranges)), b"".join(_RANGE.pack(*run) for run in ranges)]
        case Durable(sequence):
            return [_prefix(MessageType.DURABLE, index=sequence)]
        case Mismatch(blocks):
            return [_prefix(MessageType.MISMATCH, len(blocks)), struct.pack(f"<{len(blocks)}Q", *blocks)]
        case Commit(point, previous, disks, app_consistent):
            totals = b"".join(_TOTALS.pack(d.frames, d.plain_bytes, d.root) for d in disks)
            return [_prefix(MessageType.COMMIT, len(disks), int(app_consistent)), point, previous, totals]
        case Published(point):
            return [_prefix(MessageType.PUBLISHED), point]
        case Unsettled():
            return [_prefix(MessageType.UNSETTLED)]
        case Report():
            return [_prefix(MessageType.REPORT, REPORT_TEXTS), encode_words(report_words(message))]
        case Failed(report):
            return [_prefix(MessageType.FAILED, REPORT_TEXTS), encode_words(report_words(report))]
        case Bye():
            return [_prefix(MessageType.BYE)]
        case Enrol(group):
            return [_prefix(MessageType.ENROL), group.encode()]
        case Prepare(point):
            return [_prefix(MessageType.PREPARE), point]
        case Frozen(point):
            return [_prefix(MessageType.FROZEN), point]
        case Harvested(point):
            return [_prefix(MessageType.HARVESTED), point]
        case Thaw(point):
            return [_prefix(MessageType.THAW), point]
        case Alive(waits):
            return [_prefix(MessageType.ALIVE, flags=int(waits))]
        case Seek(over):
            return [_prefix(MessageType.SEEK, flags=int(over))]
        case Ready(known):
            return [_prefix(MessageType.READY, index=known)]
        case Refer(count, entries):
            return [_prefix(MessageType.REFER, count), entries]
        case Missing(blocks, found, missing):
            body = b"".join(_MISSING.pack(*entry) for entry in missing)
            return [_prefix(MessageType.MISSING, len(missing), found), _ASKED.pack(blocks), body]


class _Raw(Record, often=True):
    kind: MessageType
    flags: int
    level: int
    count: int
    index: int
    body: memoryview

    def limited(self, name: str, value: int, limit: int) -> int:
        if value > limit:
            raise LimitExceeded(field=f"{name} of {self.kind.name}", value=value, limit=limit)
        return value

    def sized(self, size: int) -> memoryview:
        if len(self.body) != size:
            raise MessageRefused(reason=f"{self.kind.name} with {len(self.body)} bytes where {size} are due")
        return self.body

    def runs(self) -> tuple[tuple[int, int], ...]:
        self.limited("ranges", self.count, RANGES_MAX)
        found = tuple(_RANGE.iter_unpack(self.sized(self.count * _RANGE.size)))
        for first, count in found:
            self.limited("first block", first, BLOCKS_MAX)
            self.limited("blocks", count, BLOCKS_MAX)
            if count == 0:
                raise MessageRefused(reason="an empty range")
        return found


def decode(plain: memoryview) -> Message:
    """The message in a frame's plaintext, checked; bulk parts are views of `plain`.

    Errors: `MessageRefused` (HW-WIRE-006), `LimitExceeded` (HW-WIRE-005).
    """
    if len(plain) < PREFIX_BYTES:
        raise MessageRefused(reason="a message that is cut short")
    kind, flags, level, reserved, count, index = PREFIX.unpack_from(plain)
    try:
        raw = _Raw(MessageType(kind), flags, level, count, index, plain[PREFIX_BYTES:])
    except ValueError as error:
        raise MessageRefused(reason=f"message type {kind}") from error
    if reserved:
        raise MessageRefused(reason="a reserved byte that is not zero")
    return _DECODERS[raw.kind](raw)


def _scanned(raw: _Raw) -> Message:
    raw.limited("first region", raw.index, BLOCKS_MAX // FANOUT**2)
    if raw.flags & 1:
        raw.sized(0)
        raw.limited("regions", raw.count, BLOCKS_MAX // FANOUT**2 + 1)
        return Scanned(raw.index, raw.count, EMPTY)
    raw.limited("regions", raw.count, REGIONS_MAX)
    return Scanned(raw.index, raw.count, raw.sized(raw.count * DIGEST_BYTES))


def _node(raw: _Raw) -> int:
    if raw.level not in (1, 2):
        raise MessageRefused(reason=f"level {raw.level}")
    return raw.limited("node", raw.index, BLOCKS_MAX // FANOUT**raw.level)


def _children(raw: _Raw) -> Message:
    raw.limited("children", raw.count, FANOUT)
    return Children(raw.level, _node(raw), raw.sized(raw.count * DIGEST_BYTES))


def _differ(raw: _Raw) -> Message:
    raw.limited("blocks", raw.count, FANOUT)
    body = raw.sized(_MAPS.size + raw.count * SECTOR_DIGESTS_BYTES)
    differing, zero = _MAPS.unpack_from(body)
    if zero & ~differing:
        raise MessageRefused(reason="zero children that do not differ")
    return Differ(raw.level, _node(raw), differing, zero, body[_MAPS.size :])


def _mismatch(raw: _Raw) -> Message:
    raw.limited("blocks", raw.count, RANGES_MAX)
    return Mismatch(struct.unpack(f"<{raw.count}Q", raw.sized(raw.count * 8)))


def _opened(raw: _Raw) -> Message:
    raw.limited("disks", raw.count, DISKS_MAX)
    body = raw.sized(_POINT_BYTES + raw.count * _OPENED.size)
    states = _OPENED.iter_unpack(body[_POINT_BYTES:])
    disks = tuple(
        DiskState(
            raw.limited("target bytes", size, DISK_BYTES_MAX), bool(bits & 1), bool(bits & 2), bool(bits & 4)
        )
        for size, bits in states
    )
    return Opened(raw.index, bytes(body[:_POINT_BYTES]), disks)


def _commit(raw: _Raw) -> Message:
    raw.limited("disks", raw.count, DISKS_MAX)
    body = bytes(raw.sized(2 * _POINT_BYTES + raw.count * _TOTALS.size))
    totals = tuple(DiskTotals(*found) for found in _TOTALS.iter_unpack(body[2 * _POINT_BYTES :]))
    kind = raw.limited("kind of a point", raw.index, 1)
    return Commit(body[:_POINT_BYTES], body[_POINT_BYTES : 2 * _POINT_BYTES], totals, bool(kind))


def _report(raw: _Raw) -> Report:
    if raw.count != REPORT_TEXTS:
        raise MessageRefused(reason=f"a report of {raw.count} texts")
    return Report(*decode_words(bytes(raw.body), REPORT_TEXTS))


def _failed(raw: _Raw) -> Message:
    return Failed(_report(raw))


def _durable(raw: _Raw) -> Message:
    raw.sized(0)
    return Durable(raw.index)


def _data(raw: _Raw) -> Message:
    return Data(raw.limited("entries", raw.count, RANGES_MAX), raw.body)


def _seek(raw: _Raw) -> Message:
    raw.sized(0)
    if raw.flags not in (0, 1):
        raise MessageRefused(reason=f"SEEK with flags {raw.flags}")
    return Seek(bool(raw.flags))


def _alive(raw: _Raw) -> Message:
    raw.sized(0)
    if raw.flags not in (0, 1):
        raise MessageRefused(reason=f"ALIVE with flags {raw.flags}")
    return Alive(bool(raw.flags))


def _ready(raw: _Raw) -> Message:
    raw.sized(0)
    return Ready(raw.limited("sectors", raw.index, DISK_BYTES_MAX // SECTOR_BYTES))


def _refer(raw: _Raw) -> Message:
    return Refer(raw.limited("blocks", raw.count, REFERENCES_MAX), raw.body)


def _missing(raw: _Raw) -> Message:
    raw.limited("blocks", raw.count, REFERENCES_MAX)
    body = raw.sized(_ASKED.size + raw.count * _MISSING.size)
    blocks = raw.limited("blocks asked for", _ASKED.unpack_from(body)[0], REFERENCES_MAX)
    found = raw.limited("sectors", raw.index, REFERENCES_MAX * BLOCK_SECTORS)
    entries = tuple(_MISSING.iter_unpack(body[_ASKED.size :]))
    if len(entries) > blocks or any(sectors == 0 for _, sectors in entries):
        raise MessageRefused(
            reason="an answer that names more blocks than were asked for, or no sector of one"
        )
    for block, _ in entries:
        raw.limited("block", block, BLOCKS_MAX)
    return Missing(blocks, found, entries)


def _bare(message: Message) -> Callable[[_Raw], Message]:
    def decoder(raw: _Raw) -> Message:
        raw.sized(0)
        return message

    return decoder


_DECODERS: Final[dict[MessageType, Callable[[_Raw], Message]]] = {
    MessageType.OPEN: _bare(Open()),
    MessageType.OPENED: _opened,
    MessageType.SCANNED: _scanned,
    MessageType.CHILDREN: _children,
    MessageType.DIFFER: _differ,
    MessageType.DATA: _data,
    MessageType.ZEROES: lambda raw: Zeroes(raw.runs()),
    MessageType.DURABLE: _durable,
    MessageType.MISMATCH: _mismatch,
    MessageType.COMMIT: _commit,
    MessageType.PUBLISHED: lambda raw: Published(bytes(raw.sized(_POINT_BYTES))),
    MessageType.UNSETTLED: _bare(Unsettled()),
    MessageType.REPORT: _report,
    MessageType.BYE: _bare(Bye()),
    MessageType.ALIVE: _alive,
    MessageType.SEEK: _seek,
    MessageType.READY: _ready,
    MessageType.REFER: _refer,
    MessageType.MISSING: _missing,
    MessageType.ENROL: lambda raw: decode_enrol(bytes(raw.body)),
    MessageType.PREPARE: lambda raw: Prepare(bytes(raw.sized(_POINT_BYTES))),
    MessageType.FROZEN: lambda raw: Frozen(bytes(raw.sized(_POINT_BYTES))),
    MessageType.HARVESTED: lambda raw: Harvested(bytes(raw.sized(_POINT_BYTES))),
    MessageType.THAW: lambda raw: Thaw(bytes(raw.sized(_POINT_BYTES))),
    MessageType.FAILED: _failed,
}
