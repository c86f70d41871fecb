"""qcow2, read only: clusters plain, compressed, zero or absent; backing files as the layers below.

Source: QEMU's published specification, docs/interop/qcow2.txt, "Cluster mapping" and "Header extensions". Internal
snapshots are states beside the disk's present one and are left alone. What a reader has to understand and does not is
refused: encryption, an external data file, extended L2 entries, and images that are marked dirty or corrupt.
"""

import importlib
import os
import threading
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from disks import qcow2_layout as layout
from disks.backing import Access, Backing
from disks.disk import Format
from disks.errors import FormatContradicted, ImageDamaged, OpenFailed, ParentUnusable
from disks.errors_vmdk import ExtentRefused, FeatureNotSupported, NotWritableInPlace
from disks.layers import About, Held, Layer, LayeredDisk, Piece, close_all
from disks.layout import Malformed
from disks.recognise import classify, damaged
from disks.vmdk_extents import identity_of, open_named
from drcore.limits import PARENTS_MAX, TABLE_CACHE_BYTES_MAX, UNPACKED_CACHE_ENTRIES_MAX

REFUSED: Final = (
    (layout.INCOMPATIBLE_CORRUPT, "an image marked corrupt", "run qemu-img check -r all on a copy of it"),
    (layout.INCOMPATIBLE_DATA_FILE, "an image with an external data file", "convert it (qemu-img convert)"),
    (
        layout.INCOMPATIBLE_EXTENDED_L2, "an image with extended L2 entries (subclusters)",
        "convert it (qemu-img convert)",
    ),
)  # fmt: skip
"""Incompatible features that are known and not understood here; whatever else is set is not even known."""
STEP: Final = 4096
"""L1 entries looked at in one go for tables that are not there."""


class Qcow2Layer:
    """The clusters of one image. Owns the backing; tables and unpacked clusters are kept in bounded number."""

    def __init__(self, backing: Backing, header: layout.Header) -> None:
        """Errors: ImageDamaged."""
        self.backing = backing
        self.header = header
        self._bits = header.cluster_bits
        self._l1 = self._read_l1()
        self._tables: OrderedDict[int, array[int]] = OrderedDict()
        self._tables_max = max(1, TABLE_CACHE_BYTES_MAX >> self._bits)
        self._unpacked: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        return self.header.size

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.backing.path,)

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        end = offset + length
        step = self.header.l2_entries << self._bits
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
        if not piece.at & layout.COMPRESSED:
            self.backing.read(piece.at, into)
            return
        inside = piece.offset & self.header.cluster - 1
        into[:] = self._unpack(piece.at, piece.offset - inside)[inside : inside + piece.length]

    def close(self) -> None:
        self.backing.close()

    def table(self, number: int) -> "array[int] | None":
        """L2 table `number`, None where there is none. Errors: ImageDamaged, ReadFailed."""
        with self._lock:
            found = self._tables.get(number)
            if found is not None:
                self._tables.move_to_end(number)
                return found
            place = self._l1[number] & layout.OFFSET
            if not place:
                return None
            at = self.header.l1 + number * 8
            self._check_place("an L1 entry", at, place, self.header.cluster)
            table = layout.decode_entries(self.backing.read_bytes(place, self.header.cluster))
            self._check_table(table, place, number)
            self._tables[number] = table
            while len(self._tables) > self._tables_max:
                self._tables.popitem(last=False)
            return table

    def l1_entry(self, number: int) -> int:
        """The L1 table's entry `number`, which was checked at opening; nought for no table."""
        return self._l1[number]

    def _pieces(self, table: "array[int]", base: int, offset: int, stop: int) -> Iterator[Piece]:
        bits, cluster = self._bits, self.header.cluster
        flag = layout.READS_ZERO if self.header.version > 2 else 0
        at, last = offset - base >> bits, -(-(stop - base) >> bits)
        while at < last:
            entry = table[at]
            behind = at + 1
            held, place = Held.DATA, entry & layout.OFFSET
            if entry & layout.COMPRESSED:
                place = entry
            elif entry & flag or not place:
                held = Held.ZERO if entry & flag else Held.ABSENT
                while behind < last and self._empty(table[behind], flag) is held:
                    behind += 1
            else:
                wanted = entry + cluster
                while behind < last and table[behind] == wanted:
                    behind += 1
                    wanted += cluster
            start, end = max(offset, base + (at << bits)), min(stop, base + (behind << bits))
            if held is not Held.DATA:
                place = 0
            elif not entry & layout.COMPRESSED:
                place += start - base - (at << bits)
            yield Piece(start, end - start, held, place)
            at = behind

    @staticmethod
    def _empty(entry: int, flag: int) -> Held:
        if entry & layout.COMPRESSED:
            return Held.DATA
        if entry & flag:
            return Held.ZERO
        return Held.DATA if entry & layout.OFFSET else Held.ABSENT

    def _absent_tables(self, number: int, end: int) -> int:
        """How many L2 tables from `number` on are not there; the first is known not to be."""
        behind = number + 1
        while behind < end:
            entries = self._l1[behind : min(end, behind + STEP)]
            if any(entries):
                return behind - number + next(at for at, entry in enumerate(entries) if entry)
            behind += len(entries)
        return behind - number

    def _read_l1(self) -> "array[int]":
        header = self.header
        self._check_place("the L1 table", 40, header.l1, header.l1_entries * 8)
        clusters = -(-header.size // header.cluster)
        needed = -(-clusters // header.l2_entries)
        entries = layout.decode_entries(self.backing.read_bytes(header.l1, needed * 8))
        seen = set()
        for number, entry in enumerate(entries):
            if not entry:
                continue
            at, place = header.l1 + number * 8, entry & layout.OFFSET
            if (
                place % header.cluster
                or place in seen
                or entry & ~layout.OFFSET & ~layout.COPIED
                or not place
            ):
                raise self._damaged(
                    "an L1 entry", at, f"{entry:#018x}", "a cluster that no other entry names"
                )
            seen.add(place)
        return entries

    def _check_table(self, table: "array[int]", place: int, number: int) -> None:
        """Every cluster that the table names lies within the file (the last one: as far as it goes)."""
        header, size = self.header, self._end()
        flag = layout.READS_ZERO if header.version > 2 else 0
        allowed = layout.OFFSET | layout.COPIED | flag
        largest = 0
        for index, entry in enumerate(table):
            if entry & layout.COMPRESSED:
                at, length = layout.compressed_place(entry, self._bits)
                # The last sector of a compressed cluster need not be whole at the end of the file.
                if at < header.cluster or at + min(length, 1) > size or entry & layout.COPIED:
                    raise self._damaged(
                        "an L2 entry", place + index * 8, f"{entry:#018x}", "compressed bytes in the file"
                    )
            elif entry:
                offset = entry & layout.OFFSET
                if entry & ~allowed or offset % header.cluster or (not offset and entry & layout.COPIED):
                    raise self._damaged("an L2 entry", place + index * 8, f"{entry:#018x}", "a cluster")
                largest = max(largest, offset)
        if largest + header.cluster > size:
            self._check_last(table, number, size)

    def _check_last(self, table: "array[int]", number: int, size: int) -> None:
        """A cluster that the end of the file cuts is the disk's last, and holds all of the disk's bytes."""
        cluster = self.header.cluster
        for index, entry in enumerate(table):
            offset = self._plain(entry)
            if offset + cluster > size and offset:
                first = (number * self.header.l2_entries + index) * cluster
                if offset + min(cluster, max(0, self.header.size - first)) > size:
                    at = (self._l1[number] & layout.OFFSET) + index * 8
                    wanted = f"a cluster within the file of {size} bytes"
                    raise self._damaged("an L2 entry", at, f"offset {offset}", wanted)

    @staticmethod
    def _plain(entry: int) -> int:
        return 0 if entry & layout.COMPRESSED else entry & layout.OFFSET

    def _unpack(self, entry: int, offset: int) -> bytes:
        with self._lock:
            found = self._unpacked.get(entry)
            if found is not None:
                self._unpacked.move_to_end(entry)
                return found
        at, length = layout.compressed_place(entry, self._bits)
        length = min(length, self._end() - at)
        content = self._decompress(self.backing.read_bytes(at, length), at)
        needed = min(self.header.cluster, self.size - offset)
        if len(content) < needed:
            raise self._damaged("a compressed cluster", at, f"{len(content)} bytes in it", str(needed))
        with self._lock:
            self._unpacked[entry] = content
            while len(self._unpacked) > UNPACKED_CACHE_ENTRIES_MAX:
                self._unpacked.popitem(last=False)
        return content

    def _decompress(self, packed: bytes, at: int) -> bytes:
        cluster = self.header.cluster
        if self.header.compression == layout.ZSTD:
            library = zstandard()
            try:
                answer: bytes = library.ZstdDecompressor().stream_reader(packed).read(cluster)
            except library.ZstdError as error:
                raise self._damaged("a compressed cluster", at, str(error), "zstd's bytes") from error
            return answer
        try:
            return zlib.decompressobj(-15).decompress(packed, cluster)
        except zlib.error as error:
            raise self._damaged("a compressed cluster", at, str(error), "deflated bytes") from error

    def _check_place(self, structure: str, at: int, place: int, length: int) -> None:
        if place + length > self._end():
            wanted = f"{length} bytes within the file of {self.backing.size}"
            raise self._damaged(structure, at, f"offset {place}", wanted)

    def _end(self) -> int:
        if self.backing.access is Access.INSPECT:
            self.backing.measure()
        return self.backing.size

    def _damaged(self, structure: str, offset: int, seen: str, wanted: str) -> ImageDamaged:
        return ImageDamaged(
            path=str(self.backing.path), structure=structure, offset=offset, seen=seen, wanted=wanted
        )


class RawLayer:
    """A raw backing file: it hides everything below. Owns the backing."""

    def __init__(self, backing: Backing) -> None:
        self._backing = backing

    @property
    def size(self) -> int:
        return self._backing.size

    @property
    def files(self) -> tuple[Path, ...]:
        return (self._backing.path,)

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        at, end = offset, offset + length
        for start, count in self._backing.data_runs(offset, length):
            if start > at:
                yield Piece(at, start - at, Held.ZERO)
            yield Piece(start, count, Held.DATA, start)
            at = start + count
        if at < end:
            yield Piece(at, end - at, Held.ZERO)

    def load(self, piece: Piece, into: memoryview) -> None:
        self._backing.read(piece.at, into)

    def close(self) -> None:
        self._backing.close()


def open_qcow2(backing: Backing, kind: Format) -> LayeredDisk:
    """The image in `backing` with its chain of backing files, as layers. Takes the backing over.

    Errors: NotWritableInPlace for a target; ImageDamaged, FeatureNotSupported, ParentUnusable, DiskInUse.
    """
    if backing.writable:
        raise NotWritableInPlace(path=str(backing.path), seen=f"the format {kind.value}")
    top, seen = backing, {identity_of(backing)}
    layers: list[Layer] = []
    try:
        first = read_header(backing)
        header: layout.Header | None = first
        while header is not None:
            layers.append(Qcow2Layer(backing, header))
            if not header.backing[0]:
                break
            backing, below = _open_backing_file(backing, header, seen)
            header = read_header(backing) if below is Format.QCOW2 else None
            if header is None:
                layers.append(RawLayer(backing))
        return LayeredDisk(About(top.path, kind, first.cluster, None, None), layers)
    except BaseException:
        close_all(layers)
        backing.close()
        raise


def read_header(backing: Backing) -> layout.Header:
    """The header, with nothing in it that is not understood here. Errors: ImageDamaged, FeatureNotSupported."""
    try:
        header = layout.decode_header(backing.read_bytes(0, min(backing.size, layout.HEADER_BYTES + 8)))
    except Malformed as error:
        raise damaged(backing, error) from error
    refuse = _refusal(backing)
    if header.encryption:
        raise refuse("an encrypted image", "decrypt it (qemu-img convert with its secret)")
    for bit, words, advice in REFUSED:
        if header.incompatible & bit:
            raise refuse(words, advice)
    if header.incompatible & layout.INCOMPATIBLE_DIRTY:
        # Only the refcounts may be stale then, but whoever wrote it may still do so or have died on the way.
        raise refuse("an image marked dirty", "close what writes it, or run qemu-img check -r all on it")
    unknown = header.incompatible & ~(
        layout.INCOMPATIBLE_COMPRESSION | sum(bit for bit, _, _ in REFUSED) | layout.INCOMPATIBLE_DIRTY
    )
    if unknown:
        raise refuse(f"incompatible features {unknown:#x}", "convert it with the qemu that made it")
    if header.compression not in (layout.ZLIB, layout.ZSTD):
        raise refuse(f"compression type {header.compression}", "convert it with the qemu that made it")
    if header.compression == layout.ZSTD and zstandard() is None:
        raise refuse("compression type zstd", "install the Python package zstandard, or convert it")
    return header


def _refusal(backing: Backing) -> Any:
    def refuse(seen: str, advice: str) -> FeatureNotSupported:
        wanted = "a qcow2 of version 2 or 3 without encryption, external data or subclusters, closed in order"
        return FeatureNotSupported(path=str(backing.path), seen=seen, wanted=wanted, advice=advice)

    return refuse


def zstandard() -> Any:
    """The Python package of that name, None where it is not installed: only images compressed so need it."""
    try:
        return importlib.import_module("zstandard")
    except ImportError:
        return None


def _open_backing_file(
    child: Backing, header: layout.Header, seen: set[tuple[int, int]]
) -> tuple[Backing, Format]:
    """The backing file that the header names, and its format as the header tells it."""
    at, length = header.backing
    name = os.fsdecode(child.read_bytes(at, min(length, max(0, child.size - at))))

    def unusable(found: str, wanted: str) -> ParentUnusable:
        return ParentUnusable(path=str(child.path), parent=name, seen=found, wanted=wanted)

    try:
        end = min(child.size, at, layout.EXTENSIONS_BYTES_MAX)
        told = layout.backing_format(child.read_bytes(0, end), header.length, end)
    except Malformed as error:
        raise damaged(child, error) from error
    kinds = {None: None, "raw": Format.RAW, "qcow2": Format.QCOW2}
    if told not in kinds:
        raise unusable(f"a backing file of the format {told!r}", "one of raw or qcow2")
    if len(seen) >= PARENTS_MAX:
        raise unusable(f"more than {PARENTS_MAX} images in the chain", f"at most {PARENTS_MAX}")
    try:
        parent = open_named(child.path, name, child.access)
    except (OpenFailed, ExtentRefused) as error:
        raise unusable(error.reason, "a plain file in the same directory") from error
    try:
        if identity_of(parent) in seen:
            raise unusable("an image that is in the chain already", "a chain that ends")
        seen.add(identity_of(parent))
        kind = classify(parent, parent.path, kinds[told])
        if kind not in (Format.RAW, Format.QCOW2):
            raise unusable(f"a backing file of the format {kind.value}", "one of raw or qcow2")
        return parent, kind
    except FormatContradicted as error:
        parent.close()
        raise unusable(error.seen, f"the format {error.told}, as the image says") from error
    except BaseException:
        parent.close()
        raise
