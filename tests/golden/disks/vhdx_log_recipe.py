"""Recipe for log entries of a VHDX, byte by byte from [MS-VHDX] 2.3.1, and for images whose log waits to be replayed.

It shares only the checksum with the room that it tests; qemu-img replays the same images (`qemu-img check -r all`).
"""

import struct
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.vhdx_images import header_slots, sealed

MIB = 1024 * 1024
LOG_AT = MIB
SECTOR = 4096
GUID = bytes(range(1, 17))


def entry(
    sequence: int,
    tail: int,
    sectors: Sequence[tuple[int, bytes | int]],
    *,
    guid: bytes = GUID,
    flushed: int = 0,
    last: int = 0,
) -> bytes:
    """An entry that writes these sectors, or zeroes where a length stands instead of bytes."""
    descriptors, data = b"", b""
    for offset, content in sectors:
        if isinstance(content, int):
            descriptors += struct.pack("<4sIQQQ", b"zero", 0, content, offset, sequence)
            continue
        descriptors += b"desc" + content[-4:] + content[:8] + struct.pack("<QQ", offset, sequence)
        data += (
            b"data"
            + struct.pack("<I", sequence >> 32)
            + content[8:-4]
            + struct.pack("<I", sequence & 0xFFFFFFFF)
        )
    length = SECTOR + len(data)
    head = struct.pack("<4sIIIQII", b"loge", 0, length, tail, sequence, len(sectors), 0)
    raw = (head + guid + struct.pack("<QQ", flushed, last) + descriptors).ljust(SECTOR, b"\0") + data
    return sealed(raw)


def name_log(path: Path, guid: bytes = GUID) -> None:
    """Both headers name the log."""
    raw = bytearray(path.read_bytes())
    for at in header_slots():
        raw[at + 48 : at + 64] = guid
        raw[at : at + 4096] = sealed(bytes(raw[at : at + 4096]))
    path.write_bytes(raw)


def put(path: Path, places: Sequence[tuple[int, bytes]]) -> None:
    """The bytes stand in the log at these offsets, the ring's end included."""
    raw = bytearray(path.read_bytes())
    for at, content in places:
        for start in range(0, len(content), SECTOR):
            place = LOG_AT + (at + start) % MIB
            raw[place : place + SECTOR] = content[start : start + SECTOR]
    path.write_bytes(raw)
