"""`_native.crc32c` against the published vectors and against the definition, bit by bit."""

import random

import pytest

from _native.crc32c import crc32c


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        # RFC 3720, appendix B.4
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_published_vectors(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected


def slow(data: bytes) -> int:
    rest = 0xFFFFFFFF
    for byte in data:
        rest ^= byte
        for _ in range(8):
            rest = (rest >> 1) ^ (0x82F63B78 if rest & 1 else 0)
    return rest ^ 0xFFFFFFFF


def test_every_length_alignment_and_cut_agrees_with_the_definition() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    data = dice.randbytes(300)
    for length in range(64):
        start = dice.randrange(100)
        piece = data[start : start + length]
        cut = dice.randrange(length + 1)
        assert crc32c(memoryview(data)[start : start + length]) == slow(piece)
        assert crc32c(piece[cut:], crc32c(piece[:cut])) == slow(piece)


def test_what_is_no_run_of_bytes_is_refused() -> None:
    with pytest.raises((TypeError, BufferError, ValueError)):
        crc32c(memoryview(bytes(10))[::2])
    with pytest.raises(TypeError):
        crc32c(None)  # type: ignore[arg-type]
