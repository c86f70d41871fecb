"""What the port to a vCenter reads: on the stand-in, and on stock vcsim what both can."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from confserver.adapters.vsphere import PyvmomiVSphere, VsphereSettings
from confserver.ports import Power, VmDisk, VSphere
from drcore.secret import Secret
from simlab.vcenter import kit, launch, story
from simlab.vcenter.launch import Vcenter
from simlab.vcenter.story import ADMIN, MIB

WEB_FILE = "[vmfs1] web/web.vmdk"
WEB_DISK = VmDisk(
    uuid="6000c290111122223333444444444444",
    path=WEB_FILE,
    base_path=WEB_FILE,
    size=16 * MIB,
    controller_type="VirtualLsiLogicController",
    controller_bus=0,
    unit=0,
)


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    launch.build()


def adapter(vcenter: Vcenter, user: str, password: str) -> PyvmomiVSphere:
    secret = Secret(password.encode())
    settings = VsphereSettings(vcenter.host, vcenter.port, user, secret, vcenter.certificate, None, 20.0)
    return PyvmomiVSphere(settings)


@pytest.fixture
def vcenter(tmp_path: Path) -> Iterator[Vcenter]:
    with launch.running(story.write(tmp_path, story.site(tmp_path))) as running:
        yield running


@pytest.fixture
def vsphere(vcenter: Vcenter) -> Iterator[PyvmomiVSphere]:
    connected = adapter(vcenter, *ADMIN)
    yield connected
    connected.close()


# --- power and reading, on both servers ---


@pytest.fixture(params=["ours", "stock"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PyvmomiVSphere]:
    def like_stock(site: dict[str, Any]) -> None:
        site["hosts"] = [{"name": "DC0_H0"}]
        site["datastores"] = [{"name": "LocalDS_0", "type": "OTHER", "directory": str(tmp_path / "ds")}]
        disk = {"path": "[LocalDS_0] {}/disk1.vmdk", "size_bytes": MIB, "controller": "pvscsi"}
        site["vms"] = [
            {"name": name, "power": "on", "disks": [disk | {"path": f"[LocalDS_0] {name}/disk1.vmdk"}]}
            for name in ("DC0_H0_VM0", "DC0_H0_VM1")
        ]

    inventory = story.site(tmp_path)
    like_stock(inventory)
    file = story.write(tmp_path, inventory) if request.param == "ours" else None
    with launch.running(file, "--user", "homeward", "--password", "a password") as vcenter:
        vsphere = adapter(vcenter, "homeward", "a password")
        yield vsphere
        vsphere.close()


def test_the_adapter_is_the_port(both: PyvmomiVSphere) -> None:
    port: VSphere = both
    answered = port.vcenter()
    assert answered.name == "VMware vCenter Server"
    assert len(answered.instance_uuid) == 36


def test_vms_hosts_and_datastores_are_read(both: PyvmomiVSphere) -> None:
    vm = both.vm("DC0_H0_VM0")
    (disk,) = vm.disks
    assert (vm.name, vm.power, vm.host, vm.snapshots) == ("DC0_H0_VM0", Power.ON, "DC0_H0", ())
    assert vm.controllers == ("ParaVirtualSCSIController",)
    assert (disk.path, disk.base_path) == ("[LocalDS_0] DC0_H0_VM0/disk1.vmdk",) * 2
    assert (disk.controller_type, disk.controller_bus, disk.unit) == ("ParaVirtualSCSIController", 0, 0)
    assert len(disk.uuid) == 32
    assert both.vms_on("DC0_H0") == ("DC0_H0_VM0", "DC0_H0_VM1")
    (store,) = both.datastores("DC0_H0")
    assert (store.name, store.kind, store.accessible, store.read_write) == ("LocalDS_0", "OTHER", True, True)
    assert store.free_bytes > 0
    assert both.missing_privileges("DC0_H0_VM0", ("VirtualMachine.Interact.PowerOn",)) == ()


def test_power_and_snapshots_on_both(both: PyvmomiVSphere) -> None:
    name = "DC0_H0_VM0"
    both.power_off(name)
    both.power_off(name)
    assert both.vm(name).power is Power.OFF
    both.create_snapshot(name, "a")
    both.create_snapshot(name, "a")
    both.create_snapshot(name, "b")
    assert [snapshot.name for snapshot in both.vm(name).snapshots] == ["a", "b"]
    both.power_on(name)
    both.remove_snapshot(name, "b")
    both.merge_snapshots(name)
    vm = both.vm(name)
    assert (vm.power, vm.snapshots, vm.consolidation_needed) == (Power.ON, (), False)


# --- what is read ---


def test_a_vm_shows_what_preflight_asks_for(vsphere: PyvmomiVSphere) -> None:
    mt = vsphere.vm("mt")
    assert (mt.power, mt.host, mt.memory_bytes, mt.enable_uuid) == (Power.ON, "esx1", 1024 * MIB, True)
    assert mt.tools_running
    web = vsphere.vm("web")
    assert (web.enable_uuid, web.tools_running, web.consolidation_needed) == (False, False, False)
    assert web.disks[0] == WEB_DISK
    assert web.instance_uuid != mt.instance_uuid


def test_a_chain_shows_its_two_ends(vsphere: PyvmomiVSphere) -> None:
    vsphere.create_snapshot("web", "a")
    disk = vsphere.vm("web").disks[0]
    assert (disk.path, disk.base_path) == ("[vmfs1] web/web-000001.vmdk", WEB_FILE)


def test_datastores_are_as_that_host_sees_them(vsphere: PyvmomiVSphere) -> None:
    seen = {
        (host, store.name): store.read_write
        for host in ("esx1", "esx2")
        for store in vsphere.datastores(host)
    }
    assert seen["esx1", "vmfs2"] is False
    assert seen["esx2", "vmfs2"] is True
    kinds = {store.name: store.kind for store in vsphere.datastores("esx1")}
    assert (kinds["vmfs1"], kinds["vsan1"], kinds["nfs1"]) == ("VMFS", "vsan", "NFS")


def test_a_name_that_vcenter_escapes_is_found_as_it_was_written(
    vcenter: Vcenter, vsphere: PyvmomiVSphere
) -> None:
    with kit.session(vcenter, *ADMIN) as instance:
        web = kit.find(instance, vim.VirtualMachine, "web")
        kit.reconfigure(web, name="shop%2fweb 100%25")
    assert vsphere.vm("shop/web 100%").name == "shop/web 100%"
    assert vsphere.vms_on("esx1") == ("mt", "shop/web 100%")
