"""A target disk as it was at a recovery point: its blocks now, and over them the old contents that the journal has.

Reading is right while somebody writes, from this process or another: a block's undo record is in its segment before
the block is overwritten. What was read of the target therefore counts only where the journal, looked at afterwards,
has no record of it.
"""

import mmap
from collections.abc import Iterator
from typing import Final

from _native import undo
from disks.disk import Disk, Extent, ExtentKind, Format
from drcore.buffers import buffer
from drcore.units import BLOCK_BYTES, SPAN_BLOCKS, SPAN_BYTES, ByteCount, ByteOffset, parts
from masttarget.errors_retention import SegmentDamaged
from masttarget.segments import (
    CYCLE_MAX,
    Head,
    Segments,
    Walk,
    Wanted,
    first_needed,
    placed,
)
from masttarget.undo import Identity

_RECORD_BYTES_MAX: Final = undo.HEADER_BYTES + BLOCK_BYTES
_ZEROES: Final = bytes(SPAN_BLOCKS * 8)


class PointView:
    """See the module. A read-only disk of the point's size; one thread at a time may use it."""

    format = Format.RAW
    grain_size: ByteCount | None = None

    def __init__(
        self, disk: Disk, segments: Segments, identity: Identity, sequence: int, *, live: bool = False
    ) -> None:
        """`live`: somebody may be writing. Errors: HW-MT-030 to 033, 037."""
        self._disk = disk
        self._segments = segments
        self._identity = identity
        self._sequence = sequence
        self._live = live
        self._blocks = parts(identity.data_bytes, BLOCK_BYTES)
        self._places = memoryview(mmap.mmap(-1, max(self._blocks, 1) * 8)).cast("Q")
        self._block = buffer(BLOCK_BYTES)
        self._tail = (0, 0)
        self._load()

    @property
    def size(self) -> ByteCount:
        """Bytes of the disk at the point."""
        return ByteCount(self._identity.data_bytes)

    def _load(self) -> None:
        head = self._segments.load_head()
        first = first_needed(self._segments, head.first if head is not None else 1, self._sequence + 1)
        if not self._segments.numbers() and (head is None or head.segment == 0):
            return
        wanted = Wanted(self._sequence + 1, CYCLE_MAX, self._blocks, self._places, None)
        # Behind the head somebody may be writing just now: what is not whole yet is no damage.
        reached = Walk(self._segments, self._identity.item, self._identity.disk, wanted).run(first, head)
        self._tail = (reached.segment, reached.offset)

    def _refresh(self) -> None:
        """What was appended since the last look is known."""
        if not self._live:
            return
        segment, offset = self._tail
        numbers = self._segments.numbers()
        newest = numbers[-1] if numbers else 0
        if newest == segment and len(self._segments.read(segment, offset, undo.HEADER_BYTES)) == 0:
            return
        head = Head(segment, *self._tail) if segment else None
        wanted = Wanted(self._sequence + 1, CYCLE_MAX, self._blocks, self._places, None)
        walk = Walk(self._segments, self._identity.item, self._identity.disk, wanted)
        reached = walk.run(segment or first_needed(self._segments, 1, self._sequence + 1), head)
        self._tail = (reached.segment, reached.offset)

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

    def old_content(self, block: int, into: memoryview) -> None:
        """`into`, of the block's size, holds what the journal has of it. Errors: `SegmentDamaged`."""
        segment, offset = placed(self._places[block])
        data = self._segments.read(segment, offset, _RECORD_BYTES_MAX)
        try:
            _, _, _, length, _ = undo.content(data, 0, into)
        except ValueError as error:
            raise SegmentDamaged(
                path=self._segments.path, segment=segment, offset=offset, reason=str(error)
            ) from error
        if length == 0:
            into[:] = bytes(len(into))
        elif length != len(into):
            reason = f"{length} bytes of block {block}, which has {len(into)}"
            raise SegmentDamaged(path=self._segments.path, segment=segment, offset=offset, reason=reason)

    def read(self, offset: int, into: memoryview) -> None:
        """See `Disk`."""
        length = len(into)
        if not length:
            return
        first, end = offset // BLOCK_BYTES, parts(offset + length, BLOCK_BYTES)
        self._refresh()
        if not all(self._places[first:end]):
            self._disk.read(offset, into)
            self._refresh()
        for block in range(first, end):
            if self._places[block]:
                start = block * BLOCK_BYTES
                size = min(BLOCK_BYTES, self.size - start)
                self.old_content(block, self._block[:size])
                low, high = max(start, offset), min(start + size, offset + length)
                into[low - offset : high - offset] = self._block[low - start : high - start]

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
