"""A point as a read-only NBD export: fixed newstyle handshake, simple or structured replies (doc/proto.md of nbd).

Any number of clients, one thread each; one read at a time. Whatever a client sends, the point stays as it is. One that
asks for `base:allocation` learns what need not be read.
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
from masttarget.adapters import nbd_words as words
from masttarget.adapters.nbd_words import Answer, Chunk, Command, Option
from masttarget.errors_retention import ServeFailed

PORT: Final = 10809
_PORT_MAX: Final = 65535
READ_BYTES_MAX: Final = 32 * MIB
"""The protocol's own bound on a request that was not negotiated otherwise."""
OPTION_BYTES_MAX: Final = 8192


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
                self._socket = _listening_at(self._path)
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
            _Client(client, self._disk, self._lock, self._on_error).serve()
        except (OSError, EOFError):
            pass  # the client has gone, or says what no client says
        except HomewardError as error:
            self._on_error(error)
        finally:
            self._clients.discard(client)
            client.close()


def _listening_at(path: Path) -> socket.socket:
    """A new UNIX socket that only its owner may use: whoever may write to it reads the disk."""
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        found.bind(str(path))
        path.chmod(0o600)  # before `listen` nobody gets in
        found.listen()
    except BaseException:
        found.close()
        raise
    return found


class _Client:
    """One connection, from the handshake to its end. What the client may not say ends it with `EOFError`."""

    def __init__(
        self,
        connection: socket.socket,
        disk: Disk,
        lock: threading.Lock,
        on_error: Callable[[HomewardError], None],
    ) -> None:
        """`lock` is held while `disk` is used."""
        self._connection = connection
        self._disk = disk
        self._lock = lock
        self._on_error = on_error
        self._structured = False
        self._allocation_of: bytes | None = None
        """The name of the export for which `base:allocation` was chosen."""

    def serve(self) -> None:
        """The client has said good-bye."""
        if self._agree():
            while self._request():
                pass

    # The handshake

    def _agree(self) -> bool:
        """Whether the client wants to read now."""
        self._connection.sendall(
            struct.pack(">QQH", words.NBDMAGIC, words.IHAVEOPT, words.FIXED | words.NO_ZEROES)
        )
        (flags,) = struct.unpack(">I", self._exactly(4))
        while True:
            magic, option, length = struct.unpack(">QII", self._exactly(16))
            if magic != words.IHAVEOPT or length > OPTION_BYTES_MAX:
                raise EOFError
            data = self._exactly(length)
            match option:
                case Option.EXPORT_NAME:
                    self._choose(data)
                    self._connection.sendall(struct.pack(">QH", self._disk.size, words.FLAGS))
                    if not flags & words.NO_ZEROES:
                        self._connection.sendall(bytes(124))
                    return True
                case Option.INFO | Option.GO:
                    if self._tell_export(option, data) and option == Option.GO:
                        return True
                case Option.LIST:
                    self._reply(option, Answer.SERVER, struct.pack(">I", 0))
                    self._reply(option, Answer.ACK)
                case Option.STRUCTURED_REPLY:
                    self._structured = self._structured or not data
                    self._reply(option, Answer.ERR_INVALID if data else Answer.ACK)
                case Option.LIST_META_CONTEXT | Option.SET_META_CONTEXT:
                    self._contexts(option, data)
                case Option.ABORT:
                    self._reply(option, Answer.ACK)
                    return False
                case _:
                    self._reply(option, Answer.ERR_UNSUP)

    def _tell_export(self, option: int, data: bytes) -> bool:
        name = words.export_of(data)
        if name is None:
            self._reply(option, Answer.ERR_INVALID)
            return False
        if option == Option.GO:
            self._choose(name)
        self._reply(option, Answer.INFO, struct.pack(">HQH", 0, self._disk.size, words.FLAGS))
        self._reply(option, Answer.ACK)
        return True

    def _choose(self, name: bytes) -> None:
        """Any name is the export's; a context that was chosen under another one is not chosen."""
        if self._allocation_of != name:
            self._allocation_of = None

    def _contexts(self, option: int, data: bytes) -> None:
        asked = words.queries_of(data)
        if asked is None or not self._structured:
            self._reply(option, Answer.ERR_INVALID)
            return
        name, queries = asked
        listing = option == Option.LIST_META_CONTEXT
        known = words.knows_allocation(queries, listing=listing)
        if not listing:
            self._allocation_of = name if known else None
        if known:
            number = 0 if listing else words.CONTEXT_ID
            self._reply(option, Answer.META_CONTEXT, struct.pack(">I", number) + words.ALLOCATION)
        self._reply(option, Answer.ACK)

    # Requests

    def _request(self) -> bool:
        """Whether there may be another one."""
        magic, flags, kind, cookie, offset, length = struct.unpack(">IHHQQI", self._exactly(28))
        if magic != words.REQUEST_MAGIC or kind == Command.DISC:
            return False
        inside = offset + length <= self._disk.size
        match kind:
            case Command.WRITE:
                rest = length
                while rest:
                    rest -= len(self._exactly(min(rest, MIB)))
                self._answer(cookie, words.EPERM)
            case Command.TRIM | Command.WRITE_ZEROES:
                self._answer(cookie, words.EPERM)
            case Command.FLUSH:
                self._answer(cookie, 0)
            case Command.READ if inside and 0 < length <= READ_BYTES_MAX:
                self._read(cookie, offset, length)
            case Command.READ if inside and not length:
                self._answer(cookie, 0)
            case Command.BLOCK_STATUS if inside and length and self._allocation_of is not None:
                self._block_status(cookie, offset, length, one=bool(flags & words.REQ_ONE))
            case _:
                self._answer(cookie, words.EINVAL)
        return True

    def _read(self, cookie: int, offset: int, length: int) -> None:
        into = memoryview(bytearray(length))
        try:
            with self._lock:
                self._disk.read(offset, into)
        except HomewardError as error:
            self._on_error(error)
            self._answer(cookie, words.EIO)
            return
        if self._structured:
            head = words.chunk(cookie, Chunk.OFFSET_DATA, 8 + length) + struct.pack(">Q", offset)
        else:
            head = words.simple_reply(cookie, 0)
        self._connection.sendall(head)
        self._connection.sendall(into)

    def _block_status(self, cookie: int, offset: int, length: int, *, one: bool) -> None:
        try:
            with self._lock:
                found = words.block_status(self._disk.extents(offset, length), one=one)
        except HomewardError as error:
            self._on_error(error)
            self._answer(cookie, words.EIO)
            return
        self._connection.sendall(words.chunk(cookie, Chunk.BLOCK_STATUS, len(found)) + found)

    def _answer(self, cookie: int, error: int) -> None:
        """Yes without data, or no."""
        if not self._structured:
            self._connection.sendall(words.simple_reply(cookie, error))
        elif error:
            self._connection.sendall(words.error_chunk(cookie, error))
        else:
            self._connection.sendall(words.chunk(cookie, Chunk.NONE, 0))

    def _reply(self, option: int, kind: Answer, data: bytes = b"") -> None:
        self._connection.sendall(words.option_reply(option, kind, data))

    def _exactly(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            piece = self._connection.recv(length - len(data))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)
