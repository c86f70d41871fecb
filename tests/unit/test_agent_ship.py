"""A lane reads what nobody has read yet: which frames that makes, by either way, and what it tells of it."""

import os
import random
import threading
from pathlib import Path
from typing import cast

import pytest

from _native import digest, pack
from agent.adapters.sent_file import SentFile
from agent.config import Compression
from agent.descent import Ship
from agent.pace import Bucket, Compressor
from agent.references import Referrals
from agent.ship import Lane, Source, Tally, Work
from agent.window import Window
from agent.work import WorkQueue
from disks import catalogue
from disks.digestmap import DigestMap
from disks.disk import Disk, Format
from disks.errors import ReadFailed
from drcore.clock import SystemClock
from drcore.errors import HomewardError
from drcore.limits import FRAME_BYTES_MAX, GIB
from drcore.secret import Secret
from drcore.units import BLOCK_BYTES, DIGEST_BYTES, SPAN_BLOCKS, SPAN_BYTES, parts
from wireproto.connection import Connection
from wireproto.link import Link
from wireproto.messages import PREFIX_BYTES

SECRET = bytes(range(192))
SIZE = 2 * SPAN_BYTES + 9 * BLOCK_BYTES + 5000


class Wire:
    """The link of a lane: frames are noted."""

    transport = None

    def __init__(self, frame_bytes: int) -> None:
        self.connection = Connection(is_agent=True, shared=Secret(bytes(32)))
        self.connection.frame_bytes = frame_bytes
        self.frames: list[bytes] = []

    def send_data(self, stream: int, count: int, plain: memoryview) -> tuple[int, int]:
        self.frames.append(bytes(plain[PREFIX_BYTES:]))
        assert count == len(entries_of(self.frames[-1]))
        return len(self.frames), len(plain)


class Hidden:
    """A disk of which nobody knows that its bytes lie in one run of a file."""

    def __init__(self, disk: Disk) -> None:
        self.read = disk.read


def entries_of(frame: bytes) -> list[tuple[int, int, int]]:
    """(block, sectors, stored bytes) of each entry."""
    found, position = [], 0
    while position < len(frame):
        block, sectors, _, stored, position = pack.entry(frame, position)
        found.append((block, sectors, stored))
    return found


def laid_over_zeroes(frames: list[bytes]) -> bytes:
    """What a new target holds after these frames, each proved."""
    found = bytearray(parts(SIZE, BLOCK_BYTES) * BLOCK_BYTES)
    for frame in frames:
        position = 0
        while position < len(frame):
            block, *_ = pack.entry(frame, position)
            size = min(BLOCK_BYTES, SIZE - block * BLOCK_BYTES)
            into = memoryview(found)[block * BLOCK_BYTES : block * BLOCK_BYTES + size]
            blocks, last = parts(SIZE, BLOCK_BYTES), (SIZE - 1) % BLOCK_BYTES + 1
            position, matches = pack.unpack_patch(frame, position, blocks, last, SECRET, into)
            assert matches
    return bytes(found[:SIZE])


def content() -> bytes:
    """Data with zero blocks in it, some with few sectors of data, some with most, and a short end."""
    chance = random.Random(5)
    blocks = []
    for index in range(parts(SIZE, BLOCK_BYTES)):
        block = bytearray(chance.randbytes(BLOCK_BYTES))
        if index % 7 == 3:
            block = bytearray(BLOCK_BYTES)
        elif index % 7 == 5:
            block[4096 : 4096 * (15 if index % 2 else 6)] = bytes(4096 * (14 if index % 2 else 5))
        blocks.append(bytes(block))
    return b"".join(blocks)[:SIZE]


class Run:
    """What came of shipping the whole of a source."""

    def __init__(self, path: Path, folder: Path, *, hidden: bool, frame_bytes: int, cut: int = SIZE) -> None:
        self.wire, self.tally, self.ends = Wire(frame_bytes), Tally(), list[HomewardError]()
        disk = catalogue.open_source(path, Format.RAW)
        os.truncate(path, cut)
        digests, sent, work = DigestMap(SIZE, folder), SentFile(folder, "disk"), WorkQueue[Work]()
        shown = cast(Disk, Hidden(disk)) if hidden else disk
        source = Source(1, shown, digests, SECRET, sent, self.tally, Referrals(digests))
        for span in range(parts(SIZE, SPAN_BYTES)):
            blocks = (1 << min(SPAN_BLOCKS, parts(SIZE, BLOCK_BYTES) - span * SPAN_BLOCKS)) - 1
            work.put((source, Ship(span, blocks, 0, blocks, b"", unread=True)))
        clock = SystemClock()
        link, bucket = cast(Link, self.wire), Bucket(None, clock, lambda: False)
        self.window = Window(GIB)
        lane = Lane(
            0, link, work, self.window, bucket, Compressor(Compression.NEVER), clock, self.ends.append
        )
        settled = threading.Thread(target=self._settle, args=(work,))
        settled.start()
        lane.start()
        settled.join(30)
        self.window.forsake(1)
        lane.join()
        self.digests = bytes(digests.read(0, digests.blocks))
        digests.close()
        sent.close()
        disk.close()

    def _settle(self, work: WorkQueue[Work]) -> None:
        while work.full or (work._unsent and not self.ends):
            threading.Event().wait(0.005)
        work.close()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(content())
    return path


@pytest.mark.parametrize("frame_bytes", [FRAME_BYTES_MAX, 2 * FRAME_BYTES_MAX, 70_000])
def test_what_is_read_into_frames_is_what_would_be_packed(
    source: Path, tmp_path: Path, frame_bytes: int
) -> None:
    into = Run(source, tmp_path / "a", hidden=False, frame_bytes=frame_bytes)
    packed = Run(source, tmp_path / "b", hidden=True, frame_bytes=frame_bytes)
    whole = content()
    expected = bytearray(parts(SIZE, BLOCK_BYTES) * DIGEST_BYTES)
    digest.digest_blocks(whole, SECRET, expected)
    assert into.ends == packed.ends == []
    assert into.digests == packed.digests == expected
    of_few, of_most = (
        {
            sectors
            for frame in into.wire.frames
            for block, sectors, _ in entries_of(frame)
            if block % 7 == 5 and block % 2 == odd
        }
        for odd in (1, 0)
    )
    assert of_few == {1 | 1 << 15}, "at most half of a block's sectors go alone"
    assert of_most == {0xFFFF}
    for run in (into, packed):
        entries = [entry for frame in run.wire.frames for entry in entries_of(frame)]
        assert [block for block, _, _ in entries] == [
            block
            for block in range(parts(SIZE, BLOCK_BYTES))
            if any(whole[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])
        ]
        assert laid_over_zeroes(run.wire.frames) == whole
        assert all(len(frame) <= frame_bytes for frame in run.wire.frames)
        assert (run.tally.blocks, run.tally.sectors, run.tally.content_bytes) == (
            len(entries),
            sum(sectors.bit_count() for _, sectors, _ in entries),
            sum(stored for _, _, stored in entries),
        )


@pytest.mark.parametrize("hidden", [False, True])
def test_blocks_that_went_in_a_broken_run_are_counted_as_sent_again(
    source: Path, tmp_path: Path, *, hidden: bool
) -> None:
    before = SentFile(tmp_path / "c", "disk")
    before.mark(1, (1 << SPAN_BLOCKS) - 1)
    before.close()
    run = Run(source, tmp_path / "c", hidden=hidden, frame_bytes=FRAME_BYTES_MAX)
    again = [
        32 + stored
        for frame in run.wire.frames
        for block, _, stored in entries_of(frame)
        if block // SPAN_BLOCKS == 1
    ]
    assert abs(run.tally.resent_bytes - sum(again)) <= len(run.wire.frames)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_source_that_ends_too_early_is_told_with_its_place(
    source: Path, tmp_path: Path, *, hidden: bool
) -> None:
    cut = SPAN_BYTES + 5 * BLOCK_BYTES + 4096
    run = Run(source, tmp_path / "d", hidden=hidden, frame_bytes=FRAME_BYTES_MAX, cut=cut)
    (error,) = run.ends
    assert isinstance(error, ReadFailed)
    assert error.offset == cut
    known = run.digests[: cut // BLOCK_BYTES * DIGEST_BYTES]
    expected = bytearray(len(known))
    digest.digest_blocks(content()[: cut // BLOCK_BYTES * BLOCK_BYTES], SECRET, expected)
    if not hidden:
        assert known == expected, "what was read before is known"
    assert all(block < cut // BLOCK_BYTES for frame in run.wire.frames for block, _, _ in entries_of(frame))
