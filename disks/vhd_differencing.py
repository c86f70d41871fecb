"""Differencing VHD: a dynamic one whose unused blocks and sectors show its parent, which is never written.

Source: the VHD specification 1.0, "Dynamic Disk Header Format" (parent id, time stamp, locators), "Block Allocation
Table and Data Blocks" (sector bitmap: a set bit is a sector of the child) and "Implementing a Differencing Hard Disk".
A parent is looked for under a plain name in the child's own directory only.

Order on the medium: data before the bits that show it, bits before the table that names a new block, whose bitmap is
empty until then.
"""

import os
import re
from array import array
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from disks import vhd
from disks.backing import Access, Backing
from disks.disk import ExtentKind, Format
from disks.errors import OpenFailed, ParentUnusable
from disks.image import Image, Run, check_range, check_writable
from disks.layout import Malformed
from disks.opening import open_directory, open_extent
from disks.structures import damaged, vhd_footer
from disks.vhd import UNKNOWN, DynamicVhd, Placed
from disks.vhd_layout import ABSOLUTE, RELATIVE, SECTOR, UNUSED, DiskType, Dynamic, Footer, decode_parent_name
from drcore.limits import DISK_NAME_BYTES_MAX, PARENTS_MAX, VHD_DIRTY_BITMAPS_MAX

EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
TIME_STAMP_SECONDS: Final = 2
"""File systems keep modification times to two seconds (FAT) or better."""
NOT_PLAIN: Final = re.compile(r"[\\/:\0]")


def open_differencing(backing: Backing, kind: Format) -> "DifferencingVhd":
    """A differencing image as a disk, with all of its parents. Errors: ImageDamaged, ParentUnusable, DiskInUse."""
    return _open(backing, kind, ())


def _open(backing: Backing, kind: Format, trail: tuple[tuple[int, int], ...]) -> "DifferencingVhd":
    try:
        footer, header, table = vhd.read_dynamic(backing)
        parent = _open_parent(backing, footer, header, (*trail, _file(backing)))
    except Malformed as error:
        raise damaged(backing, error) from error
    try:
        return DifferencingVhd(backing, kind, footer, header, table, parent)
    except BaseException:
        parent.close()
        raise


class DifferencingVhd(DynamicVhd):
    """An open differencing VHD. Owns the backing and the parent."""

    FRESH = b"\0"

    def __init__(
        self,
        backing: Backing,
        kind: Format,
        footer: Footer,
        header: Dynamic,
        table: "array[int]",
        parent: Image,
    ) -> None:
        super().__init__(backing, kind, footer, header, table)
        self._parent = parent
        self._bits: dict[int, bytearray] = {}
        """Bitmaps that are not on the medium as they are here. `_completed` names those that the next flush writes."""

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path, *self._parent.files)

    def write(self, offset: int, data: memoryview) -> None:
        check_range(self, offset, len(data))
        check_writable(self, self._backing.writable)
        if not len(data):
            return
        with self._lock:
            places = self._take(offset, offset + len(data))
        self._store(places, offset, data)
        self._written(offset, offset + len(data))

    def zero(self, offset: int, length: int) -> None:
        check_range(self, offset, length)
        check_writable(self, self._backing.writable)
        block_bytes = self._header.block_bytes
        end = offset + length
        while offset < end:
            stop = min(end, (offset // block_bytes + 1) * block_bytes)
            with self._lock:
                hidden = self._table[offset // block_bytes] == UNUSED and self._parent_is_zero(offset, stop)
                places = [] if hidden else self._take(offset, stop)
            self._zero_runs(places)
            if places:
                self._written(offset, stop)
            offset = stop

    def close(self) -> None:
        super().close()
        self._parent.close()

    def _take(self, offset: int, end: int) -> list[Run]:
        """Where the range's bytes go in this file; sectors that it covers in part are the child's. The lock is held."""
        block_bytes = self._header.block_bytes
        runs = []
        for block in range(offset // block_bytes, (end - 1) // block_bytes + 1):
            if self._table[block] == UNUSED:
                self._allocate(block)
            start = max(offset, block * block_bytes)
            stop = min(end, (block + 1) * block_bytes)
            runs.append(Run(start, stop - start, self._data_at(block) + start % block_bytes))
        for edge in (offset, end):
            if edge % SECTOR:
                self._copy_up(edge // SECTOR)
        return runs

    def _copy_up(self, sector: int) -> None:
        """The sector is the child's, with the content that it shows; the lock is held."""
        block, within = divmod(sector * SECTOR, self._header.block_bytes)
        bits = self._bits_of(block)
        number = within // SECTOR
        if bits[number // 8] & 0x80 >> number % 8:
            return
        content = memoryview(bytearray(SECTOR))
        self._parent.read(sector * SECTOR, content)
        self._backing.write(self._data_at(block) + within, content)
        self._set(block, number, number + 1)

    def _written(self, offset: int, end: int) -> None:
        """The bits of the range's sectors are set, for readers at once, on the medium with the next flush."""
        sectors_a_block = self._header.block_bytes // SECTOR
        first, last = offset // SECTOR, (end - 1) // SECTOR
        with self._lock:
            for block in range(first // sectors_a_block, last // sectors_a_block + 1):
                base = block * sectors_a_block
                self._set(block, max(0, first - base), min(sectors_a_block, last + 1 - base))
            crowded = len(self._bits) > VHD_DIRTY_BITMAPS_MAX
        if crowded:
            self.flush()

    def _set(self, block: int, first: int, end: int) -> None:
        bits = self._bits_of(block)
        width = len(bits) * 8
        ones = (1 << (end - first)) - 1 << (width - end)
        bits[:] = (int.from_bytes(bits, "big") | ones).to_bytes(len(bits), "big")
        self._bitmaps[block] = UNKNOWN
        self._completed.add(block)

    def _bits_of(self, block: int) -> bytearray:
        """The bitmap to be changed. What is not marked as completed stays as on the medium."""
        if block not in self._bits:
            self._bits[block] = bytearray(super()._bitmap(block))
        return self._bits[block]

    def _parent_is_zero(self, offset: int, end: int) -> bool:
        return all(each.kind is ExtentKind.ZERO for each in self._parent.extents(offset, end - offset))

    def _bitmap(self, block: int) -> bytes:
        held = self._bits.get(block)
        return super()._bitmap(block) if held is None else bytes(held)

    def _read_absent(self, offset: int, into: memoryview) -> None:
        self._parent.read(offset, into)

    def _shown(self, run: Run) -> Iterator[tuple[int, int, bool]]:
        if run.at is not None:
            yield run.offset, run.length, True
            return
        for each in self._parent.extents(run.offset, run.length):
            yield each.offset, each.length, each.kind is ExtentKind.DATA

    def _allocate(self, block: int) -> None:
        super()._allocate(block)
        self._bitmaps[block] = UNKNOWN
        self._bits[block] = bytearray(self._header.bitmap_bytes)

    def _changed_bitmaps(self, blocks: set[int]) -> Placed:
        return [(self._table[block] * SECTOR, self._bitmap(block)) for block in sorted(blocks)]

    def _write_tables(self, tables: Placed, bitmaps: Placed) -> None:
        super()._write_tables(tables, bitmaps)
        with self._lock:
            # Everything that was not changed meanwhile is on the medium as it is here.
            self._bits = {block: bits for block, bits in self._bits.items() if block in self._completed}


def _open_parent(
    backing: Backing, footer: Footer, header: Dynamic, trail: tuple[tuple[int, int], ...]
) -> Image:
    """The parent that the header names, by its own id, open for reading. Errors: ParentUnusable; raises Malformed."""
    name = _parent_name(backing, header)
    if len(trail) > PARENTS_MAX:
        raise _unusable(backing, name, f"a chain of more than {PARENTS_MAX} images", "a shorter one")
    access = Access.INSPECT if backing.access is Access.INSPECT else Access.SOURCE
    directory = open_directory(backing.path)
    try:
        below = open_extent(directory, name, backing.path, access)
    except OpenFailed as error:
        raise _unusable(backing, name, error.reason, "a file of this name beside the child") from error
    finally:
        os.close(directory)
    try:
        if _file(below) in trail:
            raise _unusable(backing, name, "an image that is its own ancestor", "a chain that ends")
        return _checked_parent(backing, footer, header, below, trail)
    except BaseException:
        below.close()
        raise


def _checked_parent(
    backing: Backing, footer: Footer, header: Dynamic, below: Backing, trail: tuple[tuple[int, int], ...]
) -> Image:
    name = below.path.name
    found = vhd_footer(below)
    if found is None:
        raise _unusable(backing, name, "no sound VHD footer at its end", "a VHD")
    own = found[0]
    if own.unique_id != header.parent_id:
        raise _unusable(backing, name, f"the id {own.unique_id.hex()}", header.parent_id.hex())
    if own.current_size != footer.current_size:
        raise _unusable(backing, name, f"{own.current_size} bytes", f"{footer.current_size} as the child has")
    _check_time(backing, header.parent_time, below, own)
    match own.disk_type:
        case DiskType.FIXED:
            return vhd.open_fixed(below, Format.VHD_FIXED)
        case DiskType.DYNAMIC:
            return vhd.open_dynamic(below, Format.VHD_DYNAMIC)
        case DiskType.DIFFERENCING:
            return _open(below, Format.VHD_DIFFERENCING, trail)


def _check_time(backing: Backing, wanted: int, below: Backing, own: Footer) -> None:
    """Nobody has written to the parent since: its footer's time stamp (VirtualBox) or its file's (Hyper-V) is the one.

    Some writers leave the field empty; then there is nothing to compare.
    """
    modified = os.fstat(below.descriptor).st_mtime - EPOCH.timestamp()
    if wanted in (0, own.time_stamp) or abs(modified - wanted) <= TIME_STAMP_SECONDS:
        return
    told = (EPOCH + timedelta(seconds=wanted)).isoformat()
    seen = f"a time stamp of {(EPOCH + timedelta(seconds=int(modified))).isoformat()}: it may have been written to"
    wanted_words = f"{told} (touch -d it if the file was only copied)"
    raise _unusable(backing, below.path.name, seen, wanted_words)


def _parent_name(backing: Backing, header: Dynamic) -> str:
    """A plain name from the locators, relative ones first. Errors: ParentUnusable; raises Malformed."""
    seen = []
    for platform in (RELATIVE, ABSOLUTE):
        for locator in header.locators:
            if locator.platform != platform:
                continue
            if (
                not 0 < locator.length <= 2 * DISK_NAME_BYTES_MAX
                or locator.offset > backing.size - locator.length
            ):
                place = f"{locator.length} bytes at {locator.offset}"
                raise Malformed("a parent locator", locator.named_at, place, "a name within the file")
            raw = backing.read_bytes(locator.offset, locator.length)
            told = decode_parent_name(raw, locator.offset)
            name = told.removeprefix(".\\").removeprefix("./")
            if name not in ("", ".", "..") and not NOT_PLAIN.search(name):
                return name
            seen.append(repr(told[:200]))
    raise _unusable(
        backing, "that its locators name", " and ".join(seen) or "no locator of a name",
        "a plain name in the child's own directory",
    )  # fmt: skip


def _file(backing: Backing) -> tuple[int, int]:
    status = os.fstat(backing.descriptor)
    return status.st_dev, status.st_ino


def _unusable(backing: Backing, parent: str, seen: str, wanted: str) -> ParentUnusable:
    return ParentUnusable(path=str(backing.path), parent=parent, seen=seen, wanted=wanted)
