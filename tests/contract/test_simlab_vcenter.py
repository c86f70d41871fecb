"""What pyvmomi can rely on: the same of the stand-in for vCenter and of stock vcsim, so that both are one API."""

import json
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from simlab.vcenter import kit, launch
from simlab.vcenter.launch import Vcenter

USER, PASSWORD = "administrator@vsphere.local", "a password"
MIB = 1024 * 1024


def like_stock(folder: Path) -> Path:
    """An inventory with the names of the simulator's own model."""
    file = folder / "inventory.json"
    file.write_text(
        json.dumps(
            {
                "datacenter": "DC0",
                "hosts": [{"name": "DC0_H0"}],
                "datastores": [{"name": "LocalDS_0", "directory": str(folder / "LocalDS_0")}],
                "vms": [
                    {
                        "name": "DC0_H0_VM0",
                        "power": "on",
                        "disks": [
                            {
                                "path": "[LocalDS_0] DC0_H0_VM0/disk1.vmdk",
                                "size_bytes": 16 * MIB,
                                "controller": "pvscsi",
                            }
                        ],
                    }
                ],
            }
        )
    )
    return file


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    launch.build()


@pytest.fixture(params=["ours", "stock"])
def vcenter(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Vcenter]:
    inventory = like_stock(tmp_path) if request.param == "ours" else None
    with launch.running(inventory, "--user", USER, "--password", PASSWORD) as running:
        assert running.stock is (inventory is None)
        yield running


@pytest.fixture
def si(vcenter: Vcenter) -> Iterator[Any]:
    with kit.session(vcenter, USER, PASSWORD) as instance:
        yield instance


@pytest.fixture
def vm(si: Any) -> Any:
    return kit.find(si, vim.VirtualMachine, "DC0_H0_VM0")


def power(si: Any, vm: Any) -> str:
    return str(kit.read(si, vm, "runtime.powerState")["runtime.powerState"])


def snapshot_names(nodes: list[Any]) -> list[Any]:
    return [(node.name, snapshot_names(node.childSnapshotList)) for node in nodes]


def tree(si: Any, vm: Any) -> list[Any]:
    found = kit.read(si, vm, "snapshot")
    return snapshot_names(found["snapshot"].rootSnapshotList) if "snapshot" in found else []


def test_a_wrong_password_is_refused(vcenter: Vcenter) -> None:
    with pytest.raises(vim.fault.InvalidLogin):
        kit.connect(vcenter, USER, "another password")


def test_a_certificate_that_was_not_pinned_is_refused(vcenter: Vcenter) -> None:
    with (
        socket.create_connection((vcenter.host, vcenter.port), timeout=10) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        ssl.create_default_context().wrap_socket(plain, server_hostname=vcenter.host)


def test_the_inventory_is_found_by_kind_and_name(si: Any, vm: Any) -> None:
    host = kit.find(si, vim.HostSystem, "DC0_H0")
    datastore = kit.find(si, vim.Datastore, "LocalDS_0")
    assert kit.read(si, vm, "runtime.host")["runtime.host"] == host
    assert list(vm.datastore) == [datastore]
    assert datastore.host[0].mountInfo.accessMode == "readWrite"
    assert vm in list(host.vm)
    assert host.hardware.memorySize > 0
    assert si.content.about.apiType == "VirtualCenter"


def test_power_goes_off_and_on(si: Any, vm: Any) -> None:
    assert power(si, vm) == "poweredOn"
    kit.wait(vm.PowerOffVM_Task())
    assert power(si, vm) == "poweredOff"
    with pytest.raises(vim.fault.InvalidPowerState):
        kit.wait(vm.PowerOffVM_Task())
    kit.wait(vm.PowerOnVM_Task())
    assert power(si, vm) == "poweredOn"


def test_extra_config_is_added_and_changed(vm: Any) -> None:
    for value in ("FALSE", "TRUE"):
        kit.reconfigure(vm, extraConfig=[vim.option.OptionValue(key="disk.EnableUUID", value=value)])
        assert [o.value for o in vm.config.extraConfig if o.key == "disk.EnableUUID"] == [value]


def test_a_disk_is_added_detached_and_attached_again(vm: Any) -> None:
    controller = kit.controller_of(vm).key
    path = "[LocalDS_0] DC0_H0_VM0/second.vmdk"
    kit.reconfigure(vm, kit.add_disk(controller, path, unit=3, size=4 * MIB))
    disk = kit.disks_of(vm)[-1]
    assert (disk.backing.fileName, disk.capacityInBytes, disk.unitNumber) == (path, 4 * MIB, 3)
    uuid = disk.backing.uuid
    kit.reconfigure(vm, kit.remove_disk(disk))
    assert path not in [d.backing.fileName for d in kit.disks_of(vm)]
    kit.reconfigure(vm, kit.add_disk(controller, path, unit=4))
    assert [d.backing.uuid for d in kit.disks_of(vm) if d.backing.fileName == path] == [uuid]


def test_a_disk_file_that_is_missing_is_not_attached(vm: Any) -> None:
    before = len(kit.disks_of(vm))
    with pytest.raises(vim.fault.FileNotFound):
        kit.reconfigure(
            vm, kit.add_disk(kit.controller_of(vm).key, "[LocalDS_0] DC0_H0_VM0/none.vmdk", unit=5)
        )
    assert len(kit.disks_of(vm)) == before


def test_snapshots_grow_into_a_tree_and_all_go(si: Any, vm: Any) -> None:
    for name in ("first", "second"):
        kit.wait(vm.CreateSnapshot_Task(name=name, description="", memory=False, quiesce=False))
    assert tree(si, vm) == [("first", [("second", [])])]
    first = vm.rootSnapshot[0]
    kit.wait(first.RevertToSnapshot_Task())
    kit.wait(vm.CreateSnapshot_Task(name="third", description="", memory=False, quiesce=False))
    assert tree(si, vm) == [("first", [("second", []), ("third", [])])]
    kit.wait(vm.RemoveAllSnapshots_Task())
    assert tree(si, vm) == []


def test_removing_a_leaf_leaves_its_parent_the_current_one(si: Any, vm: Any) -> None:
    refs = [kit.wait(vm.CreateSnapshot_Task(name=n, memory=False, quiesce=False)) for n in ("a", "b")]
    kit.wait(refs[1].RemoveSnapshot_Task(removeChildren=False))
    assert tree(si, vm) == [("a", [])]
    assert kit.read(si, vm, "snapshot.currentSnapshot")["snapshot.currentSnapshot"] == refs[0]


def test_a_vm_is_created_with_a_new_disk_and_destroyed(si: Any) -> None:
    datacenter = kit.find(si, vim.Datacenter, "DC0")
    host = kit.find(si, vim.HostSystem, "DC0_H0")
    controller = vim.vm.device.VirtualDeviceSpec(
        operation="add",
        device=vim.vm.device.VirtualLsiLogicController(key=-100, busNumber=0, sharedBus="noSharing"),
    )
    spec = vim.vm.ConfigSpec(
        name="new",
        memoryMB=64,
        numCPUs=1,
        files=vim.vm.FileInfo(vmPathName="[LocalDS_0]"),
        deviceChange=[controller, kit.add_disk(-100, "[LocalDS_0]", unit=0, size=MIB)],
    )
    vm = kit.wait(datacenter.vmFolder.CreateVM_Task(config=spec, pool=host.parent.resourcePool, host=host))
    assert power(si, vm) == "poweredOff"
    assert [d.capacityInBytes for d in kit.disks_of(vm)] == [MIB]
    assert kit.disks_of(vm)[0].backing.fileName == "[LocalDS_0] new/new.vmdk"
    kit.wait(vm.Destroy_Task())
    assert "new" not in [entity.name for entity in datacenter.vmFolder.childEntity]


def test_a_datastore_is_browsed(si: Any) -> None:
    datastore = kit.find(si, vim.Datastore, "LocalDS_0")
    what = vim.host.DatastoreBrowser.SearchSpec(matchPattern=["*.vmdk"])
    found = kit.wait(datastore.browser.SearchDatastore_Task("[LocalDS_0] DC0_H0_VM0", what))
    assert "disk1.vmdk" in [file.path for file in found.file]


def test_after_the_logout_nothing_is_answered(vcenter: Vcenter) -> None:
    with kit.session(vcenter, USER, PASSWORD) as instance:
        vm = kit.find(instance, vim.VirtualMachine, "DC0_H0_VM0")
        instance.content.sessionManager.Logout()
        with pytest.raises(vim.fault.NotAuthenticated):
            vm.PowerOffVM_Task()
    with kit.session(vcenter, USER, PASSWORD) as again:
        assert power(again, kit.find(again, vim.VirtualMachine, "DC0_H0_VM0")) == "poweredOn"


def test_an_object_that_is_gone_is_named(si: Any) -> None:
    gone = vim.VirtualMachine("vm-4711", si._stub)
    with pytest.raises(vmodl.fault.ManagedObjectNotFound):
        gone.PowerOffVM_Task()
