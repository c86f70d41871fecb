"""Bad input and failing media at the command line: one coded line, exit 2, no traceback, nothing else touched."""

import errno
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent import config as agent_config
from agent.errors import ConfigRefused as AgentConfigRefused
from homeward.errors import DirectoryMissing, LocalStateDamaged, SameDisk, WorkplaceFailed
from masttarget import config as masttarget_config
from masttarget.errors import ConfigRefused as MasttargetConfigRefused
from masttarget.main import check
from tests.conftest import LoopDevice, MountPoint
from tests.system.command import (
    changed,
    ended,
    homeward,
    judge,
    left_beside,
    make_image,
    some_content,
    start,
    wait_until,
    write_sparse,
)
from tests.system.roles import Pair, Site, write_key

MIB = 1024 * 1024


def pair(folder: Path, dice: random.Random, size: int = 3 * MIB) -> tuple[Path, Path]:
    content = some_content(dice, size)
    return write_sparse(folder / "source.raw", content), write_sparse(
        folder / "target.raw", changed(dice, content)
    )


@contextmanager
def untouched(*paths: Path) -> Iterator[None]:
    before = [path.read_bytes() for path in paths]
    yield
    assert [path.read_bytes() for path in paths] == before
    for path in paths:
        assert left_beside(path) == []


def test_sizes_that_do_not_fit(tmp_path: Path, dice: random.Random) -> None:
    source, target = pair(tmp_path, dice)
    os.truncate(target, 3 * MIB - 512)
    with untouched(source, target):
        homeward("sync", source, target, "--json").refused("HW-MT-003")
        homeward("sync", source, target, "--allow-larger").refused("HW-MT-003")
        homeward("compare", source, target, "--json").refused("HW-AGENT-005")
    os.truncate(target, 3 * MIB + 513)
    with untouched(source, target):
        homeward("sync", source, target, "--json").refused("HW-MT-004")
        homeward("compare", source, target, "--json").refused("HW-AGENT-006")


def test_a_loop_device_over_the_source_is_no_target(
    tmp_path: Path, dice: random.Random, loop_device: LoopDevice
) -> None:
    raw = write_sparse(tmp_path / "source.raw", dice.randbytes(MIB))
    container = tmp_path / "source.vmdk"
    make_image(container, "vmdk-monolithicSparse", dice.randbytes(MIB))
    os.truncate(container, 2 * MIB)
    for source in (raw, container):
        with untouched(source):
            device = loop_device(source)
            told = ("--adopt", "--allow-larger", "--state-directory", tmp_path / "state")
            homeward("sync", source, device, *told).refused(SameDisk.code)
            homeward("sync", device, source, *told).refused(SameDisk.code)


def test_paths_that_are_not_there(tmp_path: Path, dice: random.Random) -> None:
    source, target = pair(tmp_path, dice)
    nothing = tmp_path / "nothing.raw"
    with untouched(source, target):
        homeward("sync", nothing, target, "--json").refused("HW-DISKS-005")
        homeward("sync", source, nothing, "--json").refused("HW-MT-005")
        homeward("sync", source, tmp_path / "no" / "t.raw", "--create", "raw").refused(DirectoryMissing.code)
        homeward("sync", source, source, "--json").refused(SameDisk.code)
        (tmp_path / "link.raw").symlink_to(source)
        homeward("sync", source, tmp_path / "link.raw").refused(SameDisk.code)
        homeward("sync", source, tmp_path, "--json").refused("HW-DISKS-005")
        homeward("info", nothing, "--json").refused("HW-DISKS-005")
        homeward("compare", source, nothing).refused("HW-DISKS-005")
        homeward("compare", tmp_path, target).refused("HW-DISKS-005")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.raw", "source.raw", "target.raw"]


def test_formats_that_are_not_what_they_say(tmp_path: Path, dice: random.Random) -> None:
    source, target = pair(tmp_path, dice)
    image = make_image(tmp_path / "image.vmdk", "vmdk-monolithicSparse", source.read_bytes())
    odd = tmp_path / "noname"
    odd.write_bytes(source.read_bytes())
    qcow = tmp_path / "qcow2.vhd"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", qcow, "1M"], check=True)
    wrong = tmp_path / "wrong.vhd"
    wrong.write_bytes(image.read_bytes())
    with untouched(source, target, image, odd):
        for code, words in {
            "HW-DISKS-007": ("info", image, "--format", "vhd-dynamic"),
            "HW-DISKS-006": ("info", odd),
        }.items():
            homeward(*words, "--json").refused(code)
        homeward("info", source, "--format", "vhd-fixed").refused("HW-DISKS-007")
        homeward("info", qcow).refused("HW-DISKS-006")
        homeward("info", wrong).refused("HW-DISKS-006")
        homeward("sync", image, target, "--source-format", "vhd-fixed").refused("HW-DISKS-007")
        homeward("sync", source, image, "--target-format", "vhd-fixed").refused("HW-DISKS-007")
        homeward("sync", odd, target).refused("HW-DISKS-006")
        homeward("sync", source, tmp_path / "new.raw", "--create", "vhd-fixed").refused("HW-DISKS-007")
    assert not (tmp_path / "new.raw").exists()


def test_an_image_cut_short_is_damaged(tmp_path: Path, dice: random.Random) -> None:
    source, _ = pair(tmp_path, dice)
    for kind, name in (("vmdk-monolithicSparse", "i.vmdk"), ("vhd-dynamic", "i.vhd")):
        image = make_image(tmp_path / name, kind, source.read_bytes())
        os.truncate(image, image.stat().st_size // 2)
        outcome = homeward("compare", image, source, "--source-format", kind, "--json")
        assert outcome.code == 2
        assert outcome.stdout
        assert "Traceback" not in outcome.stderr


def test_a_target_that_somebody_uses(
    tmp_path: Path, dice: random.Random, loop_device: LoopDevice, mount_point: MountPoint
) -> None:
    source, target = pair(tmp_path, dice)
    device = loop_device(target)
    homeward("sync", source, target, "--json").refused("HW-DISKS-010")
    mounted = mount_point("ext4", 16 * MIB)
    line = next(text for text in Path("/proc/self/mounts").read_text().splitlines() if f" {mounted} " in text)
    used = Path(line.split()[0])
    backing = tmp_path / "image-0.ext4"
    big = write_sparse(tmp_path / "big.raw", bytes(16 * MIB))
    homeward("sync", big, used, "--adopt", "--state-directory", tmp_path / "s").refused("HW-DISKS-010")
    homeward("sync", used, big, "--json").refused("HW-DISKS-010")
    with untouched(big):
        homeward("sync", backing, big, "--source-format", "raw").refused("HW-DISKS-010")
    assert device.exists()


def test_two_syncs_to_one_target(tmp_path: Path, dice: random.Random) -> None:
    """The second is refused, the first goes on undisturbed."""
    source = write_sparse(tmp_path / "source.raw", dice.randbytes(16 * MIB))
    other = write_sparse(tmp_path / "other.raw", dice.randbytes(16 * MIB))
    target = tmp_path / "target.raw"
    first = start("sync", source, target, "--create", "raw", "--bandwidth", "2M", "--json")
    wait_until(lambda: target.exists() and target.stat().st_blocks > 0)
    second = homeward("sync", other, target, "--create", "raw", "--json")
    compared = homeward("compare", source, target, "--json")
    assert ended(first).answer()["blocks_sent"] == 256
    second.refused("HW-DISKS-010")
    compared.refused("HW-DISKS-010")
    judge(target, "raw", source)
    assert left_beside(target) == []


@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
@pytest.mark.parametrize("form", ["raw", "vmdk-monolithicSparse", "vhd-dynamic"])
def test_a_full_disk_and_then_room(
    kind: str, form: str, tmp_path: Path, dice: random.Random, mount_point: MountPoint
) -> None:
    content = dice.randbytes(12 * MIB)
    source = write_sparse(tmp_path / "source.raw", content)
    point = mount_point(kind, 32 * MIB)
    ballast = point / "ballast"
    free = os.statvfs(point).f_bavail * os.statvfs(point).f_frsize
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(free - 6 * MIB, MIB))
    target = point / {"raw": "t.raw", "vhd-dynamic": "t.vhd"}.get(form, "t.vmdk")
    outcome = homeward("sync", source, target, "--create", form, "--json")
    assert outcome.code == 2
    line = outcome.refused(outcome._object()["code"])
    assert line.split(":")[0] in ("HW-DISKS-003", "HW-DISKS-004", "HW-MT-013", WorkplaceFailed.code)
    assert os.strerror(errno.ENOSPC) in line
    ballast.unlink()
    found = homeward("sync", source, target, "--create", form, "--json").answer()
    assert found["resumed"] is True
    judge(target, form, source)
    assert left_beside(target) == []


def test_an_unreadable_sector_of_the_source(
    tmp_path: Path, dice: random.Random, loop_device: LoopDevice
) -> None:
    backing = tmp_path / "backing.raw"
    backing.write_bytes(dice.randbytes(8 * MIB))
    device = loop_device(backing)
    os.truncate(backing, 4 * MIB)
    subprocess.run(["blockdev", "--flushbufs", device], check=True)
    target = write_sparse(tmp_path / "target.raw", bytes(8 * MIB))
    line = homeward("sync", device, target, "--json").refused("HW-DISKS-001")
    assert "EIO" in line
    assert str(device) in line
    homeward("compare", device, target, "--json").refused("HW-DISKS-001")
    os.truncate(backing, 8 * MIB)
    subprocess.run(["blockdev", "--flushbufs", device], check=True)
    assert homeward("sync", device, target).code == 0
    judge(target, "raw", device)


def test_an_unreadable_sector_of_the_target(
    tmp_path: Path, dice: random.Random, loop_device: LoopDevice
) -> None:
    source = write_sparse(tmp_path / "source.raw", dice.randbytes(8 * MIB))
    backing = tmp_path / "backing.raw"
    backing.write_bytes(dice.randbytes(8 * MIB))
    device = loop_device(backing)
    os.truncate(backing, 4 * MIB)
    subprocess.run(["blockdev", "--flushbufs", device], check=True)
    state = tmp_path / "state"
    outcome = homeward("sync", source, device, "--adopt", "--state-directory", state, "--json")
    assert "EIO" in outcome.refused("HW-DISKS-001")


def test_a_source_that_changes_while_it_is_read(tmp_path: Path, dice: random.Random) -> None:
    content = bytearray(dice.randbytes(20 * MIB))
    source = write_sparse(tmp_path / "source.raw", content)
    target = write_sparse(tmp_path / "target.raw", dice.randbytes(20 * MIB))
    process = start("sync", source, target, "--bandwidth", "6M", "--json")
    record = tmp_path / "target.raw.homeward" / "applied"
    # Something is durable at home: the source was scanned at memory speed long before.
    wait_until(lambda: record.exists() and record.stat().st_size > 1000)
    with source.open("r+b") as file:
        file.seek(19 * MIB + 7)
        file.write(b"changed")
    line = ended(process).refused("HW-AGENT-002")
    assert f"offset {19 * MIB // 65536 * 65536}" in line
    assert homeward("sync", source, target, "--json").answer()["resumed"] is True
    judge(target, "raw", source)


def broken(source: Path, target: Path) -> Path:
    """A journal as a sync leaves it that was killed after its first blocks were durable."""
    journal = target.with_name(target.name + ".homeward")
    process = start("sync", source, target, "--create", "raw", "--bandwidth", "8M")
    try:
        record = journal / "applied"
        wait_until(lambda: record.exists() and record.stat().st_size > 1000)
        process.kill()
    finally:
        ended(process)

    def let_go() -> bool:  # the master target notices and closes in order
        return b'"closed": {' in (journal / "cycle").read_bytes()

    wait_until(let_go)
    return journal


@pytest.fixture(scope="module")
def broken_sync(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("broken")
    source = write_sparse(folder / "source.raw", random.Random(4).randbytes(16 * MIB))
    target = folder / "target.raw"
    return source, target, broken(source, target)


DAMAGE = {
    "cycle": [b"", b'{"version": 2}'],
    "applied": [b"HWAL\x01\0\0\0" + bytes(16), b"torn"],
    "digests": [b"x" * 4096],
    "identifiers": [b"", b'{"item": 5, "disk": 6}'],
    "key": [b"short"],
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_journal_files(
    name: str, tmp_path: Path, dice: random.Random, broken_sync: tuple[Path, Path, Path]
) -> None:
    """Damage is told, or harmless: never a traceback, never a wrong disk."""
    source, kept_target, kept_journal = broken_sync
    for number, content in enumerate(DAMAGE[name]):
        target = tmp_path / f"{number}" / "target.raw"
        target.parent.mkdir()
        subprocess.run(["cp", "-a", kept_target, target], check=True)
        journal = target.with_name("target.raw.homeward")
        subprocess.run(["cp", "-a", kept_journal, journal], check=True)
        cycle = (journal / "cycle").read_text().replace(str(kept_target), str(target))
        if name == "applied":  # only read where the last stop was not a clean one
            at = cycle.index('"closed": {')
            cycle = cycle[:at] + '"closed": null' + cycle[cycle.index("}", at) + 1 :]
        (journal / "cycle").write_text(cycle)
        (journal / name).write_bytes(content)
        with target.open("r+b") as file:  # what was written behind our back has to be found
            file.seek(3)
            file.write(b"\0")
        outcome = homeward("sync", source, target, "--json")
        if outcome.code == 0:
            assert name in ("applied", "digests")
            judge(target, "raw", source)
            continue
        line = outcome.refused(outcome._object()["code"])
        assert line.split(":")[0] in ("HW-MT-012", LocalStateDamaged.code, "HW-CORE-001"), line
        # The remedy that the line gives is true.
        subprocess.run(["rm", "-r", journal], check=True)
        assert homeward("sync", source, target).code == 0
        judge(target, "raw", source)


def test_a_target_swapped_while_a_cycle_is_open(tmp_path: Path, dice: random.Random) -> None:
    content = dice.randbytes(16 * MIB)
    source = write_sparse(tmp_path / "source.raw", content)
    target = tmp_path / "target.raw"
    broken(source, target)
    target.rename(tmp_path / "away.raw")
    other = write_sparse(target, dice.randbytes(17 * MIB))
    before = other.read_bytes()
    homeward("sync", source, target, "--allow-larger", "--json").refused("HW-MT-007")
    assert target.read_bytes() == before
    (tmp_path / "away.raw").rename(target)
    assert homeward("sync", source, target, "--json").answer()["resumed"] is True
    judge(target, "raw", source)


def test_key_files_that_cannot_be_used(tmp_path: Path, dice: random.Random) -> None:
    source, target = pair(tmp_path, dice)
    site = Site(tmp_path, Pair(source, target))
    config, serving = site.write_agent(1), site.write_masttarget()
    write_key(site.key, b"k" * 32, 0o644)
    homeward("agent", "sync", "--config", config, "--json").refused("HW-CORE-001")
    write_key(site.key, b"k" * 31)
    homeward("masttarget", "serve", "--config", serving, "--json").refused("HW-CORE-001")


AGENT_FLAWS = {
    "unknown key": ("reconnects = 0", "reconnects = 0\nspeed = 5"),
    "wrong type": ("reconnects = 0", 'reconnects = "0"'),
    "out of bounds": ("reconnects = 0", "reconnects = 0\nlanes = 17"),
    "no UUID": ('item = "', 'item = "x'),
    "no address": ('"127.0.0.1:1"', '"127.0.0.1"'),
    "bad rate": ("reconnects = 0", 'reconnects = 0\nbandwidth = "fast"'),
    "unknown format": ("[[disk]]", '[[disk]]\nformat = "qcow9"'),
    "unknown disk key": ("[[disk]]", "[[disk]]\nsize = 5"),
    "unknown table": ("[[disk]]", "[other]\n[[disk]]"),
    "relative path": ('path = "/', 'path = "'),
    "no TOML": ("[agent]", "[agent"),
    "no table": ("[agent]", "[agents]"),
}
MASTTARGET_FLAWS = {
    "unknown key": ("[masttarget]", "[masttarget]\nspeed = 5"),
    "wrong type": ("adopt = true", 'adopt = "yes"'),
    "unknown format": ('format = ""', 'format = "qcow9"'),
    "unknown creation": ('create = ""', 'create = "qcow9"'),
    "unknown disk key": ("adopt = true", "adopt = true\nsize = 5"),
    "no address": ('"127.0.0.1:0"', '"127.0.0.1:99999"'),
    "no TOML": ("[[disk]]", "[[disk"),
}


def test_settings_that_make_no_sense(tmp_path: Path, dice: random.Random) -> None:
    source, target = pair(tmp_path, dice)
    site = Site(tmp_path, Pair(source, target))
    flawed = tmp_path / "flawed.toml"

    def flaws(good: str, found: dict[str, tuple[str, str]]) -> Iterator[str]:
        for name, (old, new) in found.items():
            assert old in good, name
            flawed.write_text(good.replace(old, new, 1))
            yield name
        flawed.write_bytes(b"\xff\xfe")
        yield "no text"
        flawed.unlink()
        yield "no file"

    def load_agent() -> None:
        agent_config.load(flawed)

    def load_masttarget() -> None:
        check(masttarget_config.load(flawed), flawed)

    for name in flaws(site.write_agent(1).read_text(), AGENT_FLAWS):
        with pytest.raises(AgentConfigRefused) as refused:
            load_agent()
        assert str(flawed) in str(refused.value), name
    homeward("agent", "sync", "--config", flawed, "--json").refused("HW-AGENT-001")
    for name in flaws(site.write_masttarget().read_text(), MASTTARGET_FLAWS):
        with pytest.raises(MasttargetConfigRefused) as told:
            load_masttarget()
        assert str(flawed) in str(told.value), name
    homeward("masttarget", "serve", "--config", flawed, "--json").refused("HW-MT-014")


def test_an_address_that_is_taken(tmp_path: Path, dice: random.Random) -> None:
    source, target = pair(tmp_path, dice)
    site = Site(tmp_path, Pair(source, target))
    with site.serving() as port:
        config = site.write_masttarget()
        config.write_text(config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}"))
        homeward("masttarget", "serve", "--config", config, "--json").refused("HW-MT-015")
