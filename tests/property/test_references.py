"""Whatever moved, whatever the index forgot and whatever changed behind it: the target ends up as the source."""

import os
import random
from pathlib import Path

import pytest

from _native import digest, pack, refer
from disks.digestmap import DigestMap
from drcore.units import BLOCK_BYTES, DIGEST_BYTES, SECTOR_BYTES
from masttarget.elsewhere import Elsewhere
from masttarget.target import TargetDisk
from tests.fault.media import MemoryDisk
from tests.unit.test_masttarget_elsewhere import MemoryRooms
from wireproto.messages import Data, Refer

SECRET = bytes(range(192))
BLOCKS = 96
SECTORS = BLOCKS * 16


def some_disk(rng: random.Random) -> bytearray:
    """Files of some sectors each, some of them zero, some of them alike."""
    out = bytearray()
    twin = rng.randbytes(SECTOR_BYTES)
    while len(out) < SECTORS * SECTOR_BYTES:
        length = rng.choice((1, 2, 5, 16, 40, 100)) * SECTOR_BYTES
        out += rng.choice((rng.randbytes(length), rng.randbytes(length), bytes(length), twin * 3))
    return out[: SECTORS * SECTOR_BYTES]


def moved(rng: random.Random, old: bytearray) -> bytearray:
    """The disk after its files were moved, copied, swapped, and some changed."""
    new = bytearray(old)
    for _ in range(rng.randrange(1, 30)):
        length = rng.choice((1, 3, 16, 33, 100, 400)) * SECTOR_BYTES
        source = rng.randrange(SECTORS) * SECTOR_BYTES
        to = rng.randrange(SECTORS) * SECTOR_BYTES
        length = min(length, len(old) - source, len(old) - to)
        match rng.randrange(6):
            case 0:
                new[to : to + length] = new[source : source + length]
            case 1:
                new[source : source + length], new[to : to + length] = (
                    new[to : to + length],
                    new[source : source + length],
                )
                new = new[: len(old)]
            case 2:
                new[to : to + length] = rng.randbytes(length)
            case 3:
                new[to : to + length] = bytes(length)
            case _:
                new[to : to + length] = old[source : source + length]
    return new


def sector_bits(old: bytes | bytearray, new: bytes | bytearray, block: int) -> int:
    start = block * BLOCK_BYTES
    return sum(
        1 << at
        for at in range(16)
        if old[start + at * SECTOR_BYTES : start + (at + 1) * SECTOR_BYTES]
        != new[start + at * SECTOR_BYTES : start + (at + 1) * SECTOR_BYTES]
    )


def as_data(new: bytearray, digests: bytes, block: int, sectors: int) -> Data:
    out = memoryview(bytearray(2 * BLOCK_BYTES))
    span = new[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
    told = digests[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES]
    _, end, _ = pack.pack(span, block, 1, sectors.to_bytes(2, "little"), told, out, 0, 2)
    return Data(1, out[:end])


def play(rng: random.Random, folder: Path) -> tuple[int, int]:
    """One cycle; answers (sectors that differ and are not zero, sectors found)."""
    old = some_disk(rng)
    new = moved(rng, old)
    digests = bytearray(BLOCKS * DIGEST_BYTES)
    digest.digest_blocks(new, SECRET, digests)
    disk = MemoryDisk(len(old))
    disk.write(0, memoryview(old))
    target = TargetDisk(disk, disk.size, SECRET, lambda: DigestMap(disk.size, folder), empty=False)
    target.take_over(1)
    for _ in target.scanned(lambda position: None):
        pass
    rooms = MemoryRooms(rng.choice((0, 1, 4, BLOCKS)))
    assert target.seek(1, lambda: rooms, over=False)
    if rng.random() < 0.4:  # an index for a fraction of the sectors
        target.elsewhere = Elsewhere(disk, len(old), SECRET, rooms, slots=1024)
    target.learn_rest(lambda position: None)
    differing = [block for block in range(BLOCKS) if sector_bits(old, new, block)]
    named = sum(
        any(new[at * SECTOR_BYTES : (at + 1) * SECTOR_BYTES])
        for block in differing
        for at in range(block * 16, block * 16 + 16)
        if sector_bits(old, new, block) >> (at - block * 16) & 1
    )
    frames: list[list[int]] = []
    while differing:
        count = rng.randrange(1, 90)
        frames.append(differing[:count])
        differing = differing[count:]
    if rng.random() < 0.5:
        rng.shuffle(frames)
    found = 0
    for blocks in frames:
        if rng.random() < 0.1:
            for block in blocks:
                target.apply(as_data(new, digests, block, sector_bits(old, new, block)), 1, 1)
            continue
        out = memoryview(bytearray(100 * 288))
        position = 0
        for first in range(0, BLOCKS, 64):
            wanted = sum(1 << block - first for block in blocks if first <= block < first + 64)
            bitmaps = b"".join(
                sector_bits(old, new, block).to_bytes(2, "little")
                for block in range(first, min(first + 64, BLOCKS))
            )
            span = new[first * BLOCK_BYTES : (first + 64) * BLOCK_BYTES]
            _, position, _ = refer.pack(
                span, first, wanted, bitmaps, digests[first * DIGEST_BYTES :], SECRET, out, position
            )
        applied = target.refer(Refer(len(blocks), out[:position]), 1, 1)
        answer = applied.answer
        assert answer is not None
        assert applied.mismatched == []
        found += answer.found
        for block, sectors in answer.entries:
            target.apply(as_data(new, digests, block, sectors), 1, 1)
    assert target.mismatched == set()
    assert disk.content() == new
    assert target.digests.read(0, BLOCKS) == digests
    assert found <= named
    return named, found


@pytest.mark.parametrize("part", range(4))
def test_the_target_ends_up_as_the_source(part: int, tmp_path: Path, dice: random.Random) -> None:
    for _ in range(int(os.environ.get("ROUNDS") or 32) // 4 + 1):
        play(random.Random(dice.randrange(2**64)), tmp_path)


def test_with_room_enough_everything_that_only_moved_is_found(tmp_path: Path, dice: random.Random) -> None:
    """A permutation of blocks and a shift by some sectors, in ascending frames."""
    old = bytearray(dice.randbytes(SECTORS * SECTOR_BYTES))
    order = list(range(BLOCKS))
    dice.shuffle(order)
    permuted = b"".join(old[at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES] for at in order)
    shift = dice.randrange(1, 200) * SECTOR_BYTES
    for new in (bytearray(permuted), old[shift:] + old[:shift], old[-shift:] + old[:-shift]):
        digests = bytearray(BLOCKS * DIGEST_BYTES)
        digest.digest_blocks(new, SECRET, digests)
        disk = MemoryDisk(len(old))
        disk.write(0, memoryview(old))
        target = TargetDisk(disk, disk.size, SECRET, lambda: DigestMap(len(old), tmp_path), empty=False)
        target.take_over(1)
        for _ in target.scanned(lambda position: None):
            pass
        assert target.seek(1, lambda: MemoryRooms(BLOCKS), over=False)
        target.learn_rest(lambda position: None)
        for first in range(0, BLOCKS, 16):
            blocks = [at for at in range(first, first + 16) if sector_bits(old, new, at)]
            bitmaps = b"".join(
                sector_bits(old, new, at).to_bytes(2, "little") for at in range(first, first + 16)
            )
            out = memoryview(bytearray(16 * 288))
            span = new[first * BLOCK_BYTES : (first + 16) * BLOCK_BYTES]
            told = digests[first * DIGEST_BYTES :]
            wanted = sum(1 << at - first for at in blocks)
            _, end, _ = refer.pack(span, first, wanted, bitmaps, told, SECRET, out, 0)
            if blocks:
                answer = target.refer(Refer(len(blocks), out[:end]), 1, 1).answer
                assert answer is not None
                assert answer.entries == ()
        assert disk.content() == new
