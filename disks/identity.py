"""Is this the disk you meant: what an operator is shown at an adoption, and what later openings are held against.

A sync may change every byte that a fingerprint covers, partition table and superblocks included. So the
fingerprints answer for the moment of adoption, before the first byte is written; afterwards UUID, path and size
identify the disk, and a fingerprint that differs is news to show, not proof of a mix-up.
"""

import hashlib
import struct
from enum import Enum
from typing import Final
from uuid import UUID

from disks.image import Image
from drcore.limits import IDENTITY_READ_BYTES_MAX
from drcore.record import Record
from drcore.units import ByteCount

SECTOR: Final = 512
PARTITIONS_MAX: Final = 8
"""Partitions whose file systems are looked at."""
PARTITIONS_LISTED_MAX: Final = 128
EXTENDED: Final = (0x05, 0x0F, 0x85)


class DiskIdentity(Record):
    """Who a disk is; fingerprints are 16 hex digits, None where the disk has no partition table or file system."""

    disk_uuid: str | None
    path: str
    size: ByteCount
    partition_fingerprint: str | None
    file_system_fingerprint: str | None
    partition_table: str = "none"
    """For people: "GPT, 3 partitions"."""
    file_systems: tuple[str, ...] = ()
    """For people, one each: name, label, UUID or serial number, and the offset where it begins."""


class NameKind(Enum):
    """How a file system's UUID is written down."""

    UUID = "uuid"
    """16 bytes in network order."""
    SERIAL = "serial"
    """Bytes of a little-endian number."""
    TEXT = "text"


class Superblock(Record):
    """Where a file system (or container) keeps its magic number and its names for itself; (offset, length) in bytes."""

    name: str
    magic_at: int
    magic: bytes
    uuid: tuple[int, int]
    label: tuple[int, int] | None = None
    kind: NameKind = NameKind.UUID

    def text(self, content: bytes) -> str:
        """The superblock's names for people; what no terminal should see is left out."""
        start, length = self.uuid
        raw = content[start : start + length]
        if self.kind is NameKind.UUID and len(raw) == 16:
            uuid_text = str(UUID(bytes=raw))
        elif self.kind is NameKind.SERIAL:
            uuid_text = raw[::-1].hex().upper()
        else:
            uuid_text = _printable(raw)
        label = ""
        if self.label is not None:
            start, length = self.label
            label = _printable(content[start : start + length].split(b"\0")[0])
        return f"{self.name} {label!r} {uuid_text}" if label else f"{self.name} {uuid_text}"


# blkid(8) finds them in the same places; ext: Documentation/filesystems/ext4; XFS: xfs_sb; NTFS and FAT: boot sector
# ("volume serial number"); LVM: the label in sector 1; swap: mkswap(8); LUKS1 and LUKS2: the header's UUID at 168.
SUPERBLOCKS: Final = (
    Superblock("ext", 1080, b"\x53\xef", (1128, 16), (1144, 16)),
    Superblock("xfs", 0, b"XFSB", (32, 16), (108, 12)),
    Superblock("btrfs", 65600, b"_BHRfS_M", (65568, 16)),
    Superblock("ntfs", 3, b"NTFS    ", (72, 8), kind=NameKind.SERIAL),
    Superblock("fat32", 82, b"FAT32   ", (67, 4), (71, 11), NameKind.SERIAL),
    Superblock("fat16", 54, b"FAT16   ", (39, 4), (43, 11), NameKind.SERIAL),
    Superblock("lvm", 512, b"LABELONE", (544, 32), kind=NameKind.TEXT),
    Superblock("swap", 4086, b"SWAPSPACE2", (1036, 16), (1052, 16)),
    Superblock("luks", 0, b"LUKS\xba\xbe", (168, 40), kind=NameKind.TEXT),
)


def identity(image: Image) -> DiskIdentity:
    """The disk's identity as of now; reads at most 128 KiB at its start and at the start of eight partitions.

    Errors: ReadFailed.
    """
    start = _read(image, 0)
    table = _partitions(start)
    fingerprinted, shown = [], []
    for offset in (0, *table.places[:PARTITIONS_MAX]):
        bytes_there = start if offset == 0 else _read(image, offset)
        for block in _superblocks(bytes_there):
            fingerprinted.append(offset.to_bytes(8, "big") + _names(block, bytes_there))
            shown.append(f"{block.text(bytes_there)} at offset {offset}")
    return DiskIdentity(
        image.disk_uuid,
        str(image.path),
        image.size,
        _fingerprint(table.content) if table.content else None,
        _fingerprint(b"".join(fingerprinted)) if fingerprinted else None,
        table.text,
        tuple(shown),
    )


def _read(image: Image, offset: int) -> bytes:
    length = max(0, min(IDENTITY_READ_BYTES_MAX, image.size - offset))
    into = bytearray(length)
    if length:
        image.read(offset, memoryview(into))
    return bytes(into)


def _fingerprint(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _printable(raw: bytes) -> str:
    return "".join(
        char
        for char in raw.decode("utf-8", "replace").rstrip("\0 ")
        if char.isprintable() and char != "\ufffd"
    )


class _Table(Record):
    """The partition table's own bytes (boot code left out) and where partitions begin, in bytes."""

    content: bytes
    places: list[int]
    kind: str

    @property
    def text(self) -> str:
        if not self.kind:
            return "none"
        return f"{self.kind}, {len(self.places)} partition{'' if len(self.places) == 1 else 's'}"


def _partitions(start: bytes) -> _Table:
    if start[510:512] != b"\x55\xaa":
        return _Table(b"", [], "")
    entries = [start[446 + 16 * n : 462 + 16 * n] for n in range(4)]
    # The boot sector of a FAT or NTFS volume ends in the same two bytes; what stands there is no table then.
    if any(entry[0] not in (0x00, 0x80) for entry in entries):
        return _Table(b"", [], "")
    table, places, kind = start[440:510], [], "MBR"
    if start[512:520] == b"EFI PART":
        kind = "GPT"
        table += start[512 : 34 * SECTOR]
        (first, count, size) = struct.unpack_from("<QII", start, 584)
        if first == 2 and size == 128:
            rows = [start[1024 + 128 * n : 1152 + 128 * n] for n in range(min(count, PARTITIONS_LISTED_MAX))]
            places = [
                int.from_bytes(row[32:40], "little") for row in rows if len(row) == 128 and any(row[:16])
            ]
    else:
        places = [int.from_bytes(e[8:12], "little") for e in entries if e[4] and e[4] not in EXTENDED]
    return _Table(table, [place * SECTOR for place in places if place], kind)


def _superblocks(content: bytes) -> list[Superblock]:
    return [
        block
        for block in SUPERBLOCKS
        if content[block.magic_at : block.magic_at + len(block.magic)] == block.magic
    ]


def _names(block: Superblock, content: bytes) -> bytes:
    ranges = (block.uuid, block.label) if block.label else (block.uuid,)
    return b"\0".join((block.name.encode(), *(content[at : at + length] for at, length in ranges)))
