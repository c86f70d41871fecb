"""`sync --undo` brings back what a sync overwrote, finished or broken off; `--drop-undo` gives the way back up."""

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.config import Compression
from disks.errors import DiskInUse
from homeward.local import LocalSync, SyncOrder, Workplace
from homeward.points import undo_sync
from masttarget.adapters.journal_directory import JournalDirectory
from masttarget.adapters.retention_files import RetentionFiles
from masttarget.points import Points
from tests.conftest import LoopDevice, MountPoint
from tests.system.command import (
    changed,
    ended,
    homeward,
    interrupted,
    judge,
    left_beside,
    make_image,
    some_content,
    start,
    wait_until,
    write_sparse,
)

MIB = 1024 * 1024
KINDS = {"raw": "t.raw", "vmdk-monolithicSparse": "t.vmdk", "vhd-dynamic": "t.vhd"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_sync_is_taken_back(kind: str, tmp_path: Path, dice: random.Random) -> None:
    old = some_content(dice, 6 * MIB + 512)
    before = write_sparse(tmp_path / "before.raw", old)
    source = write_sparse(tmp_path / "source.raw", changed(dice, old))
    target = tmp_path / KINDS[kind]
    make_image(target, kind, old)
    assert homeward("sync", source, target, "--target-format", kind).code == 0
    judge(target, kind, source)
    kept = target.with_name(target.name + ".homeward")
    modes = {(path.is_dir(), path.stat().st_mode & 0o777) for path in (kept, *kept.rglob("*"))}
    assert modes == {(True, 0o700), (False, 0o600)}
    found = homeward("sync", "--undo", target, "--json", "--target-format", kind).answer()
    assert found["blocks_changed"] > 0
    assert (found["removed"], found["more"]) == (False, False)
    judge(target, kind, before)
    assert left_beside(target) == []
    homeward("sync", "--undo", target, "--json").refused("HW-MT-039")


def _target_and_states(directory: Path, dice: random.Random, changes: int) -> tuple[Path, list[Path]]:
    """A target, what it holds, and so many later states of it, as disks."""
    contents = [some_content(dice, 4 * MIB)]
    for _ in range(changes):
        contents.append(changed(dice, contents[-1]))
    states = [write_sparse(directory / f"{number}.raw", content) for number, content in enumerate(contents)]
    return write_sparse(directory / "target.raw", contents[0]), states


def test_syncs_are_taken_back_one_after_the_other(tmp_path: Path, dice: random.Random) -> None:
    target, states = _target_and_states(tmp_path, dice, 3)
    for state in states[1:]:
        assert homeward("sync", state, target).code == 0
    for number in (2, 1, 0):
        found = homeward("sync", "--undo", target, "--json").answer()
        judge(target, "raw", states[number])
        assert found["more"] is (number > 0)
    assert left_beside(target) == []


def test_a_sync_that_changed_nothing_is_none_to_take_back(tmp_path: Path, dice: random.Random) -> None:
    target, states = _target_and_states(tmp_path, dice, 2)
    for state in (states[1], states[1], states[2], states[2], states[2]):
        assert homeward("sync", state, target).code == 0
    for number in (1, 0):
        found = homeward("sync", "--undo", target, "--json").answer()
        assert (found["blocks_changed"] > 0, found["more"]) == (True, number > 0)
        judge(target, "raw", states[number])
    assert left_beside(target) == []


def test_a_broken_sync_is_taken_back_and_goes_on_if_it_is_not(tmp_path: Path, dice: random.Random) -> None:
    old = dice.randbytes(24 * MIB)
    before = write_sparse(tmp_path / "before.raw", old)
    source = write_sparse(tmp_path / "source.raw", dice.randbytes(24 * MIB))
    for undo in (True, False):
        target = write_sparse(tmp_path / f"{undo}.raw", old)
        process = start("sync", source, target, "--json", "--bandwidth", "8M")
        record = target.with_name(target.name + ".homeward") / "applied"
        interrupted(process, lambda r=record: r.exists() and r.stat().st_size > 1000).refused(
            "HW-AGENT-007", exit_code=130
        )
        assert target.read_bytes() != old
        if not undo:
            assert homeward("sync", source, target, "--json").answer()["resumed"] is True
            judge(target, "raw", source)
        homeward("sync", "--undo", target, "--json").answer()
        judge(target, "raw", before)
        assert left_beside(target) == []


def test_a_broken_sync_goes_on_after_its_way_back_was_given_up(tmp_path: Path, dice: random.Random) -> None:
    source = write_sparse(tmp_path / "source.raw", dice.randbytes(16 * MIB))
    target = write_sparse(tmp_path / "target.raw", dice.randbytes(16 * MIB))
    process = start("sync", source, target, "--json", "--bandwidth", "8M")
    record = target.with_name("target.raw.homeward") / "applied"
    interrupted(process, lambda: record.exists() and record.stat().st_size > 1000)
    half = target.read_bytes()
    homeward("sync", "--drop-undo", target, "--json").answer()
    assert homeward("sync", source, target, "--json").answer()["resumed"] is True
    judge(target, "raw", source)
    homeward("sync", "--undo", target, "--json").answer()
    assert target.read_bytes() == half, "what was there when the way back was given up"


def test_a_target_that_a_broken_sync_created_goes_with_it(tmp_path: Path, dice: random.Random) -> None:
    source = write_sparse(tmp_path / "source.raw", dice.randbytes(24 * MIB))
    target = tmp_path / "target.raw"
    others = [
        write_sparse(tmp_path / f"target-{name}.raw", b"not ours") for name in ("flat2", "flat", "s001")
    ]
    process = start("sync", source, target, "--create", "raw", "--json", "--bandwidth", "8M")
    record = target.with_name("target.raw.homeward") / "applied"
    interrupted(process, lambda: record.exists() and record.stat().st_size > 1000)
    assert homeward("sync", "--undo", target, "--json").answer()["removed"] is True
    assert not target.exists()
    assert left_beside(target) == []
    assert all(other.exists() for other in others)


def test_a_target_that_was_changed_since_is_not_taken_back(tmp_path: Path, dice: random.Random) -> None:
    old = some_content(dice, 2 * MIB)
    source = write_sparse(tmp_path / "source.raw", changed(dice, old))
    target = write_sparse(tmp_path / "target.raw", old)
    assert homeward("sync", source, target).code == 0
    time.sleep(0.02)
    with target.open("r+b") as file:
        file.write(b"the machine was started")
    content = target.read_bytes()
    homeward("sync", "--undo", target, "--json").refused("HW-MT-042")
    assert target.read_bytes() == content
    assert homeward("sync", source, target).code == 0
    homeward("sync", "--undo", target, "--json").answer()
    assert target.read_bytes() == content, "back to what the second sync found"
    assert left_beside(target) == []


def test_a_device_that_somebody_wrote_to_since_is_not_taken_back(
    tmp_path: Path, dice: random.Random, loop_device: LoopDevice
) -> None:
    old = some_content(dice, 2 * MIB)[: 2 * MIB]
    backing = write_sparse(tmp_path / "backing.raw", old)
    source = write_sparse(tmp_path / "source.raw", changed(dice, old))
    device, state = loop_device(backing), tmp_path / "state"
    words = ("--adopt", "--state-directory", state)
    undo = ("sync", "--undo", device, "--state-directory", state, "--json")
    assert homeward("sync", source, device, *words).code == 0
    homeward(*undo).answer()
    judge(device, "raw", write_sparse(tmp_path / "old.raw", old))
    assert homeward("sync", source, device, *words).code == 0
    with device.open("r+b", buffering=0) as file:
        file.write(b"the machine was started".ljust(4096))
        os.fsync(file.fileno())
    content = device.read_bytes()
    homeward(*undo).refused("HW-MT-042")
    assert device.read_bytes() == content
    assert homeward("sync", source, device, *words).code == 0
    homeward(*undo).answer()
    assert device.read_bytes() == content, "back to what the second sync found"


def test_the_way_back_is_given_up_only_where_there_is_one(tmp_path: Path, dice: random.Random) -> None:
    content = some_content(dice, 2 * MIB)
    source, target = (write_sparse(tmp_path / name, content) for name in ("source.raw", "target.raw"))
    homeward("sync", "--drop-undo", target, "--json").refused("HW-MT-039")
    assert homeward("sync", source, target).code == 0
    assert left_beside(target) == [], "equal disks leave nothing to take back"
    homeward("sync", source, target, "--undo", "--json").refused("HW-HOME-001")


STEPS = (
    (Points, ("add", "note_rollback", "drop")),
    (JournalDirectory, ("store", "remove")),
    (RetentionFiles, ("remove",)),
)
"""What is made durable while a sync is taken back, beside blocks."""


class Killed(BaseException):
    """What a kill leaves is what was durable before; nothing may tidy up for it."""


def killed_before(step: int, target: Path, patch: pytest.MonkeyPatch) -> bool:
    """Whether taking back came to its step so-and-so, and no farther."""
    left = step

    def counted(verb: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left <= 0:
                raise Killed
            return verb(*arguments, **named)

        return call

    with patch.context() as within:
        for kind, names in STEPS:
            for name in names:
                within.setattr(kind, name, counted(getattr(kind, name)))
        try:
            undo_sync(target, None, target.parent, as_json=True)
        except Killed:
            return True
    return False


@pytest.mark.parametrize("before", ["one sync", "two syncs", "broken sync"])
def test_taking_back_goes_on_after_a_kill_at_any_step(
    before: str, tmp_path: Path, dice: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, middle = dice.randbytes(MIB), dice.randbytes(MIB)
    for step in range(1, 20):
        folder = tmp_path / str(step)
        folder.mkdir()
        target = write_sparse(folder / "target.raw", old)
        source = write_sparse(folder / "source.raw", middle)
        if before != "broken sync":
            assert homeward("sync", source, target).code == 0
        expected = old
        if before == "two syncs":
            expected = middle
            assert homeward("sync", write_sparse(source, dice.randbytes(MIB)), target).code == 0
        if before == "broken sync":
            process = start("sync", source, target, "--json", "--bandwidth", "2M")
            record = folder / "target.raw.homeward" / "applied"
            interrupted(process, lambda r=record: r.exists() and r.stat().st_size > 100)
        if not killed_before(step, target, monkeypatch):
            assert target.read_bytes() == expected
            assert step > 3
            return
        undo_sync(target, None, target.parent, as_json=True)
        assert target.read_bytes() == expected, f"killed before step {step}"
        assert left_beside(target) == (["target.raw.homeward"] if before == "two syncs" else [])
    raise AssertionError


def test_syncs_of_sources_of_other_sizes_are_taken_back_whole(tmp_path: Path, dice: random.Random) -> None:
    old = dice.randbytes(3 * MIB)
    target = write_sparse(tmp_path / "target.raw", old)
    small, large = dice.randbytes(MIB + 4196), dice.randbytes(2 * MIB)
    for number, content in enumerate((small, large)):
        source = write_sparse(tmp_path / f"{number}.raw", content)
        assert homeward("sync", source, target, "--allow-larger").code == 0
    seen = []
    while homeward("sync", "--undo", target, "--json").answer()["more"]:
        seen.append(target.read_bytes())
    assert seen[0] == small + old[len(small) :]
    assert target.read_bytes() == old
    assert left_beside(target) == []


@pytest.mark.parametrize("zero", [False, True])
def test_a_source_that_shrank_and_grew_again_is_taken_back_to_each_of_its_sizes(
    zero: bool, tmp_path: Path, dice: random.Random
) -> None:
    # The end of each shorter source is zero before the next one comes: a record without bytes, in a cut block.
    ends = [bytes(70_000) if zero else dice.randbytes(70_000) for _ in range(4)]
    sizes = (MIB + 50_000, MIB + 4096, MIB + 30_000, MIB + 8192)
    contents = [dice.randbytes(size - len(end)) + end for size, end in zip(sizes, ends, strict=True)]
    target = write_sparse(tmp_path / "target.raw", dice.randbytes(MIB + 60_000))
    states = [target.read_bytes()]
    for number, content in enumerate(contents):
        source = write_sparse(tmp_path / f"{number}.raw", content)
        assert homeward("sync", source, target, "--allow-larger").code == 0
        states.append(target.read_bytes())
        assert states[-1] == content + states[-2][len(content) :]
    seen = [states[-1]]
    more = True
    while more:
        more = homeward("sync", "--undo", target, "--json").answer()["more"]
        if target.read_bytes() != seen[-1]:  # a point of its own stands where the size changed
            seen.append(target.read_bytes())
    assert seen == states[::-1]


def test_the_way_back_is_not_given_up_under_a_sync_that_runs(tmp_path: Path, dice: random.Random) -> None:
    old = dice.randbytes(4 * MIB)
    source = write_sparse(tmp_path / "source.raw", dice.randbytes(4 * MIB))
    target = write_sparse(tmp_path / "target.raw", old)
    process = start("sync", source, target, "--json", "--bandwidth", "700k")
    record = tmp_path / "target.raw.homeward" / "applied"
    wait_until(lambda: record.exists() and record.stat().st_size > 100)
    homeward("sync", "--drop-undo", target, "--json").refused("HW-DISKS-010")
    assert ended(process).code == 0
    homeward("sync", "--undo", target, "--json").answer()
    assert target.read_bytes() == old


def test_of_two_syncs_at_once_one_is_refused_and_leaves_the_other_alone(
    tmp_path: Path, dice: random.Random
) -> None:
    old = dice.randbytes(2 * MIB)
    source = write_sparse(tmp_path / "source.raw", dice.randbytes(2 * MIB))
    target = write_sparse(tmp_path / "target.raw", old)
    first, second = (Workplace(target, tmp_path) for _ in range(2))
    told = first.prepare()
    files = {path.name: path.read_bytes() for path in first.path.iterdir()}
    order = SyncOrder(source, target, "", None, None, None, Compression.AUTO, False, True, 1)
    with pytest.raises(DiskInUse):
        LocalSync(order, tmp_path, lambda error, wait: None).start()
    homeward("sync", source, target, "--json", "--adopt").refused("HW-DISKS-010")
    homeward("sync", "--drop-undo", target, "--json").refused("HW-MT-039")
    second.tidy()
    second.release()
    assert {path.name: path.read_bytes() for path in first.path.iterdir()} == files
    assert first.prepare() == told
    first.release()
    assert left_beside(target) == []
    assert homeward("sync", source, target, "--json").code == 0
    homeward("sync", "--undo", target, "--json").answer()
    assert target.read_bytes() == old
    assert left_beside(target) == []


def test_a_run_that_is_just_ending_is_waited_for(tmp_path: Path) -> None:
    """Of one that was killed, the master target still flushes when the command is given again."""
    target = tmp_path / "target.raw"
    first, second = (Workplace(target, tmp_path) for _ in range(2))
    first.prepare()
    ending = threading.Timer(0.3, first.release)
    ending.start()
    second.prepare()
    ending.join()
    second.release()
    assert left_beside(target) == []


@pytest.mark.parametrize("room", [True, False])
def test_a_sync_that_waits_for_room_to_keep_old_contents_says_so(
    room: bool, tmp_path: Path, dice: random.Random, mount_point: MountPoint
) -> None:
    point = mount_point("tmpfs", 14 * MIB)
    old = dice.randbytes(3 * MIB)
    source = write_sparse(tmp_path / "source.raw", dice.randbytes(3 * MIB))
    target = write_sparse(point / "target.raw", old)
    ballast = write_sparse(point / "ballast", dice.randbytes(9 * MIB))
    process = start("sync", source, target, "--json")
    assert process.stderr is not None
    line = next(iter(process.stderr.readline, ""))
    while "HW-MT-036" not in line:
        assert line, "ended without a word"
        line = process.stderr.readline()
    assert str(target) in line
    if room:
        ballast.unlink()
        outcome = ended(process)
        assert outcome.code == 0
        assert "there is room again" in outcome.stderr
        judge(target, "raw", source)
    else:
        interrupted(process, lambda: True).refused("HW-AGENT-007", exit_code=130)
        ballast.unlink()
    homeward("sync", "--undo", target, "--json").answer()
    assert target.read_bytes() == old


def test_a_taking_back_that_waits_for_room_says_so_and_stops_in_order(
    tmp_path: Path, dice: random.Random, mount_point: MountPoint
) -> None:
    point = mount_point("tmpfs", 14 * MIB)
    old = dice.randbytes(3 * MIB)
    source = write_sparse(tmp_path / "source.raw", dice.randbytes(3 * MIB))
    target = write_sparse(point / "target.raw", old)
    assert homeward("sync", source, target, "--json").code == 0
    ballast = write_sparse(point / "ballast", dice.randbytes(6 * MIB))
    process = start("sync", "--undo", target, "--json")
    assert process.stderr is not None
    line = process.stderr.readline()
    while "HW-MT-036" not in line:
        assert line, "ended without a word"
        line = process.stderr.readline()
    interrupted(process, lambda: True).refused("HW-AGENT-007", exit_code=130)
    ballast.unlink()
    homeward("sync", "--undo", target, "--json").answer()
    assert target.read_bytes() == old
    assert left_beside(target) == []
