"""Tables whose grains lie one behind the other are seen as that, by ways that look at no entry by itself."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disks.table_layer import as_entries, in_a_row
from disks.vmdk_delta_layout import SE_ALLOCATED, SE_UNMAPPED, se_places

CHANGES = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 2**64 - 1)), max_size=2)


def slow(entries: "array[int]", step: int) -> bool:
    """The same, entry by entry."""
    return all(entries[at] == entries[at - 1] + step for at in range(1, len(entries)))


@pytest.mark.parametrize("code", ["I", "Q"])
@given(first=st.integers(0, 2**31), count=st.integers(1, 600), step=st.integers(1, 2**20), changes=CHANGES)
def test_a_row_is_what_rises_evenly(
    code: str, first: int, count: int, step: int, changes: list[tuple[int, int]]
) -> None:
    limit = 2 ** (8 * array(code).itemsize)
    entries = array(code, ((first + at * step) % limit for at in range(count)))
    for at, value in changes:
        entries[at % count] = value % limit
    assert in_a_row(entries, step) == slow(entries, step)
    assert list(as_entries(entries, step)) == list(entries)


@given(entries=st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=9), step=st.integers(1, 2**32))
def test_no_row_is_seen_where_places_borrow_from_each_other(entries: list[int], step: int) -> None:
    table = array("Q", entries)
    table[-1] = (table[0] + (len(table) - 1) * step) % 2**64  # what a quick look sees is right
    assert in_a_row(table, step) == slow(table, step)


def packed(number: int) -> int:
    return SE_ALLOCATED | (number & 0xFFF) << 48 | number >> 12


@given(first=st.integers(0, 2**40), count=st.integers(1, 4096), changes=CHANGES)
def test_places_of_an_sesparse_table_are_those_of_its_entries(
    first: int, count: int, changes: list[tuple[int, int]]
) -> None:
    numbers = list(range(first, first + count))
    table = array("Q", (packed(first + at) for at in range(count)))
    for at, value in changes:
        number = value >> 24
        numbers[at % count], table[at % count] = number, packed(number)
    places = [7 + 8 * number for number in numbers]
    assert list(se_places(table.tobytes(), 7)) == places
    table[count // 2] = SE_UNMAPPED
    places[count // 2] = 1
    assert list(se_places(table.tobytes(), 7)) == places
    table[count // 2] = 0
    places[count // 2] = 0
    assert list(se_places(table.tobytes(), 7)) == places
