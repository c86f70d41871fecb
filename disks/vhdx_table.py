"""The block allocation table of an open VHDX, page by page: 4 KiB are what a log entry carries.

Source: [MS-VHDX] 2.5. Pages without an entry cost nothing, so that a sparse disk of 64 TiB is as cheap as its data.
"""

import sys
from array import array
from collections.abc import Iterator, Set
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

    def entries(self) -> Iterator[tuple[int, int]]:
        """(index, entry) of all entries on the medium that are not zero, ascending."""
        return table_entries(self._backing, self._offset, self._entries)

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


def table_entries(backing: Backing, offset: int, entries: int) -> Iterator[tuple[int, int]]:
    """(index, entry) of all entries of a table that are not zero, ascending; holes in the file are not read."""
    length = entries * 8
    for start, count in backing.data_runs(offset, length):
        # A hole ends where the file system likes it to, an entry at eight bytes.
        at, end = start - (start - offset) % 8, start + count
        while at < end:
            raw = backing.read_bytes(at, min(SCAN_BYTES, offset + length - at))
            if raw.count(0) < len(raw):
                first = (at - offset) // 8
                for number, entry in enumerate(_swapped(array("Q", raw))):
                    if entry:
                        yield first + number, entry
            at += len(raw)


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


def take_places(metadata: Metadata, table: BlockTable, region: Region, slots: Slots) -> tuple[int, Set[int]]:
    """How many blocks are present, and the entries of a fixed image that only keep a block's place for it.

    Each present block's place is taken, the others' where nothing present lies there. Raises Malformed.
    """
    used, kept = 0, array("Q")
    chunk = metadata.chunk_ratio + 1
    for index, entry in table.entries():
        if _check_entry(metadata, index, entry, region, slots):
            used += 1
        elif metadata.fixed and entry & OFFSET_MASK and index % chunk != chunk - 1:
            kept.append(index)
    free = (each for each in kept if slots.take(table.get(each) & OFFSET_MASK, metadata.block_bytes))
    return used, frozenset(free)


def _check_entry(metadata: Metadata, index: int, entry: int, region: Region, slots: Slots) -> bool:
    """Whether the entry gives a payload block a place; it has that for itself, within the file. Raises Malformed.

    An image without a parent has no use for sector bitmaps; one that a writer left is only taken notice of.
    """
    state, at = entry & STATE_MASK, entry & OFFSET_MASK
    place = region.offset + index * 8
    chunk = metadata.chunk_ratio + 1
    if index % chunk == chunk - 1:
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
    block = index - index // chunk
    length = min(metadata.block_bytes, metadata.size - block * metadata.block_bytes)
    # A whole block belongs to the image, but all that is needed of the last one is what the disk has of it.
    if not slots.take(at, metadata.block_bytes) and not slots.take(at, length):
        raise Malformed("a BAT entry", place, f"offset {at}", "a place of its own in the file")
    return True


def _swapped(page: "array[int]") -> "array[int]":
    """The page as it lies in the file, from the machine's order, or the other way."""
    if sys.byteorder == "little":
        return page
    other = array("Q", page)
    other.byteswap()
    return other
