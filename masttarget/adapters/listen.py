"""The data port: accepts connections, gives each a thread, hangs up on those that do not prove themselves in time."""

import contextlib
import fcntl
import socket
import struct
import termios
import threading
from collections.abc import Callable
from typing import Final, Protocol

from drcore.clock import Clock
from drcore.limits import (
    FOLLOWING_BYTES_MIN,
    HANDSHAKE_SECONDS_MAX,
    IDLE_SECONDS_MAX,
    UNPROVED_CONNECTIONS_MAX,
)
from drcore.secret import Secret
from masttarget.errors import ListenFailed
from wireproto.connection import Connection
from wireproto.link import Link, Transport

_BACKLOG: Final = 128
ACCEPT_PAUSE_SECONDS: Final = 0.1
_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4))

Serve = Callable[[Link, Callable[[], None]], None]


class Pipe(Transport, Protocol):
    """A connection that is no socket."""

    def waiting(self) -> int:
        """How many bytes have come that were not received yet. For the receiving thread."""
        ...


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Errors: `ListenFailed` (HW-MT-015)."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ListenFailed(address=f"{host}:{port}", reason=error.strerror or str(error)) from error


class Listener:
    """Accepts on a socket that listens; owns it."""

    def __init__(
        self, listening: socket.socket, shared: Secret, clock: Clock, first: Pipe | None = None
    ) -> None:
        """`first` is a connection that is there already."""
        self._first = first
        self._shared = shared
        self._clock = clock
        self._unproved = threading.BoundedSemaphore(UNPROVED_CONNECTIONS_MAX)
        self._closed = False
        self._threads: set[threading.Thread] = set()
        self._socket = listening

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that are really listened on."""
        host, port = self._socket.getsockname()[:2]
        return host, port

    def run(self, serve: Serve) -> None:
        """Accepts until `close`."""
        if self._first is not None and self._unproved.acquire(blocking=False):
            self._begin(self._first, "this machine", serve)
        while True:
            try:
                accepted, peer = self._socket.accept()
            except OSError:
                if self._closed:
                    return
                self._clock.sleep(ACCEPT_PAUSE_SECONDS)  # out of descriptors, or a peer that was gone at once
                continue
            if not self._unproved.acquire(blocking=False):
                accepted.close()
                continue
            self._begin(accepted, _name(peer), serve)

    def _begin(self, pipe: Pipe | socket.socket, peer: str, serve: Serve) -> None:
        thread = threading.Thread(target=self._serve, args=(pipe, peer, serve), name="lane", daemon=True)
        self._threads.add(thread)
        thread.start()

    def close(self) -> None:
        """No connection is accepted any more."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def join(self) -> None:
        """Every connection's thread has ended (their links have been closed before)."""
        for thread in list(self._threads):
            thread.join()

    def _serve(self, pipe: Pipe | socket.socket, peer: str, serve: Serve) -> None:
        unproved = [True]

        def prove() -> None:
            if unproved.pop():
                deadline.cancel()
                self._unproved.release()

        # The deadline is for the whole handshake: a byte now and then does not prolong it.
        deadline = threading.Timer(HANDSHAKE_SECONDS_MAX, lambda: _hang_up(pipe))
        deadline.daemon = True
        deadline.start()
        try:
            if isinstance(pipe, socket.socket):
                prepare(pipe)
            connection = Connection(is_agent=False, shared=self._shared)
            link = Link(connection, pipe, threading.Lock(), self._clock.monotonic, peer)
            link.more = lambda: waiting_bytes(pipe) >= FOLLOWING_BYTES_MIN
            serve(link, prove)
        finally:
            deadline.cancel()
            if unproved:
                self._unproved.release()
            _hang_up(pipe)
            pipe.close()
            self._threads.discard(threading.current_thread())


def prepare(stream: socket.socket) -> None:
    """Small messages go at once; a peer that has vanished, or takes nothing for too long, is noticed."""
    if stream.family != socket.AF_UNIX:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            stream.setsockopt(socket.IPPROTO_TCP, option, value)
    for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
        stream.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", IDLE_SECONDS_MAX, 0))


def waiting_bytes(stream: Pipe | socket.socket) -> int:
    """How much has come that was not received yet; 0 where the stream is closed, which receiving from it will say."""
    if not isinstance(stream, socket.socket):
        return stream.waiting()
    try:
        (count,) = struct.unpack("i", fcntl.ioctl(stream, termios.FIONREAD, bytes(4)))
    except (OSError, ValueError):
        return 0
    return int(count)


def _name(peer: object) -> str:
    """The peer's address for people; one on this machine has none."""
    return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "this machine"


def _hang_up(stream: Pipe | socket.socket) -> None:
    with contextlib.suppress(OSError):
        stream.shutdown(socket.SHUT_RDWR)
