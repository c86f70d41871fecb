"""Small VHDs and VHDXs as starting points for damage; checksums are made right again, so that fields are looked at.

Files are laid out from their data alone: blocks of megabytes are holes, a round writes some 100 KiB.
"""

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from disks import catalogue, magic, vhdx_layout, vhdx_log
from disks.catalogue import check
from disks.disk import Format
from drcore.errors import HomewardError
from tests.fuzz import test_disks_hostile as hostile
from tests.fuzz import vhdx_images
from tests.golden.disks import differencing

MIB = 1024 * 1024
PAGE = 4096
ZEROES = bytes(PAGE)
SIZE = 5 * MIB + 512
FILL = 0x78
"""The guest's bytes: whatever else stands in a file belongs to its structures."""
SECONDS_MAX = 1.0


@dataclass(frozen=True, slots=True)
class File:
    """A file as the pages that are not zero, its length, and the bytes worth changing."""

    size: int
    pages: dict[int, bytes]
    hot: list[int]

    @classmethod
    def of(cls, path: Path) -> "File":
        raw = path.read_bytes()
        pages = {at: raw[at : at + PAGE] for at in range(0, len(raw), PAGE) if any(raw[at : at + PAGE])}
        hot = [
            at + n for at, page in pages.items() for n, byte in enumerate(page) if byte not in (0, 0xFF, FILL)
        ]
        hot += [
            at + n for at, page in pages.items() for n in range(0, PAGE, 4) if page[n : n + 4] == b"\xff" * 4
        ][:8]
        return cls(len(raw), pages, hot)


@dataclass(frozen=True, slots=True)
class Victim:
    """An image with what belongs to it."""

    kind: Format
    disk: str
    files: dict[str, File]


def make(folder: Path, kind: Format) -> Path:
    """An image that holds a little in three places."""
    path = folder / ("disk.vhdx" if "vhdx" in kind.value else "disk.vhd")
    disk = catalogue.create(path, kind, SIZE)
    for offset in (0, 3 * MIB + 100, SIZE - 512):
        disk.write(offset, memoryview(bytes([FILL]) * 512))
    disk.flush()
    disk.close()
    return path


def make_chain(folder: Path) -> Path:
    """A child of a dynamic parent."""
    parent = make(folder, Format.VHD_DYNAMIC).rename(folder / "parent.vhd")
    return differencing.make(
        folder / "disk.vhd",
        parent,
        {0: b"c" * 512, 9: bytes([FILL]) * 512, 10_240: b"e" * 512},
        parent_time=0,
    )


def make_waiting(folder: Path) -> Path:
    """A VHDX whose table stands in the log alone."""
    path = make(folder, Format.VHDX_DYNAMIC)
    raw = bytearray(path.read_bytes())
    table = 3 * MIB
    entry = vhdx_log.encode_entry(
        vhdx_layout.METADATA_REGION, 9, [(table, bytes(raw[table : table + PAGE]))], len(raw), len(raw)
    )
    raw[MIB : MIB + len(entry)] = entry
    raw[table : table + PAGE] = bytes(PAGE)
    for at in vhdx_images.header_slots():
        raw[at + 48 : at + 64] = vhdx_layout.METADATA_REGION.bytes_le
    vhdx_images.seal(raw)
    path.write_bytes(raw)
    return path


MAKERS: dict[str, Callable[[Path], Path]] = {
    "vhd-fixed": lambda folder: make(folder, Format.VHD_FIXED),
    "vhd-dynamic": lambda folder: make(folder, Format.VHD_DYNAMIC),
    "vhd-differencing": make_chain,
    "vhdx-fixed": lambda folder: make(folder, Format.VHDX_FIXED),
    "vhdx-dynamic": lambda folder: make(folder, Format.VHDX_DYNAMIC),
    "vhdx-log": make_waiting,
}


@contextmanager
def victims() -> Iterator[dict[str, Victim]]:
    """An image for every name."""
    found = {}
    with TemporaryDirectory() as name:
        for each, maker in MAKERS.items():
            folder = Path(name) / each
            folder.mkdir()
            disk = maker(folder)
            files = {path.name: File.of(path) for path in folder.iterdir()}
            found[each] = Victim(catalogue.inspect(disk).format, disk.name, files)
            shutil.rmtree(folder)
        yield found


def damage(victim: Victim, folder: Path, dice: random.Random) -> Path:
    """The victim lies in `folder`, one of its files mutated; answers the disk's path."""
    broken = dice.choice(sorted(victim.files))
    for name, file in victim.files.items():
        with (folder / name).open("wb") as out:
            out.truncate(file.size)
            laid = changed(file, dice) if name == broken else file
            for at, page in laid.pages.items():
                os.pwrite(out.fileno(), page, at)
            out.truncate(laid.size)
    return folder / victim.disk


def changed(file: File, dice: random.Random) -> File:
    """Some bytes changed, mostly with right checksums; now and then the file is cut."""
    pages = dict(file.pages)
    for _ in range(dice.choice((1, 1, 2, 5))):
        at = dice.choice(file.hot)
        page = bytearray(pages[at - at % PAGE])
        within = at % PAGE
        match dice.randrange(4):
            case 0:
                page[within] = dice.randrange(256)
            case 1:
                width, order = dice.choice((2, 4, 8)), dice.choice(("little", "big"))
                value = (
                    dice.choice(hostile.EDGES)
                    if dice.random() < 0.6
                    else dice.randrange(file.size // 512 + 5)
                )
                value <<= dice.choice((0, 0, 20, 32))
                data = (value % 2 ** (8 * width)).to_bytes(width, order)  # type: ignore[arg-type]
                within -= dice.choice((0, within % width))
                page[within : within + width] = data[: PAGE - within]
            case 2:
                other = dice.choice(file.hot)
                piece = pages[other - other % PAGE][other % PAGE :][:8]
                page[within : within + len(piece)] = piece[: PAGE - within]
            case _:
                page[within : within + 8] = dice.randbytes(8)[: PAGE - within]
        pages[at - at % PAGE] = bytes(page[:PAGE])
    size = dice.randrange(file.size) if dice.random() < 0.05 else file.size
    damaged = File(size, pages, file.hot)
    return _sealed(damaged) if dice.random() < 0.85 else damaged


def _sealed(file: File) -> File:
    """The same with right checksums; only what they cover is put together."""
    pages = dict(file.pages)

    def take(at: int, length: int) -> bytes:
        first = at - at % PAGE
        whole = b"".join(
            pages.get(page, ZEROES).ljust(PAGE, b"\0") for page in range(first, at + length, PAGE)
        )
        return whole[at - first : at - first + length]

    def lay(at: int, raw: bytes) -> None:
        for page in range(at - at % PAGE, at + len(raw), PAGE):
            if page in pages:
                start, end = max(at, page), min(at + len(raw), page + len(pages[page]))
                old = pages[page]
                pages[page] = old[: start - page] + raw[start - at : end - at] + old[end - page :]

    if take(0, len(magic.VHDX)) == magic.VHDX:
        entry = int.from_bytes(take(MIB + 8, 4), "little")
        for at, length, signature in (*vhdx_images.CHECKED, (MIB, min(entry, MIB), b"loge")):
            if take(at, 4) == signature and length >= 64:
                lay(at, vhdx_images.sealed(take(at, length)))
    else:
        for at, length, cookie, place in hostile.checked(file.size):
            if take(at, 8) == cookie:
                lay(at, hostile.sealed(take(at, length), place))
    return File(file.size, pages, file.hot)


def use(path: Path, kind: Format) -> None:
    """Everything that a user may do with it: soon, and only coded errors come out."""
    began = time.process_time()
    with suppress(HomewardError):
        check(path, kind)
    hostile.use(path, kind)
    spent = time.process_time() - began
    assert spent < SECONDS_MAX, f"{spent:.1f} s"
