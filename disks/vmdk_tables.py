"""The grain tables of a sparse VMDK: read when needed, kept in bounded number, changed in memory, written at a flush.

The caller holds one lock around every call. A changed table is pinned until it is on the medium.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from disks import vmdk_layout
from disks.backing import Backing
from disks.table_layer import Entries, as_entries
from disks.vmdk_layout import SECTOR, TABLE_BYTES, TABLE_ENTRIES, TABLE_SECTORS, ZERO_GRAIN, SparseHeader
from drcore.limits import MIB, TABLE_CACHE_ENTRIES_MAX, VMDK_DIRECTORY_BYTES_MAX

READ_AHEAD: Final = 16
"""Tables read at a time where they lie one behind the other: 32 KiB, 512 MiB of disk."""
GRAINS_CHECKED_MAX: Final = 64 * MIB
"""Up to so many grains in the file (at a byte each while it is opened as a target) none may be named twice."""
SCAN: Final = 512
"""The same while all are counted: 1 MiB."""


class GrainTables:
    """Directory and tables of one image, and their redundant twins."""

    def __init__(self, backing: Backing, header: SparseHeader) -> None:
        """Errors: ImageDamaged."""
        self._backing = backing
        self._header = header
        self.directory = self._read_directory(header.directory, "the grain directory")
        self.twin: array[int] | None = None
        if header.redundant and backing.writable:
            self.twin = self._read_directory(header.redundant_directory, "the redundant grain directory")
        self._check_apart()
        self._cache: OrderedDict[int, Entries] = OrderedDict()
        self.dirty: set[int] = set()
        self.writing: set[int] = set()
        """Tables on their way to the medium: not dirty, but not to be read back from it either."""
        self.directory_dirty = False

    def get(self, number: int) -> Entries:
        """Table `number`, to look at; one that is not in the file is all zeroes."""
        table = self._cache.get(number)
        if table is None:
            self._load(number)
            table = self._cache[number]
        else:
            self._cache.move_to_end(number)
        return table

    def change(self, number: int) -> "array[int]":
        """Table `number`, to change; `has_place` is true."""
        self.dirty.add(number)
        table = self.get(number)
        if isinstance(table, range):
            table = self._cache[number] = array("I", table)
        return table

    def has_place(self, number: int) -> bool:
        """Whether the table, and its twin, stand in the file."""
        return bool(self.directory[number]) and (self.twin is None or bool(self.twin[number]))

    def place(self, number: int, sector: int) -> None:
        """The table and its twin, so far absent, get the free sectors from `sector` on; they hold zeroes there."""
        if not self.directory[number]:
            self.directory[number] = sector
        if self.twin is not None and not self.twin[number]:
            self.twin[number] = sector + TABLE_SECTORS
        self.directory_dirty = True

    def scan(self) -> tuple[int, int]:
        """(grains that have a place, the sector behind the last of them), every table read and checked once.

        Errors: ImageDamaged.
        """
        used = end = number = 0
        grains = self._backing.size // SECTOR // self._header.grain + 1
        taken = bytearray(grains) if self._backing.writable and grains <= GRAINS_CHECKED_MAX else None
        while number < len(self.directory):
            count = self._together(number, SCAN)
            for at, table in enumerate(self._read(number, count)):
                zeroes = table.count(0) + (table.count(ZERO_GRAIN) if self._header.zero_grains else 0)
                used += TABLE_ENTRIES - zeroes
                if zeroes < TABLE_ENTRIES:
                    self._check(number + at, table)
                    end = max(end, max(table) + self._header.grain)
                    if taken is not None:
                        self._take_once(number + at, table, taken)
            number += count
        return used, end

    def take_changes(self) -> Iterator[tuple[int, bytes]]:
        """(offset in the file, bytes) of all that changed; from then on it counts as `writing`."""
        self.writing |= self.dirty
        self.dirty = set()
        changed = {
            number: vmdk_layout.encode_entries(array("I", self._cache[number]))
            for number in sorted(self.writing)
        }
        for directory, at in self._directories():
            yield from _joined((directory[number] * SECTOR, raw) for number, raw in changed.items())
            if self.directory_dirty:
                yield at * SECTOR, vmdk_layout.encode_entries(directory)
        self.directory_dirty = False

    def put_back(self, *, directory: bool) -> None:
        """What `take_changes` took did not reach the medium."""
        self.dirty |= self.writing
        self.writing = set()
        self.directory_dirty |= directory

    def written(self) -> None:
        """What `take_changes` took is on the medium."""
        self.writing = set()

    def _directories(self) -> Iterator[tuple["array[int]", int]]:
        if self.twin is not None:
            yield self.twin, self._header.redundant_directory
        yield self.directory, self._header.directory

    def _load(self, number: int) -> None:
        count = self._together(number, READ_AHEAD)
        tables = self._read(number, count)
        # A power cut between the two writes of a flush leaves twins that differ. What differs is written again, so
        # that a reader who takes the other directory (qemu) sees what this one sees.
        twins = self._read_twins(number, count)
        for at, table in enumerate(tables):
            if number + at in self._cache:
                continue
            entries = as_entries(table, self._header.grain)
            self._check(number + at, entries)
            self._cache[number + at] = entries
            if twins is not None and twins[at] != table and self.has_place(number + at):
                self.dirty.add(number + at)
        self._cache.move_to_end(number)
        self._evict(number)

    def _evict(self, needed: int) -> None:
        pinned = self.dirty | self.writing if len(self._cache) > TABLE_CACHE_ENTRIES_MAX else set()
        excess = len(self._cache) - TABLE_CACHE_ENTRIES_MAX - len(pinned)
        if excess <= 0:
            return
        old = [number for number in self._cache if number not in pinned and number != needed]
        for number in old[: excess + READ_AHEAD]:
            del self._cache[number]

    def _together(self, number: int, most: int) -> int:
        """How many tables from `number` on lie one behind the other, or are all absent."""
        directory, first = self.directory, self.directory[number]
        step = TABLE_SECTORS if first else 0
        count = 1
        while (
            count < most
            and number + count < len(directory)
            and directory[number + count] == first + count * step
        ):
            count += 1
        return count

    def _read(self, number: int, count: int) -> list["array[int]"]:
        return self._read_from(self.directory[number], count)

    def _read_from(self, sector: int, count: int) -> list["array[int]"]:
        if not sector:
            return [array("I", bytes(TABLE_BYTES)) for _ in range(count)]
        raw = memoryview(self._backing.read_bytes(sector * SECTOR, count * TABLE_BYTES))
        return [vmdk_layout.decode_entries(raw[at * TABLE_BYTES :][:TABLE_BYTES]) for at in range(count)]

    def _read_twins(self, number: int, count: int) -> list["array[int]"] | None:
        if self.twin is None:
            return None
        first = self.twin[number]
        if all(self.twin[number + at] == first + at * TABLE_SECTORS for at in range(count)):
            return self._read_from(first, count)
        return [self._read_from(self.twin[number + at], 1)[0] for at in range(count)]

    def _check(self, number: int, table: Entries) -> None:
        """Every grain begins behind the metadata and ends within the file (the disk's last one: as far as it goes)."""
        header = self._header
        places = {table[0], table[-1]} if isinstance(table, range) else set(table)
        places.discard(0)
        if header.zero_grains:
            places.discard(ZERO_GRAIN)
        if not places:
            return
        if not self._backing.writable and max(places) + header.grain > self._backing.size // SECTOR:
            self._backing.measure()  # a writer beside an inspection may have made the file longer
        end = self._backing.size // SECTOR
        bad = min(places)
        if bad >= header.overhead:
            bad = max(places)
            at = number * TABLE_ENTRIES + table.index(bad)
            if bad + min(header.grain, max(0, header.capacity - at * header.grain)) <= end:
                return
        place = self.directory[number] * SECTOR + table.index(bad) * 4
        wanted = f"sectors from {header.overhead} on within the {end} of the file"
        raise self._backing.damaged("a grain table entry", place, f"sector {bad}", wanted)

    def _take_once(self, number: int, table: "array[int]", taken: bytearray) -> None:
        """No entry names a place that an earlier one has; writing to one grain would change the other."""
        grain, first = self._header.grain, table[0]
        zero = ZERO_GRAIN if self._header.zero_grains else 0
        last = first + (TABLE_ENTRIES - 1) * grain
        if first > zero and table[-1] == last and table == array("I", range(first, last + 1, grain)):
            piece = slice(first // grain, first // grain + TABLE_ENTRIES)
            if not any(taken[piece]):
                taken[piece] = b"\1" * len(taken[piece])
                return
        for place in filter(zero.__lt__, table):
            if taken[place // grain]:
                at = TABLE_ENTRIES - 1 - table[::-1].index(place)
                entry = self.directory[number] * SECTOR + at * 4
                raise self._backing.damaged(
                    "a grain table entry", entry, f"sector {place}", "a place no other entry names"
                )
            taken[place // grain] = 1

    def _read_directory(self, sector: int, name: str) -> "array[int]":
        length = self._header.tables * 4
        if length > VMDK_DIRECTORY_BYTES_MAX or sector * SECTOR + length > self._backing.size:
            seen = f"{length} bytes in a file of {self._backing.size}"
            raise self._backing.damaged(name, sector * SECTOR, seen, "a directory within the file")
        directory = vmdk_layout.decode_entries(self._backing.read_bytes(sector * SECTOR, length))
        end = self._backing.size // SECTOR
        bad = max(directory)
        if bad + TABLE_SECTORS > end:
            place = sector * SECTOR + directory.index(bad) * 4
            wanted = f"a table within the {end} sectors of the file"
            raise self._backing.damaged(f"an entry of {name}", place, f"sector {bad}", wanted)
        return directory

    def _check_apart(self) -> None:
        """Tables lie beside each other, and not in the header."""
        count = sum(len(directory) - directory.count(0) for directory, _ in self._directories())
        if count * TABLE_BYTES > self._backing.size:
            wanted = f"tables that find room in {self._backing.size} bytes"
            raise self._backing.damaged(
                "a grain directory", self._header.directory * SECTOR, f"{count} tables", wanted
            )
        places = sorted(place for directory, _ in self._directories() for place in directory if place)
        last = 1 - TABLE_SECTORS
        for place in places:
            if place < last + TABLE_SECTORS:
                wanted = "tables that overlap neither each other nor the header"
                raise self._backing.damaged(
                    "a grain table", place * SECTOR, f"one at sector {place} and at {last}", wanted
                )
            last = place


def _joined(pieces: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) with neighbours made one."""
    start, parts, end = 0, list[bytes](), -1
    for offset, raw in pieces:
        if offset == end:
            parts.append(raw)
            end += len(raw)
            continue
        if parts:
            yield start, b"".join(parts)
        start, parts, end = offset, [raw], offset + len(raw)
    if parts:
        yield start, b"".join(parts)
