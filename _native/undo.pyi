"""Records of the retention journal: old contents of blocks, each chained to the one before.

The bytes are laid down in docs/journal.md and kernel/undo.h. All functions that touch content release the GIL for the
whole call and may run in any number of threads; buffers may not overlap. ValueError: the caller's buffers, positions
or numbers are wrong. OverflowError: a number is negative or beyond 64 bits.
"""

from typing_extensions import Buffer

HEADER_BYTES: int
"""Of each record."""
WHOLE: int
"""The bitmap of all sectors of a block (16 bits)."""
CHAINED: int
"""In a block's place: it has several records; the rest of the number is the index of the first one's entry."""
NO_ROOM: str
"""What `scan` says where `more` has to grow before it goes on."""

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
    sectors: Buffer,
    cycle: int,
    durable: int,
    chain: Buffer,
    out: Buffer,
    position: int,
    mode: int,
) -> tuple[int, int, bytes]:
    """`out` holds, from `position` on, records of the blocks in `blocks`, until the next might not fit.

    Bit i of `blocks` is block i of `span` and block `first_block` + i of the disk; the bitmap of those of its sectors
    that are kept is at `sectors[2 * i]`. Of a short block all are. `chain` is the checksum of the record before. `mode`
    0 stores, 1 compresses where that shrinks, 2 compresses where it saves at least 1 in 16 and a sample gives hope of
    it, 3 does that in half of the time and leaves half as much again. Returns (blocks still to do, position behind the
    last record, its checksum).
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
    bitmap: Buffer | None,
    covered: Buffer | None,
    places: Buffer | None,
    more: Buffer | None,
    base: int,
) -> tuple[int, bytes, str | None, int, int, int]:
    """The good, chained records of old content from `position` on are noted, up to the first that is something else.

    For blocks below `blocks`, of cycles from `cycle_min` to `cycle_max`: `bitmap` gets the block's bit, `covered` (a
    u16 for each block) the bits of its sectors, `places` (a u64 for each block, 0: none; needs the other two) `base` +
    position of its first record. Where a later record has sectors that no earlier one has, the place becomes `CHAINED`
    | the index of an entry in `more` (u64): there is the place of a record, and behind it, in one number, the sectors
    that count (16 bits) and above them the index of the next entry, 0 at the end. more[0] is the index of the first
    unused entry, 1 in a new one. Returns (position reached, checksum of the last good record, None at the end of
    `data`, "" at a good record of another kind, `NO_ROOM` where `more` is too short for the next one, else what is
    wrong there, records, blocks noted, highest number of durable bytes that was told).
    """

def content(data: Buffer, position: int, out: Buffer) -> tuple[int, int, int, int, int, int]:
    """`out` holds the old content at `position`, checked: each sector in its place in the block, others as before.

    Returns (cycle, first block, blocks, bitmap of sectors, bytes that the payload decodes to, position of the next
    record); of zero blocks there are no bytes and `out` is as before. Raises Damaged.
    """

def unpack(data: Buffer, base: int, places: Buffer, first_block: int, blocks: int, out: Buffer) -> int:
    """The old contents of the blocks in `blocks` lie over `out`, each from its own record in `data`, checked.

    Bit i is block `first_block` + i of the disk and block i of `out`; its record is at `places[i]` - `base` (u64). What
    the record does not have stays as it is. Returns the blocks of which that is no good record or one of a short
    block, or that are `CHAINED`; in their places `out` holds anything.
    """
