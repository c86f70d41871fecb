"""The front of the room: recognise, open and create disks of every format, and tell what they are.

A format is one layout module (bytes, pure) and one module of input and output; here its name meets them.
"""

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from disks.backing import Access, Backing
from disks.disk import CREATED, Disk, Format
from disks.errors import FormatContradicted, FormatNotSupported, ImageDamaged, ParentUnusable, SizeNotPossible
from disks.errors_vmdk import WrittenWholeOnly
from disks.image import Image
from disks.linear import create_raw, open_raw
from disks.opening import open_backing
from disks.recognise import CREATE_TYPES, FORMATS, always_raw, classify, disguised, recognise, resolve
from drcore.limits import DISK_BYTES_MAX
from drcore.record import Record
from drcore.units import ByteCount

if TYPE_CHECKING:
    from disks.check import Checker, Finding
    from disks.identity import DiskIdentity

__all__ = [
    "CheckedImage",
    "Image",
    "ImageInfo",
    "change_mark",
    "check",
    "create",
    "disguised",
    "identity",
    "inspect",
    "look",
    "open_source",
    "open_target",
    "recognise",
    "write_whole",
]


class ImageInfo(Record):
    """What `info` shows of an image; sizes in bytes, `grain_size` None where the format has none."""

    format: Format
    virtual_size: ByteCount
    allocated_bytes: ByteCount
    grain_size: ByteCount | None


class CheckedImage(Record):
    """What `info --check` shows: `info` is None where the image is too damaged to be opened."""

    info: ImageInfo | None
    findings: "tuple[Finding, ...]"

    @property
    def damaged(self) -> bool:
        """Whether anything found may cost content."""
        from disks.check import Severity

        return any(finding.severity is Severity.DAMAGE for finding in self.findings)


def _later(place: str) -> Any:
    """The function that `place` names, a module of this room and a name in it; imported when it is called.

    A format's module costs only those who have a disk of it: all of them together take longer to import than 200 MiB
    take to compare.
    """
    module, name = place.split(".")

    def call(*arguments: Any) -> Any:
        return getattr(import_module(f"disks.{module}"), name)(*arguments)

    return call


Opener = Callable[[Backing, Format], Image]
Creator = Callable[[Path, Format, int], Image]

OPENERS: Final[dict[Format, Opener]] = {
    Format.RAW: open_raw,
    Format.VHD_FIXED: _later("vhd.open_fixed"),
    Format.VHD_DYNAMIC: _later("vhd.open_dynamic"),
    Format.VMDK_MONOLITHIC_SPARSE: _later("vmdk_chain.open_vmdk"),
    Format.VMDK_MONOLITHIC_FLAT: _later("vmdk_chain.open_vmdk"),
    Format.VMDK_VMFS: _later("vmdk_chain.open_vmdk"),
    Format.VMDK_STREAM_OPTIMIZED: _later("vmdk_chain.open_vmdk"),
    Format.VMDK_TWO_GB_SPARSE: _later("vmdk_chain.open_vmdk"),
    Format.VMDK_TWO_GB_FLAT: _later("vmdk_chain.open_vmdk"),
    Format.VMDK_VMFS_SPARSE: _later("vmdk_chain.open_vmdk"),
    Format.VMDK_SESPARSE: _later("vmdk_chain.open_vmdk"),
    Format.QCOW2: _later("qcow2.open_qcow2"),
    Format.VHD_DIFFERENCING: _later("vhd_differencing.open_differencing"),
    Format.VHDX_FIXED: _later("vhdx.open_vhdx"),
    Format.VHDX_DYNAMIC: _later("vhdx.open_vhdx"),
}
CREATORS: Final[dict[Format, Creator]] = {
    Format.RAW: create_raw,
    Format.VHD_FIXED: _later("vhd.create_fixed"),
    Format.VHD_DYNAMIC: _later("vhd.create_dynamic"),
    Format.VHDX_FIXED: _later("vhdx.create_vhdx"),
    Format.VHDX_DYNAMIC: _later("vhdx.create_vhdx"),
    Format.VMDK_MONOLITHIC_SPARSE: _later("vmdk_sparse.create_sparse"),
    Format.VMDK_MONOLITHIC_FLAT: _later("vmdk_flat.create_flat"),
    Format.VMDK_VMFS: _later("vmdk_flat.create_flat"),
    Format.VMDK_TWO_GB_SPARSE: _later("vmdk_split.create_split"),
    Format.VMDK_TWO_GB_FLAT: _later("vmdk_split.create_split"),
}
CHECKERS: "Final[dict[Format, Checker]]" = {
    **dict.fromkeys(CREATE_TYPES.values(), _later("vmdk_check.check_vmdk")),
    Format.QCOW2: _later("qcow2_check.check_qcow2"),
    Format.VHD_FIXED: _later("vhd_check.check_fixed"),
    Format.VHD_DYNAMIC: _later("vhd_check.check_dynamic"),
    Format.VHD_DIFFERENCING: _later("vhd_check.check_dynamic"),
    Format.VHDX_FIXED: _later("vhdx_check.check_vhdx"),
    Format.VHDX_DYNAMIC: _later("vhdx_check.check_vhdx"),
}
"""Formats that have more to check than what opening them does."""


def open_source(path: str | Path, told: Format | None = None) -> Image:
    """The disk at `path` is open for reading under a shared lock.

    Errors: OpenFailed; DiskInUse while it is mounted read-write or locked by a writer; FormatUnknown,
    FormatContradicted, FormatNotSupported; ImageDamaged.
    """
    return _open(path, told, Access.SOURCE)


def open_target(path: str | Path, told: Format | None = None) -> Image:
    """The disk at `path` is open for reading and writing in place under an exclusive lock.

    Errors: as `open_source`; DiskInUse too while it is mounted at all, held, attached to a loop device or locked.
    """
    return _open(path, told, Access.TARGET)


def create(path: str | Path, kind: Format, size: int) -> Image:
    """A new, sparse disk of exactly `size` bytes that reads as zeroes is open as a target, and durable under its name.

    Errors: TargetExists, SizeNotPossible, FormatContradicted (a name that always means raw), NoSpace, OpenFailed.
    """
    final = resolve(Path(path).parent) / Path(path).name
    if kind is Format.VMDK_STREAM_OPTIMIZED:
        raise WrittenWholeOnly(path=str(final), format=kind.value)
    if kind not in CREATORS:
        raise FormatNotSupported(
            path=str(final),
            seen=f"{kind.value}, which is never created",
            choices=", ".join(one.value for one in CREATED),
        )
    _check_name(final, kind)
    if not 0 <= size <= DISK_BYTES_MAX:
        raise SizeNotPossible(format=kind.value, size=size, wanted=f"at most {DISK_BYTES_MAX} bytes")
    return CREATORS[kind](final, kind, size)


def write_whole(
    path: str | Path, source: Disk, on_bytes: Callable[[int], None], verify: Callable[[Disk], None]
) -> None:
    """A new streamOptimized VMDK at `path` reads as `source` and is durable: the one format that is written whole.

    `on_bytes` and `verify`, and errors: as `vmdk_stream.write_stream`; FormatContradicted as `create`.
    """
    final = resolve(Path(path).parent) / Path(path).name
    _check_name(final, Format.VMDK_STREAM_OPTIMIZED)
    from disks import vmdk_stream  # here, as with `_later`

    vmdk_stream.write_stream(final, source, on_bytes, verify)


def look(path: str | Path, told: Format | None = None) -> Image:
    """The image at `path` is open for reading without a lock, beside whoever writes to it.

    What it reads of a block that is being written has no meaning; the caller knows which those are. Errors: as
    `inspect`.
    """
    return _open(path, told, Access.INSPECT)


def inspect(path: str | Path, told: Format | None = None) -> ImageInfo:
    """What the image at `path` is, without locking it: true as of now, even while somebody writes.

    Errors: OpenFailed, FormatUnknown, FormatContradicted, FormatNotSupported, ImageDamaged.
    """
    image = _open(path, told, Access.INSPECT)
    try:
        return ImageInfo(image.format, image.size, image.allocated_bytes(), image.grain_size)
    finally:
        image.close()


def check(path: str | Path, told: Format | None = None) -> CheckedImage:
    """What is wrong with the structure of the image at `path`, read under a shared lock.

    Guest data is read where it is compressed and nowhere else: only unpacking tells whether it can be.

    Errors: as `open_source`, but damage and a parent that cannot be used are findings.
    """
    backing = open_backing(resolve(path), Access.SOURCE)
    try:
        return _check(backing, Path(path), told)
    finally:
        backing.close()


def identity(image: Image) -> "DiskIdentity":
    """Who the disk is, as of now: UUID, size, fingerprints. Errors: ReadFailed."""
    from disks import identity as identities  # here: who compares does not ask

    return identities.identity(image)


def change_mark(image: Image) -> str | None:
    """The format's own change mark (VMDK: the CID as eight hex digits), None where the format has none."""
    return image.change_mark


def _check_name(final: Path, kind: Format) -> None:
    if kind is not Format.RAW and always_raw(final):
        seen = f"a name that ends in {final.suffix}, which is always raw"
        raise FormatContradicted(path=str(final), told=kind.value, seen=seen)


def _open(path: str | Path, told: Format | None, access: Access) -> Image:
    backing = open_backing(resolve(path), access)
    try:
        kind = classify(backing, Path(path), told)
        if kind not in OPENERS:
            raise FormatNotSupported(path=str(backing.path), seen=kind.value, choices=FORMATS)
        return OPENERS[kind](backing, kind)
    except BaseException:
        backing.close()
        raise


def _check(backing: Backing, given: Path, told: Format | None) -> CheckedImage:
    from disks.check import collect

    def findings() -> "Iterator[Finding]":
        kind = classify(backing, given, told)
        if kind in CHECKERS:
            yield from CHECKERS[kind](backing, kind)

    found = collect(findings())
    try:
        # What opening refuses is damage too, even where the checker saw none.
        return CheckedImage(inspect(given, told), found)
    except (ImageDamaged, ParentUnusable) as error:
        checked = CheckedImage(None, found)
        return checked if checked.damaged else CheckedImage(None, found + collect(_raised(error)))


def _raised(error: ImageDamaged | ParentUnusable) -> "Iterator[Finding]":
    yield from ()
    raise error
