"""The one table of an item's states: which event leads from where to where. What is not in it is illegal.

A verb's first event leads into a state that lasts while its job runs; DONE or UNDONE leads out of it. UNDONE leads to
where the verb was started, so a failed job leaves an item as it was.
"""

from enum import Enum
from types import MappingProxyType
from typing import Final

from confserver.errors import TransitionIllegal


class State(Enum):
    """Where an item stands. The values are the words that users and scripts see."""

    FAILED_OVER = "failed-over"
    """Runs in Azure, unprotected (R008)."""
    REPLICATION_STOPPED = "replication-stopped"
    """A forward failover was cancelled on its way: runs at home, replicates nowhere (R183, R220)."""
    MIGRATED = "migrated"
    """'Complete migration' was run: there is no way back (R002)."""
    REPROTECTING = "reprotecting"
    PROTECTED = "protected"
    """Runs in Azure and replicates home."""
    REPLICATING = "replicating"
    """Protected, and a cycle is under way."""
    FAILING_BACK = "failing-back"
    FAILED_BACK = "failed-back"
    """Runs at home on a snapshot; not committed."""
    COMMITTING = "committing"
    COMMITTED = "committed"
    """Home for good."""
    CANCELLING = "cancelling"
    UNPROTECTING = "unprotecting"
    """A reprotect is being taken back: the disks return to the VM at home, replication ends."""


class Event(Enum):
    """What moves an item."""

    COMPLETE_MIGRATION = "complete-migration"
    STOP_REPLICATION = "stop-replication"
    FAIL_OVER = "fail-over"
    REPROTECT = "reprotect"
    REPLICATE = "replicate"
    FAILBACK = "failback"
    COMMIT = "commit"
    CANCEL = "cancel"
    DONE = "done"
    UNDONE = "undone"


TRANSITIONS: Final = MappingProxyType(
    {
        (State.FAILED_OVER, Event.COMPLETE_MIGRATION): State.MIGRATED,
        (State.FAILED_OVER, Event.STOP_REPLICATION): State.REPLICATION_STOPPED,
        (State.REPLICATION_STOPPED, Event.FAIL_OVER): State.FAILED_OVER,
        (State.FAILED_OVER, Event.REPROTECT): State.REPROTECTING,
        (State.REPROTECTING, Event.DONE): State.PROTECTED,
        (State.REPROTECTING, Event.UNDONE): State.FAILED_OVER,
        (State.PROTECTED, Event.REPLICATE): State.REPLICATING,
        (State.REPLICATING, Event.DONE): State.PROTECTED,
        (State.REPLICATING, Event.UNDONE): State.PROTECTED,
        (State.PROTECTED, Event.CANCEL): State.UNPROTECTING,
        (State.UNPROTECTING, Event.DONE): State.FAILED_OVER,
        (State.UNPROTECTING, Event.UNDONE): State.PROTECTED,
        (State.PROTECTED, Event.FAILBACK): State.FAILING_BACK,
        (State.FAILING_BACK, Event.DONE): State.FAILED_BACK,
        (State.FAILING_BACK, Event.UNDONE): State.PROTECTED,
        (State.FAILED_BACK, Event.COMMIT): State.COMMITTING,
        (State.COMMITTING, Event.DONE): State.COMMITTED,
        (State.COMMITTING, Event.UNDONE): State.FAILED_BACK,
        (State.FAILED_BACK, Event.CANCEL): State.CANCELLING,
        (State.CANCELLING, Event.DONE): State.PROTECTED,
        (State.CANCELLING, Event.UNDONE): State.FAILED_BACK,
        (State.COMMITTED, Event.FAIL_OVER): State.FAILED_OVER,
    }
)
"""From (state, event) to the next state."""

VERBS: Final = (Event.REPROTECT, Event.REPLICATE, Event.FAILBACK, Event.COMMIT, Event.CANCEL)
"""The events that a user brings about by the command of that name."""

AT_WORK: Final = frozenset(
    {
        State.REPROTECTING,
        State.REPLICATING,
        State.FAILING_BACK,
        State.COMMITTING,
        State.CANCELLING,
        State.UNPROTECTING,
    }
)
"""The states in which a job holds the item."""


def after(state: State, event: Event) -> State:
    """The state that follows. Errors: `TransitionIllegal` (HW-CONF-004)."""
    found = TRANSITIONS.get((state, event))
    if found is None:
        allowed = ", ".join(before.value for before, which in TRANSITIONS if which is event)
        raise TransitionIllegal(
            verb=event.value, state=state.value, allowed=allowed, possible=_possible(state)
        )
    return found


def _possible(state: State) -> str:
    """What a user may do about an item that stands there, in words."""
    if state is State.MIGRATED:
        return "nothing, a completed migration has no way back"
    if state in AT_WORK:
        return (
            "homeward jobs watch ITEM, to wait for the job that holds it, or homeward cancel ITEM, to end it"
        )
    verbs = [f"homeward {event.value} ITEM" for event in VERBS if (state, event) in TRANSITIONS]
    return ", ".join(verbs) or "nothing, until the machine has failed over to Azure (again)"
