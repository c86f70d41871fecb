"""Cycles by themselves: whenever a job leaves an item protected, the next cycle is due after the policy's interval.

There is no clockwork of our own: the job's workflow puts the next cycle into a durable, delayed queue of DBOS under a
name made of the job's. So a killed server forgets none and begins none twice. A cycle that comes due looks whether its
job is still the item's newest one; if another verb has run, or runs, that one's end has the say. So a failback pauses
the cycles, a cancel of the reprotect ends them, and a cycle that an operator cancelled has no successor until he asks
for one (`homeward replicate`).
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from dbos import DBOS, Queue, SetEnqueueOptions, SetWorkflowID

from confserver.errors import ItemBusy, TransitionIllegal
from confserver.items import Item, Job, JobStatus
from confserver.jobs import RECOVERIES_MAX, Jobs
from confserver.states import State
from confserver.store import Store
from drcore.clock import Clock
from drcore.errors import HomewardError

QUEUE: Final = "homeward-cycles"
NOT_DUE, AGAIN = "", "again"
POLL_SECONDS: Final = 1.0
"""Between two looks for cycles that have come due."""
RPO_SECONDS: Final = 15 * 60
"""The failback policy's RPO threshold; it alerts, it does not drive (vocabulary: failback policy)."""
CYCLE_VERBS: Final = ("reprotect", "replicate", "cancel", "failback")
"""The verbs in which a cycle of the running machine ends with a point."""
REPLICATES: Final = frozenset({State.PROTECTED, State.REPLICATING, State.FAILING_BACK})


@dataclass(frozen=True, slots=True)
class Replication:
    """Where an item's replication stands; times in seconds UTC, 0 where there is none. Bytes are of the last cycle."""

    interval_seconds: float
    last_cycle_at: float
    last_cycle_seconds: float
    changed_bytes: int
    sent_bytes: int
    lag_seconds: float
    """How old the state at home is: time since the last good cycle began to read."""
    next_cycle_at: float
    """0: none is due by itself; `waits_for` says why."""
    waits_for: str
    last_failure: str
    """The code of the error with which the newest cycle failed, empty when it did not."""

    @property
    def late(self) -> bool:
        """The RPO threshold is exceeded."""
        return self.lag_seconds > RPO_SECONDS


class Schedule:
    """See the module. `record` makes a job of a verb without running it. Any thread."""

    def __init__(
        self,
        jobs: Jobs,
        store: Store,
        record: Callable[[str, str], Job],
        clock: Clock,
        interval_seconds: float,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._jobs = jobs
        self._store = store
        self._record = record
        self._clock = clock
        self._interval = interval_seconds
        self._poll = poll_seconds
        self._queue: Queue | None = None
        self._ready = threading.Event()

        @DBOS.workflow(name="homeward.cycle", max_recovery_attempts=RECOVERIES_MAX)
        def run(job: str) -> None:
            self._run(job)

        self._workflow: Callable[[str], None] = run
        jobs.when_protected = self._arrange

    def start(self) -> None:
        """Cycles come due. The jobs have to run already."""
        self._queue = DBOS.register_queue(QUEUE, polling_interval_sec=self._poll)
        self._ready.set()
        for item in self._store.items():
            newest, _ = self._store.last_jobs(item.id, ())
            if item.state is State.PROTECTED and newest is not None and not _stopped_by_operator(newest):
                self._arrange(newest.id, newest.attempt)

    def standing(self, item: Item) -> Replication | None:
        """Where the item's replication stands; None when it is not protected."""
        if item.state not in REPLICATES:
            return None
        newest, good = self._store.last_jobs(item.id, CYCLE_VERBS)
        report = good.report if good is not None else {}
        began = float(report.get("cycle_began", 0.0))
        waits_for, due = "", 0.0
        if item.job:
            waits_for = "the job that runs"
        elif newest is not None and _stopped_by_operator(newest):
            waits_for = "homeward replicate: the last cycle was cancelled"
        elif newest is not None:
            due = newest.ended + self._interval
        failed = newest is not None and newest.verb == "replicate" and newest.status is JobStatus.FAILED
        return Replication(
            interval_seconds=self._interval,
            last_cycle_at=began,
            last_cycle_seconds=float(report.get("cycle_seconds", 0.0)),
            changed_bytes=int(report.get("content_bytes", 0)),
            sent_bytes=int(report.get("bytes_sent", 0)),
            lag_seconds=max(self._clock.now() - began, 0.0) if began else 0.0,
            next_cycle_at=due,
            waits_for=waits_for,
            last_failure=newest.error.get("code", "") if newest is not None and failed else "",
        )

    def _arrange(self, job: str, attempt: int) -> None:
        """A cycle will come due after this job; asked again for the same one, it stays one."""
        self._ready.wait()
        assert self._queue is not None
        with SetWorkflowID(f"{job}-{attempt}-cycle"), SetEnqueueOptions(delay_seconds=self._interval):
            self._queue.enqueue(self._workflow, job)

    def _run(self, job: str) -> None:
        while (found := DBOS.run_step({"name": "record cycle"}, self._begin, job)) == AGAIN:
            DBOS.sleep(self._interval)
        if found != NOT_DUE:
            self._jobs.run(self._store.job(found))

    def _begin(self, job: str) -> str:
        """The id of the cycle's job, `NOT_DUE`, or `AGAIN` when it could not begin for now."""
        item = self._store.item(self._store.job(job).item)
        newest, _ = self._store.last_jobs(item.id, ())
        if item.state is not State.PROTECTED or newest is None or newest.id != job:
            return NOT_DUE
        try:
            return self._record(item.id, "replicate").id
        except (TransitionIllegal, ItemBusy):
            return NOT_DUE
        except HomewardError:
            return AGAIN


def _stopped_by_operator(job: Job) -> bool:
    return job.verb == "replicate" and job.status is JobStatus.FAILED and job.cancel_asked
