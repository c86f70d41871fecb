"""VMDK monolithicSparse: one file of header, descriptor, grain tables twice over, and grains of 64 KiB.

Order on the medium, so that a kill or a power cut at any instant leaves an image that opens and holds everything
flushed: grains first, then a flush, then both sets of tables, then a flush. New grains come at the end of the file
or from what this opening released and flushed, and hold zeroes before a table names them. The header's mark of an
unclean shutdown is left alone: with this order there is nothing to repair.
"""

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from disks import vmdk_layout
from disks.backing import Backing
from disks.disk import Format
from disks.errors import FormatNotSupported, ImageFull
from disks.image import Run, check_range, check_writable
from disks.mapped import MappedDisk
from disks.opening import Newborn
from disks.recognise import FORMATS
from disks.table_layer import row_length
from disks.vmdk import Described, StoredDescriptor, check_size, embedded, new_descriptor
from disks.vmdk_layout import SECTOR, SECTORS_MAX, TABLE_ENTRIES, TABLE_SECTORS, ZERO_GRAIN, SparseHeader
from disks.vmdk_tables import GrainTables
from drcore.limits import SPARE_RUNS_MAX, TABLE_DIRTY_ENTRIES_MAX, TIB
from drcore.units import ByteCount

SIZE_MAX: Final = 2 * TIB - TIB // 1024
"""All grains and both sets of tables (some 256 MiB) lie below the 2 TiB that a table entry can name."""


def open_sparse(backing: Backing, kind: Format) -> "SparseVmdk":
    """A monolithicSparse image as a disk. Errors: ImageDamaged, FormatNotSupported."""
    header, place = embedded(backing)
    if backing.writable and header.version > 2:
        seen = f"a VMDK of version {header.version}, whose change tracking a writer would break"
        raise FormatNotSupported(path=str(backing.path), seen=seen, choices=FORMATS)
    stored = StoredDescriptor(backing, place)
    if stored.descriptor.create_type != "monolithicSparse":
        seen = f"a sparse extent of a VMDK {stored.descriptor.create_type[:40]!r}"
        raise FormatNotSupported(path=str(backing.path), seen=seen, choices=FORMATS)
    return SparseVmdk(backing, kind, header, stored)


def create_sparse(path: Path, kind: Format, size: int) -> "SparseVmdk":
    """A new image without a grain; its empty tables are holes in the file."""
    check_size(kind, size, SIZE_MAX)
    header = vmdk_layout.plan_sparse(size // SECTOR)
    newborn = Newborn(path)
    try:
        text = new_descriptor(path, kind, size, f'SPARSE "{path.name}"')
        start = vmdk_layout.encode_header(header) + text.ljust(header.descriptor_size * SECTOR, b"\0")
        backing = newborn.backing
        backing.resize(header.overhead * SECTOR)
        backing.write(0, memoryview(start))
        for directory in (header.redundant_directory, header.directory):
            backing.write(directory * SECTOR, memoryview(vmdk_layout.plan_directory(header, directory)))
        disk = open_sparse(newborn.publish(), kind)
        disk.fresh()
        return disk
    except BaseException:
        newborn.abandon()
        raise


class SparseVmdk(Described, MappedDisk):
    """An open sparse VMDK. Owns the backing; tables are guarded by a lock, grains move outside it."""

    def __init__(
        self, backing: Backing, kind: Format, header: SparseHeader, stored: StoredDescriptor
    ) -> None:
        grain = header.grain * SECTOR
        super().__init__(backing, kind, header.capacity * SECTOR, listed_bytes=TABLE_ENTRIES * grain)
        self._header = header
        self._stored = stored
        self._grain = grain
        self._tables = GrainTables(backing, header)
        self._used: int | None = None
        self._next = 0
        self._spare: list[
            tuple[int, int]
        ] = []  # (sector, sectors) of zeroed space that no table on the medium names
        self._released: list[tuple[int, int]] = []  # the same, but named until the next flush
        if backing.writable:
            self._used, end = self._tables.scan()
            end = max(end, -(-backing.size // SECTOR))
            self._next = -(-end // header.grain) * header.grain

    @property
    def grain_size(self) -> ByteCount | None:
        return ByteCount(self._grain)

    def fresh(self) -> None:
        """This opening created the image: its change mark is new already."""
        self._stored.fresh()

    def write(self, offset: int, data: memoryview) -> None:
        check_range(self, offset, len(data))
        check_writable(self, self._backing.writable)
        if not len(data):
            return
        self._changing()
        with self._lock:
            self._allocate(offset // self._grain, (offset + len(data) - 1) // self._grain)
            runs = list(self._runs(offset, len(data)))
            crowded = len(self._tables.dirty) > TABLE_DIRTY_ENTRIES_MAX
        self._store(runs, offset, data)
        if crowded:
            self.flush()

    def zero(self, offset: int, length: int) -> None:
        check_range(self, offset, length)
        check_writable(self, self._backing.writable)
        if not length:
            return
        self._changing()
        end = offset + length
        first = -(-offset // self._grain)
        last = -(-end // self._grain) if end == self._size else end // self._grain
        with self._lock:
            if first >= last:
                edges = list(self._runs(offset, length))
            else:
                edges = [
                    *self._runs(offset, first * self._grain - offset),
                    *self._runs(last * self._grain, max(0, end - last * self._grain)),
                ]
                self._release(first, last)
            crowded = len(self._tables.dirty) > TABLE_DIRTY_ENTRIES_MAX
        self._zero_runs(edges)
        if crowded:
            self.flush()

    def flush(self) -> None:
        if not self._backing.writable:
            return
        with self._flushing:
            with self._lock:
                directory = self._tables.directory_dirty
                changes = list(self._tables.take_changes())
                released, self._released = self._released, []
            try:
                self._backing.sync()
                for at, raw in changes:
                    self._backing.write(at, memoryview(raw))
                if changes:
                    self._backing.sync()
            except BaseException:
                with self._lock:
                    self._tables.put_back(directory=directory)
                    self._released += released
                raise
            with self._lock:
                self._tables.written()
                self._spare = (self._spare + released)[-SPARE_RUNS_MAX:]

    def allocated_bytes(self) -> ByteCount:
        with self._lock:
            if self._used is None:
                self._used = self._tables.scan()[0]
            return ByteCount(min(self._used * self._grain, self._size))

    def _pieces(self, first: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(table, first entry, entry behind the last) covering the grains from `first` to before `end`."""
        while first < end:
            number, entry = divmod(first, TABLE_ENTRIES)
            stop = min(TABLE_ENTRIES, entry + end - first)
            yield number, entry, stop
            first += stop - entry

    def _runs(self, offset: int, length: int) -> Iterator[Run]:
        if length <= 0:
            return
        grain, sectors, end = self._grain, self._header.grain, offset + length
        zero = ZERO_GRAIN if self._header.zero_grains else 0
        for number, first, stop in self._pieces(offset // grain, -(-end // grain)):
            entries = self._tables.get(number)[first:stop]
            base = number * TABLE_ENTRIES + first
            at, looked = 0, False
            while at < len(entries):
                place = entries[at]
                stop_at = at + 1
                if place <= zero and not looked:
                    looked = True  # most tables of a sparse disk end in nothing: seen once, at the speed of C
                    stop_at = len(entries) if max(entries[at:]) <= zero else stop_at
                if place <= zero:
                    while stop_at < len(entries) and entries[stop_at] <= zero:
                        stop_at += 1
                else:
                    stop_at = at + row_length(entries, at, len(entries), sectors)
                start = max(offset, (base + at) * grain)
                behind = min(end, (base + stop_at) * grain)
                inside = start - (base + at) * grain
                yield Run(start, behind - start, None if place <= zero else place * SECTOR + inside)
                at = stop_at

    def _allocate(self, first: int, last: int) -> None:
        """The grains `first` to `last` have a place that reads as zeroes where they had none."""
        zero = ZERO_GRAIN if self._header.zero_grains else 0
        for number, entry, stop in self._pieces(first, last + 1):
            known = self._tables.get(number)
            if isinstance(known, range) or min(known[entry:stop]) > zero:
                continue
            if not self._tables.has_place(number):
                self._tables.place(number, self._take(2 * TABLE_SECTORS))
            table = self._tables.change(number)
            while entry < stop:
                if table[entry] > zero:
                    entry += 1
                    continue
                behind = entry + 1
                while behind < stop and table[behind] <= zero:
                    behind += 1
                sector, count = self._take_grains(behind - entry)
                places = range(sector, sector + count * self._header.grain, self._header.grain)
                table[entry : entry + count] = array("I", places)
                self._used = (self._used or 0) + count
                entry += count

    def _take_grains(self, count: int) -> tuple[int, int]:
        """(sector, grains): up to `count` free grains in a row."""
        grain = self._header.grain
        if self._spare:
            sector, sectors = self._spare.pop()
            taken = min(count, sectors // grain)
            if sectors > taken * grain:
                self._spare.append((sector + taken * grain, sectors - taken * grain))
            return sector, taken
        return self._take(count * grain), count

    def _take(self, sectors: int) -> int:
        """The first of so many new sectors at the end of the file, rounded up to whole grains."""
        sector = self._next
        behind = sector + -(-sectors // self._header.grain) * self._header.grain
        if behind > SECTORS_MAX:
            limit = SECTORS_MAX * SECTOR
            raise ImageFull(path=str(self.path), offset=sector * SECTOR, length=sectors * SECTOR, limit=limit)
        # The file is long enough before any table can name the place: readers check entries against its end.
        self._backing.resize(behind * SECTOR)
        self._next = behind
        return sector

    def _release(self, first: int, end: int) -> None:
        """The grains from `first` to before `end` have no place any more; what they held is zeroed in the file."""
        zero = ZERO_GRAIN if self._header.zero_grains else 0
        for number, entry, stop in self._pieces(first, end):
            known = self._tables.get(number)
            if not isinstance(known, range) and max(known[entry:stop]) <= zero:
                continue
            base = number * TABLE_ENTRIES
            end_of_piece = min((base + stop) * self._grain, self._size)
            runs = list(self._runs((base + entry) * self._grain, end_of_piece - (base + entry) * self._grain))
            table = self._tables.change(number)
            for run in runs:
                if run.at is None:
                    continue
                count = -(-run.length // self._grain)
                length = min(count * self._grain, self._backing.size - run.at)
                self._backing.zero(run.at, length)
                at = run.offset // self._grain - base
                table[at : at + count] = array("I", [zero]) * count
                self._used = (self._used or 0) - count
                if length == count * self._grain and run.at % self._grain == 0:
                    self._released.append((run.at // SECTOR, count * self._header.grain))
