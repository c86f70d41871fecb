"""References: sectors that the target has elsewhere, named by their digests, and the index that finds them.

An entry has a header of 32 bytes (little-endian: u64 block index, u16 bitmap of the named sectors, u16 bitmap of those
that become zero, u32 zero, 16 bytes digest of the whole block) and 16 bytes for each named sector: its digest. The
blocks of a frame ascend; only blocks of 64 KiB are named.

What the index says is a hint, and proved before it is used. A place is a sector of the disk, or, from `SAVED` on, one
of the rooms (blocks of 64 KiB) in which the caller keeps old content that is overwritten: room n has the places
`SAVED` + 16 n to `SAVED` + 16 n + 15.

All functions that touch content release the GIL for the whole call. `pack` may run in any number of threads; an
`Index` is used by one at a time. ValueError: the caller's buffers or numbers are wrong. OverflowError: a number is
negative or beyond 64 bits. MemoryError: the index cannot grow.
"""

from typing import Self, final

from typing_extensions import Buffer

BATCH_BLOCKS: int
"""Entries that are resolved together."""
SAVED: int
"""Places from here on are in rooms."""

class Malformed(ValueError):
    """The frame breaks the rules above at `position`; `reason` says which."""

    position: int
    reason: str
    def __init__(self, position: int, reason: str) -> None: ...

def pack(
    span: Buffer,
    first_block: int,
    blocks: int,
    sectors: Buffer,
    digests: Buffer,
    secret: Buffer,
    out: Buffer,
    position: int,
) -> tuple[int, int, int]:
    """`out` holds, from `position` on, entries for the blocks in `blocks`, until the longest might not fit.

    Bit i of `blocks` is block i of `span` and block `first_block` + i of the disk, 64 KiB long; the sectors that
    differ stand at `sectors[2 * i]`, its digest at `digests[16 * i]`. Sectors of zeroes become zero, the others are
    named; a block of which none differs gets no entry. Returns (blocks still to do, position behind the last entry,
    sectors named).
    """

@final
class Index:
    """Where the sectors of a disk of `disk_blocks` whole blocks are.

    It has at most `capacity_max` (a power of two) slots of 16 bytes, three quarters of them used; of more sectors
    only those whose digest ends in enough zero bits are kept. `rooms` is how many blocks the caller can save.
    """

    def __new__(cls, secret: Buffer, disk_blocks: int, capacity_max: int, rooms: int) -> Self: ...
    @property
    def known(self) -> int:
        """Sectors in the index."""

    @property
    def thin(self) -> int:
        """Of so many powers of two sectors, one is kept."""

    @property
    def rooms_used(self) -> int:
        """Rooms into which something points."""

    @property
    def full(self) -> bool:
        """No room is free."""

    def learn(self, content: Buffer, first_sector: int, final: bool) -> None:
        """The whole sectors of `content` are known to lie at `first_sector` and behind it.

        One that is known elsewhere stays so unless `final`: then this place will not be overwritten any more.
        """

    def plan(
        self, frame: Buffer, position: int, least: int
    ) -> tuple[int, int, list[tuple[int, int, int]], list[tuple[int, int, int]]]:
        """The next batch, of at most 64 entries, is the one that `prove` and `displace_batch` speak of.

        `frame` must stay as it is until then; `least` is the smallest block that may come. Returns (position behind
        the batch, the least block after it, the entries' blocks as (entry, first block, count), what has to be read
        as (place, at, count)): the content of `count` sectors from `place` on goes to sector `at` of a buffer in
        which each entry has 16. Raises Malformed.
        """

    def prove(
        self, old: Buffer, fresh: Buffer, out_digests: Buffer
    ) -> tuple[list[tuple[int, int, int]], list[tuple[int, int]], list[int], int]:
        """`fresh` holds the blocks of the batch as they shall be written, as far as what was read is what was named.

        `old` holds each entry's block as it is, `fresh` what `plan` asked for, 64 KiB for each entry; `out_digests`
        (16 bytes for each) gets the digest of each block in `fresh`. Returns (blocks to be written as (entry, first
        block, count), (block, bitmap) of named sectors that are missing and left as in `old`, blocks whose sectors
        were all found and that yet have not the digest, left as in `old`, sectors found).
        """

    def displace_batch(self, old: Buffer) -> list[tuple[int, int, int]]:
        """As `displace`, for the blocks that `prove` told to write; `old` as there."""

    def displace(self, old: Buffer, first_block: int, sectors: int) -> list[tuple[int, int, int]]:
        """The bitmap `sectors` of each whole block in `old`, the disk's from `first_block` on, is to be overwritten.

        Returns what the caller has to save before, as (block in `old`, first room, count).
        """
