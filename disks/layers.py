"""A disk of layers, read only: each holds some of the bytes, the rest shows the layer below it.

So snapshots (a VMDK and its parents) and backing files (qcow2) are read. The layers know their format's tables; here
is only who answers for which byte.
"""

import threading
from collections.abc import Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple, Protocol

from disks.backing import Backing, zero_memory
from disks.disk import Extent, Format
from disks.image import check_range, check_writable, merged
from drcore.units import ByteCount


class Held(IntEnum):
    """What a layer says of a range."""

    ABSENT = 0
    """Nothing: the layer below answers; zeroes where there is none."""
    ZERO = 1
    DATA = 2


class Piece(NamedTuple):
    """A run of a layer; `at` is what the layer's own `load` needs to find the bytes of a DATA piece."""

    offset: int
    length: int
    held: Held
    at: int = 0


class Layer(Protocol):
    """One image of a chain. Owns its files. `pieces` and `load` may be called from any thread."""

    @property
    def size(self) -> int:
        """Bytes of the virtual disk; a layer above may be longer."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """The image's own file and those that it names as its extents."""
        ...

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        """What the layer holds of the range, ascending, covering it exactly. The range lies within `size`."""
        ...

    def load(self, piece: Piece, into: memoryview) -> None:
        """`into`, as long as the piece, holds its bytes. Errors: ReadFailed, ImageDamaged."""
        ...

    def close(self) -> None:
        """Its files are closed."""
        ...


class FlatLayer:
    """`size` bytes of a file from `start` on as a layer that hides everything below it. Owns the backing."""

    def __init__(self, backing: Backing, start: int, size: int) -> None:
        self._backing = backing
        self._start = start
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    @property
    def files(self) -> tuple[Path, ...]:
        return (self._backing.path,)

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        for start, count, data in self._backing.runs(self._start + offset, length):
            yield Piece(start - self._start, count, Held.DATA if data else Held.ZERO, start)

    def load(self, piece: Piece, into: memoryview) -> None:
        self._backing.read(piece.at, into)

    def close(self) -> None:
        self._backing.close()


class About(NamedTuple):
    """What a layered disk says of itself."""

    path: Path
    format: Format
    grain_size: int | None
    disk_uuid: str | None
    change_mark: str | None


class LayeredDisk:
    """The layers from the top down as one disk of the top layer's size. Owns them."""

    def __init__(self, about: About, layers: Sequence[Layer]) -> None:
        self._about = about
        self._layers = tuple(layers)
        self._closing = threading.Lock()
        self._closed = False

    @property
    def format(self) -> Format:
        return self._about.format

    @property
    def size(self) -> ByteCount:
        return ByteCount(self._layers[0].size)

    @property
    def grain_size(self) -> ByteCount | None:
        grain = self._about.grain_size
        return None if grain is None else ByteCount(grain)

    @property
    def path(self) -> Path:
        return self._about.path

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(file for layer in self._layers for file in layer.files)

    @property
    def disk_uuid(self) -> str | None:
        return self._about.disk_uuid

    @property
    def change_mark(self) -> str | None:
        return self._about.change_mark

    def read(self, offset: int, into: memoryview) -> None:
        check_range(self, offset, len(into))
        self._fill(0, offset, into)

    def write(self, offset: int, data: memoryview) -> None:
        check_range(self, offset, len(data))
        check_writable(self, False)

    def zero(self, offset: int, length: int) -> None:
        check_range(self, offset, length)
        check_writable(self, False)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        check_range(self, offset, length)
        return merged(self._kinds(0, offset, length))

    def flush(self) -> None:
        """Nothing is ever written."""

    def allocated_bytes(self) -> ByteCount:
        runs = self._kinds(0, 0, self.size)
        return ByteCount(sum(length for _, length, data in runs if data))

    def close(self) -> None:
        with self._closing:
            closed, self._closed = self._closed, True
        if not closed:
            close_all(self._layers)

    def _fill(self, depth: int, offset: int, into: memoryview) -> None:
        layer, inside = self._within(depth, offset, len(into))
        zero_memory(into[inside:])
        if layer is None:
            return
        for piece in layer.pieces(offset, inside):
            part = into[piece.offset - offset : piece.offset - offset + piece.length]
            if piece.held is Held.DATA:
                layer.load(piece, part)
            elif piece.held is Held.ZERO:
                zero_memory(part)
            else:
                self._fill(depth + 1, piece.offset, part)

    def _kinds(self, depth: int, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """(offset, length, whether data) of the range as the layers from `depth` down show it."""
        layer, inside = self._within(depth, offset, length)
        if layer is not None:
            for piece in layer.pieces(offset, inside):
                if piece.held is Held.ABSENT:
                    yield from self._kinds(depth + 1, piece.offset, piece.length)
                else:
                    yield piece.offset, piece.length, piece.held is Held.DATA
        if inside < length:
            yield offset + inside, length - inside, False

    def _within(self, depth: int, offset: int, length: int) -> tuple[Layer | None, int]:
        """(the layer, how many bytes of the range it has)."""
        if depth == len(self._layers):
            return None, 0
        layer = self._layers[depth]
        return layer, max(0, min(length, layer.size - offset))


def close_all(layers: Sequence[Layer]) -> None:
    """Every layer is closed, whatever one of them says."""
    for layer in layers:
        layer.close()
