"""qcow2, read only: clusters plain, compressed, zero or absent; backing files as the layers below.

Source: QEMU's published specification, docs/interop/qcow2.txt, "Cluster mapping" and "Header extensions". Internal
snapshots are states beside the disk's present one and are left alone. What a reader has to understand and does not is
refused: encryption, an external data file, extended L2 entries, and images that are marked dirty or corrupt.
"""

import importlib
import os
import zlib
from array import array
from collections.abc import Iterator
from typing import Any, Final

from disks import qcow2_layout as layout
from disks.backing import Backing
from disks.disk import Format
from disks.errors import FormatContradicted, ImageDamaged, OpenFailed, ParentUnusable
from disks.errors_vmdk import ExtentRefused, FeatureNotSupported, NotWritableInPlace
from disks.layers import About, FlatLayer, Held, Layer, LayeredDisk, Piece, close_all
from disks.layout import Malformed
from disks.recognise import classify
from disks.structures import damaged
from disks.table_layer import Entries, Shape, TableLayer, as_entries, row_length
from disks.vmdk_extents import identity_of, open_named
from drcore.limits import PARENTS_MAX

REFUSED: Final = (
    (layout.INCOMPATIBLE_CORRUPT, "an image marked corrupt", "run qemu-img check -r all on a copy of it"),
    (layout.INCOMPATIBLE_DATA_FILE, "an image with an external data file", "convert it (qemu-img convert)"),
    (
        layout.INCOMPATIBLE_EXTENDED_L2, "an image with extended L2 entries (subclusters)",
        "convert it (qemu-img convert)",
    ),
)  # fmt: skip
"""Incompatible features that are known and not understood here; whatever else is set is not even known."""


class Qcow2Layer(TableLayer):
    """The clusters of one image. Owns the backing."""

    def __init__(self, backing: Backing, header: layout.Header) -> None:
        """Errors: ImageDamaged."""
        self.header = header
        self._bits = header.cluster_bits
        shape = Shape(header.cluster, header.l2_entries, header.cluster)
        super().__init__(backing, _read_l1(backing, header), shape)

    @property
    def size(self) -> int:
        return self.header.size

    def _load_table(self, number: int) -> Entries:
        at, place = self.header.l1 + number * 8, self.directory[number] & layout.OFFSET
        if place + self.header.cluster > self._end():
            raise _outside(self.backing, "an L1 entry", at, place, self.header.cluster)
        entries = layout.decode_entries(self.backing.read_bytes(place, self.header.cluster))
        table = entries if entries[0] & layout.COMPRESSED else as_entries(entries, self.header.cluster)
        self._check_table(table, place, number)
        return table

    def _pieces(self, table: Entries, base: int, offset: int, stop: int) -> Iterator[Piece]:
        bits = self._bits
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
                behind = at + row_length(table, at, last, self.header.cluster)
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

    def _is_packed(self, piece: Piece) -> bool:
        return bool(piece.at & layout.COMPRESSED)

    def _check_table(self, table: Entries, place: int, number: int) -> None:
        """Every cluster that the table names lies within the file (the last one: as far as it goes)."""
        header, size = self.header, self._end()
        flag = layout.READS_ZERO if header.version > 2 else 0
        allowed = layout.OFFSET | layout.COPIED | flag
        largest = 0
        if isinstance(table, range):  # the first and the last speak for all
            entries = iter(((0, table[0]), (len(table) - 1, table[-1])))
        else:
            entries = layout.named(table)
        for index, entry in entries:
            if entry & layout.COMPRESSED:
                at, length = layout.compressed_place(entry, self._bits)
                # The last sector of a compressed cluster need not be whole at the end of the file.
                if at < header.cluster or at + min(length, 1) > size or entry & layout.COPIED:
                    raise self.backing.damaged(
                        "an L2 entry", place + index * 8, f"{entry:#018x}", "compressed bytes in the file"
                    )
            elif entry:
                offset = entry & layout.OFFSET
                if entry & ~allowed or offset % header.cluster or (not offset and entry & layout.COPIED):
                    raise self.backing.damaged(
                        "an L2 entry", place + index * 8, f"{entry:#018x}", "a cluster"
                    )
                largest = max(largest, offset)
        if largest + header.cluster > size:
            self._check_last(table, number, size)

    def _check_last(self, table: Entries, number: int, size: int) -> None:
        """A cluster that the end of the file cuts is the disk's last, and holds all of the disk's bytes."""
        cluster = self.header.cluster
        for index, entry in enumerate(table):
            offset = self._plain(entry)
            if offset + cluster > size and offset:
                first = (number * self.header.l2_entries + index) * cluster
                if offset + min(cluster, max(0, self.header.size - first)) > size:
                    at = (self.directory[number] & layout.OFFSET) + index * 8
                    wanted = f"a cluster within the file of {size} bytes"
                    raise self.backing.damaged("an L2 entry", at, f"offset {offset}", wanted)

    @staticmethod
    def _plain(entry: int) -> int:
        return 0 if entry & layout.COMPRESSED else entry & layout.OFFSET

    def unpacked_grain(self, at: int, offset: int) -> bytes:
        at, length = layout.compressed_place(at, self._bits)
        length = min(length, self._end() - at)
        content = self._decompress(self.backing.read_bytes(at, length), at)
        needed = min(self.header.cluster, self.size - offset)
        if len(content) < needed:
            raise self.backing.damaged("a compressed cluster", at, f"{len(content)} bytes in it", str(needed))
        return content

    def _decompress(self, packed: bytes, at: int) -> bytes:
        cluster = self.header.cluster
        if self.header.compression == layout.ZSTD:
            library = zstandard()
            try:
                answer: bytes = library.ZstdDecompressor().stream_reader(packed).read(cluster)
            except library.ZstdError as error:
                raise self.backing.damaged("a compressed cluster", at, str(error), "zstd's bytes") from error
            return answer
        try:
            return zlib.decompressobj(-15).decompress(packed, cluster)
        except zlib.error as error:
            raise self.backing.damaged("a compressed cluster", at, str(error), "deflated bytes") from error


def _read_l1(backing: Backing, header: layout.Header) -> "array[int]":
    """The active L1 table as far as the disk's size needs it, checked. Errors: ImageDamaged."""
    if header.l1 + header.l1_entries * 8 > backing.size:
        raise _outside(backing, "the L1 table", 40, header.l1, header.l1_entries * 8)
    clusters = -(-header.size // header.cluster)
    needed = -(-clusters // header.l2_entries)
    entries = layout.decode_entries(backing.read_bytes(header.l1, needed * 8))
    seen = set()
    for number, entry in enumerate(entries):
        if not entry:
            continue
        at, place = header.l1 + number * 8, entry & layout.OFFSET
        if place % header.cluster or place in seen or entry & ~layout.OFFSET & ~layout.COPIED or not place:
            raise backing.damaged("an L1 entry", at, f"{entry:#018x}", "a cluster that no other entry names")
        seen.add(place)
    return entries


def _outside(backing: Backing, structure: str, at: int, place: int, length: int) -> ImageDamaged:
    wanted = f"{length} bytes within the file of {backing.size}"
    return backing.damaged(structure, at, f"offset {place}", wanted)


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
                layers.append(FlatLayer(backing, 0, backing.size))
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
