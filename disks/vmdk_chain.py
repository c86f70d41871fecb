"""Opening any VMDK: as a disk to write where it is one, else as layers: snapshots, streams, ESXi's deltas.

Source: VMware, "Virtual Disk Format 5.0", "The Descriptor File" (CID, parentCID, parentFileNameHint) and "The Extent
Description". A child tells the CID that its parent had when the child was made; a parent written to since then has
another one, and both together are no disk any more.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from disks import vmdk_flat, vmdk_layout, vmdk_sparse, vmdk_split
from disks.backing import Backing, zero_memory
from disks.disk import Format
from disks.errors import FormatNotSupported, OpenFailed, ParentUnusable
from disks.errors_vmdk import ExtentRefused, NotWritableInPlace
from disks.image import Image
from disks.layers import About, FlatLayer, Held, Layer, LayeredDisk, Piece, close_all
from disks.recognise import CREATE_TYPES, FORMATS, GUEST_DATA
from disks.structures import EMBEDDED, look
from disks.vmdk import Place, StoredDescriptor, embedded
from disks.vmdk_extents import check_length, check_lines, identity_of, open_all, open_named
from disks.vmdk_grains import GrainLayer, cowd_layer, hosted_layer, sesparse_layer
from disks.vmdk_layout import SECTOR, Descriptor, ExtentLine
from drcore.limits import DESCRIPTOR_BYTES_MAX, PARENTS_MAX

EXTENT_KINDS: Final = {
    Format.VMDK_MONOLITHIC_FLAT: ("FLAT",),
    Format.VMDK_VMFS: ("VMFS",),
    Format.VMDK_TWO_GB_FLAT: ("FLAT",),
    Format.VMDK_TWO_GB_SPARSE: ("SPARSE",),
    Format.VMDK_VMFS_SPARSE: ("VMFSSPARSE",),
    Format.VMDK_SESPARSE: ("SESPARSE",),
}
"""What a text descriptor calls the extents of each format."""
READ_ONLY: Final = (Format.VMDK_STREAM_OPTIMIZED, Format.VMDK_VMFS_SPARSE, Format.VMDK_SESPARSE)
FLAT: Final = ("FLAT", "VMFS")


class ZeroLayer:
    """An extent of kind ZERO: no file, and nothing but zeroes."""

    def __init__(self, line: ExtentLine) -> None:
        self.size = line.sectors * SECTOR

    @property
    def files(self) -> tuple[Path, ...]:
        return ()

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        yield Piece(offset, length, Held.ZERO)

    def load(self, piece: Piece, into: memoryview) -> None:
        zero_memory(into)

    def close(self) -> None:
        """Nothing is open."""


class SpannedLayer:
    """The extents of one image as a layer. Owns them, and the descriptor's backing."""

    def __init__(self, descriptor: Backing, parts: list[Layer]) -> None:
        self._descriptor = descriptor
        self.parts = parts
        self._starts = [0]
        for part in parts:
            self._starts.append(self._starts[-1] + part.size)

    @property
    def size(self) -> int:
        return self._starts[-1]

    @property
    def files(self) -> tuple[Path, ...]:
        return (self._descriptor.path, *(file for part in self.parts for file in part.files))

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        end = offset + length
        for part, start, behind in zip(self.parts, self._starts, self._starts[1:], strict=False):
            first, last = max(offset, start), min(end, behind)
            if first < last:
                for piece in part.pieces(first - start, last - first):
                    yield piece._replace(offset=piece.offset + start)

    def load(self, piece: Piece, into: memoryview) -> None:
        for part, start, behind in zip(self.parts, self._starts, self._starts[1:], strict=False):
            if start <= piece.offset < behind:
                part.load(piece._replace(offset=piece.offset - start), into)

    def close(self) -> None:
        close_all(self.parts)
        self._descriptor.close()


SPARSE_LAYERS: Final = {"SPARSE": hosted_layer, "VMFSSPARSE": cowd_layer, "SESPARSE": sesparse_layer}


def open_vmdk(backing: Backing, kind: Format) -> Image:
    """The VMDK in `backing`, whatever its kind. Takes the backing over.

    Errors: ImageDamaged, FormatNotSupported, FeatureNotSupported, ParentUnusable, ExtentRefused, OpenFailed,
    DiskInUse; NotWritableInPlace for a target that is read only by its kind or because it has a parent.
    """
    told = read_told(backing, kind)
    parent = told.parent_cid != vmdk_layout.NO_PARENT
    if backing.writable and (parent or kind in READ_ONLY):
        seen = (
            f"a snapshot, which needs its parent {told.parent_hint}" if parent else f"the format {kind.value}"
        )
        raise NotWritableInPlace(path=str(backing.path), seen=seen)
    if parent or kind in READ_ONLY:
        return _open_layers(backing, kind, told)
    if kind is Format.VMDK_MONOLITHIC_SPARSE:
        return vmdk_sparse.open_sparse(backing, kind)
    if kind in vmdk_split.KINDS:
        return vmdk_split.open_split(backing, kind)
    return vmdk_flat.open_flat(backing, kind)


def read_told(backing: Backing, kind: Format) -> Descriptor:
    """The image's descriptor, embedded or a file of its own. Errors: ImageDamaged, FormatNotSupported."""
    told = StoredDescriptor(backing, _place(backing, kind)).descriptor
    if CREATE_TYPES.get(told.create_type) is not kind:
        seen = f"a VMDK of type {told.create_type[:40]!r}, though it looks like {kind.value}"
        raise FormatNotSupported(path=str(backing.path), seen=seen, choices=FORMATS)
    return told


def _place(backing: Backing, kind: Format) -> Place:
    if kind not in EMBEDDED:
        if backing.size > DESCRIPTOR_BYTES_MAX:
            raise backing.damaged(
                "the descriptor", 0, f"{backing.size} bytes", f"at most {DESCRIPTOR_BYTES_MAX}"
            )
        return Place(0, backing.size)
    return embedded(backing)[1]


def _open_layers(top: Backing, kind: Format, told: Descriptor) -> LayeredDisk:
    """The chain from `top` down to the image without a parent, every image with the content its child was made on."""
    seen = {identity_of(top)}
    layers = [_layer(top, kind, told)]
    uuid, child, below = told.disk_uuid, top, told
    try:
        while below.parent_cid != vmdk_layout.NO_PARENT:
            child, parent_kind, below = open_parent(child, below, seen)
            layers.append(_layer(child, parent_kind, below))
            uuid = uuid or below.disk_uuid
            if layers[-1].size != layers[0].size:
                raise ParentUnusable(
                    path=str(top.path), parent=child.path.name, seen=f"one of {layers[-1].size} bytes",
                    wanted=f"one of {layers[0].size} bytes, as its child",
                )  # fmt: skip
    except BaseException:
        close_all(layers)
        raise
    about = About(top.path, kind, grain_of(layers[0]), uuid, f"{told.cid:08x}")
    return LayeredDisk(about, layers)


def open_parent(
    child: Backing, told: Descriptor, seen: set[tuple[int, int]]
) -> tuple[Backing, Format, Descriptor]:
    """The parent that the child's descriptor tells, open as the child is; closed again where it is not the one."""
    name = told.parent_hint or ""

    def unusable(found: str, wanted: str) -> ParentUnusable:
        return ParentUnusable(path=str(child.path), parent=name or "(unnamed)", seen=found, wanted=wanted)

    if not name:
        raise unusable(f"no parentFileNameHint beside parentCID={told.parent_cid:08x}", "the parent's name")
    if re.search(GUEST_DATA, name):
        raise unusable("the name of an extent", "the name of a descriptor")
    if len(seen) >= PARENTS_MAX:
        raise unusable(f"more than {PARENTS_MAX} images in the chain", f"at most {PARENTS_MAX}")
    try:
        parent = open_named(child.path, name, child.access)
    except (OpenFailed, ExtentRefused) as error:
        raise unusable(error.reason, "a plain file in the same directory") from error
    try:
        if identity_of(parent) in seen:
            raise unusable("an image that is in the chain already", "a chain that ends")
        seen.add(identity_of(parent))
        found = look(parent)
        if found.kind is None or found.kind not in CREATE_TYPES.values():
            raise unusable(found.words, "a VMDK")
        below = read_told(parent, found.kind)
        if below.cid != told.parent_cid:
            wanted = f"CID={told.parent_cid:08x}: the parent as it was when its child was made"
            raise unusable(f"CID={below.cid:08x}, written to since", wanted)
        return parent, found.kind, below
    except BaseException:
        parent.close()
        raise


def _layer(backing: Backing, kind: Format, told: Descriptor) -> Layer:
    """One image as a layer; owns the backing, which is closed when it fails."""
    try:
        if kind in EMBEDDED:
            return hosted_layer(backing)
        check_lines(backing.path, told, (*EXTENT_KINDS[kind], "ZERO"), writable=False)
        parts: list[Layer] = []
        try:
            lines = [line for line in told.extents if line.kind != "ZERO"]
            open_all(backing, lines, lambda extent, line: parts.append(_part(extent, line)))
            files = iter(parts)
            whole = [ZeroLayer(line) if line.kind == "ZERO" else next(files) for line in told.extents]
            return SpannedLayer(backing, whole)
        except BaseException:
            close_all(parts)
            raise
    except BaseException:
        backing.close()
        raise


def _part(extent: Backing, line: ExtentLine) -> Layer:
    try:
        if line.kind in FLAT:
            check_length(extent, line)
            return FlatLayer(extent, line.offset * SECTOR, line.sectors * SECTOR)
        layer = SPARSE_LAYERS[line.kind](extent)
        if layer.size != line.sectors * SECTOR:
            wanted = f"{line.sectors}, as the descriptor says"
            raise extent.damaged("the capacity", 12, f"{layer.size // SECTOR} sectors", wanted)
        return layer
    except BaseException:
        extent.close()
        raise


def grain_of(layer: Layer) -> int | None:
    """The unit of allocation of a layer in bytes, None for a flat one."""
    if isinstance(layer, SpannedLayer):
        return grain_of(layer.parts[0])
    return layer.grains.grain * SECTOR if isinstance(layer, GrainLayer) else None
