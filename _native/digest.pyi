"""Digests of blocks, sectors and tree nodes.

A digest is the canonical (big-endian) 16 bytes of XXH3-128 with the item's secret of 192 bytes. A piece that
is zero from end to end has the reserved digest of 16 zero bytes; a piece that is not zero and whose hash is
16 zero bytes gets 1 as last byte. Lengths take part in the hash: a short last piece differs from the same
bytes padded.

All functions release the GIL for the whole call and may run in any number of threads. Buffers are contiguous
bytes; `out` is the caller's, writable, and must not change its size meanwhile. ValueError: a buffer of the
wrong size, a bitmap that names what is not there, a variant that this CPU has not got. OverflowError: a
number that is negative or beyond 64 bits. Source: XXH3 as in doc/xxhash_spec.md of xxHash 0.8.
"""

from typing_extensions import Buffer

def variants() -> tuple[str, ...]:
    """The variants that this CPU offers, best last; the first, "scalar", is there everywhere."""

def is_zero(data: Buffer) -> bool:
    """Whether all bytes are zero; stops at the first that is not. True for no bytes."""

def digest_blocks(data: Buffer, secret: Buffer, out: Buffer, unit: int = 65536, variant: str = "auto") -> int:
    """`out` (16 bytes for each piece, exactly) holds the digest of every `unit` bytes of `data`.

    The last piece may be short. `unit` is a power of two from 512 to 2^26. Returns how many pieces are not
    zero.
    """

WORK_BYTES: int
"""What `digest_place` needs to work in."""

def digest_place(
    descriptor: int, first: int, length: int, secret: Buffer, work: Buffer, out: Buffer
) -> tuple[int, int]:
    """As `digest_blocks` of blocks of 64 KiB, of the `length` bytes of an open file that begin at byte `first`.

    They are read here, a small piece at a time into `work` (`WORK_BYTES`, best at a page's start), so that nothing
    leaves a core's own cache between being read and being digested; the descriptor is lent. Returns (bytes that were
    digested, pieces among them that are not zero): fewer bytes than `length`, in whole blocks, where reading failed
    or the file ended. `out` says nothing of what lies behind them.
    """

def digest_sectors(data: Buffer, secret: Buffer, blocks: int, out: Buffer) -> int:
    """`out` (256 bytes for each set bit, exactly) holds the 16 sector digests of every block in `blocks`.

    `data` is a span of at most 64 blocks, bit i of `blocks` its block i; the results stand in order of the
    bits. Sectors that a short last block lacks get the zero digest. Returns the bytes written.
    """

def fold(digests: Buffer, secret: Buffer, out: Buffer) -> int:
    """`out` (16 bytes for each node, exactly) holds the digests of the tree nodes above `digests`.

    64 children make a node, the last may have fewer; a node whose children are all zero has the zero digest.
    Returns the number of nodes that are not zero.
    """
