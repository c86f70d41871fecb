"""What the master target does without an agent: adopt, fence, show, prove."""

import random
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3

from disks import catalogue
from disks.errors import DiskInUse
from drcore.units import BLOCK_BYTES
from masttarget import offline
from masttarget.adapters.files import LocalStore
from masttarget.config import DiskConfig, MasttargetConfig
from masttarget.errors import Fenced, NotAdopted, OtherTarget
from tests.system.roles import Pair, Site
from wireproto.errors import PeerReported

MIB = 1024 * 1024


class Keeping(Site):
    """A site whose master target keeps its records, as one that serves for good does."""

    def masttarget(self) -> MasttargetConfig:
        found = super().masttarget()
        return replace(found, disks=tuple(replace(disk, keep_record=True) for disk in found.disks))


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "state")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """An item of two disks, adoption confirmed."""
    pairs = []
    for name in ("one", "two"):
        source, target = tmp_path / f"{name}.raw", tmp_path / f"home-{name}.raw"
        source.write_bytes(random.Random(name).randbytes(MIB))
        target.write_bytes(bytes(MIB))
        pairs.append(Pair(source, target))
    return Keeping(tmp_path, *pairs)


def disks(site: Site) -> tuple[DiskConfig, ...]:
    return site.masttarget().disks


def test_nothing_is_known_of_a_disk_before_it_is_adopted(site: Site, store: LocalStore) -> None:
    assert [each.generation for each in offline.show(disks(site), store)] == [0, 0]
    assert not any(site.journal(pair).exists() for pair in site.pairs), "a look leaves nothing behind"


def test_an_adopted_disk_keeps_its_generation_and_refuses_older_agents(site: Site, store: LocalStore) -> None:
    taken = offline.adopt(disks(site), 5, store)
    assert [(each.generation, each.point, each.open_cycle) for each in taken] == [(5, "", False)] * 2
    with site.listening() as port:
        with pytest.raises(PeerReported) as caught:
            site.sync(port, generation=4)
        assert caught.value.peer_code == "HW-MT-008"
        report = site.sync(port, generation=5)
        site.settled()
    found = offline.show(disks(site), store)
    assert [(each.generation, each.point) for each in found] == [(5, report.point.hex())] * 2
    assert offline.adopt(disks(site), 6, store)[0].point == report.point.hex(), "the point stays"


def test_a_generation_never_falls_for_any_disk_of_the_item(site: Site, store: LocalStore) -> None:
    first, second = disks(site)
    offline.adopt((first,), 3, store)
    with pytest.raises(Fenced) as caught:
        offline.adopt((second, first), 2, store)
    assert caught.value.current_generation == 3
    assert offline.show((second,), store)[0].generation == 0, "nothing was changed"
    assert offline.adopt((first, second), 3, store) == offline.adopt((first, second), 3, store)


def test_a_disk_that_nobody_confirmed_is_not_taken(site: Site, store: LocalStore) -> None:
    site.pairs = [Pair(pair.source, pair.target, adopt=False) for pair in site.pairs]
    with pytest.raises(NotAdopted):
        offline.adopt(disks(site), 1, store)
    assert not any(site.journal(pair).exists() for pair in site.pairs)


def test_another_disk_in_the_place_of_an_adopted_one_is_refused(site: Site, store: LocalStore) -> None:
    offline.adopt(disks(site), 1, store)
    with site.pairs[0].target.open("ab") as file:
        file.write(bytes(MIB))
    with pytest.raises(OtherTarget):
        offline.adopt(disks(site), 2, store)


def test_a_disk_that_somebody_holds_is_neither_taken_nor_proved(site: Site, store: LocalStore) -> None:
    held = catalogue.open_target(site.pairs[0].target)
    try:
        with pytest.raises(DiskInUse):
            offline.adopt(disks(site), 1, store)
        with pytest.raises(DiskInUse):
            offline.prove(disks(site), store, lambda done, total: None)
    finally:
        held.close()


def test_both_roles_prove_the_same_after_a_sync_and_not_before(site: Site, store: LocalStore) -> None:
    seen: list[tuple[int, int]] = []
    before = offline.prove(disks(site), store, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (2 * MIB, 2 * MIB)
    with site.listening() as port:
        site.sync(port)
        site.settled()
        from agent.main import Agent

        ours = Agent(site.agent(port), lambda error, wait: None).prove()
    theirs = offline.prove(disks(site), store, lambda done, total: None)
    assert [each.root for each in ours] == [each.root for each in theirs] != [each.root for each in before]
    assert [uuid.UUID(each.disk) for each in ours] == [pair.disk for pair in site.pairs]
    data = site.pairs[0].source.read_bytes()
    blocks = (blake3(data[at : at + BLOCK_BYTES]).digest() for at in range(0, MIB, BLOCK_BYTES))
    assert ours[0].root == blake3(b"".join(blocks)).hexdigest()
