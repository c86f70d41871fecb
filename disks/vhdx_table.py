"""The block allocation table of an open VHDX, page by page: 4 KiB are what a log entry carries.

Source: [MS-VHDX] 2.5. Pages without an entry cost nothing, so that a sparse disk of 64 TiB is as cheap as its data.
"""

import sys
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from disks.backing import Backing
from disks.layout import Malformed
from disks.vhdx_layout import ALIGNMENT, HEAD_BYTES, OFFSET_MASK, STATE_MASK, BlockState, Metadata, Region
from drcore.limits import VHDX_TABLE_PAGES_MAX

PAGE_BYTES: Final = 4096
PAGE_ENTRIES: Final = PAGE_BYTES // 8
SCAN_BYTES: Final = 64 * PAGE_BYTES
"""What is read at once when the whole table is looked at."""
INVALID: Final = (4, 5)


class BlockTable:
    """Entries by index, guarded by the owner's lock. Changed pages stay until `done` says so."""

    def __init__(self, backing: Backing, region: Region, metadata: Metadata) -> None:
        self._backing = backing
        self._offset = region.offset
        self._entries = metadata.entries
        self._pages: dict[int, array[int] | None] = {}  # None: all zero
        self._dirty: set[int] = set()
        self._writing: set[int] = set()

    @property
    def dirty(self) -> int:
        """Pages that wait for a flush."""
        return len(self._dirty)

    def get(self, index: int) -> int:
        """The entry, as a number of 64 bits."""
        page = self._page(index // PAGE_ENTRIES)
        return 0 if page is None else page[index % PAGE_ENTRIES]

    def empty_until(self, index: int) -> int:
        """The index up to which every entry from `index` on is zero, as far as that is known cheaply."""
        page = index // PAGE_ENTRIES
        return (page + 1) * PAGE_ENTRIES if self._page(page) is None else index + 1

    def set(self, index: int, entry: int) -> None:
        """The entry is `entry`, durable after the next flush."""
        number = index // PAGE_ENTRIES
        page = self._page(number)
        if page is None:
            page = self._pages[number] = array("Q", bytes(PAGE_BYTES))
        page[index % PAGE_ENTRIES] = entry
        self._dirty.add(number)

    def take(self) -> list[tuple[int, bytes]]:
        """(file offset, bytes) of the changed pages, ascending; `done` or `failed` follows."""
        self._writing |= self._dirty
        self._dirty = set()
        return [(self._offset + number * PAGE_BYTES, self._bytes(number)) for number in sorted(self._writing)]

    def done(self) -> None:
        """What was taken is on the medium."""
        self._writing = set()

    def failed(self) -> None:
        """What was taken may not be on the medium."""
        self._dirty |= self._writing
        self._writing = set()

    def _bytes(self, number: int) -> bytes:
        page = self._pages[number]
        assert page is not None
        return _swapped(page).tobytes()

    def _page(self, number: int) -> "array[int] | None":
        if number in self._pages:
            return self._pages[number]
        if len(self._pages) >= VHDX_TABLE_PAGES_MAX:
            self._forget()
        raw = self._backing.read_bytes(self._offset + number * PAGE_BYTES, PAGE_BYTES)
        page = _swapped(array("Q", raw)) if raw.count(0) < PAGE_BYTES else None
        self._pages[number] = page
        return page

    def _forget(self) -> None:
        """The page that was read first, of those that are on the medium, is forgotten."""
        for number in self._pages:
            if number not in self._dirty and number not in self._writing:
                del self._pages[number]
                return


@dataclass(frozen=True, slots=True)
class Run:
    """`count` entries from `index` on: present blocks one behind the other, or a single entry of another kind."""

    index: int
    count: int
    entry: int


def table_runs(backing: Backing, offset: int, metadata: Metadata) -> Iterator[Run]:
    """All entries of the table at `offset` that are not zero, ascending; holes in the file are not read."""
    at = offset
    for start, count in backing.data_runs(offset, metadata.entries * 8):
        # A hole ends where the file system likes it to, an entry at eight bytes.
        at = max(at, start - start % 8)
        end = start + count + -(start + count) % 8
        while at < end:
            raw = backing.read_bytes(at, min(SCAN_BYTES, end - at))
            if raw.count(0) < len(raw):
                yield from _runs(_swapped(array("Q", raw)), (at - offset) // 8, metadata)
            at += len(raw)


def _runs(piece: "array[int]", first: int, metadata: Metadata) -> Iterator[Run]:
    chunk, step = metadata.chunk_ratio + 1, metadata.block_bytes
    here = 0
    while here < len(piece):
        entry = piece[here]
        count = 1
        if entry & STATE_MASK == BlockState.FULLY_PRESENT:
            # Up to the entry of a sector bitmap, which is never part of a run.
            room = min(len(piece) - here, max(1, chunk - 1 - (first + here) % chunk))
            count = _ascending(piece, here, room, step)
        if entry:
            yield Run(first + here, count, entry)
        here += count


def _ascending(piece: "array[int]", here: int, room: int, step: int) -> int:
    """How many entries from `here` on, at most `room`, follow each other by `step`; compared in growing spans."""
    count = span = 1
    while count < room:
        span = min(span, room - count)
        start = piece[here] + count * step
        stop = start + span * step
        if stop < 1 << 64 and piece[here + count : here + count + span] == array(
            "Q", range(start, stop, step)
        ):
            count += span
            span *= 2
        elif span > 1:
            span //= 2
        else:
            break
    return count


class Slots:
    """Which megabytes of the file are taken: a byte for each, because blocks and regions begin at whole megabytes."""

    def __init__(self, size: int) -> None:
        self._taken = bytearray(-(-size // ALIGNMENT))
        self.take(0, HEAD_BYTES)

    def take(self, offset: int, length: int) -> bool:
        """The bytes are taken; False, and nothing is, where one is taken already or behind the end."""
        first, count = offset // ALIGNMENT, -(-length // ALIGNMENT)
        if first + count > len(self._taken) or self._taken.count(1, first, first + count):
            return False
        self._taken[first : first + count] = b"\1" * count
        return True

    @property
    def end(self) -> int:
        """The offset behind the last byte taken."""
        return (self._taken.rfind(1) + 1) * ALIGNMENT


def take_places(
    backing: Backing, metadata: Metadata, region: Region, slots: Slots
) -> tuple[int, Mapping[int, int]]:
    """How many blocks are present; and where a fixed image keeps places for blocks that are not, by their entry.

    Each present block's place is taken, the others' where nothing present lies there. Raises Malformed.
    """
    used, kept = 0, []
    chunk = metadata.chunk_ratio + 1
    for run in table_runs(backing, region.offset, metadata):
        if _take_run(metadata, run, region, slots):
            used += run.count
        elif metadata.fixed and run.entry & OFFSET_MASK and run.index % chunk != chunk - 1:
            kept.append((run.index, run.entry & OFFSET_MASK))
    return used, {index: at for index, at in kept if slots.take(at, metadata.block_bytes)}


def _take_run(metadata: Metadata, run: Run, region: Region, slots: Slots) -> bool:
    """Whether the entries give payload blocks their places; each has one for itself, within the file. Raises Malformed.

    An image without a parent has no use for sector bitmaps; one that a writer left is only taken notice of.
    """
    state, at = run.entry & STATE_MASK, run.entry & OFFSET_MASK
    place = region.offset + run.index * 8
    chunk = metadata.chunk_ratio + 1
    if run.index % chunk == chunk - 1:
        if state == BlockState.FULLY_PRESENT and not slots.take(at, ALIGNMENT):
            raise Malformed(
                "a BAT entry of a sector bitmap", place, f"offset {at}", "a place of its own in the file"
            )
        return False
    if state in INVALID:
        raise Malformed("a BAT entry", place, f"the state {state}", "one that is defined")
    if state == BlockState.PARTIALLY_PRESENT:
        raise Malformed("a BAT entry", place, "a partly present block", "none in an image without a parent")
    if state != BlockState.FULLY_PRESENT:
        return False
    if not slots.take(at, run.count * metadata.block_bytes):
        _take_each(metadata, run, place, slots)
    return True


def _take_each(metadata: Metadata, run: Run, place: int, slots: Slots) -> None:
    """The same one by one: the entry that is wrong is named, and of the last block only the disk's part is needed."""
    block = run.index - run.index // (metadata.chunk_ratio + 1)
    for number in range(run.count):
        at = (run.entry & OFFSET_MASK) + number * metadata.block_bytes
        length = min(metadata.block_bytes, metadata.size - (block + number) * metadata.block_bytes)
        if not slots.take(at, metadata.block_bytes) and not slots.take(at, length):
            wanted = "a place of its own in the file"
            raise Malformed("a BAT entry", place + number * 8, f"offset {at}", wanted)


def _swapped(page: "array[int]") -> "array[int]":
    """The page as it lies in the file, from the machine's order, or the other way."""
    if sys.byteorder == "little":
        return page
    other = array("Q", page)
    other.byteswap()
    return other
