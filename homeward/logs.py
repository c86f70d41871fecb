"""Structured log events on stderr: one JSON object a line, or plain text on a terminal."""

import json
import sys
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from typing import Any

from masttarget.ports import Log


def log_to_stderr() -> Log:
    """A log that writes every event with its time to stderr; what cannot be written there is dropped.

    No work fails because it cannot be told of: a log is often kept on the very volume that has just become full.
    Lines of JSON need no library; what makes them readable on a terminal takes 0.1 s to import, so that happens with
    the first event.
    """

    def log(event: str, /, **facts: object) -> None:
        with suppress(OSError):
            if sys.stderr.isatty():
                _readable().msg(event, **facts)
                return
            now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
            sys.stderr.write(json.dumps({**facts, "event": event, "timestamp": now}, default=str) + "\n")
            sys.stderr.flush()

    return log


@cache
def _readable() -> Any:
    import structlog

    structlog.configure(
        processors=[structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.dev.ConsoleRenderer()],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    return structlog.get_logger()
