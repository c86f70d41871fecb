"""A target disk as it was at a recovery point: its sectors now, and over them the old contents that the journal has.

Reading is right while somebody writes, from this process or another: the undo record of a sector is in its segment
before the sector is overwritten. What was read of the target therefore counts only where the journal, looked at
afterwards, has no record of it.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from _native import undo
from disks.disk import Disk, Extent, ExtentKind, Format
from drcore.buffers import Pool, buffer
from drcore.limits import SPARE_BUFFERS_MAX
from drcore.units import (
    BLOCK_BYTES,
    SECTOR_BYTES,
    SPAN_BLOCKS,
    SPAN_BYTES,
    ByteCount,
    ByteOffset,
    bit_runs,
    parts,
)
from masttarget.errors_retention import SegmentDamaged
from masttarget.index import Index
from masttarget.segments import (
    CYCLE_MAX,
    HEADER_BYTES,
    Head,
    SegmentHeader,
    Segments,
    Walk,
    Wanted,
    first_needed,
    place,
    placed,
)
from masttarget.undo import Identity

_RECORD_BYTES_MAX: Final = undo.HEADER_BYTES + BLOCK_BYTES
_ZEROES: Final = bytes(SPAN_BLOCKS * 8)
_READ_BYTES: Final = 1 << 20
"""How far apart the first and the last record of one read may begin: one read is cheaper than many, and stays in the
cache of a core."""
_WINDOWS: Final = Pool(_READ_BYTES + _RECORD_BYTES_MAX, SPARE_BUFFERS_MAX)


class PointView:
    """See the module. A read-only disk of the point's size; one thread at a time may use it as one.

    `old_contents` may be called by any number of threads where nobody uses the disk.
    """

    format = Format.RAW
    grain_size: ByteCount | None = None

    def __init__(
        self, disk: Disk, segments: Segments, identity: Identity, sequence: int, *, live: bool = False
    ) -> None:
        """`live`: somebody may be writing. Errors: HW-MT-030 to 033, 037."""
        self._disk = disk
        self._segments = segments
        self._identity = identity
        self.sequence = sequence
        self._live = live
        self._blocks = parts(identity.data_bytes, BLOCK_BYTES)
        self._index = Index(self._blocks)
        self._places = self._index.places
        self._edge = buffer(BLOCK_BYTES)
        self._tail = (0, 0)
        self._sizes: dict[int, int] = {}
        self._load()

    @property
    def size(self) -> ByteCount:
        """Bytes of the disk at the point."""
        return ByteCount(self._identity.data_bytes)

    def _load(self) -> None:
        head = self._segments.load_head()
        first = first_needed(self._segments, head.first if head is not None else 1, self.sequence + 1)
        if not self._segments.numbers() and (head is None or head.segment == 0):
            return
        wanted = Wanted(self.sequence + 1, CYCLE_MAX, self._blocks, index=self._index)
        # Behind the head somebody may be writing just now: what is not whole yet is no damage.
        reached = Walk(self._segments, self._identity.item, self._identity.disk, wanted).run(first, head)
        self._tail = (reached.segment, reached.offset)

    def _refresh(self) -> None:
        """What was appended since the last look is known."""
        if not self._live:
            return
        segment, offset = self._tail
        if not (self._grew(segment, offset) if segment else self._segments.numbers()):
            return
        head = Head(segment, *self._tail) if segment else None
        wanted = Wanted(self.sequence + 1, CYCLE_MAX, self._blocks, index=self._index)
        walk = Walk(self._segments, self._identity.item, self._identity.disk, wanted)
        reached = walk.run(segment or first_needed(self._segments, 1, self.sequence + 1), head)
        self._tail = (reached.segment, reached.offset)

    def _grew(self, segment: int, offset: int) -> bool:
        """Whether something follows the place: in its segment, else in the next. A directory takes longer to list."""
        for number, at in ((segment, offset), (segment + 1, 0)):
            with suppress(FileNotFoundError):
                if self._segments.read(number, at, 1):
                    return True
        return False

    def changed(self) -> Iterator[tuple[int, int]]:
        """(span, bits) of the blocks that the journal has older content of, ascending."""
        for span in range(parts(self._blocks, SPAN_BLOCKS)):
            bits = self._bits(span)
            if bits:
                yield span, bits

    def _bits(self, span: int) -> int:
        places = self._places[span * SPAN_BLOCKS : min((span + 1) * SPAN_BLOCKS, self._blocks)]
        if places.tobytes() == _ZEROES[: len(places) * 8]:
            return 0
        return sum(1 << index for index, place in enumerate(places) if place)

    def covered(self, first: int, count: int) -> int:
        """What the journal has of the blocks: a bit for each sector, from the first block's first on."""
        return int.from_bytes(self._index.covered[first : first + count], "little")

    def old_contents(self, first: int, bits: int, into: memoryview) -> None:
        """Over `into`, which begins with block `first`, lies what the journal has of the blocks (bits).

        Records that lie near each other are read at once, each is decoded once. Errors: 030, 037.
        """
        places = self._places[first : first + bits.bit_length()]
        several = sum(1 << index for index, place in enumerate(places) if place & undo.CHAINED) & bits
        with _WINDOWS.lend() as window:
            for run in _runs(places, bits & ~several):
                low, high = (run & -run).bit_length() - 1, run.bit_length() - 1
                segment, begin = placed(places[low])
                length = placed(places[high])[1] - begin + _RECORD_BYTES_MAX
                data = window[: self._segments.read_into(segment, begin, window[:length])]
                self._unpack(data, segment, begin, first, run, into)
            for start, count in bit_runs(several):
                for block in range(first + start, first + start + count):
                    self._lay(self._index, block, window, into[(block - first) * BLOCK_BYTES :])

    def _unpack(
        self, data: memoryview, segment: int, begin: int, first: int, run: int, into: memoryview
    ) -> None:
        """As `old_contents`, of blocks whose only records are all in `data`, which is the segment's from `begin` on."""
        end = min(self._recorded_bytes(segment), self.size) // BLOCK_BYTES - first
        whole = run & ((1 << min(max(end, 0), SPAN_BLOCKS)) - 1)
        places = self._places[first : first + run.bit_length()]
        left = run & ~whole | undo.unpack(data, place(segment, begin), places, first, whole, into)
        for start, count in bit_runs(left):  # short, or for `_decode` to say what is wrong
            for block in range(first + start, first + start + count):
                offset = placed(self._places[block])[1]
                self._decode(data, segment, begin, offset, block, into[(block - first) * BLOCK_BYTES :])

    def _lay(self, index: Index, block: int, window: memoryview, into: memoryview) -> None:
        """Over `into`, which begins with the block, lies what the index has of it."""
        content = buffer(BLOCK_BYTES)
        for found, sectors in index.records(block):
            segment, begin = placed(found)
            data = window[: self._segments.read_into(segment, begin, window[:_RECORD_BYTES_MAX])]
            self._decode(data, segment, begin, begin, block, content)
            self._copy(sectors, block, content, into)

    def _copy(self, sectors: int, block: int, content: memoryview, into: memoryview) -> None:
        """`into` has these sectors of the block, as far as the disk goes, from `content`; both begin with it."""
        for first, count in bit_runs(sectors):
            low = first * SECTOR_BYTES
            high = min((first + count) * SECTOR_BYTES, self.size - block * BLOCK_BYTES)
            into[low:high] = content[low:high]

    def _decode(
        self, data: memoryview, segment: int, begin: int, offset: int, block: int, into: memoryview
    ) -> None:
        """Over `into`, which begins with the block, lies what the record at `offset` has; `data` is from `begin` on."""
        into = into[: min(BLOCK_BYTES, self.size - block * BLOCK_BYTES)]
        out = into if len(into) == BLOCK_BYTES else buffer(BLOCK_BYTES)
        try:
            cycle, _, _, sectors, length, _ = undo.content(data, offset - begin, out)
        except ValueError as error:
            raise SegmentDamaged(
                path=self._segments.path, segment=segment, offset=offset, reason=str(error)
            ) from error
        if sectors != undo.WHOLE:
            if out is not into:
                self._copy(sectors, block, out, into)
            return
        known = min(self._recorded_bytes(segment) - block * BLOCK_BYTES, len(into))
        if length == 0:
            into[:known] = bytes(known)
        elif length < known:
            reason = f"{length} bytes of block {block}, which has {known}"
            raise SegmentDamaged(path=self._segments.path, segment=segment, offset=offset, reason=reason)
        elif out is not into:  # perhaps more, where the source has grown since: the last block was cut then
            into[:known] = out[:known]
        if known < len(into):
            self._fill(segment, cycle, block, into, known)

    def _recorded_bytes(self, segment: int) -> int:
        """How long the disk was when the segment was begun: each opening begins one."""
        if segment not in self._sizes:
            header = SegmentHeader.decode(self._segments.read(segment, 0, HEADER_BYTES))
            self._sizes[segment] = header.data_bytes
        return self._sizes[segment]

    def _fill(self, segment: int, cycle: int, block: int, into: memoryview, known: int) -> None:
        """`into[known:]` holds what the block's record of the cycle does not: the source was shorter in that cycle.

        Nobody wrote behind its end then: later records, of a longer source again, have it, or the target.
        """
        rest = buffer(BLOCK_BYTES)[: len(into)]
        self._disk.read(block * BLOCK_BYTES, rest)
        later = Index(block + 1)
        wanted = Wanted(cycle + 1, CYCLE_MAX, block + 1, index=later)
        walk = Walk(self._segments, self._identity.item, self._identity.disk, wanted)
        walk.run(segment, self._segments.load_head())
        if later.places[block]:
            self._lay(later, block, buffer(_RECORD_BYTES_MAX), rest)
        into[known:] = rest[known:]

    def read(self, offset: int, into: memoryview) -> None:
        """See `Disk`."""
        if not len(into):
            return
        end = offset + len(into)
        self._refresh()
        self._read_now(offset, into)
        self._refresh()
        for span in range(offset // SPAN_BYTES, parts(end, SPAN_BYTES)):
            bits = self._bits(span) & _within(offset, end, span)
            whole = bits & _within(parts(offset, BLOCK_BYTES) * BLOCK_BYTES, self._whole_end(end), span)
            for start, count in bit_runs(whole):
                first = span * SPAN_BLOCKS + start
                self.old_contents(first, (1 << count) - 1, into[first * BLOCK_BYTES - offset :])
            for start, count in bit_runs(bits & ~whole):
                for block in range(span * SPAN_BLOCKS + start, span * SPAN_BLOCKS + start + count):
                    self._read_edge(block, offset, into)

    def _whole_end(self, end: int) -> int:
        """Where the last block ends of which everything before `end` is wanted."""
        return end if end == self.size else end // BLOCK_BYTES * BLOCK_BYTES

    def _read_now(self, offset: int, into: memoryview) -> None:
        """What the journal has nothing or only a part of is there, as the target holds it."""
        end = offset + len(into)
        for span in range(offset // SPAN_BYTES, parts(end, SPAN_BYTES)):
            for start, count in bit_runs(_within(offset, end, span) & ~self._whole(span)):
                low = max((span * SPAN_BLOCKS + start) * BLOCK_BYTES, offset)
                high = min((span * SPAN_BLOCKS + start + count) * BLOCK_BYTES, end)
                self._disk.read(low, into[low - offset : high - offset])

    def _whole(self, span: int) -> int:
        """The blocks (bits) of the span of which the journal has all."""
        covered = self._index.covered[span * SPAN_BLOCKS : min((span + 1) * SPAN_BLOCKS, self._blocks)]
        if covered.tobytes() == _ZEROES[: len(covered) * 2]:
            return 0
        return sum(1 << index for index, sectors in enumerate(covered) if sectors == undo.WHOLE)

    def _read_edge(self, block: int, offset: int, into: memoryview) -> None:
        """What the journal has of a block of which only a part is wanted."""
        start = block * BLOCK_BYTES
        self.old_contents(block, 1, self._edge[: min(BLOCK_BYTES, self.size - start)])
        for first, count in bit_runs(self._index.covered[block]):
            low = max(start + first * SECTOR_BYTES, offset)
            high = min(start + (first + count) * SECTOR_BYTES, offset + len(into), self.size)
            if low < high:
                into[low - offset : high - offset] = self._edge[low - start : high - start]

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """See `Disk`; blocks that the journal has are data."""
        end = offset + length
        while offset < end:
            stop = min(end, (offset // SPAN_BYTES + 1) * SPAN_BYTES)
            found = list(self._disk.extents(offset, stop - offset))
            self._refresh()
            holes = all(extent.kind is ExtentKind.ZERO for extent in found)
            known = any(self._places[offset // BLOCK_BYTES : parts(stop, BLOCK_BYTES)])
            kind = ExtentKind.ZERO if holes and not known else ExtentKind.DATA
            yield Extent(ByteOffset(offset), ByteCount(stop - offset), kind)
            offset = stop

    def write(self, offset: int, data: memoryview) -> None:
        """A point never changes."""
        raise AssertionError

    def zero(self, offset: int, length: int) -> None:
        """A point never changes."""
        raise AssertionError

    def flush(self) -> None:
        """See `Disk`; there is nothing to flush."""

    def allocated_bytes(self) -> ByteCount:
        """See `Disk`: at most what the target has now."""
        return self._disk.allocated_bytes()

    def close(self) -> None:
        """See `Disk`; the target is the caller's."""


def _within(begin: int, end: int, span: int) -> int:
    """The blocks (bits) of the span of which a byte lies in the range."""
    start = span * SPAN_BLOCKS
    low = min(max(begin // BLOCK_BYTES - start, 0), SPAN_BLOCKS)
    high = min(max(parts(end, BLOCK_BYTES) - start, low), SPAN_BLOCKS)
    return (1 << high) - (1 << low)


def _runs(places: memoryview, bits: int) -> Iterator[int]:
    """The blocks (bits) in parts, ascending, such that the records of each lie in one read."""
    run = begin = here = 0
    while bits:
        low = bits & -bits
        bits ^= low
        previous, here = here, places[low.bit_length() - 1]
        # Of one segment: the places differ in their offsets alone, and no segment is so long as to hide that.
        if run and not (previous <= here < begin + _READ_BYTES and here >> 32 == begin >> 32):
            yield run
            run = 0
        if not run:
            begin = here
        run |= low
    if run:
        yield run
