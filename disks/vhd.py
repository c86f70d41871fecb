"""VHD: fixed images are linear disks with a footer behind, dynamic ones keep 2 MiB blocks behind a table.

Order on the medium of a dynamic image, so that a kill or a power cut at any instant leaves one that opens and holds
everything flushed: before a block takes the footer's place a new footer stands further on and is durable; a block's
data and bitmap are durable before the table names it.
"""

import contextlib
import time
import uuid
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final

from disks import vhd_layout
from disks.backing import Backing
from disks.disk import Format
from disks.errors import ImageFull, SizeNotPossible
from disks.image import Run, check_range, check_writable
from disks.layout import Malformed
from disks.linear import LinearDisk
from disks.mapped import MappedDisk
from disks.opening import Newborn
from disks.structures import damaged, vhd_footer
from disks.vhd_layout import SECTOR, UNUSED, DiskType, Dynamic, Footer
from drcore.errors import HomewardError
from drcore.limits import VHD_GROWTH_BYTES, VHD_TABLE_BYTES_MAX
from drcore.units import ByteCount

EPOCH: Final = 946_684_800
"""2000-01-01T00:00Z, where a VHD's time begins."""
ALIGNMENT: Final = 4096
"""A block's data begins on a page, so that 4 KiB writes touch whole pages of the file."""
TABLE_SECTOR_ENTRIES: Final = SECTOR // 4
EXTENT_BLOCKS: Final = 1024
"""Blocks looked up under one hold of the lock while extents are listed."""

UNKNOWN, WHOLE, PARTIAL = 0, 1, 2

Placed = list[tuple[int, bytes]]
"""(offset in the file, bytes) pairs."""


def open_fixed(backing: Backing, kind: Format) -> LinearDisk:
    """A fixed image's data as a disk; the footer behind it is never touched. Errors: ImageDamaged."""
    found = vhd_footer(backing)
    if found is None:
        raise backing.damaged("the footer", backing.size, "none that is sound", "one")
    footer, length = found
    if footer.current_size > backing.size - length:
        room = f"{backing.size - length} bytes of data"
        raise backing.damaged("the current size", backing.size - length + 48, str(footer.current_size), room)
    return LinearDisk(backing, kind, footer.current_size)


def create_fixed(path: Path, kind: Format, size: int) -> LinearDisk:
    """A new fixed image, its data one hole."""
    _check_size(kind, size)
    newborn = Newborn(path)
    try:
        newborn.backing.write(size, memoryview(_new_footer(DiskType.FIXED, size)))
        return LinearDisk(newborn.publish(), kind, size)
    except BaseException:
        newborn.abandon()
        raise


def open_dynamic(backing: Backing, kind: Format) -> "DynamicVhd":
    """A dynamic image as a disk; its table is in memory and checked whole. Errors: ImageDamaged."""
    try:
        return DynamicVhd(backing, kind, *read_dynamic(backing))
    except Malformed as error:
        raise damaged(backing, error) from error


def create_dynamic(path: Path, kind: Format, size: int) -> "DynamicVhd":
    """A new dynamic image without a block."""
    _check_size(kind, size)
    blocks = -(-size // vhd_layout.BLOCK_BYTES)
    table_at = vhd_layout.FOOTER_BYTES + vhd_layout.DYNAMIC_BYTES
    table_bytes = -(-blocks * 4 // SECTOR) * SECTOR
    header = Dynamic(table_at, blocks, vhd_layout.BLOCK_BYTES)
    footer = _new_footer(DiskType.DYNAMIC, size)
    newborn = Newborn(path)
    try:
        start = footer + vhd_layout.encode_dynamic(header) + b"\xff" * table_bytes + footer
        newborn.backing.write(0, memoryview(start))
        return open_dynamic(newborn.publish(), kind)
    except BaseException:
        newborn.abandon()
        raise


class DynamicVhd(MappedDisk):
    """An open dynamic VHD. Owns the backing; table and bitmaps are guarded by a lock, data moves outside it."""

    FRESH = b"\xff"
    """Eight sectors of a new block's bitmap: all of them hold zeroes."""

    def __init__(
        self, backing: Backing, kind: Format, footer: Footer, header: Dynamic, table: "array[int]"
    ) -> None:
        super().__init__(backing, kind, footer.current_size, listed_bytes=EXTENT_BLOCKS * header.block_bytes)
        self._footer = footer
        self._header = header
        self._table = table
        self._bitmaps = bytearray(len(table))  # UNKNOWN, WHOLE or PARTIAL for each block
        self._stride = header.bitmap_bytes + header.block_bytes
        self._used = len(table) - table.count(UNUSED)
        self._dirty: set[int] = set()  # sectors of the table that wait for a flush
        self._completed: set[int] = set()  # blocks whose bitmap becomes all ones with the next flush
        self._grown = False
        found = vhd_footer(backing)
        self._footer_at = backing.size - found[1] if found else backing.size
        self._end = self._free_from()
        self._durable_end = self._end

    @property
    def grain_size(self) -> ByteCount | None:
        return ByteCount(self._header.block_bytes)

    def write(self, offset: int, data: memoryview) -> None:
        check_range(self, offset, len(data))
        check_writable(self, self._backing.writable)
        if not len(data):
            return
        block_bytes = self._header.block_bytes
        with self._lock:
            for block in range(offset // block_bytes, (offset + len(data) - 1) // block_bytes + 1):
                if self._table[block] == UNUSED:
                    self._allocate(block)
                elif not self._is_whole(block):
                    self._complete(block)
            runs = list(self._runs(offset, len(data)))
        self._store(runs, offset, data)

    def zero(self, offset: int, length: int) -> None:
        check_range(self, offset, length)
        check_writable(self, self._backing.writable)
        with self._lock:
            runs = list(self._runs(offset, length))
        self._zero_runs(runs)

    def flush(self) -> None:
        if not self._backing.writable:
            return
        with self._flushing:
            with self._lock:
                dirty, self._dirty = self._dirty, set()
                completed, self._completed = self._completed, set()
                tables = [
                    (first, self._table_bytes(first, count)) for first, count in _neighbours(sorted(dirty))
                ]
                bitmaps = self._changed_bitmaps(completed)
                end = self._end
            try:
                self._backing.sync()
                # From here on the table on the medium may name blocks up to there, even if writing it fails half-way.
                self._durable_end = max(self._durable_end, end)
                if tables or bitmaps:
                    self._write_tables(tables, bitmaps)
                    self._backing.sync()
            except BaseException:
                with self._lock:
                    self._dirty |= dirty
                    self._completed |= completed
                raise

    def allocated_bytes(self) -> ByteCount:
        return ByteCount(min(self._used * self._header.block_bytes, self.size))

    def close(self) -> None:
        if self._grown:
            self._grown = False
            # A shorter file is a courtesy: where it fails, the footer further on is as good.
            with contextlib.suppress(HomewardError):
                self._trim()
        super().close()

    def _runs(self, offset: int, length: int) -> Iterator[Run]:
        block_bytes = self._header.block_bytes
        end = offset + length
        while offset < end:
            block = offset // block_bytes
            stop = min(end, (block + 1) * block_bytes)
            entry = self._table[block]
            if entry == UNUSED:
                yield Run(offset, stop - offset, None)
            elif self._is_whole(block):
                yield Run(offset, stop - offset, self._data_at(block) + offset % block_bytes)
            else:
                yield from self._partial_runs(block, offset, stop)
            offset = stop

    def _partial_runs(self, block: int, offset: int, stop: int) -> Iterator[Run]:
        """The same inside one block, some of whose sectors were never written."""
        base = block * self._header.block_bytes
        for first, count, used in vhd_layout.bitmap_runs(self._bitmap(block), self._sectors(block)):
            start = max(offset, base + first * SECTOR)
            end = min(stop, base + (first + count) * SECTOR)
            if start < end:
                yield Run(start, end - start, self._data_at(block) + start - base if used else None)

    def _sectors(self, block: int) -> int:
        """The block's sectors that the disk has; the last block may stick out of it."""
        return min(self._header.block_bytes, self.size - block * self._header.block_bytes) // SECTOR

    def _bitmap(self, block: int) -> bytes:
        return self._backing.read_bytes(self._table[block] * SECTOR, self._header.bitmap_bytes)

    def _data_at(self, block: int) -> int:
        return self._table[block] * SECTOR + self._header.bitmap_bytes

    def _is_whole(self, block: int) -> bool:
        """Whether every sector of an allocated block counts as written."""
        if self._bitmaps[block] == UNKNOWN:
            bitmap = self._bitmap(block)
            whole = bitmap == b"\xff" * len(bitmap)
            if not whole:  # the last block may stick out of the disk
                runs = vhd_layout.bitmap_runs(bitmap, self._sectors(block))
                whole = len(runs) == 1 and runs[0][2]
            self._bitmaps[block] = WHOLE if whole else PARTIAL
        return self._bitmaps[block] == WHOLE

    def _complete(self, block: int) -> None:
        """Sectors never written hold zeroes in the file too, so that the bitmap may become all ones at the flush."""
        for first, count, used in vhd_layout.bitmap_runs(self._bitmap(block), self._sectors(block)):
            if not used:
                self._backing.zero(self._data_at(block) + first * SECTOR, count * SECTOR)
        self._bitmaps[block] = WHOLE
        self._completed.add(block)

    def _allocate(self, block: int) -> None:
        """The block has a place that reads as zeroes, with a bitmap of ones; the table names it at the next flush."""
        bitmap_bytes = self._header.bitmap_bytes
        start = -(-(self._end + bitmap_bytes) // ALIGNMENT) * ALIGNMENT - bitmap_bytes
        end = start + self._stride
        if end // SECTOR >= UNUSED:
            limit = UNUSED * SECTOR
            raise ImageFull(path=str(self.path), offset=start, length=self._stride, limit=limit)
        if end > self._footer_at:
            self._grow(end)
        self._backing.write(start, memoryview(self.FRESH * bitmap_bytes))
        self._table[block] = start // SECTOR
        self._bitmaps[block] = WHOLE
        self._dirty.add(block // TABLE_SECTOR_ENTRIES)
        self._used += 1
        self._end = end

    def _grow(self, end: int) -> None:
        """The footer stands at or behind `end`, durable, and what it leaves behind reads as zeroes."""
        missing = (len(self._table) - self._used - 1) * (self._stride + ALIGNMENT)
        footer_at = end + min(max(VHD_GROWTH_BYTES, end), missing) // SECTOR * SECTOR
        self._grown = True
        self._backing.write(footer_at, memoryview(self._footer.raw))
        self._backing.sync()
        left, self._footer_at = self._footer_at, footer_at
        self._backing.zero(left, min(vhd_layout.FOOTER_BYTES, footer_at - left))

    def _trim(self) -> None:
        """The footer stands right behind the last block that the table names on the medium."""
        if self._durable_end >= self._footer_at:
            return
        self._backing.write(self._durable_end, memoryview(self._footer.raw))
        self._backing.sync()
        self._backing.resize(self._durable_end + vhd_layout.FOOTER_BYTES)

    def _free_from(self) -> int:
        """The offset behind which nothing stands before the footer: neither a block nor what a kill left of one."""
        header = self._header
        last = max((entry for entry in self._table if entry != UNUSED), default=None)
        end = max(
            header.table_offset + -(-header.entries * 4 // SECTOR) * SECTOR,
            self._footer.data_offset + vhd_layout.DYNAMIC_BYTES,
            0 if last is None else last * SECTOR + self._stride,
        )
        if self._backing.writable:
            for start, length in self._backing.data_runs(end, max(0, self._footer_at - end)):
                end = start + length
        return end

    def _table_bytes(self, first: int, count: int) -> bytes:
        entries = self._table[first * TABLE_SECTOR_ENTRIES : (first + count) * TABLE_SECTOR_ENTRIES]
        return vhd_layout.encode_table(entries)

    def _changed_bitmaps(self, blocks: set[int]) -> Placed:
        """The bitmaps that the next flush writes; the lock is held."""
        ones = self.FRESH * self._header.bitmap_bytes
        return [(self._table[block] * SECTOR, ones) for block in sorted(blocks)]

    def _write_tables(self, tables: Placed, bitmaps: Placed) -> None:
        """Bitmaps first; `tables` are named by their first sector."""
        for at, raw in bitmaps:
            self._backing.write(at, memoryview(raw))
        for first, raw in tables:
            self._backing.write(self._header.table_offset + first * SECTOR, memoryview(raw))


def read_dynamic(backing: Backing) -> "tuple[Footer, Dynamic, array[int]]":
    """Footer, header and table of a dynamic or differencing image, checked. Raises ImageDamaged, Malformed."""
    footer = _dynamic_footer(backing)
    if footer.data_offset % SECTOR or footer.data_offset > backing.size - vhd_layout.DYNAMIC_BYTES:
        raise backing.damaged(
            "the footer's data offset", 16, str(footer.data_offset), "sectors within the file"
        )
    header = vhd_layout.decode_dynamic(
        backing.read_bytes(footer.data_offset, vhd_layout.DYNAMIC_BYTES), footer.data_offset
    )
    blocks = -(-footer.current_size // header.block_bytes)
    if header.entries < blocks:
        at = footer.data_offset + 28
        raise backing.damaged("the number of table entries", at, str(header.entries), f"at least {blocks}")
    if blocks * 4 > VHD_TABLE_BYTES_MAX or header.table_offset + blocks * 4 > backing.size:
        seen = f"{blocks * 4} bytes in a file of {backing.size}"
        raise backing.damaged(
            "the block allocation table", header.table_offset, seen, "a table within the file"
        )
    table = vhd_layout.decode_table(backing.read_bytes(header.table_offset, blocks * 4))
    _check_table(backing, footer, header, table)
    return footer, header, table


def _dynamic_footer(backing: Backing) -> Footer:
    """The footer at the end, else its copy at the start; where both are sound they agree."""
    found = vhd_footer(backing)
    try:
        copy = vhd_layout.decode_footer(backing.read_bytes(0, min(backing.size, vhd_layout.FOOTER_BYTES)), 0)
    except Malformed:
        if found is None:
            raise
        return found[0]
    if found is not None:
        one, two = (found[0].current_size, found[0].data_offset), (copy.current_size, copy.data_offset)
        if one != two:
            raise backing.damaged("the footer's copy", 0, f"size and header {two}", f"{one} as at the end")
        return found[0]
    return copy


def _check_table(backing: Backing, footer: Footer, header: Dynamic, table: "array[int]") -> None:
    """Blocks lie inside the file, beside each other and beside all other structures."""
    stride = (header.bitmap_bytes + header.block_bytes) // SECTOR
    found = vhd_footer(backing)
    end = backing.size - found[1] if found else backing.size
    used = len(table) - table.count(UNUSED)
    if used * stride * SECTOR > end:
        room = f"room for {used} blocks of {stride} sectors in {end} bytes"
        raise backing.damaged("the block allocation table", header.table_offset, f"{used} blocks", room)
    starts = sorted(entry for entry in table if entry != UNUSED)
    others = (
        (0, vhd_layout.FOOTER_BYTES),
        (footer.data_offset, vhd_layout.DYNAMIC_BYTES),
        (header.table_offset, len(table) * 4),
        *((locator.offset, locator.length) for locator in header.locators if locator.length),
    )
    bad = next((later for earlier, later in pairwise(starts) if later - earlier < stride), None)
    if starts and (starts[-1] + stride) * SECTOR > end:
        bad = starts[-1]
    for at, length in others:
        before = bisect_left(starts, -(-(at + length) // SECTOR)) - 1
        if before >= 0 and starts[before] + stride > at // SECTOR:
            bad = starts[before]
    if bad is not None:
        place = header.table_offset + table.index(bad) * 4
        wanted = f"a block of {stride} sectors that overlaps nothing, before byte {end}"
        raise backing.damaged("an entry of the block allocation table", place, f"sector {bad}", wanted)


def _check_size(kind: Format, size: int) -> None:
    if size % SECTOR or not SECTOR <= size <= vhd_layout.SIZE_MAX:
        wanted = f"a multiple of {SECTOR} bytes, at most {vhd_layout.SIZE_MAX}"
        raise SizeNotPossible(format=kind.value, size=size, wanted=wanted)


def _new_footer(disk_type: DiskType, size: int) -> bytes:
    return vhd_layout.encode_footer(disk_type, size, uuid.uuid4().bytes, int(time.time()) - EPOCH)


def _neighbours(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """(first, count) runs of ascending numbers."""
    first = count = 0
    for number in numbers:
        if count and number == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = number, 1
    if count:
        yield first, count
