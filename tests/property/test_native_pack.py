"""Packing and unpacking against a slow, obvious codec of entries in Python, and against frames that lie."""

import random
import secrets
import struct
import tempfile
from dataclasses import dataclass

import lz4.block
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from _native import digest, pack

BLOCK, SECTOR = 65536, 4096
SECRET = bytes(range(7, 199))
PLAIN = settings(max_examples=80, deadline=None, print_blob=True)
NOISE = random.Random(20).randbytes(2 * BLOCK)
WORDS = b"".join(b"line %d of a text that shrinks\n" % i for i in range(4000))


@dataclass(frozen=True, slots=True)
class Entry:
    block: int
    sectors: int
    codec: int
    stored: int
    digest: bytes
    payload: bytes


def digest_of(content: bytes) -> bytes:
    out = bytearray(16)
    digest.digest_blocks(content, SECRET, out)
    return bytes(out)


def whole(size: int) -> int:
    return (1 << -(-size // SECTOR)) - 1


def pick(content: bytes, sectors: int) -> bytes:
    return b"".join(content[i * SECTOR : (i + 1) * SECTOR] for i in range(16) if sectors >> i & 1)


def encode(index: int, content: bytes, sectors: int, codec: int) -> bytes:
    payload = pick(content, sectors)
    if codec == 1:
        packed = lz4.block.compress(payload, store_size=False)
        codec, payload = (1, packed) if len(packed) < len(payload) else (0, payload)
    return struct.pack("<QHBBI16s", index, sectors, codec, 0, len(payload), digest_of(content)) + payload


def decode(frame: bytes) -> list[Entry]:
    entries, at = [], 0
    while at < len(frame):
        block, sectors, codec, reserved, stored, proof = struct.unpack_from("<QHBBI16s", frame, at)
        assert reserved == 0
        payload = frame[at + 32 : at + 32 + stored]
        assert len(payload) == stored
        entries.append(Entry(block, sectors, codec, stored, proof, payload))
        at += 32 + stored
    return entries


def block_of(kind: str, index: int, size: int) -> bytes:
    made = {
        "zero": bytes(BLOCK),
        "noise": NOISE[index * 13 :][:BLOCK],
        "text": WORDS[index * 7 :][:BLOCK],
        "half": (NOISE[index : index + SECTOR] + bytes(SECTOR)) * 8,
    }
    return made[kind][:size]


KINDS = st.sampled_from(["zero", "noise", "text", "half"])
BITMAP = st.one_of(st.just(0xFFFF), st.integers(1, 0xFFFF), st.integers(0, 15).map(lambda i: 1 << i))


@PLAIN
@given(
    kinds=st.lists(st.tuples(KINDS, BITMAP, st.booleans()), min_size=1, max_size=6),
    last=st.integers(1, BLOCK),
    first=st.integers(0, 2**40),
    room=st.one_of(st.integers(0, 7 * BLOCK), st.just(8 * BLOCK)),
    mode=st.sampled_from([0, 1, 2]),
    before=st.integers(0, 40),
)
def test_packed_entries_hold_the_named_sectors(
    kinds: list[tuple[str, int, bool]], last: int, first: int, room: int, mode: int, before: int
) -> None:
    sizes = [BLOCK] * (len(kinds) - 1) + [last]
    contents = [
        block_of(kind, i, size) for i, ((kind, _, _), size) in enumerate(zip(kinds, sizes, strict=True))
    ]
    bitmaps = [
        each if each == 0xFFFF else each & whole(size) or 1
        for (_, each, _), size in zip(kinds, sizes, strict=True)
    ]
    blocks = sum(1 << i for i, (_, _, wanted) in enumerate(kinds) if wanted)
    out = bytearray(b"\xaa" * (before + room))
    rest, position, gathered = pack.pack(
        b"".join(contents),
        first,
        blocks,
        b"".join(each.to_bytes(2, "little") for each in bitmaps),
        b"".join(map(digest_of, contents)),
        out,
        before,
        mode,
    )
    assert out[:before] == b"\xaa" * before
    entries = decode(bytes(out[before:position]))
    chosen = [i for i in range(len(kinds)) if blocks >> i & 1]
    assert [each.block - first for each in entries] == chosen[: len(entries)]
    assert rest == sum(1 << i for i in chosen[len(entries) :])
    total = 0
    for each in entries:
        i = each.block - first
        content, sectors = contents[i], bitmaps[i] & whole(sizes[i])
        plain = pick(content, sectors)
        total += len(plain)
        assert each.sectors == sectors
        assert each.digest == digest_of(content)
        if each.codec == 1:
            assert mode != 0
            assert each.stored <= (len(plain) - len(plain) // 16 if mode == 2 else len(plain) - 1)
            assert lz4.block.decompress(each.payload, uncompressed_size=len(plain)) == plain
        else:
            assert each.payload == plain
            # The pieces are long enough that no version of LZ4 leaves zeroes or text as they are.
            assert mode == 0 or kinds[i][0] not in ("zero", "text") or len(plain) < SECTOR
    assert gathered == total
    if rest:
        following = chosen[len(entries)]
        needed = 32 + len(pick(contents[following], bitmaps[following] & whole(sizes[following])))
        assert len(out) - position < needed


def filled(content: bytes) -> int:
    """The sectors with data, where they are at most half of them; else all."""
    found = sum(1 << i for i in range(16) if any(content[i * SECTOR : (i + 1) * SECTOR]))
    few = found and 2 * found.bit_count() <= whole(len(content)).bit_count()
    return found if few else whole(len(content))


@PLAIN
@given(
    kinds=st.lists(st.tuples(KINDS, BITMAP, st.booleans()), min_size=1, max_size=6),
    last=st.integers(1, BLOCK),
    first=st.integers(0, 2**40),
    room=st.one_of(st.integers(0, 7 * BLOCK), st.just(8 * BLOCK)),
    before=st.integers(0, 40),
    start=st.integers(0, 5000),
)
def test_blocks_are_read_into_the_frame_as_they_would_be_packed(
    kinds: list[tuple[str, int, bool]], last: int, first: int, room: int, before: int, start: int
) -> None:
    contents = []
    for i, (kind, keep, _) in enumerate(kinds):
        content = bytearray(block_of(kind, i, last if i == len(kinds) - 1 else BLOCK))
        for sector in range(16):
            if not keep >> sector & 1:
                content[sector * SECTOR : (sector + 1) * SECTOR] = bytes(
                    len(content[sector * SECTOR : (sector + 1) * SECTOR])
                )
        contents.append(bytes(content))
    blocks = sum(1 << i for i, (_, _, wanted) in enumerate(kinds) if wanted)
    out, digests = bytearray(b"\xaa" * (before + room)), bytearray(b"\xbb" * 16 * len(kinds))
    with tempfile.TemporaryFile() as file:
        file.write(bytes(start) + b"".join(contents))
        file.flush()
        length = sum(map(len, contents))
        found = pack.pack_unread_place(
            file.fileno(), start, length, first, blocks, SECRET, digests, out, before
        )
    left, position, packed, sectors, size = found
    assert out[:before] == b"\xaa" * before
    entries = decode(bytes(out[before:position]))
    read = [i for i in range(len(kinds)) if blocks & ~left & 1 << i]
    assert read == [i for i in range(len(kinds)) if blocks >> i & 1][: len(read)]
    for i, content in enumerate(contents):
        assert digests[16 * i : 16 * i + 16] == (digest_of(content) if i in read else b"\xbb" * 16)
    sent = [i for i in read if any(contents[i])]
    assert entries == [
        Entry(
            first + i,
            filled(contents[i]),
            0,
            len(pick(contents[i], filled(contents[i]))),
            digest_of(contents[i]),
            pick(contents[i], filled(contents[i])),
        )
        for i in sent
    ]
    assert packed == sum(1 << i for i in sent)
    assert sectors == sum(each.sectors.bit_count() for each in entries)
    assert size == sum(each.stored for each in entries)
    if left:
        assert len(out) - position < 32 + len(contents[(left & -left).bit_length() - 1])


@PLAIN
@given(st.data())
def test_runs_and_patches_bring_the_source_to_the_target(data: st.DataObject) -> None:
    count, last = data.draw(st.integers(1, 8)), data.draw(st.integers(1, BLOCK))
    sizes = [BLOCK] * (count - 1) + [last]
    source = [block_of(data.draw(KINDS), i, size) for i, size in enumerate(sizes)]
    target = [bytearray(size) for size in sizes]
    order = data.draw(st.lists(st.integers(0, count - 1), max_size=10))
    if data.draw(st.booleans()):
        order.sort()
    frame = b""
    runs: list[tuple[int, int]] = []
    current = [bytes(each) for each in target]
    for index in order:
        sectors = data.draw(
            st.sampled_from([whole(sizes[index]), data.draw(BITMAP) & whole(sizes[index]) or 1])
        )
        mixed = bytearray(current[index])
        for s in range(16):
            if sectors >> s & 1:
                mixed[s * SECTOR : (s + 1) * SECTOR] = source[index][s * SECTOR : (s + 1) * SECTOR]
        current[index] = bytes(mixed)
        frame += encode(index, current[index], sectors, data.draw(st.sampled_from([0, 1])))
        is_whole = sectors == whole(sizes[index])
        if is_whole and runs and runs[-1][0] + runs[-1][1] == index and runs[-1][1] > 0:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((index, 1 if is_whole else 0))
    out, digests, proofs = bytearray(b"\xaa" * 8 * BLOCK), bytearray(8 * 16), bytearray(64 * 16)
    position, seen = 0, []
    while position < len(frame):
        index, sectors, codec, _stored, following = pack.entry(frame, position)
        proved = pack.prove(frame, position, count, last, SECRET, proofs)
        start = position
        position, first, found, length = pack.unpack(frame, position, count, last, SECRET, out, digests)
        assert first == index
        seen.append((first, found))
        # What is proved where it lies is what would be unpacked, up to the first entry that is compressed.
        assert proved[1] == first
        assert proved[2] <= found
        assert (proved[2] > 0) == (found > 0 and codec == 0)
        stored = b"".join(each.payload for each in decode(frame[start : proved[0]]))
        assert (stored, proofs[: 16 * proved[2]]) == (out[: len(stored)], digests[: 16 * proved[2]])
        if proved[2] < found:
            assert pack.entry(frame, proved[0])[2] == 1
        at = 0
        for i in range(first, first + found):
            target[i][:] = out[at : at + sizes[i]]
            assert digests[16 * (i - first) :][:16] == digest_of(bytes(target[i]))
            at += sizes[i]
        assert length == at
        if found == 0:
            assert sectors != whole(sizes[index])
            position, matches = pack.unpack_patch(frame, position, count, last, SECRET, target[index])
            assert matches
            assert position == following
    assert seen == runs
    assert [bytes(each) for each in target] == current


@PLAIN
@given(st.integers(SECTOR + 1, BLOCK), st.integers(0, 0xFFFF), st.integers(0, 1))
def test_a_patch_on_other_content_does_not_match(size: int, bitmap: int, codec: int) -> None:
    sectors = 1 + bitmap % (whole(size) - 1)
    content = block_of("text", 3, size)
    frame = encode(0, content, sectors, codec)
    stale = bytearray(content)
    untouched = next(i for i in range(16) if not sectors >> i & 1)
    stale[untouched * SECTOR] ^= 1
    position, matches = pack.unpack_patch(frame, 0, 1, size, SECRET, stale)
    assert position == len(frame)
    assert not matches


def sample_frame(rng: random.Random) -> bytes:
    """A frame of a disk of eight blocks, the last of 10000 bytes."""
    frame = b""
    for index in sorted(rng.sample(range(8), rng.randint(1, 4))):
        size = 10000 if index == 7 else BLOCK
        content = block_of(rng.choice(["zero", "text", "half", "noise"]), index, size)
        sectors = rng.choice([whole(size), rng.randint(1, 0xFFFF) & whole(size) or 1])
        frame += encode(index, content, sectors, rng.choice([0, 1, 1]))
    return frame


def spoil(rng: random.Random, frame: bytes) -> bytes:
    """The frame with a few bytes changed, cut out, put in, or numbers at the edges laid over a header."""
    spoilt = bytearray(frame)
    starts, at = [], 0
    while at < len(frame):
        starts.append(at)
        at = pack.entry(frame, at)[4]
    for _ in range(rng.choice([0, 1, 1, 2, 5])):
        kind = rng.randrange(5)
        place = rng.randrange(len(spoilt) + 1)
        if kind == 0 and place < len(spoilt):
            spoilt[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del spoilt[place : place + rng.choice([1, 31, 32, 5000])]
        elif kind == 2:
            spoilt[place:place] = rng.randbytes(rng.choice([1, 16, 32]))
        elif kind == 3:
            del spoilt[place:]
        else:
            field, size = rng.choice([(0, 8), (8, 2), (10, 1), (11, 1), (12, 4), (32, 4)])
            edge = rng.choice(
                [0, 1, 7, 8, 4095, 4096, 4097, 65535, 65536, 65537, 2**31, 2**32 - 1, 2**64 - 1]
            )
            start = rng.choice(starts) + field
            spoilt[start : start + size] = (edge & (1 << 8 * size) - 1).to_bytes(size, "little")
    return bytes(spoilt)


@pytest.mark.parametrize("round_", range(10))
def test_a_spoilt_frame_is_refused_or_proved(round_: int) -> None:
    """Whatever comes in: one of two exceptions, or blocks with the digest that the frame says."""
    seed = secrets.randbits(64)
    print(f"seed {seed}")
    rng = random.Random(seed)
    canary, proofs = b"\xcc" * 64, bytearray(64 * 16)
    refused = 0
    for _ in range(40):
        frame = spoil(rng, sample_frame(rng))
        room = rng.choice([8 * BLOCK, 2 * BLOCK, BLOCK])
        arena = bytearray(canary + bytes(room) + canary)
        digests = bytearray(canary + bytes(8 * 16) + canary)
        out = memoryview(arena)[64:-64]
        position = 0
        try:
            while position < len(frame):
                before = position
                index, _, _, _, following = pack.entry(frame, position)
                end, _, stored = pack.prove(frame, position, 8, 10000, SECRET, proofs)
                for entry in decode(frame[position:end]):
                    assert (entry.codec, digest_of(entry.payload)) == (0, entry.digest)
                    stored -= 1
                assert stored == 0
                position, first, count, length = pack.unpack(
                    frame, position, 8, 10000, SECRET, out, memoryview(digests)[64:-64]
                )
                assert first == index < 8
                at = 0
                for i in range(count):
                    size = 10000 if first + i == 7 else BLOCK
                    assert digest_of(bytes(out[at : at + size])) == digests[64 + 16 * i :][:16]
                    at += size
                assert at == length <= room
                if count == 0:
                    block = bytearray(10000 if index == 7 else BLOCK)
                    position, matches = pack.unpack_patch(frame, position, 8, 10000, SECRET, block)
                    assert position == following
                    assert matches == (digest_of(bytes(block)) == frame[before + 16 : before + 32])
                assert position > before
        except (pack.Malformed, pack.Mismatch):
            refused += 1
        assert arena[:64] == arena[-64:] == digests[:64] == digests[-64:] == canary
    assert refused > 0


def test_a_frame_of_noise_is_malformed() -> None:
    seed = secrets.randbits(64)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(2000):
        noise = rng.randbytes(rng.randrange(200))
        with pytest.raises(pack.Malformed):
            pack.unpack(noise, 0, 8, 10000, SECRET, bytearray(BLOCK), bytearray(16))
        block = bytearray(BLOCK)
        with pytest.raises(pack.Malformed):
            pack.unpack_patch(noise, 0, 8, 10000, SECRET, block)
        assert block == bytes(BLOCK)
