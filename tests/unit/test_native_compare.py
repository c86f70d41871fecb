"""What `_native.compare` refuses, and its edges."""

import os
import random
import threading
from pathlib import Path

import pytest

from _native import compare, digest

BLOCK, SECTOR = 65536, 4096
SECRET = bytes(range(192))


def test_bit_63_is_the_last_entry() -> None:
    ours = bytes(64 * 16)
    theirs = bytes(63 * 16) + b"\1" * 16
    assert compare.differing(ours, theirs) == 1 << 63
    assert compare.zeroes(theirs) == (1 << 63) - 1


def test_nothing_differs_from_nothing() -> None:
    assert compare.differing(b"", b"") == 0
    assert compare.zeroes(b"") == 0
    assert compare.extents(b"", b"") == []
    assert compare.compare_sectors(b"", b"", bytearray()) == (0, 0, 0, 0)
    compare.sector_bitmaps(b"", SECRET, 0, b"", bytearray())


@pytest.mark.parametrize("size", [1, 15, 17, 65 * 16])
def test_entries_that_are_cut_or_too_many_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=r"no whole number|a bitmap holds"):
        compare.differing(bytes(size), bytes(size))
    with pytest.raises(ValueError, match=r"no whole number|a bitmap holds"):
        compare.zeroes(bytes(size))


def test_maps_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="b has 16 bytes, expected 32"):
        compare.differing(bytes(32), bytes(16))
    with pytest.raises(ValueError, match="b has 48 bytes, expected 32"):
        compare.extents(bytes(32), bytes(48))
    with pytest.raises(ValueError, match="no whole number"):
        compare.extents(bytes(33), bytes(33))


def test_spans_of_different_or_too_great_length_are_refused() -> None:
    with pytest.raises(ValueError, match="target has"):
        compare.compare_sectors(bytes(BLOCK), bytes(BLOCK - 1), bytearray(2))
    with pytest.raises(ValueError, match="out_bitmaps has"):
        compare.compare_sectors(bytes(BLOCK + 1), bytes(BLOCK + 1), bytearray(2))
    with pytest.raises(ValueError, match="a span has at most"):
        compare.compare_sectors(bytes(64 * BLOCK + 1), bytes(64 * BLOCK + 1), bytearray(130))


def test_the_peers_digests_must_fit_the_bitmap() -> None:
    with pytest.raises(ValueError, match="digests has 256 bytes, expected 512"):
        compare.sector_bitmaps(bytes(2 * BLOCK), SECRET, 3, bytes(256), bytearray(4))
    with pytest.raises(ValueError, match="out has"):
        compare.sector_bitmaps(bytes(2 * BLOCK), SECRET, 3, bytes(512), bytearray(2))
    with pytest.raises(ValueError, match="names blocks beyond"):
        compare.sector_bitmaps(bytes(2 * BLOCK), SECRET, 4, bytes(256), bytearray(2))
    with pytest.raises(ValueError, match="a secret has"):
        compare.sector_bitmaps(bytes(BLOCK), bytes(16), 1, bytes(256), bytearray(2))


def test_filled_sectors_are_those_that_are_not_zero() -> None:
    def filled(*sectors: int, size: int = BLOCK) -> int:
        span = bytearray(BLOCK + size)
        for sector in sectors:
            span[BLOCK + min((sector + 1) * SECTOR, size) - 1] = 1
        out = bytearray(b"\xee" * 4)
        count = compare.filled_sectors(span, 2, out)
        assert out[:2] == b"\xee\xee", "what was not asked for is left alone"
        found = int.from_bytes(out[2:], "little")
        assert count == found.bit_count()
        return found

    assert filled(3) == 1 << 3
    assert filled(*range(0, 16, 2)) == 0x5555
    assert (filled(*range(16)), filled()) == (0xFFFF, 0)
    assert filled(1, size=2 * SECTOR + 5) == 0b010
    assert filled(0, 2, size=2 * SECTOR + 5) == 0b101
    assert filled(0, size=1) == 1
    with pytest.raises(ValueError, match="out has"):
        compare.filled_sectors(bytes(BLOCK), 1, bytearray(4))
    with pytest.raises(ValueError, match="names blocks beyond"):
        compare.filled_sectors(bytes(BLOCK), 2, bytearray(2))


def test_sectors_that_a_short_block_lacks_never_differ() -> None:
    out = bytearray(2)
    compare.sector_bitmaps(bytes(SECTOR + 1), SECRET, 1, b"\xff" * 256, out)
    assert out == (0b11).to_bytes(2, "little")


def test_a_sector_that_became_zero_is_counted_as_zero() -> None:
    out = bytearray(2)
    size = SECTOR + 10
    assert compare.compare_sectors(bytes(size), b"\1" * size, out) == (1, 2, size, size)
    assert compare.compare_sectors(b"\1" * size, bytes(size), out) == (1, 2, size, 0)


def test_threads_compare_different_spans() -> None:
    source = bytes(64 * BLOCK)
    targets = [bytes(i * BLOCK) + b"\1" + bytes((64 - i) * BLOCK - 1) for i in range(4)]
    found: dict[int, list[int]] = {}

    def work(i: int) -> None:
        for _ in range(5):
            out = bytearray(128)
            totals = compare.compare_sectors(source, targets[i], out)
            digests = bytearray(64 * 256)
            digest.digest_sectors(targets[i], SECRET, 2**64 - 1, digests)
            again = bytearray(128)
            compare.sector_bitmaps(source, SECRET, 2**64 - 1, digests, again)
            right = totals == (1, 1, SECTOR, SECTOR) and out == again
            found.setdefault(i, []).append(out.index(1) // 2 if right else -1)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: [i] * 5 for i in range(4)}


def placed(directory: Path, name: str, before: int, content: bytes) -> tuple[int, int]:
    """A descriptor and where in its file the content begins."""
    path = directory / name
    path.write_bytes(bytes([7]) * before + content)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC), before


@pytest.mark.parametrize(
    "length", [0, 1, SECTOR + 1, BLOCK, 2 * BLOCK, 2 * BLOCK + 1, 9 * BLOCK - 3, 33 * BLOCK]
)
def test_files_differ_as_their_bytes_do(tmp_path: Path, length: int) -> None:
    chance = random.Random(length)
    source = bytearray(chance.randbytes(length))
    source[: length // 3] = bytes(length // 3)
    target = bytearray(source)
    for at in chance.sample(range(length), min(length, 12)):
        target[at] ^= 1
    blocks = -(-length // BLOCK)
    expected = bytearray(2 * blocks)
    counts = compare.compare_sectors(source, target, expected)
    ours, theirs = placed(tmp_path, "a", 512, bytes(source)), placed(tmp_path, "b", 0, bytes(target))
    bitmaps = bytearray(b"\xff" * (2 * blocks))
    found = compare.compare_places(*ours, *theirs, length, bytearray(compare.WORK_BYTES), bitmaps)
    assert found == (length, *counts)
    assert bitmaps == expected
    for descriptor, _ in (ours, theirs):
        os.close(descriptor)


def test_what_cannot_be_read_is_left_to_the_caller(tmp_path: Path) -> None:
    whole, short = bytes(9 * BLOCK), bytes(5 * BLOCK + 1)
    ours, theirs = placed(tmp_path, "a", 0, whole), placed(tmp_path, "b", 0, short)
    work, bitmaps = bytearray(compare.WORK_BYTES), bytearray(18)
    for first, second in ((ours, theirs), (theirs, ours)):
        done, *counts = compare.compare_places(*first, *second, len(whole), work, bitmaps)
        assert 0 < done <= 5 * BLOCK
        assert done % BLOCK == 0
        assert counts == [0, 0, 0, 0]
    for descriptor, _ in (ours, theirs):
        os.close(descriptor)
    assert compare.compare_places(-1, 0, -1, 0, len(whole), work, bitmaps) == (0, 0, 0, 0, 0)


def test_places_and_room_that_cannot_be_are_refused() -> None:
    work = bytearray(compare.WORK_BYTES)
    with pytest.raises(ValueError, match="work has"):
        compare.compare_places(0, 0, 0, 0, BLOCK, bytearray(BLOCK), bytearray(2))
    with pytest.raises(ValueError, match="out_bitmaps has 2 bytes, expected 4"):
        compare.compare_places(0, 0, 0, 0, BLOCK + 1, work, bytearray(2))
    with pytest.raises(ValueError, match="4 EiB"):
        compare.compare_places(0, 1 << 63, 0, 0, BLOCK, work, bytearray(2))
    with pytest.raises(OverflowError):
        compare.compare_places(0, -1, 0, 0, BLOCK, work, bytearray(2))
