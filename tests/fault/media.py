"""Disks and journals in memory that note what is done to them, in order, and fail when they are told to."""

from collections.abc import Callable, Iterator
from itertools import groupby

from disks.disk import Extent, ExtentKind, Format
from drcore.errors import HomewardError
from drcore.units import BLOCK_BYTES, ByteCount, ByteOffset, parts
from masttarget.journal import AppliedFrame, CycleRecord

Steps = list[str]


class MemoryDisk:
    """A sparse disk of whole blocks in memory. `fails` maps a verb to the error that it raises from then on."""

    def __init__(self, size: int, steps: Steps | None = None) -> None:
        self._size = size
        self.blocks: dict[int, bytearray] = {}
        self.steps: Steps = [] if steps is None else steps
        self.fails: dict[str, HomewardError] = {}
        self.on_read: Callable[[int], None] = lambda offset: None
        self.bytes_read = 0

    format = Format.RAW
    grain_size = None

    @property
    def size(self) -> ByteCount:
        return ByteCount(self._size)

    def _step(self, verb: str) -> None:
        self.steps.append(verb)
        if verb in self.fails:
            raise self.fails[verb]

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, int, int, int]]:
        """(block, start in it, start in the range, length)"""
        assert 0 <= offset <= offset + length <= self._size
        done = 0
        while done < length:
            block, start = divmod(offset + done, BLOCK_BYTES)
            count = min(BLOCK_BYTES - start, length - done)
            yield block, start, done, count
            done += count

    def read(self, offset: int, into: memoryview) -> None:
        self._step("read")
        self.on_read(offset)
        self.bytes_read += len(into)
        for block, start, at, count in self._pieces(offset, len(into)):
            found = self.blocks.get(block)
            into[at : at + count] = found[start : start + count] if found else bytes(count)

    def write(self, offset: int, data: memoryview) -> None:
        self._step("write")
        for block, start, at, count in self._pieces(offset, len(data)):
            held = self.blocks.setdefault(block, bytearray(BLOCK_BYTES))
            held[start : start + count] = data[at : at + count]

    def zero(self, offset: int, length: int) -> None:
        self._step("zero")
        for block, start, _, count in self._pieces(offset, length):
            if count == BLOCK_BYTES:
                self.blocks.pop(block, None)
            elif block in self.blocks:
                self.blocks[block][start : start + count] = bytes(count)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        at, stop = offset, offset + length
        inside = [
            block
            for block in sorted(self.blocks)
            if offset // BLOCK_BYTES <= block < parts(stop, BLOCK_BYTES)
        ]
        for _, run in groupby(enumerate(inside), lambda pair: pair[1] - pair[0]):
            blocks = [block for _, block in run]
            start, end = max(blocks[0] * BLOCK_BYTES, offset), min((blocks[-1] + 1) * BLOCK_BYTES, stop)
            if start > at:
                yield Extent(ByteOffset(at), ByteCount(start - at), ExtentKind.ZERO)
            yield Extent(ByteOffset(start), ByteCount(end - start), ExtentKind.DATA)
            at = end
        if at < stop:
            yield Extent(ByteOffset(at), ByteCount(stop - at), ExtentKind.ZERO)

    def flush(self) -> None:
        self._step("flush")

    def allocated_bytes(self) -> ByteCount:
        return ByteCount(len(self.blocks) * BLOCK_BYTES)

    def close(self) -> None:
        self._step("close")

    def content(self) -> bytes:
        return b"".join(
            bytes(self.blocks.get(block, bytes(BLOCK_BYTES)))
            for block in range(parts(self._size, BLOCK_BYTES))
        )[: self._size]


class MemoryJournal:
    """A journal in memory; `fails` as in `MemoryDisk`."""

    path = "memory"

    def __init__(self, steps: Steps | None = None) -> None:
        self.steps: Steps = [] if steps is None else steps
        self.record: CycleRecord | None = None
        self.frames: list[AppliedFrame] = []
        self.map: bytes | None = None
        self.map_root = ""
        self.fails: dict[str, HomewardError] = {}

    def _step(self, verb: str) -> None:
        self.steps.append(verb)
        if verb in self.fails:
            raise self.fails[verb]

    def load(self) -> CycleRecord | None:
        return self.record

    def store(self, record: CycleRecord) -> None:
        self._step("store")
        self.record = record

    def start_applied(self, disk: bytes) -> None:
        self._step("start_applied")
        self.frames = []

    def append_applied(self, frames: list[AppliedFrame]) -> None:
        self._step("append_applied")
        self.frames += frames

    def read_applied(self, disk: bytes) -> Iterator[AppliedFrame]:
        yield from list(self.frames)

    def keep_map(self, windows: Iterator[bytes]) -> str:
        self._step("keep_map")
        self.map, self.map_root = b"".join(windows), "root"
        return self.map_root

    def kept_map(self, root: str) -> Iterator[bytes] | None:
        return iter([self.map]) if self.map is not None and root == self.map_root else None

    def close(self) -> None:
        pass

    def remove(self) -> None:
        self._step("remove")
        self.record, self.frames, self.map = None, [], None
