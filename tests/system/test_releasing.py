"""What a master target holds between sessions: nothing that grows, and nothing that keeps others out."""

import errno
import json
import os
import random
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from disks import catalogue
from drcore.errors import HomewardError
from masttarget.adapters.files import LocalStore
from masttarget.adapters.nbd import NbdServer
from masttarget.errors_retention import ServeFailed
from masttarget.offline import adopt, show
from tests.fault.media import MemoryDisk
from tests.system.command import changed, homeward, some_content, wait_until, write_sparse
from tests.system.roles import Kept, Pair

SIZE = 1024 * 1024 + 4096


def _pair(folder: Path, name: str, content: bytes) -> Pair:
    source = write_sparse(folder / f"{name}-source.raw", content)
    return Pair(source, folder / f"{name}.raw", create="raw")


def _held(folder: Path) -> list[str]:
    """What this process has open below the folder."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:  # the descriptor of this very listing
            continue
    return sorted(path for path in found if path.startswith(str(folder)))


@pytest.fixture
def site(tmp_path: Path, dice: random.Random) -> Kept:
    contents = [some_content(dice, SIZE) for _ in range(2)]
    return Kept(tmp_path, *(_pair(tmp_path, f"disk{i}", one) for i, one in enumerate(contents)))


def test_cycle_after_cycle_a_master_target_opens_nothing_that_stays_open(
    site: Kept, dice: random.Random
) -> None:
    with site.listening() as port:
        for _ in range(3):
            site.sync(port)
            for pair in site.pairs:
                write_sparse(pair.source, changed(dice, pair.source.read_bytes()))
            site.settled()
            assert _held(site.folder) == []


def test_an_agent_that_is_refused_leaves_no_disk_open(site: Kept) -> None:
    with site.listening() as port:
        site.sync(port)
        site.settled()
        adopt(site.masttarget().disks, 5, LocalStore(site.folder))
        before = [LocalStore(site.folder).journal(disk).load() for disk in site.masttarget().disks]
        with pytest.raises(HomewardError, match="HW-MT-008"):
            site.sync(port, generation=4)
        wait_until(lambda: sum(event == "connection ended" for event, _ in site.log) == 1)
        for pair in site.pairs:
            catalogue.open_target(pair.target).close()
        assert before == [LocalStore(site.folder).journal(disk).load() for disk in site.masttarget().disks]


def test_a_disk_that_cannot_be_opened_leaves_the_others_of_its_item_as_they_were(site: Kept) -> None:
    with site.listening() as port:
        site.sync(port)
        site.settled()
        first, second = site.masttarget().disks
        before = LocalStore(site.folder).journal(first).load()
        with closing(catalogue.open_target(second.path)), pytest.raises(HomewardError, match="HW-DISKS-010"):
            site.sync(port)
        wait_until(lambda: sum(event == "connection ended" for event, _ in site.log) == 1)
        assert sorted(site.health()) == ["critical", "healthy"]
        catalogue.open_target(first.path).close()
        assert LocalStore(site.folder).journal(first).load() == before
        assert not site.sync(port).resumed
        assert site.health() == ["healthy", "healthy"]


def test_the_last_point_is_told_while_a_cycle_is_open(site: Kept, dice: random.Random) -> None:
    with site.listening() as port:
        site.sync(port)
        site.settled()
        for pair in site.pairs:
            write_sparse(pair.source, changed(dice, pair.source.read_bytes()))
        point = site.sync(port).point.hex()
    store, settings = LocalStore(site.folder), site.masttarget()
    assert [each.point for each in show(settings.disks, store)] == [point, point]
    for disk in settings.disks:
        journal = store.journal(disk)
        record = journal.load()
        assert record is not None
        journal.store(replace(record, published=""))
    config = site.write_masttarget(
        retention=json.dumps(str(site.folder / "retention")), retention_own_volume="false"
    )
    told = homeward("masttarget", "show", "--config", config, "--json").answer()["disks"]
    assert [(each["point"], each["open_cycle"]) for each in told] == [(point, True)] * 2


def test_a_creation_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    source = tmp_path / "source.raw"
    source.touch()
    os.truncate(source, 3 << 40)  # more than a VHD can hold
    homeward("sync", source, tmp_path / "target.vhd", "--create", "vhd-dynamic").refused("HW-DISKS-012")
    assert os.listdir(tmp_path) == ["source.raw"]


@pytest.mark.parametrize("address", ["foo", "127.0.0.1:foo", "127.0.0.1:99999", "192.0.2.1:0"])
def test_an_address_that_cannot_be_served_at_is_refused_in_plain_words(address: str) -> None:
    with pytest.raises(ServeFailed) as caught:
        NbdServer(MemoryDisk(0), address, lambda error: None)
    words = caught.value.sentence("found")
    assert words in ("no HOST:PORT, and no absolute path", os.strerror(errno.EADDRNOTAVAIL))


def test_a_rollback_says_which_generation_the_next_agent_needs(site: Kept, dice: random.Random) -> None:
    with site.listening() as port:
        for _ in range(2):
            for pair in site.pairs:
                write_sparse(pair.source, changed(dice, pair.source.read_bytes()))
            first = site.sync(port)
    config = site.write_masttarget(
        retention=json.dumps(str(site.folder / "retention")), retention_own_volume="false"
    )
    told = homeward("points", "rollback", str(site.item), "1", "--config", config).stdout
    number = re.search(r"the next agent needs generation = (\d+) in its settings", told)
    assert number, told
    with site.listening() as port:
        with pytest.raises(HomewardError, match=f"set generation = {number[1]} in this agent's settings"):
            site.sync(port)
        assert site.sync(port, generation=int(number[1])).point != first.point
