"""The orders between the loop that compares and the lanes that ship."""

import threading
from collections import deque
from typing import Final, Generic, TypeVar

from drcore.errors import HomewardError

PENDING_MAX: Final = 32
"""Orders that wait for a lane: a span each at most, read only when its turn comes, so this bounds no memory worth
naming; it keeps the comparison from running far ahead of what is sent."""

_Order = TypeVar("_Order")


class WorkQueue(Generic[_Order]):
    """Orders go in, lanes take them out; `settle` waits until everything put in was sent. Any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._orders: deque[_Order] = deque()
        self._unsent = 0
        self._closed = False
        self._failure: HomewardError | None = None

    def put(self, order: _Order) -> None:
        """The order waits for a lane. Errors: the failure that ended the session."""
        with self._changed:
            while len(self._orders) >= PENDING_MAX and self._failure is None:
                self._changed.wait()
            self._raise_failure()
            self._orders.append(order)
            self._unsent += 1
            self._changed.notify_all()

    def get(self, linger: float | None) -> _Order | None:
        """The next order; None when none came within `linger` seconds (None: for ever) or the queue was closed."""
        with self._changed:
            if not self._orders and not self._closed and self._failure is None:
                self._changed.wait_for(lambda: self._orders or self._closed or self._failure, linger)
            self._raise_failure()
            if not self._orders:
                return None
            order = self._orders.popleft()
            self._changed.notify_all()
            return order

    def put_back(self, order: _Order) -> None:
        """The rest of an order that was taken out is the next to be taken, by whichever lane."""
        with self._changed:
            self._orders.appendleft(order)
            self._unsent += 1
            self._changed.notify_all()

    def sent(self, count: int) -> None:
        """`count` orders that were taken out have been sent."""
        with self._changed:
            self._unsent -= count
            if not self._unsent:
                self._changed.notify_all()

    def settle(self) -> None:
        """Everything put in was sent. Errors: the failure that ended the session."""
        with self._changed:
            self._changed.wait_for(lambda: self._unsent == 0 or self._failure)
            self._raise_failure()

    @property
    def full(self) -> bool:
        """The lanes are what holds up."""
        return len(self._orders) >= PENDING_MAX

    @property
    def closed(self) -> bool:
        """No more orders will come."""
        return self._closed

    def close(self) -> None:
        """Lanes that wait get None."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def fail(self, error: HomewardError) -> None:
        """Everybody who waits gets `error`."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure
