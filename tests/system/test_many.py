"""A master target that is full: sixty disks of twenty agents at once."""

import random
from pathlib import Path

import pytest

from drcore.limits import MASTTARGET_DISKS_MAX, MIB
from tests.system.command import write_sparse
from tests.system.many import AGENTS, DISKS, RESIDENT_MAX, UNFAIR_MAX, play
from tests.system.roles import Pair, Site
from wireproto.errors import PeerReported

PLAYS_MAX = 3
"""A play takes two seconds, of which a busy machine may take one from a single agent: the most even play counts."""


def test_sixty_disks_of_twenty_agents_at_once(tmp_path: Path, dice: random.Random) -> None:
    unfair = []
    for number in range(PLAYS_MAX):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = play(folder, 6 * MIB, dice.getrandbits(32))
        print(f"{found.unfair:.2f} between first and last, {found.resident_bytes // MIB} MiB resident")
        assert (found.disks, found.equal) == (AGENTS * DISKS, AGENTS * DISKS)
        assert found.blocks == AGENTS * DISKS * 2 * 16, "each third MiB, no other block"
        assert found.resident_bytes <= RESIDENT_MAX
        unfair.append(found.unfair)
        if found.unfair <= UNFAIR_MAX:
            break
    assert min(unfair) <= UNFAIR_MAX


def test_one_disk_too_many_is_refused_before_anything_is_there_and_fewer_are_taken(tmp_path: Path) -> None:
    """R050: the numbers and the way on are in the error."""
    (tmp_path / "home").mkdir()
    source = write_sparse(tmp_path / "source.raw", b"x" * 4096)
    site = Site(
        tmp_path,
        *(
            Pair(source, tmp_path / "home" / f"{number}.raw", create="raw")
            for number in range(MASTTARGET_DISKS_MAX + 1)
        ),
    )
    with site.listening() as port:
        with pytest.raises(PeerReported) as caught:
            site.sync(port)
        for words in (
            "HW-MT-048: ",
            "no slot left for 61 more disks",
            "0 of 60 disks in use",
            "another master target",
        ):
            assert words in str(caught.value)
        assert list((tmp_path / "home").iterdir()) == []
        site.pairs.pop()
        site.sync(port)
        site.settled()
        assert len(list((tmp_path / "home").glob("*.raw"))) == MASTTARGET_DISKS_MAX
