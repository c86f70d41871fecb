"""Records of the retention journal: old contents of blocks, each chained to the one before.

The bytes are laid down in docs/journal.md and kernel/undo.h. All functions that touch content release the GIL for the
whole call and may run in any number of threads; buffers may not overlap. ValueError: the caller's buffers, positions
or numbers are wrong. OverflowError: a number is negative or beyond 64 bits.
"""

from typing_extensions import Buffer

HEADER_BYTES: int
"""Of each record."""

class Damaged(ValueError):
    """What stands at `position` is no good record of old content; `reason` says why."""

    position: int
    reason: str
    def __init__(self, position: int, reason: str) -> None: ...

def checksum(data: Buffer) -> bytes:
    """XXH3-128 of `data`, 16 bytes, without secret or seed."""

def pack(
    span: Buffer,
    first_block: int,
    blocks: int,
    cycle: int,
    durable: int,
    chain: Buffer,
    out: Buffer,
    position: int,
    mode: int,
) -> tuple[int, int, bytes]:
    """`out` holds, from `position` on, records of the blocks in `blocks`, until the next might not fit.

    Bit i of `blocks` is block i of `span` and block `first_block` + i of the disk. `chain` is the checksum of the
    record before. `mode` 0 stores, 1 compresses where that shrinks, 2 compresses where it saves at least 1 in 16 and a
    sample gives hope of it, 3 does that in half of the time and leaves half as much again. Returns (blocks still to
    do, position behind the last record, its checksum).
    """

def chain(records: Buffer, durable: int, chain: Buffer) -> bytes:
    """The records that `pack` made, behind any other one, now follow the one whose checksum is `chain`.

    All of them tell of `durable` bytes. Returns the last one's checksum. ValueError: those are not whole records.
    """

def scan(
    data: Buffer,
    position: int,
    chain: Buffer,
    cycle_min: int,
    cycle_max: int,
    blocks: int,
    places: Buffer | None,
    bitmap: Buffer | None,
    base: int,
) -> tuple[int, bytes, str | None, int, int, int]:
    """The good, chained records of old content from `position` on are noted, up to the first that is something else.

    For blocks below `blocks`, of cycles from `cycle_min` to `cycle_max`: `places` (a u64 for each block, 0: none) gets
    `base` + position of the block's first record and keeps what it has; `bitmap` gets the block's bit. Returns
    (position reached, checksum of the last good record, None at the end of `data`, "" at a good record of another
    kind, else what is wrong there, records, blocks noted, highest number of durable bytes that was told).
    """

def content(data: Buffer, position: int, out: Buffer) -> tuple[int, int, int, int, int]:
    """`out` holds the old content at `position`, checked.

    Returns (cycle, first block, blocks, bytes in `out`, position of the next record); of zero blocks there are no
    bytes and `out` is as before. Raises Damaged.
    """

def unpack(data: Buffer, base: int, places: Buffer, first_block: int, blocks: int, out: Buffer) -> int:
    """`out` holds the old contents of the blocks in `blocks`, each from its own record in `data`, checked.

    Bit i is block `first_block` + i of the disk and block i of `out`; its record is at `places[i]` - `base` (u64).
    Returns the blocks of which that is no good record of the whole block; in their places `out` holds anything.
    """
