"""What both VMDK kinds share: the descriptor as it stands in a file, and the CID that the first write changes."""

import secrets
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from disks import vmdk_layout
from disks.backing import Backing
from disks.disk import Format
from disks.errors import OpenFailed, SizeNotPossible
from disks.layout import Malformed
from disks.structures import damaged
from disks.vmdk_layout import SECTOR, Descriptor, SparseHeader
from drcore.limits import DESCRIPTOR_BYTES_MAX

RESERVED_CIDS: Final = (0, 0xFFFFFFFE, 0xFFFFFFFF)
"""No content id: the last stands for 'no parent' and VMware begins images with the one before."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a descriptor's text stands in its backing, in bytes."""

    offset: int
    length: int


class StoredDescriptor:
    """A descriptor and its place. The text keeps its length, so that nothing but the CID's digits is ever written."""

    def __init__(self, backing: Backing, place: Place) -> None:
        """Errors: ImageDamaged."""
        self._backing = backing
        self._place = place
        self._text = backing.read_bytes(place.offset, place.length)
        self.descriptor = self._decode(self._text)
        self._changed = False
        self._lock = threading.Lock()

    def fresh(self) -> None:
        """The CID is this opening's own already: the image was created by it."""
        self._changed = True

    def changing(self) -> None:
        """The CID on the medium is another one than before this opening; only the first call does anything.

        Durable before the first changed byte: who kept knowledge of the old content under the old CID must not
        find that CID over new content.
        """
        with self._lock:
            if self._changed:
                return
            text = self._other()
            self._backing.write(self._place.offset, memoryview(text))
            self._backing.sync()
            self._text, self.descriptor = text, self._decode(text)
            self._changed = True

    def _other(self) -> bytes:
        """The text with another CID."""
        for _ in range(64):
            text = vmdk_layout.change_cid(self._text, secrets.randbits(32))
            if self._decode(text).cid not in (*RESERVED_CIDS, self.descriptor.cid):
                return text
        raise self._backing.damaged(
            "the descriptor's CID",
            self._place.offset,
            "a CID that does not stand alone on its line",
            "CID=xxxxxxxx",
        )

    def _decode(self, text: bytes) -> Descriptor:
        try:
            return vmdk_layout.decode_descriptor(text, self._place.offset)
        except Malformed as error:
            raise damaged(self._backing, error) from error


def embedded(backing: Backing) -> tuple[SparseHeader, Place]:
    """A sparse file's header, and where it says that the descriptor stands. Errors: ImageDamaged."""
    try:
        header = vmdk_layout.decode_header(backing.read_bytes(0, min(backing.size, vmdk_layout.HEADER_BYTES)))
    except Malformed as error:
        raise damaged(backing, error) from error
    place = Place(header.descriptor_offset * SECTOR, header.descriptor_size * SECTOR)
    if not place.offset or place.length > DESCRIPTOR_BYTES_MAX or place.offset + place.length > backing.size:
        seen, wanted = (
            f"{place.length} bytes at {place.offset}",
            f"at most {DESCRIPTOR_BYTES_MAX} within the file",
        )
        raise backing.damaged("the embedded descriptor", 28, seen, wanted)
    return header, place


class Described:
    """Who a disk with a descriptor is, as the descriptor tells it."""

    _stored: StoredDescriptor

    @property
    def disk_uuid(self) -> str | None:
        return self._stored.descriptor.disk_uuid

    @property
    def change_mark(self) -> str | None:
        return f"{self._stored.descriptor.cid:08x}"

    def _changing(self) -> None:
        self._stored.changing()


def check_size(kind: Format, size: int, size_max: int) -> None:
    """A VMDK can hold exactly so many bytes; raises SizeNotPossible otherwise."""
    if size % SECTOR or not SECTOR <= size <= size_max:
        wanted = f"a multiple of {SECTOR} bytes, at most {size_max}"
        raise SizeNotPossible(format=kind.value, size=size, wanted=wanted)


def new_descriptor(path: Path, kind: Format, size: int, extent: str) -> bytes:
    """The text of a new image's descriptor, with fresh identities; `extent` is its line without the access word."""
    return new_descriptor_of(path, kind, size, [f"RW {size // SECTOR} {extent}"])


def new_descriptor_of(path: Path, kind: Format, size: int, extents: list[str]) -> bytes:
    """The same for a disk of several extents, each with its whole line; raises OpenFailed, SizeNotPossible."""
    content = secrets.token_bytes(12) + secrets.randbelow(0xFFFFFFF0).to_bytes(4, "big")
    create_type = kind.value.removeprefix("vmdk-")
    if any(letter in path.name for letter in '"\r\n'):
        raise OpenFailed(
            path=str(path), reason="a descriptor cannot hold a name with a quotation mark or line end"
        )
    text = vmdk_layout.NewDescriptor(
        create_type, "\n".join(extents), size // SECTOR, secrets.token_bytes(16), content,
        thin=kind is Format.VMDK_VMFS,
    ).text()  # fmt: skip
    if len(text) > DESCRIPTOR_BYTES_MAX:
        wanted = f"a descriptor of at most {DESCRIPTOR_BYTES_MAX} bytes: fewer extents or a shorter name"
        raise SizeNotPossible(format=kind.value, size=size, wanted=wanted)
    return text
