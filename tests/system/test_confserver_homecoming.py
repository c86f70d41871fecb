"""Scenario row S-7 (R231): a VMware VM comes home from Azure, through stand-ins for both and the real roles."""

import os
import random
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from confserver import proofs
from drcore.secret import Secret
from tests.system.command import homeward
from tests.system.homecoming import KEY, MIB, OFF, ON, Lab, laboratory

__all__ = ["Lab"]
SEED = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1 << 32)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    print(f"SEED={SEED}")
    snapshots = ("before the update", "after it")
    with laboratory(tmp_path, random.Random(SEED), snapshots=snapshots, retention=True) as found:
        yield found


def kinds(lab: Lab) -> list[str]:
    """The recovery points that the master target keeps; each one that was published reads as it was."""
    item = str(lab.ask("GET", "/items/web")["id"])
    config = lab.folder / "state" / "replication" / item / "masttarget.toml"
    points = homeward("points", "list", item, "--config", config, "--json").answer()["points"]
    for point in points:
        if point["kind"] == "crash-consistent":
            assert all(disk["content_root"] for disk in point["disks"])
            homeward("points", "verify", item, point["sequence"], "--config", config, "--json").answer()
    return [point["kind"] for point in points]


def places(vm: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Where each disk hangs, by the base of its chain."""
    names = ("uuid", "controller_type", "unit")
    return [(*(disk[name] for name in names), disk["chain"][-1]) for disk in vm["disks"]]


def test_a_vm_comes_home_and_may_go_back_until_it_is_committed(lab: Lab) -> None:
    chance = random.Random(SEED + 1)
    home = lab.vcenter.vm("web")
    assert [len(disk["chain"]) for disk in home["disks"]] == [3, 3], "two snapshots to merge"
    planned = lab.ask("POST", "/items/web/reprotect?plan=true")
    assert [step["step"] for step in planned["steps"]][-1] == "replicate"
    assert lab.vcenter.vm("web")["power"] == ON, "a plan touches nothing"

    job = lab.run("reprotect")
    assert (lab.state(), lab.vcenter.vm("web")["power"], lab.vcenter.vm("web")["disks"]) == (
        "protected",
        OFF,
        [],
    )
    assert lab.equal()
    assert 0 < job["steps"][-1]["bytes"] < MIB, "only what differed was sent"
    assert kinds(lab) == ["as-found", "crash-consistent"]

    lab.write(chance)
    lab.run("replicate")
    assert kinds(lab) == ["as-found", "crash-consistent", "crash-consistent"]
    lab.write(chance)
    job = lab.run("failback")
    assert (lab.state(), lab.azure.power("web"), lab.vcenter.vm("web")["power"]) == (
        "failed-back",
        "deallocated",
        ON,
    )
    assert proofs.authentic(job["report"]["proof"], Secret(KEY))
    assert lab.equal()

    lab.run("cancel")
    assert (lab.state(), lab.azure.power("web"), lab.vcenter.vm("web")["power"]) == (
        "protected",
        "running",
        OFF,
    )
    lab.write(chance, "data")
    lab.run("failback")
    kept = lab.folder / "retention" / uuid.UUID(str(lab.ask("GET", "/items/web")["id"])).hex
    assert list(kept.rglob("*.undo")), "there is a way back"
    lab.run("commit")
    assert list(kept.rglob("*.undo")) == [], "a commit drops all points (R143)"
    assert (lab.state(), lab.azure.power("web"), lab.vcenter.vm("web")["power"]) == (
        "committed",
        "deallocated",
        ON,
    )
    assert places(lab.vcenter.vm("web")) == places(home)
    assert lab.vcenter.vm("web")["snapshots"] == []
    assert lab.equal()
    assert lab.stop() == 0
    database = b"".join(path.read_bytes() for path in (lab.folder / "state").glob("*.sqlite*"))
    assert b"sig=" not in database, "no signed URL is ever written down"


def test_a_server_that_is_killed_in_a_failback_brings_the_vm_home_all_the_same(lab: Lab) -> None:
    lab.run("reprotect")
    lab.write(random.Random(SEED + 2))
    job = lab.ask("POST", "/items/web/failback")["id"]
    chance = random.Random(SEED + 3)
    for _ in range(4):
        time.sleep(chance.uniform(0.1, 1.5))
        lab.kill()
        lab.start()
    lab.wait(job)
    assert (lab.state(), lab.azure.power("web"), lab.vcenter.vm("web")["power"]) == (
        "failed-back",
        "deallocated",
        ON,
    )
    assert lab.equal()


def test_a_failback_that_cannot_end_leaves_the_machine_in_azure_running(lab: Lab) -> None:
    lab.run("reprotect")
    lab.vcenter.arrange(
        "PowerOnVM_Task", fault="InsufficientMemoryResourcesFault", detail={"unreserved": 5, "requested": 9}
    )
    job = lab.ask("POST", "/items/web/failback")["id"]
    assert lab.wait(job, "failed")["error"]["code"] == "8038"
    assert (lab.state(), lab.azure.power("web"), lab.vcenter.vm("web")["power"]) == (
        "protected",
        "running",
        OFF,
    )
    lab.wait(lab.ask("POST", f"/jobs/{job}/retry")["id"])
    assert (lab.state(), lab.equal()) == ("failed-back", True)
