"""The two clear messages that begin every connection, and the refusal that may end it.

Agent: Hello (versions, item, disks, fresh random, proof). Master target: Welcome (version, fresh random, proof over
both). Only then are keys derived, and only the agent's first sealed frame shows that the Hello was no replay: nothing
is stored, fenced or opened before it. Byte tables in docs/protocol.md.
"""

import struct
from enum import IntEnum
from hmac import compare_digest
from typing import Final

from drcore.errors import HomewardError
from drcore.limits import DISK_BYTES_MAX, LANES_MAX
from drcore.record import Record
from drcore.secret import Secret
from wireproto.errors import LimitExceeded, MessageRefused, NotProved, PeerReported, PeerVersion
from wireproto.frame import VERSION
from wireproto.keys import RANDOM_BYTES, prove
from wireproto.messages import (
    DISKS_MAX,
    REPORT_TEXTS,
    Report,
    error_of,
    report_of,
    report_words,
)
from wireproto.words import decode_words, encode_words

FIRST_VERSION: Final = 1
LAST_VERSION: Final = VERSION
PROOF_BYTES: Final = 32
UUID_BYTES: Final = 16
_VERSIONS: Final = struct.Struct("<HH")
_HELLO: Final = struct.Struct("<HHBBH16sQQQ32s")
_DISK: Final = struct.Struct("<16sQ")
_WELCOME: Final = struct.Struct("<HHQ32s")


class Purpose(IntEnum):
    """What a connection is opened for."""

    SESSION = 1
    LANE = 2


class DiskOffer(Record):
    """A disk that the agent wants to bring home: its UUID (16 bytes) and its size in bytes."""

    disk: bytes
    size: int


class Hello(Record):
    """What the agent asks for. `session` and `lane` speak of an open session when the purpose is a further lane."""

    purpose: Purpose
    item: bytes
    generation: int
    session: int
    lane: int
    sent_ms: int
    random: bytes
    disks: tuple[DiskOffer, ...]
    first_version: int = FIRST_VERSION
    last_version: int = LAST_VERSION


class Welcome(Record):
    """What the master target answers to a Hello whose proof matches."""

    version: int
    sent_ms: int
    random: bytes


def encode_hello(hello: Hello, key: Secret) -> bytes:
    """The body of the handshake frame, proof included; `key` is `keys.handshake_key`."""
    body = _HELLO.pack(
        hello.first_version,
        hello.last_version,
        hello.purpose,
        hello.lane,
        len(hello.disks),
        hello.item,
        hello.generation,
        hello.session,
        hello.sent_ms,
        hello.random,
    )
    body += b"".join(_DISK.pack(offer.disk, offer.size) for offer in hello.disks)
    return body + prove(key, b"hello", body)


def decode_hello(data: bytes, key: Secret) -> Hello:
    """The Hello in a handshake frame.

    Versions are judged first, as a peer of another version may lay out the rest in another way; then the proof;
    only then the fields. Errors: `PeerVersion` (HW-WIRE-001), `NotProved` (HW-WIRE-002), `MessageRefused`,
    `LimitExceeded`.
    """
    if len(data) < _VERSIONS.size:
        raise MessageRefused(reason="a hello that is cut short")
    first, last = _VERSIONS.unpack_from(data)
    if last < FIRST_VERSION or first > LAST_VERSION or first > last:
        raise PeerVersion(peer_first=first, peer_last=last, own_first=FIRST_VERSION, own_last=LAST_VERSION)
    body, proof = data[:-PROOF_BYTES], data[-PROOF_BYTES:]
    if len(body) < _HELLO.size or not compare_digest(proof, prove(key, b"hello", body)):
        raise NotProved()
    _, _, purpose, lane, count, item, generation, session, sent_ms, random = _HELLO.unpack_from(body)
    if count > DISKS_MAX:
        raise LimitExceeded(field="disks of a hello", value=count, limit=DISKS_MAX)
    if lane >= LANES_MAX:
        raise LimitExceeded(field="lane of a hello", value=lane, limit=LANES_MAX - 1)
    if purpose not in (Purpose.SESSION, Purpose.LANE) or len(body) != _HELLO.size + count * _DISK.size:
        raise MessageRefused(reason="a hello of unknown purpose or length")
    disks = tuple(DiskOffer(*found) for found in _DISK.iter_unpack(body[_HELLO.size :]))
    if len({offer.disk for offer in disks}) != count or count == 0:
        raise MessageRefused(reason="a hello that names no disk, or one twice")
    for offer in disks:
        if offer.size > DISK_BYTES_MAX:
            raise LimitExceeded(field="bytes of a disk", value=offer.size, limit=DISK_BYTES_MAX)
    return Hello(Purpose(purpose), item, generation, session, lane, sent_ms, random, disks, first, last)


def encode_welcome(welcome: Welcome, hello: bytes, key: Secret) -> bytes:
    """The body of the answer; its proof covers the whole Hello."""
    body = _WELCOME.pack(welcome.version, 0, welcome.sent_ms, welcome.random)
    return body + prove(key, b"welcome", hello, body)


def decode_welcome(data: bytes, hello: bytes, key: Secret) -> Welcome:
    """The Welcome in a handshake frame. Errors: `NotProved` (HW-WIRE-002), `PeerVersion`, `MessageRefused`."""
    if len(data) != _WELCOME.size + PROOF_BYTES:
        raise MessageRefused(reason="a welcome of another length")
    body, proof = data[:-PROOF_BYTES], data[-PROOF_BYTES:]
    if not compare_digest(proof, prove(key, b"welcome", hello, body)):
        raise NotProved()
    version, _, sent_ms, random = _WELCOME.unpack(body)
    if not FIRST_VERSION <= version <= LAST_VERSION:
        raise PeerVersion(
            peer_first=version, peer_last=version, own_first=FIRST_VERSION, own_last=LAST_VERSION
        )
    assert len(random) == RANDOM_BYTES
    return Welcome(version, sent_ms, random)


def choose_version(hello: Hello) -> int:
    """The newest version that both ends speak."""
    return min(hello.last_version, LAST_VERSION)


def encode_refusal(error: HomewardError) -> bytes:
    """The body of a refusal. It is clear and unproved: it informs, nothing is decided by it but to stop."""
    return encode_words(report_words(report_of(error)))


def decode_refusal(data: bytes) -> PeerReported:
    """The error that a refusal carries. Errors: `MessageRefused` (HW-WIRE-006)."""
    return error_of(Report(*decode_words(data, REPORT_TEXTS)))
