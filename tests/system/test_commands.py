"""What scripts rely on: keys, exit codes, one JSON object on stdout, nothing left behind."""

import random
import subprocess
from pathlib import Path

from tests.conftest import LoopDevice
from tests.system.command import changed, homeward, judge, left_beside, make_image, some_content, write_sparse

MIB = 1024 * 1024
INFO_KEYS = {"format", "virtual_size", "allocated_bytes", "grain_size"}
COMPARE_KEYS = {
    "virtual_size",
    "block_size",
    "blocks_total",
    "blocks_changed",
    "sectors_changed",
    "bytes_changed",
    "bytes_zero",
    "bytes_to_send",
    "bytes_to_send_is",
    "seconds",
}
SYNC_KEYS = {
    "virtual_size",
    "blocks_sent",
    "sectors_sent",
    "blocks_referenced",
    "sectors_referenced",
    "bytes_sent",
    "bytes_received",
    "bytes_resent",
    "resumed",
    "root",
    "seconds",
    "cpu_seconds",
}


def differences(one: bytes | bytearray, other: bytes | bytearray, unit: int) -> list[int]:
    return [at for at in range(0, len(one), unit) if one[at : at + unit] != other[at : at + unit]]


def test_compare_tells_exactly_what_differs_and_exits_with_one(tmp_path: Path, dice: random.Random) -> None:
    new = some_content(dice, 9 * MIB + 1000)
    old = changed(dice, new)
    old[-1] ^= 1
    source = write_sparse(tmp_path / "source.raw", new)
    target = write_sparse(tmp_path / "target.raw", old)
    outcome = homeward("compare", source, target, "--json")
    found = outcome.answer()
    assert outcome.code == 1
    assert set(found) == COMPARE_KEYS
    sectors = differences(new, old, 4096)
    in_bytes = sum(len(new[at : at + 4096]) for at in sectors)
    assert found["virtual_size"] == len(new)
    assert found["block_size"] == 65536
    assert found["blocks_total"] == -(-len(new) // 65536)
    assert found["blocks_changed"] == len(differences(new, old, 65536))
    assert found["sectors_changed"] == len(sectors)
    assert found["bytes_changed"] == in_bytes
    assert found["bytes_zero"] == sum(
        len(new[at : at + 4096]) for at in sectors if not any(new[at : at + 4096])
    )
    assert found["bytes_to_send_is"] == "exact"
    assert source.read_bytes() == new
    assert target.read_bytes() == old


def test_a_sync_reports_the_contracts_keys_and_leaves_nothing_behind(
    tmp_path: Path, dice: random.Random
) -> None:
    content = some_content(dice, 3 * MIB + 77)
    source = write_sparse(tmp_path / "source.raw", content)
    target = write_sparse(tmp_path / "target.raw", changed(dice, content))
    outcome = homeward("sync", source, target, "--json")
    found = outcome.answer()
    assert outcome.code == 0
    assert set(found) == SYNC_KEYS
    assert found["virtual_size"] == len(content)
    assert found["resumed"] is False
    assert found["bytes_resent"] == 0
    assert len(bytes.fromhex(found["root"])) == 32
    judge(target, "raw", source)
    assert left_beside(target) == ["target.raw.homeward"], "the way back"
    assert homeward("sync", "--drop-undo", target, "--json").answer() == {"dropped": True}
    assert left_beside(target) == []
    again = homeward("sync", source, target, "--json").answer()
    assert (again["blocks_sent"], again["sectors_sent"]) == (0, 0)
    compared = homeward("compare", source, target, "--json")
    assert (compared.code, compared.answer()["blocks_changed"]) == (0, 0)


def test_info_shows_every_format(tmp_path: Path, dice: random.Random) -> None:
    content = some_content(dice, 4 * MIB)
    for kind, suffix, grain in (
        ("raw", "img", None),
        ("vhd-dynamic", "vhd", 2 * MIB),
        ("vmdk-monolithicSparse", "vmdk", 65536),
    ):
        path = make_image(tmp_path / f"disk.{suffix}", kind, content)
        found = homeward("info", path, "--json").answer()
        assert set(found) == INFO_KEYS
        assert (found["format"], found["virtual_size"], found["grain_size"]) == (kind, len(content), grain)
        assert 0 < found["allocated_bytes"] <= len(content)
    assert homeward("info", path).stdout.startswith("format")


def test_a_device_is_asked_for_in_words(tmp_path: Path, dice: random.Random, loop_device: LoopDevice) -> None:
    """In a script a device needs --adopt; its broken syncs are remembered below the state directory."""
    content = some_content(dice, 4 * MIB)
    source = write_sparse(tmp_path / "source.raw", content)
    backing = write_sparse(tmp_path / "backing.raw", changed(dice, content))
    before = backing.read_bytes()
    device = loop_device(backing)
    state = tmp_path / "state"
    options = ("--state-directory", state, "--json")
    homeward("sync", source, device, *options).refused("HW-MT-006")
    assert device.read_bytes() == before
    found = homeward("sync", source, device, "--adopt", *options).answer()
    assert found["virtual_size"] == len(content)
    subprocess.run(["cmp", source, device], check=True)
    assert homeward("sync", "--drop-undo", device, *options).code == 0
    assert list(state.rglob("*")) == []


def test_zeroes_become_holes(tmp_path: Path, dice: random.Random) -> None:
    full = dice.randbytes(16 * MIB)
    target = tmp_path / "target.raw"
    target.write_bytes(full)
    new = bytearray(full)
    new[2 * MIB : 14 * MIB] = bytes(12 * MIB)
    source = tmp_path / "source.raw"
    source.write_bytes(new)  # the source keeps its zeroes as data
    before = target.stat().st_blocks * 512
    assert homeward("sync", source, target).code == 0
    judge(target, "raw", source)
    assert target.stat().st_blocks * 512 <= before - 12 * MIB


def test_a_larger_target_keeps_what_lies_beyond(tmp_path: Path, dice: random.Random) -> None:
    content, rest = some_content(dice, 2 * MIB + 100), dice.randbytes(MIB)
    source = write_sparse(tmp_path / "source.raw", content)
    target = write_sparse(tmp_path / "target.raw", dice.randbytes(len(content)) + rest)
    assert homeward("sync", source, target, "--allow-larger").code == 0
    assert target.read_bytes() == content + rest
    assert homeward("compare", source, target, "--allow-larger").code == 0
    homeward("compare", source, target).refused("HW-AGENT-006")


def test_help_and_version_succeed_and_nonsense_is_refused(tmp_path: Path) -> None:
    assert homeward("--help").code == 0
    assert homeward("--version").code == 0
    for words in (
        ("info",),
        ("nonsense",),
        ("sync", "a.raw"),
        ("sync", "a.raw", "b.raw", "--create", "qcow9"),
        ("sync", "a.raw", "b.raw", "--source-format", "nonsense", "--json"),
        ("sync", "a.raw", "b.raw", "--bandwidth", "fast"),
        ("sync", "a.raw", "b.raw", "--bandwidth", "0"),
        ("sync", "a.raw", "b.raw", "--lanes", "17"),
    ):
        homeward(*words, cwd=tmp_path).refused("HW-HOME-001")
    assert list(tmp_path.iterdir()) == []
