"""The comparison of one disk with its target: descends only where digests differ, and says what to do next.

One owner feeds it events and takes orders from it; it reads nothing, sends nothing and waits for nothing. Both ends
tell their regions in ascending order. Equal regions end there; of the others the children are compared, spans first,
then blocks, deepest first, so that what waits stays small whatever the disk.
"""

from collections import deque
from collections.abc import Iterator
from typing import Final, TypeAlias

from _native import compare
from disks.digestmap import DigestMap
from disks.scan import RegionRun
from drcore.record import Record
from drcore.units import (
    BLOCK_BYTES,
    DIGEST_BYTES,
    FANOUT,
    REGION_BLOCKS,
    REGION_SPANS,
    SPAN_BLOCKS,
    ZERO_DIGEST,
    bit_runs,
    parts,
)
from wireproto.errors import MessageRefused
from wireproto.messages import Differ, Scanned

ASKS_MAX: Final = 64
"""Questions under way; the answers (at most 17 KiB each) then fit into 1.1 MiB, wherever they wait."""
_SECTOR_DIGESTS: Final = 16 * DIGEST_BYTES


class Ask(Record):
    """Ask the master target which of these children differ."""

    level: int
    node: int
    digests: bytes


class Ship(Record):
    """Send the blocks (a bitmap) of a span, of each as little as brings the target up to date.

    Of those in `patched` the sectors that differ from `sectors` (256 bytes of the target's sector digests for each, in
    order), of those in `fresh`, which are zero at the target, the sectors that are not; the others whole. Nobody has
    read blocks that are `unread`: their digests are noted as they are read, and what turns out to be zero stays here.
    """

    span: int
    blocks: int
    patched: int
    fresh: int
    sectors: bytes
    unread: bool = False


class Supply(Record):
    """Send the sectors of the blocks (a bitmap) of a span that references did not find.

    `sectors` holds each block's bitmap of them, two bytes, in order.
    """

    span: int
    blocks: int
    sectors: bytes


class Clear(Record):
    """Tell the master target that `count` blocks from `first` on become zero."""

    first: int
    count: int


Order: TypeAlias = Ask | Ship | Supply | Clear


class Descent:
    """See the module. `secret` is the item's digest secret, `digests` the source's map, filled by the scan."""

    def __init__(self, digests: DigestMap, secret: bytes) -> None:
        self._digests = digests
        self._secret = secret
        self._source: deque[RegionRun] = deque()
        self._target: deque[RegionRun] = deque()
        self._source_end = self._target_end = 0
        self._compared = 0
        self._orders: deque[Order] = deque()
        self._spans: deque[int] = deque()
        self._asked: set[tuple[int, int]] = set()
        self._filling: Iterator[Ship] | None = None

    def fill(self, runs: Iterator[tuple[int, int]]) -> None:
        """The target holds nothing, so there is nothing to compare: what may hold data is ordered as it comes.

        `runs` are (start, end) in bytes, ascending, whole blocks. They are asked for one at a time, as orders are.
        """
        self._filling = self._fill(runs)

    # What is told

    def source_scanned(self, run: RegionRun) -> None:
        """The source's regions of `run` are in the digest map."""
        self._source.append(run)
        self._source_end = run.first + run.count

    def target_scanned(self, told: Scanned) -> None:
        """The master target told its digests. Errors: `MessageRefused` when they are not the next ones."""
        if told.first != self._target_end or told.first + told.count > self._digests.regions:
            raise MessageRefused(reason=f"regions {told.first} to {told.first + told.count} out of turn")
        self._target_end += told.count
        if not told.digests:
            self._target.append(RegionRun(told.first, told.count, None))
            return
        for index in range(told.count):
            found = bytes(told.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES])
            run = RegionRun(told.first + index, 1, None if found == ZERO_DIGEST else found)
            self._target.append(run)

    def answered(self, answer: Differ) -> None:
        """The master target answered a question. Errors: `MessageRefused` when it was none."""
        if (answer.level, answer.node) not in self._asked:
            raise MessageRefused(reason=f"an answer to no question, level {answer.level}, node {answer.node}")
        self._asked.remove((answer.level, answer.node))
        if answer.level == 1:
            self._blocks_differ(answer)
        else:
            self._spans_differ(answer)

    def mismatched(self, blocks: tuple[int, ...]) -> None:
        """These blocks have to be sent whole."""
        for block in blocks:
            if block >= self._digests.blocks:
                raise MessageRefused(reason=f"a mismatch of block {block}, which the disk has not")
            self._orders.append(Ship(block // SPAN_BLOCKS, 1 << block % SPAN_BLOCKS, 0, 0, b""))

    def missed(self, entries: tuple[tuple[int, int], ...]) -> None:
        """These (block, bitmap of sectors) were referred to and not found: they are due as data."""
        spans: dict[int, dict[int, int]] = {}
        for block, sectors in entries:
            # Only whole blocks are referred to.
            if (block + 1) * BLOCK_BYTES > self._digests.size:
                raise MessageRefused(reason=f"missing sectors of block {block}, which was not referred to")
            spans.setdefault(block // SPAN_BLOCKS, {})[block % SPAN_BLOCKS] = sectors
        for span, found in spans.items():
            bitmaps = b"".join(found[at].to_bytes(2, "little") for at in sorted(found))
            self._orders.append(Supply(span, sum(1 << at for at in found), bitmaps))

    # What to do

    def next(self) -> Order | None:
        """The next order; None when nothing can be done before more is told."""
        while True:
            if self._orders:
                return self._orders.popleft()
            if self._filling is not None:
                return self._next_filled(self._filling)
            if self._spans and len(self._asked) < ASKS_MAX:
                span = self._spans.popleft()
                return self._ask(1, span, self._digests.read(span * SPAN_BLOCKS, self._span_blocks(span)))
            if self._spans or not self._compare_regions():
                return None

    @property
    def settled(self) -> bool:
        """Everything was told, compared and ordered."""
        return (
            self._compared == self._digests.regions
            and not self._orders
            and not self._spans
            and not self._asked
        )

    @property
    def compared_regions(self) -> int:
        """Regions of which both ends' digests were compared."""
        return self._compared

    def _next_filled(self, orders: Iterator[Ship]) -> Ship | None:
        order = next(orders, None)
        if order is None:
            self._compared = self._target_end  # what the target has told of, which is all of it at once
        else:
            self._compared = max(self._compared, order.span // REGION_SPANS)
        return order

    def _fill(self, runs: Iterator[tuple[int, int]]) -> Iterator[Ship]:
        span = blocks = 0
        for start, end in runs:
            first, behind = start // BLOCK_BYTES, parts(end, BLOCK_BYTES)
            while first < behind:
                if first // SPAN_BLOCKS != span:
                    if blocks:
                        yield Ship(span, blocks, 0, blocks, b"", unread=True)
                    span, blocks = first // SPAN_BLOCKS, 0
                stop = min(behind, (span + 1) * SPAN_BLOCKS)
                blocks |= ((1 << stop - first) - 1) << first % SPAN_BLOCKS
                first = stop
        if blocks:
            yield Ship(span, blocks, 0, blocks, b"", unread=True)

    def _ask(self, level: int, node: int, digests: bytes) -> Ask:
        self._asked.add((level, node))
        return Ask(level, node, digests)

    def _compare_regions(self) -> bool:
        """One more region (or run of regions that are zero on both sides) was compared; False when none can be."""
        if not self._source or not self._target or len(self._asked) >= ASKS_MAX:
            return False
        source, target = self._source[0], self._target[0]
        first = self._compared
        if source.digest is None and target.digest is None:
            self._advance(min(source.first + source.count, target.first + target.count))
            return True
        self._advance(first + 1)
        if source.digest == target.digest:
            return True
        blocks = min(REGION_BLOCKS, self._digests.blocks - first * REGION_BLOCKS)
        if source.digest is None:
            self._orders.append(Clear(first * REGION_BLOCKS, blocks))
        elif target.digest is None:
            for span in range(first * REGION_SPANS, first * REGION_SPANS + parts(blocks, SPAN_BLOCKS)):
                self._ship_whole(span)
        else:
            self._orders.append(self._ask(2, first, self._digests.spans_of(first, self._secret)))
        return True

    def _advance(self, end: int) -> None:
        self._compared = end
        for runs in (self._source, self._target):
            while runs and runs[0].first + runs[0].count <= end:
                runs.popleft()

    def _span_blocks(self, span: int) -> int:
        return min(SPAN_BLOCKS, self._digests.blocks - span * SPAN_BLOCKS)

    def _ship_whole(self, span: int) -> None:
        """Every block of the span that is not zero goes to a target that is."""
        count = self._span_blocks(span)
        zero = compare.zeroes(self._digests.read(span * SPAN_BLOCKS, count))
        blocks = ((1 << count) - 1) & ~zero
        if blocks:
            self._orders.append(Ship(span, blocks, 0, blocks, b""))

    def _spans_differ(self, answer: Differ) -> None:
        own = self._digests.spans_of(answer.node, self._secret)
        zero = compare.zeroes(own)
        if answer.differing >> (len(own) // DIGEST_BYTES):
            raise MessageRefused(reason="a difference beyond the last span")
        for index in range(len(own) // DIGEST_BYTES):
            if not answer.differing >> index & 1:
                continue
            span = answer.node * FANOUT + index
            if zero >> index & 1:
                self._orders.append(Clear(span * SPAN_BLOCKS, self._span_blocks(span)))
            elif answer.zero >> index & 1:
                self._ship_whole(span)
            else:
                self._spans.append(span)

    def _blocks_differ(self, answer: Differ) -> None:
        count = self._span_blocks(answer.node)
        zero = compare.zeroes(self._digests.read(answer.node * SPAN_BLOCKS, count)) & answer.differing
        patched = answer.differing & ~zero & ~answer.zero
        if answer.differing >> count or patched.bit_count() * _SECTOR_DIGESTS != len(answer.sectors):
            raise MessageRefused(reason="an answer whose sectors do not fit its blocks")
        for first, run in bit_runs(zero):
            self._orders.append(Clear(answer.node * SPAN_BLOCKS + first, run))
        if blocks := answer.differing & ~zero:
            fresh = blocks & answer.zero
            self._orders.append(Ship(answer.node, blocks, patched, fresh, bytes(answer.sectors)))
