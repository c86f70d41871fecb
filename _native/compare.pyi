"""What differs: between two runs of digests, two spans of bytes, a span and the peer's sector digests.

Digests are runs of 16-byte entries as `_native.digest` writes them. A bitmap of blocks is an int of 64 bits,
bit i for block i of the span; a bitmap of sectors has 2 bytes, little-endian, bit i for sector i of a block.
All functions release the GIL for the whole span and may run in any number of threads. ValueError: a buffer of
the wrong size, a bitmap that names blocks beyond the span. OverflowError: a bitmap beyond 64 bits.
"""

from typing_extensions import Buffer

def differing(a: Buffer, b: Buffer) -> int:
    """The bitmap of the entries that differ; `a` and `b` hold equally many, at most 64."""

def zeroes(a: Buffer) -> int:
    """The bitmap of the entries that are the zero digest; at most 64."""

def extents(a: Buffer, b: Buffer) -> list[tuple[int, int]]:
    """The runs (first, count) of differing entries, ascending, none touching the next; any length."""

def compare_sectors(source: Buffer, target: Buffer, out_bitmaps: Buffer) -> tuple[int, int, int, int]:
    """`out_bitmaps` (2 bytes for each block, exactly) holds the bitmap of differing sectors of every block.

    `source` and `target` are spans of the same length, at most 4 MiB, the last block and sector may be short.
    Returns (blocks that differ, sectors that differ, their bytes, those of them that are zero in the source);
    a short sector counts with the bytes it has.
    """

WORK_BYTES: int
"""What `compare_places` needs to work in."""

def compare_places(
    source: int,
    source_start: int,
    target: int,
    target_start: int,
    length: int,
    work: Buffer,
    out_bitmaps: Buffer,
) -> tuple[int, int, int, int, int]:
    """As `compare_sectors`, of the `length` bytes that begin at `source_start` and `target_start` of two descriptors.

    They are read here, a small piece at a time into `work` (`WORK_BYTES`, best at a page's start), so that nothing
    leaves a core's own cache between being read and being compared; the descriptors are lent. Before the counts the
    answer says how many bytes were compared: fewer than `length`, in whole blocks, where reading failed or a file
    ended. Of what lies behind them nothing is said.
    """

def sector_bitmaps(data: Buffer, secret: Buffer, blocks: int, digests: Buffer, out: Buffer) -> None:
    """`out` (2 bytes for each set bit, exactly) holds the sectors whose digest is not the peer's, in order.

    `data` is a span of at most 4 MiB; `digests` has the peer's 256 bytes for each block in `blocks`, as
    `digest_sectors` writes them. Sectors that a short last block lacks never differ.
    """

def filled_sectors(data: Buffer, blocks: int, out: Buffer) -> int:
    """`out[2 * i]` has, for each block i of the span that `blocks` names, the bitmap of its sectors that are not zero.

    Returns how many these are. ValueError: `out` has not 2 bytes for each
    block of the span, or `blocks` names others.
    """
