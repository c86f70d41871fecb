"""A second opinion on a retention journal: reads it from end to end, by the byte tables and not by the writer's code.

Only the hash is shared. What is wrong is told with segment and byte, and which points can still be gone back to.
"""

import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from _native import undo
from drcore.errors import HomewardError
from drcore.limits import KIB
from masttarget.errors_retention import (
    ClockBackwards,
    PointsDamaged,
    RetentionFailed,
    SegmentDamaged,
    SegmentForeign,
    SegmentMissing,
    VerifiedDamaged,
)

VERIFIED_HEADER: Final = struct.Struct("<16s 4sHH 16s16s QQ 16s32s II")
PAGE: Final = 4096
PAGE_BLOCKS: Final = 127
HEADER: Final = struct.Struct("<16s 4sHH 16s16s QQQ 16s QQ 16s")
RECORD: Final = struct.Struct("<16s16s QQ III BBH Q")
BLOCK: Final = 64 * KIB
ZEROES: Final = 2
NAME: Final = re.compile(r"^\d{8}\.undo$")
ITEM: Final = re.compile(r"^[0-9a-f]{32}$")


@dataclass(slots=True)
class DiskVerdict:
    """What one disk's segments are worth. `points_from`: points of this sequence and newer can be used; None: none."""

    disk: str
    segments: int = 0
    records: int = 0
    blocks: int = 0
    bytes: int = 0
    torn_bytes: int = 0
    points_from: int | None = 0
    verified_point: int = 0
    """The point whose content the file of verified digests holds; 0 where there is none, or it is being changed."""
    errors: list[HomewardError] = field(default_factory=list)


@dataclass(slots=True)
class Verdict:
    """What an item's retention is worth."""

    item: str
    points: int = 0
    errors: list[HomewardError] = field(default_factory=list)
    disks: list[DiskVerdict] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.errors and not any(disk.errors for disk in self.disks)


def verify(directory: Path) -> list[Verdict]:
    """The verdicts on all items below a retention directory (or on the one item whose directory it is).

    Errors: `RetentionFailed` (HW-MT-037) when it cannot be read at all.
    """
    try:
        if (directory / "points").is_file():
            return [_item(directory)]
        items = sorted(path for path in directory.iterdir() if path.is_dir() and ITEM.match(path.name))
        if not items:
            raise RetentionFailed(path=str(directory), reason="no list of points in it, nor below it")
        return [_item(path) for path in items]
    except OSError as error:
        raise RetentionFailed(path=str(directory), reason=error.strerror or str(error)) from error


def _item(directory: Path) -> Verdict:
    verdict = Verdict(directory.name)
    points: dict[int, dict[str, Any]] = {}
    listed = False
    try:
        for event in _lines(directory / "points"):
            listed = True
            if event.get("event") == "point":
                points[event["point"]["sequence"]] = event["point"]
            if event.get("event") == "drop":
                points = {one: points[one] for one in points if one not in event["sequences"]}
    except HomewardError as error:
        verdict.errors.append(error)
    verdict.points = len(points)
    if not listed and not verdict.errors and any(directory.glob("*/*.undo")):
        lost = PointsDamaged(
            path=str(directory / "points"), offset=0, reason="no good line in it, while disks have segments"
        )
        verdict.errors.append(lost)
    for path in sorted(directory.iterdir()):
        if path.is_dir() and ITEM.match(path.name):
            verdict.disks.append(_Disk(path, directory.name).verdict)
            if (path / "verified").exists():
                _verified(path, directory.name, points, verdict.disks[-1])
    return verdict


def _verified(directory: Path, item: str, points: dict[int, dict[str, Any]], verdict: DiskVerdict) -> None:
    """The verdict knows of the disk's file of verified digests: every page, and the root against the point's."""
    try:
        verdict.verified_point = _verified_point(directory / "verified", item, directory.name, points)
    except VerifiedDamaged as error:
        verdict.errors.append(error)


def _verified_point(path: Path, item: str, disk: str, points: dict[int, dict[str, Any]]) -> int:
    """The point that the file speaks of, 0 where pages are being changed. Errors: `VerifiedDamaged` (HW-MT-056)."""

    def damaged(offset: int, reason: str) -> VerifiedDamaged:
        return VerifiedDamaged(path=str(path), offset=offset, reason=reason)

    with path.open("rb") as file:
        head = file.read(PAGE)
        if head[:128] == bytes(len(head[:128])):
            return 0  # being made
        if len(head) < 128 or undo.checksum(head[16:128]) != head[:16]:
            raise damaged(0, "a header whose checksum is wrong")
        _, magic, version, length, found_item, found_disk, size, cycle, point, root, state, _ = (
            VERIFIED_HEADER.unpack_from(head)
        )
        if (magic, version, length) != (b"HWVF", 1, 128):
            raise damaged(0, f"a header of version {version}")
        if (found_item.hex(), found_disk.hex()) != (item, disk):
            raise damaged(0, f"digests of disk {found_disk.hex()}")
        if not state:
            return 0
        hasher, blocks = blake3(), -(-size // BLOCK)
        zeroes = [blake3(bytes(min(BLOCK, size - at))).digest() for at in (0, (blocks - 1) * BLOCK)]
        for number in range(-(-blocks // PAGE_BLOCKS)):
            page, count = file.read(PAGE), min(PAGE_BLOCKS, blocks - number * PAGE_BLOCKS)
            last = (number + 1) * PAGE_BLOCKS >= blocks
            if page == bytes(PAGE):
                hasher.update(zeroes[0] * (count - last) + zeroes[1] * last)
                continue
            if (
                len(page) < PAGE
                or undo.checksum(page[16:]) != page[:16]
                or page[16:24] != number.to_bytes(8, "little")
            ):
                raise damaged((number + 1) * PAGE, "a page whose checksum is wrong")
            hasher.update(page[32 : 32 + count * 32])
        if hasher.digest() != root:
            raise damaged(0, "digests that do not make the root in the header")
        known = points.get(cycle, {"id": point.hex(), "disks": []})
        roots = [one["content_root"] for one in known["disks"] if one["disk"] == disk]
        if known["id"] != point.hex() or roots not in ([], [root.hex()]):
            raise damaged(0, f"another content root than point {cycle} has")
        return int(cycle)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a list of points. Errors: `PointsDamaged`, `ClockBackwards`; a torn tail is none."""
    data = path.read_bytes() if path.exists() else b""
    chain, at, newest = b"0" * 32, 0, 0
    while at < len(data):
        line, _, rest = data[at:].partition(b"\n")
        told, body = line[:32], line[33:]
        if undo.checksum(chain + body).hex().encode() != told:
            if b"\n" in rest:
                raise PointsDamaged(path=str(path), offset=at, reason="a line whose checksum is wrong")
            return
        event = json.loads(body)
        if event["event"] == "point":
            time = event["point"]["time_ms"]
            if time < newest:
                raise ClockBackwards(
                    path=str(path),
                    segment=0,
                    offset=at,
                    found_time=f"{time} ms",
                    expected_time=f"{newest} ms",
                )
            newest = time
        yield event
        chain, at = told, at + len(line) + 1


class _Disk:
    """The walk over one disk's segments; goes on behind damage, with the next segment that can be read."""

    def __init__(self, directory: Path, item: str) -> None:
        self._path = directory
        self._item = item
        self.verdict = DiskVerdict(directory.name)
        self._end = (0, 0)
        self._chain = bytes(16)
        self._cycle = 0
        self._time = 0
        self._data_bytes = 0
        self._whole = True
        self._run()

    def _run(self) -> None:
        numbers = sorted(int(path.stem) for path in self._path.iterdir() if NAME.match(path.name))
        head = self._head()
        first = head[0] if head is not None else (numbers[0] if numbers else 1)
        last = max([*numbers[-1:], head[1] if head is not None else 0])
        for number in range(first, last + 1):
            if number not in numbers:
                missing = SegmentMissing(
                    path=str(self._path), segment=number, offset=self._end[1], first=first, last=last
                )
                self._wrong(missing)
                continue
            self.verdict.segments += 1
            data = (self._path / f"{number:08d}.undo").read_bytes()
            durable = head[2] if head is not None and head[1] == number else 0
            after = head is None or number > head[1]
            self._segment(number, data, number == first, number == last, durable, torn_header=after)
        if not self._whole:
            self.verdict.points_from = None

    def _head(self) -> tuple[int, int, int] | None:
        try:
            found = json.loads((self._path / "head").read_bytes())
            return int(found["first"]), int(found["segment"]), int(found["offset"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            self._wrong(RetentionFailed(path=str(self._path), reason="a head that cannot be read"))
            return None

    def _wrong(self, error: HomewardError) -> None:
        """Points from which one would have to read across this place are lost; what comes behind begins anew."""
        self.verdict.errors.append(error)
        self._whole = False

    def _segment(
        self, number: int, data: bytes, is_first: bool, is_last: bool, durable: int, *, torn_header: bool
    ) -> None:
        path = str(self._path)
        good = len(data) >= HEADER.size and undo.checksum(data[16 : HEADER.size]) == data[:16]
        if not good:
            if is_last and torn_header:
                self.verdict.torn_bytes += len(data)
            else:
                self._wrong(SegmentDamaged(path=path, segment=number, offset=0, reason="no good header"))
            return
        found = HEADER.unpack_from(data)
        magic, version, length, item, disk, told, cycle, end, chain, created, self._data_bytes = found[1:12]
        if (magic, version, length, told) != (b"HWRJ", 2, HEADER.size, number):
            self._wrong(
                SegmentDamaged(path=path, segment=number, offset=0, reason="another segment's header")
            )
            return
        if (item.hex(), disk.hex()) != (self._item, self.verdict.disk):
            foreign = SegmentForeign(
                path=path, segment=number, offset=0, found_item=item.hex(), found_disk=disk.hex(),
                item=self._item, disk=self.verdict.disk,
            )  # fmt: skip
            self._wrong(foreign)
            return
        if self._whole and not is_first and (end, chain) != (self._end[1], self._chain):
            reason = f"the next segment follows byte {end}"
            self._wrong(SegmentDamaged(path=path, segment=number - 1, offset=self._end[1], reason=reason))
        if created < self._time:
            wrong = ClockBackwards(
                path=path,
                segment=number,
                offset=0,
                found_time=f"{created} ms",
                expected_time=f"{self._time} ms",
            )
            self._wrong(wrong)
        if not self._whole:
            self.verdict.points_from, self._whole = cycle, True
        self._time, self._cycle = max(created, self._time), cycle
        self._records(number, data, is_last, durable)

    def _records(self, number: int, data: bytes, is_last: bool, durable: int) -> None:
        at, chain, told = HEADER.size, data[:16], durable
        block = memoryview(bytearray(BLOCK))
        while at < len(data):
            reason, following, record_durable = self._record(data, at, chain, block)
            if reason:
                self._stop(number, data, at, reason, is_last, told)
                break
            told = max(told, record_durable)
            chain, at = data[at : at + 16], following
        else:
            if at < durable:
                reason = f"an end before byte {durable}"
                self._wrong(SegmentDamaged(path=str(self._path), segment=number, offset=at, reason=reason))
        self._end, self._chain = (number, at), chain
        self.verdict.bytes += at

    def _record(self, data: bytes, at: int, chain: bytes, block: memoryview) -> tuple[str, int, int]:
        if len(data) - at < RECORD.size:
            return "a record that is cut", 0, 0
        told, before, cycle, first, blocks, stored, length, kind, codec, sectors, durable = (
            RECORD.unpack_from(data, at)
        )
        following = at + RECORD.size + stored
        if following > len(data):
            return "a record that is cut", 0, 0
        if undo.checksum(data[at + 16 : following]) != told:
            return "a record whose checksum is wrong", 0, 0
        if before != chain:
            return "a record that does not follow the one before it", 0, 0
        if cycle < self._cycle:
            return f"cycle {cycle} after cycle {self._cycle}", 0, 0
        self._cycle = cycle
        if kind == 1:
            try:
                undo.content(data, at, block)
            except ValueError as error:
                return str(error), 0, 0
            size = min(self._data_bytes - (first + blocks - 1) * BLOCK, BLOCK)
            if size <= 0:
                return f"block {first + blocks - 1} of a disk of {self._data_bytes} bytes", 0, 0
            if sectors and size < BLOCK:
                return f"some sectors of block {first}, which is short", 0, 0
            if not sectors and codec != ZEROES and length != size:
                return f"{length} bytes of block {first}, which has {size}", 0, 0
            self.verdict.records += 1
            self.verdict.blocks += blocks
        return "", following, durable

    def _stop(self, number: int, data: bytes, at: int, reason: str, is_last: bool, durable: int) -> None:
        """The place is a torn tail, unless something says that it was durable once."""
        told = durable
        # The next good record is no farther than the longest one; what it and those behind it know is enough.
        end = min(at + 2 * (BLOCK + RECORD.size), len(data) - RECORD.size + 1) if is_last else 0
        for start in range(at + 1, end):
            found = RECORD.unpack_from(data, start)
            stop = start + RECORD.size + found[5]
            plausible = found[5] <= BLOCK and stop <= len(data) and found[7] in (1, 2)
            if plausible and undo.checksum(data[start + 16 : stop]) == found[0]:
                told = max(told, found[10])
        if told > at:
            self._wrong(SegmentDamaged(path=str(self._path), segment=number, offset=at, reason=reason))
        elif is_last:
            self.verdict.torn_bytes += len(data) - at
