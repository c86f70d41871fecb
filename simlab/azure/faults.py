"""Faults on demand, and the journal of calls by which a test proves what was asked and how often."""

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from drcore.limits import SIMLAB_CALLS_MAX
from simlab.azure.model import Clock
from simlab.azure.refusals import Refused


class Effect(Enum):
    """What a fault does to a call."""

    ANSWER = "answer"
    """The call is answered with `status`, `code`, `message` and `retry_after`; nothing is done."""
    DELAY = "delay"
    """The call waits for `seconds` and is then done."""
    DROP = "drop"
    """The connection is cut before anything is done."""
    DROP_ANSWER = "drop-answer"
    """The call is done, then the connection is cut: the answer is lost (of a blob's content, its second half)."""
    FAIL_OPERATION = "fail-operation"
    """The call is accepted; its long-running operation fails half way with `status`, `code` and `message`."""


class Fault(BaseModel):
    """A rule: the next `count` calls (without a count: all) whose operation matches the pattern suffer the effect."""

    model_config = ConfigDict(extra="forbid")

    operation: Annotated[str, Field(min_length=1, max_length=100)]
    effect: Effect = Effect.ANSWER
    status: Annotated[int, Field(ge=400, le=599)] = 429
    code: str = "TooManyRequests"
    message: str = "The request was refused by a fault of the stand-in."
    retry_after: Annotated[int, Field(ge=0, le=3600)] | None = None
    seconds: Annotated[float, Field(ge=0, le=600)] = 0
    count: Annotated[int, Field(ge=1)] | None = 1
    skip: Annotated[int, Field(ge=0)] = 0
    """So many matching calls go by before the rule begins."""
    hits: Annotated[int, Field(ge=0, le=0)] = 0

    def refusal(self) -> Refused:
        """The fault as an answer or as an operation's failure."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return Refused(self.status, self.code, self.message, headers)


class Faults:
    """The rules in force, oldest first."""

    def __init__(self) -> None:
        self._rules: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """The rule is in force from the next call on."""
        self._rules.append(fault)

    def clear(self) -> None:
        """No rule is in force."""
        self._rules.clear()

    def listing(self) -> Sequence[dict[str, Any]]:
        """The rules with what each has still to do and has done."""
        return [rule.model_dump(mode="json") for rule in self._rules]

    def take(self, operation: str) -> Fault | None:
        """The fault that this call suffers; it counts as suffered."""
        for rule in self._rules:
            if not fnmatchcase(operation.lower(), rule.operation.lower()) or rule.count == 0:
                continue
            if rule.skip:
                rule.skip -= 1
                continue
            rule.hits += 1
            if rule.count is not None:
                rule.count -= 1
            return rule
        return None


@dataclass(slots=True)
class Call:
    """One call, from its arrival on; `status` is 0 until it is done; `cut`: its answer never went out whole."""

    sequence: int
    time: str
    server: str
    operation: str
    method: str
    path: str
    api_version: str | None
    client_request_id: str | None
    status: int = 0
    cut: bool = False


class Journal:
    """The last calls in the order of their arrival. No signature or token is ever in it."""

    def __init__(self, clock: Clock) -> None:
        self._clock: Final = clock
        self._calls: Final[deque[Call]] = deque(maxlen=SIMLAB_CALLS_MAX)
        self._count = 0

    def note(self, server: str, operation: str, method: str, path: str, facts: dict[str, str]) -> Call:
        """The call is in the journal; who answers it sets its status."""
        self._count += 1
        call = Call(
            self._count,
            self._clock().isoformat(),
            server,
            operation,
            method,
            path,
            facts.get("api-version"),
            facts.get("x-ms-client-request-id"),
        )
        self._calls.append(call)
        return call

    def listing(self, pattern: str = "*", after: int = 0) -> list[dict[str, Any]]:
        """The calls later than number `after` whose operation matches the pattern."""
        return [
            asdict(call)
            for call in self._calls
            if call.sequence > after and fnmatchcase(call.operation.lower(), pattern.lower())
        ]
