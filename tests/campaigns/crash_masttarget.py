"""Power cuts of the master target's retention: what was not flushed is lost, in any order that a medium may choose.

Each round also kills the real process: see `crash_retention`. Here the media are in memory and keep two truths: what is
durable, and what was written since. A power cut at any of their verbs keeps a random part of the latter, sector by
sector, in random order. Afterwards every acknowledged block is there, every published point reads as it did and has
the content root that it tells, if it tells one, and the journal opens by itself. Seeding, deltas, pruning and rollbacks
take turns.
"""

import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from disks.content import content_root
from disks.disk import Extent, ExtentKind
from drcore.errors import Defect
from drcore.units import BLOCK_BYTES, BLOCK_SECTORS, SECTOR_BYTES, ByteCount, ByteOffset, bit_runs, parts
from masttarget.points import Kind, Point, PointDisk
from masttarget.retention import ItemRetention, Policy
from masttarget.rollback import roll_back
from masttarget.segments import Head
from masttarget.undo import Identity, UndoJournal
from masttarget.verified import Content, open_verified
from masttarget.view import PointView
from tests.campaigns.crash_retention import kills
from tests.campaigns.nursery import nursery
from tests.campaigns.runner import Round
from tests.fault.media import MemoryDisk

SECTOR = 512
ITEM, DISK = b"i" * 16, b"d" * 16
BLOCKS = 130
SIZE = BLOCKS * BLOCK_BYTES - 1000
CUTS = 5


class PowerCut(BaseException):
    """Nothing runs any more."""


class Power:
    """Fails after so many verbs. Every medium asks before and after each of its steps."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.left = 0

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise PowerCut


class File:
    """Bytes of which some are durable; `cut` keeps what a medium might."""

    def __init__(self, data: bytes = b"") -> None:
        self.durable = bytearray(data)
        self.data = bytearray(data)
        self.pending: list[tuple[int, bytes]] = []

    def write(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        self.data.extend(bytes(max(0, end - len(self.data))))
        self.data[offset:end] = data
        self.pending.append((offset, data))

    def flush(self) -> None:
        self.durable = bytearray(self.data)
        self.pending.clear()

    def cut(self, rng: random.Random) -> None:
        pieces = [
            (offset + at, data[at : at + SECTOR])
            for offset, data in self.pending
            for at in range(0, len(data), SECTOR)
        ]
        share = rng.choice((0.0, 0.5, 0.9, 1.0))
        kept = [piece for piece in pieces if rng.random() < share]
        rng.shuffle(kept)
        for offset, piece in kept:
            end = offset + len(piece)
            self.durable.extend(bytes(max(0, end - len(self.durable))))
            self.durable[offset:end] = piece
        self.data = bytearray(self.durable)
        self.pending.clear()


class MediumDisk(MemoryDisk):
    """A target disk with a volatile cache of sectors."""

    def __init__(self, power: Power) -> None:
        super().__init__(SIZE)
        self.power = power
        self.file = File(bytes(SIZE))

    @property
    def size(self) -> ByteCount:
        return ByteCount(SIZE)

    def read(self, offset: int, into: memoryview) -> None:
        into[:] = self.file.data[offset : offset + len(into)]

    def write(self, offset: int, data: memoryview) -> None:
        self.power.step()
        self.file.write(offset, bytes(data))
        self.power.step()

    def zero(self, offset: int, length: int) -> None:
        self.write(offset, memoryview(bytes(length)))

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(ByteOffset(offset), ByteCount(length), ExtentKind.DATA)

    def flush(self) -> None:
        self.power.step()
        self.file.flush()
        self.power.step()

    def content(self) -> bytes:
        return bytes(self.file.data)


class MediumSegments:
    """See `masttarget.segments.Segments`."""

    path = "memory"

    def __init__(self, power: Power) -> None:
        self.power = power
        self.files: dict[int, File] = {}
        self.unnamed: set[int] = set()
        self.head: Head | None = None
        self.current = 0

    def numbers(self) -> list[int]:
        return sorted(self.files)

    def read(self, number: int, offset: int = 0, length: int = -1) -> bytes:
        if number not in self.files:
            raise FileNotFoundError(number)
        data = self.files[number].data
        return bytes(data[offset : None if length < 0 else offset + length])

    def read_into(self, number: int, offset: int, into: memoryview) -> int:
        data = self.read(number, offset, len(into))
        into[: len(data)] = data
        return len(data)

    def start(self, number: int, header: bytes) -> None:
        self.power.step()
        if self.current in self.files:
            self.files[self.current].flush()
            self.unnamed.clear()
            self.power.step()
        self.files[number] = File()
        self.unnamed.add(number)
        self.current = number
        self.append(memoryview(header))

    def append(self, data: memoryview) -> None:
        self.power.step()
        file = self.files[self.current]
        file.write(len(file.data), bytes(data))
        self.power.step()

    def flush(self) -> None:
        self.power.step()
        if self.current in self.files:
            self.files[self.current].flush()
        self.power.step()
        self.unnamed.clear()

    def remove(self, numbers: list[int]) -> None:
        for number in numbers:
            self.power.step()
            self.files.pop(number, None)
        self.power.step()

    def load_head(self) -> Head | None:
        return self.head

    def store_head(self, head: Head) -> None:
        self.power.step()
        self.head = head
        self.power.step()

    def own(self) -> None:
        """Nobody else is there."""

    def close(self) -> None:
        self.current = 0

    def cut(self, rng: random.Random) -> None:
        for number in list(self.unnamed):
            if rng.random() < 0.5:
                self.files.pop(number, None)
        self.unnamed.clear()
        for file in self.files.values():
            file.cut(rng)
        self.current = 0


class MediumList:
    """See `masttarget.points.PointsFile`."""

    path = "memory"

    def __init__(self, power: Power) -> None:
        self.power = power
        self.file = File()

    def load(self) -> bytes:
        return bytes(self.file.data)

    def append(self, data: bytes, at: int) -> None:
        self.power.step()
        del self.file.data[at:]
        del self.file.durable[at:]
        self.file.write(at, data)
        self.power.step()
        self.file.flush()
        self.power.step()

    def mark(self) -> tuple[int, int]:
        return id(self.file), len(self.file.data)

    def replace(self, data: bytes) -> None:
        self.power.step()
        self.file = File(data)
        self.power.step()


class MediumDigests:
    """See `masttarget.verified_layout.VerifiedFile`."""

    path = "memory"

    def __init__(self, power: Power) -> None:
        self.power = power
        self.file = File()
        self.before: File | None = None
        """What may be there again after a power cut: that the file is another one now is not durable yet."""

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.file.data[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        self.power.step()
        self.file.write(offset, data)
        self.power.step()

    def flush(self) -> None:
        self.power.step()
        self.file.flush()
        self.before = None
        self.power.step()

    def reset(self, length: int) -> None:
        self.power.step()
        self.before = self.before or self.file
        self.file = File(bytes(length))
        self.power.step()

    def close(self) -> None:
        """Nothing is held."""

    def cut(self, rng: random.Random) -> None:
        if self.before is not None and rng.random() < 0.5:
            self.file = self.before
        self.before = None
        self.file.cut(rng)


class MediumStore:
    """See `masttarget.retention.RetentionStore`."""

    path = "memory"

    def __init__(self, power: Power) -> None:
        self.list = MediumList(power)
        self.one = MediumSegments(power)
        self.digests = MediumDigests(power)

    def verified(self, item: bytes, disk: bytes) -> MediumDigests:
        return self.digests

    def points(self, item: bytes) -> MediumList:
        return self.list

    def segments(self, item: bytes, disk: bytes) -> MediumSegments:
        return self.one

    def disks(self, item: bytes) -> list[bytes]:
        return [DISK]

    def free_bytes(self) -> int:
        return 1 << 40

    def hold(self, item: bytes, point: str) -> AbstractContextManager[None]:
        return nullcontext()

    def claim(self, item: bytes, point: str) -> AbstractContextManager[None]:
        return nullcontext()

    def exclusive(self, item: bytes) -> AbstractContextManager[None]:
        return nullcontext()

    def remove(self, item: bytes) -> None:
        raise AssertionError


class Clock:
    """A second passes with each question, now and then a jump back."""

    def __init__(self, rng: random.Random) -> None:
        self.time = 1_800_000_000.0
        self._rng = rng

    def monotonic(self) -> float:
        return self.time

    def now(self) -> float:
        self.time += 1 if self._rng.random() < 0.95 else -5
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


class Play:
    """A disk, its retention, and what has to be true of them."""

    def __init__(self, rng: random.Random, *, seeding: bool) -> None:
        self.rng = rng
        self.power = Power(rng)
        self.disk = MediumDisk(self.power)
        self.store = MediumStore(self.power)
        self.clock = Clock(rng)
        self.seeding = seeding
        if not seeding:
            self.disk.file = File(rng.randbytes(SIZE))
        self.points: dict[int, bytes] = {}
        self.acknowledged: dict[int, bytes] = {}
        self.doubtful: set[int] = set()
        self.publishing: bytes | None = None
        self.noise = rng.randbytes(4 * BLOCK_BYTES)

    def open(self) -> None:
        log = lambda event, /, **facts: None  # noqa: E731
        self.item = ItemRetention(ITEM, self.store, self.clock, Policy(60.0), log)
        identity = Identity(ITEM, DISK, SIZE)
        self.journal: UndoJournal = self.item.open_disk(
            identity, self.disk.read, seeding=self.seeding, durable=(0, 0), void=False
        )
        self.journal._segment_bytes = 300_000
        self.verified = open_verified(self.item, identity)
        self.item.begin([DISK])

    def look(self) -> None:
        """What was promised is true."""
        for block, content in self.acknowledged.items():
            if block not in self.doubtful:
                start = block * BLOCK_BYTES
                found = bytes(self.disk.file.data[start : start + len(content)])
                assert found == content, f"block {block} was acknowledged and is lost"
        known = {point.sequence: point for point in self.item.points}
        for sequence, content in self.points.items():
            oldest = self.item.points.oldest
            if sequence not in known:
                assert oldest is None or sequence < oldest.sequence, f"point {sequence} is lost"
                continue
            assert self.read(known[sequence]) == content, f"point {sequence} has changed"
        for sequence, point in known.items():
            if sequence not in self.points:  # published, but the power failed before anybody knew
                expected = self.publishing if self.publishing is not None else self.disk.content()
                assert self.read(point) == expected, f"point {sequence} is not what was published"
                self.points[sequence] = expected
        self.points = {sequence: self.points[sequence] for sequence in known}
        for sequence, point in known.items():
            told = point.disks[0].content_root
            assert told in ("", root_of(self.points[sequence])), f"point {sequence} has another content root"

    def read(self, point: Point) -> bytes:
        view = PointView(self.disk, self.store.one, Identity(ITEM, DISK, SIZE), point.sequence)
        into = memoryview(bytearray(SIZE))
        view.read(0, into)
        return bytes(into)

    def write_some(self) -> None:
        rng = self.rng
        batch: dict[int, bytes] = {}
        for _ in range(rng.randrange(1, 12)):
            block = rng.randrange(BLOCKS)
            length = min(BLOCK_BYTES, SIZE - block * BLOCK_BYTES)
            if rng.random() < 0.5 and block not in batch:
                first = block // 64 * 64
                span = memoryview(bytearray(64 * BLOCK_BYTES))
                size = min(len(span), SIZE - first * BLOCK_BYTES)
                self.disk.read(first * BLOCK_BYTES, span[:size])
                self.journal.expect(first, 1 << block - first, span[:size])
            at = rng.randrange(len(self.noise) - length)
            content = bytes(length) if rng.random() < 0.2 else self.noise[at : at + length]
            self.verified.touch(block, 1)
            if rng.random() < 0.5:
                batch[block] = self.write_sectors(block, content)
                continue
            self.journal.before_overwrite(block, 1)
            self.doubtful.add(block)
            self.disk.write(block * BLOCK_BYTES, memoryview(content))
            batch[block] = content
        self.disk.flush()
        self.acknowledged.update(batch)
        self.doubtful.difference_update(batch)

    def write_sectors(self, block: int, content: bytes) -> bytes:
        """A few sectors of the block are those of `content`; answers what the block holds then."""
        start = block * BLOCK_BYTES
        whole = memoryview(bytearray(len(content)))
        self.disk.read(start, whole)
        sectors = 0
        for _ in range(3):
            sectors |= 1 << self.rng.randrange(parts(len(content), SECTOR_BYTES))
        if self.rng.random() < 0.5:
            first = block // 64 * 64
            self.journal.foresee(first, sectors << (block - first) * BLOCK_SECTORS)
        self.journal.before_overwrite(block, 1, sectors)
        self.doubtful.add(block)
        for low, count in bit_runs(sectors):
            at, end = low * SECTOR_BYTES, (low + count) * SECTOR_BYTES
            whole[at:end] = content[at:end]
            self.disk.write(start + at, whole[at:end])
        return bytes(whole)

    def publish(self) -> None:
        self.publishing = self.disk.content()
        kind = self.rng.choice((Kind.CRASH_CONSISTENT, Kind.APP_CONSISTENT))
        found = Content()
        if self.rng.random() < 0.8:  # else by a master target that does not verify
            self.verified.read_again(
                self.disk, threading.Lock(), self.disk.flush, lambda first, count, content: None, lambda: None
            )
            found = self.verified.content
        one = PointDisk(DISK.hex(), SIZE, "", found.root, found.verified)
        point = self.item.publish(self.rng.randbytes(16), kind, [one])
        if found.root:
            self.verified.settle(point)
        self.seeding = False
        self.points[point.sequence] = self.publishing
        self.publishing = None

    def roll_back(self) -> None:
        if not len(self.item.points):
            return
        to = self.rng.choice(list(self.item.points))
        if to.sequence not in self.points:
            return
        if self.journal.wrote:
            self.publishing = self.disk.content()
            here = [PointDisk(DISK.hex(), SIZE)]
            made = self.item.publish(self.rng.randbytes(16), Kind.BEFORE_ROLLBACK, here)
            self.points[made.sequence], self.publishing = self.publishing, None
        if self.item.points.by_sequence(to.sequence) is None:
            return  # the policy gave it up meanwhile
        self.item.points.note_rollback("begun", to=to.sequence)
        view = PointView(self.disk, self.store.one, self.journal.identity, to.sequence)
        self.acknowledged.clear()  # gone on purpose, as of now
        self.doubtful.clear()
        roll_back(self.disk, view, self.journal, lambda position: None)
        assert self.disk.content() == self.points[to.sequence], "the rollback did not arrive"
        self.item.points.note_rollback("done", to=to.sequence)
        self.verified = open_verified(
            self.item, self.journal.identity
        )  # it is another process that goes back

    def live(self) -> None:
        self.open()
        self.look()
        while True:
            draw = self.rng.random()
            if draw < 0.6:
                self.write_some()
            elif draw < 0.85:
                self.publish()
            elif draw < 0.95:
                self.roll_back()
            else:
                self.item.close_disk(DISK)
                self.open()

    def cut(self) -> None:
        self.store.list.file.cut(self.rng)
        self.store.one.cut(self.rng)
        self.store.digests.cut(self.rng)
        self.disk.file.cut(self.rng)


def root_of(content: bytes) -> str:
    """The content root, by reading everything."""
    return content_root(SIZE, [(0, content)], lambda position: None)


def power_cuts(rng: random.Random) -> None:
    """One disk and its retention live through some power cuts."""
    play = Play(rng, seeding=rng.random() < 0.3)
    for _ in range(CUTS):
        play.power.left = int(rng.expovariate(1 / rng.choice((10, 60, 300)))) + 1
        try:
            play.live()
        except PowerCut:
            play.cut()
        except Defect as error:
            if "PowerCut" not in str(error):  # in the thread that flushes
                raise
            play.cut()
    play.power.left = 1 << 60
    play.open()
    play.look()


@contextmanager
def masttarget() -> Iterator[Round]:
    """Retention of the master target under power cuts and kills."""
    with nursery() as born:

        def one(rng: random.Random, _: int) -> Counter[str]:
            power_cuts(rng)
            return kills(rng, born)

        yield one
