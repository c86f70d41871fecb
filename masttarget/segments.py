"""The retention journal of one disk as bytes: segments, their headers, and the walk over what they hold.

A segment is a header of 128 bytes and records (`_native.undo`) until its end. Byte tables: docs/journal.md.
"""

import json
import struct
from collections.abc import Iterator
from typing import Any, Final, Protocol

from _native import undo
from drcore.buffers import Pool
from drcore.limits import SPARE_BUFFERS_MAX, UNDO_PIECE_BYTES
from drcore.record import Changing, Record
from drcore.units import BLOCK_BYTES, DIGEST_BYTES
from masttarget.errors_retention import ClockBackwards, SegmentDamaged, SegmentForeign, SegmentMissing
from masttarget.index import Index

MAGIC: Final = b"HWRJ"
VERSION: Final = 2
_HEADER: Final = struct.Struct("<16s4sHH16s16sQQQ16sQQ16x")
HEADER_BYTES: Final = _HEADER.size
_RECORD: Final = struct.Struct("<16sQQIIIBBHQ")
KIND_NOTE: Final = 2
"""A record whose payload is a small JSON object: a point, a clean close, the base of a history."""
NO_CHAIN: Final = bytes(DIGEST_BYTES)
CYCLE_MAX: Final = 2**63
_WINDOWS: Final = Pool(UNDO_PIECE_BYTES, SPARE_BUFFERS_MAX)
"""Buffers through which segments are walked: what was read is proved while it is in a core's own cache."""


class SegmentHeader(Record):
    """What a segment says of itself. `previous_end` and `chain`: where the one before ends, and its last checksum."""

    item: bytes
    disk: bytes
    number: int
    first_cycle: int
    previous_end: int
    chain: bytes
    created_ms: int
    data_bytes: int

    def encode(self) -> bytes:
        """128 bytes, checksum first."""
        body = _HEADER.pack(
            b"",
            MAGIC,
            VERSION,
            HEADER_BYTES,
            self.item,
            self.disk,
            self.number,
            self.first_cycle,
            self.previous_end,
            self.chain,
            self.created_ms,
            self.data_bytes,
        )[DIGEST_BYTES:]
        return undo.checksum(body) + body

    @classmethod
    def decode(cls, data: bytes) -> "SegmentHeader":
        """The header in the first bytes of a segment. Errors: `ValueError` with a reason."""
        if len(data) < HEADER_BYTES:
            raise ValueError("a header that is cut")
        found = _HEADER.unpack_from(data)
        if found[1] != MAGIC or undo.checksum(data[DIGEST_BYTES:HEADER_BYTES]) != found[0]:
            raise ValueError("a header whose checksum is wrong")
        if (found[2], found[3]) != (VERSION, HEADER_BYTES):
            raise ValueError(f"a header of version {found[2]}")
        return cls(*found[4:])


def checksum_of(whole: bytes) -> bytes:
    """What the record behind a header or a record chains to."""
    return whole[:DIGEST_BYTES]


def encode_note(note: dict[str, Any], cycle: int, durable: int, chain: bytes) -> bytes:
    """A record that holds a small JSON object; its first 16 bytes are its checksum."""
    payload = json.dumps(note, separators=(",", ":")).encode()
    head = _RECORD.pack(chain, cycle, 0, 0, len(payload), len(payload), KIND_NOTE, 0, 0, durable)
    body = head + payload
    return undo.checksum(body) + body


class Note(Record):
    """A note and where it stands."""

    segment: int
    offset: int
    cycle: int
    content: dict[str, Any]


class Segments(Protocol):
    """A disk's segments on the retention volume. Errors of every verb: `RetentionFailed` (HW-MT-037)."""

    @property
    def path(self) -> str:
        """Where they are, for people."""
        ...

    def numbers(self) -> list[int]:
        """The segments that are there, ascending."""
        ...

    def read(self, number: int, offset: int = 0, length: int = -1) -> bytes:
        """Bytes of a segment, fewer at its end. A segment that is not there: `FileNotFoundError`."""
        ...

    def read_into(self, number: int, offset: int, into: memoryview) -> int:
        """`into` begins with the segment's bytes from `offset` on; answers how many, fewer only at its end.

        A segment that is not there: `FileNotFoundError`.
        """
        ...

    def start(self, number: int, header: bytes) -> None:
        """The segment is there with its header, in place of what a broken start left; `append` goes to it."""
        ...

    def append(self, data: memoryview) -> None:
        """The bytes are at the end of the current segment, not yet durable. Errors also: `RetentionFull` (036)."""
        ...

    def flush(self) -> None:
        """Everything appended before the call is durable, the names of new segments too."""
        ...

    def remove(self, numbers: list[int]) -> None:
        """The segments are gone, in the order given."""
        ...

    def load_head(self) -> "Head | None":
        """The last durable head; None before the first."""
        ...

    def store_head(self, head: "Head") -> None:
        """The head is durable in place of the last one."""
        ...

    def own(self) -> None:
        """Nobody else writes the segments until `close`. Errors: `RetentionBusy` (HW-MT-045)."""
        ...

    def close(self) -> None:
        """The current segment's descriptor is given back, and the right to write."""
        ...


class Head(Record):
    """What is known to be durable: the journal reaches from segment `first` to byte `offset` of segment `segment`."""

    first: int
    segment: int
    offset: int


class Reached(Changing):
    """How far a walk came: the last good place, its checksum, and what stood there."""

    segment: int = 0
    offset: int = 0
    chain: bytes = NO_CHAIN
    durable: int = 0
    torn: bool = False


class Wanted(Record):
    """What a walk notes of old contents, for these cycles: of a disk of `blocks` blocks, in what is given."""

    cycle_min: int = 0
    cycle_max: int = CYCLE_MAX
    blocks: int = 0
    bitmap: memoryview | None = None
    """A bit for each block that has a record."""
    covered: memoryview | None = None
    """Of each block (u16) the sectors that have one."""
    index: Index | None = None
    """That, and where they are."""


def place(segment: int, offset: int) -> int:
    """A segment and an offset in it as one number, never 0."""
    return segment << 32 | offset


def placed(found: int) -> tuple[int, int]:
    """The segment and the offset of such a number."""
    return found >> 32, found & 0xFFFFFFFF


class Walk:
    """A walk over a disk's segments, from one of them to the end of the last, every byte proved.

    What follows a broken place is never used. At the end of the last segment, behind everything that is known to be
    durable, a broken place is a torn tail: the power failed while it was written. Anywhere else it is damage.
    """

    def __init__(self, segments: Segments, item: bytes, disk: bytes, wanted: Wanted) -> None:
        self._segments = segments
        self._item = item
        self._disk = disk
        self._wanted = wanted
        self.notes: list[Note] = []
        self.noted = False
        """Whether something was."""
        self.reached = Reached()
        self._created_ms = 0

    def run(self, first: int, head: Head | None) -> Reached:
        """Everything from segment `first` on is noted.

        Errors: `SegmentDamaged`, `SegmentMissing`, `SegmentForeign`, `ClockBackwards`, each with its place; what was
        noted before stays noted.
        """
        numbers = [number for number in self._segments.numbers() if number >= first]
        last = max([*numbers[-1:], head.segment if head is not None else 0])
        for number in range(first, last + 1):
            if number not in numbers:
                raise self._missing(number, first, last)
            try:
                self._segment(number, first, last, head)
            except FileNotFoundError as error:
                raise self._missing(number, first, last) from error
        return self.reached

    def _missing(self, number: int, first: int, last: int) -> SegmentMissing:
        return SegmentMissing(
            path=self._segments.path, segment=number, offset=self.reached.offset, first=first, last=last
        )

    def _segment(self, number: int, first: int, last: int, head: Head | None) -> None:
        data = self._segments.read(number, 0, HEADER_BYTES)
        try:
            header = SegmentHeader.decode(data)
        except ValueError as error:
            if number == last and (head is None or head.segment < number):
                self.reached.torn = True
                return  # started, and never durable: the next one takes its place
            raise self._damaged(number, 0, str(error)) from error
        self._check_header(number, header, number == first)
        self.reached = self.reached.but(segment=number, offset=HEADER_BYTES, chain=checksum_of(data))
        self.reached.durable = 0
        offset, reason, data = self._records(number)
        if reason is None:
            if head is not None and head.segment == number and offset < head.offset:
                raise self._damaged(number, offset, f"an end before byte {head.offset}, which was durable")
            return
        self.reached.torn = True
        self._check_torn(number, offset, reason, last, head, data)

    def _check_header(self, number: int, header: SegmentHeader, is_first: bool) -> None:
        path = self._segments.path
        if (header.item, header.disk) != (self._item, self._disk):
            raise SegmentForeign(
                path=path, segment=number, offset=0, item=self._item.hex(), disk=self._disk.hex(),
                found_item=header.item.hex(), found_disk=header.disk.hex(),
            )  # fmt: skip
        if header.number != number:
            raise self._damaged(number, 0, f"segment {header.number} in its place")
        if header.created_ms < self._created_ms:
            raise ClockBackwards(
                path=path, segment=number, offset=0,
                found_time=f"{header.created_ms} ms", expected_time=f"{self._created_ms} ms",
            )  # fmt: skip
        self._created_ms = header.created_ms
        if is_first:
            return
        before = self.reached
        if header.chain != before.chain or header.previous_end != before.offset:
            reason = f"it ends at byte {before.offset}, and the next segment says {header.previous_end}"
            raise self._damaged(before.segment, before.offset, reason)
        before.torn = False

    def _records(self, number: int) -> tuple[int, str | None, bytes]:
        """How far the segment's records are good, and what is wrong there: then with all of its bytes."""
        at = HEADER_BYTES
        with _WINDOWS.lend() as window:
            while got := self._segments.read_into(number, at, window):
                reached, _ = self._scan(number, window[:got], at, at)
                if reached == at:
                    break  # more than cut by the window's end
                at = reached
            else:
                return at, None, b""
        data = self._segments.read(number)  # in which it may be whole by now: somebody is just writing it
        return *self._scan(number, memoryview(data), 0, at), data

    def _scan(self, number: int, data: memoryview, begin: int, offset: int) -> tuple[int, str | None]:
        """How far the records in `data`, which lies at `begin`, are good from `offset` on; what is wrong there."""
        wanted, index = self._wanted, self._wanted.index
        while True:
            covered, places, more = wanted.covered, None, None
            if index is not None:
                covered, places, more = index.covered, index.places, index.more
            position, chain, reason, _, noted, durable = undo.scan(
                data, offset - begin, self.reached.chain, wanted.cycle_min, wanted.cycle_max, wanted.blocks,
                wanted.bitmap, covered, places, more, place(number, begin),
            )  # fmt: skip
            offset = begin + position
            self.reached.offset, self.reached.chain = offset, chain
            self.reached.durable = max(self.reached.durable, durable)
            self.noted = self.noted or noted > 0
            if reason == undo.NO_ROOM and index is not None:
                index.grow()
                continue
            if reason != "":
                return offset, reason
            record = bytes(data[position : position + undo.HEADER_BYTES + _stored(data, position)])
            note = decode_note(record, number, offset)
            if note is None:
                return offset, "a note that cannot be read"
            self.notes.append(note)
            offset += len(record)
            self.reached.offset, self.reached.chain = offset, checksum_of(record)

    def _check_torn(
        self, number: int, offset: int, reason: str, last: int, head: Head | None, data: bytes
    ) -> None:
        """The place may be torn. Errors: `SegmentDamaged` when something says that it was durable."""
        if head is not None and head.segment == number and head.offset > offset:
            raise self._damaged(number, offset, reason)
        if number == last and told_durable(data, offset) > offset:
            raise self._damaged(number, offset, reason)

    def _damaged(self, segment: int, offset: int, reason: str) -> SegmentDamaged:
        return SegmentDamaged(path=self._segments.path, segment=segment, offset=offset, reason=reason)


def _stored(data: memoryview, position: int) -> int:
    """Bytes of the payload of the record there."""
    return int(_RECORD.unpack_from(data, position + DIGEST_BYTES)[4])


def decode_note(record: bytes, segment: int, offset: int) -> Note | None:
    """The note in a record whose checksum is good; None when it is none. Where it stands is only passed on."""
    found = _RECORD.unpack_from(record, DIGEST_BYTES)
    if found[6] != KIND_NOTE:
        return None
    try:
        content = json.loads(record[undo.HEADER_BYTES :])
    except ValueError:
        return None
    return Note(segment, offset, found[1], content) if isinstance(content, dict) else None


def told_durable(data: bytes, offset: int) -> int:
    """How far good records behind a broken place say that the segment was durable; 0 when there are none.

    The broken record's own length may still lead to the next one; else the next good one is looked for at every byte
    of the next block's length.
    """
    told = 0
    end = min(len(data), offset + 2 * (BLOCK_BYTES + undo.HEADER_BYTES))
    for at in range(offset + 1, end):
        if len(data) - at < undo.HEADER_BYTES:
            break
        found = _RECORD.unpack_from(data, at + DIGEST_BYTES)
        if found[6] not in (1, KIND_NOTE) or found[4] > BLOCK_BYTES or found[9] > len(data):
            continue
        stop = at + undo.HEADER_BYTES + found[4]
        if (
            stop <= len(data)
            and undo.checksum(data[at + DIGEST_BYTES : stop]) == data[at : at + DIGEST_BYTES]
        ):
            _, _, _, _, _, durable = undo.scan(data, at, found[0], 0, CYCLE_MAX, 0, None, None, None, None, 0)
            told = max(told, durable, found[9])
            break
    return told


def headers(segments: Segments, numbers: list[int]) -> Iterator[tuple[int, SegmentHeader]]:
    """The readable headers of the segments; the walk speaks of those that are not."""
    for number in numbers:
        try:
            yield number, SegmentHeader.decode(segments.read(number, 0, HEADER_BYTES))
        except (ValueError, FileNotFoundError):
            continue


def first_needed(segments: Segments, first: int, cycle: int) -> int:
    """The last segment that holds nothing of the cycle or a later one, or `first`: where a walk has to begin."""
    numbers = [number for number in segments.numbers() if number >= first]
    begin = first
    for number, header in headers(segments, numbers):
        if header.first_cycle >= cycle:
            break
        begin = number
    return begin
