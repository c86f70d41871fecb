"""A layer whose bytes are found through a directory of tables, as in sparse VMDK extents and qcow2 images.

Tables and unpacked grains are kept in bounded number. What stands in a table, and how a grain is packed, is the
formats' own.
"""

import sys
import threading
from abc import ABC, abstractmethod
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from disks.backing import Access, Backing
from disks.layers import Held, Piece
from drcore.limits import TABLE_CACHE_BYTES_MAX, UNPACKED_CACHE_ENTRIES_MAX

STEP: Final = 4096
"""Directory entries looked at in one go for tables that are not there."""
Entries: TypeAlias = "array[int] | range"
"""What a table says; a range where its grains lie one behind the other, as in an image written from end to end."""


class Shape(NamedTuple):
    """What every table of a layer has in common; `grain` in bytes of the disk."""

    grain: int
    entries: int
    table_bytes: int


class TableLayer(ABC):
    """One image or extent as a layer. Owns the backing; a lock guards what is kept."""

    def __init__(self, backing: Backing, directory: "array[int]", shape: Shape) -> None:
        """In `directory` an entry of nought names no table."""
        self.backing = backing
        self.directory = directory
        self.shape = shape
        self._tables: OrderedDict[int, Entries] = OrderedDict()
        self._tables_max = max(1, TABLE_CACHE_BYTES_MAX // shape.table_bytes)
        self._unpacked: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes of the virtual disk."""

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.backing.path,)

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        end = offset + length
        step = self.shape.grain * self.shape.entries
        while offset < end:
            number = offset // step
            stop = min(end, (number + 1) * step)
            table = self.table(number)
            if table is None:
                stop = min(end, (number + self._absent_tables(number, -(-end // step))) * step)
                yield Piece(offset, stop - offset, Held.ABSENT)
            else:
                yield from self._pieces(table, number * step, offset, stop)
            offset = stop

    def load(self, piece: Piece, into: memoryview) -> None:
        if not self._is_packed(piece):
            self.backing.read(piece.at, into)
            return
        inside = piece.offset % self.shape.grain
        into[:] = self._unpack(piece.at, piece.offset - inside)[inside : inside + piece.length]

    def close(self) -> None:
        self.backing.close()

    def table(self, number: int) -> "Entries | None":
        """The entries of table `number`, checked; None where there is no table. Errors: ImageDamaged, ReadFailed."""
        with self._lock:
            found = self._tables.get(number)
            if found is not None:
                self._tables.move_to_end(number)
                return found
            if not self.directory[number]:
                return None
            table = self._load_table(number)
            self._tables[number] = table
            while len(self._tables) > self._tables_max:
                self._tables.popitem(last=False)
            return table

    @abstractmethod
    def _load_table(self, number: int) -> Entries:
        """The table, which the directory names, from the file; the lock is held. Errors: ImageDamaged, ReadFailed."""

    @abstractmethod
    def _pieces(self, table: Entries, base: int, offset: int, stop: int) -> Iterator[Piece]:
        """What the table, whose first grain begins at `base` of the disk, says of the disk's `offset` to `stop`."""

    @abstractmethod
    def _is_packed(self, piece: Piece) -> bool:
        """Whether the bytes of a piece of data have to be unpacked."""

    @abstractmethod
    def unpacked_grain(self, at: int, offset: int) -> bytes:
        """The grain of the disk's `offset`, from the packed one at `at`. Errors: ImageDamaged, ReadFailed."""

    def _unpack(self, at: int, offset: int) -> bytes:
        """The same, or what is kept of it."""
        with self._lock:
            found = self._unpacked.get(at)
            if found is not None:
                self._unpacked.move_to_end(at)
                return found
        content = self.unpacked_grain(at, offset)
        with self._lock:
            self._unpacked[at] = content
            while len(self._unpacked) > UNPACKED_CACHE_ENTRIES_MAX:
                self._unpacked.popitem(last=False)
        return content

    def _absent_tables(self, number: int, end: int) -> int:
        """How many tables from `number` on are not there; the first is known not to be."""
        behind = number + 1
        while behind < end:
            entries = self.directory[behind : min(end, behind + STEP)]
            if any(entries):
                return behind - number + next(at for at, entry in enumerate(entries) if entry)
            behind += len(entries)
        return behind - number

    def _end(self) -> int:
        """Bytes of the file; measured anew beside a writer."""
        if self.backing.access is Access.INSPECT:
            self.backing.measure()
        return self.backing.size


def in_a_row(entries: "array[int]", step: int) -> bool:
    """Whether each entry is `step` above the one before: grains that lie one behind the other.

    Asked in Python one by one, the tables of 4 KiB grains would cost as much as reading the grains. So the entries
    are taken as the digits of one number: without its lowest digit, less itself without its highest, it has `step`
    in every place. No place can borrow from the next unseen, as first and last are the right distance apart.
    """
    count, bits = len(entries) - 1, entries.itemsize * 8
    if entries[-1] - entries[0] != count * step:
        return False
    digits = int.from_bytes(entries.tobytes(), sys.byteorder)
    rises = abs((digits >> bits) - (digits & (1 << count * bits) - 1))
    return rises == step * ((1 << count * bits) - 1) // ((1 << bits) - 1)


def as_entries(entries: "array[int]", step: int) -> Entries:
    """The entries, as a range where they are in a row; 0 and 1 are no places."""
    if entries[0] <= 1 or not in_a_row(entries, step):
        return entries
    return range(entries[0], entries[-1] + step, step)


def row_length(entries: Entries, at: int, last: int, step: int) -> int:
    """How many of the entries from `at` to before `last` are in a row."""
    if isinstance(entries, range):
        return last - at
    behind, wanted = at + 1, entries[at] + step
    while behind < last and entries[behind] == wanted:
        behind += 1
        wanted += step
    return behind - at
