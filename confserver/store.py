"""Items, jobs and steps in a database: SQLite embedded, PostgreSQL by URL. Every verb is one transaction.

An item is claimed by at most one job, and the claim, the item's state and the job's record change together: a killed
server finds either all of them or none.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from confserver.errors import ItemBusy, ItemExists, ItemMissing, JobMissing, JobOver, StoreFailed
from confserver.items import OVER, Health, Home, Item, ItemDisk, Job, JobStatus, Plan, StepRecord
from confserver.ports import Standing
from confserver.states import AT_WORK, Event, State, after

_META: Final = sa.MetaData()
_ITEMS: Final = sa.Table(
    "homeward_items",
    _META,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("name", sa.String(255), nullable=False, unique=True),
    sa.Column("state", sa.String(32), nullable=False),
    sa.Column("health", sa.String(16), nullable=False),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("job", sa.String(36), nullable=False),
    sa.Column("facts", sa.Text, nullable=False),
    sa.Column("home", sa.Text, nullable=False),
    sa.Column("last_point", sa.String(32), nullable=False),
    sa.Column("last_point_at", sa.Double, nullable=False),
)
_JOBS: Final = sa.Table(
    "homeward_jobs",
    _META,
    sa.Column("id", sa.String(36), primary_key=True),
    # Jobs are told in the order in which they were recorded; clocks tie and jump.
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("item", sa.String(36), sa.ForeignKey("homeward_items.id"), nullable=False, index=True),
    sa.Column("verb", sa.String(32), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("created", sa.Double, nullable=False),
    sa.Column("started", sa.Double, nullable=False),
    sa.Column("ended", sa.Double, nullable=False),
    sa.Column("cancel_asked", sa.Boolean, nullable=False),
    sa.Column("retry_of", sa.String(36), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("report", sa.Text, nullable=False),
)
_STEPS: Final = sa.Table(
    "homeward_steps",
    _META,
    sa.Column("job", sa.String(36), sa.ForeignKey("homeward_jobs.id"), primary_key=True),
    sa.Column("phase", sa.String(4), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(64), nullable=False),
    sa.Column("started", sa.Double, nullable=False),
    sa.Column("ended", sa.Double, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("bytes_max", sa.BigInteger, nullable=False),
    sa.Column("failure", sa.Text, nullable=False),
    # How far the step's work is: `done` of `total` bytes, and what it is doing.
    sa.Column("done", sa.BigInteger, nullable=False),
    sa.Column("total", sa.BigInteger, nullable=False),
    sa.Column("label", sa.String(255), nullable=False),
)
BUSY_SECONDS: Final = 30
"""How long SQLite waits for another writer: longer than any transaction here takes on a slow disk."""


class Store:
    """See the module. Any thread. Errors: `StoreFailed` (HW-CONF-021) besides those that each verb names."""

    def __init__(self, url: str) -> None:
        shown = sa.make_url(url).render_as_string(hide_password=True)
        self._url = shown
        self._engine = sa.create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)
        with self._failing():
            _META.create_all(self._engine)

    def close(self) -> None:
        """Every connection is closed."""
        self._engine.dispose()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error)
            raise StoreFailed(url=self._url, reason=reason) from error

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._failing(), self._engine.begin() as connection:
            yield connection

    # Items

    def enable(self, item: Item) -> Item:
        """The item is known; the same facts again change nothing. Errors: `ItemExists` (HW-CONF-023)."""
        with self._transaction() as connection:
            row = connection.execute(sa.select(_ITEMS).where(_ITEMS.c.name == item.name)).mappings().first()
            if row is not None:
                known = _item(row)
                if known.facts() == item.facts():
                    return known
                if known.state is not State.FAILED_OVER or known.job:
                    raise ItemExists(name=item.name, reason=f"with other facts, {known.state.value}")
                connection.execute(
                    _ITEMS.update().where(_ITEMS.c.id == known.id).values(facts=json.dumps(item.facts()))
                )
                return self._read_item(connection, known.id)
            connection.execute(
                _ITEMS.insert().values(
                    id=item.id,
                    name=item.name,
                    state=item.state.value,
                    health=item.health.value,
                    generation=item.generation,
                    job="",
                    facts=json.dumps(item.facts()),
                    home="",
                    last_point="",
                    last_point_at=0.0,
                )
            )
            return item

    def item(self, reference: str) -> Item:
        """The item of this id or name. Errors: `ItemMissing` (HW-CONF-002)."""
        with self._transaction() as connection:
            return self._read_item(connection, reference)

    def items(self) -> tuple[Item, ...]:
        """All items, by name."""
        with self._transaction() as connection:
            rows = connection.execute(sa.select(_ITEMS).order_by(_ITEMS.c.name)).mappings()
            return tuple(_item(row) for row in rows)

    def move(self, reference: str, event: Event) -> Item:
        """The item has made a transition that needs no job. Errors: HW-CONF-002, 004, 005."""
        with self._transaction() as connection:
            item = self._read_item(connection, reference, lock=True)
            if item.job:
                raise ItemBusy(item=item.name, job=item.job)
            state = after(item.state, event)
            connection.execute(_ITEMS.update().where(_ITEMS.c.id == item.id).values(state=state.value))
            return self._read_item(connection, item.id)

    def raise_generation(self, reference: str, generation: int) -> None:
        """The item's generation is at least this; it never falls."""
        with self._transaction() as connection:
            connection.execute(
                _ITEMS.update()
                .where(_ITEMS.c.id == reference, _ITEMS.c.generation < generation)
                .values(generation=generation)
            )

    def remember_home(self, reference: str, home: Home | None) -> None:
        """How the VM at home was found is kept with the item, or forgotten."""
        text = json.dumps(home.as_json()) if home else ""
        with self._transaction() as connection:
            connection.execute(_ITEMS.update().where(_ITEMS.c.id == reference).values(home=text))

    def note_point(self, reference: str, point: str, when: float) -> None:
        """The item's newest point is known."""
        with self._transaction() as connection:
            connection.execute(
                _ITEMS.update()
                .where(_ITEMS.c.id == reference)
                .values(last_point=point, last_point_at=when, health=Health.HEALTHY.value)
            )

    def _read_item(self, connection: Connection, reference: str, *, lock: bool = False) -> Item:
        query = sa.select(_ITEMS).where(sa.or_(_ITEMS.c.id == reference, _ITEMS.c.name == reference))
        row = connection.execute(query.with_for_update() if lock else query).mappings().first()
        if row is None:
            raise ItemMissing(item=reference)
        return _item(row)

    # Jobs

    def begin_job(self, job: Job, event: Event) -> Job:
        """The job is recorded and holds its item, which made the verb's transition. Errors: HW-CONF-002, 004, 005."""
        with self._transaction() as connection:
            item = self._read_item(connection, job.item, lock=True)
            if item.job:
                raise ItemBusy(item=item.name, job=item.job)
            state = after(item.state, event)
            claimed = connection.execute(
                _ITEMS.update()
                .where(_ITEMS.c.id == item.id, _ITEMS.c.job == "", _ITEMS.c.state == item.state.value)
                .values(job=job.id, state=state.value)
            )
            if claimed.rowcount != 1:
                raise ItemBusy(item=item.name, job="another")
            highest = connection.execute(sa.select(sa.func.max(_JOBS.c.number))).scalar()
            connection.execute(
                _JOBS.insert().values(
                    id=job.id,
                    number=(highest or 0) + 1,
                    item=item.id,
                    verb=job.verb,
                    status=JobStatus.WAITING.value,
                    plan=json.dumps(job.plan.as_json()),
                    created=job.created,
                    started=0.0,
                    ended=0.0,
                    cancel_asked=False,
                    retry_of=job.retry_of,
                    attempt=1,
                    error="{}",
                    report="{}",
                )
            )
            return self._read_job(connection, job.id)

    def job(self, reference: str) -> Job:
        """The job. Errors: `JobMissing` (HW-CONF-003)."""
        with self._transaction() as connection:
            return self._read_job(connection, reference)

    def jobs(self, item: str = "") -> tuple[Job, ...]:
        """All jobs, or those of an item, the oldest first, without their steps."""
        query = sa.select(_JOBS).order_by(_JOBS.c.number, _JOBS.c.id)
        if item:
            query = query.where(_JOBS.c.item == item)
        with self._transaction() as connection:
            return tuple(_job(row, ()) for row in connection.execute(query).mappings())

    def last_jobs(self, item: str, verbs: Sequence[str]) -> tuple[Job | None, Job | None]:
        """The item's newest job, and its newest one of these verbs that is done; without their steps."""
        newest = sa.select(_JOBS).where(_JOBS.c.item == item).order_by(_JOBS.c.number.desc()).limit(1)
        good = newest.where(_JOBS.c.verb.in_(verbs), _JOBS.c.status == JobStatus.DONE.value)
        with self._transaction() as connection:
            rows = [connection.execute(query).mappings().first() for query in (newest, good)]
        one, other = (_job(row, ()) if row is not None else None for row in rows)
        return one, other

    def unfinished_jobs(self) -> tuple[Job, ...]:
        """The jobs that a server has to run on after its start."""
        over = [JobStatus.DONE.value, JobStatus.FAILED.value, JobStatus.STUCK.value]
        with self._transaction() as connection:
            rows = connection.execute(sa.select(_JOBS).where(_JOBS.c.status.not_in(over))).mappings()
            return tuple(_job(row, ()) for row in rows)

    def ask_cancel(self, reference: str) -> Job:
        """The job knows that it shall end. Errors: HW-CONF-003, `JobOver` (HW-CONF-008)."""
        with self._transaction() as connection:
            job = self._read_job(connection, reference)
            if job.status not in (JobStatus.WAITING, JobStatus.RUNNING):
                raise JobOver(
                    verb="cancel", job=job.id, status=job.status.value, allowed="waiting or running"
                )
            connection.execute(_JOBS.update().where(_JOBS.c.id == reference).values(cancel_asked=True))
            return self._read_job(connection, reference)

    def cancel_asked(self, reference: str) -> bool:
        """Whether the job shall end."""
        query = sa.select(_JOBS.c.cancel_asked).where(_JOBS.c.id == reference)
        with self._transaction() as connection:
            return bool(connection.execute(query).scalar_one())

    def set_status(self, reference: str, status: JobStatus, now: float) -> None:
        """The job stands there."""
        values: dict[str, Any] = {"status": status.value}
        with self._transaction() as connection:
            if status is JobStatus.RUNNING:
                values["started"] = sa.case((_JOBS.c.started == 0.0, now), else_=_JOBS.c.started)
            connection.execute(_JOBS.update().where(_JOBS.c.id == reference).values(**values))

    def undo_again(self, reference: str) -> Job:
        """A stuck job is about to try its undo once more. Errors: HW-CONF-003, `JobOver` (HW-CONF-008)."""
        with self._transaction() as connection:
            changed = connection.execute(
                _JOBS.update()
                .where(_JOBS.c.id == reference, _JOBS.c.status == JobStatus.STUCK.value)
                .values(status=JobStatus.UNDOING.value, attempt=_JOBS.c.attempt + 1)
            )
            job = self._read_job(connection, reference)
            if changed.rowcount != 1:
                raise JobOver(verb="retry", job=job.id, status=job.status.value, allowed="failed or stuck")
            return job

    def note_error(self, reference: str, error: dict[str, str]) -> None:
        """The first error that ended the job is kept."""
        with self._transaction() as connection:
            connection.execute(
                _JOBS.update()
                .where(_JOBS.c.id == reference, _JOBS.c.error == "{}")
                .values(error=json.dumps(error))
            )

    def note_report(self, reference: str, **entries: Any) -> None:
        """The job's report has these entries, older ones of the same name replaced."""
        with self._transaction() as connection:
            job = self._read_job(connection, reference)
            text = json.dumps({**job.report, **entries})
            connection.execute(_JOBS.update().where(_JOBS.c.id == reference).values(report=text))

    def end_job(self, reference: str, status: JobStatus, now: float) -> None:
        """The job is over and its item free, in the state that follows; a stuck one keeps its item. Once is enough."""
        with self._transaction() as connection:
            job = self._read_job(connection, reference)
            if job.status is status:
                return
            item = self._read_item(connection, job.item, lock=True)
            ending: dict[str, Any] = {"status": status.value, "ended": now}
            if (
                status is JobStatus.DONE
            ):  # an error that a kill kept from being acted on, and that passed since
                ending["error"] = "{}"
            connection.execute(_JOBS.update().where(_JOBS.c.id == reference).values(**ending))
            values: dict[str, Any] = {"health": Health.CRITICAL.value}
            if status in OVER:
                event = Event.DONE if status is JobStatus.DONE else Event.UNDONE
                health = Health.HEALTHY if status is JobStatus.DONE else Health.WARNING
                state = after(item.state, event) if item.state in AT_WORK else item.state
                values = {"health": health.value, "state": state.value, "job": ""}
            connection.execute(
                _ITEMS.update().where(_ITEMS.c.id == item.id, _ITEMS.c.job == reference).values(**values)
            )

    # Steps

    def begin_step(self, job: str, step: StepRecord) -> None:
        """The step is under way; run again, its first start stays."""
        key = sa.and_(_STEPS.c.job == job, _STEPS.c.phase == step.phase, _STEPS.c.number == step.index)
        with self._transaction() as connection:
            if connection.execute(sa.select(_STEPS.c.number).where(key)).first() is None:
                connection.execute(
                    _STEPS.insert().values(
                        job=job,
                        phase=step.phase,
                        number=step.index,
                        name=step.name,
                        started=step.started,
                        ended=0.0,
                        bytes=0,
                        bytes_max=step.bytes_max,
                        failure="",
                        done=0,
                        total=0,
                        label="",
                    )
                )
            else:
                connection.execute(_STEPS.update().where(key).values(ended=0.0, failure=""))

    def note_progress(self, job: str, phase: str, number: int, standing: Standing) -> None:
        """The step's work stands there."""
        key = sa.and_(_STEPS.c.job == job, _STEPS.c.phase == phase, _STEPS.c.number == number)
        values = {"done": standing.done, "total": standing.total, "label": standing.label[:255]}
        with self._transaction() as connection:
            connection.execute(_STEPS.update().where(key).values(bytes=standing.moved, **values))

    def end_step(self, job: str, phase: str, number: int, now: float, failure: str) -> None:
        """The step has ended; `failure` is the code of its error or empty."""
        key = sa.and_(_STEPS.c.job == job, _STEPS.c.phase == phase, _STEPS.c.number == number)
        with self._transaction() as connection:
            connection.execute(_STEPS.update().where(key).values(ended=now, failure=failure))

    def _read_job(self, connection: Connection, reference: str) -> Job:
        row = connection.execute(sa.select(_JOBS).where(_JOBS.c.id == reference)).mappings().first()
        if row is None:
            raise JobMissing(job=reference)
        # Forward, then back.
        back = sa.case((_STEPS.c.phase == "undo", -_STEPS.c.number), else_=_STEPS.c.number)
        query = sa.select(_STEPS).where(_STEPS.c.job == reference).order_by(_STEPS.c.phase, back)
        return _job(row, tuple(_step(found) for found in connection.execute(query).mappings()))


def _prepare_sqlite(connection: Any, _: object) -> None:
    # Transactions begin where SQLAlchemy says, not where the driver guesses: a read before a write holds the lock.
    connection.isolation_level = None
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        f"busy_timeout={BUSY_SECONDS * 1000}",
        "foreign_keys=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _item(row: RowMapping) -> Item:
    facts = json.loads(row["facts"])
    facts["disks"] = tuple(ItemDisk(**disk) for disk in facts["disks"])
    return Item(
        id=row["id"],
        name=row["name"],
        state=State(row["state"]),
        health=Health(row["health"]),
        generation=row["generation"],
        home=Home.from_json(json.loads(row["home"])) if row["home"] else None,
        job=row["job"],
        last_point=row["last_point"],
        last_point_at=row["last_point_at"],
        **facts,
    )


def _job(row: RowMapping, steps: tuple[StepRecord, ...]) -> Job:
    return Job(
        id=row["id"],
        item=row["item"],
        verb=row["verb"],
        status=JobStatus(row["status"]),
        plan=Plan.from_json(json.loads(row["plan"])),
        created=row["created"],
        started=row["started"],
        ended=row["ended"],
        cancel_asked=row["cancel_asked"],
        retry_of=row["retry_of"],
        attempt=row["attempt"],
        error=json.loads(row["error"]),
        report=json.loads(row["report"]),
        steps=steps,
    )


def _step(row: RowMapping) -> StepRecord:
    return StepRecord(
        index=row["number"],
        name=row["name"],
        phase=row["phase"],
        started=row["started"],
        ended=row["ended"],
        bytes=row["bytes"],
        bytes_max=row["bytes_max"],
        failure=row["failure"],
        done=row["done"],
        total=row["total"],
        label=row["label"],
    )
