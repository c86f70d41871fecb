"""Reading a disk once, in order, into its digest map, and telling of every region as it is done."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from _native import digest
from disks.disk import Disk, ExtentKind
from drcore.buffers import buffer
from drcore.limits import MIB
from drcore.record import Record
from drcore.units import BLOCK_BYTES, DIGEST_BYTES, REGION_BYTES, ZERO_DIGEST, parts

if TYPE_CHECKING:  # who compares two disks keeps no digests
    from disks.digestmap import DigestMap

PIECE_BYTES = 1 * MIB
"""What is read and hashed at once: it stays in a core's own cache between the two."""


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


def pieces(disk: Disk, size: int) -> Iterator[tuple[int, int]]:
    """The data of the first `size` bytes as (start, length) of at most 1 MiB, never across a border of 1 MiB."""
    for start, end in data_runs(disk, size):
        while start < end:
            stop = min(end, start // PIECE_BYTES * PIECE_BYTES + PIECE_BYTES)
            yield start, stop - start
            start = stop


def scan(
    disk: Disk, digests: "DigestMap", secret: bytes, on_bytes: Callable[[int], None]
) -> Iterator[RegionRun]:
    """Every region that the map covers, ascending; the map (fresh: all zero) holds the blocks of those told.

    `on_bytes` is called with the position reached, often; what it raises ends the scan. Errors: `ReadFailed`.
    """
    piece = buffer(PIECE_BYTES)
    out = memoryview(bytearray(PIECE_BYTES // BLOCK_BYTES * DIGEST_BYTES))
    told = 0
    for start, length in pieces(disk, digests.size):
        region = start // REGION_BYTES
        if region > told:
            yield from _tell(digests, secret, told, region)
            told = region
        disk.read(start, piece[:length])
        found = out[: parts(length, BLOCK_BYTES) * DIGEST_BYTES]
        if digest.digest_blocks(piece[:length], secret, found):
            digests.write(start // BLOCK_BYTES, found)
        on_bytes(start + length)
    yield from _tell(digests, secret, told, digests.regions)
    on_bytes(digests.size)


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
