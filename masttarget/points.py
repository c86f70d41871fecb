"""The recovery points of one item: a list that only grows at its end, and finding in it.

A point is the state at the end of a cycle, of every disk of the item: its sequence is the cycle's number. The list is a
text file: each line is the checksum of the line before and of its own words (XXH3-128, 32 hexadecimal digits), a
space, and a JSON object. Byte tables: docs/journal.md.
"""

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final, Protocol

from _native import undo
from drcore.limits import POINTS_LINE_BYTES_MAX
from drcore.record import Record
from masttarget.errors_retention import ClockBackwards, PointsDamaged, PointUnknown

VERSION: Final = 2
_CHECKSUM_CHARACTERS: Final = 32
_NO_CHAIN: Final = "0" * _CHECKSUM_CHARACTERS
_DIGITS_MAX: Final = 20
"""Of a sequence that somebody names: those of 2^64."""


class Kind(Enum):
    """What a point's content is good for; the values are what users see."""

    AS_FOUND = "as-found"
    """What the target held when homeward adopted it: nobody knows how consistent."""
    CRASH_CONSISTENT = "crash-consistent"
    APP_CONSISTENT = "app-consistent"
    BEFORE_ROLLBACK = "before-rollback"
    """What the target held when somebody went back to another point; perhaps half a cycle."""


GOOD: Final = (Kind.CRASH_CONSISTENT, Kind.APP_CONSISTENT)
"""Kinds that a machine can be started from."""


class PointDisk(Record):
    """A disk in a point. Roots are hex, empty where nobody computed them."""

    disk: str
    data_bytes: int
    root: str = ""
    content_root: str = ""
    verified: str = ""
    """What was read again from the medium for `content_root`: `written` (since the point before) or `full`."""


class Point(Record):
    """A recovery point. `sequence` is also the number of the cycle that ended with it; `time_ms` since 1970, UTC."""

    id: str
    sequence: int
    time_ms: int
    kind: Kind
    disks: tuple[PointDisk, ...]
    base_cycle: int = -1
    """Of a point that a rollback made anew: the point whose content it has; else -1."""

    @property
    def time(self) -> str:
        """RFC 3339, UTC."""
        return datetime.fromtimestamp(self.time_ms / 1000, UTC).isoformat(timespec="milliseconds")

    @property
    def roots(self) -> tuple[tuple[str, int, str], ...]:
        """What the disks of the point hold: of each its bytes and its root."""
        return tuple((one.disk, one.data_bytes, one.root) for one in self.disks)

    def disk(self, disk: str) -> PointDisk | None:
        """The disk in this point."""
        return next((one for one in self.disks if one.disk == disk), None)

    def encode(self) -> dict[str, Any]:
        """As it goes into the list."""
        return {**self.as_dict(), "kind": self.kind.value}

    @classmethod
    def decode(cls, found: dict[str, Any]) -> "Point":
        """The point in a line. Errors: `ValueError`, `KeyError`, `TypeError`."""
        disks = tuple(PointDisk(**disk) for disk in found["disks"])
        point = cls(**{**found, "kind": Kind(found["kind"]), "disks": disks})
        if type(point.sequence) is not int or type(point.time_ms) is not int:
            raise ValueError("a number that is none")
        return point


class PointsFile(Protocol):
    """Where the list is. Errors: `RetentionFailed` (HW-MT-037)."""

    @property
    def path(self) -> str:
        """Where it is, for people."""
        ...

    def load(self) -> bytes:
        """All of it; empty before the first line."""
        ...

    def mark(self) -> tuple[int, int]:
        """Changes when somebody replaces the file, or makes it longer."""
        ...

    def set_aside(self) -> str:
        """A copy of what is there now is kept beside it; answers where."""
        ...

    def append(self, data: bytes, at: int) -> None:
        """The bytes are durable at `at`, the end of what is good; what stood behind it is gone."""
        ...

    def replace(self, data: bytes) -> None:
        """All of it is `data`, durably, or what it was before."""
        ...


class Points:
    """An item's points. One owner; `load` first."""

    def __init__(self, file: PointsFile, item: str) -> None:
        self._file = file
        self._item = item
        self._points: list[Point] = []
        self._times: list[int] = []
        self._chain = _NO_CHAIN
        self._end = 0
        self._lines = 0
        self._mark = (0, 0)
        self.last_sequence = 0
        self.last_time_ms = 0
        self.rollback: dict[str, Any] | None = None
        """What a rollback that is not done yet goes back to."""

    def __len__(self) -> int:
        return len(self._points)

    def __iter__(self) -> Iterator[Point]:
        return iter(self._points)

    @property
    def latest(self) -> Point | None:
        """The newest point."""
        return self._points[-1] if self._points else None

    @property
    def oldest(self) -> Point | None:
        """The oldest point that is still there."""
        return self._points[0] if self._points else None

    # Reading

    @property
    def written(self) -> bool:
        """Whether there is a list: a good line at least."""
        return self._end > 0

    @property
    def unreadable(self) -> bool:
        """Whether there is a file, and not one good line in it."""
        return self._end == 0 and self._mark[1] > 0

    def refresh(self) -> bool:
        """The list is the file's, whoever wrote to it since; answers whether somebody did. Errors: as `load`."""
        if self._file.mark() == self._mark:
            return False
        self._keep([])
        self._chain, self._end, self._lines = _NO_CHAIN, 0, 0
        self.last_sequence = self.last_time_ms = 0
        self.rollback = None
        self.load()
        return True

    def load(self) -> None:
        """The list is the file's, up to a torn tail. Errors: `PointsDamaged`, `ClockBackwards`, `RetentionFailed`.

        After an error the points before the damage are there and can be used.
        """
        self._mark = self._file.mark()
        data = self._file.load()
        while self._end < len(data):
            stop = data.find(b"\n", self._end, self._end + POINTS_LINE_BYTES_MAX)
            line = data[self._end : stop] if stop >= 0 else b""
            found = self._line(line)
            if found is None:
                if b"\n" in data[self._end + len(line) + 1 :]:
                    raise PointsDamaged(
                        path=self._file.path, offset=self._end, reason="a line whose checksum is wrong"
                    )
                return  # torn while it was written: it was never answered
            try:
                self._take(found)
            except (ValueError, KeyError, TypeError) as error:
                reason = f"a line that makes no sense ({error})"
                raise PointsDamaged(path=self._file.path, offset=self._end, reason=reason) from error
            self._chain = line[:_CHECKSUM_CHARACTERS].decode()
            self._end = stop + 1
            self._lines += 1

    def _line(self, line: bytes) -> dict[str, Any] | None:
        told, body = line[:_CHECKSUM_CHARACTERS], line[_CHECKSUM_CHARACTERS + 1 :]
        if undo.checksum(self._chain.encode() + body).hex().encode() != told:
            return None
        found = json.loads(body)
        return found if isinstance(found, dict) else None

    def _take(self, found: dict[str, Any]) -> None:
        match found["event"]:
            case "list":
                if found["version"] != VERSION or found["item"] != self._item:
                    raise ValueError(f"the list of item {found['item']}, version {found['version']}")
                self.last_sequence, self.last_time_ms = found["last_sequence"], found["last_time_ms"]
            case "point":
                point = Point.decode(found["point"])
                if point.time_ms < self.last_time_ms:
                    raise ClockBackwards(
                        path=self._file.path, segment=0, offset=self._end,
                        found_time=f"{point.time_ms} ms", expected_time=f"{self.last_time_ms} ms",
                    )  # fmt: skip
                if point.sequence <= self.last_sequence and self.last_sequence:
                    raise ValueError(f"point {point.sequence} after {self.last_sequence}")
                self._add(point)
            case "drop":
                gone = set(found["sequences"])
                self._keep([point for point in self._points if point.sequence not in gone])
            case "rollback":
                self.rollback = found if found["state"] == "begun" else None
            case other:
                raise ValueError(f"{other!r} is no event")

    def _add(self, point: Point) -> None:
        self._points.append(point)
        self._times.append(point.time_ms)
        self.last_sequence, self.last_time_ms = point.sequence, point.time_ms

    def _keep(self, points: list[Point]) -> None:
        self._points = points
        self._times = [point.time_ms for point in points]

    # Writing

    def add(self, point: Point) -> None:
        """The point is durable; it is the newest."""
        self._write({"event": "point", "point": point.encode()})
        self._add(point)

    def drop(self, sequences: Iterable[int], reason: str) -> None:
        """The points are gone, durably; what they needed may be deleted."""
        gone = set(sequences)
        self._write({"event": "drop", "sequences": sorted(gone), "reason": reason})
        self._keep([point for point in self._points if point.sequence not in gone])
        if self._lines > 4096 and self._lines > 4 * len(self._points):
            self._rewrite()

    def note_rollback(self, state: str, **facts: Any) -> None:
        """It is durable that a rollback has begun, or is done."""
        event = {"event": "rollback", "state": state, **facts}
        self._write(event)
        self.rollback = event if state == "begun" else None

    def make_anew(self, points: list[Point], last_sequence: int) -> str:
        """The list holds these points, ascending, and nothing else; answers where the old file is kept."""
        kept = self._file.set_aside()
        self._keep(points)
        self.last_sequence = max(last_sequence, *(point.sequence for point in points), 0)
        self.last_time_ms = points[-1].time_ms if points else self.last_time_ms
        self._rewrite()
        return kept

    def _write(self, event: dict[str, Any]) -> None:
        lines = [event] if self._end else [self._first(0, 0), event]
        chain, data = self._chain, b""
        for one in lines:
            body = json.dumps(one, separators=(",", ":")).encode()
            chain_of = undo.checksum(chain.encode() + body).hex()
            data += chain_of.encode() + b" " + body + b"\n"
            chain = chain_of
        self._file.append(data, self._end)
        self._chain, self._end = chain, self._end + len(data)
        self._lines += len(lines)
        self._mark = self._file.mark()

    def _first(self, sequence: int, time_ms: int) -> dict[str, Any]:
        return {
            "event": "list",
            "version": VERSION,
            "item": self._item,
            "last_sequence": sequence,
            "last_time_ms": time_ms,
        }

    def _rewrite(self) -> None:
        """The file holds what still counts, and nothing else."""
        oldest = self._points[0] if self._points else None
        before = oldest.sequence - 1 if oldest else self.last_sequence
        events = [self._first(before, oldest.time_ms if oldest else self.last_time_ms)]
        events += [{"event": "point", "point": point.encode()} for point in self._points]
        if self._points and self._points[-1].sequence < self.last_sequence:
            # The newest were given up, and their numbers are not for another point.
            events.append(self._first(self.last_sequence, self.last_time_ms))
        if self.rollback is not None:
            events.append(self.rollback)
        chain, data = _NO_CHAIN, b""
        for event in events:
            body = json.dumps(event, separators=(",", ":")).encode()
            chain = undo.checksum(chain.encode() + body).hex()
            data += chain.encode() + b" " + body + b"\n"
        self._file.replace(data)
        self._chain, self._end, self._lines = chain, len(data), len(events)
        self._mark = self._file.mark()

    # Finding

    def at(self, time_ms: int) -> Point | None:
        """The newest point that is not younger than `time_ms`; O(log n)."""
        index = bisect_right(self._times, time_ms)
        return self._points[index - 1] if index else None

    def by_sequence(self, sequence: int) -> Point | None:
        """The point of that sequence; O(log n)."""
        index = bisect_right(self._points, sequence, key=lambda point: point.sequence) - 1
        found = self._points[index] if index >= 0 else None
        return found if found is not None and found.sequence == sequence else None

    def choose(self, words: str) -> Point:
        """The point that somebody means.

        `latest` and `latest-processed` (every point here is processed when it is published: the newest good one),
        `latest-app-consistent`, a sequence, an id or its beginning, or a time (RFC 3339): the newest good point not
        younger. Errors: `PointUnknown` (HW-MT-035).
        """
        found = self._choose(words)
        if found is None:
            raise PointUnknown(item=self._item, point=words)
        return found

    def _choose(self, words: str) -> Point | None:
        if words in ("latest", "latest-processed"):
            return self._newest(GOOD, len(self._points))
        if words == "latest-app-consistent":
            return self._newest((Kind.APP_CONSISTENT,), len(self._points))
        number = words.isdecimal() and len(words) <= _DIGITS_MAX
        if number and (found := self.by_sequence(int(words))) is not None:
            return found
        named = [point for point in self._points if len(words) >= 4 and point.id.startswith(words.lower())]
        if len(named) == 1:
            return named[0]
        try:
            time = datetime.fromisoformat(words)
        except ValueError:
            return None
        moment = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
        return self._newest(GOOD, bisect_right(self._times, int(moment.timestamp() * 1000)))

    def _newest(self, kinds: tuple[Kind, ...], end: int) -> Point | None:
        for index in range(end - 1, -1, -1):
            if self._points[index].kind in kinds:
                return self._points[index]
        return None
