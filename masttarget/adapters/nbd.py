"""A point as a read-only NBD export: fixed newstyle handshake, simple replies (NBD protocol, doc/proto.md of nbd).

Any number of clients, one thread each; one read at a time. Whatever a client sends, the point stays as it is.
"""

import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from disks.disk import Disk
from drcore.errors import HomewardError
from drcore.limits import MIB
from masttarget.errors_retention import ServeFailed

PORT: Final = 10809
_PORT_MAX: Final = 65535
READ_BYTES_MAX: Final = 32 * MIB
"""The protocol's own bound on a request that was not negotiated otherwise."""
OPTION_BYTES_MAX: Final = 8192
_NBDMAGIC, _IHAVEOPT, _REPLY = 0x4E42444D41474943, 0x49484156454F5054, 0x3E889045565A9
_REQUEST_MAGIC, _SIMPLE_MAGIC = 0x25609513, 0x67446698
_FIXED, _NO_ZEROES = 1, 2
_EXPORT_NAME, _ABORT, _LIST, _INFO, _GO = 1, 2, 3, 6, 7
_ACK, _SERVER, _INFO_REPLY = 1, 2, 3
_ERR_UNSUP, _ERR_INVALID = (1 << 31) | 1, (1 << 31) | 3
_FLAGS: Final = 1 | 2 | 4 | 256
"""Has flags, read-only, takes flushes, any number of connections."""
_READ, _WRITE, _DISC, _FLUSH = 0, 1, 2, 3
_EPERM, _EIO, _EINVAL = 1, 5, 22


class NbdServer:
    """Serves `disk` from `run` to `close`. Errors of the constructor: `ServeFailed` (HW-MT-046)."""

    def __init__(self, disk: Disk, address: str, on_error: Callable[[HomewardError], None]) -> None:
        """`address` is HOST:PORT, or the absolute path of a UNIX socket to be made."""
        self._disk = disk
        self._on_error = on_error
        self._lock = threading.Lock()
        self._closed = False
        self._clients: set[socket.socket] = set()
        self._path = Path(address) if address.startswith("/") else None
        try:
            if self._path is not None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._socket.bind(address)
                self._socket.listen()
                self.uri = f"nbd+unix:///?socket={address}"
            else:
                host, _, port = address.rpartition(":")
                if not port.isdecimal() or int(port) > _PORT_MAX:
                    raise ServeFailed(address=address, reason="no HOST:PORT, and no absolute path")
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                self._socket = socket.create_server((host.strip("[]"), int(port)), family=family)
                self.uri = f"nbd://{host}:{self._socket.getsockname()[1]}"
        except OSError as error:
            # Not the text of a failed bind, which Python makes longer.
            reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
            raise ServeFailed(address=address, reason=reason or "no such address") from error

    def run(self) -> None:
        """Serves until `close`."""
        while not self._closed:
            try:
                client, _ = self._socket.accept()
            except OSError:
                break
            self._clients.add(client)
            threading.Thread(target=self._client, args=(client,), name="nbd", daemon=True).start()

    def close(self) -> None:
        """Nobody is served any more."""
        self._closed = True
        for one in (self._socket, *list(self._clients)):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _client(self, client: socket.socket) -> None:
        try:
            if self._agree(client):
                while self._request(client):
                    pass
        except (OSError, EOFError):
            pass  # the client has gone, or says what no client says
        except HomewardError as error:
            self._on_error(error)
        finally:
            self._clients.discard(client)
            client.close()

    def _agree(self, client: socket.socket) -> bool:
        """Whether the client wants to read now."""
        client.sendall(struct.pack(">QQH", _NBDMAGIC, _IHAVEOPT, _FIXED | _NO_ZEROES))
        (flags,) = struct.unpack(">I", _exactly(client, 4))
        while True:
            magic, option, length = struct.unpack(">QII", _exactly(client, 16))
            if magic != _IHAVEOPT or length > OPTION_BYTES_MAX:
                raise EOFError
            data = _exactly(client, length)
            if option == _EXPORT_NAME:
                client.sendall(struct.pack(">QH", self._disk.size, _FLAGS))
                if not flags & _NO_ZEROES:
                    client.sendall(bytes(124))
                return True
            if option in (_INFO, _GO):
                if length < 6 or struct.unpack_from(">I", data)[0] > length - 6:
                    _reply(client, option, _ERR_INVALID)
                    continue
                _reply(client, option, _INFO_REPLY, struct.pack(">HQH", 0, self._disk.size, _FLAGS))
                _reply(client, option, _ACK)
                if option == _GO:
                    return True
            elif option == _LIST:
                _reply(client, option, _SERVER, struct.pack(">I", 0))
                _reply(client, option, _ACK)
            elif option == _ABORT:
                _reply(client, option, _ACK)
                return False
            else:
                _reply(client, option, _ERR_UNSUP)

    def _request(self, client: socket.socket) -> bool:
        """Whether there may be another one."""
        magic, _, kind, cookie, offset, length = struct.unpack(">IHHQQI", _exactly(client, 28))
        if magic != _REQUEST_MAGIC or kind == _DISC:
            return False
        if kind == _WRITE:
            rest = length
            while rest:
                rest -= len(_exactly(client, min(rest, MIB)))
            _answer(client, cookie, _EPERM)
        elif kind == _FLUSH:
            _answer(client, cookie, 0)
        elif kind != _READ:
            _answer(client, cookie, _EPERM if kind in (4, 6) else _EINVAL)
        elif length > READ_BYTES_MAX or offset + length > self._disk.size:
            _answer(client, cookie, _EINVAL)
        else:
            into = memoryview(bytearray(length))
            try:
                with self._lock:
                    self._disk.read(offset, into)
            except HomewardError as error:
                self._on_error(error)
                _answer(client, cookie, _EIO)
                return True
            _answer(client, cookie, 0)
            client.sendall(into)
        return True


def _exactly(client: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        piece = client.recv(length - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def _reply(client: socket.socket, option: int, kind: int, data: bytes = b"") -> None:
    client.sendall(struct.pack(">QIII", _REPLY, option, kind, len(data)) + data)


def _answer(client: socket.socket, cookie: int, error: int) -> None:
    client.sendall(struct.pack(">IIQ", _SIMPLE_MAGIC, error, cookie))
