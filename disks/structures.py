"""What a file's own structures say that it is: magic numbers, footers, descriptors.

It decides nothing: `recognise` does, and asks only where a name does not tell already that the file is raw.
"""

from typing import Final

from disks import magic, vhd_layout, vmdk_layout
from disks.backing import Backing
from disks.disk import Format
from disks.errors import ImageDamaged
from disks.layout import Malformed
from disks.recognise import CREATE_TYPES
from drcore.limits import DESCRIPTOR_BYTES_MAX
from drcore.record import Record

EMBEDDED: Final = (Format.VMDK_MONOLITHIC_SPARSE, Format.VMDK_STREAM_OPTIMIZED)
"""Formats of one file, with the descriptor in it; no text file is one of them."""


class Seen(Record):
    """What a file's own structures say: the format, if it is one of ours, and in words."""

    kind: Format | None
    words: str
    certain: bool = True
    """False where it is said only by bytes that a guest may have written."""
    family: str = ""
    """The suffix that goes with it."""
    extent: bool = False
    """True for a part of a disk, whose descriptor is another file."""


def look(backing: Backing) -> Seen:
    """What the structures of a file say; a VHD's footer at the end goes before anything at the start."""
    if backing.size < vhd_layout.OLD_FOOTER_BYTES:
        start = backing.read_bytes(0, backing.size)
        return _text(backing, start) if start.startswith(vmdk_layout.DESCRIPTOR_START) else _nothing(start)
    found = vhd_footer(backing)
    if found is not None:
        return _vhd(found[0])
    start = backing.read_bytes(0, min(backing.size, vmdk_layout.HEADER_BYTES))
    if start.startswith(vmdk_layout.MAGIC) and len(start) == vmdk_layout.HEADER_BYTES:
        return _sparse(backing, start)
    if start.startswith(magic.VHDX):
        return _vhdx(backing)
    if start.startswith(vmdk_layout.ESX_MAGIC):
        return Seen(None, "the header of a vmfsSparse extent", family=".vmdk", extent=True)
    if start.startswith(magic.SE_SPARSE):
        return Seen(None, "the header of an seSparse extent", family=".vmdk", extent=True)
    if start.startswith(magic.QCOW2):
        return Seen(Format.QCOW2, "the header of a qcow2", family=".qcow2")
    if start.startswith(vmdk_layout.DESCRIPTOR_START):
        return _text(backing, start)
    if start.startswith(vhd_layout.COOKIE) and len(start) == vhd_layout.FOOTER_BYTES:
        return _vhd_copy(start)
    return _nothing(start)


def vhd_footer(backing: Backing) -> tuple[vhd_layout.Footer, int] | None:
    """The footer at the end of the file, of 512 or 511 bytes, and its length; None where no sound one is."""
    for length in (vhd_layout.FOOTER_BYTES, vhd_layout.OLD_FOOTER_BYTES):
        at = backing.size - length
        if at < 0:
            continue
        raw = backing.read_bytes(at, length)
        if raw.startswith(vhd_layout.COOKIE):
            try:
                return vhd_layout.decode_footer(raw, at), length
            except Malformed:
                return None
    return None


def read_descriptor(backing: Backing) -> tuple[bytes, vmdk_layout.Descriptor]:
    """A descriptor file's text and what it says; raises Malformed, ImageDamaged."""
    if backing.size > DESCRIPTOR_BYTES_MAX:
        raise backing.damaged("the descriptor", 0, f"{backing.size} bytes", f"at most {DESCRIPTOR_BYTES_MAX}")
    text = backing.read_bytes(0, backing.size)
    return text, vmdk_layout.decode_descriptor(text, 0)


def damaged(backing: Backing, error: Malformed) -> ImageDamaged:
    """The coded error for a malformed structure of this file."""
    return backing.damaged(error.structure, error.offset, error.seen, error.wanted)


def _vhd(footer: vhd_layout.Footer) -> Seen:
    match footer.disk_type:
        case vhd_layout.DiskType.FIXED:
            return Seen(Format.VHD_FIXED, "the footer of a fixed VHD", family=".vhd")
        case vhd_layout.DiskType.DYNAMIC:
            return Seen(Format.VHD_DYNAMIC, "the footer of a dynamic VHD", family=".vhd")
        case vhd_layout.DiskType.DIFFERENCING:
            return Seen(Format.VHD_DIFFERENCING, "the footer of a differencing VHD", family=".vhd")


def _vhd_copy(start: bytes) -> Seen:
    try:
        footer = vhd_layout.decode_footer(start, 0)
    except Malformed as error:
        return Seen(None, f"what should be a VHD, but {error}", certain=False, family=".vhd")
    kinds = {
        vhd_layout.DiskType.DYNAMIC: Format.VHD_DYNAMIC,
        vhd_layout.DiskType.DIFFERENCING: Format.VHD_DIFFERENCING,
    }
    kind = kinds.get(footer.disk_type)
    return Seen(
        kind, "a VHD footer's copy at the start but no sound footer at the end", certain=False, family=".vhd"
    )


def _vhdx(backing: Backing) -> Seen:
    from disks.vhdx_file import load  # here: its modules take as long to import as all others together

    try:
        metadata = load(backing).metadata
    except Malformed as error:
        raise damaged(backing, error) from error
    if metadata.has_parent:
        return Seen(None, "a differencing VHDX", family=".vhdx")
    if metadata.fixed:
        return Seen(Format.VHDX_FIXED, "the structures of a fixed VHDX", family=".vhdx")
    return Seen(Format.VHDX_DYNAMIC, "the structures of a dynamic VHDX", family=".vhdx")


def _sparse(backing: Backing, start: bytes) -> Seen:
    try:
        header = vmdk_layout.decode_header(start)
    except Malformed as error:
        raise damaged(backing, error) from error
    if _no_descriptor(backing, header.descriptor_offset * vmdk_layout.SECTOR):
        return Seen(None, "a sparse VMDK extent without a descriptor", family=".vmdk", extent=True)
    if header.stream:
        return Seen(Format.VMDK_STREAM_OPTIMIZED, "the header of a streamOptimized VMDK", family=".vmdk")
    return Seen(Format.VMDK_MONOLITHIC_SPARSE, "the header of a monolithicSparse VMDK", family=".vmdk")


def _no_descriptor(backing: Backing, at: int) -> bool:
    """Whether a sparse extent has none: no place for it or, as qemu leaves it, nothing there."""
    if at == 0:
        return True
    return at + vmdk_layout.SECTOR <= backing.size and not any(backing.read_bytes(at, vmdk_layout.SECTOR))


def _text(backing: Backing, start: bytes) -> Seen:
    try:
        create_type = read_descriptor(backing)[1].create_type
    except Malformed as error:
        raise damaged(backing, error) from error
    kind = CREATE_TYPES.get(create_type)
    words = f"a VMDK descriptor that says {create_type[:40]!r}"
    return Seen(None if kind in EMBEDDED else kind, words, family=".vmdk")


def _nothing(start: bytes) -> Seen:
    words = f"no magic number that is known (it begins with {start[:8].hex(' ')})"
    return Seen(None, words if start else "an empty file")
