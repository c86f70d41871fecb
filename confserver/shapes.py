"""The API's JSON as pydantic models; /openapi.json is made of them. Sizes are bytes, times RFC 3339 UTC."""

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from confserver.items import Health, Item, ItemDisk, Job, StepRecord
from confserver.preflight import Check, Result
from confserver.schedule import RPO_SECONDS, Replication
from confserver.service import VERBS, Enabling
from drcore.limits import MASTTARGET_DISKS_MAX


class Shape(BaseModel):
    """A key that is not described is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DiskShape(Shape):
    """A disk on both sides."""

    disk: str = Field(pattern=r"^[0-9a-fA-F -]{32,48}$", description="VMware disk UUID")
    azure_disk: str = Field(min_length=1, max_length=512, description="resource id of the managed disk")


class EnableShape(Shape):
    """A failed-over machine that is to become an item."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")
    vm: str = Field(min_length=1, max_length=255, description="name of the VM in the vCenter")
    masttarget: str = Field(min_length=1, max_length=255, description="name of the master target's VM")
    azure_vm: str = Field(min_length=1, max_length=512, description="resource id of the machine in Azure")
    os_family: Literal["linux", "windows", ""] = ""
    disks: tuple[DiskShape, ...] = Field(min_length=1, max_length=MASTTARGET_DISKS_MAX)
    failed_over_at: datetime | None = Field(
        default=None, description="when the machine started in Azure; now if absent"
    )
    instance_uuid: str = Field(default="", description="of the VM at home; asked of the vCenter if absent")

    def told(self) -> Enabling:
        """The words of the service."""
        disks = tuple(
            ItemDisk(disk.disk.replace("-", "").replace(" ", "").lower(), disk.azure_disk)
            for disk in self.disks
        )
        when = self.failed_over_at
        seconds = 0.0 if when is None else when.replace(tzinfo=when.tzinfo or UTC).timestamp()
        return Enabling(
            self.name,
            self.vm,
            self.masttarget,
            self.azure_vm,
            self.os_family,
            disks,
            seconds,
            self.instance_uuid,
        )


class ReplicationShape(Shape):
    """Where an item's replication stands; of its cycles the last good one. Bytes and seconds are numbers."""

    interval_seconds: float
    rpo_seconds: int
    last_cycle_at: str | None
    last_cycle_seconds: float
    changed_bytes: int
    sent_bytes: int
    lag_seconds: float
    next_cycle_at: str | None
    waits_for: str | None
    last_failure: str | None

    @classmethod
    def of(cls, found: Replication) -> "ReplicationShape":
        """The standing's shape."""
        return cls(
            interval_seconds=found.interval_seconds,
            rpo_seconds=RPO_SECONDS,
            last_cycle_at=_time(found.last_cycle_at),
            last_cycle_seconds=round(found.last_cycle_seconds, 3),
            changed_bytes=found.changed_bytes,
            sent_bytes=found.sent_bytes,
            lag_seconds=round(found.lag_seconds, 1),
            next_cycle_at=_time(found.next_cycle_at),
            waits_for=found.waits_for or None,
            last_failure=found.last_failure or None,
        )


class ItemShape(Shape):
    """An item. `replication` is there while it is protected."""

    id: str
    name: str
    state: str
    health: str
    direction: str
    generation: int
    job: str | None
    vm: str
    masttarget: str
    azure_vm: str
    os_family: str
    disks: tuple[DiskShape, ...]
    last_point: str | None
    last_point_at: str | None
    replication: ReplicationShape | None

    @classmethod
    def of(cls, item: Item, replication: Replication | None) -> "ItemShape":
        """The item's shape; one that is later than the policy allows is not healthy."""
        late = replication is not None and replication.late and item.health is Health.HEALTHY
        return cls(
            id=item.id,
            name=item.name,
            state=item.state.value,
            health=Health.WARNING.value if late else item.health.value,
            direction="Azure to on-premises",
            generation=item.generation,
            job=item.job or None,
            vm=item.vm,
            masttarget=item.masttarget,
            azure_vm=item.azure_vm,
            os_family=item.os_family,
            disks=tuple(DiskShape(disk=disk.disk, azure_disk=disk.azure_disk) for disk in item.disks),
            last_point=item.last_point or None,
            last_point_at=_time(item.last_point_at),
            replication=None if replication is None else ReplicationShape.of(replication),
        )


class ItemsShape(Shape):
    """All items."""

    items: tuple[ItemShape, ...]


class StepShape(Shape):
    """One run of a step; phase `do` or `undo`. `failure` is an error's code.

    `bytes` were moved, of at most `bytes_max`; the work is `done` of `total` bytes, which `label` names.
    """

    name: str
    phase: str
    started: str | None
    ended: str | None
    bytes: int
    bytes_max: int
    done: int
    total: int
    label: str
    failure: str | None

    @classmethod
    def of(cls, step: StepRecord) -> "StepShape":
        """The step's shape."""
        return cls(
            name=step.name,
            phase=step.phase,
            started=_time(step.started),
            ended=_time(step.ended),
            bytes=step.bytes,
            bytes_max=step.bytes_max,
            done=step.done,
            total=step.total,
            label=step.label,
            failure=step.failure or None,
        )


class JobShape(Shape):
    """A job. In the list of jobs `steps` is empty. `error` is a coded error object.

    `planned` names every step of the verb in order; `steps` has those that have begun.
    """

    id: str
    item: str
    verb: str
    status: str
    created: str | None
    started: str | None
    ended: str | None
    cancel_asked: bool
    retry_of: str | None
    attempt: int
    error: dict[str, str] | None
    report: dict[str, Any]
    planned: tuple[str, ...]
    steps: tuple[StepShape, ...]

    @classmethod
    def of(cls, job: Job) -> "JobShape":
        """The job's shape."""
        return cls(
            id=job.id,
            item=job.item,
            verb=job.verb,
            status=job.status.value,
            created=_time(job.created),
            started=_time(job.started),
            ended=_time(job.ended),
            cancel_asked=job.cancel_asked,
            retry_of=job.retry_of or None,
            attempt=job.attempt,
            error=job.error or None,
            report=job.report,
            planned=tuple(step.name for step in VERBS[job.verb].steps),
            steps=tuple(StepShape.of(step) for step in job.steps),
        )


class JobsShape(Shape):
    """Jobs, the oldest first."""

    jobs: tuple[JobShape, ...]


class CheckShape(Shape):
    """One finding; `result` is ok, no, warn, unknown or wait."""

    requirement: str
    code: str
    title: str
    result: str
    observed: str
    expected: str
    remedy: str
    wait_seconds: float

    @classmethod
    def of(cls, check: Check) -> "CheckShape":
        """The check's shape."""
        return cls(
            requirement=check.requirement,
            code=check.code,
            title=check.title,
            result=check.result.value,
            observed=check.observed,
            expected=check.expected,
            remedy=check.remedy,
            wait_seconds=round(check.wait_seconds, 1),
        )


class PreflightShape(Shape):
    """All findings; `answer` is no when one is no or unknown, else wait when one waits, else ok."""

    item: str
    verb: str
    answer: str
    checks: tuple[CheckShape, ...]

    @classmethod
    def of(cls, item: str, verb: str, checks: tuple[Check, ...]) -> "PreflightShape":
        """The findings' shape."""
        results = {check.result for check in checks}
        answer = "ok"
        if results & {Result.NO, Result.UNKNOWN}:
            answer = "no"
        elif Result.WAIT in results:
            answer = "wait"
        return cls(
            item=item, verb=verb, answer=answer, checks=tuple(CheckShape.of(check) for check in checks)
        )


class EffectShape(Shape):
    """What a step would change, how many bytes it would move, and the way back."""

    step: str
    effects: tuple[str, ...]
    bytes_min: int
    bytes_max: int
    way_back: str


class PlanShape(Shape):
    """What a verb would do, in order. Nothing was touched."""

    item: str
    verb: str
    generation: int
    steps: tuple[EffectShape, ...]


class ErrorShape(Shape):
    """A coded error."""

    error: str
    code: str
    found: str
    expected: str
    remedy: str


def _time(seconds: float) -> str | None:
    if not seconds:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
