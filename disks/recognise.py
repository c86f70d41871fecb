"""Which format a file or device has: told, or plain from suffix and magic number together, never from guest bytes.

The first sectors of a raw disk or a fixed VHD belong to the guest, who may write there what looks like another
format's header (or descriptor naming other files). So a magic number alone decides nothing.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from disks import magic, vhd_layout, vmdk_layout
from disks.backing import Access, Backing
from disks.disk import Format
from disks.errors import (
    FooterMissing,
    FormatContradicted,
    FormatNotSupported,
    FormatUnknown,
    ImageDamaged,
    OpenFailed,
)
from disks.errors_vmdk import ExtentNamed, RawLooksLikeContainer
from disks.layout import Malformed
from disks.opening import open_backing
from drcore.limits import DESCRIPTOR_BYTES_MAX

RAW_SUFFIXES: Final = (".raw", ".img")
GUEST_DATA: Final = re.compile(r"-(flat|f\d{3,}|delta|sesparse)\.vmdk$", re.IGNORECASE)
EXTENT_NAME: Final = re.compile(r"-(flat|[fs]\d{3,}|delta|sesparse)$", re.IGNORECASE)
CREATE_TYPES: Final = {
    kind.value.removeprefix("vmdk-"): kind for kind in Format if kind.value.startswith("vmdk-")
}
"""What a descriptor's createType makes of it."""
EMBEDDED: Final = (Format.VMDK_MONOLITHIC_SPARSE, Format.VMDK_STREAM_OPTIMIZED)
"""Formats of one file, with the descriptor in it; no text file is one of them."""
CONTAINERS: Final = (
    (vmdk_layout.MAGIC, "the header of a sparse VMDK", ".vmdk"),
    (vmdk_layout.DESCRIPTOR_START, "a VMDK's descriptor", ".vmdk"),
    (magic.QCOW2, "the header of a qcow2", ".qcow2"),
    (vhd_layout.COOKIE, "the header of a dynamic VHD", ".vhd"),
    (magic.VHDX, "the header of a VHDX", ".vhdx"),
)
"""How images begin: magic number, in words, the suffix that goes with it."""
FORMATS: Final = ", ".join(kind.value for kind in Format)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a file's own structures say: the format, if it is one of ours, and in words."""

    kind: Format | None
    words: str
    certain: bool = True
    """False where it is said only by bytes that a guest may have written."""
    family: str = ""
    """The suffix that goes with it."""
    extent: bool = False
    """True for a part of a disk, whose descriptor is another file."""


def recognise(path: str | Path, told: Format | None) -> Format:
    """The format of the file or device at `path`.

    Errors: FormatUnknown (to be told), FormatContradicted (told, and not so), FormatNotSupported, OpenFailed.
    """
    backing = open_backing(resolve(path), Access.INSPECT)
    try:
        return classify(backing, Path(path), told)
    finally:
        backing.close()


def resolve(path: str | Path) -> Path:
    """The absolute path behind the operator's, links followed; whether it exists shows at opening."""
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise OpenFailed(path=str(path), reason=str(error)) from error


def always_raw(*names: Path) -> bool:
    """Whether one of the names says that the content is never looked at."""
    return any(name.suffix.lower() in RAW_SUFFIXES for name in names)


def classify(backing: Backing, given: Path, told: Format | None) -> Format:
    """The format of an open file or device that the operator called `given`; errors as `recognise`."""
    path = str(backing.path)
    if backing.device or always_raw(given, backing.path):
        if told not in (None, Format.RAW):
            what = (
                "a block device" if backing.device else f"a file named {RAW_SUFFIXES[0]} or {RAW_SUFFIXES[1]}"
            )
            raise FormatContradicted(path=path, told=told.value, seen=f"{what}, which is always raw")
        return Format.RAW
    if told is Format.RAW:
        return told
    seen = look(backing)
    if told is not None:
        if seen.kind is told:
            return told
        raise FormatContradicted(path=path, told=told.value, seen=seen.words)
    suffix = backing.path.suffix.lower()
    if GUEST_DATA.search(backing.path.name) or seen.extent:
        stem = EXTENT_NAME.sub("", backing.path.stem)
        descriptor = backing.path.with_name(f"{stem}.vmdk")
        words = seen.words if seen.extent else "the name of an extent that holds guest data"
        raise ExtentNamed(path=path, seen=words, choices=FORMATS, descriptor=str(descriptor))
    if not seen.family or suffix != seen.family or not seen.certain:
        name = f"the suffix {suffix}" if suffix else "no suffix"
        if seen.family and suffix == seen.family:
            raise FooterMissing(path=path, seen=f"{name} and {seen.words}", choices=FORMATS)
        raise FormatUnknown(path=path, seen=f"{name} and {seen.words}", choices=FORMATS)
    if seen.kind is None:
        raise FormatNotSupported(path=path, seen=seen.words, choices=FORMATS)
    return seen.kind


def disguised(path: str | Path) -> RawLooksLikeContainer | None:
    """A notice where the file at `path` is raw by its name and begins as a container does; it is used as raw.

    Errors: OpenFailed.
    """
    backing = open_backing(resolve(path), Access.INSPECT)
    try:
        if backing.device or not always_raw(Path(path), backing.path):
            return None
        start = backing.read_bytes(0, min(backing.size, vmdk_layout.HEADER_BYTES))
    finally:
        backing.close()
    for start_bytes, words, suffix in CONTAINERS:
        if start.startswith(start_bytes):
            return RawLooksLikeContainer(path=str(path), seen=words, suffix=suffix)
    return None


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
