"""One lane: reads what is ordered, reduces it to the sectors that differ, packs, seals and sends it."""

import threading
from collections.abc import Callable
from contextlib import suppress
from math import inf

from _native import compare, digest, pack, refer
from agent.descent import Clear, Ship, Supply
from agent.pace import Bucket, Compressor, Rate
from agent.ports import SentRecord
from agent.references import Referrals
from agent.window import Window
from agent.work import WorkQueue
from disks.digestmap import DigestMap
from disks.disk import Disk
from disks.linear import lent
from drcore.buffers import buffer
from drcore.clock import Clock
from drcore.errors import HomewardError, coded
from drcore.limits import KIB
from drcore.record import Changing, Record, made
from drcore.units import (
    BLOCK_BYTES,
    BLOCK_SECTORS,
    DIGEST_BYTES,
    SECTOR_BYTES,
    SPAN_BLOCKS,
    SPAN_BYTES,
    bit_runs,
    parts,
)
from wireproto.connection import SESSION_STREAM
from wireproto.errors import ConnectionLost
from wireproto.link import Link
from wireproto.messages import PREFIX_BYTES, RANGES_MAX, Bye, Refer, Zeroes

ENTRIES_MAX = RANGES_MAX
SECTOR_DIGESTS_BYTES = BLOCK_SECTORS * DIGEST_BYTES
"""What an order holds for each patched block."""
REFERENCE_BLOCKS = 256
"""Blocks in a frame of references: it brings 16 MiB about, as much as the master target makes durable at once."""
REFERENCE_BYTES = 32 + SECTOR_DIGESTS_BYTES
DENSE = 0.9
"""The share of sectors with data from which on blocks that are zero at the target go whole."""
PIECE_BLOCKS = 8
"""Blocks that are read and hashed at once: 512 KiB, a core's second-level cache."""
LINGER_SECONDS = 0.004
"""How long a frame that is not full waits for more work: far below a round trip, far above the next answer."""
IDLE_SECONDS = 0.25
"""How often a lane without work looks whether it is still wanted."""
FRAME_SECONDS = 0.05
FRAME_BYTES_MIN = 66 * KIB
"""A lane on a slow line, or with a small share of a bandwidth, makes shorter frames, of so many seconds: what a frame
holds waits for its last byte, at the other end and in the window. No shorter than a block and its header."""
ORDER_SECONDS = 0.25
ORDER_BLOCKS_MIN = 2
"""Nor does it take more of a span than that: the rest is left to the others, so that all end together."""
ORDER_BLOCKS_FIRST = 16
"""While its speed is not known, and no bandwidth says less."""


class Tally(Changing):
    """What all lanes have done for one disk. Guarded by `lock`."""

    lock: threading.Lock = made(factory=threading.Lock)
    frames: int = 0
    plain_bytes: int = 0
    blocks: int = 0
    sectors: int = 0
    content_bytes: int = 0
    resent_bytes: int = 0
    changed: list[int] = made(factory=list)


class Source(Record):
    """A disk that is being shipped: shared by all lanes."""

    stream: int
    disk: Disk
    digests: DigestMap
    secret: bytes
    sent: SentRecord
    tally: Tally
    referrals: Referrals


Work = tuple[Source, Ship | Supply | Clear]


class Lane:
    """One lane's thread and buffers. Takes work until the queue is closed; a failure goes to `on_failure`."""

    def __init__(
        self,
        number: int,
        link: Link,
        work: WorkQueue[Work],
        window: Window,
        bucket: Bucket,
        compressor: Compressor,
        clock: Clock,
        on_failure: Callable[[HomewardError], None],
    ) -> None:
        self.number = number
        self.link = link
        self._work = work
        self._window = window
        self._bucket = bucket
        self._compressor = compressor
        self._clock = clock
        self._on_failure = on_failure
        self._span = buffer(SPAN_BYTES)
        self._found = memoryview(bytearray(SPAN_BLOCKS * DIGEST_BYTES))
        self._sectors = memoryview(bytearray(SPAN_BLOCKS * 2))
        self._frame = buffer(link.connection.frame_bytes)[: link.connection.plain_bytes_max]
        self._rate = Rate()
        self._references = memoryview(bytearray(REFERENCE_BLOCKS * REFERENCE_BYTES))
        self._source: Source | None = None
        self._taken = 0
        self.line_seconds = 0.0
        self.idle_seconds = 0.0
        self.retired = False
        self.left = False
        self._begin_frame()
        self._thread = threading.Thread(target=self._run, name=f"lane {number}", daemon=True)

    def start(self) -> None:
        """The lane works."""
        self._bucket.join()
        self._thread.start()

    def join(self) -> None:
        """The lane has ended."""
        self._thread.join()

    def retire(self) -> None:
        """The lane takes no more work, and says goodbye when everything it sent is durable; then it has `left`."""
        self.retired = True

    def _run(self) -> None:
        try:
            while not self.retired:
                before = self._clock.monotonic()
                work = self._work.get(LINGER_SECONDS if self._taken else IDLE_SECONDS)
                self.idle_seconds += self._clock.monotonic() - before
                if work is None:
                    self._flush()
                    if self._work.closed:
                        return
                    continue
                source, order = work
                if self._window.forsook(source.stream):
                    self._work.sent(1)
                    continue
                if self._source is not source:
                    self._flush()
                self._source = source
                self._taken += 1
                if isinstance(order, Clear):
                    self._clear(order)
                else:
                    # References of a whole span take less than a block on the line.
                    if isinstance(order, Ship) and not source.referrals.used:
                        order, rest = divided(order, self._order_blocks())
                        if rest is not None:
                            self._work.put_back((source, rest))
                    self._ship(source, order)
            self._flush()
            self._window.settle(self.number)
            self.left = True
            self._bucket.leave()
            with suppress(ConnectionLost):
                self.link.send(SESSION_STREAM, Bye())
        except Exception as error:
            self._on_failure(coded(error))

    # Frames

    def _begin_frame(self) -> None:
        self._position = PREFIX_BYTES
        self._entries = 0
        self._referenced = 0
        self._references_end = self._references_least = 0
        self._content = 0
        self._pack_seconds = 0.0
        self._source = None
        self._mode = self._compressor.mode()
        self._ranges: list[tuple[int, int]] = []
        self._marks: list[tuple[int, int]] = []

    def _flush(self) -> None:
        """What is in the making has gone."""
        source, taken = self._source, self._taken
        if source is None:
            return
        if self._ranges:
            plain = PREFIX_BYTES + 16 * len(self._ranges)
            self._send(source, plain, lambda: self.link.send(source.stream, Zeroes(tuple(self._ranges))))
        if self._entries:
            frame = self._frame[: self._position]
            self._send(source, len(frame), lambda: self._send_content(source, frame))
        if self._referenced:
            message = Refer(self._referenced, self._references[: self._references_end])
            source.referrals.acquire(self._referenced)
            self._content = 0  # says nothing of how content is packed
            plain = PREFIX_BYTES + self._references_end
            self._send(source, plain, lambda: self.link.send(source.stream, message))
        self._begin_frame()
        self._taken = 0
        self._work.sent(taken)

    def _send_content(self, source: Source, frame: memoryview) -> tuple[int, int]:
        # Recorded as sent before it goes, so that a crash cannot make a byte that is sent again look new; and no
        # earlier than that: what waits for the window or the bandwidth has not been sent.
        for span, blocks in self._marks:
            source.sent.mark(span, blocks)
        return self.link.send_data(source.stream, self._entries, frame)

    def _send(self, source: Source, plain: int, send: Callable[[], tuple[int, int]]) -> None:
        reserved = plain + 128
        ready = self._clock.monotonic()
        self._window.acquire(reserved)
        self._bucket.take(reserved)
        self._window.check()  # nothing goes after a stop that ended the waiting
        before = self._clock.monotonic()
        sequence, count = send()
        after = self._clock.monotonic()
        self.line_seconds += after - before
        self._rate.add(count, after - before)
        self._window.sent(self.number, source.stream, sequence, reserved, count)
        with source.tally.lock:
            source.tally.frames += 1
            source.tally.plain_bytes += plain
        self._compressor.packed(self._mode, self._content, count, self._pack_seconds, after - ready)

    def _rate_now(self) -> float:
        """What this lane carries, or is let carry if that is less: bytes a second, infinite while neither is known."""
        return min(self._rate.value, self._bucket.share)

    def _frame_bytes(self) -> int:
        """How long a frame becomes; one that is longer already, since the rate fell meanwhile, is full."""
        wished = min(max(FRAME_BYTES_MIN, FRAME_SECONDS * self._rate_now()), len(self._frame))
        return max(round(wished), self._position)

    def _order_blocks(self) -> int:
        """How much of a span the lane takes."""
        most = ORDER_BLOCKS_FIRST if self._rate.value == inf else SPAN_BLOCKS
        return round(min(max(ORDER_BLOCKS_MIN, ORDER_SECONDS * self._rate_now() / BLOCK_BYTES), most))

    # Orders

    def _clear(self, order: Clear) -> None:
        self._ranges.append((order.first, order.count))
        if len(self._ranges) >= RANGES_MAX:
            self._flush()

    def _ship(self, source: Source, order: Ship | Supply) -> None:
        first = order.span * SPAN_BLOCKS
        length = min(SPAN_BYTES, source.digests.size - first * BLOCK_BYTES)
        span = self._span[:length]
        resent = source.sent.before(order.span, order.blocks)
        if isinstance(order, Ship) and order.unread:
            left = self._ship_unread(source, order, length, resent)
            if not left:
                return
            order = self._read_first(source, order.but(blocks=left), span)
        else:
            for start, count in bit_runs(order.blocks):
                begin, end = start * BLOCK_BYTES, min((start + count) * BLOCK_BYTES, length)
                source.disk.read(first * BLOCK_BYTES + begin, span[begin:end])
                self._check(source, first, start, span[begin:end])
        sectors = self._sector_bitmaps(source, order, span)
        referred = self._referable(source, order, length)
        if referred:
            self._refer(source, first, referred, span, sectors)
        left = order.blocks & ~referred
        while left:
            before = self._clock.monotonic()
            done, position, content = pack.pack(
                span,
                first,
                left,
                sectors,
                self._found,
                self._frame[: self._frame_bytes()],
                self._position,
                self._mode,
            )
            self._pack_seconds += self._clock.monotonic() - before
            packed, left = left & ~done, done
            self._packed(source, order.span, packed, _count(packed, sectors), content, position, resent)
            if left or self._entries + SPAN_BLOCKS > ENTRIES_MAX:
                self._flush_within(source)

    def _ship_unread(self, source: Source, order: Ship, length: int, resent: int) -> int:
        """The blocks have been read, right into frames; answers those that have not, for want of such a way.

        Not where frames are weighed: there the time that reading takes would count as packing.
        """
        place, left = lent(source.disk), order.blocks
        if place is None or not self._compressor.stores:
            return left
        first = order.span * SPAN_BLOCKS
        while left:
            rest, position, packed, sectors, content = pack.pack_unread_place(
                place[0],
                place[1] + first * BLOCK_BYTES,
                length,
                first,
                left,
                source.secret,
                self._found,
                self._frame[: self._frame_bytes()],
                self._position,
            )
            if rest == left and not self._entries:
                break  # there was room: what is wrong with the first of them is told when it is read alone
            for start, count in bit_runs(left & ~rest):
                found = self._found[start * DIGEST_BYTES : (start + count) * DIGEST_BYTES]
                source.digests.write(first + start, found)
            left = rest
            self._packed(source, order.span, packed, sectors, content, position, resent)
            if left or self._entries + SPAN_BLOCKS > ENTRIES_MAX:
                self._flush_within(source)
        return left

    def _packed(
        self, source: Source, span: int, packed: int, sectors: int, content: int, position: int, resent: int
    ) -> None:
        """The frame goes on at `position`, with entries for those blocks of the span."""
        if not packed:
            return
        blocks, wire = packed.bit_count(), position - self._position
        self._content += content
        self._marks.append((span, packed))
        self._entries += blocks
        self._position = position
        again = (packed & resent).bit_count()
        with source.tally.lock:
            tally = source.tally
            tally.blocks += blocks
            tally.sectors += sectors
            tally.content_bytes += content
            tally.resent_bytes += wire * again // blocks

    def _flush_within(self, source: Source) -> None:
        """As `_flush`, in the middle of an order: it counts as sent only at its end."""
        taken, self._taken = self._taken, 0
        self._flush()
        self._source, self._taken = source, taken

    def _referable(self, source: Source, order: Ship | Supply, length: int) -> int:
        """The blocks of the order whose new content the target may have elsewhere."""
        if isinstance(order, Supply) or not source.referrals.used:
            return 0
        # Blocks that are due whole are those that a patch did not give; only blocks of 64 KiB are referred to.
        return (order.patched | order.fresh) & ((1 << length // BLOCK_BYTES) - 1)

    def _refer(self, source: Source, first: int, blocks: int, span: memoryview, sectors: memoryview) -> None:
        if first < self._references_least:
            self._flush_within(source)  # the blocks of a frame ascend
        self._references_least = first
        while blocks:
            left, self._references_end, _ = refer.pack(
                span,
                first,
                blocks,
                sectors,
                self._found,
                source.secret,
                self._references,
                self._references_end,
            )
            self._referenced += (blocks & ~left).bit_count()
            blocks = left
            if blocks or self._referenced + SPAN_BLOCKS > REFERENCE_BLOCKS:
                self._flush_within(source)

    def _read_first(self, source: Source, order: Ship, span: memoryview) -> Ship:
        """The blocks are in `span` and their digests known; answers the order for those that are not zero."""
        first = order.span * SPAN_BLOCKS
        for start, count in bit_runs(order.blocks):
            # In pieces that a core's own cache holds, so that hashing finds them there.
            for at in range(start, start + count, PIECE_BLOCKS):
                blocks = min(PIECE_BLOCKS, start + count - at)
                content = span[at * BLOCK_BYTES : (at + blocks) * BLOCK_BYTES]
                source.disk.read((first + at) * BLOCK_BYTES, content)
                found = self._found[at * DIGEST_BYTES : (at + blocks) * DIGEST_BYTES]
                digest.digest_blocks(content, source.secret, found)
                source.digests.write(first + at, found)
        blocks = order.blocks & ~compare.zeroes(self._found[: parts(len(span), BLOCK_BYTES) * DIGEST_BYTES])
        return Ship(order.span, blocks, 0, blocks, b"")

    def _check(self, source: Source, first: int, start: int, content: memoryview) -> None:
        """The digests of what was read are in `_found`; where they are not the scan's, the source has changed."""
        count = parts(len(content), BLOCK_BYTES)
        found = self._found[start * DIGEST_BYTES : (start + count) * DIGEST_BYTES]
        digest.digest_blocks(content, source.secret, found)
        known = source.digests.read(first + start, count)
        if found != known:
            source.digests.write(first + start, found)
            with source.tally.lock:
                for at, run in compare.extents(known, found):
                    source.tally.changed += range(first + start + at, first + start + at + run)

    def _sector_bitmaps(self, source: Source, order: Ship | Supply, span: memoryview) -> memoryview:
        """For each of the span's blocks the sectors to send; whole blocks where the target's are not known."""
        out = self._sectors
        out[:] = b"\xff\xff" * SPAN_BLOCKS
        if isinstance(order, Supply):
            _spread(order.sectors, order.blocks, out)
            return out
        last = len(span) // BLOCK_BYTES
        if len(span) % BLOCK_BYTES:
            short = (1 << parts(len(span) % BLOCK_BYTES, SECTOR_BYTES)) - 1
            out[2 * last : 2 * last + 2] = short.to_bytes(2, "little")
        if order.fresh:
            _leave_zeroes_out(span, order.fresh, out)
        if order.patched:
            found = memoryview(bytearray(2 * order.patched.bit_count()))
            compare.sector_bitmaps(span, source.secret, order.patched, order.sectors, found)
            _spread(found, order.patched, out)
        return out


def _leave_zeroes_out(span: memoryview, fresh: int, out: memoryview) -> None:
    """Of blocks that are zero at the target, only the sectors that are not zero here, where that is worth it."""
    found = memoryview(bytearray(2 * parts(len(span), BLOCK_BYTES)))
    if compare.filled_sectors(span, fresh, found) >= DENSE * BLOCK_SECTORS * fresh.bit_count():
        return  # mostly data: whole blocks are unpacked in long runs
    for start, count in bit_runs(fresh):
        place = slice(2 * start, 2 * (start + count))
        _place(found[place], out[place])


def _count(blocks: int, sectors: memoryview) -> int:
    """How many sectors the blocks' bitmaps name."""
    bits = int.from_bytes(sectors, "little")
    return sum(
        (bits >> BLOCK_SECTORS * start & (1 << BLOCK_SECTORS * count) - 1).bit_count()
        for start, count in bit_runs(blocks)
    )


def _spread(found: bytes | memoryview, blocks: int, out: memoryview) -> None:
    """The bitmaps in `found`, one for each of `blocks`, stand in `out` where their blocks do."""
    view, at = memoryview(found), 0
    for start, count in bit_runs(blocks):
        _place(view[2 * at : 2 * (at + count)], out[2 * start : 2 * (start + count)])
        at += count


def divided(order: Ship, count: int) -> tuple[Ship, Ship | None]:
    """The order for its first `count` blocks, and one for the others, if there are any."""
    if order.blocks.bit_count() <= count:
        return order, None
    first, left = 0, order.blocks
    for _ in range(count):
        first |= left & -left
        left &= left - 1
    told = SECTOR_DIGESTS_BYTES * (order.patched & first).bit_count()
    return (
        order.but(
            blocks=first,
            patched=order.patched & first,
            fresh=order.fresh & first,
            sectors=order.sectors[:told],
        ),
        order.but(
            blocks=left,
            patched=order.patched & left,
            fresh=order.fresh & left,
            sectors=order.sectors[told:],
        ),
    )


def _place(found: memoryview, out: memoryview) -> None:
    """`out` holds the bitmaps (two bytes each) of `found`, except where one is empty.

    No sector differs, though the block does: two sectors share a digest. Such a block goes whole, as `out` has it.
    """
    if 0 not in found.cast("H"):
        out[:] = found
        return
    for at in range(0, len(found), 2):
        if any(found[at : at + 2]):
            out[at : at + 2] = found[at : at + 2]
