"""The entry's bytes, and what `_native.pack` refuses and leaves alone."""

import random
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import lz4.block
import pytest

from _native import digest, pack

GOLDEN = Path(__file__).parents[1] / "golden" / "native"
BLOCK, SECTOR = 65536, 4096
SECRET = bytes(range(192))
NEVER, ALWAYS, AUTO = 0, 1, 2
NOISE = random.Random(4).randbytes(BLOCK)
TEXT = b"".join(b"%d: the quick brown fox\n" % i for i in range(4000))[:BLOCK]


def digests_of(content: bytes) -> bytes:
    out = bytearray(-(-len(content) // BLOCK) * 16)
    digest.digest_blocks(content, SECRET, out)
    return bytes(out)


def packed(span: bytes, mode: int, first: int = 0, sectors: int = 0xFFFF, room: int = 2**20) -> bytes:
    count = -(-len(span) // BLOCK)
    out = bytearray(room)
    bitmaps = sectors.to_bytes(2, "little") * count
    rest, position, _ = pack.pack(span, first, (1 << count) - 1, bitmaps, digests_of(span), out, 0, mode)
    assert rest == 0
    return bytes(out[:position])


def frame_of(
    block: int = 0,
    sectors: int = 0xFFFF,
    codec: int = 0,
    reserved: int = 0,
    stored: int = BLOCK,
    proof: bytes = digests_of(NOISE),
    payload: bytes = NOISE,
) -> bytes:
    return struct.pack("<QHBBI16s", block, sectors, codec, reserved, stored, proof) + payload


def unpacked(
    frame: bytes, blocks: int = 4, last: int = BLOCK, room: int = 4 * BLOCK
) -> tuple[int, int, int, int]:
    return pack.unpack(frame, 0, blocks, last, SECRET, bytearray(room), bytearray(64 * 16))


def test_an_entry_has_the_documented_bytes() -> None:
    assert packed(NOISE, NEVER, first=0x0102030405) == frame_of(block=0x0102030405)
    assert pack.entry(frame_of(block=2**64 - 1), 0) == (2**64 - 1, 0xFFFF, 0, BLOCK, 32 + BLOCK)


def test_a_block_that_the_tool_lz4_made_is_unpacked() -> None:
    payload = (GOLDEN / "numbers.lz4block").read_bytes()
    numbers = b"".join(b"%d\n" % i for i in range(1, 20001))[:12288]
    frame = frame_of(1, 0b111, 1, 0, len(payload), digests_of(numbers), payload)
    out, proofs = bytearray(12288), bytearray(16)
    assert pack.unpack(frame, 0, 2, 12288, SECRET, out, proofs) == (len(frame), 1, 1, 12288)
    assert out == numbers
    assert proofs == digests_of(numbers)


def test_lz4_of_an_entry_is_what_the_package_reads() -> None:
    frame = packed(TEXT, ALWAYS)
    assert frame[10] == 1
    assert lz4.block.decompress(frame[32:], uncompressed_size=BLOCK) == TEXT


def test_never_stores_and_auto_stores_noise() -> None:
    assert packed(TEXT, NEVER)[10] == 0
    assert packed(NOISE, AUTO)[10] == 0
    assert packed(NOISE, ALWAYS)[10] == 0
    assert packed(TEXT, AUTO)[10] == 1


def test_auto_leaves_what_saves_too_little() -> None:
    """Half a sector that shrinks to nearly nothing saves too little for auto and enough for always."""
    content = NOISE[: BLOCK - 2048] + bytes(2048)
    assert packed(content, ALWAYS)[10] == 1
    assert packed(content, AUTO)[10] == 0


def test_a_short_block_is_whole_with_all_the_sectors_it_has() -> None:
    frame = packed(TEXT[:5000], NEVER, first=3)
    assert pack.entry(frame, 0) == (3, 0b11, 0, 5000, 5032)
    assert unpacked(frame, 4, 5000) == (5032, 3, 1, 5000)
    assert packed(TEXT[:5000], NEVER, sectors=0b10)[32:] == TEXT[4096:5000]


def test_one_byte_is_a_block() -> None:
    for mode in (NEVER, ALWAYS, AUTO):
        frame = packed(b"x", mode)
        assert frame[32:] == b"x"
        assert unpacked(frame, 1, 1) == (33, 0, 1, 1)


def test_a_zero_block_is_proved_by_the_reserved_digest() -> None:
    frame = packed(bytes(BLOCK), AUTO)
    assert frame[16:32] == bytes(16)
    out = bytearray(b"\1" * BLOCK)
    assert pack.unpack(frame, 0, 1, BLOCK, SECRET, out, bytearray(16)) == (len(frame), 0, 1, BLOCK)
    assert out == bytes(BLOCK)


def test_what_does_not_fit_stays_to_do() -> None:
    span = NOISE * 4
    out = bytearray(b"\xaa" * (2 * (BLOCK + 32) + BLOCK + 31))
    rest, position, gathered = pack.pack(span, 8, 0b1111, b"\xff" * 8, digests_of(span), out, 0, AUTO)
    assert (rest, position, gathered) == (0b1100, 2 * (BLOCK + 32), 2 * BLOCK)
    assert out[position:] == b"\xaa" * (BLOCK + 31)
    rest, position, gathered = pack.pack(span, 8, rest, b"\xff" * 8, digests_of(span), out, 0, AUTO)
    assert (rest, position) == (0, 2 * (BLOCK + 32))
    assert unpacked(bytes(out[:position]), 12) == (position, 10, 2, 2 * BLOCK)


def test_a_run_ends_at_a_full_buffer_and_goes_on_from_there() -> None:
    span = NOISE * 3
    frame = packed(span, NEVER)
    out, proofs = bytearray(2 * BLOCK + 5), bytearray(3 * 16)
    position, first, count, length = pack.unpack(frame, 0, 4, BLOCK, SECRET, out, proofs)
    assert (first, count, length) == (0, 2, 2 * BLOCK)
    assert out[: 2 * BLOCK] == span[: 2 * BLOCK]
    assert pack.unpack(frame, position, 4, BLOCK, SECRET, out, proofs) == (len(frame), 2, 1, BLOCK)


def test_a_run_holds_at_most_a_span() -> None:
    frame = packed(bytes(64 * BLOCK), AUTO) + packed(bytes(BLOCK), AUTO, first=64)
    out, proofs = bytearray(65 * BLOCK), bytearray(64 * 16)
    position, first, count, _ = pack.unpack(frame, 0, 65, BLOCK, SECRET, out, proofs)
    assert (first, count) == (0, 64)
    assert pack.unpack(frame, position, 65, BLOCK, SECRET, out, proofs) == (len(frame), 64, 1, BLOCK)


def test_a_partial_entry_is_a_run_of_none() -> None:
    frame = packed(TEXT, AUTO, first=2, sectors=0b10)
    assert unpacked(frame) == (0, 2, 0, 0)


def test_a_patch_takes_a_whole_block_too() -> None:
    frame = packed(TEXT, AUTO)
    block = bytearray(BLOCK)
    assert pack.unpack_patch(frame, 0, 1, BLOCK, SECRET, block) == (len(frame), True)
    assert block == TEXT


MALFORMED: list[tuple[str, bytes]] = [
    ("inside the header", b""),
    ("inside the header", frame_of()[:31]),
    ("inside the payload", frame_of()[:-1]),
    ("codec is neither", frame_of(codec=2)),
    ("codec is neither", frame_of(codec=255)),
    ("reserved byte", frame_of(reserved=1)),
    ("no sector", frame_of(sectors=0)),
    ("stored length", frame_of(stored=0)),
    ("stored length", frame_of(stored=BLOCK + 1, payload=NOISE + b"x")),
    ("stored length", frame_of(stored=2**32 - 1)),
    ("stored length", frame_of(codec=1)),
    ("stored length", frame_of(sectors=1, stored=SECTOR + 1)),
]
MALFORMED_FOR_THE_DISK: list[tuple[str, bytes]] = [
    ("beyond the end of the disk", frame_of(block=4)),
    ("beyond the end of the disk", frame_of(block=2**64 - 1)),
    ("sectors beyond", frame_of(block=3)),
    ("not those of the sectors", frame_of(block=3, sectors=0b11, stored=5001, payload=NOISE[:5001])),
    ("not those of the sectors", frame_of(block=3, sectors=0b11, stored=4999, payload=NOISE[:4999])),
    ("not those of the sectors", frame_of(block=3, sectors=0b11, codec=1, stored=5000, payload=NOISE[:5000])),
    ("not those of the sectors", frame_of(stored=BLOCK - 1, payload=NOISE[:-1])),
    ("does not decompress", frame_of(codec=1, stored=100, payload=NOISE[:100])),
    ("does not decompress", frame_of(codec=1, stored=1, payload=b"\0")),
]


@pytest.mark.parametrize(("reason", "frame"), MALFORMED)
def test_a_malformed_entry_says_why(reason: str, frame: bytes) -> None:
    with pytest.raises(pack.Malformed, match=reason) as caught:
        pack.entry(b"12345" + frame, 5)
    assert caught.value.position == 5
    assert reason in caught.value.reason


@pytest.mark.parametrize(("reason", "frame"), MALFORMED + MALFORMED_FOR_THE_DISK)
def test_a_malformed_frame_leaves_the_patched_block_alone(reason: str, frame: bytes) -> None:
    with pytest.raises(pack.Malformed, match=reason):
        unpacked(frame, 4, 5000)
    for size in (BLOCK, 5000):
        block = bytearray(b"\xaa" * size)
        with pytest.raises(ValueError, match=f"{reason}|not the size of the block"):
            pack.unpack_patch(frame, 0, 4, 5000, SECRET, block)
        assert block == b"\xaa" * size


@pytest.mark.parametrize("change", [-1, 1])
def test_lz4_that_decodes_to_another_length_is_malformed(change: int) -> None:
    payload = lz4.block.compress(bytes(SECTOR + change), store_size=False)
    frame = frame_of(sectors=1, codec=1, stored=len(payload), payload=payload)
    with pytest.raises(pack.Malformed, match="does not decompress"):
        pack.unpack_patch(frame, 0, 1, BLOCK, SECRET, bytearray(BLOCK))


def test_a_later_entry_that_is_malformed_is_named_by_its_position() -> None:
    with pytest.raises(pack.Malformed, match=f"byte {BLOCK + 32} ") as caught:
        unpacked(frame_of() + frame_of(block=1, reserved=9))
    assert caught.value.position == BLOCK + 32


def test_a_block_that_has_not_its_digest_is_named() -> None:
    with pytest.raises(pack.Mismatch, match="block 2 ") as caught:
        unpacked(frame_of(block=1) + frame_of(block=2, payload=TEXT))
    assert caught.value.block == 2


def test_a_digest_with_another_secret_does_not_match() -> None:
    with pytest.raises(pack.Mismatch):
        pack.unpack(frame_of(), 0, 1, BLOCK, bytes(192), bytearray(BLOCK), bytearray(16))


def placed(
    descriptor: int = -1,
    first: int = 0,
    length: int = 2 * BLOCK,
    first_block: int = 0,
    blocks: int = 3,
    secret: bytes = SECRET,
    out_digests: bytearray | None = None,
    out: bytearray | None = None,
    position: int = 0,
) -> tuple[int, int, int, int, int]:
    return pack.pack_unread_place(
        descriptor,
        first,
        length,
        first_block,
        blocks,
        secret,
        bytearray(64 * 16) if out_digests is None else out_digests,
        bytearray(3 * BLOCK) if out is None else out,
        position,
    )


def test_what_cannot_be_read_into_a_frame_is_left_to_the_caller(tmp_path: Path) -> None:
    assert placed() == (3, 0, 0, 0, 0), "a descriptor that is none"
    path = tmp_path / "short"
    path.write_bytes(NOISE + TEXT[:-1])
    with path.open("rb") as file:
        digests, out = bytearray(64 * 16), bytearray(3 * BLOCK)
        left, position, done, sectors, length = placed(file.fileno(), out_digests=digests, out=out)
    assert (left, position, done, sectors, length) == (2, 32 + BLOCK, 1, 16, BLOCK)
    assert bytes(out[:position]) == frame_of()
    assert digests[:32] == digests_of(NOISE) + bytes(16)


def test_content_that_is_stored_is_proved_where_it_lies() -> None:
    frame = frame_of(block=1) + frame_of(block=2) + packed(TEXT, ALWAYS, first=3)
    digests = bytearray(64 * 16)
    end = 2 * (32 + BLOCK)
    assert pack.prove(frame, 0, 4, BLOCK, SECRET, digests) == (end, 1, 2)
    assert digests[:32] == 2 * digests_of(NOISE)
    assert pack.prove(frame, end, 4, BLOCK, SECRET, digests) == (end, 3, 0), "compressed"
    assert (
        pack.prove(frame_of(1, 1, stored=SECTOR, payload=NOISE[:SECTOR]), 0, 4, BLOCK, SECRET, digests)[2]
        == 0
    )
    with pytest.raises(pack.Mismatch) as caught:
        pack.prove(frame_of(block=1) + frame_of(block=2, payload=TEXT), 0, 4, BLOCK, SECRET, digests)
    assert caught.value.block == 2
    with pytest.raises(pack.Malformed, match=f"byte {BLOCK + 32} "):
        pack.prove(frame_of(block=1) + frame_of(block=4), 0, 4, BLOCK, SECRET, digests)


REFUSED: list[tuple[str, Callable[[], object]]] = [
    ("a disk without blocks", lambda: unpacked(frame_of(), 0)),
    ("the last block of a disk", lambda: unpacked(frame_of(), 4, 0)),
    ("the last block of a disk", lambda: unpacked(frame_of(), 4, BLOCK + 1)),
    ("which is less than block 0", lambda: unpacked(frame_of(), room=BLOCK - 1)),
    ("which is less than block 0", lambda: unpacked(frame_of(), room=0)),
    ("out_digests has", lambda: pack.unpack(b"", 0, 1, 1, SECRET, bytearray(BLOCK + 1), bytearray(31))),
    ("is beyond the 0 bytes", lambda: pack.unpack(b"", 1, 1, 1, SECRET, bytearray(1), bytearray(16))),
    ("is beyond the 0 bytes", lambda: pack.unpack_patch(b"", 1, 1, 1, SECRET, bytearray(1))),
    ("is beyond the 0 bytes", lambda: pack.entry(b"", 1)),
    ("a secret has", lambda: pack.unpack(b"", 0, 1, 1, b"", bytearray(1), bytearray(16))),
    ("a secret has", lambda: pack.unpack_patch(b"", 0, 1, 1, b"", bytearray(1))),
    ("not the size", lambda: pack.unpack_patch(frame_of(), 0, 1, BLOCK, SECRET, bytearray(BLOCK - 1))),
    ("not the size", lambda: pack.unpack_patch(frame_of(), 0, 1, BLOCK, SECRET, bytearray())),
    ("a mode is", lambda: pack.pack(NOISE, 0, 1, b"\1\0", bytes(16), bytearray(9), 0, 3)),
    ("a mode is", lambda: pack.pack(NOISE, 0, 1, b"\1\0", bytes(16), bytearray(9), 0, -1)),
    ("is beyond the 9 bytes", lambda: pack.pack(NOISE, 0, 1, b"\1\0", bytes(16), bytearray(9), 10, 0)),
    ("sectors has", lambda: pack.pack(NOISE, 0, 1, b"\1", bytes(16), bytearray(9), 0, 0)),
    ("digests has", lambda: pack.pack(NOISE, 0, 1, b"\1\0", bytes(15), bytearray(9), 0, 0)),
    ("names blocks beyond", lambda: pack.pack(NOISE, 0, 2, b"\1\0", bytes(16), bytearray(9), 0, 0)),
    ("the sectors of block 7", lambda: pack.pack(NOISE, 7, 1, b"\0\0", bytes(16), bytearray(9), 0, 0)),
    ("the sectors of block 7", lambda: pack.pack(b"x", 7, 1, b"\3\0", bytes(16), bytearray(9), 0, 0)),
    ("which is less than block 3", lambda: unpacked(packed(TEXT, ALWAYS, first=3), room=0)),
    ("out_digests has", lambda: pack.prove(b"", 0, 1, 1, SECRET, bytearray(64 * 16 - 1))),
    ("is beyond the 0 bytes", lambda: pack.prove(b"", 1, 1, 1, SECRET, bytearray(64 * 16))),
    ("a secret has", lambda: pack.prove(b"", 0, 1, 1, b"", bytearray(64 * 16))),
    ("out_digests has", lambda: placed(out_digests=bytearray(31))),
    ("is beyond the 9 bytes", lambda: placed(out=bytearray(9), position=10)),
    ("a secret has", lambda: placed(secret=b"")),
    ("names blocks beyond", lambda: placed(blocks=4)),
    ("a span has at most", lambda: placed(length=64 * BLOCK + 1)),
    ("within the first 4 EiB", lambda: placed(first=2**63)),
    ("beyond the end of any disk", lambda: placed(first_block=2**64 - 1)),
    ("beyond the end of any disk", lambda: pack.pack(b"", 2**64 - 1, 0, b"", b"", bytearray(), 0, 0)),
]


@pytest.mark.parametrize(("reason", "call"), REFUSED)
def test_a_callers_mistake_is_refused(reason: str, call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        call()
    assert not isinstance(caught.value, (pack.Malformed, pack.Mismatch))


def test_threads_pack_and_unpack_different_spans() -> None:
    spans = [(TEXT + NOISE)[i * 100 : i * 100 + BLOCK] * 16 for i in range(4)]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(3):
            frame = packed(spans[i], AUTO, room=2**21)
            out, proofs = bytearray(16 * BLOCK), bytearray(16 * 16)
            pack.unpack(frame, 0, 16, BLOCK, SECRET, out, proofs)
            if out != spans[i] or proofs != digests_of(spans[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
