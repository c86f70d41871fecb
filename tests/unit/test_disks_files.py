"""A disk tells all the files that it consists of, and whoever watches it sees a change of any of them."""

import os
from pathlib import Path

import pytest

from agent.adapters.source_mark import LocalMark
from disks.catalogue import Image, create, open_source
from disks.disk import Format
from masttarget.adapters.files import LocalStore
from tests.images import SECTOR, SOURCES

CONTENT = bytes(range(1, 129)) * 4 * 600
CHAINS = {
    "vmdk-snapshots": {"disk.vmdk", "middle.vmdk", "base.vmdk", "base-s001.vmdk"},
    "vmdk-vmfsSparse": {"disk.vmdk", "disk-delta.vmdk", "base.vmdk", "base-flat.vmdk"},
    "vmdk-seSparse": {"disk.vmdk", "disk-sesparse.vmdk", "base.vmdk"},
    "qcow2-backing": {"disk.qcow2", "middle.qcow2", "base.qcow2"},
    "vhd-differencing": {"disk.vhd", "parent.vhd"},
    "vhdx-dynamic": {"disk.vhdx"},
    "vmdk-streamOptimized": {"disk.vmdk"},
    "raw": {"disk.raw"},
}


@pytest.mark.parametrize("name", CHAINS)
def test_an_image_tells_its_files_itself_first(name: str, tmp_path: Path) -> None:
    path = SOURCES[name](tmp_path, CONTENT)
    disk = open_source(path)
    disk.close()
    assert disk.files[0] == path == disk.path
    assert {file.name for file in disk.files} == CHAINS[name]
    assert {file.parent for file in disk.files} == {tmp_path}
    assert len(set(disk.files)) == len(disk.files)


def renamed_extent(folder: Path, kind: Format) -> Image:
    """A disk one of whose extents bears a name that is not made of its descriptor's."""
    disk = create(folder / "disk.vmdk", kind, 300 * SECTOR)
    disk.close()
    path, extent = disk.files
    extent.rename(folder / "elsewhere.bin")
    path.write_text(path.read_text().replace(extent.name, "elsewhere.bin"))
    return open_source(path)


@pytest.mark.parametrize(
    "kind",
    [Format.VMDK_VMFS, Format.VMDK_MONOLITHIC_FLAT, Format.VMDK_TWO_GB_SPARSE, Format.VMDK_TWO_GB_FLAT],
    ids=lambda kind: kind.value,
)
def test_a_changed_extent_of_any_name_is_noticed_on_either_side(kind: Format, tmp_path: Path) -> None:
    disk = renamed_extent(tmp_path, kind)
    (tmp_path / "disk-of-another-name.vmdk").write_text("a neighbour")
    source, store = LocalMark(disk.files), LocalStore(tmp_path)
    marks = source(), store.file_marks(disk)
    os.utime(tmp_path / "disk-of-another-name.vmdk", ns=(5, 5))
    assert (source(), store.file_marks(disk)) == marks, "a neighbour is no extent"
    os.utime(tmp_path / "elsewhere.bin", ns=(5, 5))
    assert source() != marks[0]
    assert store.file_marks(disk) != marks[1]
    disk.close()
    assert len(store.file_marks(disk)) == 2, "the files of a closed disk are still told"


@pytest.mark.parametrize("name", ["vmdk-snapshots", "qcow2-backing", "vhd-differencing"])
def test_a_changed_parent_is_noticed_on_either_side(name: str, tmp_path: Path) -> None:
    disk = open_source(SOURCES[name](tmp_path, CONTENT))
    source, store = LocalMark(disk.files), LocalStore(tmp_path)
    marks = source(), store.file_marks(disk)
    assert (source(), store.file_marks(disk)) == marks
    os.utime(disk.files[-1], ns=(5, 5))
    assert source() != marks[0]
    assert store.file_marks(disk) != marks[1]
    disk.close()
