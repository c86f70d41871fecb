"""The two roles as two processes, several disks and lanes, and who may send when two want to."""

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent.main import Agent
from disks.scan import RegionRun
from drcore.errors import HomewardError
from masttarget.session import Session
from masttarget.target import TargetDisk
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
from tests.system.roles import Pair, Site, no_retry
from wireproto.errors import PeerReported

MIB = 1024 * 1024
AGENT_KEYS = {
    "disks",
    "bytes_sent",
    "bytes_received",
    "lanes",
    "resumed",
    "point",
    "kind",
    "seconds",
    "cpu_seconds",
}
DISK_KEYS = {
    "disk",
    "virtual_size",
    "blocks_sent",
    "sectors_sent",
    "blocks_referenced",
    "sectors_referenced",
    "bytes_resent",
    "root",
}


def test_two_processes_bring_home_an_item_of_two_disks(tmp_path: Path, dice: random.Random) -> None:
    one, two = some_content(dice, 6 * MIB + 512), some_content(dice, 3 * MIB + 77)
    first = make_image(tmp_path / "one.vmdk", "vmdk-monolithicSparse", one)
    second = write_sparse(tmp_path / "two.raw", two)
    existing = write_sparse(tmp_path / "home-two.raw", changed(dice, two))
    site = Site(
        tmp_path,
        Pair(first, tmp_path / "home-one.vhd", create="vhd-dynamic"),
        Pair(second, existing),
    )
    with site.serving() as port:
        found = homeward("agent", "sync", "--config", site.write_agent(port), "--json").answer()
        assert set(found) == AGENT_KEYS
        assert [set(disk) for disk in found["disks"]] == [DISK_KEYS] * 2
        assert [disk["virtual_size"] for disk in found["disks"]] == [len(one), len(two)]
        assert [disk["disk"] for disk in found["disks"]] == [pair.disk.hex for pair in site.pairs]
        again = homeward("agent", "sync", "--config", site.write_agent(port), "--json").answer()
        assert [disk["blocks_sent"] for disk in again["disks"]] == [0, 0]
        assert again["point"] != found["point"]
    assert site.served is not None
    assert site.served.code == 0
    judge(tmp_path / "home-one.vhd", "vhd-dynamic", write_sparse(tmp_path / "model.raw", one))
    judge(existing, "raw", second)
    assert left_beside(existing) == ["home-two.raw.homeward"], "who was adopted is remembered"
    assert list((tmp_path / "agent").iterdir()) == []


@pytest.mark.parametrize("lanes", [4, 16])
def test_several_lanes_carry_one_disk(lanes: int, tmp_path: Path, dice: random.Random) -> None:
    content = bytearray(dice.randbytes(96 * MIB))
    for span in range(0, 96, 3):
        content[span * MIB : span * MIB + 300_000] = bytes(300_000)
    source = write_sparse(tmp_path / "source.raw", content)
    target = write_sparse(tmp_path / "target.raw", changed(dice, bytes(len(content))))
    outcome = homeward("sync", source, target, "--lanes", str(lanes), "--json")
    assert outcome.answer()["bytes_sent"] > 80 * MIB
    judge(target, "raw", source)
    assert left_beside(target) == ["target.raw.homeward"], "the way back"


def test_a_commit_waits_for_the_scan_that_it_overtook(
    tmp_path: Path, dice: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent has the last digest before the scanning thread knows that it was the last."""
    committed = threading.Event()
    wait_for, scanned = Session.wait_for, TargetDisk.scanned

    def announced(self: Session, *arguments: object) -> None:
        committed.set()
        wait_for(self, *arguments)  # type: ignore[arg-type]

    def dawdling(self: TargetDisk, on_bytes: Callable[[int], None]) -> Iterator[RegionRun]:
        for run in scanned(self, on_bytes):
            yield run
            assert committed.wait(30)

    monkeypatch.setattr(Session, "wait_for", announced)
    monkeypatch.setattr(TargetDisk, "scanned", dawdling)
    content = some_content(dice, MIB)
    site = Site(
        tmp_path,
        Pair(write_sparse(tmp_path / "source.raw", content), write_sparse(tmp_path / "target.raw", content)),
    )
    with site.listening() as port:
        assert site.sync(port).disks[0].blocks_sent == 0


def test_a_second_agent_takes_over_and_the_first_is_fenced(tmp_path: Path, dice: random.Random) -> None:
    content = dice.randbytes(24 * MIB)
    source = write_sparse(tmp_path / "source.raw", content)
    target = tmp_path / "target.raw"
    site = Site(tmp_path, Pair(source, target, create="raw"))
    with site.serving() as port:
        slow = start("agent", "sync", "--json", "--config", site.write_agent(port, "slow", bandwidth='"4M"'))
        wait_until(lambda: target.exists() and target.stat().st_blocks > 4 * MIB // 512)
        second = homeward("agent", "sync", "--json", "--config", site.write_agent(port, "second"))
        first = ended(slow)
        assert second.answer()["resumed"] is True
        first.refused("HW-MT-008")
    judge(target, "raw", source)
    assert left_beside(target) == ["target.raw.homeward"], "who was adopted is remembered"


def test_of_many_agents_at_once_exactly_one_goes_on(tmp_path: Path, dice: random.Random) -> None:
    content = dice.randbytes(2 * MIB)
    source = write_sparse(tmp_path / "source.raw", content)
    target = tmp_path / "target.raw"
    site = Site(tmp_path, Pair(source, target, create="raw"))
    results: list[str] = []

    def agent(number: int, port: int) -> None:
        # Slow enough that nobody is done before the last has begun.
        config = replace(site.agent(port), state_directory=tmp_path / f"agent-{number}", bandwidth=2 * MIB)
        try:
            Agent(config, no_retry).run()
            results.append("published")
        except PeerReported as error:
            results.append(error.peer_code)

    with site.listening() as port:
        threads = [threading.Thread(target=agent, args=(number, port)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
    assert sorted(results) == ["HW-MT-008"] * 3 + ["published"]
    judge(target, "raw", source)


def test_an_older_generation_is_refused_for_good(tmp_path: Path, dice: random.Random) -> None:
    source = write_sparse(tmp_path / "source.raw", dice.randbytes(24 * MIB))
    target = tmp_path / "target.raw"
    site = Site(tmp_path, Pair(source, target, create="raw"))
    with site.listening() as port:
        newer = Agent(replace(site.agent(port), generation=5, bandwidth=4 * MIB), no_retry)
        thread = threading.Thread(target=stopped, args=(newer,))
        thread.start()
        wait_until(lambda: target.exists() and target.stat().st_blocks > 0)
        with pytest.raises(PeerReported) as caught:
            site.sync(port, generation=4, state_directory=tmp_path / "older")
        assert caught.value.peer_code == "HW-MT-008"
        assert thread.is_alive(), "the newer one was not disturbed"
        newer.stop()
        thread.join(30)
        assert not thread.is_alive()
    with site.listening() as port:  # also after a restart: the generation is durable
        with pytest.raises(PeerReported) as caught:
            site.sync(port, generation=4)
        assert caught.value.peer_code == "HW-MT-008"
        assert site.sync(port, generation=5).resumed
    judge(target, "raw", source)


def stopped(agent: Agent) -> None:
    with pytest.raises(HomewardError):
        agent.run()


def test_the_master_target_ends_in_order_with_an_agent_connected(tmp_path: Path, dice: random.Random) -> None:
    source = write_sparse(tmp_path / "source.raw", dice.randbytes(24 * MIB))
    target = tmp_path / "target.raw"
    site = Site(tmp_path, Pair(source, target, create="raw"))
    with site.serving() as port:
        agent = start("agent", "sync", "--json", "--config", site.write_agent(port, bandwidth='"4M"'))
        wait_until(lambda: target.exists() and target.stat().st_blocks > 4 * MIB // 512)
    outcome = ended(agent)
    assert outcome.code == 2
    assert outcome.refused("HW-MT-016")
    with site.serving() as port:
        found = homeward("agent", "sync", "--json", "--config", site.write_agent(port)).answer()
        assert found["resumed"] is True
    judge(target, "raw", source)
