"""Every key of a session, derived from one secret; nothing here is drawn at random.

Both ends hold a shared key (32 bytes) and put 32 fresh random bytes each into every connection. HKDF-SHA-256 makes
of these the connection's secret, and of that, for every stream and direction, a chain of epoch secrets; each
epoch secret gives an AES-256 key, a base nonce and a commitment. A frame's nonce is the base nonce XOR its
sequence. As the connection's secret is new each time, no (key, nonce) pair can come twice, whatever crashed.
"""

import hmac
from hashlib import sha256
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from drcore.limits import GIB
from drcore.record import Changing, Record
from drcore.secret import KEY_BYTES, Secret
from wireproto.errors import SealingExhausted

NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
RANDOM_BYTES: Final = 32
COMMITMENT_BYTES: Final = 32
DIGEST_SECRET_BYTES: Final = 192
"""XXH3's own length of a full secret."""

EPOCH_BYTES_MAX: Final = 64 * GIB
EPOCH_FRAMES_MAX: Final = 2**24
EPOCH_SECONDS_MAX: Final = 3600.0
EPOCHS_MAX: Final = 2**20
"""The reasons of these four stand in docs/threat-model.md: far below what AES-GCM allows for one key."""


def _expand(secret: Secret, label: bytes, context: bytes, length: int) -> bytes:
    info = b"homeward 1 " + label + b"\0" + context
    return HKDFExpand(SHA256(), length, info).derive(secret.reveal())


def handshake_key(shared: Secret) -> Secret:
    """The key that proves the two clear messages of the handshake."""
    return Secret(_expand(shared, b"handshake", b"", KEY_BYTES))


def digest_secret(shared: Secret, item: bytes) -> Secret:
    """The item's digest secret: 192 bytes, stable as long as the shared key is (both ends derive the same)."""
    return Secret(_expand(shared, b"digest", item, DIGEST_SECRET_BYTES))


def prove(key: Secret, *parts: bytes) -> bytes:
    """HMAC-SHA-256 over the parts, each with its length, so that none can be moved into its neighbour."""
    mac = hmac.new(key.reveal(), digestmod=sha256)
    for part in parts:
        mac.update(len(part).to_bytes(8, "little"))
        mac.update(part)
    return mac.digest()


class ConnectionSecret(Record):
    """What both ends of one connection know after the handshake."""

    secret: Secret
    opening: bytes
    """SHA-256 of the opening record: the two messages of the handshake as they were sent."""


def connection_secret(shared: Secret, hello: bytes, welcome: bytes, randoms: bytes) -> ConnectionSecret:
    """The secret of one connection; `randoms` are both ends' fresh bytes, agent's first."""
    opening = sha256(len(hello).to_bytes(8, "little") + hello + welcome).digest()
    extracted = HKDF.extract(SHA256(), randoms, shared.reveal())
    return ConnectionSecret(Secret(_expand(Secret(extracted), b"connection", opening, KEY_BYTES)), opening)


class EpochKeys(Changing):
    """What seals or opens the frames of one epoch of one stream in one direction."""

    cipher: AESGCM
    base_nonce: int
    commitment: bytes

    def nonce(self, sequence: int) -> bytes:
        """The nonce of the frame with this sequence."""
        return (self.base_nonce ^ sequence).to_bytes(NONCE_BYTES, "big")


class KeyChain:
    """The epochs of one stream in one direction; each step forgets the secret that it came from."""

    __slots__ = ("_chain", "epoch", "keys")

    def __init__(self, connection: ConnectionSecret, *, from_agent: bool, stream: int, disk: bytes) -> None:
        context = connection.opening + bytes([from_agent]) + stream.to_bytes(2, "little") + disk
        self._chain = Secret(_expand(connection.secret, b"stream", context, KEY_BYTES))
        self.epoch = 0
        self.keys = self._derive()

    def _derive(self) -> EpochKeys:
        material = _expand(self._chain, b"epoch", b"", KEY_BYTES + NONCE_BYTES + COMMITMENT_BYTES)
        cipher = AESGCM(material[:KEY_BYTES])
        base = int.from_bytes(material[KEY_BYTES : KEY_BYTES + NONCE_BYTES], "big")
        return EpochKeys(cipher, base, material[KEY_BYTES + NONCE_BYTES :])

    def following(self) -> "KeyChain":
        """The chain at its next epoch, this one untouched. Raises `SealingExhausted` (HW-WIRE-008) at the last one."""
        if self.epoch + 1 >= EPOCHS_MAX:
            raise SealingExhausted(epoch=self.epoch, limit=EPOCHS_MAX)
        chain = object.__new__(KeyChain)
        chain._chain = Secret(_expand(self._chain, b"ratchet", b"", KEY_BYTES))
        chain.epoch = self.epoch + 1
        chain.keys = chain._derive()
        return chain
