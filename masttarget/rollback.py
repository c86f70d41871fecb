"""Going back: a target gets the content of a point, each block that differs once, and can come forward again.

A rollback is writes like any others: it has a cycle of its own, and undo records before each overwrite. It may be
broken off and begun again as often as the power fails, because it only reads what its own cycle does not change.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Final

import blake3

from _native import compare, digest
from disks.disk import Disk, ExtentKind
from drcore.buffers import Pool, buffer
from drcore.limits import SPARE_BUFFERS_MAX, UNDO_PIECE_BYTES
from drcore.units import (
    BLOCK_BYTES,
    BLOCK_SECTORS,
    DIGEST_BYTES,
    SECTOR_BYTES,
    SPAN_BLOCKS,
    SPAN_BYTES,
    bit_runs,
    parts,
)
from masttarget.ahead import in_order
from masttarget.undo import PACKED_BYTES, UndoJournal
from masttarget.view import PointView

_PIECE_BLOCKS: Final = UNDO_PIECE_BYTES // BLOCK_BYTES
_THREADS: Final = 2
"""Threads that read, compare and pack; packing is half of the work, and one more writes."""
_PREPARED: Final = 4
"""Pieces that are being read, compared and packed: each thread has its next."""
_KEPT: Final = 24
"""Pieces whose records are in the journal and that wait to be written: with the journal flushed after every 4 MiB, the
records of the first of them are durable before the last one's come, and nobody waits for the medium."""
_FEW_SECTORS: Final = 4
"""A block that differs in more of its sixteen sectors is written as a whole, if all of it is known."""
_BLOCK_BITS: Final = (1 << BLOCK_SECTORS) - 1
_NOW: Final = Pool(UNDO_PIECE_BYTES, SPARE_BUFFERS_MAX)
OnBytes = Callable[[int], None]
"""Told how many bytes were looked at; may raise to stop."""


@dataclass(slots=True)
class RolledBack:
    """What a rollback did."""

    blocks_changed: int = 0
    bytes_written: int = 0


@dataclass(slots=True)
class _Piece:
    """Blocks from `first` on that go back: their old contents, which sectors differ now, and records of these.

    What the journal does not have of a block did not change since; `content` has anything there.
    """

    content: memoryview
    packed: memoryview
    sectors: memoryview
    """Room for what a comparison says."""
    first: int = 0
    blocks: int = 0
    covered: int = 0
    differing: int = 0
    missing: int = 0
    packed_bytes: int = 0


def roll_back(disk: Disk, view: PointView, undo: UndoJournal, on_bytes: OnBytes) -> RolledBack:
    """The disk holds the point's content, durably; what it held before can be gone back to.

    Errors: those of the disk and of the journal; run again, it goes on.
    """
    done = RolledBack()
    prepare = partial(_prepare, disk, view, undo)
    kept: deque[_Piece] = deque()
    with closing(in_order(_pieces(view), prepare, _THREADS, _PREPARED)) as prepared:
        for piece in prepared:
            if piece.missing:
                undo.keep(piece.first, piece.missing, piece.packed[: piece.packed_bytes])
            kept.append(piece)
            if len(kept) == _KEPT:
                _write(disk, view, undo, kept.popleft(), done, on_bytes)
        for piece in kept:
            _write(disk, view, undo, piece, done, on_bytes)
    disk.flush()
    return done


def _pieces(view: PointView) -> Iterator[_Piece]:
    """What the journal has older content of, in the order of the disk. The last that were given stay as they are."""
    spare: list[_Piece] = []
    turn = 0
    for span, bits in view.changed():
        for piece in range(0, SPAN_BLOCKS, _PIECE_BLOCKS):
            blocks = bits >> piece & ((1 << _PIECE_BLOCKS) - 1)
            if not blocks:
                continue
            if turn < _PREPARED + _KEPT:
                sectors = memoryview(bytearray(_PIECE_BLOCKS * 2))
                spare.append(_Piece(buffer(UNDO_PIECE_BYTES), buffer(PACKED_BYTES), sectors))
            one = spare[turn % len(spare)]
            one.first, one.blocks = span * SPAN_BLOCKS + piece, blocks
            yield one
            turn += 1


def _prepare(disk: Disk, view: PointView, undo: UndoJournal, one: _Piece) -> _Piece:
    """It is known what the blocks held, in which sectors they hold something else now, and what that is is packed."""
    start = one.first * BLOCK_BYTES
    length = min(UNDO_PIECE_BYTES, view.size - start)
    one.covered = view.covered(one.first, _PIECE_BLOCKS)
    view.old_contents(one.first, one.blocks, one.content[:length])
    with _NOW.lend() as now:
        one.differing = _differing(disk, start, one, one.content[:length], now[:length])
        one.missing = undo.missing(one.first, one.differing)
        if one.missing:
            # Somebody waits for a rollback, and there are few: time matters more than room.
            packed = undo.pack(one.first, one.missing, now[:length], one.packed, quick=True)
            one.packed_bytes = len(packed)
    return one


def _differing(disk: Disk, start: int, one: _Piece, then: memoryview, now: memoryview) -> int:
    """Which sectors do not hold yet what they held at the point, `then`; `now` has what their blocks hold."""
    differing = 0
    for first, count in bit_runs(one.blocks):
        begin, end = first * BLOCK_BYTES, min((first + count) * BLOCK_BYTES, len(then))
        disk.read(start + begin, now[begin:end])
        found = one.sectors[first * 2 : (first + count) * 2]
        compare.compare_sectors(then[begin:end], now[begin:end], found)
        differing |= int.from_bytes(found, "little") << first * BLOCK_SECTORS
    return differing & one.covered


def _write(
    disk: Disk, view: PointView, undo: UndoJournal, one: _Piece, done: RolledBack, on_bytes: OnBytes
) -> None:
    start = one.first * BLOCK_BYTES
    length = min(UNDO_PIECE_BYTES, view.size - start)
    undo.before_overwrite(one.first, _PIECE_BLOCKS, one.differing)
    for first, count in bit_runs(_written(one, done)):
        begin, end = first * SECTOR_BYTES, min((first + count) * SECTOR_BYTES, length)
        if digest.is_zero(one.content[begin:end]):
            disk.zero(start + begin, end - begin)
        else:
            disk.write(start + begin, one.content[begin:end])
        done.bytes_written += end - begin
    on_bytes(start + length)


def _written(one: _Piece, done: RolledBack) -> int:
    """The sectors that are written: those that differ, and all of a block that differs in many."""
    written = one.differing
    for block in range(_PIECE_BLOCKS):
        at = block * BLOCK_SECTORS
        sectors = one.differing >> at & _BLOCK_BITS
        done.blocks_changed += sectors > 0
        if sectors.bit_count() > _FEW_SECTORS and one.covered >> at & _BLOCK_BITS == _BLOCK_BITS:
            written |= _BLOCK_BITS << at
    return written


def root_of(disk: Disk, size: int, secret: bytes, on_bytes: OnBytes) -> str:
    """The root of the disk's first `size` bytes (hex), by reading all of them: what a digest map of it would answer."""
    hasher = blake3.blake3()
    span = buffer(SPAN_BYTES)
    for at in range(0, size, SPAN_BYTES):
        piece = span[: min(SPAN_BYTES, size - at)]
        out = bytearray(parts(len(piece), BLOCK_BYTES) * DIGEST_BYTES)
        if any(extent.kind is ExtentKind.DATA for extent in disk.extents(at, len(piece))):
            disk.read(at, piece)
            digest.digest_blocks(piece, secret, out)
        hasher.update(out)
        on_bytes(at + len(piece))
    return str(hasher.hexdigest())
