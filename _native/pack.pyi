"""Entries of a data frame: changed sectors of a block, compressed or not, with the digest of the whole block.

An entry is a header of 32 bytes (little-endian: u64 block index, u16 bitmap of sectors, u8 codec: 0 stored or
1 LZ4, u8 zero, u32 stored length, 16 bytes digest of the whole block), then `stored` bytes of payload: the
named sectors one after the other, the last of the disk perhaps short. A bitmap of all sectors that the block
has means a whole block. LZ4 is only used where it shrinks.

A disk is told by `disk_blocks` (64 KiB each) and `last_block_bytes` (1 to 65536). All functions that touch
content release the GIL for the whole call and may run in any number of threads; buffers may not overlap.
ValueError: the caller's buffers, positions or numbers are wrong. OverflowError: a number is negative or
beyond 64 bits. Malformed and Mismatch: the frame is wrong; what `out` holds then has no meaning.
"""

from typing_extensions import Buffer

class Malformed(ValueError):
    """The frame breaks the rules above at `position`; `reason` says which."""

    position: int
    reason: str
    def __init__(self, position: int, reason: str) -> None: ...

class Mismatch(ValueError):
    """The content of the whole block `block` has not the digest that its entry says."""

    block: int
    def __init__(self, block: int) -> None: ...

def pack(
    span: Buffer,
    first_block: int,
    blocks: int,
    sectors: Buffer,
    digests: Buffer,
    out: Buffer,
    position: int,
    mode: int,
) -> tuple[int, int, int]:
    """`out` holds, from `position` on, entries for the blocks in `blocks`, until the next might not fit.

    Bit i of `blocks` is block i of `span` and block `first_block` + i of the disk; its bitmap of sectors is
    at `sectors[2 * i]` (0xFFFF: the whole block, also a short one), its digest at `digests[16 * i]`. The
    digest is taken as told. `mode` 0 stores, 1 compresses where that shrinks, 2 compresses where it saves at
    least 1 in 16 and a sample of the content gives hope of it. Returns (blocks still to do, position behind
    the last entry, payload bytes before compression); an entry that does not fit in an empty frame (32 bytes
    and its sectors) stays to do. ValueError, before anything is written: also a bitmap of no sectors or of
    sectors beyond the end.
    """

def pack_unread_place(
    descriptor: int,
    first: int,
    length: int,
    first_block: int,
    blocks: int,
    secret: Buffer,
    out_digests: Buffer,
    out: Buffer,
    position: int,
) -> tuple[int, int, int, int, int]:
    """As `pack` with mode 0, for a span of `length` bytes that nobody has read yet, from byte `first` of a file on.

    The target's blocks are zero: one that is zero here is read and digested, and has no entry; of one with data in
    at most half of its sectors these are packed, of others all. Blocks are read into `out`, where they belong. Returns
    (blocks not read, position behind the last entry, blocks packed, their sectors, their payload bytes);
    `out_digests` has at `[16 * i]` the digest of each block i that was read. Where there is room for one, the first
    block that was not read could not be: who reads it in another way learns why.
    """

def entry(frame: Buffer, position: int) -> tuple[int, int, int, int, int]:
    """(block, sectors, codec, stored, position of the next entry) of the entry at `position`, all inside.

    Nothing is known of the disk here: `block` may lie beyond its end. Raises Malformed.
    """

def unpack(
    frame: Buffer,
    position: int,
    disk_blocks: int,
    last_block_bytes: int,
    secret: Buffer,
    out: Buffer,
    out_digests: Buffer,
) -> tuple[int, int, int, int]:
    """`out` holds the longest run of whole blocks with ascending indices that begins at `position`, proved.

    The run ends at 64 blocks, when `out` is full, at a partial entry, at another index, at the end of the
    frame. `out_digests` (16 bytes for each block that `out` can hold) has their digests. Returns (position
    behind the run, first block, count, bytes in `out`); count is 0 when the entry at `position` is a partial
    one. Raises Malformed and Mismatch; ValueError also when `out` is less than the first block.
    """

def prove(
    frame: Buffer,
    position: int,
    disk_blocks: int,
    last_block_bytes: int,
    secret: Buffer,
    out_digests: Buffer,
) -> tuple[int, int, int]:
    """As `unpack`, for blocks that are stored as they are: nothing is decoded, the frame holds their content.

    An entry with LZ4 ends the run too. Returns (position behind the run, first block, count); the content of each is
    behind the 32 bytes of its entry's header. `out_digests` has 1024 bytes. Raises Malformed and Mismatch.
    """

def unpack_patch(
    frame: Buffer,
    position: int,
    disk_blocks: int,
    last_block_bytes: int,
    secret: Buffer,
    block: Buffer,
) -> tuple[int, bool]:
    """`block`, which held the old content of the entry's block, has the entry's sectors laid over it.

    Whole blocks are taken too. Returns (position of the next entry, whether the block has the entry's digest
    now). Raises Malformed, then `block` is as before; ValueError also when `block` has not the block's size.
    """
