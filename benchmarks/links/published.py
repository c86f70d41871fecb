"""What is published of the links: tables of docs/links.md, each between two marks, and their rows as data beside it."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.plots import Lines
from benchmarks.published import _table

DOCUMENT: Final = Path(__file__).parent.parent.parent / "docs" / "links.md"


@dataclass(frozen=True, slots=True)
class Table:
    """One table. The first `keys` columns name a row: what is measured again replaces its row, the others stay."""

    name: str
    head: tuple[str, ...]
    keys: int

    @property
    def data(self) -> Path:
        """The rows, as they stand in the document."""
        return DOCUMENT.with_name(f"links-{self.name}.csv")

    def rows(self) -> list[list[str]]:
        """What was measured so far."""
        if not self.data.exists():
            return []
        with self.data.open(newline="") as file:
            return list(csv.reader(file))[1:]

    def renew(self, row: list[str], order: list[list[str]]) -> None:
        """The row stands in data and document; rows follow `order`, and those whose key is not there are gone."""
        rows = {tuple(old[: self.keys]): old for old in self.rows()}
        rows[tuple(row[: self.keys])] = row
        kept = [rows[tuple(key)] for key in order if tuple(key) in rows]
        with self.data.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([list(self.head), *kept])
        begin, end = (f"<!-- {self.name}, written by make bench: {side} -->" for side in ("begin", "end"))
        before, rest = DOCUMENT.read_text().split(begin)
        _, after = rest.split(end)
        DOCUMENT.write_text(f"{before}{begin}\n\n{_table(self.head, kept)}\n\n{end}{after}")


LINES: Final = Table(
    "lines",
    (
        *("line", "congestion control", "lanes", "seconds"),
        *("homeward Mbit/s", "iperf3 Mbit/s", "ratio", "of the middle", "load"),
    ),
    2,
)
COMPRESSION: Final = Table(
    "compression",
    ("line", "content", "auto s (MiB)", "always s (MiB)", "never s (MiB)", "auto / better", "load"),
    2,
)
LANES: Final = Table("lanes", ("round trip ms", "lanes", "Mbit/s"), 2)


def draw_lanes(title: str) -> None:
    """The picture docs/links-lanes.svg shows the rows of `LANES`: a line for each number of lanes."""
    points: dict[int, list[tuple[float, float]]] = {}
    for round_trip, lanes, rate in LANES.rows():
        points.setdefault(int(lanes), []).append((float(round_trip), float(rate)))
    series = tuple(
        (f"{lanes} lane{'s' if lanes > 1 else ''}", tuple(sorted(found)))
        for lanes, found in sorted(points.items())
    )
    picture = Lines(title, "round trip, ms", "Mbit/s", series)
    LANES.data.with_suffix(".svg").write_text(picture.svg())
