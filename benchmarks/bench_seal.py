"""Claim: sealing and opening frames costs what the cryptography package's own AES-256-GCM costs."""

from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchmarks.published import Report, Settings
from benchmarks.racing import Contender, race
from drcore.limits import FRAME_BYTES_MAX
from drcore.secret import Secret
from wireproto.frame import HEADER_BYTES, PLAIN_BYTES_MAX, StreamOpener, StreamSealer, decode_header
from wireproto.keys import ConnectionSecret

KEY = bytes(range(32))
ASSOCIATED = bytes(32 + HEADER_BYTES)


def _ends() -> tuple[StreamSealer, StreamOpener]:
    connection = ConnectionSecret(Secret(KEY), bytes(32))
    sealer = StreamSealer(connection, from_agent=True, stream=1, disk=bytes(16))
    return sealer, StreamOpener(connection, from_agent=True, stream=1, disk=bytes(16))


def _plains(content: bytes) -> list[memoryview]:
    view = memoryview(content)
    return [view[start : start + PLAIN_BYTES_MAX] for start in range(0, len(view), PLAIN_BYTES_MAX)]


def bench_seal(benchmark: Any, content: bytes, report: Report, settings: Settings) -> None:
    plains = _plains(content)
    into = memoryview(bytearray(FRAME_BYTES_MAX))
    cipher = AESGCM(KEY)

    def ours() -> tuple[int, bytes]:
        sealer, _ = _ends()
        total = sum(sealer.seal(plain, into, 0.0) for plain in plains[:-1])
        length = sealer.seal(plains[-1], into, 0.0)
        return total + length, bytes(into[:length])

    def package() -> int:
        return sum(
            len(cipher.encrypt(number.to_bytes(12, "big"), plain, ASSOCIATED))
            for number, plain in enumerate(plains)
        )

    def check_ours(found: tuple[int, bytes]) -> None:
        _, opener = _ends()
        frames = _sealed(plains)
        assert found == (sum(map(len, frames)), frames[-1])
        out = memoryview(bytearray(FRAME_BYTES_MAX))
        for plain, frame in zip(plains, frames, strict=True):
            assert out[: _open(opener, frame, out)] == plain

    def check_package(total: int) -> None:
        assert total == len(content) + 16 * len(plains)

    contender = Contender("seal", "StreamSealer.seal", ours, check_ours)
    peer = Contender("AESGCM", "cryptography AESGCM.encrypt, frame by frame", package, check_package)
    race(benchmark, settings.rounds, contender, [peer])
    report.kernel("seal frames of 1 MiB", len(content), contender, peer)


def bench_open(benchmark: Any, content: bytes, report: Report, settings: Settings) -> None:
    plains = _plains(content)
    frames = _sealed(plains)
    out = memoryview(bytearray(FRAME_BYTES_MAX))
    cipher = AESGCM(KEY)
    sealed = [
        cipher.encrypt(number.to_bytes(12, "big"), plain, ASSOCIATED) for number, plain in enumerate(plains)
    ]

    def ours() -> tuple[int, bytes]:
        _, opener = _ends()
        total = sum(_open(opener, frame, out) for frame in frames)
        return total, bytes(out[: len(plains[-1])])

    def package() -> int:
        return sum(
            len(cipher.decrypt(number.to_bytes(12, "big"), one, ASSOCIATED))
            for number, one in enumerate(sealed)
        )

    def check_ours(found: tuple[int, bytes]) -> None:
        assert found == (len(content), bytes(plains[-1]))

    def check_package(total: int) -> None:
        assert total == len(content)

    contender = Contender("open", "StreamOpener.open", ours, check_ours)
    peer = Contender("AESGCM", "cryptography AESGCM.decrypt, frame by frame", package, check_package)
    race(benchmark, settings.rounds, contender, [peer])
    report.kernel("open frames of 1 MiB", len(content), contender, peer)


def _sealed(plains: list[memoryview]) -> list[bytes]:
    sealer, _ = _ends()
    into = memoryview(bytearray(FRAME_BYTES_MAX))
    return [bytes(into[: sealer.seal(plain, into, 0.0)]) for plain in plains]


def _open(opener: StreamOpener, frame: bytes, out: memoryview) -> int:
    view = memoryview(frame)
    return opener.open(decode_header(view[:HEADER_BYTES]), view[:HEADER_BYTES], view[HEADER_BYTES:], out)
