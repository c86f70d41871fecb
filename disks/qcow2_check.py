"""What `info --check` looks at in a qcow2: every cluster is referred to as often as its refcount says.

Source: QEMU's published specification, docs/interop/qcow2.txt, "Host cluster management", "Snapshots". Internal
snapshots share clusters with the disk; theirs are counted too.
"""

import struct
from array import array
from collections.abc import Iterator
from typing import Final

from disks import qcow2_layout as layout
from disks.backing import Backing
from disks.check import Finding, Severity, damage, note
from disks.disk import Format
from disks.errors import ImageDamaged
from disks.qcow2 import Qcow2Layer, read_header

CLUSTERS_MAX: Final = 256 * 1024 * 1024
"""Clusters whose references are counted, at two bytes each: 16 TiB at 64 KiB."""
COUNT_MAX: Final = 65535
EXTENSION_BITMAPS: Final = 0x23852875
# L1 table at, its entries, length of id and name, date, clock, VM state, extra data
_SNAPSHOT: Final = struct.Struct(">QIHHIIQII")


def check_qcow2(backing: Backing, kind: Format) -> Iterator[Finding]:
    """What is wrong with the image; of backing files only that they can be opened. Errors: as opening it."""
    header = read_header(backing)
    layer = Qcow2Layer(backing, header)
    clusters = -(-backing.size // header.cluster)
    if clusters > CLUSTERS_MAX:
        yield note("the check", 0, f"{clusters} clusters", f"at most {CLUSTERS_MAX}, to count references")
        return
    counted = _References(backing, header, clusters, layer)
    yield from counted.active()
    yield from counted.snapshots()
    yield from counted.compare()


class _References:
    """How often each cluster of the file is referred to, by whatever does."""

    def __init__(self, backing: Backing, header: layout.Header, clusters: int, layer: Qcow2Layer) -> None:
        self._backing = backing
        self._layer = layer
        self._header = header
        self._counts = array("H", bytes(2 * clusters))

    def active(self) -> Iterator[Finding]:
        """The header, and the disk's present state."""
        header = self._header
        yield from self._add("the header", 0, 0, header.cluster)
        yield from self._add("the L1 table", 40, header.l1, header.l1_entries * 8)
        for number in range(-(-header.size // (header.l2_entries * header.cluster))):
            entry = self._layer.directory[number]
            if entry:
                first = number * header.l2_entries * header.cluster
                yield from self._table(header.l1 + number * 8, entry, first)

    def snapshots(self) -> Iterator[Finding]:
        """The snapshot table, and what every snapshot refers to."""
        header, at = self._header, self._header.snapshot_table
        for _ in range(header.snapshots):
            if at + _SNAPSHOT.size > self._backing.size:
                yield damage("the snapshot table", at, "the end of the file", "a snapshot")
                return
            raw = self._backing.read_bytes(at, _SNAPSHOT.size)
            l1, entries, id_length, name_length, *_, extra = _SNAPSHOT.unpack(raw)
            if l1 % header.cluster or l1 + entries * 8 > self._backing.size:
                yield damage("a snapshot's L1 table", at, f"{entries} entries at {l1}", "a table in the file")
            else:
                yield from self._add("a snapshot's L1 table", at, l1, entries * 8)
                table = layout.decode_entries(self._backing.read_bytes(l1, entries * 8))
                for number, entry in enumerate(table):
                    if entry & layout.OFFSET:
                        yield from self._table(l1 + number * 8, entry, 0)
            at += -(-(_SNAPSHOT.size + extra + id_length + name_length) // 8) * 8
        if header.snapshots:
            start = header.snapshot_table
            yield from self._add("the snapshot table", 64, start, at - start)

    def compare(self) -> Iterator[Finding]:
        """Refcounts and references agree; where a refcount is larger, room is lost, where it is smaller, content."""
        header, backing = self._header, self._backing
        size = header.refcount_clusters * header.cluster
        if header.refcounts + size > backing.size:
            yield damage("the refcount table", 48, f"{size} bytes at {header.refcounts}", "one in the file")
            return
        yield from self._add("the refcount table", 48, header.refcounts, size)
        blocks = layout.decode_entries(backing.read_bytes(header.refcounts, size))
        for number, entry in enumerate(blocks):
            place = entry & layout.REFCOUNT_OFFSET
            if place:
                yield from self._add("a refcount block", header.refcounts + number * 8, place, header.cluster)
        yield from self._compare(blocks)

    def _compare(self, blocks: "array[int]") -> Iterator[Finding]:
        header, backing = self._header, self._backing
        per_block = header.cluster * 8 >> header.refcount_order
        bitmaps = self._has_bitmaps()
        leaked, first = 0, 0
        for number in range(-(-len(self._counts) // per_block)):
            place = blocks[number] & layout.REFCOUNT_OFFSET if number < len(blocks) else 0
            counts = self._counts[number * per_block : (number + 1) * per_block]
            if place and place % header.cluster == 0 and place + header.cluster <= backing.size:
                told = layout.decode_refcounts(
                    backing.read_bytes(place, header.cluster), header.refcount_order
                )
            elif any(counts):
                told = array("Q", bytes(8 * per_block))
            else:
                continue
            if counts == told[: len(counts)]:
                continue
            for index, count in enumerate(counts):
                if count == told[index]:
                    continue
                cluster = number * per_block + index
                if count > told[index]:
                    seen = f"refcount {told[index]} of a cluster referred to {count} times"
                    yield damage("a refcount", cluster * header.cluster, seen, str(count))
                elif not bitmaps:
                    first = first if leaked else cluster * header.cluster
                    leaked += 1
        if leaked:
            seen = f"{leaked} clusters ({leaked * header.cluster} bytes), this one the first"
            yield Finding(Severity.LEAK, "room that nothing refers to", first, seen, "none")
        if bitmaps:
            yield note("the header's extensions", header.length, "dirty bitmaps", "none; leaks are not told")

    def _table(self, named_at: int, entry: int, first: int) -> Iterator[Finding]:
        """An L2 table and its clusters, from byte `first` of the disk on; compressed ones are unpacked."""
        header, place = self._header, entry & layout.OFFSET
        if place % header.cluster or place + header.cluster > self._backing.size:
            yield damage("an L1 entry", named_at, f"offset {place}", "a cluster in the file")
            return
        yield from self._add("an L2 table", named_at, place, header.cluster)
        table = layout.decode_entries(self._backing.read_bytes(place, header.cluster))
        for index, each in layout.named(table):
            if each & layout.COMPRESSED:
                start, length = layout.compressed_place(each, header.cluster_bits)
                yield from self._add("compressed clusters", place + index * 8, start & ~511, length)
                yield from self._unpack(each, first + index * header.cluster)
            elif each & layout.OFFSET:
                yield from self._add("a cluster", place + index * 8, each & layout.OFFSET, header.cluster)

    def _unpack(self, entry: int, offset: int) -> Iterator[Finding]:
        """The compressed cluster can be read: nothing else would tell."""
        if (
            offset >= self._header.size
            or layout.compressed_place(entry, self._header.cluster_bits)[0] >= self._backing.size
        ):
            return  # its claim says so
        try:
            self._layer.unpacked_grain(entry, offset)
        except ImageDamaged as error:
            yield damage(error.structure, error.offset, error.seen, error.wanted)

    def _add(self, structure: str, named_at: int, start: int, length: int) -> Iterator[Finding]:
        """The clusters of the range are referred to once more."""
        cluster = self._header.cluster
        whole = structure not in ("compressed clusters",)
        if (whole and start % cluster) or start >= self._backing.size:
            yield damage(structure, named_at, f"offset {start}", "a cluster in the file")
            return
        for number in range(start // cluster, min(-(-(start + length) // cluster), len(self._counts))):
            self._counts[number] = min(COUNT_MAX, self._counts[number] + 1)

    def _has_bitmaps(self) -> bool:
        header, end = self._header, min(self._backing.size, self._header.cluster)
        end = header.backing[0] or end
        raw = self._backing.read_bytes(0, min(end, self._backing.size, layout.EXTENSIONS_BYTES_MAX))
        return EXTENSION_BITMAPS in layout.extensions(raw, header.length, len(raw))
