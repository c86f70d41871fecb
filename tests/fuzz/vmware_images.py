"""Small images of VMware's formats and qcow2 as starting points for damage, and what a user may do with each."""

import random
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from disks import qcow2_layout, vmdk_delta_layout, vmdk_layout, vmdk_stream_layout
from disks.catalogue import check, inspect
from disks.disk import Format
from drcore.errors import HomewardError
from tests.fuzz import test_disks_hostile as hostile
from tests.images import SOURCES

SIZE = 300 * 1024 + 512
FILL = 0x78
"""The guest's bytes: whatever else stands in a file belongs to its structures."""
NAMES = [name for name in SOURCES if "vmdk" in name or "qcow2" in name]


def _qcow2(raw: bytes) -> None:
    header = qcow2_layout.decode_header(raw)
    qcow2_layout.extensions(raw, header.length, len(raw))


DECODERS: tuple[tuple[bytes, Callable[[bytes], object]], ...] = (
    (vmdk_layout.encode_header(vmdk_layout.plan_sparse(99_999)), vmdk_layout.decode_header),
    (vmdk_layout.encode_header(vmdk_stream_layout.plan_stream(99_999)), vmdk_layout.decode_header),
    (
        vmdk_layout.NewDescriptor("vmfs", 'RW 9 VMFS "a"', 9, bytes(16), bytes(16), thin=True).text(),
        lambda raw: vmdk_layout.decode_descriptor(raw, 0),
    ),
    (
        struct.pack("<4s7I", b"COWD", 1, 3, 99_999, 8, 4, 4, 99).ljust(2048, b"\0"),
        vmdk_delta_layout.decode_cowd,
    ),
    (
        struct.pack("<26Q", 0xCAFEBABE, 2**33 + 1, 99_999, 8, 64, *bytes(5), 1, 1, *range(2, 16)).ljust(
            512, b"\0"
        ),
        vmdk_delta_layout.decode_se,
    ),
    (
        struct.pack(
            ">4sIQIIQIIQQIIQQQQII",
            b"QFI\xfb",
            3,
            0,
            0,
            16,
            2**20,
            0,
            1,
            3 << 16,
            1 << 16,
            1,
            0,
            0,
            0,
            0,
            0,
            4,
            112,
        ).ljust(112, b"\0")
        + struct.pack(">II8s", 0xE2792ACA, 5, b"qcow2"),
        _qcow2,
    ),
)
"""Pure decoders and something that each takes whole."""


@dataclass(frozen=True, slots=True)
class Victim:
    """An image of one or more files: contents by name, and in each the places worth changing."""

    kind: Format
    files: dict[str, bytes]
    hot: dict[str, list[int]]
    disk: str


def content() -> bytes:
    """The guest's disk: data with holes between."""
    whole = bytearray(SIZE)
    for offset in (0, 70_000, 200_000, SIZE - 512):
        whole[offset : offset + 10_000] = bytes([FILL]) * min(10_000, SIZE - offset)
    return bytes(whole)


@contextmanager
def victims() -> Iterator[dict[str, Victim]]:
    """An image for every name; whoever wants one to damage lays its files out again."""
    found = {}
    with TemporaryDirectory() as name:
        for each in NAMES:
            folder = Path(name) / each
            folder.mkdir()
            disk = SOURCES[each](folder, content())
            files = {path.name: path.read_bytes() for path in folder.iterdir()}
            hot = {
                name: [at for at, byte in enumerate(raw) if byte not in (0, FILL)]
                for name, raw in files.items()
            }
            found[each] = Victim(inspect(disk).format, files, {n: h for n, h in hot.items() if h}, disk.name)
            shutil.rmtree(folder)
        yield found


def damage(victim: Victim, folder: Path, dice: random.Random) -> Path:
    """The victim lies in `folder`, one of its files mutated; answers the disk's path."""
    broken = dice.choice(sorted(victim.hot))
    for name, raw in victim.files.items():
        changed = bytearray(raw)
        if name == broken:
            hostile.mutate(changed, dice, victim.hot[name])
        (folder / name).write_bytes(changed)
    return folder / victim.disk


def use(path: Path, kind: Format) -> None:
    """Everything that a user may do with it. Only coded errors come out."""
    hostile.use(path, kind)
    with suppress(HomewardError):
        check(path, kind)
