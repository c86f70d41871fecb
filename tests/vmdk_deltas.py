"""ESXi's delta extents, made by hand: no tool here makes them, qemu-img and dissect.hypervisor read them back.

The recipe of vmfsSparse is VMware, "Virtual Disk Format 5.0", "ESX Server Sparse Extents"; that of seSparse is what
qemu's block/vmdk.c documents. Nothing is taken from the code under test.
"""

import struct
from collections.abc import Mapping
from pathlib import Path

SECTOR = 512
GRAIN_BYTES = 4096
DESCRIPTOR = """# Disk DescriptorFile
version=1
encoding="UTF-8"
CID={cid:08x}
parentCID={parent_cid:08x}
createType="{kind}"
{hint}
# Extent description
RW {sectors} {extent} "{name}"

# The Disk Data Base
#DDB

"""
EXTENTS = {"vmfsSparse": ("VMFSSPARSE", "-delta.vmdk"), "seSparse": ("SESPARSE", "-sesparse.vmdk")}


def descriptor(path: Path, kind: str, size: int, parent: Path | None, cid: int = 0x1234ABCD) -> Path:
    """The text at `path` and the name of its extent, to be written. The parent's CID is read from it."""
    extent, suffix = EXTENTS[kind]
    name = path.stem + suffix
    parent_cid, hint = 0xFFFFFFFF, ""
    if parent is not None:
        text = parent.read_bytes()[:65536]
        parent_cid = int(text.split(b"\nCID=", 1)[1].split(b"\n", 1)[0], 16)
        hint = f'parentFileNameHint="{parent.name}"\n'
    path.write_text(
        DESCRIPTOR.format(
            cid=cid,
            parent_cid=parent_cid,
            kind=kind,
            hint=hint,
            sectors=size // SECTOR,
            extent=extent,
            name=name,
        )
    )
    return path.with_name(name)


def vmfs_sparse(
    path: Path, size: int, grains: Mapping[int, bytes], parent: Path | None = None, grain_sectors: int = 8
) -> Path:
    """A vmfsSparse disk whose grains (by number, `grain_sectors` each) hold these bytes; all else is the parent's."""
    extent = descriptor(path, "vmfsSparse", size, parent)
    grain, entries = grain_sectors * SECTOR, 4096
    sectors = size // SECTOR
    tables = -(-sectors // (grain_sectors * entries))
    directory = [0] * tables
    free = 4 + -(-tables * 4 // SECTOR)
    body = {}
    for number in sorted({each // entries for each in grains}):
        directory[number], free = free, free + entries * 4 // SECTOR
        table = [0] * entries
        for each in sorted(each for each in grains if each // entries == number):
            table[each % entries] = free
            body[free] = grains[each].ljust(grain, b"\0")
            free += grain_sectors
        body[directory[number]] = struct.pack(f"<{entries}I", *table)
    header = struct.pack("<4s7I", b"COWD", 1, 3, sectors, grain_sectors, 4, tables, free)
    body[0] = header.ljust(2048, b"\0")
    body[4] = struct.pack(f"<{tables}I", *directory)
    _write(extent, body, free)
    return path


def se_sparse(
    path: Path,
    size: int,
    grains: Mapping[int, bytes],
    parent: Path | None = None,
    zeroes: Mapping[int, int] | None = None,
) -> Path:
    """An seSparse disk whose 4 KiB grains hold these bytes; `zeroes` gives grains that read as zeroes their type."""
    extent = descriptor(path, "seSparse", size, parent)
    zeroes = zeroes or {}
    sectors, entries = size // SECTOR, 4096
    tables = -(-sectors // (8 * entries))
    directory_at, directory_sectors = 2048, -(-tables * 8 // SECTOR)
    used = sorted({each // entries for each in (*grains, *zeroes)})
    tables_at = -(-(directory_at + directory_sectors) // 8) * 8
    tables_sectors = 64 * max(1, len(used))
    grains_at = tables_at + tables_sectors
    directory, body, free = [0] * tables, {}, 0
    for index, number in enumerate(reversed(used)):  # tables need not lie in order
        directory[number] = 0x1000000000000000 | index
        table = [0] * entries
        for each in sorted(each for each in zeroes if each // entries == number):
            table[each % entries] = zeroes[each] << 60
        for each in sorted(each for each in grains if each // entries == number):
            table[each % entries] = 3 << 60 | (free & 0xFFF) << 48 | free >> 12
            body[grains_at + free * 8] = grains[each].ljust(GRAIN_BYTES, b"\0")
            free += 1
        body[tables_at + index * 64] = struct.pack(f"<{entries}Q", *table)
    regions = (1, 1, 2, 1, 3, 2045, directory_at, directory_sectors, tables_at, tables_sectors, 0, 0, 0, 0)
    header = struct.pack(
        "<26Q", 0xCAFEBABE, 0x0000000200000001, sectors, 8, 64, 0, 0, 0, 0, 0, *regions, grains_at, free * 8
    )
    body[0] = header.ljust(SECTOR, b"\0")
    body[1] = struct.pack("<4Q", 0xCAFECAFE, 0, 1, 0).ljust(SECTOR, b"\0")
    body[directory_at] = struct.pack(f"<{tables}Q", *directory)
    _write(extent, body, grains_at + free * 8)
    return path


def _write(extent: Path, body: Mapping[int, bytes], sectors: int) -> None:
    with extent.open("wb") as file:
        for sector, raw in body.items():
            file.seek(sector * SECTOR)
            file.write(raw)
        file.truncate(max(file.tell(), sectors * SECTOR, extent.stat().st_size))
