"""The clear header of a frame, and the sealing and opening of one stream.

    offset size
      0     4   magic "HWF1"
      4     1   version of the protocol
      5     1   class: 1 handshake, 2 sealed, 3 refusal
      6     2   stream
      8     4   epoch
     12     8   sequence in the stream, from 0
     20     4   length of what follows the header

All little-endian. A sealed frame is header, the epoch's commitment (only in the first frame of an epoch), ciphertext,
tag. Associated data is the hash of the opening record followed by the header (docs/protocol.md).
"""

import struct
from enum import IntEnum
from hmac import compare_digest
from typing import Final

from cryptography.exceptions import InvalidTag

from drcore.limits import FRAME_BYTES_MAX, HANDSHAKE_BYTES_MAX
from drcore.record import Record
from wireproto.errors import FrameRefused, LimitExceeded, NotTheProtocol
from wireproto.keys import (
    COMMITMENT_BYTES,
    EPOCH_BYTES_MAX,
    EPOCH_FRAMES_MAX,
    EPOCH_SECONDS_MAX,
    TAG_BYTES,
    ConnectionSecret,
    KeyChain,
)

MAGIC: Final = b"HWF1"
VERSION: Final = 1
_HEADER: Final = struct.Struct("<4sBBHIQI")
HEADER_BYTES: Final = _HEADER.size
SEAL_BYTES_MAX: Final = HEADER_BYTES + COMMITMENT_BYTES + TAG_BYTES
"""What a frame has around its plaintext."""
PLAIN_BYTES_MAX: Final = FRAME_BYTES_MAX - SEAL_BYTES_MAX
STREAMS_MAX: Final = 256
"""Stream 0 is the session's; the others are one for each disk. A machine has at most 64 data disks in Azure."""


class FrameClass(IntEnum):
    """What follows the header."""

    HANDSHAKE = 1
    SEALED = 2
    REFUSAL = 3


class Header(Record, often=True):
    """The clear header of one frame."""

    frame_class: FrameClass
    stream: int
    epoch: int
    sequence: int
    length: int
    version: int = VERSION

    def encode(self) -> bytes:
        """The 24 bytes."""
        return _HEADER.pack(
            MAGIC, self.version, self.frame_class, self.stream, self.epoch, self.sequence, self.length
        )


def decode_header(data: bytes | memoryview, frame_bytes: int = FRAME_BYTES_MAX) -> Header:
    """The header that stands in the first 24 bytes of `data`, every field within its limit.

    `frame_bytes` are the most that a frame may have.

    Errors: `NotTheProtocol` (HW-WIRE-004), `LimitExceeded` (HW-WIRE-005). The version is not judged here.
    """
    magic, version, frame_class, stream, epoch, sequence, length = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise NotTheProtocol(reason=f"the bytes {bytes(magic).hex()}")
    if frame_class not in (1, 2, 3):
        raise NotTheProtocol(reason=f"frame class {frame_class}")
    limit = frame_bytes - HEADER_BYTES if frame_class == FrameClass.SEALED else HANDSHAKE_BYTES_MAX
    if length > limit:
        raise LimitExceeded(field="frame length", value=length, limit=limit)
    if stream >= STREAMS_MAX:
        raise LimitExceeded(field="stream", value=stream, limit=STREAMS_MAX - 1)
    return Header(FrameClass(frame_class), stream, epoch, sequence, length, version)


class StreamSealer:
    """Seals the frames of one stream in one direction, each once, in order. One thread at a time."""

    def __init__(self, connection: ConnectionSecret, *, from_agent: bool, stream: int, disk: bytes) -> None:
        self._chain = KeyChain(connection, from_agent=from_agent, stream=stream, disk=disk)
        self._associated = bytearray(connection.opening + bytes(HEADER_BYTES))
        self._stream = stream
        self.sequence = 0
        self._epoch_frames = 0
        self._epoch_bytes = 0
        self._epoch_since: float | None = None

    def seal(self, plain: memoryview | bytes, into: memoryview, now: float) -> int:
        """`into` starts with the sealed frame; answers its length. `now` is monotonic seconds.

        A new epoch begins by itself after 64 GiB, 2^24 frames or one hour.
        """
        size = len(plain)
        if self._epoch_since is None:
            self._epoch_since = now
        if (
            self._epoch_frames >= EPOCH_FRAMES_MAX
            or self._epoch_bytes + size > EPOCH_BYTES_MAX
            or now - self._epoch_since >= EPOCH_SECONDS_MAX
        ):
            self._chain = self._chain.following()
            self._epoch_frames = self._epoch_bytes = 0
            self._epoch_since = now
        keys = self._chain.keys
        start = HEADER_BYTES + (COMMITMENT_BYTES if self._epoch_frames == 0 else 0)
        end = start + size + TAG_BYTES
        length = end - HEADER_BYTES
        header = _HEADER.pack(
            MAGIC, VERSION, FrameClass.SEALED, self._stream, self._chain.epoch, self.sequence, length
        )
        into[:HEADER_BYTES] = header
        if start != HEADER_BYTES:
            into[HEADER_BYTES:start] = keys.commitment
        self._associated[-HEADER_BYTES:] = header
        keys.cipher.encrypt_into(keys.nonce(self.sequence), plain, self._associated, into[start:end])
        self.sequence += 1
        self._epoch_frames += 1
        self._epoch_bytes += size
        return end


class StreamOpener:
    """Opens the frames of one stream in one direction: only the next one, only as sealed. One thread at a time."""

    def __init__(self, connection: ConnectionSecret, *, from_agent: bool, stream: int, disk: bytes) -> None:
        self._chain = KeyChain(connection, from_agent=from_agent, stream=stream, disk=disk)
        self._associated = bytearray(connection.opening + bytes(HEADER_BYTES))
        self._stream = stream
        self._epoch_opened = False
        self.sequence = 0

    def open(self, header: Header, encoded: memoryview | bytes, body: memoryview, into: memoryview) -> int:
        """`into` starts with the frame's plaintext; answers its length.

        `encoded` is the header as it came, `body` what followed it. After an error `into` is wiped as far as it was
        written and the stream stays where it was. Errors: `FrameRefused` (HW-WIRE-003).
        """
        if header.sequence != self.sequence:
            raise self._refused(header, f"sequence {header.sequence} where {self.sequence} is due")
        chain, first = self._chain, not self._epoch_opened
        if header.epoch != chain.epoch:
            if header.epoch != chain.epoch + 1 or first:
                raise self._refused(header, f"epoch {header.epoch} after {chain.epoch}")
            chain, first = chain.following(), True
        start = COMMITMENT_BYTES if first else 0
        size = len(body) - start - TAG_BYTES
        if size < 0:
            raise self._refused(header, "a frame that is cut short")
        if first and not compare_digest(body[:start], chain.keys.commitment):
            raise self._refused(header, "a commitment of another key")
        self._associated[-HEADER_BYTES:] = encoded
        nonce = chain.keys.nonce(header.sequence)
        try:
            chain.keys.cipher.decrypt_into(nonce, body[start:], self._associated, into[:size])
        except InvalidTag as error:
            into[:size] = bytes(size)
            raise self._refused(header, "a seal that does not match") from error
        self._chain, self._epoch_opened = chain, True
        self.sequence += 1
        return size

    def _refused(self, header: Header, reason: str) -> FrameRefused:
        return FrameRefused(reason=reason, stream=header.stream, sequence=header.sequence)
