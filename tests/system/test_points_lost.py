"""A retention volume that is damaged, lost or another one: what is left is told, and there is a way on."""

import random
import shutil
from pathlib import Path

import pytest

from tests.system.command import ended, homeward, judge, start
from tests.system.test_points import Home


@pytest.fixture
def home(tmp_path: Path, dice: random.Random) -> Home:
    return Home(tmp_path, dice, 3)


def segments(home: Home) -> list[Path]:
    return sorted((home.folder / "retention").rglob("*.undo"))


def the_list(home: Home) -> Path:
    (found,) = (home.folder / "retention").rglob("points")
    return found


def usable(home: Home, *words: str) -> dict[int, bool]:
    return {one["sequence"]: one["usable"] for one in home.points("list", *words)["points"]}  # type: ignore[attr-defined]


def points_from(home: Home) -> object:
    outcome = homeward("masttarget", "verify", "--config", home.config, "--json")
    assert outcome.code == 1
    return outcome.answer()["items"][0]["disks"][0]["points_from"]


def begin_anew(home: Home) -> None:
    """The documented way on: the history ends, the next cycle begins another one."""
    home.ask("drop", "--all").refused("HW-HOME-001")
    assert len(home.points("drop", "--all", "--plan")["plan"]) == 3  # type: ignore[arg-type]
    content = home.target.read_bytes()
    generation = home.points("drop", "--all", "--yes")["generation"]
    assert isinstance(generation, int)
    assert home.target.read_bytes() == content
    assert home.points("list")["points"] == []
    with pytest.raises(AssertionError, match="HW-MT-008"):
        home.cycle(generation - 1)
    home.cycle(generation)
    judge(home.target, "raw", home.source)
    assert usable(home, "--check") == {1: True, 2: True}
    assert homeward("masttarget", "verify", "--config", home.config, "--json").answer()["good"] is True
    home.points("rollback", 1)
    assert home.target.read_bytes() == content


def test_a_cut_tail_makes_every_point_unusable_and_a_new_history_begins(home: Home) -> None:
    with segments(home)[-1].open("r+b") as file:
        file.truncate(file.seek(0, 2) - 100)
    outcome = home.ask("list")
    told = outcome.answer()
    assert [one["reason"] for one in told["points"]] == ["HW-MT-030"] * 4
    assert [one["code"] for one in told["errors"]] == ["HW-MT-030"]
    assert "drop ITEM --all --yes" in outcome.stderr
    assert points_from(home) is None
    for number in (1, 4):
        home.ask("verify", number).refused("HW-MT-030")
    with pytest.raises(AssertionError, match="HW-MT-030"):
        home.cycle()
    begin_anew(home)


def test_damage_in_the_middle_is_marked_as_the_view_and_the_verifier_see_it(
    home: Home, dice: random.Random
) -> None:
    first = segments(home)[0]
    data = bytearray(first.read_bytes())
    data[dice.randrange(200, len(data))] ^= 1
    first.write_bytes(data)
    assert all(usable(home).values()), "a flipped bit in a record is not looked for"
    found = usable(home, "--check")
    assert [number for number, good in found.items() if good] == [
        number for number in found if number >= int(str(points_from(home)))
    ]
    for number, good in found.items():
        assert (home.ask("verify", number).code == 0) is good
    assert (
        "cannot be used (HW-MT-030)"
        in homeward("points", "list", home.item, "--check", "--config", home.config).stdout
    )
    first.unlink()
    assert usable(home) == found, "what is missing is seen without reading everything"


def test_a_segment_in_the_place_of_another_one_accuses_no_third(home: Home) -> None:
    one, two, three = segments(home)
    # What the wrong one says of the segment before it is more than that has.
    wrong, place = (two, three) if one.stat().st_size > two.stat().st_size else (three, two)
    place.write_bytes(wrong.read_bytes())
    for words in ((), ("--check",)):
        told = home.ask("list", *words).stderr
        assert (
            f"damaged in segment {int(place.stem)} at byte 0; found segment {int(wrong.stem)} in its place"
            in told
        )


@pytest.mark.parametrize("harm", ["flipped", "garbage", "gone", "cut"])
def test_a_damaged_list_of_points_is_made_anew_from_the_journals(
    home: Home, harm: str, dice: random.Random
) -> None:
    before = home.points("list")["points"]
    path = the_list(home)
    data = bytearray(path.read_bytes())
    second = data.index(b"\n", data.index(b"\n") + 1) + 1  # behind the first point, which is in no journal
    if harm == "gone":
        path.unlink()
    elif harm == "garbage":
        path.write_bytes(b"garbage")
    elif harm == "cut":
        path.write_bytes(data[: second + 40])
    else:
        data[dice.randrange(second, data.rindex(b"\n", 0, -1))] ^= 1
        path.write_bytes(data)
    verdict = homeward("masttarget", "verify", "--config", home.config, "--json")
    assert (verdict.code, harm) in ((1, harm), (0, "cut")), "never a silent list without points"
    outcome = home.ask("list")
    assert "made anew" in outcome.stderr
    after = outcome.answer()["points"]
    assert after == (before if harm in ("flipped", "cut") else before[1:])  # type: ignore[index]
    assert "made anew" not in home.ask("list").stderr
    assert homeward("masttarget", "verify", "--config", home.config, "--json").answer()["good"] is True
    home.points("verify", 2)
    home.cycle()
    home.points("rollback", 3)
    judge(home.target, "raw", home.state(1))


def test_a_lost_volume_is_told_and_a_new_history_begins(home: Home) -> None:
    shutil.rmtree(home.folder / "retention")
    (home.folder / "retention").mkdir()
    outcome = home.ask("list")
    assert [one["code"] for one in outcome.answer()["errors"]] == ["HW-MT-031"]
    with pytest.raises(AssertionError, match="HW-MT-031"):
        home.cycle()
    begin_anew(home)


def test_a_history_is_not_ended_under_somebody_who_reads_from_it(home: Home) -> None:
    socket = home.folder / "nbd.sock"
    process = start("points", "serve", home.item, "2", "--config", home.config, "--listen", socket, "--json")
    try:
        assert process.stdout is not None
        assert process.stdout.readline()
        home.ask("drop", "--all", "--yes").refused("HW-MT-040")
    finally:
        process.terminate()
        ended(process)
    assert home.points("verify", 2)["disks"]
