"""Every pre-flight check both ways, on plain facts."""

from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

import pytest

from confserver import preflight
from confserver.items import Home, Item
from confserver.ports import Datastore, Power, Snapshot, Vcenter, VmDisk
from confserver.preflight import Facts, Path, Result
from confserver.preflight_tables import FAILBACK_CHECKS, REPROTECT_CHECKS
from confserver.states import State
from tests.unit.confserver_fakes import AZURE_VM, DISKS, ITEM_DISKS, FakeAzure, FakeVSphere, World

ITEM = Item("i", "web", "web", "web-uuid", "mt", AZURE_VM, "linux", ITEM_DISKS, failed_over_at=1000.0)


@pytest.fixture
def good(tmp_path: FilePath) -> Facts:
    """Facts with which every check is content."""
    world = World(tmp_path / "world.json")
    vsphere = FakeVSphere(world)
    return Facts(
        item=ITEM,
        azure=FakeAzure(world).vm(AZURE_VM),
        vcenter=Vcenter("vc", "8", "u"),
        vm=vsphere.vm("web"),
        masttarget=replace(vsphere.vm("mt"), tools_running=True),
        host_vms=("web", "mt"),
        datastores=vsphere.datastores("esx1"),
        missing_privileges=(),
        masttarget_os="linux",
        reserved_disks=0,
        paths=(Path("h", 443, ""),),
        now=2000.0,
        gaps={},
    )


def found(facts: Facts, code: str, rules: Any = REPROTECT_CHECKS) -> preflight.Check:
    return next(check for check in preflight.run(rules, facts) if check.code == code)


def many(count: int) -> tuple[VmDisk, ...]:
    return tuple(replace(DISKS[0], uuid=f"{n:032x}", base_path=f"[vmfs1] o/{n}.vmdk") for n in range(count))


def test_good_facts_pass_every_check(good: Facts) -> None:
    for check in preflight.run(REPROTECT_CHECKS, good):
        assert check.result is Result.OK, check


def bad_facts(facts: Facts) -> dict[str, Facts]:
    """For each code, facts with which that check says no."""
    assert facts.item is not None
    assert facts.azure is not None
    assert facts.vm is not None
    assert facts.masttarget is not None
    item, azure, vm, mt = facts.item, facts.azure, facts.vm, facts.masttarget
    nfs = (Datastore("vmfs1", "NFS", True, True, 1), Datastore("other", "VMFS", True, True, 1))
    return {
        "HW-CHECK-015": replace(facts, item=None),
        "HW-CHECK-001": replace(facts, item=replace(item, instance_uuid="")),
        "HW-CHECK-002": replace(facts, item=replace(item, state=State.MIGRATED)),
        "78093": replace(facts, azure=replace(azure, power=Power.OFF)),
        "HW-CHECK-096": replace(facts, azure=replace(azure, agent_ready=False)),
        "95226": replace(facts, paths=(Path("h", 443, "Connection refused"),)),
        "HW-CHECK-077": replace(facts, vcenter=None),
        "HW-CHECK-085": replace(facts, vm=replace(vm, instance_uuid="another")),
        "HW-CHECK-101": replace(facts, azure=replace(azure, disks=(replace(azure.disks[0], size=1),))),
        "HW-CHECK-049": replace(facts, masttarget_os="windows"),
        "HW-CHECK-050": replace(facts, masttarget=replace(mt, disks=many(59))),
        "HW-CHECK-051": replace(facts, masttarget=replace(mt, snapshots=(Snapshot("s", "s"),))),
        "HW-CHECK-054": replace(facts, masttarget=replace(mt, enable_uuid=False)),
        "HW-CHECK-055": replace(
            facts,
            masttarget=replace(mt, controllers=("VirtualLsiLogicController", "ParaVirtualSCSIController")),
        ),
        "HW-CHECK-056": replace(facts, masttarget=replace(mt, tools_running=False)),
        "HW-CHECK-059": replace(facts, datastores=(Datastore("vmfs1", "NFS", True, True, 1),)),
        "HW-CHECK-060": replace(facts, datastores=(Datastore("vmfs1", "VMFS", True, False, 1),)),
        "8061": replace(facts, datastores=(Datastore("vmfs1", "VMFS", False, True, 1),)),
        "HW-CHECK-080": replace(facts, datastores=nfs),
        "HW-CHECK-062": replace(
            facts, masttarget=replace(mt, disks=(replace(DISKS[0], base_path="[vmfs1] mt/mt.vmdk"),))
        ),
        "HW-CHECK-079": replace(facts, datastores=()),
        "78052": replace(facts, host_vms=("web", "mt", "web")),
    }


def test_each_check_says_no_to_what_it_is_for(good: Facts) -> None:
    bad = bad_facts(good)
    assert set(bad) == {check.code for check in preflight.run(REPROTECT_CHECKS, good)}
    for code, facts in bad.items():
        check = found(facts, code)
        assert check.result is Result.NO, check
        assert check.remedy
        assert check in preflight.refused([check])


@pytest.mark.parametrize(("reserved", "result"), [(0, Result.OK), (1, Result.NO)])
def test_sixty_disks_count_those_of_other_jobs(good: Facts, reserved: int, result: Result) -> None:
    assert good.masttarget is not None
    facts = replace(good, masttarget=replace(good.masttarget, disks=many(58)), reserved_disks=reserved)
    assert found(facts, "HW-CHECK-050").result is result


def test_a_read_only_account_is_named(good: Facts) -> None:
    check = found(replace(good, missing_privileges=("VirtualMachine.Config.RemoveDisk",)), "HW-CHECK-079")
    assert check.result is Result.NO
    assert "VirtualMachine.Config.RemoveDisk" in check.observed


def test_within_15_minutes_a_missing_agent_is_waited_for(good: Facts) -> None:
    assert good.azure is not None
    facts = replace(good, azure=replace(good.azure, agent_ready=False), now=1300.0)
    check = found(facts, "HW-CHECK-096")
    assert (check.result, check.wait_seconds) == (Result.WAIT, 600.0)
    assert preflight.refused([check]) == ()


def test_vsan_alone_is_a_warning(good: Facts) -> None:
    facts = replace(good, datastores=(Datastore("vmfs1", "vsan", True, True, 1),))
    assert found(facts, "HW-CHECK-059").result is Result.WARN
    assert found(facts, "HW-CHECK-080").result is Result.OK


def test_a_disk_in_azure_that_no_item_names_is_a_warning(good: Facts) -> None:
    assert good.azure is not None
    extra = replace(good.azure.disks[0], resource_id="/extra")
    facts = replace(good, azure=replace(good.azure, disks=(*good.azure.disks, extra)))
    assert found(facts, "HW-CHECK-101").result is Result.WARN


def test_a_disk_that_one_side_has_not_is_said_in_words(good: Facts) -> None:
    assert good.azure is not None
    assert good.vm is not None
    assert good.masttarget is not None
    away = found(replace(good, azure=replace(good.azure, disks=good.azure.disks[:1])), "HW-CHECK-101")
    assert f"web in Azure has no disk {ITEM_DISKS[1].azure_disk}" in away.observed
    home = found(replace(good, vm=replace(good.vm, disks=good.vm.disks[:1])), "HW-CHECK-101")
    assert f"{ITEM_DISKS[1].disk}: neither web nor the master target has" in home.observed
    assert "None" not in away.observed + home.observed


def test_one_of_a_thing_is_no_plural_and_no_value_is_shouted(good: Facts) -> None:
    assert good.item is not None
    one = replace(good, item=replace(good.item, disks=ITEM_DISKS[:1]))
    assert found(one, "HW-CHECK-001").observed.endswith(", 1 disk")
    assert "1 datastore listed" in found(good, "HW-CHECK-079").observed
    assert found(good, "HW-CHECK-054").observed == "disk.EnableUUID is TRUE"


def test_no_probed_path_is_a_warning(good: Facts) -> None:
    assert found(replace(good, paths=()), "95226").result is Result.WARN


def test_what_could_not_be_asked_is_unknown_and_stands_in_the_way(good: Facts) -> None:
    check = found(replace(good, datastores=None, gaps={"datastores": "HW-CONF-102: gone"}), "8061")
    assert check.result is Result.UNKNOWN
    assert "HW-CONF-102: gone" in check.observed
    assert preflight.refused([check]) == (check,)


def protected(good: Facts) -> Facts:
    """Facts of a protected item whose disks hang on the master target."""
    assert good.vm is not None
    assert good.masttarget is not None
    disks = tuple(replace(disk, path=disk.base_path) for disk in DISKS)
    return replace(
        good,
        item=replace(ITEM, state=State.PROTECTED, home=Home(disks, was_on=True)),
        vm=replace(good.vm, power=Power.OFF, disks=()),
        masttarget=replace(good.masttarget, disks=disks),
    )


def test_a_protected_item_may_fail_back(good: Facts) -> None:
    for check in preflight.run(FAILBACK_CHECKS, protected(good)):
        assert check.result is Result.OK, check


def test_each_failback_check_says_no_to_what_it_is_for(good: Facts) -> None:
    facts = protected(good)
    assert facts.item is not None
    assert facts.vm is not None
    assert facts.masttarget is not None
    moved = (
        replace(facts.masttarget.disks[0], base_path="[elsewhere] web/web.vmdk"),
        facts.masttarget.disks[1],
    )
    bad = {
        "HW-CHECK-186": replace(facts, item=ITEM),
        "HW-CHECK-099": replace(facts, vm=replace(facts.vm, power=Power.ON)),
        "HW-CHECK-058": replace(facts, masttarget=replace(facts.masttarget, disks=moved)),
    }
    for code, wrong in bad.items():
        assert found(wrong, code, FAILBACK_CHECKS).result is Result.NO, code
