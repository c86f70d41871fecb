"""The measures everybody uses: which number means what, and how the disk is cut.

A disk is cut in blocks of 64 KiB (the unit of comparison, digest and journal), a block in sectors
of 4 KiB (the unit on the wire inside a block that differs). 64 blocks make a span (the unit in which work
moves through the program), 64 spans a region (the unit of a first comparison). The last of each may be short.
"""

from collections.abc import Iterator
from typing import Final, NewType

ByteOffset = NewType("ByteOffset", int)
ByteCount = NewType("ByteCount", int)
BlockIndex = NewType("BlockIndex", int)
SpanIndex = NewType("SpanIndex", int)
RegionIndex = NewType("RegionIndex", int)
SequenceNumber = NewType("SequenceNumber", int)

SECTOR_BYTES: Final = 4096
BLOCK_BYTES: Final = 65536
BLOCK_SECTORS: Final = BLOCK_BYTES // SECTOR_BYTES
FANOUT: Final = 64
SPAN_BLOCKS: Final = FANOUT
SPAN_BYTES: Final = SPAN_BLOCKS * BLOCK_BYTES
REGION_SPANS: Final = FANOUT
REGION_BLOCKS: Final = REGION_SPANS * SPAN_BLOCKS
REGION_BYTES: Final = REGION_SPANS * SPAN_BYTES
DIGEST_BYTES: Final = 16
ZERO_DIGEST: Final = bytes(DIGEST_BYTES)
"""Reserved: stands for a block, span or region that reads as zeroes from end to end."""


def parts(size: int, part: int) -> int:
    """How many parts of `part` bytes cover `size` bytes, the last one perhaps short."""
    return -(-size // part)


def bit_runs(bits: int) -> Iterator[tuple[int, int]]:
    """Runs (first, count) of set bits, ascending."""
    at = 0
    while bits:
        skip = (bits & -bits).bit_length() - 1
        at += skip
        bits >>= skip
        count = (~bits & -~bits).bit_length() - 1
        yield at, count
        at += count
        bits >>= count


def counted(number: int, noun: str) -> str:
    """The number with its noun, which takes an s for more than one: `1 disk`, `1,024 blocks`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
