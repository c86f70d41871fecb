"""The digest kernels against two oracles: a slow XXH3-128 in Python, and the xxhash package.

The package knows no secrets, but XXH3 with a seed is XXH3 with a secret derived from the seed (for more than
240 bytes), which gives an independent and fast oracle for as many secrets as there are seeds.
"""

import re
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from _native import digest

GOLDEN = Path(__file__).parents[1] / "golden" / "native"
DEFAULT_SECRET = bytes.fromhex(re.sub(r"\s", "", (GOLDEN / "default_secret.hex").read_text()))
MASK = 2**64 - 1
P32_1, P32_2, P32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
P64_1, P64_2, P64_3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
P64_4, P64_5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5


def le(data: bytes, at: int, size: int = 8) -> int:
    return int.from_bytes(data[at : at + size], "little")


def swap(value: int, size: int = 8) -> int:
    return int.from_bytes(value.to_bytes(size, "little"), "big")


def avalanche(value: int) -> int:
    value ^= value >> 37
    value = value * 0x165667919E3779F9 & MASK
    return value ^ value >> 32


def avalanche64(value: int) -> int:
    value ^= value >> 33
    value = value * P64_2 & MASK
    value ^= value >> 29
    value = value * P64_3 & MASK
    return value ^ value >> 32


def multiply_fold(a: int, b: int) -> int:
    product = a * b
    return product & MASK ^ product >> 64


def tiny(data: bytes, secret: bytes) -> tuple[int, int]:
    size = len(data)
    if size == 0:
        return avalanche64(le(secret, 64) ^ le(secret, 72)), avalanche64(le(secret, 80) ^ le(secret, 88))
    if size <= 3:
        low = data[-1] | size << 8 | data[0] << 16 | data[size >> 1] << 24
        high = swap(low, 4)
        high = (high << 13 | high >> 19) & 0xFFFFFFFF
        return (
            avalanche64(low ^ le(secret, 0, 4) ^ le(secret, 4, 4)),
            avalanche64(high ^ le(secret, 8, 4) ^ le(secret, 12, 4)),
        )
    if size <= 8:
        word = le(data, 0, 4) | le(data, size - 4, 4) << 32
        product = (word ^ le(secret, 16) ^ le(secret, 24)) * (P64_1 + (size << 2) & MASK)
        low, high = product & MASK, product >> 64
        high = high + (low << 1) & MASK
        low ^= high >> 3
        low ^= low >> 35
        low = low * 0x9FB21C651E98DF25 & MASK
        return low ^ low >> 28, avalanche(high)
    first, last = le(data, 0), le(data, size - 8)
    product = (first ^ last ^ le(secret, 32) ^ le(secret, 40)) * P64_1
    low, high = (product & MASK) + (size - 1 << 54) & MASK, product >> 64
    last ^= le(secret, 48) ^ le(secret, 56)
    high = high + (last & ~0xFFFFFFFF) + (last & 0xFFFFFFFF) * P32_2 & MASK
    low ^= swap(high)
    product = low * P64_2
    return avalanche(product & MASK), avalanche((product >> 64) + high * P64_2 & MASK)


def middle(data: bytes, secret: bytes) -> tuple[int, int]:
    size = len(data)
    low, high = size * P64_1 & MASK, 0

    def mix(one: int, other: int, at: int) -> None:
        nonlocal low, high
        low += multiply_fold(le(data, one) ^ le(secret, at), le(data, one + 8) ^ le(secret, at + 8))
        low = low & MASK ^ le(data, other) + le(data, other + 8) & MASK
        high += multiply_fold(
            le(data, other) ^ le(secret, at + 16), le(data, other + 8) ^ le(secret, at + 24)
        )
        high = high & MASK ^ le(data, one) + le(data, one + 8) & MASK

    if size <= 128:
        for i in reversed(range((size - 1) // 32 + 1)):
            mix(16 * i, size - 16 * (i + 1), 32 * i)
    else:
        for i in range(4):
            mix(32 * i, 32 * i + 16, 32 * i)
        low, high = avalanche(low), avalanche(high)
        for i in range(4, size // 32):
            mix(32 * i, 32 * i + 16, 3 + 32 * (i - 4))
        mix(size - 16, size - 32, 136 - 17 - 16)
    return (
        avalanche(low + high & MASK),
        -avalanche(low * P64_1 + high * P64_4 + size * P64_2 & MASK) & MASK,
    )


def long(data: bytes, secret: bytes) -> tuple[int, int]:
    lanes = [P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1]

    def stripe(at: int, key: int) -> None:
        for i in range(8):
            word = le(data, at + 8 * i)
            keyed = word ^ le(secret, key + 8 * i)
            lanes[i ^ 1] = lanes[i ^ 1] + word & MASK
            lanes[i] = lanes[i] + (keyed & 0xFFFFFFFF) * (keyed >> 32) & MASK

    def merge(key: int, value: int) -> int:
        for i in range(0, 8, 2):
            value += multiply_fold(
                lanes[i] ^ le(secret, key + 8 * i), lanes[i + 1] ^ le(secret, key + 8 * i + 8)
            )
        return avalanche(value & MASK)

    stripes = (len(data) - 1) // 64
    for n in range(stripes):
        stripe(64 * n, n % 16 * 8)
        if n % 16 == 15:
            for i in range(8):
                lanes[i] = ((lanes[i] ^ lanes[i] >> 47 ^ le(secret, 128 + 8 * i)) * P32_1) & MASK
    stripe(len(data) - 64, 192 - 64 - 7)
    low = merge(11, len(data) * P64_1 & MASK)
    return low, merge(192 - 64 - 11, ~(len(data) * P64_2) & MASK)


def oracle(data: bytes, secret: bytes) -> bytes:
    """XXH3-128 as the specification words it, canonical, without our rule for zeroes."""
    low, high = (tiny if len(data) <= 16 else middle if len(data) <= 240 else long)(data, secret)
    return high.to_bytes(8, "big") + low.to_bytes(8, "big")


def secret_of(seed: int) -> bytes:
    """The secret that XXH3 derives from a seed for more than 240 bytes."""
    words = [le(DEFAULT_SECRET, at) for at in range(0, 192, 8)]
    return b"".join(
        ((w - seed if i % 2 else w + seed) & MASK).to_bytes(8, "little") for i, w in enumerate(words)
    )


def digests(data: bytes, secret: bytes, unit: int = 65536, variant: str = "auto") -> bytes:
    out = bytearray(-(-len(data) // unit) * 16)
    digest.digest_blocks(data, secret, out, unit, variant)
    return bytes(out)


SIZES = [*range(1, 34), 63, 64, 65, 96, 97, 127, 128, 129, 160, 161, 239, 240, 241, 255, 256, 257, 511, 512]
LONG = [1023, 1024, 1025, 1088, 2048, 2049, 4095, 4096, 4097, 8191, 65535, 65536]


@pytest.mark.parametrize("variant", digest.variants())
@pytest.mark.parametrize("size", [*SIZES, *LONG])
def test_each_variant_answers_what_the_specification_says(size: int, variant: str, rng_bytes: bytes) -> None:
    data, secret = rng_bytes[:size], rng_bytes[-192:]
    assert digests(data, secret, variant=variant) == oracle(data, secret)
    assert digests(data, DEFAULT_SECRET, variant=variant) == xxhash.xxh3_128_digest(data)


@pytest.fixture(scope="module")
def rng_bytes() -> bytes:
    """Bytes without a pattern that are the same everywhere."""
    chain = [xxhash.xxh3_128_digest(i.to_bytes(8, "little"), seed=7) for i in range((65536 + 192) // 16)]
    return b"".join(chain)


@settings(max_examples=60, deadline=None, print_blob=True)
@given(
    st.integers(241, 70000), st.integers(0, MASK), st.integers(0, MASK), st.sampled_from(digest.variants())
)
def test_any_secret_answers_what_the_package_says(size: int, seed: int, fill: int, variant: str) -> None:
    data = (fill | 1).to_bytes(8, "little") * (size // 8) + b"\1" * (size % 8)
    assert digests(data, secret_of(seed), unit=2**17, variant=variant) == xxhash.xxh3_128_digest(
        data, seed=seed
    )


@settings(max_examples=80, deadline=None, print_blob=True)
@given(st.data())
def test_zero_pieces_get_the_reserved_digest_and_others_their_hash(data: st.DataObject) -> None:
    unit = 2 ** data.draw(st.integers(9, 13))
    pieces = data.draw(st.lists(st.sampled_from("zfl"), min_size=1, max_size=12))
    made = {"z": bytes(unit), "f": b"\1" + bytes(unit - 1), "l": bytes(unit - 1) + b"\1"}
    content = b"".join(made[piece] for piece in pieces)[: data.draw(st.integers(0, len(pieces) * unit))]
    expected = []
    for at in range(0, len(content), unit):
        piece = content[at : at + unit]
        expected.append(xxhash.xxh3_128_digest(piece) if any(piece) else bytes(16))
    for variant in digest.variants():
        out = bytearray(16 * len(expected))
        nonzero = digest.digest_blocks(content, DEFAULT_SECRET, out, unit, variant)
        assert bytes(out) == b"".join(expected)
        assert nonzero == sum(any(each) for each in expected)


@settings(max_examples=40, deadline=None, print_blob=True)
@given(st.integers(0, 5 * 65536), st.integers(0, 2**5 - 1), st.integers(0, 255))
def test_sector_digests_are_the_digests_of_each_sector(size: int, wanted: int, step: int) -> None:
    content = bytes((step * (i >> 12)) & 255 for i in range(size))
    blocks = wanted & (1 << -(-size // 65536)) - 1
    expected = b""
    for i in range(5):
        if blocks >> i & 1:
            block = content[i * 65536 : (i + 1) * 65536]
            expected += digests(block, DEFAULT_SECRET, 4096).ljust(256, b"\0")
    out = bytearray(len(expected))
    assert digest.digest_sectors(content, DEFAULT_SECRET, blocks, out) == len(expected)
    assert bytes(out) == expected


@settings(max_examples=40, deadline=None, print_blob=True)
@given(st.integers(0, 300), st.sets(st.integers(0, 299)))
def test_a_node_is_the_digest_of_its_children(count: int, nonzero: set[int]) -> None:
    leaves = b"".join((bytes(15) + b"\7") if i in nonzero else bytes(16) for i in range(count))
    nodes = [leaves[at : at + 1024] for at in range(0, len(leaves), 1024)]
    out = bytearray(16 * len(nodes))
    assert digest.fold(leaves, DEFAULT_SECRET, out) == sum(any(node) for node in nodes)
    assert bytes(out) == b"".join(xxhash.xxh3_128_digest(node) if any(node) else bytes(16) for node in nodes)


@settings(max_examples=100, deadline=None, print_blob=True)
@given(st.integers(0, 5000), st.integers(0, 4999), st.integers(0, 8))
def test_zero_is_recognised_wherever_the_one_byte_is(size: int, place: int, shift: int) -> None:
    content = bytearray(size + shift)
    assert digest.is_zero(memoryview(content)[shift:])
    if place < size:
        content[shift + place] = 128
        assert not digest.is_zero(memoryview(content)[shift:])
