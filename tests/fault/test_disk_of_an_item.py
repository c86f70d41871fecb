"""One disk of an item fails: it stops by itself, the item's others get what they lack, and there is no point."""

import random
import subprocess
from pathlib import Path

import pytest

from drcore.errors import HomewardError
from tests.conftest import MountPoint
from tests.system.command import homeward
from tests.system.roles import Kept, Pair
from wireproto.errors import PeerReported

MIB = 1024 * 1024
SIZE = 24 * MIB


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("full", [0, 1])
def test_a_full_target_stops_alone(
    full: int, lanes: int, tmp_path: Path, dice: random.Random, mount_point: MountPoint
) -> None:
    narrow = mount_point("tmpfs", 3 * MIB)
    pairs = []
    for number in range(2):
        source = tmp_path / f"source{number}.raw"
        source.write_bytes(dice.randbytes(SIZE))
        folder = narrow if number == full else tmp_path
        pairs.append(Pair(source, folder / f"target{number}.raw", create="raw"))
    site = Kept(tmp_path, *pairs)
    with site.listening() as port:
        with pytest.raises(PeerReported) as caught:
            site.sync(port, lanes=lanes)
        error: HomewardError = caught.value
        assert error.as_json()["code"] == "HW-DISKS-003"
        assert str(pairs[full].target) in str(error)
        assert "1 of the item's 2 disks hold what their sources hold" in str(error)
        whole = pairs[1 - full]
        assert whole.target.read_bytes() == whole.source.read_bytes()
        assert sorted(site.health()) == ["critical", "healthy"]
        assert "point published" not in [event for event, _ in site.log]
        subprocess.run(["mount", "-o", f"remount,size={2 * SIZE}", narrow], check=True)
        report = site.sync(port, lanes=lanes)
        assert report.disks[1 - full].blocks_sent == 0
        assert report.disks[full].blocks_sent > 0
        assert site.health() == ["healthy", "healthy"]
        site.settled()
    for pair in pairs:
        assert pair.target.read_bytes() == pair.source.read_bytes()


def test_the_agent_names_the_disk_and_ends_with_an_error(
    tmp_path: Path, dice: random.Random, mount_point: MountPoint
) -> None:
    narrow = mount_point("tmpfs", 1 * MIB)
    pairs = []
    for number, folder in enumerate((tmp_path, narrow)):
        source = tmp_path / f"source{number}.raw"
        source.write_bytes(dice.randbytes(2 * MIB))
        pairs.append(Pair(source, folder / f"target{number}.raw", create="raw"))
    site = Kept(tmp_path, *pairs)
    with site.serving() as port:
        outcome = homeward("agent", "sync", "--config", site.write_agent(port), "--json")
    assert outcome.code == 2, outcome
    assert str(pairs[1].target) in outcome.stderr, outcome
    assert pairs[0].target.exists(), (outcome, site.served)
    assert pairs[0].target.read_bytes() == pairs[0].source.read_bytes()
