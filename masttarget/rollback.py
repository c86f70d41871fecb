"""Going back: a target gets the content of a point, each block that differs once, and can come forward again.

A rollback is writes like any others: it has a cycle of its own, and undo records before each overwrite. It may be
broken off and begun again as often as the power fails, because it only reads what its own cycle does not change.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import blake3

from _native import digest
from disks.disk import Disk, ExtentKind
from drcore.buffers import buffer
from drcore.units import BLOCK_BYTES, DIGEST_BYTES, SPAN_BLOCKS, SPAN_BYTES, bit_runs, parts
from masttarget.undo import Undo
from masttarget.view import PointView

_WINDOW_SPANS: Final = 8
"""Spans whose old content is recorded before the first of them is written: 32 MiB go to the disk with each flush."""
OnBytes = Callable[[int], None]
"""Told how many bytes were looked at; may raise to stop."""


@dataclass(slots=True)
class RolledBack:
    """What a rollback did."""

    blocks_changed: int = 0
    bytes_written: int = 0


def roll_back(disk: Disk, view: PointView, undo: Undo, on_bytes: OnBytes) -> RolledBack:
    """The disk holds the point's content, durably; what it held before can be gone back to.

    Errors: those of the disk and of the journal; run again, it goes on.
    """
    done = RolledBack()
    now, then = buffer(SPAN_BYTES), buffer(SPAN_BYTES)
    window: list[tuple[int, int]] = []
    for span, bits in view.changed():
        differing = _differing(disk, view, span, bits, now, then)
        if differing:
            length = min(SPAN_BYTES, view.size - span * SPAN_BYTES)
            undo.expect(span * SPAN_BLOCKS, differing, now[:length])
            window.append((span, differing))
        if len(window) == _WINDOW_SPANS:
            _write(disk, view, undo, window, then, done, on_bytes)
            window.clear()
    _write(disk, view, undo, window, then, done, on_bytes)
    disk.flush()
    return done


def _differing(disk: Disk, view: PointView, span: int, bits: int, now: memoryview, then: memoryview) -> int:
    """Which of the blocks do not hold yet what they held at the point; `now` has what they hold."""
    start = span * SPAN_BYTES
    length = min(SPAN_BYTES, view.size - start)
    differing = 0
    for first, count in bit_runs(bits):
        begin, end = first * BLOCK_BYTES, min((first + count) * BLOCK_BYTES, length)
        disk.read(start + begin, now[begin:end])
        for block in range(first, first + count):
            low, high = block * BLOCK_BYTES, min((block + 1) * BLOCK_BYTES, length)
            view.old_content(span * SPAN_BLOCKS + block, then[low:high])
            if now[low:high] != then[low:high]:
                differing |= 1 << block
    return differing


def _write(
    disk: Disk,
    view: PointView,
    undo: Undo,
    window: list[tuple[int, int]],
    then: memoryview,
    done: RolledBack,
    on_bytes: OnBytes,
) -> None:
    for span, bits in window:
        start = span * SPAN_BYTES
        length = min(SPAN_BYTES, view.size - start)
        for first, count in bit_runs(bits):
            undo.before_overwrite(span * SPAN_BLOCKS + first, count)
            begin, end = first * BLOCK_BYTES, min((first + count) * BLOCK_BYTES, length)
            for block in range(first, first + count):
                low, high = block * BLOCK_BYTES, min((block + 1) * BLOCK_BYTES, length)
                view.old_content(span * SPAN_BLOCKS + block, then[low:high])
            if digest.is_zero(then[begin:end]):
                disk.zero(start + begin, end - begin)
            else:
                disk.write(start + begin, then[begin:end])
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
