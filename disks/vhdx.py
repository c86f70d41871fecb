"""VHDX: blocks of 1 to 256 MiB behind a table, which is changed by way of a log.

Order on the medium, so that a kill or a power cut at any instant leaves an image that opens and holds everything
flushed: before the first change of an opening a header with new write GUIDs is durable; data is durable before a log
entry names its blocks; the entry is durable before a header names the log; the table is changed after that, and the
header that calls the log empty again follows only when the table is durable. So the log holds something only within
a flush, and readers that replay no log (qemu-img opening read-only) can read an image whose writer was killed at
nearly any other instant.
"""

import uuid
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from disks import vhdx_layout, vhdx_log
from disks.backing import Backing
from disks.disk import ExtentKind, Format
from disks.errors import FormatNotSupported, ImageFull, SizeNotPossible
from disks.image import Run, check_range, check_writable
from disks.layout import Malformed
from disks.mapped import MappedDisk
from disks.opening import Newborn
from disks.recognise import FORMATS
from disks.structures import damaged
from disks.vhdx_file import Structures, load
from disks.vhdx_layout import (
    ALIGNMENT,
    BAT_REGION,
    HEADERS_AT,
    METADATA_REGION,
    NO_GUID,
    OFFSET_MASK,
    REGION_TABLES_AT,
    SEQUENCE_MAX,
    STATE_MASK,
    BlockState,
    Header,
    Metadata,
    Region,
)
from disks.vhdx_table import BlockTable, Slots, take_places
from drcore.limits import DISK_BYTES_MAX, KIB, MIB, VHDX_DIRTY_PAGES_MAX, VHDX_FILE_BYTES_MAX
from drcore.units import ByteCount

LOG_BYTES: Final = 1 * MIB
EXTENT_BLOCKS: Final = 1024
"""Blocks looked up under one hold of the lock while extents are listed."""
ENTRY_PAGES_MAX: Final = 126
"""Pages of the table in one log entry: what a log of 1 MiB holds twice over, with one sector of descriptors."""


def open_vhdx(backing: Backing, kind: Format) -> "Vhdx":
    """A VHDX without a parent as a disk; of a target, the log is replayed to disk first.

    Errors: ImageDamaged, FormatNotSupported.
    """
    try:
        found = load(backing)
        if found.metadata.has_parent:
            seen = "a differencing VHDX, which needs its parent"
            raise FormatNotSupported(path=str(backing.path), seen=seen, choices=FORMATS)
        if backing.writable and found.header.sequence > SEQUENCE_MAX:
            place, seen = HEADERS_AT[found.slot] + 8, str(found.header.sequence)
            raise Malformed("the header's sequence number", place, seen, f"at most {SEQUENCE_MAX}")
        if backing.writable and found.replay is not None:
            _replay(backing, found)
            found = load(backing)
        return Vhdx(found, kind)
    except Malformed as error:
        raise damaged(backing, error) from error


def create_vhdx(path: Path, kind: Format, size: int) -> "Vhdx":
    """A new image; a dynamic one without a block, a fixed one with all of them, as one hole."""
    return create_with(path, kind, size, block_bytes=_block_bytes(size), sector_bytes=512)


def create_with(path: Path, kind: Format, size: int, *, block_bytes: int, sector_bytes: int) -> "Vhdx":
    """The same with a block size and a logical sector size that the specification allows."""
    if size % sector_bytes or not sector_bytes <= size <= DISK_BYTES_MAX:
        wanted = f"a multiple of {sector_bytes} bytes, at most {DISK_BYTES_MAX}"
        raise SizeNotPossible(format=kind.value, size=size, wanted=wanted)
    fixed = kind is Format.VHDX_FIXED
    metadata = Metadata(size, block_bytes, sector_bytes, 4096, uuid.uuid4(), fixed, False)
    newborn = Newborn(path)
    try:
        _write_new(newborn.backing, metadata)
        disk = open_vhdx(newborn.publish(), kind)
        disk.fresh()
        return disk
    except BaseException:
        newborn.abandon()
        raise


class Vhdx(MappedDisk):
    """An open VHDX. Owns the backing; header and table are guarded by a lock, data moves outside it."""

    def __init__(self, found: Structures, kind: Format) -> None:
        """Raises Malformed where the table contradicts itself or the file."""
        super().__init__(
            found.backing, kind, found.metadata.size,
            listed_bytes=EXTENT_BLOCKS * found.metadata.block_bytes,
        )  # fmt: skip
        self._header = found.header
        self._slot = found.slot
        self._metadata = found.metadata
        self._changed = False
        self._table = BlockTable(self._backing, found.table, found.metadata)
        slots = Slots(self._backing.size)
        for region in found.regions:
            slots.take(region.offset, region.length)
        slots.take(found.header.log_offset, found.header.log_bytes)
        self._used, self._kept = take_places(self._backing, self._metadata, found.table, slots)
        self._end = slots.end
        self._cleared = False

    @property
    def grain_size(self) -> ByteCount | None:
        return None if self._metadata.fixed else ByteCount(self._metadata.block_bytes)

    @property
    def change_mark(self) -> str | None:
        return self._header.data_write.hex

    def fresh(self) -> None:
        """This opening created the image: its write GUIDs are new already."""
        self._changed = True

    def write(self, offset: int, data: memoryview) -> None:
        check_range(self, offset, len(data))
        check_writable(self, self._backing.writable)
        if not len(data):
            return
        block_bytes = self._metadata.block_bytes
        with self._lock:
            self._changing()
            for block in range(offset // block_bytes, (offset + len(data) - 1) // block_bytes + 1):
                if self._table.get(self._metadata.entry(block)) & STATE_MASK != BlockState.FULLY_PRESENT:
                    self._allocate(block)
            runs = list(self._runs(offset, len(data)))
            crowded = self._table.dirty > VHDX_DIRTY_PAGES_MAX
        self._store(runs, offset, data)
        if crowded:
            self.flush()

    def zero(self, offset: int, length: int) -> None:
        check_range(self, offset, length)
        check_writable(self, self._backing.writable)
        with self._lock:
            runs = [run for run in self._runs(offset, length) if run.at is not None]
            if runs:
                self._changing()
        self._zero_runs(runs)

    def flush(self) -> None:
        if not self._backing.writable:
            return
        with self._flushing:
            with self._lock:
                pages = self._table.take()
            try:
                self._backing.sync()
                for first in range(0, len(pages), ENTRY_PAGES_MAX):
                    if first:
                        self._backing.sync()  # the log is empty on the medium before it is written again
                    self._write_table(pages[first : first + ENTRY_PAGES_MAX])
            except BaseException:
                with self._lock:
                    self._table.failed()
                raise
            with self._lock:
                self._table.done()

    def allocated_bytes(self) -> ByteCount:
        if self._metadata.fixed:
            data = (each for each in self.extents(0, self.size) if each.kind is ExtentKind.DATA)
            return ByteCount(sum(each.length for each in data))
        return ByteCount(min(self._used * self._metadata.block_bytes, self.size))

    def _runs(self, offset: int, length: int) -> Iterator[Run]:
        return _joined(self._blocks(offset, length))

    def _blocks(self, offset: int, length: int) -> Iterator[Run]:
        """The range block by block; only fully present blocks hold something (2.5.1.1)."""
        block_bytes, ratio = self._metadata.block_bytes, self._metadata.chunk_ratio
        end = offset + length
        while offset < end:
            block = offset // block_bytes
            index = self._metadata.entry(block)
            entry = self._table.get(index)
            following = block + 1
            if entry == 0:
                chunk, rest = divmod(self._table.empty_until(index), ratio + 1)
                following = chunk * ratio + min(rest, ratio)
            stop = min(end, following * block_bytes)
            present = entry & STATE_MASK == BlockState.FULLY_PRESENT
            yield Run(
                offset, stop - offset, (entry & OFFSET_MASK) + offset % block_bytes if present else None
            )
            offset = stop

    def _shown(self, run: Run) -> Iterator[tuple[int, int, bool]]:
        """The run's parts that the file system keeps data for, and its holes."""
        if run.at is None:
            yield run.offset, run.length, False
            return
        for start, count, data in self._backing.runs(run.at, run.length):
            yield start - run.at + run.offset, count, data

    def _changing(self) -> None:
        """The write GUIDs on the medium are others than before this opening (2.2.2); the lock is held."""
        if not self._changed:
            self._write_header(self._header.next(file_write=uuid.uuid4(), data_write=uuid.uuid4()))
            self._backing.sync()
            self._changed = True

    def _allocate(self, block: int) -> None:
        """The block has a place that reads as zeroes; the table names it at the next flush."""
        index = self._metadata.entry(block)
        if index in self._kept:
            # A fixed image keeps the place of a block that holds nothing (2.5.1.1).
            start = self._kept[index]
            self._backing.zero(start, self._metadata.block_bytes)
            self._table.set(index, start | BlockState.FULLY_PRESENT)
            self._used += 1
            return
        start, end = self._end, self._end + self._metadata.block_bytes
        if end > VHDX_FILE_BYTES_MAX:
            raise ImageFull(path=str(self.path), offset=start, length=end - start, limit=VHDX_FILE_BYTES_MAX)
        if not self._cleared:
            # What a killed writer left behind the last block that the table names.
            self._backing.zero(start, self._backing.size - start)
            self._cleared = True
        if end > self._backing.size:
            self._backing.resize(end)
        self._table.set(index, start | BlockState.FULLY_PRESENT)
        self._used += 1
        self._end = end

    def _write_table(self, pages: list[tuple[int, bytes]]) -> None:
        """The pages are durable, through the log (2.3): entry, header that names it, pages, header that does not."""
        log = uuid.uuid4()
        length = self._backing.size // ALIGNMENT * ALIGNMENT
        entry = vhdx_log.encode_entry(log, 1, pages, length, length)
        self._backing.write(self._header.log_offset, memoryview(entry))
        self._backing.sync()
        with self._lock:
            self._write_header(self._header.next(log=log))
        self._backing.sync()
        for offset, page in pages:
            self._backing.write(offset, memoryview(page))
        self._backing.sync()
        with self._lock:
            # Durable with the next flush; until then the log holds what the table holds.
            self._write_header(self._header.next(log=NO_GUID))

    def _write_header(self, header: Header) -> None:
        """`header` is the current one, written over the older of the two."""
        slot = 1 - self._slot
        self._backing.write(HEADERS_AT[slot], memoryview(vhdx_layout.encode_header(header)))
        self._header, self._slot = header, slot


def _joined(runs: Iterator[Run]) -> Iterator[Run]:
    """The same with neighbours that lie beside each other in the file as one."""
    last: Run | None = None
    for run in runs:
        if last is not None and last.at is not None and run.at == last.at + last.length:
            last = Run(last.offset, last.length + run.length, last.at)
            continue
        if last is not None:
            yield last
        last = run
    if last is not None:
        yield last


def _replay(backing: Backing, found: Structures) -> None:
    """What the log holds is in its place, durable, and the log is empty (2.3.3)."""
    assert found.replay is not None
    if found.replay.file_bytes > backing.size:
        backing.resize(found.replay.file_bytes)
    for patch in found.replay.patches:
        if patch.data is None:
            backing.zero(patch.offset, patch.length)
        else:
            backing.write(patch.offset, memoryview(patch.data))
    backing.sync()
    header = found.header.next(log=NO_GUID)
    backing.write(HEADERS_AT[1 - found.slot], memoryview(vhdx_layout.encode_header(header)))
    backing.sync()


def _block_bytes(size: int) -> int:
    """A new image's block size: 4096 blocks or more, from 1 MiB up to what Hyper-V takes."""
    wanted = max(vhdx_layout.BLOCK_BYTES_MIN, min(size // 4096, vhdx_layout.BLOCK_BYTES))
    return 1 << (wanted.bit_length() - 1)


def _write_new(backing: Backing, metadata: Metadata) -> None:
    """All structures of a new image: log at 1 MiB, metadata at 2, table at 3, blocks behind it."""
    table_bytes = -(-metadata.entries * 8 // ALIGNMENT) * ALIGNMENT
    table = Region(BAT_REGION, 3 * MIB, table_bytes, True, 0)
    regions = (Region(METADATA_REGION, 2 * MIB, MIB, True, 0), table)
    blocks_at = table.offset + table.length
    backing.resize(blocks_at + (metadata.blocks * metadata.block_bytes if metadata.fixed else 0))
    backing.write(0, memoryview(vhdx_layout.encode_identifier()))
    for sequence, at in enumerate(HEADERS_AT):
        header = Header(sequence, uuid.uuid4(), uuid.uuid4(), NO_GUID, 1 * MIB, LOG_BYTES)
        backing.write(at, memoryview(vhdx_layout.encode_header(header)))
    raw = vhdx_layout.encode_regions(regions).rstrip(b"\0")
    for at in REGION_TABLES_AT:
        backing.write(at, memoryview(raw))
    items, content = vhdx_layout.encode_metadata(metadata)
    backing.write(2 * MIB, memoryview(items))
    backing.write(2 * MIB + 64 * KIB, memoryview(content))
    if metadata.fixed:
        _write_fixed_table(backing, metadata, table.offset, blocks_at)


def _write_fixed_table(backing: Backing, metadata: Metadata, table_at: int, blocks_at: int) -> None:
    """Every block has its place, one behind the other; entries of sector bitmaps stay zero."""
    step = metadata.chunk_ratio
    for first in range(0, metadata.blocks, step):
        count = min(step, metadata.blocks - first)
        start = blocks_at + first * metadata.block_bytes
        stop = start + count * metadata.block_bytes
        entries = array("Q", range(start | BlockState.FULLY_PRESENT, stop, metadata.block_bytes))
        backing.write(table_at + metadata.entry(first) * 8, memoryview(entries).cast("B"))
