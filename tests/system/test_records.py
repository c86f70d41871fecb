"""What a master target remembers beyond a published cycle: who was adopted, the generation, what the disk holds."""

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from drcore.clock import SystemClock
from masttarget.adapters.files import LocalStore
from masttarget.adapters.retention_files import RetentionFiles
from masttarget.going_back import go_back
from masttarget.retention import Policy, Retention
from masttarget.target import TargetDisk
from tests.system.command import homeward, judge, some_content, write_sparse
from tests.system.roles import Kept, Pair, Site
from wireproto.errors import PeerReported

MIB = 1024 * 1024


def test_an_older_generation_is_refused_even_after_its_cycle_was_published_and_the_role_restarted(
    tmp_path: Path, dice: random.Random
) -> None:
    source = write_sparse(tmp_path / "source.raw", some_content(dice, 2 * MIB))
    site = Site(tmp_path, Pair(source, tmp_path / "target.raw", create="raw"))
    newer, older = ((tmp_path / name, generation) for name, generation in (("newer", 7), ("older", 6)))
    with site.serving() as port:
        homeward(
            "agent",
            "sync",
            "--config",
            site.write_agent(port, newer[0].name, generation=str(newer[1])),
            "--json",
        ).answer()
    with site.serving() as port:
        refused = homeward(
            "agent",
            "sync",
            "--config",
            site.write_agent(port, older[0].name, generation=str(older[1])),
            "--json",
        )
        refused.refused("HW-MT-008")
        homeward(
            "agent",
            "sync",
            "--config",
            site.write_agent(port, newer[0].name, generation=str(newer[1])),
            "--json",
        ).answer()


@pytest.mark.parametrize("touched", [False, True], ids=["left alone", "touched meanwhile"])
def test_the_next_cycle_reads_the_target_only_when_somebody_touched_it(
    touched: bool, tmp_path: Path, dice: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = some_content(dice, 6 * MIB)
    source = write_sparse(tmp_path / "source.raw", content)
    target = tmp_path / "target.raw"
    site = Site(tmp_path, Pair(source, target, create="raw", adopt=False))
    site_keeps = site.masttarget()
    kept = replace(site_keeps, disks=tuple(replace(disk, keep_record=True) for disk in site_keeps.disks))
    monkeypatch.setattr(site, "masttarget", lambda: kept)
    known: list[bool] = []
    scanned = TargetDisk.scanned

    def noting(self: TargetDisk, *arguments: object) -> object:
        known.append(self.known)
        return scanned(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(TargetDisk, "scanned", noting)
    with site.listening() as port:
        site.sync(port)
    if touched:
        os.utime(target, ns=(1, 1))
    with site.listening() as port:
        report = site.sync(port)
    assert report.resumed is False
    assert report.disks[0].blocks_sent == 0
    assert known == [True, not touched], "the first was created, so what it holds was known too"
    judge(target, "raw", source)


def test_another_disk_at_the_adopted_path_is_not_written_to(tmp_path: Path, dice: random.Random) -> None:
    source = write_sparse(tmp_path / "source.raw", some_content(dice, 2 * MIB))
    target = tmp_path / "target.raw"
    site = Site(tmp_path, Pair(source, target, create="raw", adopt=False))
    with site.serving() as port:
        homeward("agent", "sync", "--config", site.write_agent(port), "--json").answer()
    target.unlink()
    stranger = dice.randbytes(3 * MIB)
    target.write_bytes(stranger)
    with site.listening() as port, pytest.raises(PeerReported) as caught:
        site.sync(port)
    assert caught.value.peer_code in ("HW-MT-006", "HW-MT-007")
    assert target.read_bytes() == stranger


def test_a_point_of_disks_that_were_equal_already_is_durable_too(
    tmp_path: Path, dice: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = some_content(dice, 2 * MIB)
    source, target = tmp_path / "source.raw", tmp_path / "target.raw"
    source.write_bytes(content)
    target.write_bytes(content)  # by somebody who did not wait for the medium
    site = Site(tmp_path, Pair(source, target))
    flushed: list[str] = []
    fdatasync = os.fdatasync

    def noting(descriptor: int) -> None:
        fdatasync(descriptor)
        flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fdatasync", noting)
    with site.listening() as port:
        assert site.sync(port).disks[0].blocks_sent == 0
    assert str(target) in flushed


def test_what_a_rollback_overwrote_is_not_called_lost(tmp_path: Path, dice: random.Random) -> None:
    pair = Pair(tmp_path / "source.raw", tmp_path / "target.raw")
    for path in (pair.source, pair.target):
        path.write_bytes(dice.randbytes(2 * MIB))
    site = Kept(tmp_path, pair)
    with site.listening() as port:
        site.sync(port)
        site.settled()
    retention = RetentionFiles(tmp_path / "retention")
    item = Retention(retention, SystemClock(), Policy(), lambda event, /, **facts: None).item(site.item.bytes)
    as_found = item.points.choose("1")
    store = LocalStore(tmp_path)
    gone = go_back(site.masttarget().disks, as_found, item, store, lambda position: None)
    with site.listening() as port:
        site.sync(port, generation=gone.generation)
    assert "acknowledged blocks were lost by the medium" not in [event for event, _ in site.log]
    judge(pair.target, "raw", pair.source)
