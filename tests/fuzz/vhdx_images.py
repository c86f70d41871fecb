"""What tests need to harm a VHDX so that its checksums stay right: the seal of its structures, and where they lie."""

import struct

from _native.crc32c import crc32c

KIB, MIB = 1024, 1024 * 1024
REGION_TABLES = (192 * KIB, 256 * KIB)


def header_slots() -> tuple[int, int]:
    """Where the two headers lie."""
    return 64 * KIB, 128 * KIB


def sealed(structure: bytes) -> bytes:
    """The structure with the right checksum at byte 4."""
    blank = structure[:4] + bytes(4) + structure[8:]
    return structure[:4] + struct.pack("<I", crc32c(blank)) + structure[8:]


CHECKED = (
    *((at, 4 * KIB, b"head") for at in header_slots()),
    *((at, 64 * KIB, b"regi") for at in REGION_TABLES),
)
"""(offset, length, signature) of the structures with a checksum, but for those of the log."""


def seal(raw: bytearray) -> None:
    """Checksums of headers, region tables and the entry at the start of a log at 1 MiB are right again."""
    for at, length, signature in CHECKED:
        if raw[at : at + 4] == signature and at + length <= len(raw):
            raw[at : at + length] = sealed(bytes(raw[at : at + length]))
    if raw[MIB : MIB + 4] == b"loge":
        length = min(int.from_bytes(raw[MIB + 8 : MIB + 12], "little"), len(raw) - MIB)
        if length >= 64:
            raw[MIB : MIB + length] = sealed(bytes(raw[MIB : MIB + length]))
