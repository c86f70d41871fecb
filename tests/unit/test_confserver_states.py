"""The table of states: what is in it is drawn, what is not is refused."""

import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confserver.errors import TransitionIllegal
from confserver.states import AT_WORK, TRANSITIONS, Event, State, after
from confserver.states_svg import svg

STARTS = (Event.REPROTECT, Event.REPLICATE, Event.FAILBACK, Event.COMMIT, Event.CANCEL)


@given(st.lists(st.sampled_from(Event), max_size=40))
def test_whatever_happens_an_item_is_where_the_table_says(events: list[Event]) -> None:
    state = State.FAILED_OVER
    before = state
    for event in events:
        if (state, event) not in TRANSITIONS:
            with pytest.raises(TransitionIllegal):
                after(state, event)
            continue
        following = after(state, event)
        assert TRANSITIONS[(state, event)] is following
        if event in STARTS:
            assert following in AT_WORK
            before = state
        if event is Event.UNDONE:
            assert following is before, "a job that was undone leaves the state before it"
        state = following


@pytest.mark.parametrize("state", sorted(AT_WORK, key=str))
def test_a_state_with_a_job_is_left_only_by_its_end(state: State) -> None:
    assert {event for before, event in TRANSITIONS if before is state} == {Event.DONE, Event.UNDONE}


def test_every_state_can_be_reached() -> None:
    assert set(TRANSITIONS.values()) == set(State)


def test_nothing_leads_back_from_a_completed_migration() -> None:
    assert not [event for before, event in TRANSITIONS if before is State.MIGRATED]


@pytest.mark.parametrize(
    ("state", "event", "possible"),
    [
        (State.FAILED_OVER, Event.FAILBACK, "homeward reprotect ITEM"),
        (
            State.PROTECTED,
            Event.COMMIT,
            "homeward replicate ITEM, homeward failback ITEM, homeward cancel ITEM",
        ),
        (State.FAILED_BACK, Event.REPROTECT, "homeward commit ITEM, homeward cancel ITEM"),
        (State.MIGRATED, Event.REPROTECT, "nothing"),
        (State.COMMITTED, Event.FAILBACK, "nothing, until the machine has failed over"),
        (State.COMMITTING, Event.COMMIT, "homeward jobs watch ITEM"),
    ],
)
def test_what_is_refused_names_the_commands_that_are_possible(
    state: State, event: Event, possible: str
) -> None:
    with pytest.raises(TransitionIllegal) as caught:
        after(state, event)
    assert f"possible now: {possible}" in caught.value.sentence("remedy")


def test_the_picture_shows_every_state_and_transition() -> None:
    picture = ElementTree.fromstring(svg())
    titles = {node.text for node in picture.iter() if node.tag.endswith("}title")}
    words = {node.text for node in picture.iter() if node.tag.endswith("}text")}
    assert {state.value for state in State} <= words
    for (before, event), following in TRANSITIONS.items():
        assert f"{before.value}, {event.value}: {following.value}" in titles
