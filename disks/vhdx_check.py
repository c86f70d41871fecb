"""What is wrong with a VHDX' structure: headers, log, region tables, metadata, table, where blocks lie.

Source: [MS-VHDX], sections as named in `vhdx_layout`. Everything is judged as it will be once the log is replayed.
"""

from collections.abc import Iterator

from disks.backing import Backing
from disks.check import Claims, Finding, damage, note
from disks.disk import Format
from disks.layout import Malformed
from disks.vhdx_file import Structures, headers, load, region_tables
from disks.vhdx_layout import (
    ALIGNMENT,
    HEAD_BYTES,
    HEADERS_AT,
    OFFSET_MASK,
    REGION_TABLES_AT,
    RESERVED_MASK,
    STATE_MASK,
    BlockState,
    Header,
)
from disks.vhdx_table import INVALID, table_runs


def check_vhdx(backing: Backing, kind: Format) -> Iterator[Finding]:
    """Both headers and region tables, the log, every entry of the table and every block's place."""
    found = load(backing)
    yield from _headers(backing)
    yield from _log(found)
    yield from _region_tables(found.backing)
    if found.backing.size % ALIGNMENT:
        yield note(
            "the end of the file", found.backing.size, f"{found.backing.size} bytes", "whole megabytes"
        )
    claims = Claims()
    claims.add("the header section", 0, HEAD_BYTES, 0)
    claims.add("the log", found.header.log_offset, found.header.log_bytes, HEADERS_AT[found.slot] + 68)
    for region in found.regions:
        claims.add(f"the region {region.kind}", region.offset, region.length, region.named_at)
    for run in table_runs(found.backing, found.table.offset, found.metadata):
        for number in range(run.count):
            entry = run.entry + number * found.metadata.block_bytes
            yield from _entry(found, run.index + number, entry, claims)
    yield from claims.findings(found.backing)


def _headers(backing: Backing) -> Iterator[Finding]:
    """A writer may die over one header, never over both (2.2.2)."""
    one, two = headers(backing)
    for each in (one, two):
        if isinstance(each, Malformed):
            yield note(each.structure, each.offset, each.seen, f"{each.wanted}; the other header is used")
    if isinstance(one, Header) and isinstance(two, Header) and one.sequence == two.sequence and one != two:
        seen = f"the sequence number {one.sequence} twice"
        yield damage("the headers", HEADERS_AT[0] + 8, seen, "a current header and an older one")


def _log(found: Structures) -> Iterator[Finding]:
    if found.replay is None:
        return
    at = found.header.log_offset
    if found.replay.patches:
        seen = f"{len(found.replay.patches)} writes that wait to be replayed"
        yield note("the log", at, seen, "an empty log; the next writer replays it")
    else:
        yield note("the log", at, "no valid entry, though the header names it", "an empty log")


def _region_tables(backing: Backing) -> Iterator[Finding]:
    one, two = region_tables(backing)
    for each in (one, two):
        if isinstance(each, Malformed):
            yield damage(each.structure, each.offset, each.seen, each.wanted)
    if isinstance(one, list) and isinstance(two, list):
        first, second = ([(r.kind, r.offset, r.length, r.required) for r in table] for table in (one, two))
        if first != second:
            yield damage(
                "the region tables", REGION_TABLES_AT[1], "other regions than in the first", "the same"
            )


def _entry(found: Structures, index: int, entry: int, claims: Claims) -> Iterator[Finding]:
    """One entry of the table (2.5.1)."""
    metadata = found.metadata
    state, at = entry & STATE_MASK, entry & OFFSET_MASK
    place = found.table.offset + index * 8
    chunk = metadata.chunk_ratio + 1
    is_bitmap = index % chunk == chunk - 1
    name = "a BAT entry of a sector bitmap" if is_bitmap else "a BAT entry"
    if entry & RESERVED_MASK:
        yield damage(name, place, hex(entry), "zeroes in bits 3 to 19")
    if state in INVALID or (is_bitmap and state not in (BlockState.NOT_PRESENT, BlockState.FULLY_PRESENT)):
        yield damage(name, place, f"the state {state}", "one that is defined")
    elif state == BlockState.PARTIALLY_PRESENT and not metadata.has_parent:
        yield damage(name, place, "a partly present block", "none in an image without a parent")
    if state < BlockState.FULLY_PRESENT:
        return
    length = ALIGNMENT if is_bitmap else metadata.block_bytes
    block = index - index // chunk
    needed = length if is_bitmap else min(length, metadata.size - block * metadata.block_bytes)
    if at + needed > found.backing.size:
        yield damage(name, place, f"offset {at}", f"{needed} bytes before byte {found.backing.size}")
    else:
        claims.add(
            "a sector bitmap" if is_bitmap else "a block", at, min(length, found.backing.size - at), place
        )
