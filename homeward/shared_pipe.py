"""A pipe of bytes between two processes of which one forked the other: memory that both have, and nothing is copied.

Each direction has a ring of records, an eventfd that says how many bytes came, and one that says how many are free
again. A record begins with its length, lies in one run, and begins at a multiple of 8; where the next one would not
fit before the end of the ring, a mark leads back to its start. Frames are sealed into the ring and opened from it
(`wireproto.link.Lending`): what a local socket costs instead is two copies and fresh pages for each megabyte.

The memory has no name and no other process has it; what lies in it is sealed all the same. A socket pair beside it
carries no byte: its end tells that the other side has closed, or has died.
"""

import mmap
import os
import select
import socket
import struct
from contextlib import suppress
from typing import Final

from drcore.limits import IDLE_SECONDS_MAX, SHARED_FRAME_BYTES_MAX, SHARED_RING_BYTES

_LENGTH: Final = struct.Struct("=Q")
_BACK: Final = 2**64 - 1
"""In place of a length: the next record begins at the start of the ring."""
_FREED_BYTES_MIN: Final = SHARED_RING_BYTES // 8
"""So much is given back at once, so that small messages cost no call each."""


def _record_bytes(size: int) -> int:
    return _LENGTH.size + -(-size // _LENGTH.size) * _LENGTH.size


class _Ring:
    """One direction."""

    def __init__(self) -> None:
        self.memory = memoryview(mmap.mmap(-1, SHARED_RING_BYTES))
        self.filled = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.freed = os.eventfd(SHARED_RING_BYTES, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def close(self) -> None:
        """The descriptors are given back; nobody waits for them."""
        os.close(self.filled)
        os.close(self.freed)


class SharedPipe:
    """One end; see `wireproto.link.Transport` and `Lending`. One thread receives, one at a time sends."""

    def __init__(self, alive: socket.socket, out: _Ring, into: _Ring) -> None:
        self.frame_bytes = SHARED_FRAME_BYTES_MAX
        self._alive = alive
        self._out = out
        self._into = into
        self._room_of, self._came = select.poll(), select.poll()
        self._room_of.register(out.freed, select.POLLIN)
        self._room_of.register(alive, 0)  # that it has hung up is told without being asked for
        self._came.register(into.filled, select.POLLIN)
        self._came.register(alive, select.POLLRDHUP)
        # Of the sender: where the next record goes, how many bytes are free, how many a mark takes before it.
        self._at = self._free = self._skipped = 0
        # Of the receiver: where the record lies, what of it is left, what came, what was read and not yet given back.
        self._from = self._left = self._there = self._read = 0

    # Sending

    def room(self, size: int) -> memoryview:
        """`size` bytes (at most a frame) of the ring, to be written and told of with `sent`; waits for them.

        Failures are `OSError`.
        """
        needed = _record_bytes(size)
        skipped = SHARED_RING_BYTES - self._at if self._at + needed > SHARED_RING_BYTES else 0
        while self._free < skipped + needed:
            self._free += self._wait(self._room_of, self._out.freed)
        if skipped:
            _LENGTH.pack_into(self._out.memory, self._at, _BACK)
            self._at, self._free, self._skipped = 0, self._free - skipped, self._skipped + skipped
        start = self._at + _LENGTH.size
        return self._out.memory[start : start + size]

    def sent(self, count: int) -> None:
        """The first `count` bytes of the room are on their way."""
        used = _record_bytes(count)
        _LENGTH.pack_into(self._out.memory, self._at, count)
        told, self._skipped = self._skipped + used, 0
        self._at = (self._at + used) % SHARED_RING_BYTES
        self._free -= used
        os.eventfd_write(self._out.filled, told)

    def send(self, data: memoryview | bytes, /) -> int:
        """See `Transport`."""
        count = min(len(data), self.frame_bytes)
        if count:
            self.room(count)[:] = data[:count]
            self.sent(count)
        return count

    # Receiving

    def peek(self, size: int) -> memoryview | None:
        """The next `size` bytes where they lie, until `taken`; None where they do not lie in one record.

        Waits for a record; empty when the other end has closed. Failures are `OSError`.
        """
        if not self._record():
            return self._into.memory[:0]
        return self._into.memory[self._from : self._from + size] if self._left >= size else None

    def taken(self, count: int) -> None:
        """So many bytes of what was peeked at are used up."""
        self._left -= count
        self._from += count
        if not self._left:
            end = -(-self._from // _LENGTH.size) * _LENGTH.size
            self._read += end - self._from + count
            self._from = end % SHARED_RING_BYTES
        else:
            self._read += count
        if self._read >= _FREED_BYTES_MIN:
            os.eventfd_write(self._into.freed, self._read)
            self._read = 0

    def recv_into(self, buffer: memoryview, /) -> int:
        """See `Transport`."""
        if not self._record():
            return 0
        count = min(len(buffer), self._left)
        buffer[:count] = self._into.memory[self._from : self._from + count]
        self.taken(count)
        return count

    def waiting(self) -> int:
        """How many bytes have come that were not received yet. For the receiving thread."""
        with suppress(BlockingIOError):
            self._there += os.eventfd_read(self._into.filled)
        return self._left + self._there

    def _record(self) -> bool:
        """A record is begun, of which some is left; False when there is none and never will be."""
        while not self._left:
            if not self._there:
                came = self._wait(self._came, self._into.filled, at_end=0)
                if not came:
                    return False
                self._there += came
            (length,) = _LENGTH.unpack_from(self._into.memory, self._from)
            if length == _BACK:
                rest = SHARED_RING_BYTES - self._from
                self._from, self._there, self._read = 0, self._there - rest, self._read + rest
                continue
            self._left = length
            self._from += _LENGTH.size
            self._read += _LENGTH.size
            self._there -= _record_bytes(length)
        return True

    # Waiting

    def _wait(self, poll: select.poll, event: int, at_end: int | None = None) -> int:
        """What the event counts, at least 1; `at_end` (or a broken pipe) when the other side has closed."""
        while True:
            try:
                return os.eventfd_read(event)
            except BlockingIOError:
                found = dict(poll.poll(IDLE_SECONDS_MAX * 1000))
            if not found:
                raise TimeoutError("no byte moved")
            if event not in found:
                with suppress(
                    BlockingIOError
                ):  # it may have come between the poll's look at it and that at the end
                    return os.eventfd_read(event)
                if at_end is None:
                    raise BrokenPipeError("the other end closed it")
                return at_end

    def shutdown(self, how: int, /) -> None:
        """See `Transport`."""
        self._alive.shutdown(how)

    def close(self) -> None:
        """The other side sees that this one has gone; who waits here is woken.

        The descriptors stay: a thread that is about to wait for one must not meet another of the same number.
        """
        with suppress(OSError):
            self._alive.shutdown(socket.SHUT_RDWR)


class SharedPipes:
    """Both ends, made before the fork; after it each process `keep`s one."""

    def __init__(self) -> None:
        self._rings = _Ring(), _Ring()
        self._alive = socket.socketpair()
        out, into = self._rings
        self.ends = SharedPipe(self._alive[0], out, into), SharedPipe(self._alive[1], into, out)

    def keep(self, number: int) -> SharedPipe:
        """The end is this process' own; the other one is the other process'."""
        self._alive[1 - number].close()
        return self.ends[number]

    def give_back(self) -> None:
        """The descriptors are given back; no thread uses the end any more."""
        for alive in self._alive:
            alive.close()
        for ring in self._rings:
            ring.close()
