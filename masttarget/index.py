"""Where the old contents of a disk's sectors are in its journal: an index that a walk over the journal fills.

Mostly a block has one record behind a point. Where later ones have sectors that the first has not, they are chained.
"""

import mmap
from collections.abc import Iterator
from contextlib import suppress
from struct import calcsize
from typing import Final, Literal

from _native import undo
from drcore.units import BLOCK_SECTORS

_MORE_NUMBERS: Final = 1 << 16
"""What a new index has for chains: 512 KiB of addresses, of which only what is used takes memory."""


def zeroes(code: Literal["B", "H", "Q"], count: int) -> memoryview:
    """So many numbers of the type (`struct`'s code), all 0; memory is taken where one is written.

    Private: pages of shared memory are taken where one is read, too; and in no larger pieces than pages.
    """
    memory = mmap.mmap(-1, max(count, 1) * calcsize(code), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel that knows of no larger pieces
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memoryview(memory).cast(code)


class Index:
    """Where the old contents of a disk's blocks are; sparse memory, 10 bytes of each block that has any."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.covered = zeroes("H", blocks)
        """Of each block the bitmap of the sectors that have a record."""
        self.places = zeroes("Q", blocks)
        """Of each block 0, the place of its only record that counts, or the beginning of its chain in `more`."""
        self.more = zeroes("Q", _MORE_NUMBERS)
        self.more[0] = 1

    def grow(self) -> None:
        """There is room for as much again."""
        larger = zeroes("Q", 2 * len(self.more))
        larger[: len(self.more)] = self.more
        self.more = larger

    def records(self, block: int) -> Iterator[tuple[int, int]]:
        """The block's records: the place of each, and the sectors (bits) for which it counts. None twice."""
        found = self.places[block]
        if not found & undo.CHAINED:
            yield found, self.covered[block]
            return
        at = found & ~undo.CHAINED
        while at:
            sectors = self.more[at + 1]
            yield self.more[at], sectors & undo.WHOLE
            at = sectors >> BLOCK_SECTORS
