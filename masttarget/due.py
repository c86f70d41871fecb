"""What a session still has to bring to one disk, counted from what the comparison found and what has arrived since."""

import mmap
import struct
from typing import Final

from drcore.units import SPAN_BLOCKS, parts

_SPAN_BITS: Final = struct.Struct("<Q")
_WINDOW: Final = 1 << 20
"""Blocks whose bits are looked at in one go: 128 KiB."""


class Due:
    """The blocks that differ and have not come yet. Guarded by the target's lock; `left` may be read by anybody."""

    def __init__(self, blocks: int, *, everything: bool) -> None:
        """`everything`: the target is empty, so that nothing is compared and what is not zero comes, ascending."""
        self._blocks = blocks
        self._everything = everything
        self._reached = 0
        self._count = 0
        self._bits: mmap.mmap | None = None

    @property
    def left(self) -> int:
        """Blocks still to come, as far as it is known; of an empty target at most so many."""
        return self._blocks - self._reached if self._everything else self._count

    def add(self, first_block: int, bits: int) -> None:
        """The blocks (bits from `first_block`, the first of a span) were found to differ."""
        if bits:
            bitmap = self._bitmap()
            at = first_block // SPAN_BLOCKS * _SPAN_BITS.size
            (known,) = _SPAN_BITS.unpack_from(bitmap, at)
            self._count += (bits & ~known).bit_count()
            _SPAN_BITS.pack_into(bitmap, at, known | bits)

    def take(self, first: int, count: int) -> None:
        """The blocks have arrived."""
        self._reached = max(self._reached, first + count)
        if not self._count:
            return
        for start in range(first, first + count, _WINDOW):
            self._take(start, min(start + _WINDOW, first + count))

    def _take(self, first: int, end: int) -> None:
        bitmap = self._bitmap()
        low, high = first // 8, parts(end, 8)
        known = int.from_bytes(bitmap[low:high], "little")
        gone = known & ((1 << end - low * 8) - 1) & ~((1 << first - low * 8) - 1)
        if gone:
            self._count -= gone.bit_count()
            bitmap[low:high] = (known & ~gone).to_bytes(high - low, "little")

    def settle(self) -> None:
        """Nothing is due any more: both sides hold the same."""
        self._everything, self._count, self._bits = False, 0, None

    def _bitmap(self) -> mmap.mmap:
        if (
            self._bits is None
        ):  # most comparisons find nothing in most of the disk; the kernel gives pages when touched
            self._bits = mmap.mmap(-1, max(parts(self._blocks, SPAN_BLOCKS), 1) * _SPAN_BITS.size)
        return self._bits
