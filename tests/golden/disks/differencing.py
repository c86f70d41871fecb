"""Recipe for a differencing VHD, byte by byte from the VHD specification 1.0: no tool at hand makes one.

Sections: "Hard Disk Footer Format", "Dynamic Disk Header Format", "Block Allocation Table and Data Blocks". It shares
no code with the room that it tests. 7-Zip and vhdiinfo are the foreign readers that judge it.
"""

import os
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

SECTOR = 512
BLOCK = 2 * 1024 * 1024
EPOCH = 946_684_800
NAMES = {b"W2ru": "utf-16-le", b"W2ku": "utf-16-le"}


def sealed(structure: bytes, at: int) -> bytes:
    """The structure with its checksum at `at`: the one's complement of the sum of all other bytes."""
    blank = structure[:at] + bytes(4) + structure[at + 4 :]
    return structure[:at] + struct.pack(">I", ~sum(blank) & 0xFFFFFFFF) + structure[at + 4 :]


def footer(size: int, unique_id: bytes, disk_type: int = 4) -> bytes:
    """A footer whose header follows it; the geometry is left at one that any disk has."""
    fields = struct.pack(
        ">8sIIQI4sI4sQQHBBII16sB",
        b"conectix", 2, 0x00010000, SECTOR, 700_000_000, b"win ", 0x000A0000, b"Wi2k", size, size, 1024, 16, 63,
        disk_type, 0, unique_id, 0,
    )  # fmt: skip
    return sealed(fields.ljust(SECTOR, b"\0"), 64)


def header(
    size: int,
    parent_id: bytes,
    parent_time: int,
    parent_name: str,
    locators: Mapping[bytes, tuple[int, bytes]],
) -> bytes:
    """The dynamic header behind the footer's copy, table at 4096."""
    fields = struct.pack(
        ">8sQQIIII16sII",
        b"cxsparse", 2**64 - 1, 4096, 0x00010000, -(-size // BLOCK), BLOCK, 0, parent_id, parent_time, 0,
    )  # fmt: skip
    fields += parent_name.encode("utf-16-be").ljust(512, b"\0")
    for platform, (offset, name) in locators.items():
        fields += struct.pack(">4sIIIQ", platform, SECTOR, len(name), 0, offset)
    return sealed(fields.ljust(1024, b"\0"), 36)


def make(
    child: Path,
    parent: Path,
    sectors: Mapping[int, bytes],
    *,
    names: Mapping[bytes, str] | None = None,
    unique_id: bytes | None = None,
    parent_time: int | None = None,
) -> Path:
    """A child that holds these sectors by number; everything else shows the parent."""
    with parent.open("rb") as file:
        file.seek(-SECTOR, os.SEEK_END)
        below = file.read(SECTOR)
    size = int.from_bytes(below[48:56], "big")
    if names is None:
        names = {b"W2ru": f".\\{parent.name}", b"W2ku": f"C:\\machines\\{parent.name}"}
    locators, content = {}, b""
    for number, (platform, name) in enumerate(names.items()):
        raw = name.encode(NAMES.get(platform, "latin-1"))
        locators[platform] = (1536 + number * SECTOR, raw)
        content += raw.ljust(SECTOR, b"\0")
    time = int(parent.stat().st_mtime) - EPOCH if parent_time is None else parent_time
    blocks = sorted({number * SECTOR // BLOCK for number in sectors})
    table = [0xFFFFFFFF] * -(-size // BLOCK)
    at = 4096 + -(-len(table) * 4 // SECTOR) * SECTOR
    data = b""
    for block in blocks:
        table[block] = (at + len(data)) // SECTOR
        bits, body = bytearray(SECTOR), bytearray(BLOCK)
        for number, held in sectors.items():
            if number * SECTOR // BLOCK == block:
                within = number % (BLOCK // SECTOR)
                bits[within // 8] |= 0x80 >> within % 8
                body[within * SECTOR : (within + 1) * SECTOR] = held
        data += bytes(bits) + bytes(body)
    end = footer(size, unique_id or os.urandom(16))
    start = end + header(size, below[68:84], time, parent.name, locators) + content
    raw_table = b"".join(entry.to_bytes(4, "big") for entry in table)
    child.write_bytes(start.ljust(4096, b"\0") + raw_table.ljust(at - 4096, b"\xff") + data + end)
    return child


def read_by_7zip(child: Path) -> bytes:
    """The content as 7-Zip reads it, which finds the parents by itself and honours every bit of the bitmaps."""
    return subprocess.run(["7z", "x", "-so", "-tVHD", str(child)], check=True, capture_output=True).stdout


def told_by_libvhdi(child: Path) -> str:
    """What vhdiinfo says. (libvhdi 20210425 reads bitmaps by whole bytes, so it is no judge of the content.)"""
    return subprocess.run(["vhdiinfo", str(child)], check=True, capture_output=True, text=True).stdout
