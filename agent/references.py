"""Whether blocks of one disk are sent by reference: named by their sectors' digests, since the target has them already.

That costs the master target an index of its disk, and what is ordered meanwhile has to wait for it or goes as data. So
it begins only where much of a region differs, as it does when files were moved, or where sending would take longer
than waiting; and it ends when too little is found.
"""

import threading
from collections import deque
from enum import Enum
from typing import Final

from _native import compare
from agent.descent import Clear, Descent, Order, Ship
from disks.digestmap import DigestMap
from drcore.errors import HomewardError
from drcore.limits import REFERENCES_AHEAD_MAX
from drcore.record import Record
from drcore.units import BLOCK_BYTES, BLOCK_SECTORS, SECTOR_BYTES, SPAN_BLOCKS
from wireproto.messages import Missing

BLOCKS_MIN: Final = 16
"""A mebibyte: of less, it is not worth to speak."""
BLOCKS_ENOUGH: Final = 1024
"""64 MiB are worth it on the largest disk."""
DISK_SHARE: Final = 512
"""Between the two: the more there is to be indexed, the more has to differ."""
WINDOW_SPANS: Final = 16
WINDOW_SHARE: Final = 8
"""Where one in so many bytes of 64 MiB differs, files may have been moved. Of a disk at work, some in a hundred do."""
UNSEEN_SHARE: Final = 4
"""Before any was looked into, a block that differs is taken to differ in one of so many sectors."""
SLOW_SECONDS_MIN: Final = 1.0
"""What takes less to send is sent."""
CLEARS_MAX: Final = 4096
"""Runs of blocks that become zero and wait for that until all the rest was ordered."""
HOLD_SECONDS_MAX: Final = 10.0
"""Orders wait for the index when it will take no longer than this, and twice as long at most; what differs before goes
as data while the disks are read."""
PROBE_BLOCKS: Final = 256
"""Referenced blocks without an answer at first: nobody knows yet whether anything is found."""
PROBE_SECTORS: Final = PROBE_BLOCKS * BLOCK_SECTORS // 2
FOUND_SHARE_MIN: Final = 4
"""Less than one named sector in so many found is not worth the answer's round trip and a block's second reading."""


class Outlook(Record):
    """What is known of the run when an order is weighed."""

    rate: float | None
    """Bytes a second that the line takes; None where it is not what holds up."""
    scanned_share: float
    """Of the disk, by the scan; 1 when it is over."""
    scan_seconds: float
    """How long the scan has run."""
    now: float
    """Monotonic seconds."""
    block_bytes: float | None
    """What a block that differs has taken so far, before compression; None where few were looked into yet."""


class _Stage(Enum):
    NEVER = "the target has nothing, or does not know how"
    WATCHING = "too little differs so far"
    SOUGHT = "the index is being made"
    USED = "blocks go by reference"
    OVER = "too little was found"


class Referrals:
    """The comparing loop weighs orders, the lanes ask and send, the receiving loop counts answers."""

    def __init__(self, digests: DigestMap) -> None:
        self._digests = digests
        self._changed = threading.Condition()
        self._stage = _Stage.NEVER
        self._forsaken = False
        self._failure: HomewardError | None = None
        self._differing: dict[int, float] = {}
        self._least = min(max(digests.blocks // DISK_SHARE, BLOCKS_MIN), BLOCKS_ENOUGH)
        self._ordered = 0
        self._sought_at = 0.0
        self._held_since: float | None = None
        self._unanswered = 0
        self._ahead = PROBE_BLOCKS
        self._missed = 0
        self.blocks = 0
        self.sectors = 0

    def begin(self, *, finds: bool) -> None:
        """The session is open; `finds`: the target has content, and can find it."""
        if finds:
            self._stage = _Stage.WATCHING

    # The comparing loop

    def wants(self, order: Ship, outlook: Outlook) -> bool:
        """Whether the index is to be asked for now, with this order; answers True once."""
        if self._stage is not _Stage.WATCHING:
            return False
        patched, fresh = order.patched.bit_count(), order.fresh.bit_count()
        self._ordered += patched + fresh
        share = outlook.block_bytes / BLOCK_BYTES if outlook.block_bytes is not None else 1 / UNSEEN_SHARE
        if not (self._is_dense(order.span, fresh + patched * share) or self._is_slow(outlook)):
            return False
        self._stage = _Stage.SOUGHT
        self._sought_at = outlook.scanned_share
        self._differing.clear()
        return True

    def _is_dense(self, span: int, differing: float) -> bool:
        """Much of what lies before the end of the span differs, as far as it was compared: nearly in order."""
        first = max(span + 1 - WINDOW_SPANS, 0)
        self._differing = {at: found for at, found in self._differing.items() if first <= at}
        self._differing[span] = differing
        found = sum(found for at, found in self._differing.items() if at <= span)
        if found < self._least:
            return False
        end = min((span + 1) * SPAN_BLOCKS, self._digests.blocks)
        filled = sum(
            min(SPAN_BLOCKS, end - at)
            - compare.zeroes(self._digests.read(at, min(SPAN_BLOCKS, end - at))).bit_count()
            for at in range(first * SPAN_BLOCKS, end, SPAN_BLOCKS)
        )
        return found * WINDOW_SHARE >= filled

    def _is_slow(self, outlook: Outlook) -> bool:
        """Sending what was ordered takes longer than making the index does."""
        if outlook.rate is None or self._ordered < self._least:
            return False
        seconds = self._ordered * (outlook.block_bytes or SECTOR_BYTES) / outlook.rate
        return seconds > max(SLOW_SECONDS_MIN, 2 * _hold_seconds(outlook, outlook.scanned_share))

    def holds(self, outlook: Outlook) -> bool:
        """What differs waits for the index, which is nearly there."""
        if self._stage is not _Stage.SOUGHT:
            return False
        if self._held_since is not None:
            return outlook.now - self._held_since <= 2 * HOLD_SECONDS_MAX
        if _hold_seconds(outlook, self._sought_at) > HOLD_SECONDS_MAX:
            return False
        self._held_since = outlook.now
        return True

    def ready(self) -> bool:
        """The index is there. False when nobody asked for it."""
        with self._changed:
            if self._stage is not _Stage.SOUGHT:
                return False
            self._stage = _Stage.USED
            return True

    @property
    def defers(self) -> bool:
        """What becomes zero does so last: until then it may be referred to."""
        return self._stage in (_Stage.WATCHING, _Stage.SOUGHT, _Stage.USED)

    # Lanes, and who receives for them

    @property
    def used(self) -> bool:
        """What the target may have elsewhere goes by reference."""
        return self._stage is _Stage.USED

    def acquire(self, blocks: int) -> None:
        """Returns when references to `blocks` more blocks may be under way. Errors: the failure that ended the run."""
        with self._changed:
            while (
                self._unanswered
                and self._unanswered + blocks > self._ahead
                and self._failure is None
                and not self._forsaken
            ):
                self._changed.wait()
            if self._failure is not None:
                raise self._failure
            self._unanswered += blocks

    def answered(self, answer: Missing) -> bool:
        """The answer to one frame is counted; True, once, when it shows that references are not worth it."""
        with self._changed:
            self._unanswered -= answer.blocks
            self.blocks += answer.blocks - len(answer.entries)
            self.sectors += answer.found
            self._missed += sum(sectors.bit_count() for _, sectors in answer.entries)
            named = self.sectors + self._missed
            poor = self.sectors * FOUND_SHARE_MIN < named
            if not poor:
                self._ahead = min(2 * self._ahead, REFERENCES_AHEAD_MAX)
            over = poor and named >= PROBE_SECTORS and self._stage is _Stage.USED
            if over:
                self._stage = _Stage.OVER
            self._changed.notify_all()
            return over

    def forsake(self) -> None:
        """No answer is waited for any more: none will come."""
        with self._changed:
            self._forsaken = True
            self._changed.notify_all()

    def fail(self, error: HomewardError) -> None:
        """Everybody who waits gets `error`."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()


class Find(Record):
    """Ask the master target to make its content findable."""


class Orders:
    """What the descent orders, in the order in which references find the most of it. One owner, as the descent."""

    def __init__(self, descent: Descent, referrals: Referrals) -> None:
        self._descent = descent
        self._referrals = referrals
        self._cleared: deque[Clear] = deque()
        self.held: Ship | None = None
        """The order that waits, with all that follow, for the target's index."""

    def next(self, outlook: Outlook) -> Order | Find | None:
        """The next order; None when there is none, or it waits."""
        order = self.held or self._descent.next()
        while isinstance(order, Clear) and self._referrals.defers and len(self._cleared) < CLEARS_MAX:
            self._cleared.append(order)
            order = self._descent.next()
        if isinstance(order, Ship):
            if self.held is None and self._referrals.wants(order, outlook):
                self.held = order
                return Find()
            if self._referrals.holds(outlook):
                self.held = order
                return None
        self.held = None
        if order is None and self._cleared and self._descent.settled:
            return self._cleared.popleft()
        return order

    @property
    def settled(self) -> bool:
        """Everything was compared, and every order given."""
        return self._descent.settled and self.held is None and not self._cleared


def _hold_seconds(outlook: Outlook, sought_at: float) -> float:
    """How long the index is still waited for, if the target is read as fast as the source.

    Its scan comes to its end, and then what it had read before it was asked is read again.
    """
    done = max(outlook.scanned_share, 1e-9)
    return outlook.scan_seconds / done * (1 - outlook.scanned_share + sought_at)


def block_bytes(content_bytes: int, blocks: int) -> float | None:
    """What a block that differs has taken so far."""
    return content_bytes / blocks if blocks >= BLOCKS_MIN else None
