"""The kernels alone, for a build with ASan and UBSan (`make fuzz PART=native`): hostile bytes, and odd bounds."""

import random
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from _native import undo
from _native.crc32c import crc32c
from masttarget.index import Index
from tests.campaigns.fuzz import entries, mutated, references
from tests.campaigns.runner import Campaign, Round

BLOCK = 65536
BLOCKS = 12
POLYNOMIAL = 0x82F63B78
_FIELDS = (
    (32, 8, (0, 7, 8, 2**64 - 1)),
    (40, 8, (*range(BLOCKS + 1), 2**64 - 1)),
    (48, 4, (0, 1, 2, 64, 65, 2**32 - 1)),
    (56, 4, (0, 1, 4095, 4096, 8192, BLOCK - 1, BLOCK, BLOCK + 1, 2**31, 2**32 - 1)),
    (60, 1, (0, 1, 2)),
    (61, 1, (0, 1, 2, 3, 255)),
    (62, 2, (0, 1, 0x8000, 0x4106, 0x7FFF, 0xFFFF)),
)
"""Of a record: where a field is, how long, and what somebody hostile would put there."""


def _own(data: bytes) -> bytearray:
    """The bytes in memory of just their length, so that the byte behind them is nobody's."""
    return bytearray(data)


def _forged(rng: random.Random, good: bytes) -> bytes:
    """The records with some of their fields changed, where they stand."""
    data, starts, at = bytearray(good), [], 0
    while at < len(good):
        starts.append(at)
        at += undo.HEADER_BYTES + int.from_bytes(good[at + 52 : at + 56], "little")
    for _ in range(rng.choice((1, 1, 2, 4))):
        offset, width, values = rng.choice(_FIELDS)
        start = rng.choice(starts) + offset
        data[start : start + width] = rng.choice(values).to_bytes(width, "little")
    return bytes(data)


@contextmanager
def records() -> Iterator[Round]:
    """A retention journal's records of old content."""
    rng = random.Random(6)
    span = (rng.randbytes(8192) + b"text " * 11469 + bytes(7))[:BLOCK] * 3 + bytes(2 * BLOCK)
    out = bytearray(1 << 20)
    some = b"\xff\xff\xff\xff\x06\x41\xff\xff\xff\xff"
    _, end, chain = undo.pack(span, 2, 0b11101, some, 7, 99, bytes(16), out, 0, 1)
    _, end, _ = undo.pack(span, 2, 0b101, b"\x0f\x00\x00\x00\xff\xff" + bytes(4), 8, 99, chain, out, end, 1)
    good = bytes(out[:end])
    index = Index(BLOCKS)
    noting = (index.covered, index.places, index.more)
    _, _, why, count, _, _ = undo.scan(good, 0, bytes(16), 1, 9, BLOCKS, None, *noting, 0)
    assert why is None
    assert count > 1
    room, bitmap = bytearray(64 * BLOCK), bytearray(-(-BLOCKS // 8))
    places = index.places

    def one(rng: random.Random, _: int) -> None:
        hostile = _own(mutated(rng, good) if rng.random() < 0.5 else _forged(rng, good))
        if rng.random() < 0.7:
            # By somebody who can make checksums, so that what the fields say is looked at.
            with suppress(ValueError):
                undo.chain(hostile, rng.randrange(99), bytes(16))
        # Mostly with a place and a chain that are right, so that what lies behind is looked at.
        chain = bytes(16) if rng.random() < 0.8 else rng.randbytes(16)
        with suppress(undo.Damaged, ValueError):
            fresh = Index(BLOCKS)
            length = rng.choice((1, 3, 5, len(fresh.more)))
            noting = (fresh.covered, fresh.places, fresh.more[:length])
            undo.scan(hostile, 0, chain, 0, 2**64 - 1, BLOCKS, bitmap, *noting, rng.randrange(1000))
            for block in range(BLOCKS):
                assert sum(sectors for _, sectors in fresh.records(block)) == fresh.covered[block]
        near = array("Q", (rng.randrange(len(hostile) + 2) if rng.random() < 0.5 else at for at in places))
        undo.unpack(hostile, 0, near, rng.randrange(3), rng.getrandbits(BLOCKS), room)
        position = 0
        with suppress(undo.Damaged, ValueError):
            while position < len(hostile):
                position = undo.content(hostile, position, room)[5]

    yield one


@contextmanager
def sums() -> Iterator[Round]:
    """CRC-32C of any length at any alignment, against one bit at a time."""

    def slow(data: bytes) -> int:
        state = 0xFFFFFFFF
        for byte in data:
            state ^= byte
            for _ in range(8):
                state = state >> 1 ^ (POLYNOMIAL if state & 1 else 0)
        return state ^ 0xFFFFFFFF

    def one(rng: random.Random, _: int) -> None:
        whole = _own(rng.randbytes(rng.randrange(90)))
        first = rng.randrange(len(whole) + 1)
        part = memoryview(whole)[first:]
        middle = rng.randrange(len(part) + 1)
        assert crc32c(part[middle:], crc32c(part[:middle])) == slow(bytes(part))

    yield one


CAMPAIGN = Campaign("fuzz", {"entries": entries, "references": references, "records": records, "sums": sums})
