"""The log of a VHDX: finding what a writer left to be replayed, and writing entries. Pure: no input or output.

Source: [MS-VHDX] 2.3. The log is a ring of entries; each holds whole 4 KiB sectors for other places of the file. An
entry whose GUID is not the header's is of the past.
"""

import struct
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from _native.crc32c import crc32c
from disks.layout import Malformed
from disks.vhdx_layout import ALIGNMENT, REGION_TABLES_AT, Header
from drcore.limits import VHDX_FILE_BYTES_MAX, VHDX_LOG_GROWTH_BYTES_MAX

SECTOR: Final = 4096
# signature, checksum, length, tail, sequence number, descriptors, reserved, log GUID, flushed and last file offset
_ENTRY: Final = struct.Struct("<4sIIIQII16sQQ")
_DESCRIPTOR: Final = struct.Struct("<4sIQQQ")
"""2.3.1.2 zero: signature, reserved, zero length, file offset, sequence. 2.3.1.3 data: signature, trailing four bytes,
leading eight bytes, file offset, sequence."""
_FIRST_DESCRIPTORS: Final = (SECTOR - _ENTRY.size) // _DESCRIPTOR.size
_SECTOR_DESCRIPTORS: Final = SECTOR // _DESCRIPTOR.size
CHECKED_SHARE_MAX: Final = 16
"""A sound log's bytes belong to one entry each; checking overlapping ones ends at so many times its length."""


@dataclass(frozen=True, slots=True)
class Patch:
    """What an entry says about the file: these bytes there, or zeroes where `data` is None."""

    offset: int
    length: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Replay:
    """What is to be done, in order, and how long the file has to be."""

    patches: tuple[Patch, ...]
    file_bytes: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """A valid entry: where in the ring, and what its header says."""

    at: int
    sequence: int
    length: int
    tail: int
    descriptors: int
    flushed: int
    last: int


class _Ring:
    """The log's bytes as the ring that they are."""

    def __init__(self, raw: bytes, header: Header) -> None:
        self.raw = raw
        self.header = header
        self._budget = CHECKED_SHARE_MAX * len(raw)
        self._seen: dict[int, _Entry | None] = {}

    def piece(self, at: int, length: int) -> bytes:
        return self.raw[at : at + length] + self.raw[: max(0, at + length - len(self.raw))]

    def entry(self, at: int) -> _Entry | None:
        """The valid entry at `at` (2.3.1, 2.3.2), None where none is. Raises Malformed."""
        if at not in self._seen:
            self._seen[at] = self._look(at)
        return self._seen[at]

    def _look(self, at: int) -> _Entry | None:
        signature, found, length, tail, sequence, descriptors, _, guid, flushed, last = _ENTRY.unpack_from(
            self.raw, at
        )
        if signature != b"loge" or guid != self.header.log.bytes_le or not sequence:
            return None
        if length % SECTOR or not SECTOR <= length <= len(self.raw) or tail % SECTOR or tail >= len(self.raw):
            return None
        if SECTOR * descriptor_sectors(descriptors) > length:
            return None
        self._budget -= length
        if self._budget < 0:
            offset = self.header.log_offset + at
            raise Malformed("the log", offset, "entries that lie in each other", "entries beside each other")
        entry = _Entry(at, sequence, length, tail, descriptors, flushed, last)
        raw = self.piece(at, length)
        if found != crc32c(raw[8:], crc32c(bytes(4), crc32c(raw[:4]))):
            return None
        return entry if all(patch is not None for patch in self.patches(entry)) else None

    def patches(self, entry: _Entry) -> Iterator[Patch | None]:
        """What the entry's descriptors bring about; None for one that is not of this entry."""
        raw = self.piece(entry.at, entry.length)
        mark = struct.pack("<Q", entry.sequence)
        data_at = SECTOR * descriptor_sectors(entry.descriptors)
        for number in range(entry.descriptors):
            signature, trailing, leading, offset, sequence = _DESCRIPTOR.unpack_from(
                raw, _ENTRY.size + number * _DESCRIPTOR.size
            )
            if sequence != entry.sequence or signature not in (b"zero", b"desc"):
                yield None
                return
            if signature == b"zero":
                self._check(entry, number, offset, leading)
                yield Patch(offset, leading, None)
                continue
            sector = raw[data_at : data_at + SECTOR]
            data_at += SECTOR
            if (
                len(sector) < SECTOR
                or sector[:4] != b"data"
                or sector[-4:] != mark[:4]
                or sector[4:8] != mark[4:]
            ):
                yield None
                return
            self._check(entry, number, offset, SECTOR)
            yield Patch(
                offset, SECTOR, struct.pack("<Q", leading) + sector[8:-4] + struct.pack("<I", trailing)
            )

    def _check(self, entry: _Entry, number: int, offset: int, length: int) -> None:
        """The descriptor names whole sectors, outside of headers and log."""
        start, end = self.header.log_offset, self.header.log_offset + self.header.log_bytes
        aligned = offset % SECTOR == 0 == length % SECTOR
        outside = offset >= end or offset + length <= start
        if (
            not aligned
            or not outside
            or offset < REGION_TABLES_AT[0]
            or offset + length > VHDX_FILE_BYTES_MAX
        ):
            at = (entry.at + _ENTRY.size + number * _DESCRIPTOR.size) % len(self.raw)
            wanted = "whole sectors outside of headers and log"
            raise Malformed("a log entry's descriptor", start + at, f"{length} bytes at {offset}", wanted)

    def active(self) -> list[_Entry]:
        """The active sequence (2.3.3): of the valid sequences that with the highest number; empty where none is."""
        best: list[_Entry] = []
        start = 0
        while start < len(self.raw):
            run: list[_Entry] = []
            at, covered = start, 0
            while (entry := self.entry(at)) is not None and covered + entry.length <= len(self.raw):
                if run and entry.sequence != run[-1].sequence + 1:
                    break
                run.append(entry)
                covered += entry.length
                at = (at + entry.length) % len(self.raw)
            tail = next((place for place, each in enumerate(run) if each.at == run[-1].tail), None)
            if tail is None:
                start += SECTOR
                continue
            if not best or run[-1].sequence > best[-1].sequence:
                best = run[tail:]
            start += covered
        return best


def find(raw: bytes, header: Header, file_bytes: int) -> Replay:
    """What the log (its bytes are `raw`) brings about in a file of so many bytes.

    Nothing when it has no valid entry: then nothing that it was to protect was begun. Raises Malformed.
    """
    ring = _Ring(raw, header)
    active = ring.active()
    if not active:
        return Replay((), file_bytes)
    head = active[-1]
    if head.flushed > file_bytes:
        at = header.log_offset + head.at
        raise Malformed("the file's length", at + 48, f"{file_bytes} bytes", f"{head.flushed} or more")
    patches = tuple(patch for entry in active for patch in ring.patches(entry) if patch is not None)
    reach = max((head.last, *(patch.offset + patch.length for patch in patches)))
    most = min(file_bytes + VHDX_LOG_GROWTH_BYTES_MAX, VHDX_FILE_BYTES_MAX)
    if reach > most:
        at = header.log_offset + head.at
        raise Malformed("how far a log reaches", at + 56, str(reach), f"at most {most}")
    return Replay(patches, max(file_bytes, -(-reach // ALIGNMENT) * ALIGNMENT))


def descriptor_sectors(count: int) -> int:
    """Sectors that an entry's header and so many descriptors fill."""
    return 1 + max(0, -(-(count - _FIRST_DESCRIPTORS) // _SECTOR_DESCRIPTORS))


def encode_entry(
    log: uuid.UUID, sequence: int, sectors: Sequence[tuple[int, bytes]], flushed: int, last: int
) -> bytes:
    """An entry at the log's start, complete in itself: (file offset, 4 KiB) for each sector."""
    high, low = struct.pack("<I", sequence >> 32), struct.pack("<I", sequence & 0xFFFFFFFF)
    descriptors, data = b"", b""
    for offset, sector in sectors:
        leading, trailing = int.from_bytes(sector[:8], "little"), int.from_bytes(sector[-4:], "little")
        descriptors += _DESCRIPTOR.pack(b"desc", trailing, leading, offset, sequence)
        data += b"data" + high + sector[8:-4] + low
    start = SECTOR * descriptor_sectors(len(sectors))
    length = start + len(data)
    head = _ENTRY.pack(b"loge", 0, length, 0, sequence, len(sectors), 0, log.bytes_le, flushed, last)
    raw = (head + descriptors).ljust(start, b"\0") + data
    return raw[:4] + struct.pack("<I", crc32c(raw)) + raw[8:]
