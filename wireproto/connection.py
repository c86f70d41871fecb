"""One connection of a session, sans-I/O: bytes in, events out; messages in, bytes out.

The receiving and the sending half share nothing after the handshake but the secret they came from: one thread may
receive while another sends. What may be sent in which phase stands in one table; what is missing is illegal.
"""

from collections.abc import Callable
from enum import Enum
from typing import Final, TypeAlias

from drcore.buffers import buffer
from drcore.errors import HomewardError
from drcore.limits import FRAME_BYTES_MAX, HANDSHAKE_BYTES_MAX
from drcore.record import Record
from drcore.secret import Secret
from wireproto.errors import LimitExceeded, MessageRefused, NotTheProtocol
from wireproto.frame import (
    HEADER_BYTES,
    SEAL_BYTES_MAX,
    FrameClass,
    Header,
    StreamOpener,
    StreamSealer,
    decode_header,
)
from wireproto.handshake import (
    Hello,
    Welcome,
    choose_version,
    decode_hello,
    decode_refusal,
    decode_welcome,
    encode_hello,
    encode_refusal,
    encode_welcome,
)
from wireproto.keys import connection_secret, handshake_key
from wireproto.messages import PREFIX, Data, Differ, Message, MessageType, Scanned, decode, encode

SESSION_STREAM: Final = 0
_NO_DISK: Final = bytes(16)


class Phase(Enum):
    """Where one direction of the dialogue stands."""

    GREETING = "greeting"
    PROVING = "proving"
    RUNNING = "running"
    ENDED = "ended"


_T: Final = MessageType
AGENT_MAY_SEND: Final[dict[Phase, dict[MessageType, Phase]]] = {
    Phase.PROVING: {_T.OPEN: Phase.RUNNING},
    Phase.RUNNING: {
        _T.CHILDREN: Phase.RUNNING,
        _T.DATA: Phase.RUNNING,
        _T.ZEROES: Phase.RUNNING,
        _T.SEEK: Phase.RUNNING,
        _T.REFER: Phase.RUNNING,
        _T.ENROL: Phase.RUNNING,
        _T.FROZEN: Phase.RUNNING,
        _T.HARVESTED: Phase.RUNNING,
        _T.COMMIT: Phase.RUNNING,
        _T.ALIVE: Phase.RUNNING,
        _T.REPORT: Phase.ENDED,
        _T.BYE: Phase.ENDED,
    },
}
TARGET_MAY_SEND: Final[dict[Phase, dict[MessageType, Phase]]] = {
    Phase.PROVING: {_T.OPENED: Phase.RUNNING, _T.REPORT: Phase.ENDED},
    Phase.RUNNING: {
        _T.SCANNED: Phase.RUNNING,
        _T.DIFFER: Phase.RUNNING,
        _T.DURABLE: Phase.RUNNING,
        _T.MISMATCH: Phase.RUNNING,
        _T.READY: Phase.RUNNING,
        _T.MISSING: Phase.RUNNING,
        _T.FAILED: Phase.RUNNING,
        _T.PREPARE: Phase.RUNNING,
        _T.THAW: Phase.RUNNING,
        _T.UNSETTLED: Phase.RUNNING,
        _T.PUBLISHED: Phase.RUNNING,
        _T.ALIVE: Phase.RUNNING,
        _T.REPORT: Phase.ENDED,
        _T.BYE: Phase.ENDED,
    },
}
ON_SESSION_STREAM: Final = frozenset(
    {
        *(_T.OPEN, _T.OPENED, _T.COMMIT, _T.PUBLISHED, _T.UNSETTLED, _T.REPORT, _T.BYE, _T.ALIVE),
        *(_T.ENROL, _T.PREPARE, _T.FROZEN, _T.HARVESTED, _T.THAW),
    }
)


class Greeted(Record):
    """The peer's clear message came and its proof matched."""

    message: Hello | Welcome


class Received(Record, often=True):
    """A sealed message was opened. Views in it are valid until the next bytes are fed."""

    stream: int
    sequence: int
    message: Message
    plain_bytes: int

    def detached(self) -> "Received":
        """The event with copies of the views that the next frame would overwrite."""
        match self.message:
            case Scanned(first, count, digests):
                message: Message = Scanned(first, count, memoryview(bytes(digests)))
            case Differ(level, node, differing, zero, sectors):
                message = Differ(level, node, differing, zero, memoryview(bytes(sectors)))
            case Data(count, entries):
                message = Data(count, memoryview(bytes(entries)))
            case _:
                return self
        return Received(self.stream, self.sequence, message, self.plain_bytes)


Event: TypeAlias = Greeted | Received


class Connection:
    """One end of one connection. Feed it with `wanted`/`fed` (no copy) or `receive`; send what `send` answers."""

    def __init__(self, *, is_agent: bool, shared: Secret) -> None:
        self._is_agent = is_agent
        self._shared = shared
        self._proof_key = handshake_key(shared)
        self._hello = b""
        self._offered: Hello | None = None
        self._sealers: list[StreamSealer] = []
        self._openers: list[StreamOpener] = []
        self._sending = self._receiving = Phase.GREETING
        self._head = memoryview(bytearray(HEADER_BYTES))
        self._body = memoryview(bytearray(HANDSHAKE_BYTES_MAX))
        self._plain = self._wire = self._outgoing = memoryview(b"")
        self._header: Header | None = None
        self._filled = 0
        self.place: Callable[[int], memoryview] = lambda size: self._wire
        """Where a sealed frame of so many bytes goes that is lent until the next one."""
        self.frame_bytes = FRAME_BYTES_MAX
        """A frame has at most so many bytes, either way; set before the handshake."""

    # Handshake

    def greet(self, hello: Hello) -> bytes:
        """The agent's first bytes."""
        assert self._is_agent
        assert self._sending is Phase.GREETING
        self._offered = hello
        self._hello = encode_hello(hello, self._proof_key)
        return self._clear(FrameClass.HANDSHAKE, self._hello)

    def welcome(self, random: bytes, now_ms: int) -> bytes:
        """The master target's answer to a Hello that it accepts; keys are there afterwards."""
        assert self._offered is not None
        answer = Welcome(choose_version(self._offered), now_ms, random)
        body = encode_welcome(answer, self._hello, self._proof_key)
        self._derive(body, self._offered.random + random)
        return self._clear(FrameClass.HANDSHAKE, body)

    def refuse(self, error: HomewardError) -> bytes:
        """The clear refusal that ends a connection before there are keys."""
        self._sending = Phase.ENDED
        return self._clear(FrameClass.REFUSAL, encode_refusal(error))

    def _clear(self, frame_class: FrameClass, body: bytes) -> bytes:
        return Header(frame_class, 0, 0, 0, len(body)).encode() + body

    def _derive(self, welcome: bytes, randoms: bytes) -> None:
        assert self._offered is not None
        secret = connection_secret(self._shared, self._hello, welcome, randoms)
        disks = [_NO_DISK, *(offer.disk for offer in self._offered.disks)]
        own, other = self._is_agent, not self._is_agent
        self._sealers = [
            StreamSealer(secret, from_agent=own, stream=i, disk=disk) for i, disk in enumerate(disks)
        ]
        self._openers = [
            StreamOpener(secret, from_agent=other, stream=i, disk=disk) for i, disk in enumerate(disks)
        ]
        self._resize(HANDSHAKE_BYTES_MAX)
        self._sending = self._receiving = Phase.PROVING

    def _resize(self, size: int) -> None:
        """Buffers for frames of `size` bytes at most, large ones after the proof; views of the old ones stay good."""
        self._body, self._plain, self._wire, self._outgoing = (buffer(size) for _ in range(4))

    # Sending

    @property
    def plain_bytes_max(self) -> int:
        """The longest message."""
        return self.frame_bytes - SEAL_BYTES_MAX

    @property
    def established(self) -> bool:
        """Keys are there: what is sent from now on is sealed."""
        return bool(self._sealers)

    @property
    def may_send(self) -> bool:
        """This side has keys and has not ended the dialogue."""
        return bool(self._sealers) and self._sending is not Phase.ENDED

    @property
    def running(self) -> bool:
        """This side has said that the session, or the lane, is open: from now on anything may be said."""
        return self._sending is Phase.RUNNING

    def send(self, stream: int, message: Message, now: float) -> memoryview:
        """The sealed frame of `message`, lent until the next call; `now` is monotonic seconds."""
        size = 0
        for piece in encode(message):
            self._outgoing[size : size + len(piece)] = piece
            size += len(piece)
        return self._seal(stream, MessageType(self._outgoing[0]), self._outgoing[:size], now)

    def send_data(self, stream: int, count: int, plain: memoryview, now: float) -> memoryview:
        """As `send` of a `Data` message whose entries already stand in `plain` behind room for the prefix."""
        PREFIX.pack_into(plain, 0, MessageType.DATA, 0, 0, 0, count, 0)
        return self._seal(stream, MessageType.DATA, plain, now)

    def sequence(self, stream: int) -> int:
        """The sequence that the stream's next frame will have."""
        return self._sealers[stream].sequence

    def _seal(self, stream: int, kind: MessageType, plain: memoryview, now: float) -> memoryview:
        legal = AGENT_MAY_SEND if self._is_agent else TARGET_MAY_SEND
        following = legal.get(self._sending, {}).get(kind)
        assert following is not None, f"{kind.name} may not be sent while {self._sending.value}"
        assert (stream == SESSION_STREAM) == (kind in ON_SESSION_STREAM)
        if len(plain) > self.plain_bytes_max:
            raise LimitExceeded(field="message bytes", value=len(plain), limit=self.plain_bytes_max)
        into = self.place(len(plain) + SEAL_BYTES_MAX)
        self._sending = following
        return into[: self._sealers[stream].seal(plain, into, now)]

    # Receiving

    def wanted(self) -> memoryview:
        """Where the next bytes go; never empty. Put up to so many there and call `fed`."""
        if self._header is None:
            return self._head[self._filled :]
        return self._body[self._filled : self._header.length]

    @property
    def due(self) -> int:
        """How many bytes follow the header that came last; 0 while a header is due, or some of them came already."""
        return self._header.length if self._header is not None and not self._filled else 0

    def fed_whole(self, body: memoryview) -> list[Event]:
        """As `fed`, for the `due` bytes, which are somewhere else and are used up when this returns."""
        assert self._header is not None
        header, self._header = self._header, None
        return [self._frame(header, body)]

    def fed(self, count: int) -> list[Event]:
        """The events that `count` more bytes in `wanted()` bring (none or one).

        Errors: all of HW-WIRE-001 to 006 and, when the peer refused, `PeerReported`; the connection is over then.
        """
        self._filled += count
        if self._header is None:
            if self._filled < HEADER_BYTES:
                return []
            header = decode_header(self._head, self.frame_bytes)
            if header.length > len(self._body):
                raise NotTheProtocol(reason="a large frame before the proof")
            self._header, self._filled = header, 0
            if header.length:
                return []
        if self._filled < self._header.length:
            return []
        header, self._header, self._filled = self._header, None, 0
        return [self._frame(header, self._body[: header.length])]

    def receive(self, data: bytes) -> list[Event]:
        """As `wanted`/`fed`, for bytes that are already somewhere; views of all but the last event are stale."""
        events: list[Event] = []
        view = memoryview(data)
        while view:
            space = self.wanted()
            count = min(len(space), len(view))
            space[:count] = view[:count]
            view = view[count:]
            events += self.fed(count)
        return events

    def _frame(self, header: Header, body: memoryview) -> Event:
        if header.frame_class is FrameClass.SEALED:
            return self._sealed(header, body)
        if self._receiving is not Phase.GREETING and not self._awaits_refusal(header):
            raise MessageRefused(reason="a clear message after the handshake")
        if header.frame_class is FrameClass.REFUSAL:
            self._receiving = Phase.ENDED
            raise decode_refusal(bytes(body))
        if self._is_agent:
            if not self._hello:
                raise MessageRefused(reason="a welcome before the hello")
            welcome = decode_welcome(bytes(body), self._hello, self._proof_key)
            assert self._offered is not None
            self._derive(bytes(body), self._offered.random + welcome.random)
            return Greeted(welcome)
        if self._offered is not None:
            raise MessageRefused(reason="a second hello")
        self._hello = bytes(body)
        self._offered = decode_hello(self._hello, self._proof_key)
        return Greeted(self._offered)

    def _awaits_refusal(self, header: Header) -> bool:
        return (
            self._is_agent and self._receiving is Phase.PROVING and header.frame_class is FrameClass.REFUSAL
        )

    def _sealed(self, header: Header, body: memoryview) -> Received:
        if header.stream >= len(self._openers):
            raise MessageRefused(reason=f"a sealed frame of stream {header.stream}, which was not offered")
        size = self._openers[header.stream].open(header, self._head, body, self._plain)
        message = decode(self._plain[:size])
        kind = MessageType(self._plain[0])
        legal = TARGET_MAY_SEND if self._is_agent else AGENT_MAY_SEND
        following = legal.get(self._receiving, {}).get(kind)
        if following is None:
            raise MessageRefused(reason=f"{kind.name} while {self._receiving.value}")
        if (header.stream == SESSION_STREAM) != (kind in ON_SESSION_STREAM):
            raise MessageRefused(reason=f"{kind.name} in stream {header.stream}")
        if self._receiving is Phase.PROVING:
            self._resize(self.frame_bytes)
        self._receiving = following
        return Received(header.stream, header.sequence, message, size)
