"""Reading the grains of a sparse VMDK extent of any kind, as a layer of a disk; nothing is written.

Hosted sparse, stream-optimized, vmfsSparse and seSparse extents differ in where their tables lie and how entries are
written; behind `GrainMap` they are one thing: a directory of tables of places, 0 for 'ask the parent', 1 for zeroes.
Source: VMware, "Virtual Disk Format 5.0", "Hosted Sparse Extents", "Stream-Optimized Compressed Sparse Extents",
"ESX Server Sparse Extents"; see `vmdk_layout`, `vmdk_stream_layout` and `vmdk_delta_layout`.
"""

import zlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from disks import vmdk_delta_layout, vmdk_layout, vmdk_stream_layout
from disks.backing import Backing
from disks.errors_vmdk import FeatureNotSupported
from disks.layers import Held, Piece
from disks.layout import Malformed
from disks.structures import damaged
from disks.table_layer import Entries, Shape, TableLayer, as_entries, row_length
from disks.vmdk_layout import HEADER_BYTES, SECTOR, TABLE_BYTES, TABLE_ENTRIES, ZERO_GRAIN

ABSENT, ZERO = 0, 1


@dataclass(frozen=True, slots=True)
class GrainMap:
    """How to find the grains of one extent; places and sizes in sectors."""

    capacity: int
    grain: int
    directory: "array[int]"
    """As it lies in the file; an entry of nought names no table."""
    table_entries: int
    table_bytes: int
    table_place: Callable[[int], int]
    """Table number to its place, 0 for none. Raises ImageDamaged."""
    decode: Callable[[bytes, int], Entries]
    """A table's bytes and its place to places of grains. Raises ImageDamaged."""
    first: int
    """No grain begins before it."""
    compressed: bool = False


class GrainLayer(TableLayer):
    """An extent's grains. Owns the backing."""

    def __init__(self, backing: Backing, grains: GrainMap) -> None:
        self.grains = grains
        shape = Shape(grains.grain * SECTOR, grains.table_entries, grains.table_bytes)
        super().__init__(backing, grains.directory, shape)

    @property
    def size(self) -> int:
        return self.grains.capacity * SECTOR

    def _load_table(self, number: int) -> Entries:
        place = self.grains.table_place(number)
        offset = place * SECTOR
        if offset + self.grains.table_bytes > self._end():
            wanted = f"{self.grains.table_bytes} bytes within the file of {self.backing.size}"
            raise self.backing.damaged("a grain table", offset, f"sector {place}", wanted)
        table = self.grains.decode(self.backing.read_bytes(offset, self.grains.table_bytes), offset)
        self._check(number, table, offset)
        return table

    def _pieces(self, table: Entries, base: int, offset: int, stop: int) -> Iterator[Piece]:
        grain = self.shape.grain
        at, last = (offset - base) // grain, -(-(stop - base) // grain)
        while at < last:
            place = table[at]
            behind = at + 1
            if place <= ZERO:
                while behind < last and table[behind] == place:
                    behind += 1
            elif not self.grains.compressed:
                behind = at + row_length(table, at, last, self.grains.grain)
            start, end = max(offset, base + at * grain), min(stop, base + behind * grain)
            held = Held.DATA if place > ZERO else Held(place)
            inside = 0 if self.grains.compressed else start - base - at * grain
            yield Piece(start, end - start, held, place * SECTOR + inside if place > ZERO else 0)
            at = behind

    def _is_packed(self, piece: Piece) -> bool:
        return self.grains.compressed

    def _check(self, number: int, table: Entries, offset: int) -> None:
        """Every grain begins behind the metadata and ends within the file (the disk's last one: as far as it goes)."""
        row, grains = isinstance(table, range), self.grains
        largest = table[-1] if row else max(table)
        if largest <= ZERO:
            return
        end = self._end() // SECTOR
        room = 1 if grains.compressed else grains.grain
        smallest = largest
        if row:
            smallest = table[0]
        elif grains.first > ZERO:
            smallest = min((place for place in table if place > ZERO), default=largest)
        if smallest >= grains.first:
            at = number * grains.table_entries + table.index(largest)
            if largest + min(room, max(0, grains.capacity - at * grains.grain)) <= end:
                return
            smallest = largest
        width = grains.table_bytes // grains.table_entries
        wanted = f"sectors from {grains.first} on within the {end} of the file"
        place = offset + table.index(smallest) * width
        raise self.backing.damaged("a grain table entry", place, f"sector {smallest}", wanted)

    def packed_length(self, at: int, sector: int) -> int:
        """Bytes of the compressed grain of the disk's `sector` behind its marker at `at`. Errors: ImageDamaged."""
        raw = self.backing.read_bytes(at, vmdk_stream_layout.GRAIN_MARKER_BYTES)
        found, length = vmdk_stream_layout.decode_grain_marker(raw)
        if found != sector:
            raise self.backing.damaged(
                "a grain's marker", at, f"sector {found}", f"sector {sector}, as the table says"
            )
        if not 0 < length <= min(2 * self.shape.grain + SECTOR, self.backing.size - at - len(raw)):
            wanted = f"1 to {2 * self.shape.grain + SECTOR} bytes within the file of {self.backing.size}"
            raise self.backing.damaged("a grain's marker", at + 8, f"{length} bytes", wanted)
        return length

    def unpacked_grain(self, at: int, offset: int) -> bytes:
        length = self.packed_length(at, offset // SECTOR)
        begin = at + vmdk_stream_layout.GRAIN_MARKER_BYTES
        needed = min(self.shape.grain, self.size - offset)
        try:
            content = zlib.decompressobj().decompress(
                self.backing.read_bytes(begin, length), self.shape.grain + 1
            )
        except zlib.error as error:
            raise self.backing.damaged("a compressed grain", begin, str(error), "deflated bytes") from error
        if not needed <= len(content) <= self.shape.grain:
            raise self.backing.damaged(
                "a compressed grain", begin, f"{len(content)} bytes in it", f"{needed}"
            )
        return content


def hosted_layer(backing: Backing) -> GrainLayer:
    """The grains of a hosted sparse or stream-optimized extent. Errors: ImageDamaged."""
    try:
        header = vmdk_layout.decode_header(_start(backing, HEADER_BYTES))
        if header.stream:
            header = vmdk_stream_layout.find_footer(header, backing.size, backing.read_bytes)
    except Malformed as error:
        raise damaged(backing, error) from error
    directory = _directory(backing, header.directory, header.tables, TABLE_BYTES // SECTOR)
    zero = ZERO_GRAIN if header.zero_grains else 0

    def decode(raw: bytes, offset: int) -> Entries:
        return as_entries(vmdk_layout.decode_entries(raw), header.grain)

    first = header.overhead if not header.stream else min(header.overhead, 2)
    return GrainLayer(
        backing,
        GrainMap(
            header.capacity, header.grain, directory, TABLE_ENTRIES, TABLE_BYTES, directory.__getitem__,
            decode if zero else _without_zeroes(backing, header.grain), first, header.stream,
        ),
    )  # fmt: skip


def cowd_layer(backing: Backing) -> GrainLayer:
    """The grains of a vmfsSparse extent. Errors: ImageDamaged."""
    try:
        header = vmdk_delta_layout.decode_cowd(_start(backing, vmdk_delta_layout.COWD_HEADER_BYTES))
    except Malformed as error:
        raise damaged(backing, error) from error
    entries = vmdk_delta_layout.COWD_TABLE_ENTRIES
    directory = _directory(backing, header.directory, header.tables, entries * 4 // SECTOR)
    first = header.directory + -(-header.tables * 4 // SECTOR)
    return GrainLayer(
        backing,
        GrainMap(
            header.capacity, header.grain, directory, entries, entries * 4, directory.__getitem__,
            _without_zeroes(backing, header.grain), first,
        ),
    )  # fmt: skip


def sesparse_layer(backing: Backing) -> GrainLayer:
    """The grains of an seSparse extent. Errors: ImageDamaged, FeatureNotSupported (a journal to be replayed)."""
    layout = vmdk_delta_layout
    try:
        header = layout.decode_se(_start(backing, layout.SE_HEADER_BYTES))
        replay = layout.decode_se_volatile(_start(backing, 2 * SECTOR)[SECTOR:])
    except Malformed as error:
        raise damaged(backing, error) from error
    if replay:
        raise FeatureNotSupported(
            path=str(backing.path), seen="an seSparse extent whose journal has to be replayed",
            wanted="a snapshot that ESXi has closed in order",
            advice="power the machine on and off again on ESXi, or consolidate its snapshots there",
        )  # fmt: skip
    place, size = header.regions["grain directory"]
    if size * SECTOR < header.tables * 8:
        wanted = f"{header.tables * 8} bytes for the capacity"
        raise backing.damaged("the grain directory's size", 136, f"{size} sectors", wanted)
    raw = _region(backing, place, header.tables * 8, "the grain directory")
    directory = vmdk_delta_layout.se_entries(raw)
    tables, room = header.regions["grain tables"]
    grains = header.regions["grains"][0]

    def table_place(number: int) -> int:
        try:
            found = layout.se_table_number(directory[number])
        except ValueError as error:
            at = place * SECTOR + number * 8
            raise backing.damaged(
                "a grain directory entry", at, str(error), "nought or a table's number"
            ) from error
        if found is None:
            return 0
        if (found + 1) * layout.SE_TABLE_SECTORS > room:
            at = place * SECTOR + number * 8
            wanted = f"a table within the {room} sectors of tables"
            raise backing.damaged("a grain directory entry", at, f"table {found}", wanted)
        return tables + found * layout.SE_TABLE_SECTORS

    def decode(raw: bytes, offset: int) -> Entries:
        try:
            return layout.se_places(raw, grains)
        except ValueError as error:
            at = offset + int(error.args[0]) * 8
            raise backing.damaged(
                "a grain table entry", at, "an entry of no known type", "one of the four types"
            ) from error

    entries = sum(1 for entry in directory if entry)
    if len({entry for entry in directory if entry}) != entries:
        seen = "two entries that name one table"
        raise backing.damaged("the grain directory", place * SECTOR, seen, "a table of its own for each")
    return GrainLayer(
        backing,
        GrainMap(
            header.capacity, layout.SE_GRAIN_SECTORS, directory, layout.SE_TABLE_ENTRIES,
            layout.SE_TABLE_SECTORS * SECTOR, table_place, decode, grains,
        ),
    )  # fmt: skip


def _without_zeroes(backing: Backing, grain: int) -> Callable[[bytes, int], Entries]:
    """Entries of an extent whose header allows no zero grain: a 1 names a sector, and none is there."""

    def decode(raw: bytes, offset: int) -> Entries:
        table = as_entries(vmdk_layout.decode_entries(raw), grain)
        if ZERO_GRAIN in table:
            at = offset + table.index(ZERO_GRAIN) * 4
            raise backing.damaged("a grain table entry", at, "sector 1", "a sector behind the metadata")
        return table

    return decode


def _directory(backing: Backing, sector: int, tables: int, table_sectors: int) -> "array[int]":
    """A directory of 32-bit places, whose tables lie apart from each other."""
    raw = _region(backing, sector, tables * 4, "the grain directory")
    directory = vmdk_layout.decode_entries(raw)
    last = 1
    for place in sorted(place for place in directory if place):
        if place < last:
            at = sector * SECTOR + directory.index(place) * 4
            wanted = "tables that overlap neither each other nor the header"
            raise backing.damaged("a grain directory entry", at, f"sector {place}", wanted)
        last = place + table_sectors
    return directory


def _region(backing: Backing, sector: int, length: int, name: str) -> bytes:
    offset = sector * SECTOR
    if offset + length > backing.size:
        wanted = f"{length} bytes within the file of {backing.size}"
        raise backing.damaged(name, offset, f"sector {sector}", wanted)
    return backing.read_bytes(offset, length)


def _start(backing: Backing, length: int) -> bytes:
    if backing.size < length:
        raise backing.damaged("the header", 0, f"a file of {backing.size} bytes", f"at least {length}")
    return backing.read_bytes(0, length)
