"""Comparing two disks that are both here, exactly: what differs, and what bringing the target up to date would send."""

import threading
from collections.abc import Callable, Iterator
from heapq import merge
from typing import Final

from _native import compare, digest, pack
from agent.errors import TargetLarger, TargetTooSmall
from disks.disk import Disk
from disks.linear import lent
from disks.scan import STRETCH_BYTES, cut, data_runs
from drcore.buffers import buffer
from drcore.limits import FRAME_BYTES_MAX, MIB
from drcore.record import Changing
from drcore.units import BLOCK_BYTES, DIGEST_BYTES, bit_runs, parts

FORMAT_SECTOR_BYTES: Final = 512
EXACT_BLOCKS_MAX: Final = 4096
"""Changed blocks that are all packed to learn what they take; of those beyond, every sixteenth."""
SAMPLE: Final = 16
PIECE_BYTES: Final = 1 * MIB
"""Read and compared at once: two such pieces leave room in the last-level cache for everybody else's."""
PIECE_BLOCKS: Final = PIECE_BYTES // BLOCK_BYTES
WORKERS: Final = 2
"""Threads that read and compare; more gain nothing where memory is the limit."""


class Measurement(Changing):
    """What differs. Sectors are those of 4 KiB; `bytes_zero` of the changed bytes become zero."""

    virtual_size: int = 0
    blocks_total: int = 0
    blocks_changed: int = 0
    sectors_changed: int = 0
    bytes_changed: int = 0
    bytes_zero: int = 0
    bytes_to_send: int = 0
    exact: bool = True
    bytes_done: int = 0

    def add(self, other: "Measurement") -> None:
        """The other's counts are in this one's."""
        self.blocks_changed += other.blocks_changed
        self.sectors_changed += other.sectors_changed
        self.bytes_changed += other.bytes_changed
        self.bytes_zero += other.bytes_zero


def check_sizes(source: Disk, target: Disk, target_path: str, *, allow_larger: bool) -> None:
    """The target can hold the source. Errors: `TargetTooSmall`, `TargetLarger` (HW-AGENT-005, 006)."""
    if target.size < source.size:
        raise TargetTooSmall(path=target_path, target_bytes=target.size, source_bytes=source.size)
    whole = parts(source.size, FORMAT_SECTOR_BYTES) * FORMAT_SECTOR_BYTES
    if target.size not in (source.size, whole) and not allow_larger:
        raise TargetLarger(path=target_path, target_bytes=target.size, source_bytes=source.size)


def measure(source: Disk, target: Disk, progress: Measurement, stopped: Callable[[], bool]) -> None:
    """`progress` holds what differs in the first `source.size` bytes; it grows while this runs. Errors: `ReadFailed`.

    Two threads compare piece after piece; holes on both sides are not read. Ends early when `stopped` answers True.
    """
    progress.virtual_size = source.size
    progress.blocks_total = parts(source.size, BLOCK_BYTES)
    pieces = _pieces(source, target)
    lock = threading.Lock()
    failures: list[BaseException] = []

    def work() -> None:
        worker = _Worker(source, target)
        try:
            while not stopped() and not failures:
                with lock:
                    place = next(pieces, None)
                if place is None:
                    break
                found = worker.stretch(*place)
                with lock:
                    progress.add(found)
                    progress.bytes_done = max(progress.bytes_done, sum(place))
        except BaseException as error:
            failures.append(error)
        with lock:
            progress.bytes_to_send += worker.bytes_to_send
            progress.exact = progress.exact and worker.exact

    threads = [threading.Thread(target=work, name="measure", daemon=True) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    progress.bytes_done = source.size


def _pieces(source: Disk, target: Disk) -> Iterator[tuple[int, int]]:
    """(start, length) of what either side may hold data in, whole blocks, ascending, at most `STRETCH_BYTES`."""
    start = end = 0
    for first, behind in merge(data_runs(source, source.size), data_runs(target, source.size)):
        if first > end:
            yield from cut(start, end, STRETCH_BYTES)
            start = first
        end = max(end, behind)
    yield from cut(start, end, STRETCH_BYTES)


class _Worker:
    """The buffers of one thread."""

    def __init__(self, source: Disk, target: Disk) -> None:
        self._source = source
        self._target = target
        self._a = buffer(PIECE_BYTES)
        self._b = buffer(PIECE_BYTES)
        self._places = lent(source), lent(target)
        self._work = buffer(compare.WORK_BYTES)
        self._found = memoryview(bytearray(2 * (STRETCH_BYTES // BLOCK_BYTES)))
        self._bitmaps = memoryview(bytearray(2 * PIECE_BLOCKS))
        self._frame = buffer(FRAME_BYTES_MAX)
        self._digests = bytes(PIECE_BLOCKS * DIGEST_BYTES)
        self._packed = 0
        self._sampled_bytes = 0
        self._sampled_blocks = 0
        self._passed_blocks = 0
        self._exact_bytes = 0

    @property
    def exact(self) -> bool:
        """Every changed block was packed."""
        return self._passed_blocks == 0

    @property
    def bytes_to_send(self) -> int:
        """Entries and content as they would be packed; what was passed over is taken to be like what was not.

        Nothing goes by reference here: where files were moved, this is the most that a sync sends.
        """
        sampled = self._sampled_bytes
        if self._sampled_blocks:
            sampled += self._sampled_bytes * self._passed_blocks // self._sampled_blocks
        elif self._passed_blocks:
            sampled = self._exact_bytes * self._passed_blocks // max(self._packed, 1)
        return self._exact_bytes + sampled

    def stretch(self, start: int, length: int) -> Measurement:
        """What differs in one stretch. Errors: `ReadFailed`.

        Where both disks lie in one run of a file, the kernel reads both; what it cannot read is read here, where
        somebody says why that fails.
        """
        found = Measurement()
        at, end = start, start + length
        ours, theirs = self._places
        if ours is not None and theirs is not None:
            bitmaps = self._found[: 2 * parts(length, BLOCK_BYTES)]
            done, *counts = compare.compare_places(
                ours[0], ours[1] + start, theirs[0], theirs[1] + start, length, self._work, bitmaps
            )
            found.blocks_changed, found.sectors_changed, found.bytes_changed, found.bytes_zero = counts
            at += done
            if found.blocks_changed:
                self._weigh_stretch(start, done, bitmaps)
        while at < end:
            stop = min(end, at // PIECE_BYTES * PIECE_BYTES + PIECE_BYTES)
            found.add(self._piece(at, stop - at))
            at = stop
        return found

    def _weigh_stretch(self, start: int, length: int, bitmaps: memoryview) -> None:
        """The changed blocks of what the kernel compared count in `bytes_to_send`; they alone are read again."""
        for first in range(0, parts(length, BLOCK_BYTES), PIECE_BLOCKS):
            within = bitmaps[2 * first : 2 * min(first + PIECE_BLOCKS, parts(length, BLOCK_BYTES))]
            if not any(within):
                continue
            at = first * BLOCK_BYTES
            content = self._a[: min(PIECE_BYTES, length - at)]
            for block in range(len(within) // 2):
                if any(within[2 * block : 2 * block + 2]):
                    self._source.read(
                        start + at + block * BLOCK_BYTES,
                        content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES],
                    )
            self._weigh(start // BLOCK_BYTES + first, content, within)

    def _piece(self, start: int, length: int) -> Measurement:
        """What differs in one piece."""
        a, b = self._a[:length], self._b[:length]
        self._source.read(start, a)
        self._target.read(start, b)
        bitmaps = self._bitmaps[: 2 * parts(length, BLOCK_BYTES)]
        found = Measurement()
        found.blocks_changed, found.sectors_changed, found.bytes_changed, found.bytes_zero = (
            compare.compare_sectors(a, b, bitmaps)
        )
        if found.blocks_changed:
            self._weigh(start // BLOCK_BYTES, a, bitmaps)
        return found

    def _weigh(self, first: int, content: memoryview, bitmaps: memoryview) -> None:
        """The changed blocks of the piece that begins with block `first` count in `bytes_to_send`."""
        changed = 0
        for block in range(len(bitmaps) // 2):
            piece = content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
            if any(bitmaps[2 * block : 2 * block + 2]) and not digest.is_zero(piece):
                changed |= 1 << block
        exact = self._packed + changed.bit_count() <= EXACT_BLOCKS_MAX
        self._packed += changed.bit_count()
        if not exact:
            sample = 0
            for start, count in bit_runs(changed):
                for block in range(start, start + count):
                    if (first + block) % SAMPLE == first // SAMPLE % SAMPLE:
                        sample |= 1 << block
            self._passed_blocks += (changed & ~sample).bit_count()
            changed = sample
            self._sampled_blocks += sample.bit_count()
        size = 0
        while changed:
            changed, position, _ = pack.pack(
                content,
                first,
                changed,
                bitmaps,
                self._digests[: 8 * len(bitmaps)],
                self._frame,
                0,
                2,
            )
            size += position
        if exact:
            self._exact_bytes += size
        else:
            self._sampled_bytes += size
