"""What the segments of a disk are worth: from which point on they lead back, and what is wrong with them.

A point needs every record of the cycles after it. Damage in a segment costs the points before the next segment that is
good: that one holds nothing older than the cycle in its header, and its first point is the one before that cycle's end.
"""

from typing import Final

from drcore.errors import HomewardError
from drcore.record import Changing, made
from masttarget.errors_retention import (
    ClockBackwards,
    RetentionFailed,
    SegmentDamaged,
    SegmentForeign,
    SegmentMissing,
)
from masttarget.segments import (
    HEADER_BYTES,
    NO_CHAIN,
    Head,
    Note,
    SegmentHeader,
    Segments,
    Walk,
    Wanted,
    checksum_of,
)

_DAMAGE: Final = (SegmentDamaged, SegmentMissing, SegmentForeign, ClockBackwards)


class Standing(Changing):
    """See the module. `points_from`: points of this sequence and newer can be used; None: none of them."""

    points_from: int | None = 0
    begins: int | None = None
    """The cycle that was open when the first segment was begun; None where there is none."""
    is_base: bool = False
    """Whether nothing ever stood before that segment."""
    forgotten: bool = False
    """Whether there was a history that was given up, and no other has begun."""
    given_up: HomewardError | None = None
    """What older points would need: segments that went with the points that needed them."""
    errors: list[HomewardError] = made(factory=list)
    notes: list[Note] = made(factory=list)

    def reason(self, sequence: int) -> HomewardError | None:
        """Why the point cannot be used; None where it can."""
        if self.points_from is not None and sequence >= self.points_from:
            return None
        return self.errors[-1] if self.errors else self.given_up


class Glance(Walk):
    """A walk that looks at the segments' headers and ends alone: what is missing, cut or of another disk is found.

    It costs two small reads for each segment; a flipped bit in a record is not seen.
    """

    def _segment(self, number: int, first: int, last: int, head: Head | None) -> None:
        data = self._segments.read(number, 0, HEADER_BYTES)
        try:
            header = SegmentHeader.decode(data)
        except ValueError as error:
            if number == last and (head is None or head.segment < number):
                return
            raise self._damaged(number, 0, str(error)) from error
        # The chain between segments is a matter of records, and not looked at.
        self.reached.segment, self.reached.offset = number, header.previous_end
        self.reached.chain = header.chain
        self._check_header(number, header, number == first)
        self.reached.chain = checksum_of(data)
        if number > first:  # what another segment says in its place accuses nobody
            self._reaches(number - 1, header.previous_end)
        if head is not None and head.segment == number:
            self._reaches(number, head.offset)

    def _reaches(self, number: int, offset: int) -> None:
        if offset > 0 and not self._segments.read(number, offset - 1, 1):
            raise self._damaged(number, 0, f"an end before byte {offset}, which was durable")


def standing(
    segments: Segments, item: bytes, disk: bytes, durable: tuple[int, int] = (0, 0), *, whole: bool
) -> Standing:
    """What the disk's segments are worth; `whole`: every byte was read, else only what `Glance` reads.

    `durable` as `UndoJournal.open`. Errors: `RetentionFailed` (HW-MT-037) of a volume that cannot be read.
    """
    found = Standing()
    try:
        head = segments.load_head()
    except RetentionFailed as error:
        return Standing(None, errors=[error])
    if durable > ((head.segment, head.offset) if head is not None else (0, 0)):
        head = Head(head.first if head is not None else 1, *durable)
    at = head.first if head is not None else 1
    numbers = [number for number in segments.numbers() if number >= at]
    if not numbers and (head is None or head.segment < at):
        found.forgotten = head is not None and head.first > 1
        return found
    last = max([*numbers[-1:], head.segment if head is not None else 0])
    _begin(found, segments, numbers)
    if found.begins is not None and not found.is_base and numbers[0] == at:
        found.points_from = found.begins
        found.given_up = SegmentMissing(path=segments.path, segment=at - 1, offset=0, first=at, last=last)
    while at <= last:
        walk = (Walk if whole else Glance)(segments, item, disk, Wanted())
        if found.points_from is None:
            found.points_from = _first_cycle(segments, at, item, disk)
        try:
            walk.run(at, head)
            at = last + 1
        except _DAMAGE as error:
            # A segment that is only older than it may be leads back from itself on; behind all others something lacks.
            at = error.segment + (not isinstance(error, ClockBackwards))
            if isinstance(error, SegmentMissing):  # told once of a run that is missing
                at = next((number for number in numbers if number >= at), last + 1)
            found.points_from = None
            found.errors.append(error)
        found.notes += walk.notes
    return found


def _begin(found: Standing, segments: Segments, numbers: list[int]) -> None:
    for number in numbers:
        try:
            header = SegmentHeader.decode(segments.read(number, 0, HEADER_BYTES))
        except (ValueError, FileNotFoundError):
            continue
        found.begins, found.is_base = header.first_cycle, header.chain == NO_CHAIN
        return


def _first_cycle(segments: Segments, number: int, item: bytes, disk: bytes) -> int | None:
    try:
        header = SegmentHeader.decode(segments.read(number, 0, HEADER_BYTES))
    except (ValueError, FileNotFoundError):
        return None
    mine = (header.item, header.disk, header.number) == (item, disk, number)
    return header.first_cycle if mine else None
