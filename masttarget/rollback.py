"""Going back: a target gets the content of a point, each block that differs once, and can come forward again.

A rollback is writes like any others: it has a cycle of its own, and undo records before each overwrite. It may be
broken off and begun again as often as the power fails, because it only reads what its own cycle does not change.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Final

import blake3

from _native import compare, digest
from disks.disk import Disk, ExtentKind
from drcore.buffers import buffer
from drcore.units import BLOCK_BYTES, DIGEST_BYTES, SPAN_BLOCKS, SPAN_BYTES, bit_runs, parts
from masttarget.ahead import ahead
from masttarget.undo import Undo
from masttarget.view import PointView

_WINDOW_SPANS: Final = 2
"""Spans that are recorded before the first of them is written. Three windows are under way, 48 MiB with both contents:
one is read, one recorded, and one written when its records are durable, each in a thread of its own."""
OnBytes = Callable[[int], None]
"""Told how many bytes were looked at; may raise to stop."""


@dataclass(slots=True)
class RolledBack:
    """What a rollback did."""

    blocks_changed: int = 0
    bytes_written: int = 0


@dataclass(slots=True)
class _Span:
    """A span that goes back: its old content, what it holds now, and which of its blocks differ."""

    content: memoryview
    now: memoryview
    span: int = 0
    differing: int = 0


def roll_back(disk: Disk, view: PointView, undo: Undo, on_bytes: OnBytes) -> RolledBack:
    """The disk holds the point's content, durably; what it held before can be gone back to.

    Errors: those of the disk and of the journal; run again, it goes on.
    """
    done = RolledBack()
    with (
        closing(ahead(_windows(disk, view))) as windows,
        closing(ahead(_kept(windows, undo, view.size))) as kept,
    ):
        for window in kept:
            _write(disk, view, undo, window, done, on_bytes)
    disk.flush()
    return done


def _kept(windows: Iterator[list[_Span]], undo: Undo, size: int) -> Iterator[list[_Span]]:
    """The same windows; what the disk holds in their place is in the journal, and soon durable."""
    for window in windows:
        for one in window:
            undo.expect(one.span * SPAN_BLOCKS, one.differing, one.now[: size - one.span * SPAN_BYTES])
        yield window


def _windows(disk: Disk, view: PointView) -> Iterator[list[_Span]]:
    """Spans of which some blocks differ, in the order of the disk. The last three windows that were given stay."""
    bitmaps = bytearray(SPAN_BLOCKS * 2)
    spare = [_Span(buffer(SPAN_BYTES), buffer(SPAN_BYTES)) for _ in range(3 * _WINDOW_SPANS)]
    window: list[_Span] = []
    turn = 0
    for span, bits in view.changed():
        one = spare[turn % len(spare)]
        one.span, one.differing = span, _differing(disk, view, span, bits, one.now, one.content, bitmaps)
        if one.differing:
            window.append(one)
            turn += 1
        if len(window) == _WINDOW_SPANS:
            yield window
            window = []
    yield window


def _differing(
    disk: Disk,
    view: PointView,
    span: int,
    bits: int,
    now: memoryview,
    then: memoryview,
    bitmaps: bytearray,
) -> int:
    """Which blocks do not hold yet what they held at the point; `now` has what they hold, `then` what they held."""
    start = span * SPAN_BYTES
    length = min(SPAN_BYTES, view.size - start)
    view.old_contents(span * SPAN_BLOCKS, bits, then[:length])
    differing = 0
    for first, count in bit_runs(bits):
        begin, end = first * BLOCK_BYTES, min((first + count) * BLOCK_BYTES, length)
        disk.read(start + begin, now[begin:end])
        found = memoryview(bitmaps)[: count * 2]
        compare.compare_sectors(then[begin:end], now[begin:end], found)
        for index, sectors in enumerate(found.cast("H")):
            if sectors:
                differing |= 1 << first + index
    return differing


def _write(
    disk: Disk, view: PointView, undo: Undo, window: list[_Span], done: RolledBack, on_bytes: OnBytes
) -> None:
    for one in window:
        start = one.span * SPAN_BYTES
        length = min(SPAN_BYTES, view.size - start)
        for first, count in bit_runs(one.differing):
            undo.before_overwrite(one.span * SPAN_BLOCKS + first, count)
            begin, end = first * BLOCK_BYTES, min((first + count) * BLOCK_BYTES, length)
            if digest.is_zero(one.content[begin:end]):
                disk.zero(start + begin, end - begin)
            else:
                disk.write(start + begin, one.content[begin:end])
            done.blocks_changed += count
            done.bytes_written += end - begin
        on_bytes(start + length)


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
