"""What `_native.compare` refuses, and its edges."""

import threading

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
