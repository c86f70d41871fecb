"""What the measurements of links publish: rows that stay or are renewed, rates that leave start and end out."""

from pathlib import Path

import pytest

from benchmarks.links import published
from benchmarks.links.published import Table, draw_lanes
from benchmarks.links.transfer import Arrivals

ORDER = [["near", "a"], ["near", "b"], ["far", "a"]]


@pytest.fixture
def document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "links.md"
    marks = [
        f"<!-- {name}, written by make bench: {side} -->"
        for name in ("lines", "lanes")
        for side in ("begin", "end")
    ]
    path.write_text("\n".join(["before", marks[0], "old", marks[1], "between", *marks[2:], "after"]))
    monkeypatch.setattr(published, "DOCUMENT", path)
    return path


def test_a_row_that_is_measured_again_replaces_its_own_and_leaves_the_others(document: Path) -> None:
    table = Table("lines", ("where", "how", "rate"), 2)
    for row in (["far", "a", "1,000.0"], ["near", "a", "2"], ["gone", "a", "3"], ["far", "a", "4"]):
        table.renew(row, ORDER)
    assert table.rows() == [["near", "a", "2"], ["far", "a", "4"]]
    text = document.read_text()
    assert text.index("| near | a | 2 |") < text.index("| far | a | 4 |") < text.index("between")
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter")


def test_the_picture_has_a_line_for_each_number_of_lanes(document: Path) -> None:
    order = [[round_trip, lanes] for round_trip in ("5", "160") for lanes in ("1", "16")]
    for key, rate in zip(order, ("68.3", "84.3", "4.6", "26.8"), strict=True):
        published.LANES.renew([*key, rate], order)
    draw_lanes("Lanes")
    picture = document.with_name("links-lanes.svg").read_text()
    assert picture.count("<polyline") == 2
    assert ">1 lane<" in picture
    assert ">16 lanes<" in picture


def test_the_middle_leaves_out_a_slow_start_and_a_slow_end() -> None:
    """100 bytes at 1 a second, 800 at 100 and 100 at 1, after 7 that were there before."""
    points = [(float(at), 7 + at) for at in range(100)]
    points += [(100 + at / 10, 107 + at * 10) for at in range(81)]
    points += [(108.0 + at, 907 + at) for at in range(1, 101)]
    assert Arrivals(points).middle() == pytest.approx(100)
