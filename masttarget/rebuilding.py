"""Making an item's list of points anew from what it is derived from: the notes in the disks' journals.

Each point stands as a note in every journal that is used, before the list has it. What the notes do not have are points
from before the first record (`as-found`), and what was dropped: the good beginning of the old list tells of those.
"""

from collections.abc import Mapping

from masttarget.points import Point, Points
from masttarget.ports import Log
from masttarget.segments import Segments, headers
from masttarget.standing import Standing, standing


def lacking(points: Points, journals: Mapping[bytes, Segments]) -> str:
    """What the list lacks and the disks' journals prove to have been in it; empty: nothing. Costs a small read each."""
    if points.unreadable:
        return "no good line in it"
    for disk, segments in journals.items():
        numbers = segments.numbers()
        if numbers and not points.written:
            return f"no list, while disk {disk.hex()} has {len(numbers)} segments"
        for _, header in headers(segments, numbers[-1:]):
            if header.first_cycle > points.last_sequence + 1:
                return f"a list that ends before cycle {header.first_cycle} of disk {disk.hex()}"
    return ""


def rebuild(points: Points, item: bytes, journals: Mapping[bytes, Segments], reason: str, log: Log) -> None:
    """The list holds every point that the journals and its own good beginning tell of; the old file is kept aside.

    Reads the journals from end to end. Errors: `RetentionFailed` (HW-MT-037), `RetentionFull` (036).
    """
    standings = {
        disk.hex(): standing(segments, item, disk, whole=True) for disk, segments in journals.items()
    }
    found = {point.sequence: point for point in points if _leads(point, standings, listed=True)}
    ended = points.last_sequence
    for one in standings.values():
        for note in one.notes:
            if note.content.get("event") == "point":
                point = Point.decode(note.content["point"])
                if _leads(point, standings, listed=False):
                    found.setdefault(point.sequence, point)
        ended = max(ended, *(note.cycle for note in one.notes), 0)
    kept = points.make_anew([found[sequence] for sequence in sorted(found)], ended)
    log(
        "the list of points was made anew from the journals",
        item=item.hex(),
        reason=reason,
        points=len(points),
        kept=kept,
    )


def _leads(point: Point, standings: Mapping[str, Standing], *, listed: bool) -> bool:
    """Whether the journals of the point's disks begin early enough for it.

    The journal of a history that begins with cycle n leads to point n - 1, too; but after an older history was given up
    the point before may be one of that: only the list tells.
    """
    for disk in point.disks:
        one = standings.get(disk.disk)
        if one is None or (one.begins is None and not one.forgotten):
            continue  # nothing of it was ever overwritten
        if one.begins is None or point.sequence < one.begins - (listed and one.is_base):
            return False
    return True
