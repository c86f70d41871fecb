"""`sync --undo` brings back what a sync overwrote, finished or broken off; `--drop-undo` gives the way back up."""

import random
import time
from pathlib import Path

import pytest

from tests.system.command import (
    changed,
    homeward,
    interrupted,
    judge,
    left_beside,
    make_image,
    some_content,
    start,
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
    found = homeward("sync", "--undo", target, "--json", "--target-format", kind).answer()
    assert found["blocks_changed"] > 0
    assert (found["removed"], found["more"]) == (False, False)
    judge(target, kind, before)
    assert left_beside(target) == []
    homeward("sync", "--undo", target, "--json").refused("HW-MT-039")


def test_syncs_are_taken_back_one_after_the_other(tmp_path: Path, dice: random.Random) -> None:
    contents = [some_content(dice, 4 * MIB)]
    for _ in range(3):
        contents.append(changed(dice, contents[-1]))
    states = [write_sparse(tmp_path / f"{number}.raw", content) for number, content in enumerate(contents)]
    target = write_sparse(tmp_path / "target.raw", contents[0])
    for state in states[1:]:
        assert homeward("sync", state, target).code == 0
    for number in (2, 1, 0):
        found = homeward("sync", "--undo", target, "--json").answer()
        judge(target, "raw", states[number])
        assert found["more"] is (number > 0)
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


def test_a_target_that_a_broken_sync_created_goes_with_it(tmp_path: Path, dice: random.Random) -> None:
    source = write_sparse(tmp_path / "source.raw", dice.randbytes(24 * MIB))
    target = tmp_path / "target.raw"
    other = write_sparse(tmp_path / "target-flat2.raw", b"not ours")
    process = start("sync", source, target, "--create", "raw", "--json", "--bandwidth", "8M")
    record = target.with_name("target.raw.homeward") / "applied"
    interrupted(process, lambda: record.exists() and record.stat().st_size > 1000)
    assert homeward("sync", "--undo", target, "--json").answer()["removed"] is True
    assert not target.exists()
    assert left_beside(target) == []
    assert other.exists()


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


def test_the_way_back_is_given_up_only_where_there_is_one(tmp_path: Path, dice: random.Random) -> None:
    content = some_content(dice, 2 * MIB)
    source, target = (write_sparse(tmp_path / name, content) for name in ("source.raw", "target.raw"))
    homeward("sync", "--drop-undo", target, "--json").refused("HW-MT-039")
    assert homeward("sync", source, target).code == 0
    assert left_beside(target) == [], "equal disks leave nothing to take back"
    homeward("sync", source, target, "--undo", "--json").refused("HW-HOME-001")
