"""Time as something that is passed in: roles ask a clock, tests turn its hands."""

import time
from typing import Protocol


class Clock(Protocol):
    """Two hands: one that never goes back, one that shows the date."""

    def monotonic(self) -> float:
        """Seconds since some instant; never goes back."""
        ...

    def now(self) -> float:
        """Seconds since 1970-01-01T00:00Z; may jump."""
        ...

    def sleep(self, seconds: float) -> None:
        """Returns when `seconds` have passed."""
        ...


class SystemClock:
    """The machine's clock."""

    def monotonic(self) -> float:
        return time.monotonic()

    def now(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
