"""Records behave as frozen, slotted dataclasses of the same fields do; what changes as those that are not frozen."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import pytest

from drcore.record import Changing, Record, made


class Pair(Record):
    """Two fields, the second with a default."""

    first: int
    second: str = "none"
    """Said of a field."""

    def doubled(self) -> int:
        """Twice the first."""
        return 2 * self.first


class Often(Record, often=True):
    """As `Pair`, with an `__init__` of its own."""

    first: int
    second: str = "none"


class Nothing(Record):
    """No fields."""


class Twin(Record):
    """As `Pair`, and not equal to it."""

    first: int
    second: str = "none"


@dataclass(frozen=True, slots=True)
class Model:
    first: int
    second: str = "none"


def test_fields_come_by_place_by_name_or_by_default() -> None:
    assert (
        Pair(1) == Pair(1, "none") == Pair(first=1) == Pair(1, second="none") == Pair(second="none", first=1)
    )
    assert (Pair(3, "x").first, Pair(3, "x").second, Pair(3).second, Pair(3).doubled()) == (3, "x", "none", 6)


@pytest.mark.parametrize(
    ("values", "named"),
    [((), {}), ((1, "a", 2), {}), ((1,), {"third": 1}), ((1,), {"first": 1}), ((), {"second": "a"})],
)
def test_wrong_fields_are_refused_as_by_a_dataclass(values: tuple[Any, ...], named: dict[str, Any]) -> None:
    for kind in (Pair, Often, Model):
        with pytest.raises(TypeError):
            kind(*values, **named)


class OftenChanging(Changing, often=True):
    """Both kinds of defaults."""

    names: list[str] = made(factory=list)
    count: int = 3


def test_those_of_which_many_are_made_are_made_alike() -> None:
    one = Often(1)
    assert one == Often(1, "none") == Often(first=1) == Often(second="none", first=1)
    assert (Often(3, "x").first, Often(3, "x").second, one != Often(2)) == (3, "x", True)
    assert one.but(second="y") == Often(1, "y")
    with pytest.raises(AttributeError, match="does not change"):
        one.first = 2  # type: ignore[misc]
    assert not hasattr(one, "__dict__")
    match one:
        case Often(first, second):
            assert (first, second) == (1, "none")
    left, right = OftenChanging(), OftenChanging()
    left.names.append("a")
    left.count += 1
    assert (left, right) == (OftenChanging(["a"], 4), OftenChanging([], 3))


def test_a_record_does_not_change() -> None:
    one = Pair(1)
    with pytest.raises(AttributeError, match="does not change"):
        one.first = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match="does not change"):
        one.third = 2
    with pytest.raises(AttributeError, match="does not change"):
        del one.first
    assert one == Pair(1)
    assert not hasattr(one, "__dict__")


def test_equal_is_who_is_of_one_class_with_equal_fields() -> None:
    assert Pair(1) != Pair(2)
    assert Pair(1) != Twin(1)
    assert Pair(1) != (1, "none")
    assert Nothing() == Nothing()
    assert len({Pair(1), Pair(1, "none"), Twin(1), Pair(2)}) == 3


def test_a_record_without_fields_is_true() -> None:
    assert Nothing()


def test_records_are_matched_by_place() -> None:
    match Pair(1, "a"):
        case Pair(first, second):
            assert (first, second) == (1, "a")
        case _:
            raise AssertionError("not matched")


def test_a_record_shows_its_fields() -> None:
    assert repr(Pair(1)) == "Pair(first=1, second='none')" == repr(Model(1)).replace("Model", "Pair")
    assert repr(Nothing()) == "Nothing()"


class Count(Changing):
    """Fields that are set anew, one of them with a default of its own for each."""

    number: int = 0
    seen: list[int] = made(factory=list)


class Outer(Record):
    """Records within a record."""

    inner: Pair
    many: tuple[Pair, ...] = ()


def test_what_changes_is_set_anew_and_is_equal_by_its_fields() -> None:
    one, other = Count(), Count()
    assert one == other
    one.number += 2
    one.seen.append(7)
    assert (one, other) == (Count(2, [7]), Count(seen=[]))
    assert not hasattr(one, "__dict__")
    with pytest.raises(AttributeError):
        one.third = 3  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)


def test_as_another_with_some_fields_instead() -> None:
    assert Pair(1, "a").but(second="b") == Pair(1, "b")
    assert Count(1, [2]).but(number=3) == Count(3, [2])
    with pytest.raises(TypeError):
        Pair(1).but(third=1)


def test_fields_by_name_also_of_records_within() -> None:
    assert Outer(Pair(1), (Pair(2, "a"),)).as_dict() == {
        "inner": {"first": 1, "second": "none"},
        "many": ({"first": 2, "second": "a"},),
    }


def test_the_standard_library_takes_them_for_dataclasses() -> None:
    assert replace(Pair(1), first=2) == Pair(2)
    assert asdict(Outer(Pair(1))) == Outer(Pair(1)).as_dict()
    assert [field.name for field in fields(Count(1))] == ["number", "seen"]
    assert [field.name for field in fields(Pair)] == ["first", "second"]
