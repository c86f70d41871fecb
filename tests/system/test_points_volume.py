"""The retention volume as a volume: not mounted, read-only, of a strange name, or the root file system."""

import json
import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from disks import catalogue
from masttarget.adapters.volumes import volume_of
from masttarget.config import load
from masttarget.volume import obstacles
from tests.conftest import MountPoint
from tests.system.command import ended, homeward, judge, start
from tests.system.test_points import Home

MIB = 1024 * 1024


@pytest.fixture
def home(tmp_path: Path, dice: random.Random, mount_point: MountPoint) -> Home:
    """Its retention is a volume of its own."""
    point = mount_point("ext4", 128 * MIB)
    (tmp_path / "retention").symlink_to(point)
    found = Home(tmp_path, dice, 2)
    _own_volume(found, found.folder / "retention")
    return found


def _own_volume(home: Home, retention: Path) -> None:
    lines = [line for line in home.config.read_text().splitlines() if not line.startswith("retention")]
    lines.insert(1, f"retention = {json.dumps(str(retention))}")
    home.config.write_text("\n".join([*lines, ""]))


@contextmanager
def changed_for_now(point: Path, change: list[str | Path], back: list[str | Path]) -> Iterator[None]:
    subprocess.run(change, check=True)
    try:
        yield
    finally:
        subprocess.run(back, check=True)


def test_a_volume_that_is_not_mounted_is_told_and_nothing_is_put_in_its_place(
    home: Home, tmp_path: Path
) -> None:
    point = (tmp_path / "retention").resolve()
    (image,) = tmp_path.glob("image-*.ext4")
    with changed_for_now(point, ["umount", point], ["mount", "-o", "loop", image, point]):
        for words in (("list",), ("rollback", "2")):
            line = home.ask(*words).refused("HW-MT-038")
            assert "R065" in line
        homeward("masttarget", "verify", "--config", home.config, "--json").refused("HW-MT-038")
        assert home.points("drop", "--all", "--plan")["plan"], "that it is lost for good can be said"
        assert list(point.iterdir()) == []
    assert len(home.points("list")["points"]) == 3  # type: ignore[arg-type]


def test_points_are_read_from_a_volume_that_became_read_only(home: Home, tmp_path: Path) -> None:
    point = (tmp_path / "retention").resolve()
    before = home.target.read_bytes()
    remount: list[str | Path] = ["mount", "-o"]
    with changed_for_now(point, [*remount, "remount,ro", point], [*remount, "remount,rw", point]):
        assert [one["usable"] for one in home.points("list", "--check")["points"]] == [True] * 3  # type: ignore[attr-defined]
        assert home.points("verify", "2")["disks"]
        assert home.points("rollback", "2", "--plan")["blocks_most"]
        home.points("export", "2", "--to", tmp_path / "out.raw", "--format", "raw")
        judge(tmp_path / "out.raw", "raw", home.state(0))
        socket = tmp_path / "nbd.sock"
        words = ("points", "serve", home.item, "2", "--config", home.config, "--listen", socket, "--json")
        process = start(*words)
        try:
            assert process.stdout is not None
            uri = json.loads(process.stdout.readline())["uri"]
            copy = tmp_path / "copy.raw"
            subprocess.run(["nbdcopy", uri, copy], check=True)
            assert copy.read_bytes() == home.contents[0]
        finally:
            process.terminate()
            ended(process)
        home.ask("rollback", "2").refused("HW-MT-037")
        home.ask("drop", "1").refused("HW-MT-037")
        assert home.target.read_bytes() == before
    home.points("rollback", "2")
    judge(home.target, "raw", home.state(0))


def test_the_root_file_system_is_never_the_retention_volume(tmp_path: Path, dice: random.Random) -> None:
    home = Home(tmp_path, dice, 0)
    _own_volume(home, Path("/"))
    assert load(home.config).retention == Path("/"), "named is not the same as not named"
    for words in (("masttarget", "serve"), ("points", "list", home.item), ("masttarget", "verify")):
        homeward(*words, "--config", home.config, "--json").refused("HW-MT-038")


def test_a_mount_point_may_have_any_name_but_is_that_of_the_volume_itself(
    tmp_path: Path, dice: random.Random, mount_point: MountPoint
) -> None:
    home, point = Home(tmp_path, dice, 0), mount_point("ext4", 128 * MIB)
    other = tmp_path / "Größe 1\\2"
    other.mkdir()
    with changed_for_now(other, ["mount", "--bind", point, other], ["umount", other]):
        assert obstacles(volume_of(other, load(home.config))) == []
    with changed_for_now(other, ["mount", "--bind", point / "lost+found", other], ["umount", other]):
        (reason,) = obstacles(volume_of(other, load(home.config)))
        assert "/lost+found of a volume" in reason


def test_volumes_that_qualify_are_listed_as_soon_as_they_are_there(
    tmp_path: Path, dice: random.Random, mount_point: MountPoint
) -> None:
    """R073, R074: nothing is kept from an earlier look, and nothing is chosen by itself."""
    home = Home(tmp_path, dice, 0)
    words = ("masttarget", "volumes", "--config", home.config)

    def listed(*more: str) -> dict[str, list[str]]:
        told = homeward(*words, *more, "--json").answer()["volumes"]
        return {one["path"]: one["obstacles"] for one in told if one["path"].startswith(str(tmp_path))}

    assert listed("--all") == {}
    good, memory = mount_point("ext4", 128 * MIB), mount_point("tmpfs", 128 * MIB)
    assert listed() == {str(good): []}
    ((reason,),) = [reasons for path, reasons in listed("--all").items() if path == str(memory)]
    assert "R065" in reason
    assert str(good) in homeward(*words).stdout
    assert "  no: " in homeward(*words, "--all").stdout
    (good / "photos").mkdir()
    assert listed() == {}
    assert load(home.config).retention == tmp_path / "retention"


def test_a_rollback_that_would_be_refused_has_no_plan_and_changes_nothing(home: Home) -> None:
    def known() -> list[object]:
        record = homeward("masttarget", "show", "--config", home.config, "--json").answer()
        return [record, *(path.read_bytes() for path in sorted((home.folder / "retention").rglob("points")))]

    before = known()
    assert home.points("rollback", 2, "--plan")["blocks_most"] == _differing(home)
    disk = catalogue.open_target(home.target)
    try:
        for words in ((), ("--plan",)):
            home.ask("rollback", 2, *words).refused("HW-DISKS-010")
    finally:
        disk.close()
    first = min((home.folder / "retention").rglob("*.undo"))
    data = bytearray(first.read_bytes())
    first.write_bytes(data[:300] + bytes([data[300] ^ 1]) + data[301:])
    for words in ((), ("--plan",)):
        home.ask("rollback", 1, *words).refused("HW-MT-030")
    assert home.ask("list", "--check").code == 1
    first.write_bytes(data)
    assert home.ask("list", "--check").code == 0
    status = home.target.stat()
    os.utime(home.target, ns=(status.st_atime_ns, time.time_ns()))
    for words in ((), ("--plan",)):
        home.ask("rollback", 2, *words).refused("HW-MT-042")
    os.utime(home.target, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert known() == before, "nobody was fenced off, no point was made"
    home.points("rollback", 2)


def _differing(home: Home) -> int:
    block = 65536
    old, new = home.contents[:2]
    return sum(old[at : at + block] != new[at : at + block] for at in range(0, len(old), block))
