"""Frames of one lane that wait a moment, so that the flush of what they overwrite serves several of them.

A frame may be applied when the old contents of its sectors are durable. While the next one is there already, its old
contents join the same flush; where it has still to come, or enough is waiting, all of them are applied.
"""

import threading
from collections.abc import Callable
from typing import Final

from drcore.limits import HELD_BYTES_MAX
from wireproto.connection import Received
from wireproto.messages import Data

_FRAMES_MAX: Final = 4
"""Frames of a lane: four megabytes (eight within a machine) for one flush, which is more than it costs."""


class Room:
    """The memory that waiting frames of all lanes may take."""

    def __init__(self, most: int = HELD_BYTES_MAX) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._taken = 0

    def take(self, count: int) -> bool:
        """So many bytes more are taken; False where they are not there."""
        with self._lock:
            if self._taken + count > self._most:
                return False
            self._taken += count
            return True

    def give(self, count: int) -> None:
        """So many are free again."""
        with self._lock:
            self._taken -= count


class Held:
    """The waiting frames of a lane, in their order; belongs to its thread."""

    def __init__(self, room: Room, more: Callable[[], bool]) -> None:
        """`more`: whether a good part of the next frame is there already."""
        self._room = room
        self._more = more
        self._frames: list[Received] = []

    def hold(self, event: Received) -> bool:
        """The frame waits; False when it is its turn, after those that `take` gives."""
        if not isinstance(event.message, Data) or len(self._frames) >= _FRAMES_MAX or not self._more():
            return False
        size = len(event.message.entries)
        if not self._room.take(size):
            return False
        self._frames.append(event.detached())
        return True

    def take(self) -> list[Received]:
        """The frames, which wait no more."""
        frames, self._frames = self._frames, []
        for event in frames:
            assert isinstance(event.message, Data)
            self._room.give(len(event.message.entries))
        return frames

    def close(self) -> None:
        """Nothing waits; nothing of it was acknowledged."""
        self.take()
