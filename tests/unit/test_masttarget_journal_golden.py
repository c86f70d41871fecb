"""A journal goes on being read: by today's reader, and by hand with other people's packages."""

import json
import struct
import zlib
from pathlib import Path

import lz4.block
import xxhash
from blake3 import blake3

from masttarget.adapters.retention_files import RetentionFiles
from masttarget.points import Kind, Points
from masttarget.undo import Identity
from masttarget.verified import Blocks, Verified
from masttarget.verify import verify
from masttarget.view import PointView
from tests.fault.media import MemoryDisk

GOLDEN = Path(__file__).parents[1] / "golden" / "journal"
ITEM, DISK = b"i" * 16, b"d" * 16
BLOCK = 65536
SECTOR = 4096


def inflated(name: str) -> bytes:
    return zlib.decompress((GOLDEN / f"{name}.raw.zlib").read_bytes())


def test_todays_reader_reads_it() -> None:
    files = RetentionFiles(GOLDEN)
    points = Points(files.points(ITEM), ITEM.hex())
    points.load()
    assert [(point.sequence, point.kind) for point in points] == [
        (1, Kind.AS_FOUND),
        (2, Kind.CRASH_CONSISTENT),
        (3, Kind.CRASH_CONSISTENT),
    ]
    now = inflated("now")
    disk = MemoryDisk(len(now))
    disk.write(0, memoryview(now))
    for sequence, expected in ((1, inflated("then-1")), (2, inflated("then-2")), (3, now)):
        view = PointView(disk, files.segments(ITEM, DISK), Identity(ITEM, DISK, len(now)), sequence)
        into = memoryview(bytearray(len(now)))
        view.read(0, into)
        assert into == expected
    verdict = verify(GOLDEN)[0]
    assert verdict.good
    assert verdict.disks[0].verified_point == 3
    verified = Verified(files.verified(ITEM, DISK), Identity(ITEM, DISK, len(now)), print)
    header = verified.load()
    assert header is not None
    verified.believe(header, Blocks(verified.blocks))
    assert not verified.due
    verified.close()


def test_the_tables_of_the_document_read_it() -> None:
    folder = GOLDEN / ITEM.hex()
    chain = b"0" * 32
    for line in (folder / "points").read_bytes().splitlines():
        assert xxhash.xxh3_128_hexdigest(chain + line[33:]).encode() == line[:32]
        chain = line[:32]
        json.loads(line[33:])
    found: dict[tuple[int, int, int], bytes] = {}
    for path in sorted((folder / DISK.hex()).glob("*.undo")):
        data = path.read_bytes()
        assert data[16:22] == b"HWRJ" + bytes([2, 0])
        assert xxhash.xxh3_128_digest(data[16:128]) == data[:16]
        at, before = 128, data[:16]
        while at < len(data):
            cycle, first, blocks, stored, length, kind, codec, sectors = struct.unpack_from(
                "<QQIIIBBH", data, at + 32
            )
            end = at + 72 + stored
            assert data[at + 16 : at + 32] == before
            assert xxhash.xxh3_128_digest(data[at + 16 : end]) == data[at : at + 16]
            payload = data[at + 72 : end]
            if kind == 1:
                content = payload if codec == 0 else b""
                if codec == 1:
                    content = lz4.block.decompress(payload, length)
                for block in range(first, first + blocks):
                    found[cycle, block, sectors] = content
            before, at = data[at : at + 16], end
    then = inflated("then-1"), inflated("then-2")
    for (cycle, block, sectors), old in found.items():
        expected = then[cycle - 2][block * BLOCK : (block + 1) * BLOCK]
        if sectors:
            pieces = [expected[at * SECTOR : (at + 1) * SECTOR] for at in range(16) if sectors >> at & 1]
            expected = b"".join(pieces)
        assert (old or bytes(len(expected))) == expected
    whole = {(2, 0, 0), (2, 1, 0), (2, 10, 0), (3, 0, 0)}
    assert set(found) == whole | {(3, 2, 0x801F), (3, 2, 0x7FE0)}


def test_the_tables_of_the_document_read_the_verified_digests() -> None:
    folder = GOLDEN / ITEM.hex()
    data, now = (folder / DISK.hex() / "verified").read_bytes(), inflated("now")
    told, magic, version, length, item, disk, size, cycle, point, root, whole = struct.unpack_from(
        "<16s4sHH16s16sQQ16s32sI", data
    )
    assert (magic, version, length, item, disk, size) == (b"HWVF", 1, 128, ITEM, DISK, len(now))
    assert (cycle, point, whole) == (3, b"\2" * 16, 1)
    assert told == xxhash.xxh3_128_digest(data[16:128])
    page = data[4096:8192]
    assert page[:16] == xxhash.xxh3_128_digest(page[16:])
    assert page[16:32] == bytes(16)
    expected = b"".join(blake3(now[at : at + BLOCK]).digest() for at in range(0, len(now), BLOCK))
    assert page[32:].rstrip(b"\0") == expected.rstrip(b"\0")
    assert blake3(expected).digest() == root
    last = json.loads((folder / "points").read_bytes().splitlines()[-1][33:])["point"]
    assert (last["disks"][0]["content_root"], last["disks"][0]["verified"]) == (root.hex(), "full")
