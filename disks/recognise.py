"""Which format a file or device has: told, or plain from suffix and magic number together, never from guest bytes.

The first sectors of a raw disk or a fixed VHD belong to the guest, who may write there what looks like another
format's header (or descriptor naming other files). So a magic number alone decides nothing.
"""

import re
from pathlib import Path
from typing import Final

from disks import magic
from disks.backing import Access, Backing
from disks.disk import Format
from disks.errors import (
    FooterMissing,
    FormatContradicted,
    FormatNotSupported,
    FormatUnknown,
    OpenFailed,
)
from disks.errors_vmdk import ExtentNamed, RawLooksLikeContainer
from disks.opening import open_backing

RAW_SUFFIXES: Final = (".raw", ".img")
GUEST_DATA: Final = r"(?i)-(flat|f\d{3,}|delta|sesparse)\.vmdk$"
EXTENT_NAME: Final = r"(?i)-(flat|[fs]\d{3,}|delta|sesparse)$"
CREATE_TYPES: Final = {
    kind.value.removeprefix("vmdk-"): kind for kind in Format if kind.value.startswith("vmdk-")
}
"""What a descriptor's createType makes of it."""
CONTAINERS: Final = (
    (magic.VMDK, "the header of a sparse VMDK", ".vmdk"),
    (magic.VMDK_DESCRIPTOR, "a VMDK's descriptor", ".vmdk"),
    (magic.QCOW2, "the header of a qcow2", ".qcow2"),
    (magic.VHD, "the header of a dynamic VHD", ".vhd"),
    (magic.VHDX, "the header of a VHDX", ".vhdx"),
)
"""How images begin: magic number, in words, the suffix that goes with it."""
START_BYTES: Final = max(len(start) for start, _, _ in CONTAINERS)
FORMATS: Final = ", ".join(kind.value for kind in Format)


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
    from disks.structures import look  # here: a disk that is raw by its name is not looked at

    seen = look(backing)
    if told is not None:
        if seen.kind is told:
            return told
        raise FormatContradicted(path=path, told=told.value, seen=seen.words)
    suffix = backing.path.suffix.lower()
    if re.search(GUEST_DATA, backing.path.name) or seen.extent:
        stem = re.sub(EXTENT_NAME, "", backing.path.stem)
        descriptor = backing.path.with_name(f"{stem}.vmdk")
        words = seen.words if seen.extent else "the name of an extent that holds guest data"
        raise ExtentNamed(path=path, seen=words, family=".vmdk", choices=FORMATS, descriptor=str(descriptor))
    if not seen.family or suffix != seen.family or not seen.certain:
        name = f"the suffix {suffix}" if suffix else "no suffix"
        if seen.family and suffix == seen.family:
            raise FooterMissing(path=path, seen=f"{name} and {seen.words}", family=suffix, choices=FORMATS)
        raise FormatUnknown(path=path, seen=f"{name} and {seen.words}", family=seen.family, choices=FORMATS)
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
        start = backing.read_bytes(0, min(backing.size, START_BYTES))
    finally:
        backing.close()
    for start_bytes, words, suffix in CONTAINERS:
        if start.startswith(start_bytes):
            return RawLooksLikeContainer(path=str(path), seen=words, suffix=suffix)
    return None
