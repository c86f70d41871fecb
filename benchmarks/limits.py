"""What one core and both get through each step of the work: the yardstick for the bounds."""

import mmap
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import lz4.block
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from _native import digest
from benchmarks.images import Image
from drcore.buffers import buffer
from drcore.limits import KIB, MIB
from drcore.units import BLOCK_BYTES, DIGEST_BYTES

TRIES: Final = 3
PIECE: Final = 1 * MIB
HOT: Final = 256 * KIB
READ, COMPARED, COPIED = "read from the page cache", "compared in memory", "copied in memory"
HASHED, SEALED, OPENED, PACKED = "hashed", "sealed", "opened", "compressed with LZ4"
WRITTEN, FLUSHED = "written to a new file's page cache", "flushed to the medium"
_SECRET: Final = bytes(range(192))


def measure(content: bytes, image: Image, scratch: Path) -> dict[str, float]:
    """Bytes a second for each step, best of three: on one core, and under the name with `, two` on both."""
    rates: dict[str, float] = {}
    twin = bytes(bytearray(content))
    jobs: dict[str, Callable[[], Callable[[], int]]] = {
        READ: lambda: _reader(image),
        COMPARED: lambda: lambda: _compared(content, twin),
        COPIED: lambda: _copier(content),
        HASHED: lambda: _hasher(content),
        SEALED: lambda: _sealer(content, opening=False),
        OPENED: lambda: _sealer(content, opening=True),
        PACKED: lambda: lambda: _packed(content[: 32 * MIB]),
    }
    for name, make in jobs.items():
        for threads in (1, 2):
            rate = max(_rate([make() for _ in range(threads)]) for _ in range(TRIES))
            rates[name if threads == 1 else f"{name}, two"] = rate
    written = [_written(scratch / "limits", len(content)) for _ in range(TRIES)]
    rates[WRITTEN] = max(rate for rate, _ in written)
    rates[FLUSHED] = max(rate for _, rate in written)
    return rates


def _rate(jobs: list[Callable[[], int]]) -> float:
    done: list[int] = []
    threads = [threading.Thread(target=lambda job=job: done.append(job())) for job in jobs]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - began)


def _reader(image: Image) -> Callable[[], int]:
    into = buffer(PIECE)

    def run() -> int:
        total = 0
        with image.path.open("rb") as file:
            for start, length in image.runs:
                for at in range(start, start + length, PIECE):
                    total += os.preadv(file.fileno(), [into[: min(PIECE, start + length - at)]], at)
        return total

    return run


def _compared(one: bytes, other: bytes) -> int:
    assert one == other
    return 2 * len(one)


def _copier(content: bytes) -> Callable[[], int]:
    into = mmap.mmap(-1, len(content))
    into[:] = content  # the pages are there before the clock runs

    def run() -> int:
        into[:] = content
        return len(content)

    return run


def _hasher(content: bytes) -> Callable[[], int]:
    """As the scan does it: what was just read is still in the core's cache."""
    hot = memoryview(content)[:HOT]
    out = memoryview(bytearray(HOT // BLOCK_BYTES * DIGEST_BYTES))

    def run() -> int:
        for _ in range(len(content) // HOT):
            digest.digest_blocks(hot, _SECRET, out)
        return len(content) // HOT * HOT

    return run


def _sealer(content: bytes, *, opening: bool) -> Callable[[], int]:
    cipher, nonce, into = AESGCM(bytes(32)), bytes(12), buffer(PIECE + 16)
    pieces = [memoryview(content)[at : at + PIECE] for at in range(0, len(content) - PIECE + 1, PIECE)]
    sealed = cipher.encrypt(nonce, pieces[0], None)

    def run() -> int:
        for piece in pieces:
            if opening:
                cipher.decrypt_into(nonce, sealed, None, into[:PIECE])
            else:
                cipher.encrypt_into(nonce, piece, None, into)
        return len(pieces) * PIECE

    return run


def _packed(content: bytes) -> int:
    view = memoryview(content)
    for at in range(0, len(view), BLOCK_BYTES):
        lz4.block.compress(view[at : at + BLOCK_BYTES], store_size=False)
    return len(view)


def _written(path: Path, size: int) -> tuple[float, float]:
    piece = buffer(PIECE)
    with path.open("wb") as file:
        began = time.perf_counter()
        for at in range(0, size, PIECE):
            os.pwrite(file.fileno(), piece, at)
        written = time.perf_counter()
        os.fdatasync(file.fileno())
        flushed = time.perf_counter()
    path.unlink()
    return size / (written - began), size / (flushed - written)
