"""The owner of one target disk: compares it, applies data to it, knows what it holds.

One lock guards what is changed here; a session may touch the disk only while it is the current one, so taking the
lock to change sessions also waits for the writes in flight (fencing).
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from _native import compare, digest, pack
from disks.backing import zero_memory
from disks.digestmap import DigestMap
from disks.disk import Disk
from disks.linear import LinearDisk
from disks.scan import PIECE_BYTES, RegionRun, Seen, pieces, remembered, scan
from drcore.buffers import Pool, buffer
from drcore.limits import SPARE_BUFFERS_MAX
from drcore.record import Changing, Record, made
from drcore.units import (
    BLOCK_BYTES,
    BLOCK_SECTORS,
    DIGEST_BYTES,
    REGION_BLOCKS,
    REGION_SPANS,
    SPAN_BLOCKS,
    SPAN_BYTES,
    ZERO_DIGEST,
    bit_runs,
    parts,
)
from masttarget.due import Due
from masttarget.elsewhere import Elsewhere, Found, Rooms, changes
from masttarget.errors import BlockRefused, DataMalformed, Fenced
from masttarget.undo import Undo
from wireproto.errors import LimitExceeded, MessageRefused
from wireproto.messages import EMPTY, Children, Data, Differ, Missing, Refer, Zeroes

_SECTOR_DIGESTS = BLOCK_SECTORS * DIGEST_BYTES
_HEADER_BYTES = 32
"""Of an entry, before its content."""
_STORED = 0
"""The codec of content that is not compressed."""
ZERO_WINDOW_BLOCKS = 65536
"""A window of the digest map that is looked at in one go: 1 MiB."""

_SPANS = Pool(SPAN_BYTES, SPARE_BUFFERS_MAX)
"""Of all disks: one is needed only while a frame is applied or a question answered."""


class AppliedRun(Record, often=True):
    """New digests of `count` blocks from `first` on, as they go into the applied record; none stands for all zero."""

    first: int
    count: int
    digests: bytes


class Applied(Changing, often=True):
    """What one frame did to the disk."""

    runs: list[AppliedRun] = made(factory=list)
    written_bytes: int = 0
    mismatched: list[int] = made(factory=list)
    answer: Missing | None = None
    """What the agent is told of a frame of references."""


class TargetDisk:
    """One target disk and its digest map. `data_bytes` is the source's size; what lies beyond is left alone."""

    def __init__(
        self, disk: Disk, data_bytes: int, secret: bytes, new_map: Callable[[], DigestMap], *, empty: bool
    ) -> None:
        self.disk = disk
        self.data_bytes = data_bytes
        self.blocks = parts(data_bytes, BLOCK_BYTES)
        self.last_block_bytes = data_bytes - max(self.blocks - 1, 0) * BLOCK_BYTES
        self.digests = new_map()
        self.known = empty
        self._pristine = self._born_empty = empty
        self._doubted = False
        self.lock = threading.Lock()
        self.session = 0
        self.due = Due(self.blocks, everything=empty)
        self.undo: Undo | None = None
        """Where old contents are kept before they are overwritten; None where nobody wants to go back."""
        self.on_write: Callable[[int, int], None] | None = None
        """Told of blocks (first, count) that are about to be written, with the lock held."""
        self.mismatched: set[int] = set()
        self._secret = secret
        self._new_map = new_map
        self.claims: DigestMap | None = None
        self.lost: list[int] = []
        self.elsewhere: Elsewhere | None = None
        self._sought_in = 0
        self._learned_from = data_bytes
        self._claimed: list[int] = []
        self._block = buffer(BLOCK_BYTES)
        self._found = memoryview(bytearray(SPAN_BLOCKS * DIGEST_BYTES))

    def close_maps(self) -> None:
        """The digest maps, which may be files, are given back."""
        self.digests.close()
        if self.claims is not None:
            self.claims.close()
            self.claims = None

    # Comparing

    def scanned(self, on_bytes: Callable[[int], None]) -> Iterator[RegionRun]:
        """Every region of the disk, ascending: read if its content is not known yet, else from the digest map."""
        if self._pristine:
            yield RegionRun(0, self.digests.regions, None)
            return
        if self.known:
            yield from remembered(self.digests, self._secret)
            return
        self.digests.close()
        self.digests = self._new_map()
        self._doubted = False
        for run in scan(self.disk, self.digests, self._secret, on_bytes, self._watcher):
            if self.claims is not None:
                self._check_claims(self.claims, run)
            yield run
        with self.lock:
            self.known = not self._doubted
        if self.claims is not None:
            self.claims.close()
            self.claims = None

    def claim(self, runs: Iterable[AppliedRun]) -> None:
        """These blocks were acknowledged before an unclean stop: the next reading of the disk checks them."""
        regions: set[int] = set()
        for run in runs:
            if run.first + run.count > self.blocks:
                continue  # of a larger source: the size check of this session decides, not an old record
            if self.claims is None:
                self.claims = self._new_map()
            if run.digests:
                self.claims.write(run.first, run.digests)
                regions.update(
                    range(run.first // REGION_BLOCKS, (run.first + run.count - 1) // REGION_BLOCKS + 1)
                )
            else:
                self.claims.clear(run.first, run.count)
        self._claimed = sorted(regions, reverse=True)

    def _check_claims(self, claims: DigestMap, run: RegionRun) -> None:
        """Blocks that were acknowledged before a crash and do not read so now are in `lost`."""
        # Only regions with claims are looked at: a run of empty ones may be the whole of a large disk.
        while self._claimed and self._claimed[-1] < run.first + run.count:
            first = self._claimed.pop() * REGION_BLOCKS
            count = min(REGION_BLOCKS, self.blocks - first)
            claimed = claims.read(first, count)
            for start, length in compare.extents(claimed, self.digests.read(first, count)):
                for block in range(start, start + length):
                    if any(claimed[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES]):
                        self.lost.append(first + block)

    def answer(self, asked: Children) -> Differ:
        """Which of the asked children differ here. Errors: `LimitExceeded`, `MessageRefused`."""
        first_block = asked.node * (SPAN_BLOCKS if asked.level == 1 else SPAN_BLOCKS * REGION_SPANS)
        if first_block >= self.blocks:
            raise LimitExceeded(field="node of CHILDREN", value=asked.node, limit=self.blocks // SPAN_BLOCKS)
        own = (
            self.digests.read(first_block, min(SPAN_BLOCKS, self.blocks - first_block))
            if asked.level == 1
            else self.digests.spans_of(asked.node, self._secret)
        )
        if len(own) != len(asked.digests):
            raise MessageRefused(
                reason=f"{len(asked.digests) // DIGEST_BYTES} children where there are others"
            )
        differing = compare.differing(own, asked.digests)
        zero = compare.zeroes(own) & differing
        if asked.level != 1:
            return Differ(asked.level, asked.node, differing, zero, EMPTY)
        if differing:
            with self.lock:
                self.due.add(first_block, differing)
        wanted = differing & ~zero & ~compare.zeroes(asked.digests)
        return Differ(1, asked.node, differing, zero, self._sectors(first_block, wanted, differing))

    def _sectors(self, first_block: int, wanted: int, differing: int) -> memoryview:
        """Sector digests of the wanted blocks of a span, read from the disk; the others will be overwritten whole."""
        reading = wanted if self.undo is None else differing
        if not reading:
            return EMPTY
        out = memoryview(bytearray(wanted.bit_count() * _SECTOR_DIGESTS))
        with self.lock, _SPANS.lend() as span:
            length = min(SPAN_BYTES, self.data_bytes - first_block * BLOCK_BYTES)
            for start, count in bit_runs(reading):
                begin, end = start * BLOCK_BYTES, min((start + count) * BLOCK_BYTES, length)
                self.disk.read(first_block * BLOCK_BYTES + begin, span[begin:end])
            if self.undo is not None:
                self.undo.expect(first_block, differing & ~wanted, span[:length])
            digest.digest_sectors(span[:length], self._secret, wanted, out)
        return out

    # Content that is elsewhere

    @property
    def finds(self) -> bool:
        """There is content that references could speak of."""
        return not self._pristine and self.data_bytes >= BLOCK_BYTES

    def seek(self, session: int, rooms: Callable[[], Rooms], *, over: bool) -> bool:
        """An index of the disk's sectors is begun; answers whether it has to be finished (`learn_rest`).

        What the scan reads from now on goes in as it passes. `over`: nothing will be asked for any more. Errors:
        `MessageRefused` when it was begun in this session before.
        """
        with self.lock:
            if session != self.session:
                return False  # fenced off: the agent is told with the next frame
            if over:
                if self.elsewhere is not None:
                    self.elsewhere.retire()
                return False
            if self._sought_in == session:
                raise MessageRefused(reason="a second SEEK for the same disk")
            self._sought_in = session
            self._learned_from = self.data_bytes
            self.elsewhere = Elsewhere(self.disk, self.data_bytes, self._secret, rooms())
            return True

    def _forget(self) -> None:
        if self.elsewhere is not None:
            self.elsewhere.close()
            self.elsewhere = None

    def _watcher(self) -> Seen | None:
        """Who wants to see what the scan reads from now on: an index, once it was begun."""
        return self._seen if self.elsewhere is not None else None

    def _seen(self, offset: int, content: memoryview) -> None:
        """The scan has read this."""
        with self.lock:
            if self.elsewhere is not None:
                self._learned_from = min(self._learned_from, offset)
                self.elsewhere.learn(offset, content, final=False)

    def learn_rest(self, on_bytes: Callable[[int], None]) -> int:
        """The index holds what the scan had read before it was begun; answers how many sectors it knows.

        To be called when the scan is over. `on_bytes` as in `scanned`.
        """
        piece = buffer(PIECE_BYTES)
        for start, length in pieces(self.disk, self.data_bytes):
            if start >= self._learned_from:
                break
            self.disk.read(start, piece[:length])
            with self.lock:
                if self.elsewhere is None:
                    return 0
                self.elsewhere.learn(start, piece[:length], final=False)
            on_bytes(start + length)
        with self.lock:
            return self.elsewhere.known if self.elsewhere is not None else 0

    def refer(self, data: Refer, session: int, generation: int) -> Applied:
        """What the frame names and could be found is on the disk (not yet durable) and in the digest map.

        A block of which some sectors are missing has the others; its digest is what it holds then. Errors as `apply`,
        `MessageRefused` without an index.
        """
        applied, blocks, sectors = Applied(), 0, 0
        missing: list[tuple[int, int]] = []
        with self.lock:
            self._guard(session, generation)
            if self.elsewhere is None:
                raise MessageRefused(reason="references without SEEK")
            changed = changes(data.entries)
            with self._doubting():
                self._expect(changed.items())
                for found in self.elsewhere.resolve(data.entries):
                    blocks += found.blocks
                    sectors += found.sectors
                    missing += found.missing
                    self._write_found(found, changed, applied)
        if blocks != data.count:
            raise MessageRefused(reason=f"{data.count} references told where {blocks} are")
        applied.answer = Missing(blocks, sectors, tuple(missing))
        return applied

    def _write_found(self, found: Found, changed: dict[int, int], applied: Applied) -> None:
        for first, content, digests in found.runs:
            count = len(digests) // DIGEST_BYTES
            # Whole blocks are written; what they do not change is what was read.
            sectors = sum(changed[first + index] << index * BLOCK_SECTORS for index in range(count))
            self._keep(first, count, sectors)
            self.disk.write(first * BLOCK_BYTES, content)
            self._note(first, digests, applied)
            applied.written_bytes += len(content)
        applied.mismatched += found.wrong
        self.mismatched.update(found.wrong)
        self.mismatched.update(block for block, _ in found.missing)

    def _displace_range(self, first: int, count: int) -> None:
        """As `_displace`, for any number of blocks; windows of zero blocks cost one look."""
        if self.elsewhere is None:
            return
        for window in range(first, first + count, ZERO_WINDOW_BLOCKS):
            end = min(window + ZERO_WINDOW_BLOCKS, first + count)
            if not digest.is_zero(self.digests.read(window, end - window)):
                for span in range(window, end, SPAN_BLOCKS):
                    self._displace(span, min(SPAN_BLOCKS, end - span))

    def _displace(self, first: int, count: int) -> None:
        """What is about to be overwritten is saved as far as references may still ask for it; at most a span."""
        if self.elsewhere is not None:
            self.elsewhere.displace(first, count, self.digests.read(first, count))

    # Reading again

    def confirm(self, first: int, count: int, content: memoryview | None) -> int | None:
        """The first of the blocks that, read again (None: zeroes), is not what was written; the lock is held.

        Where there is one, the disk will be read from end to end before it is compared.
        """
        for start in range(first, first + count if self.known else first, ZERO_WINDOW_BLOCKS):
            expected = self.digests.read(start, min(ZERO_WINDOW_BLOCKS, first + count - start))
            found = bytearray(len(expected))
            if content is not None:
                digest.digest_blocks(content, self._secret, found)
            if found != expected:
                self.known, self._doubted = False, True
                return start + compare.extents(found, expected)[0][0] // DIGEST_BYTES
        return None

    # Applying

    def take_over(self, session: int) -> None:
        """The session is the current one; writes of older ones are over and no more will be."""
        with self.lock:
            self.session = session
            self.mismatched.clear()
            self.due = Due(self.blocks, everything=self._pristine)
            self._forget()

    def _guard(self, session: int, generation: int) -> None:
        if session != self.session:
            raise Fenced(
                session=session,
                generation=generation,
                current_session=self.session,
                current_generation=generation,
            )

    @contextmanager
    def _doubting(self) -> Iterator[None]:
        """After a failure the digest map no longer speaks for the medium: the disk is read again before it is used."""
        try:
            yield
        except Fenced:
            raise
        except BaseException:
            self.known = False
            self._doubted = True  # also where a scan that is under way has passed the place already
            raise

    def foresee(self, data: Data, session: int) -> bool:
        """What the frame will overwrite is being kept; answers whether that may take a moment to be durable.

        Errors: those of the journal and of the disk.
        """
        with self.lock:
            return session == self.session and self._expect(_changes(data.entries))

    def _expect(self, changed: Iterable[tuple[int, int]]) -> bool:
        """As `foresee`, of blocks and their sectors (bits)."""
        if self.undo is None or not self.undo.active:
            return False
        spans: dict[int, int] = {}
        for block, sectors in changed:
            if block >= self.blocks:
                break
            span = block // SPAN_BLOCKS
            spans[span] = spans.get(span, 0) | sectors << block % SPAN_BLOCKS * BLOCK_SECTORS
        for span, sectors in spans.items():
            self.undo.foresee(span * SPAN_BLOCKS, sectors)
        return True

    def apply(self, data: Data, session: int, generation: int) -> Applied:
        """The frame's entries are on the disk (not yet durable) and in the digest map.

        Blocks whose sectors did not add up to the sealed digest are left as they were and named. Errors: `Fenced`,
        `BlockRefused`, `DataMalformed`, those of `Disk.write`.
        """
        applied, position = Applied(), 0
        with self.lock, self._doubting(), _SPANS.lend() as span:
            self._guard(session, generation)
            self._pristine = False
            self._expect(_changes(data.entries))
            try:
                left = data.count
                while position < len(data.entries):
                    position, blocks = self._apply_next(data.entries, position, span, applied)
                    left -= blocks
                if left:
                    raise DataMalformed(reason=f"{data.count} entries told where {data.count - left} are")
            except pack.Mismatch as error:
                raise BlockRefused(block=error.block) from error
            except pack.Malformed as error:
                raise DataMalformed(reason=str(error)) from error
        return applied

    def _apply_next(
        self, entries: memoryview, position: int, span: memoryview, applied: Applied
    ) -> tuple[int, int]:
        """The run of whole blocks at `position`, or the patched one; answers where the next is, and how many it was."""
        block, sectors, codec, _, following = pack.entry(entries, position)
        if block >= self.blocks:
            raise DataMalformed(reason=f"block {block} of a disk of {self.blocks} blocks")
        size = self.last_block_bytes if block == self.blocks - 1 else BLOCK_BYTES
        if sectors == (1 << parts(size, 4096)) - 1:
            if codec == _STORED and isinstance(self.disk, LinearDisk) and self.elsewhere is None:
                return self._apply_stored(self.disk, entries, position, applied)
            following, first, count, length = pack.unpack(
                entries, position, self.blocks, self.last_block_bytes, self._secret, span, self._found
            )
            self._keep(first, count)
            self._displace(first, count)
            self.disk.write(first * BLOCK_BYTES, span[:length])
            if self.elsewhere is not None:
                self.elsewhere.learn(first * BLOCK_BYTES, span[:length], final=True)
            self._note(first, bytes(self._found[: count * DIGEST_BYTES]), applied)
            applied.written_bytes += length
            return following, count
        content = self._block[:size]
        self._read(block, content)
        if self.elsewhere is not None:
            self.elsewhere.displace_sectors(block, content, sectors)
        following, matches = pack.unpack_patch(
            entries, position, self.blocks, self.last_block_bytes, self._secret, content
        )
        if not matches:
            applied.mismatched.append(block)
            self.mismatched.add(block)
            return following, 1
        # Only from the first to the last sector that changed: what lies between is what was read.
        begin = (sectors & -sectors).bit_length() - 1
        start, end = begin * 4096, min(sectors.bit_length() * 4096, size)
        self._keep(block, 1, sectors)
        self.disk.write(block * BLOCK_BYTES + start, content[start:end])
        if self.elsewhere is not None:
            self.elsewhere.learn(block * BLOCK_BYTES, content, final=True)
        self._note(block, bytes(entries[position + 16 : position + 32]), applied)
        applied.written_bytes += end - start
        return following, 1

    def _read(self, block: int, content: memoryview) -> None:
        """`content` is what the block holds.

        Nobody but us has written to a disk that was empty: where nothing was written, nothing has to be read. To read
        what a file has no data for takes pages for it, and for what the kernel thinks will be read next.
        """
        if self._born_empty and self.known and self.digests.read(block, 1) == ZERO_DIGEST:
            zero_memory(content)
        else:
            self.disk.read(block * BLOCK_BYTES, content)

    def _apply_stored(
        self, disk: LinearDisk, entries: memoryview, position: int, applied: Applied
    ) -> tuple[int, int]:
        """As `_apply_next`, of whole blocks that are stored as they are: they are written from where they lie."""
        following, first, count = pack.prove(
            entries, position, self.blocks, self.last_block_bytes, self._secret, self._found
        )
        begins = range(position + _HEADER_BYTES, following, _HEADER_BYTES + BLOCK_BYTES)
        self._keep(first, count)
        disk.write_blocks(
            first * BLOCK_BYTES, [entries[at : min(at + BLOCK_BYTES, following)] for at in begins]
        )
        self._note(first, bytes(self._found[: count * DIGEST_BYTES]), applied)
        applied.written_bytes += following - position - count * _HEADER_BYTES
        return following, count

    def _keep(self, first: int, count: int, sectors: int | None = None) -> None:
        """What the blocks, or the sectors (bits) of one, hold now can be gone back to, whatever happens."""
        if self.on_write is not None:
            self.on_write(first, count)
        if self.undo is not None:
            self.undo.before_overwrite(first, count, sectors)

    def _note(self, first: int, digests: bytes, applied: Applied) -> None:
        self.digests.write(first, digests)
        count = len(digests) // DIGEST_BYTES
        applied.runs.append(AppliedRun(first, count, digests))
        self.due.take(first, count)
        if self.mismatched:
            self.mismatched.difference_update(range(first, first + count))

    def clear(self, zeroes: Zeroes, session: int, generation: int) -> Applied:
        """The ranges read as zeroes (not yet durable). Errors as `apply`."""
        applied = Applied()
        with self.lock, self._doubting():
            self._guard(session, generation)
            self._pristine = False
            for first, count in zeroes.ranges:
                if first + count > self.blocks:
                    raise DataMalformed(reason=f"blocks {first} to {first + count} of {self.blocks}")
                start = first * BLOCK_BYTES
                end = min((first + count) * BLOCK_BYTES, self.data_bytes)
                self._keep(first, count)
                self._displace_range(first, count)
                self.disk.zero(start, end - start)
                self.digests.clear(first, count)
                applied.runs.append(AppliedRun(first, count, b""))
                self.due.take(first, count)
                applied.written_bytes += end - start
                if self.mismatched:
                    self.mismatched.difference_update(range(first, first + count))
        return applied


def _changes(entries: memoryview) -> Iterator[tuple[int, int]]:
    """The blocks of a data frame, and which of their sectors (bits) it has, up to what is malformed."""
    position = 0
    with suppress(pack.Malformed):
        while position < len(entries):
            block, sectors, _, _, position = pack.entry(entries, position)
            yield block, sectors
