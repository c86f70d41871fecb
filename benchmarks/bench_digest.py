"""Claim: blocks are hashed at libxxhash's own rate or above, on one thread and on two, near the rate of memory."""

import ctypes
import ctypes.util
import threading
from collections.abc import Callable
from typing import Any

import pytest
import xxhash

from _native import digest
from benchmarks.published import Report, Settings
from benchmarks.racing import Contender, race
from drcore.units import BLOCK_BYTES, DIGEST_BYTES, SPAN_BYTES

# What XXH3 itself uses when it is given neither secret nor seed: with it the results are those of the package.
DEFAULT_SECRET = "tests/golden/native/default_secret.hex"


def bench_digest_blocks(
    benchmark: Any, content: bytes, report: Report, settings: Settings, pytestconfig: Any
) -> None:
    secret = bytes.fromhex((pytestconfig.rootpath / DEFAULT_SECRET).read_text())[:192]
    view = memoryview(content)
    out = memoryview(bytearray(len(content) // BLOCK_BYTES * DIGEST_BYTES))
    twin = bytes(bytearray(content))

    def ours() -> bytes:
        for start in range(0, len(view), SPAN_BYTES):
            at = start // BLOCK_BYTES * DIGEST_BYTES
            digest.digest_blocks(
                view[start : start + SPAN_BYTES],
                secret,
                out[at : at + SPAN_BYTES // BLOCK_BYTES * DIGEST_BYTES],
            )
        return bytes(out)

    def package() -> list[bytes]:
        return [
            xxhash.xxh3_128_digest(view[start : start + BLOCK_BYTES])
            for start in range(0, len(view), BLOCK_BYTES)
        ]

    hashed = package()
    expected = b"".join(
        one if any(view[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]) else bytes(DIGEST_BYTES)
        for index, one in enumerate(hashed)
    )

    def check_ours(found: bytes) -> None:
        assert found == expected

    def check_package(found: list[bytes]) -> None:
        assert found == hashed

    def check_memory(found: bool) -> None:
        assert found

    contender = Contender("digest", "digest_blocks", ours, check_ours)
    peers = [
        Contender("xxhash", "xxhash.xxh3_128_digest, block by block", package, check_package),
        Contender(
            "memory",
            "memory alone: memcmp of two such buffers (half of its time)",
            lambda: content == twin,
            check_memory,
        ),
    ]
    race(benchmark, 3 * settings.rounds, contender, peers)
    # memcmp reads twice the bytes: half of its time is what reading them once takes.
    peers[1].timings = [type(one)(one.wall / 2, one.cpu / 2) for one in peers[1].timings]
    report.kernel("digest of 64 KiB blocks", len(content), contender, *peers)


class _Hash(ctypes.Structure):
    _fields_ = (("low", ctypes.c_uint64), ("high", ctypes.c_uint64))


@pytest.mark.parametrize("threads", [1, 2])
def bench_digest_threads(
    benchmark: Any, content: bytes, report: Report, settings: Settings, threads: int
) -> None:
    """The library as its authors built it, a whole span with each call, so that Python counts for neither."""
    library = ctypes.CDLL(ctypes.util.find_library("xxhash"))
    library.XXH3_128bits.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.XXH3_128bits.restype = _Hash
    held = bytearray(content)
    address = ctypes.addressof(ctypes.c_char.from_buffer(held))
    view = memoryview(held)
    spans = range(0, len(view) - SPAN_BYTES + 1, SPAN_BYTES)
    out = memoryview(bytearray(len(content) // BLOCK_BYTES * DIGEST_BYTES))
    secret = bytes(range(192))

    def own(start: int) -> None:
        at = start // BLOCK_BYTES * DIGEST_BYTES
        end = at + SPAN_BYTES // BLOCK_BYTES * DIGEST_BYTES
        digest.digest_blocks(view[start : start + SPAN_BYTES], secret, out[at:end])

    def theirs(start: int) -> None:
        library.XXH3_128bits(address + start, SPAN_BYTES)

    def shared(step: Callable[[int], None]) -> Callable[[], None]:
        def work(number: int) -> None:
            for start in spans[number::threads]:
                step(start)

        def run() -> None:
            workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()

        return run

    def check(_: None) -> None:
        probe = spans[-1]
        at = probe // BLOCK_BYTES * DIGEST_BYTES
        again = bytearray(DIGEST_BYTES)
        digest.digest_blocks(view[probe : probe + BLOCK_BYTES], secret, again)
        assert bytes(out[at : at + DIGEST_BYTES]) == bytes(again)

    contender = Contender("digest", "digest_blocks", shared(own), check)
    peer = Contender(
        "libxxhash", "libxxhash, XXH3_128bits, 4 MiB with each call", shared(theirs), lambda _: None
    )
    race(benchmark, 3 * settings.rounds, contender, [peer])
    word = "one thread" if threads == 1 else "two threads"
    report.kernel(f"digest of 64 KiB blocks, {word}", len(spans) * SPAN_BYTES, contender, peer)
