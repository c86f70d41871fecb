"""A read-only NBD export: what need not be read, clients of both kinds of replies, and words that no client says."""

import json
import os
import random
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from disks import catalogue
from disks.disk import Disk, Extent, ExtentKind
from drcore.errors import HomewardError
from drcore.units import ByteCount, ByteOffset
from masttarget.adapters import nbd_words as words
from masttarget.adapters.nbd import NbdServer
from masttarget.adapters.nbd_words import Answer, Chunk, Command, Option
from masttarget.errors_retention import ServeFailed

MIB = 1024 * 1024
SIZE = 16 * MIB + 512
DATA = ((0, 65536), (3 * MIB, 2 * MIB), (16 * MIB, 512))
"""(offset, bytes) of what is not a hole."""


class Counting:
    """A disk that counts what is read of it."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.size = disk.size
        self.bytes_read = 0
        self.extents = disk.extents

    def read(self, offset: int, into: memoryview) -> None:
        self.bytes_read += len(into)
        self._disk.read(offset, into)


class Export:
    """A sparse disk behind a server."""

    def __init__(self, folder: Path, dice: random.Random) -> None:
        self.path = folder / "disk.raw"
        with self.path.open("wb") as file:
            for offset, length in DATA:
                file.seek(offset)
                file.write(dice.randbytes(length))
        self.content = self.path.read_bytes()
        self.disk = Counting(catalogue.look(self.path))
        self.errors: list[HomewardError] = []
        self.address = folder / "nbd.sock"
        self.server = NbdServer(self.disk, str(self.address), self.errors.append)  # type: ignore[arg-type]

    @contextmanager
    def client(self) -> Iterator["Client"]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(str(self.address))
            yield Client(connection)


class Client:
    """The client's side of one connection, byte by byte."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        assert self.take(18) == struct.pack(">QQH", words.NBDMAGIC, words.IHAVEOPT, 3)
        self.send(struct.pack(">I", 3))

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def take(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            piece = self.connection.recv(length - len(data))
            assert piece, "the server hung up"
            data += piece
        return data

    def ask(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Every reply to the option, up to its end."""
        self.send(struct.pack(">QII", words.IHAVEOPT, option, len(data)) + data)
        found: list[tuple[int, bytes]] = []
        while not found or not (found[-1][0] == Answer.ACK or found[-1][0] >> 31):
            magic, told, kind, length = struct.unpack(">QIII", self.take(20))
            assert (magic, told) == (words.REPLY_MAGIC, option)
            found.append((kind, self.take(length)))
        return found

    def command(self, kind: int, offset: int, length: int, flags: int = 0) -> None:
        self.send(struct.pack(">IHHQQI", words.REQUEST_MAGIC, flags, kind, 7, offset, length))

    def simple(self) -> int:
        magic, error, cookie = struct.unpack(">IIQ", self.take(16))
        assert (magic, cookie) == (words.SIMPLE_MAGIC, 7)
        return int(error)

    def chunk(self) -> tuple[int, bytes]:
        magic, flags, kind, cookie, length = struct.unpack(">IHHQI", self.take(20))
        assert (magic, flags, cookie) == (words.CHUNK_MAGIC, 1, 7)
        return kind, self.take(length)


def named(name: bytes, *queries: bytes) -> bytes:
    """The data of an option about contexts."""
    told = struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries))
    return told + b"".join(struct.pack(">I", len(query)) + query for query in queries)


def export_name(name: bytes) -> bytes:
    """The data of GO."""
    return struct.pack(">I", len(name)) + name + struct.pack(">H", 0)


@pytest.fixture
def export(tmp_path: Path, dice: random.Random) -> Iterator[Export]:
    found = Export(tmp_path, dice)
    thread = threading.Thread(target=found.server.run)
    thread.start()
    yield found
    found.server.close()
    thread.join()
    assert found.errors == []


def test_other_programs_read_only_what_is_data(export: Export, tmp_path: Path) -> None:
    uri = export.server.uri
    told = subprocess.run(["nbdinfo", "--map", "--json", uri], check=True, capture_output=True, text=True)
    found = [(one["offset"], one["length"], one["type"]) for one in json.loads(told.stdout)]
    assert found == [
        (0, 65536, 0),
        (65536, 3 * MIB - 65536, 3),
        (3 * MIB, 2 * MIB, 0),
        (5 * MIB, 11 * MIB, 3),
        (16 * MIB, 512, 0),
    ]
    assert export.disk.bytes_read == 0
    for program in (
        ["qemu-img", "convert", "-f", "raw", "-O", "raw", uri],
        ["nbdcopy", uri],
    ):
        export.disk.bytes_read = 0
        copy = tmp_path / f"{program[0]}.raw"
        subprocess.run([*program, copy], check=True, capture_output=True)
        assert copy.read_bytes() == export.content
        assert export.disk.bytes_read < 2 * sum(length for _, length in DATA)


@pytest.mark.parametrize("name", [b"", b"any"])
def test_a_client_that_knows_no_structured_replies_is_served_as_ever(export: Export, name: bytes) -> None:
    with export.client() as client:
        client.send(struct.pack(">QII", words.IHAVEOPT, Option.EXPORT_NAME, len(name)) + name)
        assert client.take(10) == struct.pack(">QH", SIZE, words.FLAGS)
        client.command(Command.READ, 3 * MIB, 4096)
        assert (client.simple(), client.take(4096)) == (0, export.content[3 * MIB : 3 * MIB + 4096])
        for kind, error in (
            (Command.FLUSH, 0),
            (Command.TRIM, words.EPERM),
            (Command.BLOCK_STATUS, words.EINVAL),
            (99, words.EINVAL),
        ):
            client.command(kind, 0, 512)
            assert client.simple() == error
        client.command(Command.WRITE, 0, 512)
        client.send(bytes(512))
        assert client.simple() == words.EPERM


def test_structured_replies_carry_data_extents_and_errors(export: Export) -> None:
    with export.client() as client:
        assert client.ask(Option.STRUCTURED_REPLY) == [(Answer.ACK, b"")]
        context = (Answer.META_CONTEXT, struct.pack(">I", 0) + words.ALLOCATION)
        for queries in ((), (b"base:",), (words.ALLOCATION,)):
            assert client.ask(Option.LIST_META_CONTEXT, named(b"", *queries)) == [context, (Answer.ACK, b"")]
        assert client.ask(Option.LIST_META_CONTEXT, named(b"", b"qemu:")) == [(Answer.ACK, b"")]
        chosen = client.ask(Option.SET_META_CONTEXT, named(b"disk", b"other:thing", words.ALLOCATION))
        assert chosen[0] == (Answer.META_CONTEXT, struct.pack(">I", words.CONTEXT_ID) + words.ALLOCATION)
        assert [kind for kind, _ in client.ask(Option.GO, export_name(b"disk"))] == [Answer.INFO, Answer.ACK]

        client.command(Command.READ, 16 * MIB, 512)
        assert client.chunk() == (Chunk.OFFSET_DATA, struct.pack(">Q", 16 * MIB) + export.content[-512:])
        client.command(Command.READ, 0, 0)
        assert client.chunk() == (Chunk.NONE, b"")
        client.command(Command.BLOCK_STATUS, 4096, 2 * MIB)
        told = struct.pack(">IIIII", words.CONTEXT_ID, 61440, 0, 2 * MIB - 61440, 3)
        assert client.chunk() == (Chunk.BLOCK_STATUS, told)
        client.command(Command.BLOCK_STATUS, 4096, 2 * MIB, words.REQ_ONE)
        assert client.chunk() == (Chunk.BLOCK_STATUS, told[:12])
        for kind, offset, length, error in (
            (Command.READ, SIZE, 1, words.EINVAL),
            (Command.READ, 2**64 - 1, 2, words.EINVAL),
            (Command.READ, 0, 33 * MIB, words.EINVAL),
            (Command.BLOCK_STATUS, 0, 0, words.EINVAL),
            (Command.BLOCK_STATUS, 0, SIZE + 1, words.EINVAL),
            (Command.WRITE_ZEROES, 0, 512, words.EPERM),
        ):
            client.command(kind, offset, length)
            assert client.chunk() == (Chunk.ERROR, struct.pack(">IH", error, 0))
        client.command(Command.DISC, 0, 0)
        assert client.connection.recv(1) == b""


@pytest.mark.parametrize(
    ("option", "data"),
    [
        (Option.SET_META_CONTEXT, b""),
        (Option.SET_META_CONTEXT, named(b"", words.ALLOCATION)[:-1]),
        (Option.SET_META_CONTEXT, named(b"", words.ALLOCATION) + b"x"),
        (Option.SET_META_CONTEXT, struct.pack(">II", 0, 2**32 - 1)),
        (Option.LIST_META_CONTEXT, struct.pack(">I", 2**32 - 1)),
        (Option.STRUCTURED_REPLY, b"x"),
        (Option.GO, b""),
        (Option.INFO, struct.pack(">IH", 1, 0)),
    ],
)
def test_what_is_no_option_is_refused_and_the_next_one_heard(
    export: Export, option: int, data: bytes
) -> None:
    with export.client() as client:
        if option != Option.STRUCTURED_REPLY:
            client.ask(Option.STRUCTURED_REPLY)
        assert client.ask(option, data) == [(Answer.ERR_INVALID, b"")]
        assert client.ask(77, data) == [(Answer.ERR_UNSUP, b"")]
        assert client.ask(Option.ABORT) == [(Answer.ACK, b"")]


def test_a_context_counts_only_with_structured_replies_and_for_the_export_it_was_chosen_for(
    export: Export,
) -> None:
    with export.client() as client:
        assert client.ask(Option.SET_META_CONTEXT, named(b"", words.ALLOCATION)) == [
            (Answer.ERR_INVALID, b"")
        ]
        client.ask(Option.STRUCTURED_REPLY)
        client.ask(Option.SET_META_CONTEXT, named(b"one", words.ALLOCATION))
        client.ask(Option.GO, export_name(b"other"))
        client.command(Command.BLOCK_STATUS, 0, 4096)
        assert client.chunk() == (Chunk.ERROR, struct.pack(">IH", words.EINVAL, 0))
    with export.client() as client:
        client.ask(Option.STRUCTURED_REPLY)
        client.ask(Option.SET_META_CONTEXT, named(b"", words.ALLOCATION))
        client.ask(Option.SET_META_CONTEXT, named(b""))
        client.ask(Option.GO, export_name(b""))
        client.command(Command.BLOCK_STATUS, 0, 4096)
        assert client.chunk() == (Chunk.ERROR, struct.pack(">IH", words.EINVAL, 0))


def test_a_socket_is_its_owners_and_one_that_was_left_is_told(tmp_path: Path, dice: random.Random) -> None:
    before = os.umask(0)
    try:
        export = Export(tmp_path, dice)
    finally:
        os.umask(before)
    assert export.address.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ServeFailed, match="a killed server has left"):
        NbdServer(export.disk, str(export.address), export.errors.append)  # type: ignore[arg-type]
    export.server.close()
    assert not export.address.exists()


def test_an_answer_about_a_torn_disk_ends_somewhere() -> None:
    kinds = (ExtentKind.DATA, ExtentKind.ZERO)
    torn = (Extent(ByteOffset(at * 512), ByteCount(512), kinds[at % 2]) for at in range(1 << 20))
    told = words.block_status(torn, one=False)
    assert len(told) == 4 + 8 * words.EXTENTS_MAX
    assert next(torn).offset == (words.EXTENTS_MAX + 1) * 512, "no more was asked of the disk than was told"
