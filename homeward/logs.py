"""Structured log events on stderr: one JSON object a line, or plain text on a terminal."""

import sys

from masttarget.ports import Log


def log_to_stderr() -> Log:
    """A log that writes every event with its time to stderr."""
    import structlog

    renderer = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[structlog.processors.TimeStamper(fmt="iso", utc=True), renderer],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logger = structlog.get_logger()

    def log(event: str, /, **facts: object) -> None:
        logger.msg(event, **facts)

    return log
