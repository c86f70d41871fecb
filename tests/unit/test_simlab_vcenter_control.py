"""Rights, site data, arranged mishaps and the journal of the stand-in for vCenter."""

import json
import os
import re
import signal
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from pyVim.task import WaitForTask
from pyVmomi import vim, vmodl

from simlab.vcenter import kit, launch, story
from simlab.vcenter.errors import ControlRefused, SimulatorDead
from simlab.vcenter.launch import Vcenter
from simlab.vcenter.story import ADMIN, GIB, MIB, OPERATOR, READER

HTTP_ERROR = "503"


def powered(vcenter: Vcenter) -> str:
    return str(vcenter.vm("web")["power"])


# --- what pre-flight reads ---


def test_whole_properties_are_readable(web: Any) -> None:
    assert web.runtime.powerState == "poweredOff"
    assert web.runtime.consolidationNeeded is False
    assert web.summary.config.name == "web"
    assert web.snapshot is None  # stock: an answer that pyvmomi cannot read
    for part in ("config", "guest", "storage", "layoutEx", "capability"):
        assert getattr(web, part) is not None


def test_datastores_have_their_types_and_infos(si: Any) -> None:
    kinds = {
        name: (d.summary.type, type(d.info).__name__)
        for name in ("vmfs1", "vsan1", "nfs1")
        for d in [kit.find(si, vim.Datastore, name)]
    }
    assert kinds == {
        "vmfs1": ("VMFS", "vim.host.VmfsDatastoreInfo"),
        "vsan1": ("vsan", "vim.host.VsanDatastoreInfo"),
        "nfs1": ("NFS", "vim.host.NasDatastoreInfo"),
    }


def test_free_room_is_what_the_files_leave(si: Any, web: Any, tmp_path: Path) -> None:
    datastore = kit.find(si, vim.Datastore, "vmfs1")
    before = datastore.summary.freeSpace
    (tmp_path / "vmfs1/web/web-flat.vmdk").write_bytes(b"x" * 16 * MIB)
    kit.reconfigure(web, kit.add_disk(kit.controller_of(web).key, "", size=MIB))
    assert 16 * MIB <= before - datastore.summary.freeSpace < 17 * MIB


def test_hosts_have_licences_and_memory(si: Any) -> None:
    manager = si.content.licenseManager.licenseAssignmentManager
    editions = {}
    for name in ("esx1", "esx2"):
        host = kit.find(si, vim.HostSystem, name)
        assigned = manager.QueryAssignedLicenses(entityId=host._moId)
        editions[name] = (assigned[0].assignedLicense.editionKey, host.hardware.memorySize)
    assert editions == {"esx1": ("esx.enterprisePlus.cpuPackage", 4 * GIB), "esx2": ("esxBasic", 8 * GIB)}


def test_tools_run_when_the_machine_does(web: Any) -> None:
    assert (web.guest.toolsStatus, web.guest.toolsRunningStatus) == (
        "toolsNotRunning",
        "guestToolsNotRunning",
    )
    kit.wait(web.PowerOnVM_Task())
    assert (web.guest.toolsStatus, web.guest.toolsRunningStatus) == ("toolsOk", "guestToolsRunning")
    web.ShutdownGuest()
    deadline = time.monotonic() + 20
    while web.runtime.powerState != "poweredOff" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert web.runtime.powerState == "poweredOff"


def test_sites_may_have_what_preflight_refuses(tmp_path: Path) -> None:
    site = story.site(tmp_path)
    twin = {"size_bytes": MIB, "uuid": "6000c290-1111-2222-3333-444444444444", "controller": "pvscsi"}
    site["vms"][1] |= {
        "tools": "notInstalled",
        "extra_config": {},
        "controllers": ["lsilogic"],
        "disks": [{"path": f"[vmfs1] mt/d{i}.vmdk", **twin} for i in range(20)],
        "snapshots": [{"name": "one", "children": [{"name": "two"}]}],
    }
    with (
        launch.running(story.write(tmp_path, site)) as running,
        kit.session(running, *ADMIN) as si,
    ):
        mt = kit.find(si, vim.VirtualMachine, "mt")
        devices = mt.config.hardware.device
        kinds = [type(d).__name__ for d in devices if isinstance(d, vim.vm.device.VirtualSCSIController)]
        assert kinds == [
            "vim.vm.device.VirtualLsiLogicController",
            "vim.vm.device.ParaVirtualSCSIController",
            "vim.vm.device.ParaVirtualSCSIController",
        ]
        assert {d.backing.uuid for d in kit.disks_of(mt)} == {twin["uuid"]}
        assert len(kit.disks_of(mt)) == 20
        assert mt.guest.toolsStatus == "toolsNotInstalled"
        assert "disk.EnableUUID" not in [o.key for o in mt.config.extraConfig]
        assert mt.snapshot.rootSnapshotList[0].childSnapshotList[0].name == "two"


def test_a_machine_lives_on_vsan_with_three_hosts(tmp_path: Path) -> None:
    site = story.site(tmp_path)
    site["hosts"].append({"name": "esx3"})
    site["vms"] = [{"name": "web", "datastore": "vsan1", "power": "on", "disks": [{"size_bytes": MIB}]}]
    with launch.running(story.write(tmp_path, site)) as running, kit.session(running, *ADMIN) as si:
        vm = kit.find(si, vim.VirtualMachine, "web")
        kit.wait(vm.CreateSnapshot_Task(name="a", memory=False, quiesce=False))
        kit.wait(vm.RemoveAllSnapshots_Task())
        (disk,) = running.vm("web")["disks"]
        assert re.fullmatch(r"\[vsan1\] [0-9a-f-]{36}/web\.vmdk", disk["file"])
        assert Path(disk["path"]).is_relative_to(tmp_path / "vsan1")


def test_a_site_starts_again_on_the_files_it_left(tmp_path: Path) -> None:
    file = story.write(tmp_path, story.site(tmp_path))
    uuids = []
    for _ in range(2):
        with launch.running(file) as running:
            uuids.append([disk["uuid"] for disk in running.vm("web")["disks"]])
    assert uuids[0] == uuids[1]


# --- rights ---


def test_a_reader_sees_everything_and_changes_nothing(vcenter: Vcenter) -> None:
    with kit.session(vcenter, *READER) as si:
        vm = kit.find(si, vim.VirtualMachine, "web")
        assert kit.find(si, vim.Datastore, "vmfs1").summary.type == "VMFS"
        with pytest.raises(vim.fault.NoPermission) as caught:
            vm.PowerOnVM_Task()
        assert (caught.value.privilegeId, caught.value.object) == ("VirtualMachine.Interact.PowerOn", vm)
        for call in (
            vm.RemoveAllSnapshots_Task,
            vm.ConsolidateVMDisks_Task,
            vm.Destroy_Task,
            lambda: vm.ReconfigVM_Task(
                vim.vm.ConfigSpec(deviceChange=[kit.remove_disk(kit.disks_of(vm)[0])])
            ),
            lambda: vm.CreateSnapshot_Task(name="x", memory=False, quiesce=False),
            lambda: vm.MarkAsTemplate(),
        ):
            with pytest.raises(vim.fault.NoPermission):
                call()
    assert len(vcenter.vm("web")["disks"]) == 2


def test_a_reader_discovers_no_datastore(vcenter: Vcenter) -> None:
    """R079: the read-only account's reprotect fails because datastores cannot be looked into."""
    with kit.session(vcenter, *READER) as si:
        datastore = kit.find(si, vim.Datastore, "vmfs1")
        with pytest.raises(vim.fault.NoPermission) as caught:
            datastore.browser.SearchDatastore_Task("[vmfs1]")
        assert caught.value.privilegeId == "Datastore.Browse"
    with kit.session(vcenter, *ADMIN) as si:
        datastore = kit.find(si, vim.Datastore, "vmfs1")
        found = kit.wait(datastore.browser.SearchDatastore_Task("[vmfs1] web"))
        assert {"web.vmdk", "web-flat.vmdk"} <= {file.path for file in found.file}


def test_single_privileges_open_single_calls(vcenter: Vcenter) -> None:
    with kit.session(vcenter, *OPERATOR) as si:
        vm = kit.find(si, vim.VirtualMachine, "web")
        kit.wait(vm.PowerOnVM_Task())
        with pytest.raises(vim.fault.NoPermission):
            vm.ReconfigVM_Task(vim.vm.ConfigSpec(memoryMB=64))


def test_privileges_are_told_as_they_are_checked(vcenter: Vcenter) -> None:
    asked = ["System.Read", "VirtualMachine.Interact.PowerOn", "Datastore.Browse"]
    expected = {ADMIN: [True, True, True], READER: [True, False, False], OPERATOR: [True, True, False]}
    for account, granted in expected.items():
        with kit.session(vcenter, *account) as si:
            manager, root = si.content.authorizationManager, si.content.rootFolder
            key = si.content.sessionManager.currentSession.key
            assert manager.HasPrivilegeOnEntity(root, key, asked) == granted
            told = manager.FetchUserPrivilegeOnEntities([root], account[0])[0].privileges
            assert [privilege in told for privilege in asked] == granted
            assert account[0] in [p.principal for p in manager.RetrieveEntityPermissions(root, False)]


def test_nobody_logs_in_as_another(vcenter: Vcenter) -> None:
    with kit.session(vcenter, *READER) as si, pytest.raises(vim.fault.InvalidLogin):
        si.content.sessionManager.ImpersonateUser(ADMIN[0], "en")


def test_datastore_files_ask_for_a_login(vcenter: Vcenter) -> None:
    context = ssl.create_default_context(cafile=str(vcenter.certificate))
    base = f"https://{vcenter.host}:{vcenter.port}/folder/web/web.vmdk?dcPath=DC&dsName=vmfs1"

    def status(account: tuple[str, str] | None) -> int:
        passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
        if account:
            passwords.add_password(None, base, *account)
        opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=context), urllib.request.HTTPBasicAuthHandler(passwords)
        )
        try:
            with opener.open(base, timeout=20) as answer:
                assert b"# Disk DescriptorFile" in answer.read()
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return int(error.code)

    assert [status(account) for account in (None, READER, ADMIN)] == [401, 403, 200]


def test_calls_that_would_lie_are_refused(si: Any, web: Any) -> None:
    folder = kit.find(si, vim.Datacenter, "DC").vmFolder
    with pytest.raises(vmodl.fault.NotSupported):
        web.CloneVM_Task(folder, "copy", vim.vm.CloneSpec(location=vim.vm.RelocateSpec()))
    with pytest.raises(vmodl.fault.NotSupported):
        web.QueryChangedDiskAreas(deviceKey=2000, startOffset=0, changeId="*")


# --- arranged mishaps ---


def test_an_arranged_fault_meets_one_call_of_one_vm(vcenter: Vcenter, web: Any) -> None:
    vcenter.arrange("PowerOnVM_Task", entity="mt", fault="TaskInProgress")
    vcenter.arrange("PowerOnVM_Task", entity="web", fault="InvalidState", message="not now", skip=1)
    kit.wait(web.PowerOnVM_Task())
    kit.wait(web.PowerOffVM_Task())
    with pytest.raises(vim.fault.InvalidState) as caught:
        web.PowerOnVM_Task()
    assert caught.value.faultMessage[0].message == "not now"
    kit.wait(web.PowerOnVM_Task())
    assert [rule["entity"] for rule in vcenter.arranged()] == ["mt"]
    vcenter.clear()
    assert vcenter.arranged() == []


def test_an_arranged_fault_carries_its_fields_and_may_stay(vcenter: Vcenter, web: Any) -> None:
    vcenter.arrange("ReconfigVM_Task", task_fault="FileLocked", detail={"file": "[vmfs1] x.vmdk"}, times=-1)
    for _ in range(3):
        with pytest.raises(vim.fault.FileLocked) as caught:
            kit.reconfigure(web, memoryMB=64)
        assert caught.value.file == "[vmfs1] x.vmdk"
    assert web.config.hardware.memoryMB == 1024


@pytest.mark.parametrize(("applied", "left"), [(False, 2), (True, 0)])
def test_a_task_fails_half_way_with_or_without_its_effect(
    vcenter: Vcenter, web: Any, applied: bool, left: int
) -> None:
    vcenter.arrange("ReconfigVM_Task", task_fault="HostCommunication", task_applied=applied)
    task = web.ReconfigVM_Task(
        vim.vm.ConfigSpec(deviceChange=[kit.remove_disk(d) for d in kit.disks_of(web)])
    )
    with pytest.raises(vmodl.fault.HostCommunication):
        kit.wait(task)
    assert task.info.progress == 50
    assert len(vcenter.vm("web")["disks"]) == left


@pytest.mark.parametrize(("when", "effect"), [("before", "poweredOff"), ("after", "poweredOn")])
def test_a_dropped_call_has_had_its_effect_or_not(vcenter: Vcenter, web: Any, when: str, effect: str) -> None:
    vcenter.arrange("PowerOnVM_Task", drop=when)
    with pytest.raises((OSError, vmodl.fault.HostNotReachable)):
        web.PowerOnVM_Task()
    deadline = time.monotonic() + 20
    while powered(vcenter) != effect and time.monotonic() < deadline:
        time.sleep(0.01)
    assert powered(vcenter) == effect
    (call,) = vcenter.calls(method="PowerOnVM_Task")
    assert call["result"] == f"dropped {when}"


def test_an_arranged_status_is_answered(vcenter: Vcenter, web: Any) -> None:
    vcenter.arrange("PowerOnVM_Task", http=503)
    with pytest.raises(Exception, match=HTTP_ERROR):
        web.PowerOnVM_Task()
    assert powered(vcenter) == "poweredOff"
    kit.wait(web.PowerOnVM_Task())


def test_a_call_is_delayed(vcenter: Vcenter, web: Any) -> None:
    vcenter.arrange("PowerOnVM_Task", delay_seconds=0.3)
    began = time.monotonic()
    web.PowerOnVM_Task()
    assert time.monotonic() - began >= 0.3


def test_a_disconnected_vcenter_refuses_and_comes_back(vcenter: Vcenter, web: Any) -> None:
    vcenter.connection(is_open=False)
    with pytest.raises(OSError, match="refused"):
        kit.connect(vcenter, *ADMIN)
    with pytest.raises(OSError, match=r"refused|reset|closed|EOF"):
        web.PowerOnVM_Task()
    vcenter.connection(is_open=True)
    kit.wait(web.PowerOnVM_Task())  # the session has lived on


def test_expired_sessions_have_to_log_in_again(vcenter: Vcenter, web: Any) -> None:
    assert vcenter.expire_sessions() >= 1
    with pytest.raises(vim.fault.NotAuthenticated):
        web.PowerOnVM_Task()
    with kit.session(vcenter, *ADMIN) as again:
        kit.wait(kit.find(again, vim.VirtualMachine, "web").PowerOnVM_Task())


def test_a_task_takes_its_time_and_shows_progress(vcenter: Vcenter, web: Any) -> None:
    vcenter.task_seconds(1.0)
    task = web.PowerOnVM_Task()
    seen = []
    while True:
        power = web.runtime.powerState  # it can be read meanwhile
        info = task.info
        if info.state not in ("queued", "running"):
            break
        seen.append(info.progress or 0)
        assert power == "poweredOff"
        time.sleep(0.02)
    assert info.state == "success"
    assert info.progress == 100
    assert seen == sorted(seen)
    assert len(set(seen)) >= 4
    assert info.reason.userName == ADMIN[0]
    assert info.entityName == "web"


def test_a_waiter_on_the_property_collector_hears_of_the_end(vcenter: Vcenter, si: Any, web: Any) -> None:
    vcenter.task_seconds(0.3)
    assert WaitForTask(web.PowerOnVM_Task(), si=si) == "success"
    with pytest.raises(vim.fault.InvalidPowerState):
        WaitForTask(web.PowerOnVM_Task(), si=si)


def test_a_lost_host_takes_no_orders(tmp_path: Path) -> None:
    site = story.site(tmp_path)
    site["vms"] = [vm | {"host": "esx2"} for vm in site["vms"] if vm["name"] == "web"]
    site["hosts"][1]["connected"] = False
    with launch.running(story.write(tmp_path, site)) as running, kit.session(running, *ADMIN) as si:
        assert kit.find(si, vim.HostSystem, "esx2").runtime.connectionState == "disconnected"
        with pytest.raises(vmodl.fault.HostNotConnected):
            kit.wait(kit.find(si, vim.VirtualMachine, "web").PowerOnVM_Task())


def test_a_cancelled_task_has_no_effect(vcenter: Vcenter, web: Any) -> None:
    vcenter.arrange("PowerOnVM_Task", task_seconds=0.5)
    task = web.PowerOnVM_Task()
    task.CancelTask()
    with pytest.raises(vmodl.fault.RequestCanceled):
        kit.wait(task)
    deadline = time.monotonic() + 20
    while (
        vcenter.calls(method="PowerOnVM_Task")[0]["task_result"] == "running" and time.monotonic() < deadline
    ):
        time.sleep(0.02)
    assert vcenter.calls(method="PowerOnVM_Task")[0]["task_result"] == "cancelled"
    assert powered(vcenter) == "poweredOff"


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({"fault": "NoSuchFault"}, "no vim fault"),
        ({"fault": "FileLocked", "http": 503}, "not both"),
        ({}, "does nothing"),
        ({"drop": "sometime"}, "before or after"),
        ({"http": 200}, "400 to 599"),
        ({"fautl": "FileLocked"}, "unknown field"),
        ({"fault": "FileLocked", "detail": {"file": 7}}, "detail"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(vcenter: Vcenter, rule: dict[str, Any], reason: str) -> None:
    with pytest.raises(ControlRefused, match=reason):
        vcenter.arrange("PowerOnVM_Task", **rule)
    assert vcenter.arranged() == []


# --- the journal ---


def test_the_journal_proves_what_was_called_and_what_came_of_it(vcenter: Vcenter, web: Any) -> None:
    vcenter.forget_calls()
    kit.wait(web.PowerOnVM_Task())
    with pytest.raises(vim.fault.InvalidPowerState):
        kit.wait(web.PowerOnVM_Task())
    with kit.session(vcenter, *READER) as si, pytest.raises(vim.fault.NoPermission):
        kit.find(si, vim.VirtualMachine, "web").PowerOffVM_Task()
    calls = vcenter.calls(changing=1, entity="web")
    assert [(c["method"], c["user"], c["result"], c.get("task_result")) for c in calls] == [
        ("PowerOnVM_Task", ADMIN[0], "ok", "success"),
        ("PowerOnVM_Task", ADMIN[0], "ok", "InvalidPowerState"),
        ("PowerOffVM_Task", READER[0], "NoPermission", None),
    ]
    assert vcenter.calls(since=calls[-1]["id"], changing=1) == []
    assert all(c["entity"] == web._moId for c in calls)


# --- the program ---


def test_the_thumbprint_is_the_certificates(vcenter: Vcenter) -> None:
    pem = ssl.get_server_certificate((vcenter.host, vcenter.port), timeout=20)
    assert pem.split() == vcenter.certificate.read_text().split()
    assert vcenter.certificate.with_name("certificate.pem.sha256").read_text().strip() == vcenter.thumbprint
    assert re.fullmatch(r"([0-9A-F]{2}:){31}[0-9A-F]{2}", vcenter.thumbprint)


def test_the_program_ends_on_sigterm(tmp_path: Path) -> None:
    with launch.running(story.write(tmp_path, story.site(tmp_path))) as running:
        os.kill(running.pid, signal.SIGTERM)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                running.inventory()
            except OSError:
                break
            time.sleep(0.02)
        else:
            pytest.fail("the program still answers")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hosts": []}, "there is no host"),
        ({"hots": []}, "unknown field"),
        ({"datastores": [{"name": "a", "directory": "a", "type": "FAT"}]}, 'type is "FAT"'),
        ({"datastores": [{"name": "a", "directory": "a", "hosts": {"esx1": "rw"}}]}, "access mode"),
        ({"vms": [{"name": "a", "host": "none"}]}, 'host is "none"'),
        ({"vms": [{"name": "a", "disks": [{"path": "[vmfs1] no.vmdk"}]}]}, "was not found"),
        (
            {"vms": [{"name": "a", "disks": [{"path": "[vmfs1] ../no.vmdk", "size_bytes": 512}]}]},
            "InvalidDatastorePath",
        ),
        ({"vms": [{"name": "a"}, {"name": "a"}]}, "DuplicateName"),
        ({"users": [{"name": "a", "role": "king"}]}, 'role is "king"'),
    ],
)
def test_an_inventory_that_cannot_be_meant_is_named(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    file = story.write(tmp_path, story.site(tmp_path) | change)
    with pytest.raises(SimulatorDead, match=re.escape(reason)), launch.running(file):
        pass


def test_an_inventory_that_is_no_json_is_named(tmp_path: Path) -> None:
    file = tmp_path / "inventory.json"
    file.write_text(json.dumps(story.site(tmp_path))[:-1])
    with pytest.raises(SimulatorDead, match="unexpected EOF"), launch.running(file):
        pass
