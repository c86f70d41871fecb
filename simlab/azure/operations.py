"""Long-running operations: accepted with 202, then under way, then succeeded or failed, asked for by their id."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, Final
from uuid import uuid4

from drcore.limits import SIMLAB_OPERATIONS_MAX
from simlab.azure.model import Clock
from simlab.azure.refusals import Refused

log = logging.getLogger(__name__)


class Status(Enum):
    """How far an operation is, in Azure's words."""

    IN_PROGRESS = "InProgress"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class Area(Enum):
    """Under which path an operation is asked for."""

    COMPUTE = "operations"
    DISK = "DiskOperations"


@dataclass(slots=True, eq=False)
class Operation:
    """One operation; `doom` is the failure that a fault has laid on its half way."""

    name: str
    area: Area
    location: str
    started: datetime
    doom: Refused | None = None
    id: str = field(default_factory=lambda: str(uuid4()))
    status: Status = Status.IN_PROGRESS
    ended: datetime | None = None
    error: Refused | None = None
    output: dict[str, Any] | None = None

    async def pass_time(self, seconds: float) -> None:
        """`seconds` have passed; where a fault says so, the failure comes when half of them have."""
        await asyncio.sleep(seconds / 2)
        if self.doom is not None:
            raise self.doom
        await asyncio.sleep(seconds / 2)

    def document(self) -> dict[str, Any]:
        """What the address in `Azure-AsyncOperation` answers."""
        document: dict[str, Any] = {
            "startTime": self.started.isoformat(),
            "status": self.status.value,
            "name": self.id,
        }
        if self.ended is not None:
            document["endTime"] = self.ended.isoformat()
        if self.error is not None:
            document.update(self.error.body())
        elif self.output is not None:
            document["properties"] = {"output": self.output}
        return document


Work = Callable[[Operation], Awaitable[dict[str, Any] | None]]


class Operations:
    """All operations, each with the task that carries it out."""

    def __init__(self, clock: Clock) -> None:
        self._clock: Final = clock
        self._known: Final[dict[str, Operation]] = {}
        self._tasks: Final[set[asyncio.Task[None]]] = set()

    def begin(
        self, name: str, area: Area, location: str, work: Work, doom: Refused | None = None
    ) -> Operation:
        """`work` is under way and the operation can be asked for. Call it from the event loop."""
        operation = Operation(name, area, location, self._clock(), doom)
        self._known[operation.id] = operation
        while len(self._known) > SIMLAB_OPERATIONS_MAX:
            del self._known[next(iter(self._known))]
        task = asyncio.get_running_loop().create_task(self._carry_out(operation, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return operation

    async def _carry_out(self, operation: Operation, work: Work) -> None:
        try:
            operation.output = await work(operation)
            operation.status = Status.SUCCEEDED
        except Refused as refused:
            operation.error = refused
            operation.status = Status.FAILED
        except Exception as error:
            # A fault of the stand-in itself must reach the client too, or it would poll for ever.
            log.exception("operation %s broke down", operation.name)
            operation.error = Refused(500, "InternalServerError", f"The stand-in broke down: {error}")
            operation.status = Status.FAILED
        operation.ended = self._clock()

    def find(self, identity: str) -> Operation | None:
        """The operation of that id."""
        return self._known.get(identity)

    async def close(self) -> None:
        """Nothing is under way any more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
