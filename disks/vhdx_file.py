"""Finding one's way in a VHDX: current header, log, region table, metadata, in the order in which each needs the last.

A log that holds something is replayed in memory: what lies behind `Structures.backing` reads as if it had been replayed
to disk, and nothing is written.
"""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from disks import magic, vhdx_log
from disks.backing import Backing, zero_memory
from disks.layout import Malformed
from disks.vhdx_layout import (
    BAT_REGION,
    HEAD_BYTES,
    HEADER_BYTES,
    HEADERS_AT,
    METADATA_REGION,
    NO_GUID,
    REGION_TABLE_BYTES,
    REGION_TABLES_AT,
    Header,
    Metadata,
    Region,
    decode_header,
    decode_metadata,
    decode_regions,
)
from drcore.limits import VHDX_FILE_BYTES_MAX, VHDX_LOG_BYTES_MAX, VHDX_METADATA_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Structures:
    """What every reader and writer of a VHDX needs before its first block."""

    backing: Backing
    header: Header
    slot: int
    """Which of the two headers is the current one; the next is written over the other."""
    regions: tuple[Region, ...]
    table: Region
    metadata: Metadata
    replay: vhdx_log.Replay | None
    """What the log holds; None where it is empty."""


class Replayed(Backing):
    """A backing that reads as if the log had been replayed. Shares the descriptor of the one below."""

    def __init__(self, below: Backing, replay: vhdx_log.Replay) -> None:
        super().__init__(below.descriptor, below.path, below.access)
        self._length = self.size
        self._patches = replay.patches
        self.size = replay.file_bytes

    def read(self, offset: int, into: memoryview) -> None:
        there = max(0, min(len(into), self._length - offset)) if offset < self.size else len(into)
        super().read(offset, into[:there])
        zero_memory(into[there:])
        for patch in self._patches:
            start = max(offset, patch.offset)
            end = min(offset + len(into), patch.offset + patch.length)
            if start >= end:
                continue
            part = into[start - offset : end - offset]
            if patch.data is None:
                zero_memory(part)
            else:
                part[:] = patch.data[start - patch.offset : end - patch.offset]

    def data_runs(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """The file's, and what the patches write."""
        end = offset + length
        there = super().data_runs(offset, max(0, min(end, self._length) - offset))
        spans = [(start, start + count) for start, count in there]
        patches = (each for each in self._patches if each.data is not None)
        spans += ((max(offset, each.offset), min(end, each.offset + each.length)) for each in patches)
        reached = offset
        for start, stop in sorted(spans):
            if stop > max(start, reached):
                yield max(start, reached), stop - max(start, reached)
                reached = stop


def load(backing: Backing) -> Structures:
    """The structures of the VHDX in `backing`, each checked by itself and against the file. Raises Malformed."""
    if backing.size < HEAD_BYTES:
        raise Malformed("the header section", 0, f"a file of {backing.size} bytes", f"at least {HEAD_BYTES}")
    if backing.size > VHDX_FILE_BYTES_MAX:
        raise Malformed("the file", 0, f"{backing.size} bytes", f"at most {VHDX_FILE_BYTES_MAX}")
    signature = backing.read_bytes(0, len(magic.VHDX))
    if signature != magic.VHDX:
        raise Malformed("the file identifier", 0, repr(signature), repr(magic.VHDX))
    header, slot = _current_header(backing)
    replay = _log(backing, header)
    seen = Replayed(backing, replay) if replay is not None and replay.patches else backing
    regions = _regions(seen)
    log = Region(NO_GUID, header.log_offset, header.log_bytes, True, HEADERS_AT[slot] + 68)
    _check_apart([*regions, log], seen.size)
    table, metadata_region = (
        _region(regions, BAT_REGION, "the BAT"),
        _region(regions, METADATA_REGION, "the metadata"),
    )
    # Only the first megabyte is looked at: the table and all items of the specification need less than 65 KiB.
    raw = seen.read_bytes(metadata_region.offset, min(metadata_region.length, VHDX_METADATA_BYTES_MAX))
    metadata = decode_metadata(raw, metadata_region.offset)
    if metadata.entries * 8 > table.length:
        wanted = f"{metadata.entries} entries of 8 bytes"
        raise Malformed("the BAT region's length", table.named_at + 24, str(table.length), wanted)
    return Structures(seen, header, slot, tuple(regions), table, metadata, replay)


def headers(backing: Backing) -> list[Header | Malformed]:
    """Both headers, or what is wrong with them."""
    found: list[Header | Malformed] = []
    for at in HEADERS_AT:
        try:
            found.append(decode_header(backing.read_bytes(at, HEADER_BYTES), at))
        except Malformed as error:
            found.append(error)
    return found


def region_tables(backing: Backing) -> list[list[Region] | Malformed]:
    """Both copies of the region table, or what is wrong with them."""
    found: list[list[Region] | Malformed] = []
    for at in REGION_TABLES_AT:
        try:
            found.append(decode_regions(backing.read_bytes(at, REGION_TABLE_BYTES), at))
        except Malformed as error:
            found.append(error)
    return found


def _current_header(backing: Backing) -> tuple[Header, int]:
    """The valid header with the higher sequence number (2.2.2)."""
    found = headers(backing)
    valid = [(each.sequence, -slot) for slot, each in enumerate(found) if isinstance(each, Header)]
    if not valid:
        assert isinstance(found[0], Malformed)
        raise found[0]
    slot = -max(valid)[1]
    header = found[slot]
    assert isinstance(header, Header)
    return header, slot


def _log(backing: Backing, header: Header) -> vhdx_log.Replay | None:
    if header.log == NO_GUID:
        return None
    if header.log_offset + header.log_bytes > backing.size or header.log_bytes > VHDX_LOG_BYTES_MAX:
        seen = f"{header.log_bytes} bytes at {header.log_offset}"
        wanted = f"at most {VHDX_LOG_BYTES_MAX} within the file of {backing.size}"
        raise Malformed("the log", header.log_offset, seen, wanted)
    return vhdx_log.find(backing.read_bytes(header.log_offset, header.log_bytes), header, backing.size)


def _regions(backing: Backing) -> list[Region]:
    """The first sound copy of the region table (2.2.3)."""
    found = region_tables(backing)
    for each in found:
        if isinstance(each, list):
            return each
    assert isinstance(found[0], Malformed)
    raise found[0]


def _region(regions: list[Region], kind: uuid.UUID, name: str) -> Region:
    for each in regions:
        if each.kind == kind:
            return each
    raise Malformed("the region table", REGION_TABLES_AT[0], f"no region for {name}", "one")


def _check_apart(regions: list[Region], size: int) -> None:
    """Regions and log lie within the file and beside each other; none is required that is not known."""
    last = 0
    for region in sorted(regions, key=lambda each: each.offset):
        if region.offset + region.length > size:
            seen = f"{region.length} bytes at {region.offset}"
            raise Malformed("a region", region.named_at, seen, f"a place within the file of {size} bytes")
        if region.offset < last:
            raise Malformed(
                "a region", region.named_at, f"offset {region.offset}", f"none below {last}, which is taken"
            )
        last = region.offset + region.length
        if region.required and region.kind not in (BAT_REGION, METADATA_REGION, NO_GUID):
            raise Malformed(
                "a region", region.named_at, f"the unknown region {region.kind}", "regions that are known"
            )
