"""Is this the disk you meant: what an operator is shown at an adoption, and what later openings are held against.

A sync may change every byte that a fingerprint covers, partition table and superblocks included. So the
fingerprints answer for the moment of adoption, before the first byte is written; afterwards UUID, path and size
identify the disk, and a fingerprint that differs is news to show, not proof of a mix-up.
"""

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

from disks.image import Image
from drcore.limits import IDENTITY_READ_BYTES_MAX
from drcore.units import ByteCount

SECTOR: Final = 512
PARTITIONS_MAX: Final = 8
EXTENDED: Final = (0x05, 0x0F, 0x85)


@dataclass(frozen=True, slots=True)
class DiskIdentity:
    """Who a disk is; fingerprints are 16 hex digits, None where the disk has no partition table or file system."""

    disk_uuid: str | None
    path: str
    size: ByteCount
    partition_fingerprint: str | None
    file_system_fingerprint: str | None


@dataclass(frozen=True, slots=True)
class Superblock:
    """Where a file system (or container) keeps its magic number and its name for itself; offsets in bytes."""

    name: str
    magic_at: int
    magic: bytes
    fields: tuple[tuple[int, int], ...]
    """(offset, length) of UUID or serial number, and of the label where it stands fixed."""


# blkid(8) finds them in the same places; ext: Documentation/filesystems/ext4; XFS: xfs_sb; NTFS and FAT: boot sector
# ("volume serial number"); LVM: the label in sector 1; swap: mkswap(8); LUKS1 and LUKS2: the header's UUID at 168.
SUPERBLOCKS: Final = (
    Superblock("ext", 1080, b"\x53\xef", ((1128, 16), (1144, 16))),
    Superblock("xfs", 0, b"XFSB", ((32, 16), (108, 12))),
    Superblock("btrfs", 65600, b"_BHRfS_M", ((65568, 16),)),
    Superblock("ntfs", 3, b"NTFS    ", ((72, 8),)),
    Superblock("fat32", 82, b"FAT32   ", ((67, 4), (71, 11))),
    Superblock("fat16", 54, b"FAT16   ", ((39, 4), (43, 11))),
    Superblock("lvm", 512, b"LABELONE", ((544, 32),)),
    Superblock("swap", 4086, b"SWAPSPACE2", ((1036, 16), (1052, 16))),
    Superblock("luks", 0, b"LUKS\xba\xbe", ((168, 40),)),
)


def identity(image: Image) -> DiskIdentity:
    """The disk's identity as of now; reads at most 128 KiB at its start and at the start of eight partitions.

    Errors: ReadFailed.
    """
    start = _read(image, 0)
    table, partitions = _partitions(start)
    systems = []
    for offset in (0, *partitions[:PARTITIONS_MAX]):
        bytes_there = start if offset == 0 else _read(image, offset)
        systems += [offset.to_bytes(8, "big") + found for found in _superblocks(bytes_there)]
    return DiskIdentity(
        image.disk_uuid,
        str(image.path),
        image.size,
        _fingerprint(table) if table else None,
        _fingerprint(b"".join(systems)) if systems else None,
    )


def _read(image: Image, offset: int) -> bytes:
    length = max(0, min(IDENTITY_READ_BYTES_MAX, image.size - offset))
    into = bytearray(length)
    if length:
        image.read(offset, memoryview(into))
    return bytes(into)


def _fingerprint(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _partitions(start: bytes) -> tuple[bytes, list[int]]:
    """The partition table's own bytes (boot code left out) and where partitions begin, in bytes."""
    if start[510:512] != b"\x55\xaa":
        return b"", []
    entries = [start[446 + 16 * n : 462 + 16 * n] for n in range(4)]
    # The boot sector of a FAT or NTFS volume ends in the same two bytes; what stands there is no table then.
    if any(entry[0] not in (0x00, 0x80) for entry in entries):
        return b"", []
    table, places = start[440:510], []
    if start[512:520] == b"EFI PART":
        table += start[512 : 34 * SECTOR]
        (first, count, size) = struct.unpack_from("<QII", start, 584)
        if first == 2 and size == 128:
            rows = [start[1024 + 128 * n : 1152 + 128 * n] for n in range(min(count, PARTITIONS_MAX))]
            places = [
                int.from_bytes(row[32:40], "little") for row in rows if len(row) == 128 and any(row[:16])
            ]
    else:
        places = [int.from_bytes(e[8:12], "little") for e in entries if e[4] and e[4] not in EXTENDED]
    return table, [place * SECTOR for place in places if place]


def _superblocks(content: bytes) -> list[bytes]:
    found = []
    for block in SUPERBLOCKS:
        if content[block.magic_at : block.magic_at + len(block.magic)] == block.magic:
            fields = (content[at : at + length] for at, length in block.fields)
            found.append(b"\0".join((block.name.encode(), *fields)))
    return found
