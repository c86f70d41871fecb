"""Jobs as durable workflows on DBOS: steps in order, and after a failure their undos in reverse.

DBOS keeps which steps of a job have ended; the store keeps everything that people ask for. A killed server goes on at
its next start where it was: the step that was under way is run again, so every step is idempotent. Whether a step
worked is its result and not an exception, so that a job's way is the same whenever it is run again.
"""

import itertools
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, ParamSpec, TypeVar

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, SetWorkflowID

from confserver.errors import JobCancelled, JobOver, JobStopped, StoreFailed
from confserver.items import Job, JobStatus, Plan, StepRecord
from confserver.states import State
from confserver.steps import Ports, Step, Verb, Work
from confserver.store import Store
from drcore.clock import Clock
from drcore.errors import HomewardError, Retry, coded
from drcore.secret import Secret

APPLICATION: Final = "homeward"
WORKFLOW_VERSION: Final = "homeward-jobs-2"
"""Raised when the way a job takes through its steps changes: DBOS resumes only jobs of its own version."""
RECOVERIES_MAX: Final = 1000
"""Restarts that one job outlives; a server that is killed more often than that has another problem."""
RETRY_SECONDS: Final = (1.0, 2.0, 5.0, 10.0)
"""Pauses before a step is tried again after an error that may pass by itself."""
BOOKS_TRIES_MAX: Final = 10_000
"""More than a day of ten seconds each: a database that is away for so long comes back with a new server."""
WAIT_SECONDS: Final = 0.05
"""Pause between two looks of somebody who waits for a job."""
_Asked = ParamSpec("_Asked")
_Told = TypeVar("_Told")
_ENDED_BADLY: Final = ("ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")
_PASSING: Final = (Retry.TRANSIENT, Retry.RECONNECT, Retry.RESYNC)


@dataclass(frozen=True, slots=True)
class Engine:
    """Where DBOS keeps its books, who this server is among those that share them, how often DBOS looks for messages.

    Jobs get no messages; the pause is what an orderly end may have to wait for.
    """

    database_url: str
    server_name: str = "homeward"
    poll_seconds: float = 1.0


class Jobs:
    """Runs jobs. One per process, because DBOS is one per process. Any thread."""

    def __init__(
        self, engine: Engine, store: Store, ports: Ports, verbs: Mapping[str, Verb], clock: Clock, key: Secret
    ) -> None:
        self._store = store
        self._ports = ports
        self._verbs = verbs
        self._clock = clock
        self._key = key
        config: DBOSConfig = {
            "name": APPLICATION,
            "system_database_url": engine.database_url,
            "executor_id": engine.server_name,
            "application_version": WORKFLOW_VERSION,
            "serializer": DBOSPortableJSONSerializer(),
            "log_level": "ERROR",
            "enable_otlp": False,
            "notification_listener_polling_interval_sec": engine.poll_seconds,
        }
        DBOS(config=config)

        @DBOS.workflow(name="homeward.job", max_recovery_attempts=RECOVERIES_MAX)
        def run(job: str, attempt: int) -> None:
            self._run(job, attempt)

        self._workflow: Callable[[str, int], None] = run
        self.when_protected: Callable[[str, int], None] = lambda job, attempt: None
        """Told, within the workflow, of each job (and attempt) that has left its item protected."""

    def start(self) -> None:
        """Jobs that a killed server left are going on; those that cannot are stuck and may be undone by a retry."""
        DBOS.launch()
        for job in self._store.unfinished_jobs():
            found = DBOS.get_workflow_status(_workflow_id(job))
            if found is None:  # killed between the record and the workflow
                self.run(job)
            elif found.status in _ENDED_BADLY or found.app_version != WORKFLOW_VERSION:
                reason = JobStopped(
                    job=job.id,
                    status=found.status,
                    version=found.app_version or "none",
                    wanted=WORKFLOW_VERSION,
                )
                self._store.note_error(job.id, reason.as_json())
                self._store.end_job(job.id, JobStatus.STUCK, self._clock.now())

    def close(self) -> None:
        """DBOS has let go of its database. Steps under way are not waited for; the next start runs them again."""
        DBOS.destroy()

    def run(self, job: Job) -> None:
        """The recorded job is under way; a job that already is stays so."""
        with SetWorkflowID(_workflow_id(job)):
            DBOS.start_workflow(self._workflow, job.id, job.attempt)

    def wait(self, job: Job) -> Job:
        """The job as it is once this attempt has ended."""
        DBOS.retrieve_workflow(_workflow_id(job)).get_result(polling_interval_sec=WAIT_SECONDS)
        return self._store.job(job.id)

    def cancel(self, job: str) -> Job:
        """The job will end before its next step and undo what it did. Errors: HW-CONF-003, 008."""
        return self._store.ask_cancel(job)

    def undo_again(self, job: str) -> Job:
        """A stuck job tries its undo again. Errors: HW-CONF-003, 008."""
        found = self._store.undo_again(job)
        self.run(found)
        return found

    # The workflow; it is the same each time it is run again

    def _run(self, job: str, attempt: int) -> None:
        status = self._through_steps(job, attempt)
        if DBOS.run_step({"name": "end"}, self._end, job, status.value):
            self.when_protected(job, attempt)

    def _through_steps(self, job: str, attempt: int) -> JobStatus:
        verb = self._verbs[str(DBOS.run_step({"name": "begin"}, self._begin, job, attempt))]
        reached = len(verb.steps) - 1
        if attempt == 1:
            failed = False
            for number, step in enumerate(verb.steps):
                result = DBOS.run_step({"name": f"do {step.name}"}, self._do, job, number)
                if not result["ok"]:
                    failed, reached = True, number if result["begun"] else number - 1
                    break
            if not failed:
                return JobStatus.DONE
            DBOS.run_step({"name": "turn back"}, self._turn_back, job)
        else:
            reached = DBOS.run_step({"name": "reached"}, self._reached, job)
        for number in range(reached, -1, -1):
            name = verb.steps[number].name
            if not DBOS.run_step({"name": f"undo {name}"}, self._undo, job, number)["ok"]:
                return JobStatus.STUCK
        return JobStatus.FAILED

    # Its steps

    def _begin(self, job: str, attempt: int) -> str:
        if attempt == 1:
            self._kept(self._store.set_status, job, JobStatus.RUNNING, self._clock.now())
        return self._kept(self._store.job, job).verb

    def _turn_back(self, job: str) -> None:
        self._kept(self._store.set_status, job, JobStatus.UNDOING, self._clock.now())

    def _reached(self, job: str) -> int:
        steps = self._kept(self._store.job, job).steps
        return max((step.index for step in steps if step.phase == "do"), default=-1)

    def _end(self, job: str, status: str) -> bool:
        """Whether cycles of the item go on by themselves: not after one that an operator cancelled."""
        self._kept(self._store.end_job, job, JobStatus(status), self._clock.now())
        found = self._kept(self._store.job, job)
        cancelled = found.verb == "replicate" and found.status is JobStatus.FAILED and found.cancel_asked
        return self._kept(self._store.item, found.item).state is State.PROTECTED and not cancelled

    def _do(self, job: str, number: int) -> dict[str, Any]:
        if self._kept(self._store.cancel_asked, job):
            self._kept(self._store.note_error, job, JobCancelled().as_json())
            return {"ok": False, "begun": False}
        return self._attempt(job, number, "do")

    def _undo(self, job: str, number: int) -> dict[str, Any]:
        return self._attempt(job, number, "undo")

    def _attempt(self, job: str, number: int, phase: str) -> dict[str, Any]:
        """The step was run in this phase; its error, if any, is noted and never raised."""
        found = self._kept(self._store.job, job)
        step = self._verbs[found.verb].steps[number]
        bytes_max = found.plan.bytes_max if step.moves_data and phase == "do" else 0
        record = StepRecord(number, step.name, phase, self._clock.now(), bytes_max=bytes_max)
        self._kept(self._store.begin_step, job, record)
        work = Work(job, found.plan, self._ports, self._store, self._clock, self._key, phase, number)
        failure = ""
        try:
            self._patiently(work, step.do if phase == "do" else step.undo)
        except Exception as error:
            known = coded(error)
            failure = known.code
            self._kept(self._store.note_error, job, known.as_json())
            if phase == "undo":
                self._kept(self._store.note_report, job, undo_error=known.as_json())
        self._kept(self._store.end_step, job, phase, number, self._clock.now(), failure)
        return {"ok": not failure, "begun": True}

    def _kept(self, verb: Callable[_Asked, _Told], *asked: _Asked.args, **words: _Asked.kwargs) -> _Told:
        """What the store told, however long its database was away: a job whose books fail must not end without end."""
        for pause in (*RETRY_SECONDS, *itertools.repeat(RETRY_SECONDS[-1], BOOKS_TRIES_MAX)):
            try:
                return verb(*asked, **words)
            except StoreFailed:
                self._clock.sleep(pause)
        return verb(*asked, **words)

    def _patiently(self, work: Work, action: Callable[[Work], None]) -> None:
        """The action has succeeded, perhaps not at once. Errors: those that do not pass, and the last of the others."""
        for pause in RETRY_SECONDS:
            try:
                return action(work)
            except HomewardError as error:
                if error.retry not in _PASSING:
                    raise
            if work.stopped():
                raise JobCancelled()
            self._clock.sleep(pause)
        return action(work)


def new_job(verb: Verb, plan: Plan, now: float, retry_of: str = "") -> Job:
    """A job that was not recorded yet."""
    return Job(str(uuid.uuid4()), plan.item, verb.name, JobStatus.WAITING, plan, now, retry_of=retry_of)


def side_effects(verb: Verb, plan: Plan) -> list[dict[str, Any]]:
    """Every side effect of the verb in order, with bounds and the way back. Touches nothing."""
    return [_effects(step, plan) for step in verb.steps]


def require_retryable(job: Job) -> None:
    """The job failed or is stuck. Errors: `JobOver` (HW-CONF-008)."""
    if job.status not in (JobStatus.FAILED, JobStatus.STUCK):
        raise JobOver(verb="retry", job=job.id, status=job.status.value, allowed="failed or stuck")


def _effects(step: Step, plan: Plan) -> dict[str, Any]:
    return {
        "step": step.name,
        "effects": list(step.effects(plan)),
        "bytes_min": 0,
        "bytes_max": plan.bytes_max if step.moves_data else 0,
        "way_back": step.way_back,
    }


def _workflow_id(job: Job) -> str:
    return job.id if job.attempt == 1 else f"{job.id}-{job.attempt}"
