"""References in bytes, and the index: what is refused, what is found, what is saved before it is overwritten."""

import random

import pytest

from _native import digest, refer

BLOCK, SECTOR = 65536, 4096
SECRET = bytes(range(192))


def digests(content: bytes, unit: int = BLOCK) -> bytes:
    out = bytearray(-(-len(content) // unit) * 16)
    digest.digest_blocks(content, SECRET, out, unit)
    return bytes(out)


def entry(block: int, content: bytes, sectors: int, zeroes: int = 0) -> bytes:
    """As the document lays it out, by hand."""
    named = b"".join(
        digests(content[at * SECTOR : (at + 1) * SECTOR], SECTOR) for at in range(16) if sectors >> at & 1
    )
    head = block.to_bytes(8, "little") + sectors.to_bytes(2, "little") + zeroes.to_bytes(2, "little")
    return head + bytes(4) + digests(content) + named


def packed(
    span: bytes, first: int, blocks: int, sectors: bytes, room: int = 1 << 16
) -> tuple[int, bytes, int]:
    out = bytearray(room)
    left, end, named = refer.pack(span, first, blocks, sectors, digests(span), SECRET, out, 0)
    return left, bytes(out[:end]), named


def index(blocks: int = 64, slots: int = 1024, rooms: int = 8) -> refer.Index:
    return refer.Index(SECRET, blocks, slots, rooms)


def block(seed: int) -> bytes:
    return random.Random(seed).randbytes(BLOCK)


def test_an_entry_names_the_sectors_that_differ_and_tells_those_that_become_zero() -> None:
    span = block(1) + bytes(SECTOR) + block(2)[SECTOR:] + block(3)
    left, frame, named = packed(span, 70, 0b011, b"\x05\x00\x03\x00\xff\xff")
    assert (left, named) == (0, 3)
    assert frame == entry(70, span[:BLOCK], 0b101) + entry(71, span[BLOCK : 2 * BLOCK], 0b10, 0b01)


def test_what_does_not_fit_stays_to_do() -> None:
    span = block(1) * 3
    left, frame, named = packed(span, 0, 0b111, b"\xff\xff" * 3, room=2 * 288 + 287)
    assert (left, named, len(frame)) == (0b100, 32, 2 * 288)


def test_a_block_of_which_nothing_differs_gets_no_entry() -> None:
    assert packed(block(1) * 2, 0, 0b11, b"\0\0\1\0")[1] == entry(1, block(1), 1)


def test_a_short_block_is_not_named() -> None:
    with pytest.raises(ValueError, match="only whole blocks"):
        packed(bytes(BLOCK + SECTOR), 0, 0b10, b"\1\0\1\0")


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (entry(0, block(1), 1)[:31], "inside the header"),
        (entry(0, block(1), 1)[:-1], "inside the digests"),
        (entry(0, block(1), 0xFFFF)[:-16], "inside the digests"),
        (entry(0, block(1), 0), "name no sector"),
        (entry(0, block(1), 3, 2), "named and becomes zero"),
        (entry(64, block(1), 1), "beyond the last whole one"),
        (entry(2**64 - 1, block(1), 1), "beyond the last whole one"),
        (entry(5, block(1), 1) + entry(5, block(1), 1), "do not ascend"),
        (entry(5, block(1), 1) + entry(4, block(1), 1), "do not ascend"),
        (entry(0, bytes(BLOCK), 1), "a sector of zeroes"),
        (entry(0, block(1), 1)[:12] + b"\1" + entry(0, block(1), 1)[13:], "reserved"),
    ],
    ids=range(11),
)
def test_a_malformed_frame_is_refused_and_says_why(frame: bytes, reason: str) -> None:
    with pytest.raises(refer.Malformed, match=reason):
        index().plan(frame, 0, 0)


def test_frames_go_on_where_the_last_batch_ended_and_still_ascend() -> None:
    frame = b"".join(entry(at, block(1), 1) for at in range(70))
    found = index(100)
    position, least, blocks, _ = found.plan(frame, 0, 0)
    assert (position, least, blocks) == (64 * 48, 64, [(0, 0, 64)])
    assert found.plan(frame, position, least)[:3] == (70 * 48, 70, [(0, 64, 6)])
    with pytest.raises(refer.Malformed, match="do not ascend"):
        found.plan(frame, position, 65)


def resolve(found: refer.Index, frame: bytes, disk: bytearray, rooms: bytearray) -> tuple[object, ...]:
    """As the master target does it, on a disk and rooms in memory."""
    old, fresh, out = bytearray(64 * BLOCK), bytearray(b"\xee" * 64 * BLOCK), bytearray(1024)
    _, _, blocks, reads = found.plan(frame, 0, 0)
    for at, first, count in blocks:
        old[at * BLOCK : (at + count) * BLOCK] = disk[first * BLOCK : (first + count) * BLOCK]
    for place, at, count in reads:
        source, start = (rooms, place - refer.SAVED) if place >= refer.SAVED else (disk, place)
        fresh[at * SECTOR : (at + count) * SECTOR] = source[start * SECTOR : (start + count) * SECTOR]
    runs, missing, wrong, number = found.prove(old, fresh, out)
    for at, room, count in found.displace_batch(old):
        rooms[room * BLOCK : (room + count) * BLOCK] = old[at * BLOCK : (at + count) * BLOCK]
    for at, first, count in runs:
        disk[first * BLOCK : (first + count) * BLOCK] = fresh[at * BLOCK : (at + count) * BLOCK]
        assert out[at * 16 : (at + count) * 16] == digests(bytes(fresh[at * BLOCK : (at + count) * BLOCK]))
    return missing, wrong, number


def learned(disk: bytes, slots: int = 1024, rooms: int = 8) -> refer.Index:
    found = index(len(disk) // BLOCK, slots, rooms)
    found.learn(disk, 0, False)
    return found


def test_content_at_another_place_is_found_sector_by_sector() -> None:
    disk = bytearray(block(1) + block(2) + bytes(2 * BLOCK))
    wanted = bytes(disk[3 * SECTOR : 3 * SECTOR + BLOCK])
    frame = entry(2, wanted, 0xFFFF) + entry(3, disk[:SECTOR] + bytes(BLOCK - SECTOR), 1)
    assert resolve(learned(disk), frame, disk, bytearray()) == ([], [], 17)
    assert disk[2 * BLOCK : 3 * BLOCK] == wanted
    assert disk[3 * BLOCK :] == disk[:SECTOR] + bytes(BLOCK - SECTOR)


def test_what_is_not_there_is_missing_and_left_alone_while_the_rest_is_written() -> None:
    disk = bytearray(block(1) + block(2))
    wanted = block(9)[: 2 * SECTOR] + disk[: 14 * SECTOR]
    missing, wrong, number = resolve(learned(disk), entry(1, wanted, 0xFFFF), disk, bytearray(8 * BLOCK))
    assert (missing, wrong, number) == ([(1, 0b11)], [], 14)
    assert disk[BLOCK:] == block(2)[: 2 * SECTOR] + wanted[2 * SECTOR :]


def test_a_stale_index_finds_nothing_and_writes_nothing() -> None:
    disk = bytearray(block(1) + block(2))
    found = learned(disk)
    disk[:BLOCK] = block(3)  # behind the index's back
    assert resolve(found, entry(1, block(1), 0xFFFF), disk, bytearray(8 * BLOCK)) == ([(1, 0xFFFF)], [], 0)
    assert disk[BLOCK:] == block(2)


def test_sectors_that_share_the_half_of_the_digest_that_is_kept_do_not_pass_for_each_other() -> None:
    disk = bytearray(block(1) + block(2))
    named = bytearray(entry(1, block(1), 1))
    named[-1] ^= 1  # the same first 8 bytes, another digest
    assert resolve(learned(disk), bytes(named), disk, bytearray(8 * BLOCK)) == ([(1, 1)], [], 0)
    assert disk[BLOCK:] == block(2)


def test_found_sectors_that_do_not_make_the_block_are_wrong_and_nothing_of_it_is_written() -> None:
    disk = bytearray(block(1) + block(2))
    wanted = block(1)[:SECTOR] + block(7)[SECTOR:]  # the sender took the rest for something else
    assert resolve(learned(disk), entry(1, wanted, 1), disk, bytearray(8 * BLOCK)) == ([], [1], 0)
    assert disk[BLOCK:] == block(2)


def test_two_blocks_change_places() -> None:
    disk = bytearray(block(1) + block(2))
    found = learned(disk, rooms=0)  # in one batch nothing has to be saved
    assert resolve(found, entry(0, block(2), 0xFFFF) + entry(1, block(1), 0xFFFF), disk, bytearray())[0] == []
    assert disk == block(2) + block(1)


def test_old_content_is_saved_until_it_has_a_new_home() -> None:
    disk = bytearray(block(1) + block(2))
    found, rooms = learned(disk), bytearray(8 * BLOCK)
    assert resolve(found, entry(0, block(2), 0xFFFF), disk, rooms)[0] == []
    assert found.rooms_used == 1
    assert resolve(found, entry(1, block(1), 0xFFFF), disk, rooms)[0] == []
    assert disk == block(2) + block(1)
    assert found.rooms_used == 0


def test_without_a_room_overwritten_content_is_missing() -> None:
    disk = bytearray(block(1) + block(2))
    found = learned(disk, rooms=0)
    assert found.full
    resolve(found, entry(0, block(2), 0xFFFF), disk, bytearray())
    assert resolve(found, entry(1, block(1), 0xFFFF), disk, bytearray())[0] == [(1, 0xFFFF)]


def test_content_that_is_elsewhere_too_is_not_saved() -> None:
    disk = bytearray(block(1) + block(1) + block(2))
    found = learned(disk)
    assert found.displace(disk[BLOCK : 2 * BLOCK], 1, 0xFFFF) == []
    assert found.displace(disk[:BLOCK], 0, 0) == []
    assert found.displace(disk[:BLOCK], 0, 0xFFFF) == [(0, 0, 1)]
    assert found.displace(disk[2 * BLOCK :], 2, 0b1) == [(0, 1, 1)]


def test_rooms_next_to_each_other_are_told_together() -> None:
    disk = random.Random(5).randbytes(6 * BLOCK)
    found = learned(disk, rooms=4)
    assert found.displace(disk[: 3 * BLOCK], 0, 0xFFFF) == [(0, 0, 3)]
    assert found.displace(disk[3 * BLOCK :], 3, 0xFFFF) == [(0, 3, 1)]
    assert found.full


def test_a_small_index_keeps_a_share_and_finds_the_rest_beside_it() -> None:
    disk = bytearray(random.Random(6).randbytes(200 * BLOCK))
    found = learned(disk)
    assert found.thin >= 2
    assert found.known <= 768
    moved = bytes(disk[7 * SECTOR : 7 * SECTOR + 60 * BLOCK])
    frame = b"".join(entry(120 + at, moved[at * BLOCK : (at + 1) * BLOCK], 0xFFFF) for at in range(60))
    missing, wrong, number = resolve(found, frame, disk, bytearray(8 * BLOCK))
    assert wrong == []
    assert number > 59 * 16  # all but what lies before the first or behind the last that is kept
    assert len(missing) <= 2  # type: ignore[arg-type]


def test_zeroes_are_never_learned() -> None:
    found = learned(bytes(4 * BLOCK))
    assert found.known == 0


@pytest.mark.parametrize("slots", [0, 1000, 1 << 33])
def test_a_capacity_that_makes_no_sense_is_refused(slots: int) -> None:
    with pytest.raises((ValueError, MemoryError)):
        refer.Index(SECRET, 1, slots, 0)


def test_buffers_that_are_too_small_are_refused() -> None:
    found = learned(bytearray(block(1) + block(2)))
    found.plan(entry(0, block(1), 1) + entry(1, block(1), 1), 0, 0)
    with pytest.raises(ValueError, match="old has"):
        found.prove(bytes(BLOCK), bytearray(2 * BLOCK), bytearray(32))
    with pytest.raises(ValueError, match="fresh has"):
        found.prove(bytes(2 * BLOCK), bytearray(BLOCK), bytearray(32))
    with pytest.raises(ValueError, match="out_digests"):
        found.prove(bytes(2 * BLOCK), bytearray(2 * BLOCK), bytearray(31))
    with pytest.raises(ValueError, match="beyond the disk"):
        found.learn(bytes(4 * BLOCK), 0, False)
    with pytest.raises(ValueError, match="at most 64 blocks"):
        found.displace(bytes(65 * BLOCK), 0, 1)
    with pytest.raises(ValueError, match="16 sectors"):
        found.displace(bytes(BLOCK), 0, 1 << 16)
    with pytest.raises(ValueError, match="beyond the"):
        found.plan(b"", 1, 0)
