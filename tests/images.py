"""Images of every format with given content, made by others where others can make them; and who judges them.

qemu-img makes most. What nobody makes is made by hand from the published layouts (`vmdk_deltas`,
`golden/disks/differencing`), and ESXi's descriptor stands over an extent of qemu's.
"""

import random
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from disks.disk import Format
from tests import vmdk_deltas
from tests.golden.disks import differencing
from tests.system.command import write_sparse

SECTOR = 512
SUFFIX = {
    **{kind: kind.value.partition("-")[0] for kind in Format},
    Format.VHD_DIFFERENCING: "vhd",
}
QEMU_OPTIONS = {
    Format.VHD_FIXED: ("vpc", "subformat=fixed,force_size=on"),
    Format.VHD_DYNAMIC: ("vpc", "subformat=dynamic,force_size=on"),
    Format.VHDX_FIXED: ("vhdx", "subformat=fixed"),
    Format.VHDX_DYNAMIC: ("vhdx", "subformat=dynamic"),
    Format.VMDK_MONOLITHIC_SPARSE: ("vmdk", "subformat=monolithicSparse"),
    Format.VMDK_MONOLITHIC_FLAT: ("vmdk", "subformat=monolithicFlat"),
    Format.VMDK_STREAM_OPTIMIZED: ("vmdk", "subformat=streamOptimized"),
    Format.VMDK_TWO_GB_SPARSE: ("vmdk", "subformat=twoGbMaxExtentSparse"),
    Format.VMDK_TWO_GB_FLAT: ("vmdk", "subformat=twoGbMaxExtentFlat"),
    Format.QCOW2: ("qcow2", "compat=1.1"),
}
ESXI_DATABASE = """
ddb.adapterType = "pvscsi"
ddb.geometry.cylinders = "17"
ddb.geometry.heads = "255"
ddb.geometry.sectors = "63"
ddb.longContentID = "c3f1c3a5e9b0d6a1d1a2b3c4{cid}"
ddb.thinProvisioned = "1"
ddb.uuid = "60 00 C2 93 7d 5f 21 ba-0f 57 31 b4 0b 1e 5d 3c"
ddb.virtualHWVersion = "13"
"""
Maker = Callable[[Path, bytes], Path]


def qemu(*words: str | Path, cwd: Path | None = None) -> str:
    """What qemu-img says; it succeeds."""
    done = subprocess.run(["qemu-img", *words], cwd=cwd, check=True, capture_output=True, text=True)
    return done.stdout


def converted(path: Path, content: bytes, form: str, options: str, *more: str) -> Path:
    """qemu-img made `path` of the content."""
    raw = write_sparse(path.with_name("content.raw"), content)
    qemu("convert", "-q", *more, "-f", "raw", "-O", form, "-o", options, raw, path)
    raw.unlink()
    return path


def maker(kind: Format) -> Maker:
    """What makes an image of the format in an empty folder."""
    if kind in QEMU_OPTIONS:
        form, options = QEMU_OPTIONS[kind]
        return lambda folder, content: converted(folder / f"disk.{SUFFIX[kind]}", content, form, options)
    return BY_HAND[kind]


def raw(folder: Path, content: bytes) -> Path:
    path = folder / "disk.raw"
    path.write_bytes(content)
    return path


def vmfs(folder: Path, content: bytes) -> Path:
    """The pair that ESXi keeps, with an adapter, a long content id and a UUID that a writer has to leave alone."""
    path = maker(Format.VMDK_MONOLITHIC_FLAT)(folder, content)
    text = path.read_text().replace('"monolithicFlat"', '"vmfs"')
    text = re.sub(r'FLAT ("[^"]+") 0', r"VMFS \1", text)
    text = re.sub(r"^CID=\w+", "CID=5eed1234", text, flags=re.MULTILINE)  # qemu-img leaves out leading zeroes
    path.write_text(text.partition("#DDB")[0] + "#DDB\n" + ESXI_DATABASE.format(cid="5eed1234"))
    return path


def lived(content: bytes, step: int) -> tuple[bytes, dict[int, bytes]]:
    """(an older content, what differs since, by the number of the `step` bytes), the last piece among it."""
    dice = random.Random(len(content))
    older, changes = bytearray(content), dict[int, bytes]()
    pieces = -(-len(content) // step)
    for number in {0, pieces - 1, *(dice.randrange(pieces) for _ in range(20))}:
        piece = content[number * step : (number + 1) * step]
        older[number * step : number * step + len(piece)] = dice.randbytes(len(piece))
        changes[number] = piece
    return bytes(older), changes


def differencing_vhd(folder: Path, content: bytes) -> Path:
    older, changes = lived(content, SECTOR)
    form, options = QEMU_OPTIONS[Format.VHD_DYNAMIC]
    parent = converted(folder / "parent.vhd", older, form, options)
    child = folder / "disk.vhd"
    differencing.make(child, parent, changes)
    return child


def vmfs_sparse(folder: Path, content: bytes) -> Path:
    older, changes = lived(content, 4096)
    parent = vmfs(folder, older)
    parent = _renamed(parent, "base")
    return vmdk_deltas.vmfs_sparse(folder / "disk.vmdk", len(content), changes, parent)


def se_sparse(folder: Path, content: bytes) -> Path:
    older, changes = lived(content, 4096)
    form, options = QEMU_OPTIONS[Format.VMDK_MONOLITHIC_SPARSE]
    parent = converted(folder / "base.vmdk", older, form, options)
    return vmdk_deltas.se_sparse(folder / "disk.vmdk", len(content), changes, parent)


BY_HAND: dict[Format, Maker] = {
    Format.RAW: raw,
    Format.VHD_DIFFERENCING: differencing_vhd,
    Format.VMDK_VMFS: vmfs,
    Format.VMDK_VMFS_SPARSE: vmfs_sparse,
    Format.VMDK_SESPARSE: se_sparse,
}


def vmdk_snapshots(folder: Path, content: bytes) -> Path:
    """Three images: a split base, a sparse child and its child, made by qemu-img and written by qemu-io."""
    older, changes = lived(content, SECTOR)
    converted(folder / "base.vmdk", older, *QEMU_OPTIONS[Format.VMDK_TWO_GB_SPARSE])
    return _children(folder, "vmdk", content, changes)


def qcow2_backing(folder: Path, content: bytes) -> Path:
    """Three images: a compressed base of version 2, and two of version 3 above it."""
    older, changes = lived(content, SECTOR)
    converted(folder / "base.qcow2", older, "qcow2", "compat=0.10", "-c")
    return _children(folder, "qcow2", content, changes)


def _children(folder: Path, form: str, content: bytes, changes: dict[int, bytes]) -> Path:
    below = "base"
    for name, part in (("middle", 0), ("disk", 1)):
        path = folder / f"{name}.{form}"
        qemu("create", "-q", "-f", form, "-F", form, "-b", f"{below}.{form}", path, cwd=folder)
        commands = []
        for number, piece in changes.items():
            if number % 2 == part:
                source = folder / f"piece-{number}"
                source.write_bytes(piece)
                commands += ["-c", f"write -s {source} {number * SECTOR} {len(piece)}"]
        subprocess.run(["qemu-io", "-f", form, *commands, path], check=True, capture_output=True)
        below = name
    for left in folder.glob("piece-*"):
        left.unlink()
    return folder / f"disk.{form}"


SOURCES: dict[str, Maker] = {
    **{kind.value: maker(kind) for kind in Format},
    "vmdk-snapshots": vmdk_snapshots,
    "qcow2-backing": qcow2_backing,
    "qcow2-compressed": lambda folder, content: converted(
        folder / "disk.qcow2", content, "qcow2", "compat=1.1,cluster_size=4096", "-c"
    ),
    "qcow2-zstd": lambda folder, content: converted(
        folder / "disk.qcow2", content, "qcow2", "compat=1.1,compression_type=zstd", "-c"
    ),
    "vmdk-zeroed-grains": lambda folder, content: converted(
        folder / "disk.vmdk", content, "vmdk", "subformat=monolithicSparse,zeroed_grain=on"
    ),
}
"""Everything that is read, and more than one kind of some."""


def judged_equal(path: Path, kind: Format, expected: Path) -> None:
    """A reader that is not ours finds the image sound and equal to the raw file `expected`."""
    if kind is Format.VHD_DIFFERENCING:  # qemu-img knows no differencing VHD
        assert differencing.read_by_7zip(path) == expected.read_bytes()
        return
    form = "raw" if kind is Format.RAW else kind.value.partition("-")[0].replace("vhd", "vpc")
    form = "vhdx" if form == "vpcx" else form
    if form in ("vmdk", "vhdx", "qcow2") and kind not in (
        Format.VMDK_MONOLITHIC_FLAT,
        Format.VMDK_TWO_GB_FLAT,
        Format.VMDK_VMFS,
    ):
        qemu("check", "-q", "-f", form, path)
    qemu("compare", "-q", "-f", form, "-F", "raw", path, expected)


def _renamed(descriptor: Path, stem: str) -> Path:
    """A descriptor and its flat extent under another name."""
    extent = descriptor.with_name(f"{descriptor.stem}-flat.vmdk")
    extent.rename(descriptor.with_name(f"{stem}-flat.vmdk"))
    text = descriptor.read_text().replace(f'"{descriptor.stem}-flat.vmdk"', f'"{stem}-flat.vmdk"')
    descriptor.unlink()
    new = descriptor.with_name(f"{stem}.vmdk")
    new.write_text(text)
    return new
