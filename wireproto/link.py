"""One connection over any pipe of bytes: moves them between a lent transport and the sans-I/O `Connection`."""

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Protocol, runtime_checkable

from wireproto.connection import Connection, Event
from wireproto.errors import ConnectionLost
from wireproto.messages import Message


class Transport(Protocol):
    """A pipe of bytes; a connected socket is one. Failures are `OSError`."""

    def recv_into(self, buffer: memoryview, /) -> int:
        """Waits for bytes and puts some into `buffer`; 0 when the peer has closed."""
        ...

    def send(self, data: memoryview | bytes, /) -> int:
        """Waits until some bytes, from the first one on, were taken; answers how many."""
        ...

    def shutdown(self, how: int, /) -> None:
        """With 2: no byte moves any more in either direction; whoever waits in the pipe is woken."""
        ...

    def close(self) -> None:
        """The pipe is given back."""
        ...


@runtime_checkable
class Lending(Transport, Protocol):
    """A pipe whose memory is lent: frames are sealed into it and opened from it."""

    frame_bytes: int
    """A frame in it has at most so many bytes."""

    def room(self, size: int) -> memoryview:
        """`size` bytes, at most a frame, to be written and told of with `sent`; waits for them."""
        ...

    def sent(self, count: int) -> None:
        """The first `count` bytes of the room are on their way."""
        ...

    def peek(self, size: int) -> memoryview | None:
        """The next `size` bytes where they lie, until `taken`; None where they do not lie together.

        Waits for some; empty when the peer has closed.
        """
        ...

    def taken(self, count: int) -> None:
        """So many bytes of what was peeked at are used up."""
        ...


class Link:
    """A connection that moves: one thread receives; any thread sends, one at a time under `lock`.

    Counts what crosses the pipe in both directions, headers and tags included.
    """

    def __init__(
        self,
        connection: Connection,
        transport: Transport,
        lock: AbstractContextManager[object],
        monotonic: Callable[[], float],
        peer: str,
    ) -> None:
        self.connection = connection
        self.peer = peer
        self.bytes_sent = 0
        self.bytes_received = 0
        self.transport = transport
        self._lending = transport if isinstance(transport, Lending) else None
        if self._lending is not None:
            connection.place = self._room
            connection.frame_bytes = self._lending.frame_bytes
        self._lock = lock
        self._monotonic = monotonic
        self.patient: Callable[[], bool] = bool
        """Whether a peer that neither sends nor takes a byte is known to live: then it is waited for once more."""
        self.more: Callable[[], bool] = bool
        """Whether a good part of another frame is there already; False where nobody can tell."""

    def receive(self) -> Event:
        """The next event; waits for it. Errors: `ConnectionLost` and everything that `Connection.fed` raises."""
        while True:
            try:
                count, events = self._fed()
            except OSError as error:
                if _timed_out(error) and self.patient():
                    continue
                raise self._lost(error) from error
            if count == 0:
                raise ConnectionLost(peer=self.peer, reason="the other end closed it")
            self.bytes_received += count
            if events:
                return events[0]

    def _fed(self) -> tuple[int, list[Event]]:
        """What came next (0 bytes: the end), and what it brought."""
        due = self.connection.due
        if self._lending is not None and due:
            body = self._lending.peek(due)
            if body is not None:
                events = self.connection.fed_whole(body) if body else []
                self._lending.taken(len(body))
                return len(body), events
        count = self.transport.recv_into(self.connection.wanted())
        return count, self.connection.fed(count) if count else []

    def send(self, stream: int, message: Message) -> tuple[int, int]:
        """The message is on its way; answers its sequence and the bytes of its frame. Errors: `ConnectionLost`."""
        with self._lock:
            self._check_open()
            sequence = self.connection.sequence(stream)
            frame = self.connection.send(stream, message, self._monotonic())
            self._push_sealed(frame)
            return sequence, len(frame)

    def send_data(self, stream: int, count: int, plain: memoryview) -> tuple[int, int]:
        """As `send`, for a data frame that already stands in `plain` (see `Connection.send_data`)."""
        with self._lock:
            self._check_open()
            sequence = self.connection.sequence(stream)
            frame = self.connection.send_data(stream, count, plain, self._monotonic())
            self._push_sealed(frame)
            return sequence, len(frame)

    def send_clear(self, data: bytes) -> None:
        """Bytes of the handshake are on their way."""
        with self._lock:
            self._push(data)

    def _check_open(self) -> None:
        if not self.connection.may_send:
            raise ConnectionLost(peer=self.peer, reason="the dialogue has ended")

    def _room(self, size: int) -> memoryview:
        """See `Lending`. Nothing has gone yet when this fails. Errors: `ConnectionLost`."""
        assert self._lending is not None
        while True:
            try:
                return self._lending.room(size)
            except OSError as error:
                if not (_timed_out(error) and self.patient()):
                    raise self._lost(error) from error

    def _push_sealed(self, frame: memoryview) -> None:
        if self._lending is None:
            self._push(frame)
        else:
            self._lending.sent(len(frame))
            self.bytes_sent += len(frame)

    def _push(self, data: memoryview | bytes) -> None:
        left = memoryview(data)
        while left:
            try:
                taken = self.transport.send(left)
            except OSError as error:
                if _timed_out(error):
                    if self.patient():
                        continue
                    with suppress(
                        OSError
                    ):  # half a frame may have gone: nothing that followed would be understood
                        self.transport.shutdown(2)
                raise self._lost(error) from error
            self.bytes_sent += taken
            left = left[taken:]

    def finish(self) -> None:
        """Nothing more is sent; what was sent still arrives."""
        with suppress(OSError):
            self.transport.shutdown(1)

    def drain(self) -> None:
        """The peer has closed, or the pipe was closed here; what it still sent is thrown away.

        Closing a socket with unread bytes would make the peer lose what it was told last.
        """
        scrap = memoryview(bytearray(65536))
        with suppress(OSError):
            while self.transport.recv_into(scrap):
                pass

    def close(self) -> None:
        """The pipe is given back; a thread that waits in `receive` gets `ConnectionLost`."""
        with suppress(OSError):  # not connected any more: closed all the same
            self.transport.shutdown(2)
        self.transport.close()

    def _lost(self, error: OSError) -> ConnectionLost:
        if _timed_out(error):
            return ConnectionLost(peer=self.peer, reason="no byte moved for too long")
        return ConnectionLost(peer=self.peer, reason=error.strerror or str(error))


def _timed_out(error: OSError) -> bool:
    return isinstance(error, TimeoutError | BlockingIOError)
