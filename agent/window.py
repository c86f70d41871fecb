"""What is under way and not durable yet: never more than may be sent twice after a crash."""

import threading
from collections import deque

from drcore.errors import HomewardError
from drcore.limits import UNACKNOWLEDGED_BYTES_MAX


class Window:
    """Counts the wire bytes of frames until the master target calls them durable. Any thread."""

    def __init__(self, limit: int = UNACKNOWLEDGED_BYTES_MAX) -> None:
        self._limit = limit
        self._changed = threading.Condition()
        self._under_way: dict[tuple[int, int], deque[tuple[int, int]]] = {}
        self._bytes = 0
        self._forsaken: set[int] = set()
        self._failure: HomewardError | None = None

    def acquire(self, count: int) -> None:
        """Returns when `count` more bytes may be under way. Errors: the failure that ended the session."""
        with self._changed:
            while self._bytes and self._bytes + count > self._limit and self._failure is None:
                self._changed.wait()
            if self._failure is not None:
                raise self._failure
            self._bytes += count

    def check(self) -> None:
        """The session goes on. Errors: the failure that ended it."""
        with self._changed:
            if self._failure is not None:
                raise self._failure

    def sent(self, lane: int, stream: int, sequence: int, reserved: int, count: int) -> None:
        """The frame for which `reserved` bytes were acquired has gone with `count` bytes."""
        with self._changed:
            if stream in self._forsaken:
                self._bytes -= reserved
                self._changed.notify_all()
                return
            self._bytes += count - reserved
            self._under_way.setdefault((lane, stream), deque()).append((sequence, count))

    def durable(self, lane: int, stream: int, sequence: int) -> int:
        """Frames of the stream up to `sequence` are durable; answers their bytes."""
        done = 0
        with self._changed:
            frames = self._under_way.get((lane, stream), deque())
            while frames and frames[0][0] <= sequence:
                done += frames.popleft()[1]
            self._bytes -= done
            self._changed.notify_all()
        return done

    def forsake(self, stream: int) -> None:
        """No frame of the stream is waited for any more: none will become durable."""
        with self._changed:
            self._forsaken.add(stream)
            for (_, of), frames in self._under_way.items():
                if of == stream:
                    self._bytes -= sum(count for _, count in frames)
                    frames.clear()
            self._changed.notify_all()

    def forsook(self, stream: int) -> bool:
        """Whether nothing of the stream is to be sent any more."""
        return stream in self._forsaken

    def settle(self, lane: int) -> None:
        """Everything that went over this lane is durable. Errors: the failure that ended the session."""
        with self._changed:
            while self._failure is None and any(
                frames for (number, _), frames in self._under_way.items() if number == lane
            ):
                self._changed.wait()
            if self._failure is not None:
                raise self._failure

    def fail(self, error: HomewardError) -> None:
        """Everybody who waits gets `error`."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
