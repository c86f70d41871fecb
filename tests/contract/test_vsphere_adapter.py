"""The port to a vCenter, verb by verb, on the stand-in with real disk files.

The mishaps meet every verb alike: whatever vCenter does to one call, the verb ends in a coded error or in its effect,
and the same verb run again ends in its effect, which vCenter was asked for no more often than needed.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from confserver.adapters.vsphere import PyvmomiVSphere, VsphereSettings
from confserver.errors_fabric import (
    DiskAmbiguous,
    DiskInUse,
    DiskIsAnother,
    DiskOnChain,
    DiskPlaceTaken,
    FileIsLocked,
    NoRoomForDisk,
    SnapshotAmbiguous,
    SnapshotMissing,
    VcenterUnreachable,
)
from confserver.ports import Power, VmDisk, VSphere
from drcore.errors import HomewardError, Retry
from drcore.secret import Secret
from simlab.vcenter import kit, launch, story
from simlab.vcenter.launch import Vcenter
from simlab.vcenter.story import ADMIN, MIB

WEB_UUID = "6000c290111122223333444444444444"
WEB_FILE = "[vmfs1] web/web.vmdk"


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    launch.build()


def adapter(vcenter: Vcenter, user: str = ADMIN[0], password: str = ADMIN[1]) -> PyvmomiVSphere:
    secret = Secret(password.encode())
    settings = VsphereSettings(vcenter.host, vcenter.port, user, secret, vcenter.certificate, None, 20.0)
    return PyvmomiVSphere(settings)


@dataclass(frozen=True)
class Site:
    """A running stand-in, the adapter on it, and where its disk files lie."""

    vcenter: Vcenter
    vsphere: PyvmomiVSphere
    folder: Path

    def started(self, method: str) -> int:
        """How often vCenter began such a task."""
        return sum(bool(call["task"]) for call in self.vcenter.calls(method=method))

    def reconfigure(self, name: str, *changes: Callable[[Any], Any]) -> None:
        """A person changes a VM beside us."""
        with kit.session(self.vcenter, *ADMIN) as instance:
            vm = kit.find(instance, vim.VirtualMachine, name)
            kit.reconfigure(vm, *(change(vm) for change in changes))


Arrange = Callable[[dict[str, Any]], None]


@contextmanager
def site_of(folder: Path, arrange: Arrange = lambda site: None) -> Iterator[Site]:
    inventory = story.site(folder)
    arrange(inventory)
    with launch.running(story.write(folder, inventory)) as vcenter:
        vsphere = adapter(vcenter)
        yield Site(vcenter, vsphere, folder)
        vsphere.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with site_of(tmp_path) as running:
        yield running


def web_disk(vsphere: VSphere) -> VmDisk | None:
    return next((disk for disk in vsphere.vm("web").disks if disk.uuid == WEB_UUID), None)


def web_path(vsphere: VSphere) -> str | None:
    disk = web_disk(vsphere)
    return None if disk is None else disk.path


WEB_DISK = VmDisk(
    uuid=WEB_UUID,
    path=WEB_FILE,
    base_path=WEB_FILE,
    size=16 * MIB,
    controller_type="VirtualLsiLogicController",
    controller_bus=0,
    unit=0,
)


# --- every verb, and every mishap ---


@dataclass(frozen=True)
class Case:
    """A verb: what has to be before, the call, the task that it starts, whether its effect is there."""

    method: str
    before: Callable[[VSphere], None]
    act: Callable[[VSphere], None]
    holds: Callable[[VSphere], bool]


def _snapshots(vsphere: VSphere) -> list[str]:
    return [snapshot.name for snapshot in vsphere.vm("web").snapshots]


def two_snapshots(vsphere: VSphere) -> None:
    vsphere.create_snapshot("web", "a")
    vsphere.create_snapshot("web", "b")


def running_with_a_snapshot(vsphere: VSphere) -> None:
    vsphere.create_snapshot("web", "failback")
    vsphere.power_on("web")


CASES = {
    "power_on": Case(
        "PowerOnVM_Task",
        lambda v: None,
        lambda v: v.power_on("web"),
        lambda v: v.vm("web").power is Power.ON,
    ),
    "power_off": Case(
        "PowerOffVM_Task",
        lambda v: v.power_on("web"),
        lambda v: v.power_off("web"),
        lambda v: v.vm("web").power is Power.OFF,
    ),
    "merge_snapshots": Case(
        "RemoveAllSnapshots_Task",
        two_snapshots,
        lambda v: v.merge_snapshots("web"),
        lambda v: _snapshots(v) == [] and web_path(v) == WEB_FILE,
    ),
    "detach_disk": Case(
        "ReconfigVM_Task",
        lambda v: None,
        lambda v: v.detach_disk("web", WEB_UUID),
        lambda v: len(v.vm("web").disks) == 1,
    ),
    "attach_disk": Case(
        "ReconfigVM_Task",
        lambda v: v.detach_disk("web", WEB_UUID),
        lambda v: v.attach_disk("mt", WEB_DISK, keep_place=False),
        lambda v: [disk.base_path for disk in v.vm("mt").disks] == ["[vmfs1] mt/mt.vmdk", WEB_FILE],
    ),
    "attach_disk_back": Case(
        "ReconfigVM_Task",
        lambda v: v.detach_disk("web", WEB_UUID),
        lambda v: v.attach_disk("web", WEB_DISK, keep_place=True),
        lambda v: web_disk(v) == WEB_DISK,
    ),
    "create_snapshot": Case(
        "CreateSnapshot_Task",
        lambda v: None,
        lambda v: v.create_snapshot("web", "failback"),
        lambda v: _snapshots(v) == ["failback"],
    ),
    "remove_snapshot": Case(
        "RemoveSnapshot_Task",
        lambda v: v.create_snapshot("web", "failback"),
        lambda v: v.remove_snapshot("web", "failback"),
        lambda v: _snapshots(v) == [] and web_path(v) == WEB_FILE,
    ),
    "revert_and_drop_snapshot": Case(
        "RevertToSnapshot_Task",
        running_with_a_snapshot,
        lambda v: v.revert_and_drop_snapshot("web", "failback"),
        lambda v: _snapshots(v) == [] and web_path(v) == WEB_FILE and v.vm("web").power is Power.OFF,
    ),
}


@pytest.fixture(scope="module", params=CASES)
def verb(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def lasting(verb: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One stand-in for all mishaps of a verb: starting one for each would be most of the time."""
    with site_of(tmp_path_factory.mktemp(verb)) as running:
        yield running


@pytest.fixture
def shared(lasting: Site) -> Site:
    """The stand-in as it began."""
    lasting.vcenter.clear()
    lasting.vcenter.task_seconds(0)
    vsphere = lasting.vsphere
    vsphere.power_off("web")
    vsphere.merge_snapshots("web")
    vsphere.detach_disk("mt", WEB_UUID)
    if web_disk(vsphere) != WEB_DISK:
        vsphere.detach_disk("web", WEB_UUID)
        vsphere.attach_disk("web", WEB_DISK, keep_place=True)
    return lasting


@pytest.fixture
def case(verb: str, shared: Site) -> Case:
    chosen = CASES[verb]
    chosen.before(shared.vsphere)
    assert not chosen.holds(shared.vsphere)
    shared.vcenter.forget_calls()
    return chosen


def test_a_verb_run_again_does_nothing_and_succeeds(shared: Site, case: Case) -> None:
    case.act(shared.vsphere)
    assert case.holds(shared.vsphere)
    shared.vcenter.forget_calls()
    case.act(shared.vsphere)
    assert case.holds(shared.vsphere)
    assert [call["method"] for call in shared.vcenter.calls(changing=1) if call["task"]] == []


@pytest.mark.parametrize(
    ("mishap", "code"),
    [
        ({"drop": "before"}, "HW-CONF-101"),
        ({"http": 503}, "HW-CONF-102"),
        ({"fault": "TaskInProgress", "detail": {"task": {"type": "Task", "value": "task-1"}}}, "HW-CONF-112"),
        ({"task_fault": "ResourceInUse"}, "HW-CONF-112"),
    ],
    ids=["dropped", "unavailable", "refused", "failed"],
)
def test_a_call_without_effect_is_transient_and_may_be_repeated(
    shared: Site, case: Case, mishap: dict[str, Any], code: str
) -> None:
    shared.vcenter.arrange(case.method, **mishap)
    with pytest.raises(HomewardError) as refusal:
        case.act(shared.vsphere)
    assert (refusal.value.code, refusal.value.retry) == (code, Retry.TRANSIENT)
    assert not case.holds(shared.vsphere)
    case.act(shared.vsphere)
    assert case.holds(shared.vsphere)


def test_a_lost_answer_of_a_task_at_work_starts_no_second_task(shared: Site, case: Case) -> None:
    shared.vcenter.task_seconds(0.2)
    shared.vcenter.arrange(case.method, drop="after")
    repeats = 1
    if (
        case.method == "RevertToSnapshot_Task"
    ):  # whether a VM was reverted cannot be seen: told, and done again
        with pytest.raises(VcenterUnreachable):
            case.act(shared.vsphere)
        repeats = 2
    case.act(shared.vsphere)
    assert case.holds(shared.vsphere)
    assert len(shared.vcenter.calls(method=case.method)) == repeats


def test_a_task_that_failed_after_its_effect_counts_as_done(shared: Site, case: Case) -> None:
    if case.method == "RevertToSnapshot_Task":
        shared.vcenter.arrange("RemoveSnapshot_Task", task_fault="Timedout", task_applied=True)
    else:
        shared.vcenter.arrange(case.method, task_fault="Timedout", task_applied=True)
    case.act(shared.vsphere)
    assert case.holds(shared.vsphere)
    assert shared.started(case.method) == 1


def test_an_expired_session_is_renewed_without_a_word(shared: Site, case: Case) -> None:
    shared.vcenter.arrange(case.method, fault="NotAuthenticated")
    assert shared.vcenter.expire_sessions() >= 1
    case.act(shared.vsphere)
    assert case.holds(shared.vsphere)
    assert len(shared.vcenter.calls(method="Login")) == 2


# --- threads ---


def test_threads_share_an_adapter(site: Site) -> None:
    site.vcenter.task_seconds(0.2)
    with ThreadPoolExecutor(4) as pool:
        jobs: list[Future[Any]] = [
            pool.submit(site.vsphere.power_on, "web"),
            pool.submit(site.vsphere.create_snapshot, "mt", "a"),
            pool.submit(site.vsphere.vms_on, "esx1"),
            pool.submit(site.vsphere.datastores, "esx1"),
        ]
        for job in jobs:
            job.result()
    assert site.vsphere.vm("web").power is Power.ON
    assert [snapshot.name for snapshot in site.vsphere.vm("mt").snapshots] == ["a"]
    assert len(site.vcenter.calls(method="Login")) == 1


# --- disks ---


def test_a_disk_of_a_chain_is_not_detached(site: Site) -> None:
    site.vsphere.create_snapshot("web", "a")
    with pytest.raises(DiskOnChain, match=r"HW-CONF-117.*web-000001\.vmdk.*merge the snapshots"):
        site.vsphere.detach_disk("web", WEB_UUID)
    assert len(site.vsphere.vm("web").disks) == 2


def test_a_uuid_may_be_grouped_as_vsphere_writes_it(site: Site) -> None:
    site.vsphere.detach_disk("web", "6000C290-1111-2222-3333-444444444444")
    assert len(site.vsphere.vm("web").disks) == 1


def test_detached_files_stay(site: Site) -> None:
    site.vsphere.detach_disk("web", WEB_UUID)
    assert (site.folder / "vmfs1/web/web.vmdk").is_file()
    assert (site.folder / "vmfs1/web/web-flat.vmdk").stat().st_size == 16 * MIB


def test_of_two_disks_with_one_uuid_none_is_detached(tmp_path: Path) -> None:
    def twins(site: dict[str, Any]) -> None:
        uuid = "6000c290-1111-2222-3333-444444444444"
        site["vms"][0]["disks"][1]["uuid"] = uuid

    with site_of(tmp_path, twins) as site:
        with pytest.raises(DiskAmbiguous, match=r"web/web\.vmdk, \[vmfs1\] web/data\.vmdk"):
            site.vsphere.detach_disk("web", WEB_UUID)
        assert len(site.vsphere.vm("web").disks) == 2


def test_a_disk_that_hangs_elsewhere_is_not_attached(site: Site) -> None:
    with pytest.raises(DiskInUse, match=r"HW-CONF-116.*it hangs on VM web"):
        site.vsphere.attach_disk("mt", WEB_DISK, keep_place=False)
    site.vsphere.create_snapshot("web", "a")  # below a snapshot it hangs there all the same
    with pytest.raises(DiskInUse):
        site.vsphere.attach_disk("mt", WEB_DISK, keep_place=False)
    assert site.started("ReconfigVM_Task") == 0


def test_a_file_that_was_replaced_is_not_left_attached(site: Site) -> None:
    site.vsphere.detach_disk("web", WEB_UUID)
    descriptor = site.folder / "vmfs1/web/web.vmdk"
    text = descriptor.read_text()
    assert "60 00 c2 90 11 11 22 22-33 33 44 44 44 44 44 44" in text
    descriptor.write_text(text.replace("33 33 44 44 44 44 44 44", "33 33 44 44 44 44 44 45"))
    for _ in range(2):
        with pytest.raises(DiskIsAnother, match=r"found a disk with the UUID 6000c2901111222233334{11}5"):
            site.vsphere.attach_disk("web", WEB_DISK, keep_place=True)
    assert [disk.unit for disk in site.vsphere.vm("web").disks] == [1]


def test_a_full_controller_is_followed_by_a_new_one_of_lsi_logic(tmp_path: Path) -> None:
    def full(site: dict[str, Any]) -> None:
        disks = [{"path": f"[vmfs1] mt/d{i}.vmdk", "size_bytes": MIB} for i in range(14)]
        paravirtual = {"path": "[vmfs1] mt/p.vmdk", "size_bytes": MIB, "controller": "pvscsi"}
        site["vms"][1]["disks"] += [*disks, paravirtual]

    with site_of(tmp_path, full) as site:
        site.vsphere.detach_disk("web", WEB_UUID)
        site.vsphere.attach_disk("mt", WEB_DISK, keep_place=False)
        mt = site.vsphere.vm("mt")
        (disk,) = (disk for disk in mt.disks if disk.uuid == WEB_UUID)
        assert (disk.controller_type, disk.controller_bus, disk.unit) == ("VirtualLsiLogicController", 2, 0)
        assert 7 not in {other.unit for other in mt.disks}


def test_a_unit_that_became_free_is_used_before_a_new_controller(tmp_path: Path) -> None:
    def nearly_full(site: dict[str, Any]) -> None:
        disks = [{"path": f"[vmfs1] mt/d{i}.vmdk", "size_bytes": MIB} for i in range(14)]
        site["vms"][1]["disks"] += disks

    with site_of(tmp_path, nearly_full) as site:
        gone = next(disk for disk in site.vsphere.vm("mt").disks if disk.unit == 9)
        site.vsphere.detach_disk("mt", gone.uuid)
        site.vsphere.detach_disk("web", WEB_UUID)
        site.vsphere.attach_disk("mt", WEB_DISK, keep_place=False)
        mt = site.vsphere.vm("mt")
        assert [disk.unit for disk in mt.disks if disk.uuid == WEB_UUID] == [9]
        assert mt.controllers == ("VirtualLsiLogicController",)


@pytest.mark.parametrize("kind", ["lsilogic", "pvscsi"])
def test_beyond_sixty_disks_or_four_controllers_there_is_no_room(tmp_path: Path, kind: str) -> None:
    def crowded(site: dict[str, Any]) -> None:
        count = 60 if kind == "lsilogic" else 46
        disk = {"size_bytes": MIB, "controller": kind}
        site["vms"][1]["disks"] = [disk | {"path": f"[vmfs1] mt/d{i}.vmdk"} for i in range(count)]

    with site_of(tmp_path, crowded) as site:
        site.vsphere.detach_disk("web", WEB_UUID)
        with pytest.raises(NoRoomForDisk, match=r"(60|46) disks on 4 SCSI controllers.*less than 60 disks"):
            site.vsphere.attach_disk("mt", WEB_DISK, keep_place=False)


@pytest.mark.parametrize(
    ("kind", "type_name", "unit"),
    [
        ("pvscsi", "ParaVirtualSCSIController", 0),
        ("lsilogic-sas", "VirtualLsiLogicSASController", 0),
        ("sata", "VirtualAHCIController", 0),
        ("nvme", "VirtualNVMEController", 0),
    ],
)
def test_a_disk_goes_back_to_a_controller_that_is_gone(
    tmp_path: Path, kind: str, type_name: str, unit: int
) -> None:
    def on(site: dict[str, Any]) -> None:
        site["vms"][0]["disks"][0]["controller"] = kind
        site["vms"][0]["disks"][1]["controller"] = "lsilogic"

    def remove_controller(vm: Any) -> Any:
        wanted = getattr(vim.vm.device, type_name)
        device = next(d for d in vm.config.hardware.device if isinstance(d, wanted))
        return kit.remove_disk(device)  # any device

    with site_of(tmp_path, on) as site:
        disk = web_disk(site.vsphere)
        assert disk is not None
        assert (disk.controller_type, disk.unit) == (type_name, unit)
        site.vsphere.detach_disk("web", WEB_UUID)
        site.reconfigure("web", remove_controller)
        site.vsphere.attach_disk("mt", disk, keep_place=False)
        site.vsphere.detach_disk("mt", WEB_UUID)
        site.vsphere.attach_disk("web", disk, keep_place=True)
        assert web_disk(site.vsphere) == disk


def test_a_place_that_is_taken_is_told_and_nothing_changes(site: Site) -> None:
    vsphere = site.vsphere
    vsphere.detach_disk("web", WEB_UUID)
    before = vsphere.vm("web")
    for place, reason in (
        ({"unit": 1}, "Hard disk 2 is there"),
        ({"controller_type": "ParaVirtualSCSIController"}, "a VirtualLsiLogicController has that bus"),
        ({"controller_type": "VirtualIDEController", "controller_bus": 7}, "none can be added"),
    ):
        with pytest.raises(DiskPlaceTaken, match=reason):
            vsphere.attach_disk("web", replace(WEB_DISK, **place), keep_place=True)
    assert vsphere.vm("web") == before
    vsphere.attach_disk("web", WEB_DISK, keep_place=False)
    with pytest.raises(DiskPlaceTaken, match=r"it hangs at VirtualLsiLogicController 0, unit 0 already"):
        vsphere.attach_disk("web", replace(WEB_DISK, unit=5), keep_place=True)


# --- snapshots ---


def test_reverting_takes_back_what_was_written_since(site: Site) -> None:
    site.vsphere.create_snapshot("web", "failback")
    base = (site.folder / "vmfs1/web/web.vmdk").read_text()
    site.vsphere.power_on("web")  # the guest writes to the delta
    site.vsphere.revert_and_drop_snapshot("web", "failback")
    assert (site.folder / "vmfs1/web/web.vmdk").read_text() == base
    assert list((site.folder / "vmfs1/web").glob("*-000*")) == []


def test_without_its_snapshot_a_running_vm_is_not_said_to_be_reverted(site: Site) -> None:
    site.vsphere.revert_and_drop_snapshot("web", "failback")  # off: the end of an earlier run
    site.vsphere.power_on("web")
    with pytest.raises(SnapshotMissing, match=r"HW-CONF-122"):
        site.vsphere.revert_and_drop_snapshot("web", "failback")
    assert site.vsphere.vm("web").power is Power.ON


def test_a_snapshot_taken_of_a_running_vm_leaves_it_off_when_reverted(site: Site) -> None:
    site.vsphere.power_on("web")
    site.vsphere.create_snapshot("web", "failback")
    site.vsphere.revert_and_drop_snapshot("web", "failback")
    vm = site.vsphere.vm("web")
    assert (vm.power, vm.snapshots) == (Power.OFF, ())


def test_of_two_snapshots_with_one_name_none_is_reverted_to_and_both_are_removed(tmp_path: Path) -> None:
    def twins(site: dict[str, Any]) -> None:
        site["vms"][0]["snapshots"] = [
            {"name": "failback", "children": [{"name": "other", "children": [{"name": "failback"}]}]}
        ]

    with site_of(tmp_path, twins) as site:
        with pytest.raises(SnapshotAmbiguous, match="2 snapshots named failback"):
            site.vsphere.revert_and_drop_snapshot("web", "failback")
        site.vsphere.remove_snapshot("web", "failback")
        assert _snapshots(site.vsphere) == ["other"]


def test_a_merge_that_was_held_up_is_finished_by_the_next(site: Site) -> None:
    def hang_base(vm: Any) -> Any:
        return kit.add_disk(kit.controller_of(vm).key, WEB_FILE)

    def take_base(vm: Any) -> Any:
        return kit.remove_disk(next(d for d in kit.disks_of(vm) if d.backing.fileName == WEB_FILE))

    site.vsphere.create_snapshot("web", "a")
    site.reconfigure("mt", hang_base)  # a person makes the running master target hold the base
    for _ in range(2):
        with pytest.raises(FileIsLocked, match=r"HW-CONF-114.*\[vmfs1\] web/web"):
            site.vsphere.merge_snapshots("web")
        vm = site.vsphere.vm("web")
        assert (vm.snapshots, vm.consolidation_needed) == ((), True)
    site.reconfigure("mt", take_base)
    site.vsphere.merge_snapshots("web")
    assert (site.vsphere.vm("web").consolidation_needed, web_path(site.vsphere)) == (False, WEB_FILE)
