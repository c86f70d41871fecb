"""The comparing kernels against slow, obvious oracles."""

import itertools

import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from _native import compare, digest

BLOCK, SECTOR = 65536, 4096
SECRET = bytes(range(192))
ENTRIES = st.lists(st.sampled_from([bytes(16), bytes(15) + b"\1", b"\1" + bytes(15), b"\xff" * 16]))
PLAIN = settings(max_examples=100, deadline=None, print_blob=True)


def entries(count: int, changed: set[int]) -> tuple[bytes, bytes]:
    ours = [xxhash.xxh3_128_digest(i.to_bytes(8, "little")) for i in range(count)]
    theirs = [bytes(16) if i in changed else each for i, each in enumerate(ours)]
    return b"".join(ours), b"".join(theirs)


@PLAIN
@given(st.integers(0, 64), st.sets(st.integers(0, 63)))
def test_differing_names_the_entries_that_differ(count: int, changed: set[int]) -> None:
    ours, theirs = entries(count, changed)
    expected = sum(1 << i for i in changed if i < count)
    assert compare.differing(ours, theirs) == compare.differing(theirs, ours) == expected
    assert compare.zeroes(theirs) == expected
    assert compare.zeroes(ours) == 0


@PLAIN
@given(ENTRIES.filter(lambda each: len(each) <= 64))
def test_zeroes_names_the_zero_digests(made: list[bytes]) -> None:
    assert compare.zeroes(b"".join(made)) == sum(1 << i for i, each in enumerate(made) if not any(each))


@PLAIN
@given(st.integers(0, 3000), st.sets(st.integers(0, 2999), max_size=40), st.sampled_from([1, 2, 40, 600]))
def test_extents_are_the_runs_of_differing_entries(count: int, places: set[int], length: int) -> None:
    changed = {place + i for place in places for i in range(length) if place + i < count}
    runs = []
    for differs, run in itertools.groupby(range(count), lambda i: i in changed):
        members = list(run)
        if differs:
            runs.append((members[0], len(members)))
    ours, theirs = entries(count, changed)
    assert compare.extents(ours, theirs) == runs


def test_more_runs_than_are_collected_at_once() -> None:
    ours, theirs = entries(5000, set(range(0, 5000, 2)))
    assert compare.extents(ours, theirs) == [(i, 1) for i in range(0, 5000, 2)]


CHANGE = st.tuples(st.integers(0, 3 * BLOCK - 1), st.sampled_from(["flip", "zero", "fill"]))


def spans(size: int, changes: list[tuple[int, str]]) -> tuple[bytes, bytes]:
    target = bytearray((b"\5" * SECTOR + bytes(SECTOR)) * (3 * BLOCK // SECTOR // 2))[:size]
    source = bytearray(target)
    for place, kind in changes:
        if place >= size:
            continue
        start = place // SECTOR * SECTOR
        stop = min(start + SECTOR, size)
        if kind == "flip":
            source[place] ^= 0x80
        else:
            source[start:stop] = (b"\0" if kind == "zero" else b"\7") * (stop - start)
    return bytes(source), bytes(target)


def sectors_of(content: bytes) -> list[bytes]:
    return [content[at : at + SECTOR] for at in range(0, len(content), SECTOR)]


@PLAIN
@given(st.integers(0, 3 * BLOCK), st.lists(CHANGE, max_size=12))
def test_spans_are_compared_sector_by_sector(size: int, changes: list[tuple[int, str]]) -> None:
    source, target = spans(size, changes)
    pairs = list(zip(sectors_of(source), sectors_of(target), strict=True))
    changed = [i for i, (ours, theirs) in enumerate(pairs) if ours != theirs]
    bitmaps = [0] * -(-size // BLOCK)
    for i in changed:
        bitmaps[i // 16] |= 1 << i % 16
    expected = (
        sum(map(bool, bitmaps)),
        len(changed),
        sum(len(pairs[i][0]) for i in changed),
        sum(len(pairs[i][0]) for i in changed if not any(pairs[i][0])),
    )
    out = bytearray(b"\xee" * 2 * len(bitmaps))
    assert compare.compare_sectors(source, target, out) == expected
    assert bytes(out) == b"".join(each.to_bytes(2, "little") for each in bitmaps)


@PLAIN
@given(st.integers(0, 3 * BLOCK), st.lists(CHANGE, max_size=12), st.integers(0, 7))
def test_a_span_and_the_peers_digests_give_the_same_bitmaps(
    size: int, changes: list[tuple[int, str]], wanted: int
) -> None:
    source, target = spans(size, changes)
    count = -(-size // BLOCK)
    blocks = wanted & (1 << count) - 1
    all_bitmaps = bytearray(2 * count)
    compare.compare_sectors(source, target, all_bitmaps)
    chosen = [i for i in range(count) if blocks >> i & 1]
    digests = bytearray(256 * len(chosen))
    digest.digest_sectors(target, SECRET, blocks, digests)
    out = bytearray(2 * len(chosen))
    compare.sector_bitmaps(source, SECRET, blocks, digests, out)
    assert bytes(out) == b"".join(bytes(all_bitmaps[2 * i : 2 * i + 2]) for i in chosen)
