"""Claim: blocks are hashed at the rate of the xxhash package or above, near the rate at which memory is read."""

from typing import Any

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
