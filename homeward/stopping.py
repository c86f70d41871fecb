"""Ctrl-C and SIGTERM as a wish, not as an end."""

import signal
from collections.abc import Callable


class Interrupt:
    """Within it, Ctrl-C and SIGTERM ask the work to stop instead of tearing it down."""

    def __init__(self, stop: Callable[[], None] | None = None) -> None:
        self._stop = stop
        self.asked = False

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True
        if self._stop is not None:
            self._stop()

    def __enter__(self) -> None:
        self._before = [signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)]

    def __exit__(self, *_: object) -> None:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), self._before, strict=True):
            signal.signal(number, handler)
