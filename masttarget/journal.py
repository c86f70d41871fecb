"""What the master target keeps on stable storage while a cycle is open: the cycle's record and the applied record.

The cycle's record is a small JSON object, replaced as a whole. The applied record is append-only; each of its records
says that one frame's blocks are durable on the target, with their new digests:

    offset size
      0     4   length of the record behind these eight bytes
      4     4   CRC-32 of the same
      8     8   session
     16     2   stream
     18     2   zero
     20     4   runs
     24     8   sequence
     32    16   of each run: first block (u64), blocks (u64, top bit set when all of them are zero) …
          16 n  … followed, unless zero, by the blocks' digests

The file starts with "HWAL", version (u32) and the disk's UUID. A torn tail ends the record; what stands before it
holds.
"""

import json
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from drcore.record import Record
from drcore.units import DIGEST_BYTES
from masttarget.target import AppliedRun

APPLIED_MAGIC: Final = b"HWAL"
APPLIED_VERSION: Final = 1
_START: Final = struct.Struct("<4sI16s")
START_BYTES: Final = _START.size
_RECORD: Final = struct.Struct("<II")
_FRAME: Final = struct.Struct("<QHHIQ")
_RUN: Final = struct.Struct("<QQ")
_ZERO_RUN: Final = 1 << 63
UNDO_MARK_STREAM: Final = 0xFFFF
"""The stream of a record that is no frame: the retention journal was durable up to segment (in the place of the
session) and byte (of the sequence) before the frames of the same group were written."""
APPLIED_BYTES_MAX: Final = 1024 * 1024
"""Of one record: a data frame changes at most 4,096 blocks (RANGES_MAX), 32 bytes each when none are neighbours."""


class CleanClose(Record):
    """How the target's files looked when the master target closed them in order; trusted only if they still do."""

    files: tuple[tuple[int, int, int], ...]
    """(inode, size, modification time in ns) of each file of the image."""
    change_mark: str
    map_root: str
    """BLAKE3 of the kept digest map, hex."""


class CycleRecord(Record):
    """Where a disk's open cycle stands. All identifiers are hex."""

    item: str
    disk: str
    generation: int
    session: int
    source_bytes: int
    created: bool
    identity: dict[str, Any]
    published: str = ""
    closed: CleanClose | None = None
    cycle: int = 0
    """In which cycle of the item homeward created the target; 0 before that is known, and where no points are kept."""
    version: int = 2

    def encode(self) -> bytes:
        """The JSON text."""
        return json.dumps(self.as_dict(), indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> "CycleRecord":
        """The record in a JSON text. Errors: `ValueError` with a reason."""
        try:
            found = json.loads(data)
            if found.get("version") != 2:
                raise ValueError(f"a cycle record of version {found.get('version')!r}")
            closed = found.pop("closed")
            if closed is not None:
                closed["files"] = tuple((a, b, c) for a, b, c in closed["files"])
                closed = CleanClose(**closed)
            record = cls(**found, closed=closed)
            record._check()
        except (TypeError, KeyError, AttributeError, RecursionError, ValueError) as error:
            raise ValueError(f"a cycle record that cannot be read ({error})") from error
        return record

    def _check(self) -> None:
        """Every field is of its type, every number one that the protocol can carry. Errors: `ValueError`."""
        texts: list[object] = [self.item, self.disk, self.published, *self.identity.values()]
        numbers: list[object] = [self.generation, self.session, self.source_bytes, self.cycle]
        if self.closed is not None:
            texts += [self.closed.change_mark, self.closed.map_root]
            numbers += [number for file in self.closed.files for number in file]
        for text in texts:
            if type(text) is not str:
                raise ValueError(f"{text!r} where a text is due")
        for number in numbers:
            if type(number) is not int or not 0 <= number < 2**63:
                raise ValueError(f"{number!r} where a number is due")
        if type(self.created) is not bool or len(bytes.fromhex(self.published)) not in (0, 16):
            raise ValueError("a field that makes no sense")


class AppliedFrame(Record, often=True):
    """One frame of a stream and the blocks it changed."""

    session: int
    stream: int
    sequence: int
    runs: tuple[AppliedRun, ...]


def undo_mark(place: tuple[int, int]) -> AppliedFrame:
    """The record that says how far the retention journal is durable."""
    return AppliedFrame(place[0], UNDO_MARK_STREAM, place[1], ())


def encode_start(disk: bytes) -> bytes:
    """The first bytes of an applied record."""
    return _START.pack(APPLIED_MAGIC, APPLIED_VERSION, disk)


def encode_applied(frame: AppliedFrame) -> bytes:
    """One record."""
    parts = [_FRAME.pack(frame.session, frame.stream, 0, len(frame.runs), frame.sequence)]
    for run in frame.runs:
        zero = 0 if run.digests else _ZERO_RUN
        parts.append(_RUN.pack(run.first, run.count | zero) + run.digests)
    body = b"".join(parts)
    return _RECORD.pack(len(body), zlib.crc32(body)) + body


def decode_applied(read: Callable[[int], bytes], disk: bytes) -> Iterator[AppliedFrame]:
    """The whole records that `read` (as a file's) brings, up to a torn tail.

    Errors: `ValueError` when it is not this disk's applied record.
    """
    start = read(START_BYTES)
    if len(start) < START_BYTES:
        return  # torn before its first record: it says nothing
    if _START.unpack(start) != (APPLIED_MAGIC, APPLIED_VERSION, disk):
        raise ValueError("an applied record of another disk or version")
    while len(head := read(_RECORD.size)) == _RECORD.size:
        length, checksum = _RECORD.unpack(head)
        if not _FRAME.size <= length <= APPLIED_BYTES_MAX:
            return
        body = read(length)
        if len(body) != length or zlib.crc32(body) != checksum:
            return
        yield _decode_frame(body)


def _decode_frame(body: bytes) -> AppliedFrame:
    session, stream, _, count, sequence = _FRAME.unpack_from(body)
    runs, at = [], _FRAME.size
    for _ in range(count):
        first, blocks = _RUN.unpack_from(body, at)
        at += _RUN.size
        size = 0 if blocks & _ZERO_RUN else blocks * DIGEST_BYTES
        runs.append(AppliedRun(first, blocks & ~_ZERO_RUN, body[at : at + size]))
        at += size
    return AppliedFrame(session, stream, sequence, tuple(runs))


class Journal(Protocol):
    """A disk's journal directory. Errors of every verb: `JournalFailed` (HW-MT-013), `JournalDamaged` (HW-MT-012)."""

    @property
    def path(self) -> str:
        """Where it is, for people."""
        ...

    def load(self) -> CycleRecord | None:
        """The cycle's record; None when no cycle is open."""
        ...

    def store(self, record: CycleRecord) -> None:
        """The record is durable in place of the last one."""
        ...

    def start_applied(self, disk: bytes) -> None:
        """A new, empty applied record is durable in place of the last one."""
        ...

    def append_applied(self, frames: list[AppliedFrame]) -> None:
        """The frames' records are durable."""
        ...

    def read_applied(self, disk: bytes) -> Iterator[AppliedFrame]:
        """The records of the last run, up to a torn tail."""
        ...

    def keep_map(self, windows: Iterator[bytes]) -> str:
        """The digest map is durable; answers its BLAKE3 in hex."""
        ...

    def kept_map(self, root: str) -> Iterator[bytes] | None:
        """The digest map that was kept, in pieces, if it still has this BLAKE3."""
        ...

    def close(self) -> None:
        """Given back; what is durable stays."""
        ...

    def remove(self) -> None:
        """Nothing of the journal is left."""
        ...
