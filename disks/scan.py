"""Reading a disk once, in order, into its digest map, and telling of every region as it is done."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, TypeAlias

from _native import digest
from disks.disk import Disk, ExtentKind
from disks.linear import lent
from drcore.buffers import buffer
from drcore.limits import MIB
from drcore.record import Record
from drcore.units import BLOCK_BYTES, DIGEST_BYTES, REGION_BYTES, ZERO_DIGEST, parts

if TYPE_CHECKING:  # who compares two disks keeps no digests
    from disks.digestmap import DigestMap

PIECE_BYTES: Final = 1 * MIB
"""What is read and hashed at once: it stays in a core's own cache between the two."""
STRETCH_BYTES: Final = 8 * MIB
"""What a kernel takes at once, without coming back to Python; a region is a multiple of it."""
Seen: TypeAlias = Callable[[int, memoryview], None]
"""Is shown (offset, content) of what was read."""


class RegionRun(Record):
    """`count` regions from `first` on; `digest` is None when all of them read as zeroes (then count may be large)."""

    first: int
    count: int
    digest: bytes | None


def data_runs(disk: Disk, size: int, unit: int = BLOCK_BYTES, *, begin: int = 0) -> Iterator[tuple[int, int]]:
    """Runs (start, end) of the first `size` bytes that may hold data, in whole units, merged, ascending.

    What lies before `begin`, a multiple of the unit, is left out.
    """
    start = end = -1
    for extent in disk.extents(begin, size - begin):
        if extent.kind is ExtentKind.ZERO:
            continue
        first = extent.offset // unit * unit
        last = min(parts(extent.offset + extent.length, unit) * unit, size)
        if start < 0:
            start, end = first, last
        elif first <= end:
            end = max(end, last)
        else:
            yield start, end
            start, end = first, last
    if start >= 0:
        yield start, end


def cut(start: int, end: int, most: int) -> Iterator[tuple[int, int]]:
    """The run as (start, length) of at most `most`, never across a multiple of it."""
    while start < end:
        stop = min(end, start // most * most + most)
        yield start, stop - start
        start = stop


def pieces(disk: Disk, size: int, most: int = PIECE_BYTES) -> Iterator[tuple[int, int]]:
    """The data of the first `size` bytes, cut."""
    for start, end in data_runs(disk, size):
        yield from cut(start, end, most)


def scan(
    disk: Disk,
    digests: "DigestMap",
    secret: bytes,
    on_bytes: Callable[[int], None],
    seen: Callable[[], Seen | None] = lambda: None,
) -> Iterator[RegionRun]:
    """Every region that the map covers, ascending; the map (fresh: all zero) holds the blocks of those told.

    `on_bytes` is called with the position reached, often; what it raises ends the scan. `seen` answers who wants to
    see what is read; as long as nobody does, the kernel reads, a stretch at a time, a disk whose bytes lie in one run
    of a file. Errors: `ReadFailed`.
    """
    work = _Work()
    told = 0
    for start, length in pieces(disk, digests.size, STRETCH_BYTES):
        region = start // REGION_BYTES
        if region > told:
            yield from _tell(digests, secret, told, region)
            told = region
        found = work.digest(disk, start, length, secret, seen, on_bytes)
        if found is not None:
            digests.write(start // BLOCK_BYTES, found)
    yield from _tell(digests, secret, told, digests.regions)
    on_bytes(digests.size)


class _Work:
    """The buffers of one scan."""

    def __init__(self) -> None:
        self._found = memoryview(bytearray(STRETCH_BYTES // BLOCK_BYTES * DIGEST_BYTES))
        self._piece = buffer(PIECE_BYTES)
        self._small = buffer(digest.WORK_BYTES)

    def digest(
        self,
        disk: Disk,
        start: int,
        length: int,
        secret: bytes,
        seen: Callable[[], Seen | None],
        on_bytes: Callable[[int], None],
    ) -> memoryview | None:
        """The digests of the stretch's blocks, lent until the next call; None where all of them are zero."""
        found = self._found[: parts(length, BLOCK_BYTES) * DIGEST_BYTES]
        done = nonzero = 0
        place = lent(disk) if seen() is None else None
        if place is not None:
            done, nonzero = digest.digest_place(
                place[0], place[1] + start, length, secret, self._small, found
            )
            on_bytes(start + done)
        # What the kernel could not read is read here, where somebody says why that fails.
        for at, size in cut(start + done, start + length, PIECE_BYTES):
            content = self._piece[:size]
            disk.read(at, content)
            if (show := seen()) is not None:
                show(at, content)
            first = (at - start) // BLOCK_BYTES
            blocks = found[first * DIGEST_BYTES : (first + parts(size, BLOCK_BYTES)) * DIGEST_BYTES]
            nonzero += digest.digest_blocks(content, secret, blocks)
            on_bytes(at + size)
        return found if nonzero else None


def _tell(digests: "DigestMap", secret: bytes, first: int, end: int) -> Iterator[RegionRun]:
    """The regions from `first` up to `end`, of which only the first was read; the others hold no data."""
    if first < end:
        found = digests.region(first, secret)
        yield RegionRun(first, 1, None if found == ZERO_DIGEST else found)
    if first + 1 < end:
        yield RegionRun(first + 1, end - first - 1, None)


def remembered(digests: "DigestMap", secret: bytes) -> Iterator[RegionRun]:
    """As `scan`, from a digest map that is already true; the disk is not read."""
    for region in range(digests.regions):
        found = digests.region(region, secret)
        yield RegionRun(region, 1, None if found == ZERO_DIGEST else found)
