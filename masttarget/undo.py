"""The old contents of one target disk: kept before their first overwrite in a cycle, and durable before it happens.

The order is the contract's: an undo record is durable before the target is written. Kept are the sectors that change,
not more. Three doors: `expect` takes content that was read anyway, while answering a comparison; `foresee` reads what
will be overwritten, as soon as that is known; both let a flush in the background overtake the write. `before_overwrite`
makes sure, and costs a read and a flush only where nobody foresaw it.

Here a bitmap has a bit for each sector, from the first one of a span on.
"""

import threading
from collections.abc import Callable
from typing import Any, Final, Protocol

from _native import undo
from drcore.buffers import Pool
from drcore.clock import Clock
from drcore.errors import HomewardError, coded
from drcore.limits import SEGMENT_BYTES, SPARE_BUFFERS_MAX, UNDO_FLUSH_BYTES, UNDO_PIECE_BYTES
from drcore.record import Record
from drcore.units import (
    BLOCK_BYTES,
    BLOCK_SECTORS,
    DIGEST_BYTES,
    SECTOR_BYTES,
    SPAN_BLOCKS,
    bit_runs,
    parts,
)
from masttarget.index import zeroes
from masttarget.segments import (
    HEADER_BYTES,
    NO_CHAIN,
    Head,
    Note,
    Reached,
    SegmentHeader,
    Segments,
    Walk,
    Wanted,
    checksum_of,
    encode_note,
    first_needed,
    headers,
)

_BITMAP_BYTES: Final = BLOCK_SECTORS // 8
_SPAN_BITMAP_BYTES: Final = SPAN_BLOCKS * _BITMAP_BYTES
_PIECE_BLOCKS: Final = UNDO_PIECE_BYTES // BLOCK_BYTES
_PIECE_SECTORS: Final = _PIECE_BLOCKS * BLOCK_SECTORS
_PIECE_BITS: Final = (1 << _PIECE_SECTORS) - 1
_AUTO: Final = 2
_QUICK: Final = 3
_PIECES: Final = Pool(UNDO_PIECE_BYTES, SPARE_BUFFERS_MAX)
PACKED_BYTES: Final = UNDO_PIECE_BYTES + _PIECE_BLOCKS * undo.HEADER_BYTES
"""Records of a piece, of whatever content."""
_PACKED: Final = Pool(PACKED_BYTES, SPARE_BUFFERS_MAX)
"""Buffers of all disks: old content as it is read, and as it goes into a segment."""

Read = Callable[[int, memoryview], None]
"""Fills a view with the disk's content from an offset on."""
MakeRoom = Callable[[HomewardError], None]
"""Returns when another attempt to append is worth it; raises when the cycle cannot go on now."""


class Undo(Protocol):
    """What the owner of a target disk needs."""

    active: bool
    """False while the target is seeded: nothing is kept then."""

    def expect(self, first_block: int, blocks: int, span: memoryview) -> None:
        """The blocks (bits) of the span, whose content is at hand, will be overwritten soon."""
        ...

    def foresee(self, first_block: int, sectors: int) -> None:
        """The sectors (bits) of the span will be overwritten soon."""
        ...

    def before_overwrite(self, first: int, count: int, sectors: int | None = None) -> None:
        """What the blocks held when the cycle began is durable; they may be overwritten.

        `sectors`: only these (bits, from the first block on) are to be.
        """
        ...


def whole(blocks: int) -> int:
    """All sectors of the blocks (bits)."""
    sectors = 0
    for first, count in bit_runs(blocks):
        sectors |= ((1 << count * BLOCK_SECTORS) - 1) << first * BLOCK_SECTORS
    return sectors


class Identity(Record):
    """Whose old contents these are."""

    item: bytes
    disk: bytes
    data_bytes: int


class UndoJournal:
    """See the module. One thread at a time may call it (the target's lock sees to that); it flushes in its own.

    Two may where one calls only `keep` and the other only `before_overwrite`: what comes next is packed while the other
    waits for the medium, and writes.

    `forget_before` alone may come from the writer of another disk of the item, who needs room; `_busy` keeps the two
    apart.
    """

    def __init__(
        self,
        segments: Segments,
        identity: Identity,
        read: Read,
        clock: Clock,
        make_room: MakeRoom,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self.segments = segments
        self.identity = identity
        self._read = read
        self._clock = clock
        self._make_room = make_room
        self._segment_bytes = segment_bytes
        self.blocks = parts(identity.data_bytes, BLOCK_BYTES)
        self.cycle = 0
        self.cycle_bytes = 0
        self.active = True
        """False while the target is seeded: there is nothing to go back to."""
        self._last_short = identity.data_bytes % BLOCK_BYTES > 0
        self._recorded = self._new_bitmap()
        self.wrote = False
        """Whether the open cycle has a record."""
        self._pending: dict[int, int] = {}
        self._first = 1
        self._end = (0, 0)
        self._chain = bytes(DIGEST_BYTES)
        self._created_ms = 0
        self._open = False
        self._written = 0
        self._changed = threading.Condition()
        self._busy = threading.RLock()
        self._durable = 0
        self._durable_place = (0, 0)
        self._flushing = 0
        self._stopping = False
        self._failure: HomewardError | None = None
        self._thread: threading.Thread | None = None

    # Opening

    def open(self, cycle: int, durable: tuple[int, int] = (0, 0)) -> list[Note]:
        """What has a record in the open cycle is known; answers the journal's last notes.

        `durable`: a segment and a byte up to which somebody else knows the journal to be durable. Errors: HW-MT-030
        to 033, 037.
        """
        self.segments.own()
        head = self.segments.load_head()
        if durable > ((head.segment, head.offset) if head is not None else (0, 0)):
            head = Head(head.first if head is not None else 1, *durable)
        self.cycle = cycle
        self._recorded, self.wrote = self._new_bitmap(), False
        self._first = head.first if head is not None else 1
        numbers = [number for number in self.segments.numbers() if number >= self._first]
        if numbers or head is not None:
            wanted = Wanted(cycle, cycle, self.blocks, covered=self._recorded.cast("H"))
            walk = Walk(self.segments, self.identity.item, self.identity.disk, wanted)
            self._take(walk.run(first_needed(self.segments, self._first, cycle), head))
            self.wrote = walk.noted
            return walk.notes
        return []

    def _take(self, reached: Reached) -> None:
        self._end = (reached.segment, reached.offset) if reached.segment else (self._first - 1, 0)
        self._chain = reached.chain
        if reached.segment:
            self._created_ms = SegmentHeader.decode(
                self.segments.read(reached.segment, 0, HEADER_BYTES)
            ).created_ms
        self._durable_place = self._end
        left = [number for number in self.segments.numbers() if number < self._first]
        if left:  # a pruning was broken off between its record and the last file
            self.segments.remove(left)

    def _new_bitmap(self) -> memoryview:
        return zeroes("B", max(parts(self.blocks, SPAN_BLOCKS), 1) * _SPAN_BITMAP_BYTES)

    @property
    def used(self) -> bool:
        """Whether there is a segment: before the first record there is none."""
        return self._end[1] > 0

    # Keeping

    def missing(self, first_block: int, sectors: int) -> int:
        """Which of the sectors (bits, from the block on, all of one span) have no record in this cycle.

        A short block is recorded as a whole.
        """
        at = first_block * _BITMAP_BYTES
        end = min(at + parts(sectors.bit_length(), 8), len(self._recorded))
        missing = sectors & ~int.from_bytes(self._recorded[at:end], "little")
        if self._last_short and missing:
            last = self.blocks - 1 - first_block
            if last >= 0 and missing >> last * BLOCK_SECTORS:
                missing |= undo.WHOLE << last * BLOCK_SECTORS
        return missing

    def expect(self, first_block: int, blocks: int, span: memoryview) -> None:
        """See `Undo`. `first_block` is the span's first; a flush begins by itself."""
        if not self.active or not blocks:
            return
        with self._busy:
            missing = self.missing(first_block, whole(blocks))
            for piece in range(0, SPAN_BLOCKS, _PIECE_BLOCKS):
                wanted = missing >> piece * BLOCK_SECTORS & _PIECE_BITS
                if wanted:
                    content = span[piece * BLOCK_BYTES : (piece + _PIECE_BLOCKS) * BLOCK_BYTES]
                    self._keep(first_block + piece, wanted, content)

    def foresee(self, first_block: int, sectors: int) -> None:
        """See `Undo`. `first_block` is the span's first; a flush begins by itself."""
        if not self.active:
            return
        with self._busy:
            missing = self.missing(first_block, sectors)
            if missing:
                self._read_and_keep(first_block, missing)

    def before_overwrite(self, first: int, count: int, sectors: int | None = None) -> None:
        """See `Undo`. Errors: `RetentionFull`, `RetentionFailed`, those of `Disk.read`."""
        if not self.active or not count:
            return
        with self._busy:
            wait = self._keep_all(first, first + count, sectors)
        # Not in there: what comes next may be packed while this waits for the medium.
        if wait > self._durable:
            self._wait(wait)

    def _keep_all(self, first: int, end: int, sectors: int | None) -> int:
        """All of it before block `end` has records; answers what has to be durable before it may be overwritten."""
        wait = 0
        for span in range(first // SPAN_BLOCKS, (end - 1) // SPAN_BLOCKS + 1):
            start = span * SPAN_BLOCKS
            low, high = max(first - start, 0), min(end - start, SPAN_BLOCKS)
            wanted = whole((1 << high) - (1 << low))
            if sectors is not None:
                moved = (start - first) * BLOCK_SECTORS
                wanted &= sectors >> moved if moved >= 0 else sectors << -moved
            missing = self.missing(start, wanted)
            if missing:
                self._read_and_keep(start, missing)
            wait = max(wait, self._pending.get(span, 0))
        return wait

    def _read_and_keep(self, first_block: int, missing: int) -> None:
        with _PIECES.lend() as content:
            self._read_pieces(first_block, missing, content)

    def _read_pieces(self, first_block: int, missing: int, content: memoryview) -> None:
        for piece in range(0, SPAN_BLOCKS, _PIECE_BLOCKS):
            wanted = missing >> piece * BLOCK_SECTORS & _PIECE_BITS
            if not wanted:
                continue
            start = (first_block + piece) * BLOCK_BYTES
            length = min(UNDO_PIECE_BYTES, self.identity.data_bytes - start)
            for run, count in bit_runs(wanted):
                begin, stop = run * SECTOR_BYTES, min((run + count) * SECTOR_BYTES, length)
                self._read(start + begin, content[begin:stop])
            self._keep(first_block + piece, wanted, content[:length])

    def _keep(self, first_block: int, wanted: int, content: memoryview) -> None:
        with _PACKED.lend() as out:
            self.keep(first_block, wanted, self.pack(first_block, wanted, content, out))

    def pack(
        self, first_block: int, wanted: int, content: memoryview, out: memoryview, *, quick: bool = False
    ) -> memoryview:
        """Records of the sectors (bits) of a piece for `keep`, in `out` (`PACKED_BYTES`). Any thread may.

        `content`: the piece, at least as far as these sectors go. `quick`: in less time, into more bytes.
        """
        mode = _QUICK if quick else _AUTO
        blocks = parts(wanted.bit_length(), BLOCK_SECTORS)
        bitmaps = wanted.to_bytes(blocks * _BITMAP_BYTES, "little")
        some = sum(1 << block for block in range(blocks) if wanted >> block * BLOCK_SECTORS & undo.WHOLE)
        content = content[: blocks * BLOCK_BYTES]
        left, at, _ = undo.pack(content, first_block, some, bitmaps, self.cycle, 0, NO_CHAIN, out, 0, mode)
        assert not left
        return out[:at]

    def keep(self, first_block: int, wanted: int, records: memoryview) -> None:
        """What `pack` made of these sectors, which had no record in the cycle, is in the journal, and soon durable.

        Errors: `RetentionFull`, `RetentionFailed`.
        """
        with self._busy:
            self._ready()
            chain = undo.chain(records, self._told(), self._chain)
            self._append(records)
            self._chain = chain
            at = first_block * _BITMAP_BYTES
            end = min(at + parts(wanted.bit_length(), 8), len(self._recorded))
            recorded = int.from_bytes(self._recorded[at:end], "little") | wanted
            self._recorded[at:end] = recorded.to_bytes(end - at, "little")
            self.wrote = True
            self._pending[first_block // SPAN_BLOCKS] = self._written
            if self._written - self._flushing >= UNDO_FLUSH_BYTES:
                self._flush_soon()

    def note(self, note: dict[str, Any], cycle: int) -> None:
        """The note stands in the journal, not yet durable."""
        self._ready()
        record = encode_note(note, cycle, self._told(), self._chain)
        self._append(memoryview(record))
        self._chain = record[:DIGEST_BYTES]

    def _told(self) -> int:
        """How much of the current segment is known to be durable."""
        segment, offset = self._durable_place
        return offset if segment == self._end[0] else 0

    def _append(self, data: memoryview) -> None:
        while True:
            try:
                self.segments.append(data)
                break
            except HomewardError as error:
                self._make_room(error)
        number, offset = self._end
        self._end = (number, offset + len(data))  # in one step: the flushing thread reads it
        self._written += len(data)
        self.cycle_bytes += len(data)

    def _ready(self) -> None:
        """A segment is open that has room."""
        if self._failure is not None:
            raise self._failure
        number, offset = self._end
        if self._open and offset < self._segment_bytes:
            return
        created_ms = max(int(self._clock.now() * 1000), self._created_ms)
        header = SegmentHeader(
            self.identity.item, self.identity.disk, number + 1, self.cycle, offset, self._chain,
            created_ms, self.identity.data_bytes,
        ).encode()  # fmt: skip
        while True:
            try:
                self.segments.start(number + 1, header)
                break
            except HomewardError as error:
                self._make_room(error)
        self._open = True
        self._end, self._chain = (number + 1, len(header)), checksum_of(header)
        self._created_ms = created_ms
        self._written += len(header)

    # Durability

    def flush(self) -> None:
        """Everything kept so far is durable."""
        if self._written > self._durable:
            self._wait(self._written)

    def mark(self) -> tuple[int, int]:
        """A segment and a byte up to which the journal is durable."""
        return self._durable_place

    def _flush_soon(self) -> None:
        with self._changed:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="undo", daemon=True)
                thread.start()
                self._thread = thread  # not before: nobody may wait for one that could not be started
            self._flushing = self._written
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._flushing <= self._durable and not self._stopping and self._failure is None:
                    self._changed.wait()
                if self._stopping or self._failure is not None:
                    return
            try:
                self._flush()
            except BaseException as error:  # whatever ends this thread, nobody may wait for it any more
                with self._changed:
                    self._failure = coded(error)
                    self._changed.notify_all()

    def _flush(self) -> None:
        written, place = self._written, self._end
        self.segments.flush()
        with self._changed:
            if written > self._durable:
                self._durable, self._durable_place = written, place
            self._changed.notify_all()

    def _wait(self, wanted: int) -> None:
        """So much is durable: by the flush that is under way, or by one of our own."""
        with self._changed:
            while wanted > self._durable and self._failure is None and self._flushing >= wanted:
                self._changed.wait()
        if self._failure is not None:
            raise self._failure
        if wanted > self._durable:
            try:
                self._flush()
            except BaseException as error:
                self._failure = coded(error)
                raise
        with self._busy:
            done = self._durable
            self._pending = {span: at for span, at in self._pending.items() if at > done}

    # Cycles

    def begin_cycle(self, cycle: int) -> None:
        """No block has a record in the new cycle; everything of the last one is durable."""
        self.flush()
        self.cycle, self.cycle_bytes = cycle, 0
        self._recorded, self.wrote = self._new_bitmap(), False
        self._pending.clear()

    def store_head(self) -> None:
        """Where the journal ends is durable: what is missing before that is damage, not a torn tail."""
        self.flush()
        if self.used:
            self.segments.store_head(Head(self._first, *self._durable_place))

    def forget_before(self, cycle: int) -> int:
        """Segments that hold nothing of this cycle or a later one are gone; answers how many.

        None while the disk's own writer is in here: it may itself wait for room, with what its caller wants locked.
        Whoever needs the room asks again.
        """
        if not self._busy.acquire(blocking=False):
            return 0
        try:
            return self._forget_before(cycle)
        finally:
            self._busy.release()

    def _forget_before(self, cycle: int) -> int:
        numbers = [number for number in self.segments.numbers() if number >= self._first]
        gone: list[int] = []
        for number, header in headers(self.segments, numbers[1:]):
            if header.first_cycle >= cycle or number > self._end[0]:
                break
            gone.append(number - 1)
        if gone:
            self._first = gone[-1] + 1
            self.store_head()
            self.segments.remove(gone)
        return len(gone)

    def forget_all(self) -> None:
        """There are no segments: nothing that they hold leads anywhere. The next one has a number of its own."""
        gone = [number for number in self.segments.numbers() if number <= self._end[0]]
        if gone:
            self._first = self._end[0] + 1
            self.segments.store_head(Head(self._first, 0, 0))
            self.segments.remove(gone)
            self._end, self._chain, self._open = (self._end[0], 0), bytes(DIGEST_BYTES), False
            self._recorded, self.wrote = self._new_bitmap(), False

    def close(self) -> None:
        """What was kept is durable, and where it ends; the flushing thread has ended."""
        try:
            if self._failure is None:
                self.store_head()
        finally:
            with self._changed:
                self._stopping = True
                self._changed.notify_all()
            if self._thread is not None:
                self._thread.join()
            self.segments.close()
