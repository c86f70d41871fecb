"""What the target holds anywhere, by digest: resolves references, and saves old content that may still be asked for.

The index is a hint. Whatever it leads to is read and digested again before it is written, so that a stale entry costs
a sector that is sent, never a wrong one.
"""

import struct
from collections.abc import Iterator
from typing import Protocol

from _native import compare, refer
from disks.disk import Disk
from drcore.buffers import buffer
from drcore.limits import REFERENCE_SLOTS_MAX
from drcore.record import Record
from drcore.units import (
    BLOCK_BYTES,
    BLOCK_SECTORS,
    DIGEST_BYTES,
    SECTOR_BYTES,
    SPAN_BLOCKS,
    SPAN_BYTES,
    bit_runs,
)
from masttarget.errors import DataMalformed

_ENTRY = struct.Struct("<QHH20x")
SLOTS_MIN = 1024
ALL_SECTORS = (1 << BLOCK_SECTORS) - 1


class Rooms(Protocol):
    """Old content that may still be referred to after it was overwritten. Nothing of it outlives the process."""

    @property
    def count(self) -> int:
        """How many blocks have room."""
        ...

    def write(self, offset: int, content: memoryview) -> bool:
        """`content` can be read again; False when it cannot be kept."""
        ...

    def read(self, offset: int, into: memoryview) -> None:
        """`into` holds what was written there, if that could be kept; else anything."""
        ...

    def close(self) -> None:
        """The space is given back."""
        ...


class Found(Record):
    """A batch of references as far as it could be resolved.

    `runs` are whole blocks to be written: (first block, count, content, digests); the views are valid until the next
    batch. `missing` are blocks with the bitmap of sectors that were not found, `wrong` those that were found and do not
    add up to the block's digest: they are left as they were.
    """

    blocks: int
    sectors: int
    runs: list[tuple[int, memoryview, bytes]]
    missing: list[tuple[int, int]]
    wrong: list[int]


def changes(entries: memoryview) -> dict[int, int]:
    """Which sectors (bits) the blocks of a frame of references change, up to what is malformed.

    A block that is there twice, which refuses the frame, has both: what came before may be on the disk by then.
    """
    changed: dict[int, int] = {}
    position = 0
    while position + _ENTRY.size <= len(entries):
        block, sectors, zeroes = _ENTRY.unpack_from(entries, position)
        changed[block] = changed.get(block, 0) | sectors | zeroes
        position += _ENTRY.size + sectors.bit_count() * DIGEST_BYTES
    return changed


class Elsewhere:
    """The index of one target disk's first `data_bytes`, and its rooms. Its owner's lock guards it."""

    def __init__(
        self, disk: Disk, data_bytes: int, secret: bytes, rooms: Rooms, slots: int = REFERENCE_SLOTS_MAX
    ) -> None:
        self._disk = disk
        self._blocks = data_bytes // BLOCK_BYTES
        self._secret = secret
        self._retired = False
        self._rooms = rooms
        self._index = refer.Index(secret, self._blocks, slots, rooms.count)
        self._old = buffer(SPAN_BYTES)
        self._fresh = buffer(SPAN_BYTES)
        self._digests = memoryview(bytearray(SPAN_BLOCKS * DIGEST_BYTES))
        self._saves = True

    @property
    def known(self) -> int:
        """Sectors that can be found."""
        return self._index.known

    def close(self) -> None:
        """The rooms are given back."""
        self._rooms.close()

    def retire(self) -> None:
        """Nothing is known any more and nothing will be: references that are still under way find nothing."""
        self._retired = True
        self._index = refer.Index(self._secret, self._blocks, SLOTS_MIN, 0)
        self._rooms.close()

    def learn(self, offset: int, content: memoryview, *, final: bool) -> None:
        """`content` is on the disk at `offset` (whole sectors of it); `final`: to stay there in this cycle."""
        if offset % SECTOR_BYTES == 0 and not self._retired:
            self._index.learn(content, offset // SECTOR_BYTES, final)

    def resolve(self, entries: memoryview) -> Iterator[Found]:
        """The references of a frame, batch after batch; each is to be written before the next is asked for.

        Errors: `DataMalformed` (HW-MT-011), those of `Disk.read`.
        """
        position = least = 0
        while position < len(entries):
            try:
                position, least, blocks, reads = self._index.plan(entries, position, least)
            except refer.Malformed as error:
                raise DataMalformed(reason=str(error)) from error
            for at, first, count in blocks:
                self._disk.read(first * BLOCK_BYTES, self._old[at * BLOCK_BYTES : (at + count) * BLOCK_BYTES])
            for place, at, count in reads:
                self._read(place, self._fresh[at * SECTOR_BYTES : (at + count) * SECTOR_BYTES])
            runs, missing, wrong, found = self._index.prove(self._old, self._fresh, self._digests)
            self._save(self._index.displace_batch(self._old))
            yield Found(
                sum(count for _, _, count in blocks),
                found,
                [
                    (
                        first,
                        self._fresh[at * BLOCK_BYTES : (at + count) * BLOCK_BYTES],
                        bytes(self._digests[at * DIGEST_BYTES : (at + count) * DIGEST_BYTES]),
                    )
                    for at, first, count in runs
                ],
                missing,
                wrong,
            )

    def _read(self, place: int, into: memoryview) -> None:
        if place >= refer.SAVED:
            self._rooms.read((place - refer.SAVED) * SECTOR_BYTES, into)
        else:
            self._disk.read(place * SECTOR_BYTES, into)

    def displace(self, first: int, count: int, digests: bytes) -> None:
        """Of `count` blocks, about to be overwritten, what references may still ask for is saved.

        `digests` are the blocks' present ones: zero blocks are passed over. At most a span at once.
        """
        count = min(count, self._blocks - first)
        if count <= 0 or self._index.full or not self._saves:
            return
        filled = ((1 << count) - 1) & ~compare.zeroes(digests[: count * DIGEST_BYTES])
        for start, length in bit_runs(filled):
            old = self._old[: length * BLOCK_BYTES]
            self._disk.read((first + start) * BLOCK_BYTES, old)
            self.displace_sectors(first + start, old, ALL_SECTORS)

    def displace_sectors(self, first: int, old: memoryview, sectors: int) -> None:
        """As `displace`, for the named sectors of each block of `old`, the content that is there from `first` on."""
        if first + len(old) // BLOCK_BYTES <= self._blocks and not self._retired:
            self._save(self._index.displace(old, first, sectors), old)

    def _save(self, runs: list[tuple[int, int, int]], old: memoryview | None = None) -> None:
        content = self._old if old is None else old
        for at, room, count in runs:
            piece = content[at * BLOCK_BYTES : (at + count) * BLOCK_BYTES]
            # What could not be saved reads as something else later, and is sent.
            if self._saves and not self._rooms.write(room * BLOCK_BYTES, piece):
                self._saves = False
