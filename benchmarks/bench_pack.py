"""Claim: blocks are packed and unpacked, with headers and digests, about as fast as the lz4 package alone."""

from typing import Any

import lz4.block
import pytest
import xxhash

from _native import digest, pack
from benchmarks.published import Report, Settings
from benchmarks.racing import Contender, race
from drcore.limits import FRAME_BYTES_MAX
from drcore.units import BLOCK_BYTES, DIGEST_BYTES, SPAN_BLOCKS, SPAN_BYTES

SECRET = bytes(range(192))
ALWAYS = 1
SAMPLED = 2
WHOLE = b"\xff\xff" * SPAN_BLOCKS


@pytest.fixture(scope="module")
def digests(content: bytes) -> bytes:
    out = bytearray(len(content) // BLOCK_BYTES * DIGEST_BYTES)
    digest.digest_blocks(content, SECRET, out)
    return bytes(out)


def _frames(
    content: bytes, digests: bytes, mode: int, frame: memoryview, keep: list[bytes] | None = None
) -> int:
    """All of the content in frames; answers their bytes."""
    view, total = memoryview(content), 0
    for start in range(0, len(view), SPAN_BYTES):
        first = start // BLOCK_BYTES
        span = view[start : start + SPAN_BYTES]
        own = digests[first * DIGEST_BYTES : (first + SPAN_BLOCKS) * DIGEST_BYTES]
        left = (1 << len(span) // BLOCK_BYTES) - 1
        while left:
            left, end, _ = pack.pack(span, first, left, WHOLE, own, frame, 0, mode)
            total += end
            if keep is not None:
                keep.append(bytes(frame[:end]))
    return total


def _unpacked(
    frames: list[bytes], blocks: int, out: memoryview, found: memoryview, into: bytearray | None
) -> int:
    """All frames opened and proved; answers the bytes."""
    total = 0
    for frame in frames:
        position = 0
        while position < len(frame):
            position, first, count, length = pack.unpack(
                frame, position, blocks, BLOCK_BYTES, SECRET, out, found
            )
            assert count
            if into is not None:
                into[first * BLOCK_BYTES : first * BLOCK_BYTES + length] = out[:length]
            total += length
    return total


def bench_pack(benchmark: Any, content: bytes, digests: bytes, report: Report, settings: Settings) -> None:
    view = memoryview(content)
    frame = memoryview(bytearray(FRAME_BYTES_MAX))
    scratch = memoryview(bytearray(SPAN_BYTES)), memoryview(bytearray(SPAN_BLOCKS * DIGEST_BYTES))
    packed: list[bytes] = []
    _frames(content, digests, ALWAYS, frame, packed)
    back = bytearray(len(content))
    _unpacked(packed, len(content) // BLOCK_BYTES, *scratch, back)
    assert back == content

    def package() -> int:
        return sum(
            min(BLOCK_BYTES, len(lz4.block.compress(view[start : start + BLOCK_BYTES], store_size=False)))
            for start in range(0, len(view), BLOCK_BYTES)
        )

    expected = package()

    def check_ours(total: int) -> None:
        # 32 bytes of header for each block; the same library may still differ a little by version.
        assert total <= 1.01 * expected + 32 * (len(content) // BLOCK_BYTES)

    def check_package(total: int) -> None:
        assert total == expected

    ours = Contender("pack", "pack", lambda: _frames(content, digests, ALWAYS, frame), check_ours)
    peer = Contender("lz4", "lz4.block.compress, block by block", package, check_package)
    race(benchmark, settings.rounds, ours, [peer])
    report.kernel("pack whole blocks, LZ4", len(content), ours, peer)


def bench_pack_sampled(
    benchmark: Any, content: bytes, digests: bytes, report: Report, settings: Settings
) -> None:
    view = memoryview(content)
    frame = memoryview(bytearray(FRAME_BYTES_MAX))
    scratch = memoryview(bytearray(SPAN_BYTES)), memoryview(bytearray(SPAN_BLOCKS * DIGEST_BYTES))
    packed: list[bytes] = []
    expected = _frames(content, digests, SAMPLED, frame, packed)
    back = bytearray(len(content))
    _unpacked(packed, len(content) // BLOCK_BYTES, *scratch, back)
    assert back == content

    def package() -> int:
        return sum(
            len(lz4.block.compress(view[start : start + BLOCK_BYTES], store_size=False))
            for start in range(0, len(view), BLOCK_BYTES)
        )

    squeezed = package()

    def check(total: int) -> None:
        assert total == expected

    def check_package(total: int) -> None:
        assert total == squeezed

    ours = Contender("pack", "pack", lambda: _frames(content, digests, SAMPLED, frame), check)
    peer = Contender("lz4", "lz4.block.compress, block by block", package, check_package)
    race(benchmark, settings.rounds, ours, [peer])
    report.kernel("pack whole blocks, LZ4 where it pays", len(content), ours, peer)


def bench_unpack(benchmark: Any, content: bytes, digests: bytes, report: Report, settings: Settings) -> None:
    blocks = len(content) // BLOCK_BYTES
    frames: list[bytes] = []
    _frames(content, digests, ALWAYS, memoryview(bytearray(FRAME_BYTES_MAX)), frames)
    out, found = memoryview(bytearray(SPAN_BYTES)), memoryview(bytearray(SPAN_BLOCKS * DIGEST_BYTES))
    view = memoryview(content)
    squeezed = [
        lz4.block.compress(view[start : start + BLOCK_BYTES], store_size=False)
        for start in range(0, len(view), BLOCK_BYTES)
    ]

    def package() -> int:
        total = 0
        for one in squeezed:
            block = lz4.block.decompress(one, uncompressed_size=BLOCK_BYTES)
            xxhash.xxh3_128_digest(block)
            total += len(block)
        return total

    def check(total: int) -> None:
        assert total == len(content)

    back = bytearray(len(content))
    _unpacked(frames, blocks, out, found, back)
    assert back == content
    ours = Contender("unpack", "unpack", lambda: _unpacked(frames, blocks, out, found, None), check)
    peer = Contender("lz4", "lz4.block.decompress and xxhash.xxh3_128_digest", package, check)
    race(benchmark, 2 * settings.rounds, ours, [peer])
    report.kernel("unpack whole blocks and prove their digests", len(content), ours, peer)
