"""Structured log events on stderr: one JSON object a line, or plain text on a terminal."""

import sys
from functools import cache
from typing import Any

from masttarget.ports import Log


def log_to_stderr() -> Log:
    """A log that writes every event with its time to stderr.

    It is set up with its first event: structlog takes 0.1 s to import, for which no first byte should wait.
    """

    def log(event: str, /, **facts: object) -> None:
        _logger().msg(event, **facts)

    return log


@cache
def _logger() -> Any:
    import structlog

    processors = structlog.processors
    renderer = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else processors.JSONRenderer()
    structlog.configure(
        processors=[processors.TimeStamper(fmt="iso", utc=True), renderer],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    return structlog.get_logger()
