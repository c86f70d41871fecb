"""What a target's medium was last found to hold, and what was written since: how a point gets its content root.

Before a point is published, the blocks that were written since the last verified state are read again from the medium,
past the cache, held against the digest map, and their digests replaced in a file; its digests in order make the
`content_root`. The file never vouches for a block that may have been written since: at an opening the undo journal,
durable before every overwrite, says which these are. It is believed only while the point that it speaks of is still
one of the list, so that every later undo record is there.
"""

import mmap
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from enum import Enum
from typing import Final

from blake3 import blake3

from disks.disk import Disk
from disks.scan import data_runs
from drcore.buffers import buffer
from drcore.errors import HomewardError
from drcore.limits import MIB
from drcore.record import Record
from drcore.units import BLOCK_BYTES, SPAN_BLOCKS, bit_runs, parts
from masttarget.errors_retention import RetentionFailed, RetentionFull
from masttarget.points import Point
from masttarget.ports import Log
from masttarget.retention import ItemRetention
from masttarget.segments import CYCLE_MAX, Walk, Wanted, first_needed, headers
from masttarget.undo import Identity
from masttarget.verified_layout import (
    CONTENT_DIGEST_BYTES,
    PAGE_BLOCKS,
    PAGE_BYTES,
    VerifiedFile,
    VerifiedHeader,
    decode_page,
    encode_page,
    file_bytes,
    page_offset,
)

_PIECE_BLOCKS: Final = MIB // BLOCK_BYTES
_WINDOW_BYTES: Final = 8192
"""Of a bitmap that is looked at in one go: 65,536 blocks."""
_NO_PAGE: Final = bytes(PAGE_BYTES)
_WINDOW_PAGES: Final = 256

Check = Callable[[int, int, memoryview | None], None]
"""Called with the first block, their number and what was read again (None: zeroes); raises when that is wrong."""


class Extent(Enum):
    """What was read again for a point; the values are what users see."""

    WRITTEN = "written"
    """What was written since the point before, whose content had been verified."""
    FULL = "full"
    """Everything."""


class Content(Record):
    """The content root (hex) of a state, and what was read again for it; both empty where nobody knows."""

    root: str = ""
    verified: str = ""


class Blocks:
    """A set of a disk's blocks."""

    def __init__(self, blocks: int, *, everything: bool = False) -> None:
        self.blocks = blocks
        self.everything = everything
        self.bits = memoryview(mmap.mmap(-1, max(parts(blocks, SPAN_BLOCKS), 1) * (SPAN_BLOCKS // 8)))
        """Bit i of byte n is block 8 n + i."""

    def add(self, first: int, count: int) -> None:
        """The blocks are in the set."""
        if self.everything:
            return
        for start in range(first, first + count, _WINDOW_BYTES * 8):
            end = min(start + _WINDOW_BYTES * 8, first + count)
            low, high = start // 8, parts(end, 8)
            known = int.from_bytes(self.bits[low:high], "little")
            known |= (1 << end - low * 8) - (1 << start - low * 8)
            self.bits[low:high] = known.to_bytes(high - low, "little")

    def join(self, other: "Blocks") -> None:
        """The other set's blocks are in this one, too."""
        self.everything = self.everything or other.everything
        for first, count in other.runs() if not self.everything else ():
            self.add(first, count)

    def __bool__(self) -> bool:
        return self.everything or next(self.runs(), None) is not None

    def runs(self) -> Iterator[tuple[int, int]]:
        """Runs (first, count) of the set's blocks, ascending; one may be told in parts."""
        if self.everything:
            yield 0, self.blocks
            return
        nothing = bytes(_WINDOW_BYTES)
        for at in range(0, len(self.bits), _WINDOW_BYTES):
            window = bytes(self.bits[at : at + _WINDOW_BYTES])
            if window == nothing[: len(window)]:
                continue
            for byte in range(0, len(window), 8):
                bits = int.from_bytes(window[byte : byte + 8], "little")
                for first, count in bit_runs(bits):
                    yield (at + byte) * 8 + first, count


class Verified:
    """See the module. One thread reads again and publishes; `touch` belongs to whoever has the target's lock."""

    def __init__(self, file: VerifiedFile, identity: Identity, log: Log) -> None:
        self._file = file
        self._identity = identity
        self._log = log
        self.blocks = parts(identity.data_bytes, BLOCK_BYTES)
        last = identity.data_bytes - max(self.blocks - 1, 0) * BLOCK_BYTES
        self._zero = blake3(bytes(BLOCK_BYTES)).digest()
        self._zero_last = blake3(bytes(last)).digest()
        self._header: VerifiedHeader | None = None
        self._written = Blocks(self.blocks, everything=True)
        self._full = False
        self._broken: set[int] = set()
        """Pages that could not be read at the opening; every block of them is in `_written` until they are new."""
        self.content = Content()
        """Of what was read again last, and not written since unless `due`."""

    # Opening

    def load(self) -> VerifiedHeader | None:
        """What the file says of itself, if it is this disk's."""
        try:
            found = VerifiedHeader.decode(self._file.read(0, PAGE_BYTES))
        except ValueError:
            return None
        mine = (self._identity.item, self._identity.disk, self._identity.data_bytes)
        return found if (found.item, found.disk, found.data_bytes) == mine else None

    def believe(self, header: VerifiedHeader, written: Blocks) -> None:
        """Only what was written since, and what the file cannot prove, has to be read again."""
        root = blake3()
        for page in range(parts(self.blocks, PAGE_BLOCKS)):
            try:
                root.update(self.digests(page))
            except ValueError:
                written.add(page * PAGE_BLOCKS, self._count(page))
                self._broken.add(page)
        if not self._broken and header.whole and root.digest() != header.root:
            self._log("the file of verified digests is not what it was: everything is read again",
                      disk_id=self._identity.disk.hex(), path=self._file.path)  # fmt: skip
            return
        self._header, self._written = header, written

    # Writing

    def touch(self, first: int, count: int) -> None:
        """The blocks are about to be written; the target's lock is held."""
        self._written.add(first, count)

    @property
    def due(self) -> bool:
        """Whether something was written that was not read again."""
        return bool(self._written)

    # Reading again

    def read_again(
        self,
        disk: Disk,
        lock: threading.Lock,
        forget: Callable[[], None],
        check: Check,
        going_on: Callable[[], None],
    ) -> None:
        """What was written before the call was read from the medium and is what it should be; `content` says so.

        `lock` guards the disk's writers; `forget` makes durable what was written, and the cache empty; `check` is
        called with the lock held; `going_on` often, and may raise to stop. Where the file cannot be used, `content`
        is empty. Errors: those of the disk and of `check`.
        """
        with lock:
            taken, self._written = self._written, Blocks(self.blocks)
        self.content = Content()
        try:
            if not taken and self._header is not None and self._header.whole:
                self.content = Content(self._header.root.hex(), Extent.WRITTEN.value)
                return
            forget()
            self._begin(fresh=taken.everything)
            self._read(disk, lock, taken, check, going_on)
            self._file.flush()
            self._full = self._full or taken.everything
            verified = Extent.FULL if self._full else Extent.WRITTEN
            self.content = Content(self._root(going_on), verified.value)
        except (RetentionFailed, RetentionFull, ValueError) as error:
            self._log("no content root: the file of verified digests cannot be used",
                      disk_id=self._identity.disk.hex(), reason=str(error))  # fmt: skip
            self._doubt(lock)
        except BaseException:
            with lock:
                self._written.join(taken)
            raise

    def _begin(self, *, fresh: bool) -> None:
        """It is durable that pages are being changed; of a fresh file, that it says nothing."""
        if fresh:
            self._header = None
            self._broken.clear()
            self._file.reset(file_bytes(self.blocks))
        elif self._header is not None and self._header.whole:
            self._header = self._header.but(whole=False)
            self._file.write(0, self._header.encode())
        self._file.flush()

    def _doubt(self, lock: threading.Lock) -> None:
        self._header, self._full = None, False
        with lock:
            self._written = Blocks(self.blocks, everything=True)

    def _read(
        self, disk: Disk, lock: threading.Lock, taken: Blocks, check: Check, going_on: Callable[[], None]
    ) -> None:
        pages = _Pages(self, self._file, self._broken, fresh=taken.everything)
        piece = buffer(MIB)
        for first, count in taken.runs():
            at, end = first, first + count
            stop = min(end * BLOCK_BYTES, self._identity.data_bytes)
            for start, until in data_runs(disk, stop, begin=first * BLOCK_BYTES):
                self._zeroes(pages, lock, at, start // BLOCK_BYTES - at, check)
                for offset in range(start, until, MIB):
                    going_on()
                    block, content = offset // BLOCK_BYTES, piece[: min(MIB, until - offset)]
                    with lock:
                        disk.read(offset, content)
                        check(block, parts(len(content), BLOCK_BYTES), content)
                    for begin in range(0, len(content), BLOCK_BYTES):
                        digest = blake3(content[begin : begin + BLOCK_BYTES]).digest()
                        pages.put(block + begin // BLOCK_BYTES, digest)
                at = parts(until, BLOCK_BYTES)
            self._zeroes(pages, lock, at, end - at, check)
        pages.end()

    def _zeroes(self, pages: "_Pages", lock: threading.Lock, first: int, count: int, check: Check) -> None:
        if count:
            with lock:
                check(first, count, None)
            if not pages.fresh:
                pages.clear(first, count)

    def settle(self, point: Point) -> None:
        """The point stands with `content`: the next cycle counts from it. A file that fails is not believed again."""
        if not self.content.root:
            return
        self._full = False
        self._header = VerifiedHeader(
            self._identity.item, self._identity.disk, self._identity.data_bytes, point.sequence,
            bytes.fromhex(point.id), bytes.fromhex(self.content.root), whole=True,
        )  # fmt: skip
        with suppress(RetentionFailed, RetentionFull):
            self._file.write(0, self._header.encode())

    def close(self) -> None:
        """The file is given back, durable as far as it goes."""
        with suppress(HomewardError):
            self._file.flush()
        self._file.close()

    # Pages

    def _count(self, page: int) -> int:
        return min(PAGE_BLOCKS, self.blocks - page * PAGE_BLOCKS)

    def zeroes(self, page: int) -> bytes:
        """The digests of a page whose blocks are all zero."""
        count = self._count(page)
        if (page + 1) * PAGE_BLOCKS < self.blocks:
            return self._zero * count
        return self._zero * (count - 1) + self._zero_last

    def digests(self, page: int) -> bytes:
        """The digests of the page's blocks. Errors: `ValueError` where the page is broken."""
        data = self._file.read(page_offset(page), PAGE_BYTES)
        if data == _NO_PAGE:
            return self.zeroes(page)
        return decode_page(page, data)[: self._count(page) * CONTENT_DIGEST_BYTES]

    def _root(self, going_on: Callable[[], None]) -> str:
        """BLAKE3 over all digests. Errors: `ValueError` where a page is broken."""
        root = blake3()
        for page in range(parts(self.blocks, PAGE_BLOCKS)):
            if page % _WINDOW_PAGES == 0:
                going_on()
            root.update(self.digests(page))
        return root.hexdigest()


class _Pages:
    """Pages that are changed, ascending; one is in hand."""

    def __init__(self, verified: Verified, file: VerifiedFile, broken: set[int], *, fresh: bool) -> None:
        self._verified = verified
        self._file = file
        self._broken = broken
        self.fresh = fresh
        """Whether every page of the file is still one of zero blocks."""
        self._page = -1
        self._digests = bytearray()

    def put(self, block: int, digest: bytes) -> None:
        page, index = divmod(block, PAGE_BLOCKS)
        self._take(page)
        at = index * CONTENT_DIGEST_BYTES
        self._digests[at : at + CONTENT_DIGEST_BYTES] = digest

    def clear(self, first: int, count: int) -> None:
        """The blocks are zero."""
        at, end = first, first + count
        while at < end:
            page, index = divmod(at, PAGE_BLOCKS)
            stop = min(end, (page + 1) * PAGE_BLOCKS)
            self._take(page)
            zeroes = self._verified.zeroes(page)
            low, high = index * CONTENT_DIGEST_BYTES, (stop - page * PAGE_BLOCKS) * CONTENT_DIGEST_BYTES
            self._digests[low:high] = zeroes[low:high]
            at = stop

    def _take(self, page: int) -> None:
        if page != self._page:
            self.end()
            if page in self._broken:  # all of its blocks come
                self._digests = bytearray(self._verified.zeroes(page))
            else:
                self._digests = bytearray(self._verified.digests(page))
            self._page = page

    def end(self) -> None:
        """The page in hand is in the file."""
        if self._page >= 0:
            zero = self._digests == self._verified.zeroes(self._page)
            data = _NO_PAGE if zero else encode_page(self._page, self._digests)
            self._file.write(page_offset(self._page), data)
            self._broken.discard(self._page)
            self._page = -1


def open_verified(item: ItemRetention, identity: Identity) -> Verified:
    """The disk's verified digests; of which blocks they hold, the undo journal tells. `item` has the disk open."""
    log = item.log
    found = Verified(item.store.verified(identity.item, identity.disk), identity, log)
    with item.changing():
        header = found.load()
        point = item.points.by_sequence(header.cycle) if header is not None else None
        if header is None or point is None or point.id != header.point.hex():
            return found
        written = Blocks(found.blocks)
        segments = item.store.segments(identity.item, identity.disk)
        try:
            head = segments.load_head()
            if segments.numbers() or (head is not None and head.segment):
                wanted = Wanted(header.cycle + 1, CYCLE_MAX, found.blocks, bitmap=written.bits)
                first = first_needed(segments, head.first if head is not None else 1, header.cycle + 1)
                if any(one.first_cycle > header.cycle + 1 for _, one in headers(segments, [first])):
                    return found  # a list that was made anew may name a point whose later records are gone
                Walk(segments, identity.item, identity.disk, wanted).run(first, head)
            found.believe(header, written)
        except (
            HomewardError
        ) as error:  # old segments that are damaged: they stop nobody before they are needed
            log("everything is read again: what was written cannot be told", disk_id=identity.disk.hex(),
                reason=str(error))  # fmt: skip
        return found
