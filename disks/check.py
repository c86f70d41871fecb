"""Whether an image's structure is sound: findings as data, and who claims which bytes of a file.

A format joins with one generator of findings in `catalogue.CHECKERS`; a structure so broken that nothing behind it can
be looked at may be raised as `Malformed` or `ImageDamaged` and becomes the last finding. A format without a checker is
checked by opening it.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Final

from disks.backing import Backing
from disks.disk import Format
from disks.errors import ImageDamaged, ParentUnusable
from disks.layout import Malformed
from drcore.limits import CHECK_FINDINGS_MAX


class Severity(Enum):
    """What a finding means for the content."""

    DAMAGE = "damage"
    """A structure contradicts itself, the file or the specification: content may be lost or wrong."""
    LEAK = "leak"
    """Room in the file that nothing refers to: nothing is lost but space."""
    NOTE = "note"
    """Nothing to repair, but worth knowing: a log that the next writer replays."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was noticed: which structure, at which byte of the file, what stands there and what should."""

    severity: Severity
    structure: str
    offset: int
    seen: str
    wanted: str
    path: str = ""
    """The file, where an image has several; else the image itself."""


Checker = Callable[[Backing, Format], Iterator[Finding]]
"""Looks at the structures of an open image (lent, not taken over) and tells what it finds; of guest data it
reads what is compressed."""


def damage(structure: str, offset: int, seen: str, wanted: str) -> Finding:
    """A finding of damage."""
    return Finding(Severity.DAMAGE, structure, offset, seen, wanted)


def note(structure: str, offset: int, seen: str, wanted: str) -> Finding:
    """A finding that needs no repair."""
    return Finding(Severity.NOTE, structure, offset, seen, wanted)


def collect(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings, at most `CHECK_FINDINGS_MAX`; a structure that stopped the checker is the last of them."""
    found: list[Finding] = []
    try:
        for finding in islice(findings, CHECK_FINDINGS_MAX):
            found.append(finding)  # one by one: what came before an error is kept
    except (Malformed, ImageDamaged) as error:
        found.append(damage(error.structure, error.offset, error.seen, error.wanted))
    except ParentUnusable as error:
        found.append(damage(f"the parent {error.parent}", 0, error.seen, error.wanted))
    if len(found) >= CHECK_FINDINGS_MAX:
        found.append(note("the check", 0, f"more than {CHECK_FINDINGS_MAX} findings", "to be told them all"))
    return tuple(found)


GAP_BYTES_MIN: Final = 4096
"""Smaller gaps are padding: structures begin on pages."""


class Claims:
    """Which structure says that it lies where in a file. Neighbouring claims of one structure are kept as one."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._owners = array("I")
        self._starts = array("Q")
        self._ends = array("Q")
        self._places = array("Q")

    def add(self, structure: str, start: int, length: int, named_at: int) -> None:
        """`structure` lies in `length` bytes from `start` on, as the bytes at `named_at` say. Below 2^64."""
        owner = self._numbers.setdefault(structure, len(self._names))
        if owner == len(self._names):
            self._names.append(structure)
        if self._owners and self._owners[-1] == owner and self._ends[-1] == start:
            self._ends[-1] += length
            return
        self._owners.append(owner)
        self._starts.append(start)
        self._ends.append(start + length)
        self._places.append(named_at)

    def findings(self, backing: Backing, room_from: int = 0) -> Iterator[Finding]:
        """What lies behind the end of the file or in one place with something else, and room that nobody claims.

        Below `room_from` the format may leave room without meaning it to be used.
        """
        order = sorted(range(len(self._starts)), key=self._starts.__getitem__)
        last = -1
        reached = 0
        for each in order:
            start, end = self._starts[each], self._ends[each]
            if end > backing.size:
                wanted = f"bytes within the file of {backing.size}"
                yield damage(self._names[self._owners[each]], self._places[each], f"{start} to {end}", wanted)
            if last >= 0 and start < reached:
                seen = f"bytes from {start} on, which {self._names[self._owners[last]]} has too"
                yield damage(self._names[self._owners[each]], self._places[each], seen, "a place of its own")
            if end > reached:
                reached, last = end, each
        yield from self._leaks(order, backing, room_from)

    def _leaks(self, order: list[int], backing: Backing, reached: int) -> Iterator[Finding]:
        first = total = places = 0
        for start, end in (*((self._starts[each], self._ends[each]) for each in order), (backing.size,) * 2):
            if min(start, backing.size) - reached >= GAP_BYTES_MIN:
                for at, length in backing.data_runs(reached, min(start, backing.size) - reached):
                    first = at if places == 0 else first
                    places += 1
                    total += length
            reached = max(reached, end)
        if places:
            seen = f"{total} bytes in {places} {'place' if places == 1 else 'places'}, this one the first"
            yield Finding(Severity.LEAK, "room that nothing refers to", first, seen, "none")
