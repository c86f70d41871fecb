"""Reading a page blob ahead: fewer round trips, the same bytes."""

import os
import random
import threading
from collections.abc import Iterator

import pytest

from disks.page_blob import PIECE_BYTES, PageBlobDisk

MIB = 1024 * 1024
SEED = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1 << 32)


class CountingBlob:
    """Content in memory; counts who reads what, and fails where it is told to."""

    name, etag = "https://account.blob.example/container/disk", '"1"'

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.length = len(content)
        self.reads: list[tuple[int, int]] = []
        self.broken: range = range(0)
        self._lock = threading.Lock()

    def read(self, offset: int, into: memoryview) -> None:
        with self._lock:
            self.reads.append((offset, len(into)))
        if offset in self.broken:
            raise InterruptedError
        into[:] = self.content[offset : offset + len(into)]

    def page_ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        yield offset, offset + length

    def close(self) -> None:
        pass


def read(disk: PageBlobDisk, offset: int, length: int) -> bytes:
    into = bytearray(length)
    disk.read(offset, memoryview(into))
    return bytes(into)


@pytest.fixture
def blob() -> CountingBlob:
    print(f"SEED={SEED}")
    return CountingBlob(random.Random(SEED).randbytes(5 * PIECE_BYTES + 512))


def test_a_scan_fetches_whole_pieces_and_each_but_the_first_once(blob: CountingBlob) -> None:
    disk = PageBlobDisk(blob, len(blob.content))
    found = b"".join(
        read(disk, at, min(MIB, len(blob.content) - at)) for at in range(0, len(blob.content), MIB)
    )
    disk.close()
    assert found == blob.content
    assert blob.reads[0] == (0, MIB), "one read says nothing of the next"
    assert sorted(offset for offset, _ in blob.reads[1:]) == [piece * PIECE_BYTES for piece in range(6)]


def test_reads_here_and_there_fetch_what_they_ask_for(blob: CountingBlob) -> None:
    disk = PageBlobDisk(blob, len(blob.content))
    wanted = [(3 * MIB, 4096), (9 * MIB, 65536), (MIB, 512), (17 * MIB, MIB)]
    for offset, length in wanted:
        assert read(disk, offset, length) == blob.content[offset : offset + length]
    disk.close()
    assert blob.reads == wanted


def test_many_readers_at_once_get_their_own_bytes(blob: CountingBlob) -> None:
    disk = PageBlobDisk(blob, len(blob.content))
    wrong: list[int] = []

    def scan(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(60):
            start, step = chance.randrange(len(blob.content) - 4 * MIB), chance.randrange(1, MIB)
            for at in range(start, start + 3 * step, step):
                if read(disk, at, step) != blob.content[at : at + step]:
                    wrong.append(at)

    threads = [threading.Thread(target=scan, args=(SEED + number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    disk.close()
    assert (wrong, any(thread.is_alive() for thread in threads)) == ([], False)


def test_a_piece_that_could_not_be_fetched_is_an_error_for_who_needs_it_only(blob: CountingBlob) -> None:
    blob.broken = range(2 * PIECE_BYTES, 2 * PIECE_BYTES + 1)
    disk = PageBlobDisk(blob, len(blob.content))
    for at in range(0, 2 * PIECE_BYTES, MIB):
        assert read(disk, at, MIB) == blob.content[at : at + MIB]
    with pytest.raises(InterruptedError):
        read(disk, 2 * PIECE_BYTES, MIB)
    disk.close()
