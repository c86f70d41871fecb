"""A TCP proxy between agent and master target that does to the traffic what networks and attackers do."""

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

HEADER = struct.Struct("<4sBBHIQI")
SEALED = 2

Deed = Callable[[list[bytes]], list[bytes] | None]
"""Gets the frames so far in one direction, the newest last; answers the bytes to pass on, None to hang up."""


def pass_on(frames: list[bytes]) -> list[bytes] | None:
    return [frames[-1]]


class Relay:
    """Listens on `port`; each connection goes to `to`, frame by frame through the deed of its direction."""

    def __init__(self, to: int, up: Deed = pass_on, down: Deed = pass_on) -> None:
        self._to = to
        self._deeds = {"up": up, "down": down}
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._sockets: list[socket.socket] = [self._listening]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> "Relay":
        return self

    def hang_up(self) -> None:
        """No byte passes any more in any connection."""
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def __exit__(self, *_: object) -> None:
        self.hang_up()
        for each in self._sockets:
            each.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                self._sockets += [near, far]
                for direction, source, sink in (("up", near, far), ("down", far, near)):
                    thread = threading.Thread(
                        target=self._pump, args=(source, sink, self._deeds[direction]), daemon=True
                    )
                    self._threads.append(thread)
                    thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket, deed: Deed) -> None:
        frames: list[bytes] = []
        with suppress(OSError):
            while (frame := _frame(source)) is not None:
                frames.append(frame)
                out = deed(frames)
                if out is None:
                    break
                for piece in out:
                    sink.sendall(piece)
                del frames[:-16]
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def _frame(source: socket.socket) -> bytes | None:
    head = _exactly(source, HEADER.size)
    if head is None:
        return None
    body = _exactly(source, HEADER.unpack(head)[-1])
    return None if body is None else head + body


def _exactly(source: socket.socket, count: int) -> bytes | None:
    out = bytearray()
    while len(out) < count:
        piece = source.recv(count - len(out))
        if not piece:
            return None
        out += piece
    return bytes(out)


def sealed(frame: bytes) -> bool:
    return frame[5] == SEALED


class Once:
    """The deed happens to the n-th sealed frame of a stream other than the session's; all others pass."""

    def __init__(self, number: int, deed: Deed) -> None:
        self._number = number
        self._deed = deed
        self._seen = 0
        self.done = False

    def __call__(self, frames: list[bytes]) -> list[bytes] | None:
        if sealed(frames[-1]) and HEADER.unpack(frames[-1][: HEADER.size])[3] != 0:
            self._seen += 1
            if self._seen == self._number:
                self.done = True
                return self._deed(frames)
        return [frames[-1]]


def flipped(bit: int) -> Deed:
    def deed(frames: list[bytes]) -> list[bytes] | None:
        frame = bytearray(frames[-1])
        at = bit % (8 * len(frame))
        frame[at // 8] ^= 1 << at % 8
        return [bytes(frame)]

    return deed


def replayed(frames: list[bytes]) -> list[bytes] | None:
    return [frames[-1], frames[-1]]


def reordered(frames: list[bytes]) -> list[bytes] | None:
    """The frame before (of whatever stream) comes once more in this one's place."""
    return [frames[-2], frames[-1]]


def dropped(frames: list[bytes]) -> list[bytes] | None:
    return []


def cut_short(frames: list[bytes]) -> list[bytes] | None:
    return [frames[-1][:-5]]


def hung_up(frames: list[bytes]) -> list[bytes] | None:
    return None
