"""Disks, snapshots and power of the stand-in for vCenter: what stock vcsim gets wrong, one test for each gap."""

import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from simlab.vcenter import kit, story
from simlab.vcenter.launch import Vcenter
from simlab.vcenter.story import ADMIN, MIB, WEB_BYTES

WEB, DATA = "[vmfs1] web/web.vmdk", "[vmfs1] web/data.vmdk"


@pytest.fixture
def mt(si: Any) -> Any:
    return kit.find(si, vim.VirtualMachine, "mt")


def snapshot(vm: Any, name: str = "before") -> Any:
    return kit.wait(vm.CreateSnapshot_Task(name=name, memory=False, quiesce=False))


def files(vm: Any) -> list[str]:
    return [disk.backing.fileName for disk in kit.disks_of(vm)]


def chain(disk: Any) -> list[str]:
    names, backing = [], disk.backing
    while backing is not None:
        names.append(backing.fileName)
        backing = backing.parent
    return names


def qemu_info(path: Path) -> dict[str, Any]:
    done = subprocess.run(
        ["qemu-img", "info", "--output=json", str(path)], capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout))


def qemu_read(path: Path, size: int) -> bytes:
    raw = path.with_suffix(".read")
    subprocess.run(["qemu-img", "convert", "-f", "vmdk", "-O", "raw", str(path), str(raw)], check=True)
    content = raw.read_bytes()
    raw.unlink()
    assert len(content) == size
    return content


def test_a_new_disk_is_a_valid_vmdk_of_the_right_size(web: Any, tmp_path: Path) -> None:
    kit.reconfigure(web, kit.add_disk(kit.controller_of(web).key, "", size=8 * MIB))
    disk = kit.disks_of(web)[-1]
    assert (disk.backing.fileName, disk.deviceInfo.label) == ("[vmfs1] web/web_1.vmdk", "Hard disk 3")
    descriptor = tmp_path / "vmfs1/web/web_1.vmdk"
    assert qemu_info(descriptor)["virtual-size"] == 8 * MIB
    flat = descriptor.with_name("web_1-flat.vmdk").stat()
    assert (flat.st_size, flat.st_blocks) == (8 * MIB, 0)
    text = descriptor.read_text()
    assert 'createType="vmfs"' in text
    digits = re.search(r'ddb\.uuid = "([^"]+)"', text)
    assert digits is not None
    assert re.sub("[ -]", "", digits[1]) == disk.backing.uuid.replace("-", "")


def test_an_existing_vmdk_is_attached_with_its_own_uuid_and_size(web: Any, tmp_path: Path) -> None:
    path = tmp_path / "vmfs1/web/foreign.vmdk"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", path, "3M"], check=True
    )
    text = path.read_text() + 'ddb.uuid = "60 00 C2 9a bc de f0 11-22 33 44 55 66 77 88 99"\n'
    path.write_text(text)
    kit.reconfigure(web, kit.add_disk(kit.controller_of(web).key, "[vmfs1] web/foreign.vmdk"))
    disk = kit.disks_of(web)[-1]
    assert disk.backing.uuid == "6000c29a-bcde-f011-2233-445566778899"
    assert disk.capacityInBytes == 3 * MIB
    assert path.read_text() == text


def test_a_vmdk_without_uuid_gets_one_that_stays(web: Any, tmp_path: Path) -> None:
    path = tmp_path / "vmfs1/web/foreign.vmdk"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", path, "1M"], check=True
    )
    seen = set()
    for _ in range(2):
        kit.reconfigure(web, kit.add_disk(kit.controller_of(web).key, "[vmfs1] web/foreign.vmdk"))
        disk = kit.disks_of(web)[-1]
        seen.add(disk.backing.uuid)
        kit.reconfigure(web, kit.remove_disk(disk))
    assert len(seen) == 1
    assert all(seen)


def test_a_flat_extent_is_no_disk(web: Any) -> None:
    with pytest.raises(vim.fault.InvalidDeviceBacking):
        kit.reconfigure(web, kit.add_disk(kit.controller_of(web).key, "[vmfs1] mt/mt-flat.vmdk"))


def test_a_disk_that_was_not_imported_does_not_power_on(web: Any, tmp_path: Path) -> None:
    path = tmp_path / "vmfs1/web/hosted.vmdk"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", path, "2M"], check=True)
    kit.reconfigure(web, kit.add_disk(kit.controller_of(web).key, "[vmfs1] web/hosted.vmdk"))
    assert kit.disks_of(web)[-1].capacityInBytes == 2 * MIB
    with pytest.raises(vim.fault.GenericVmConfigFault, match="monolithicSparse"):
        kit.wait(web.PowerOnVM_Task())


def test_an_independent_disk_takes_no_part_in_snapshots(web: Any) -> None:
    change = kit.add_disk(kit.controller_of(web).key, "[vmfs1] web/own.vmdk", size=MIB)
    change.device.backing.diskMode = "independent_persistent"
    kit.reconfigure(web, change)
    snapshot(web)
    assert files(web)[-1] == "[vmfs1] web/own.vmdk"


def test_detaching_keeps_the_files_and_destroying_does_not(web: Any, tmp_path: Path) -> None:
    first, second = kit.disks_of(web)
    kit.reconfigure(web, kit.remove_disk(first), kit.remove_disk(second, destroy=True))
    assert files(web) == []
    left = sorted(p.name for p in (tmp_path / "vmfs1/web").glob("*.vmdk"))
    assert left == ["web-flat.vmdk", "web.vmdk"]


def test_homecoming_hands_the_disks_over_and_back(web: Any, mt: Any, vcenter: Vcenter) -> None:
    uuids = [d.backing.uuid for d in kit.disks_of(web)]
    kit.reconfigure(web, *[kit.remove_disk(d) for d in kit.disks_of(web)])
    key = kit.controller_of(mt).key
    kit.reconfigure(mt, kit.add_disk(key, WEB), kit.add_disk(key, DATA))
    mine = kit.disks_of(mt)[1:]
    assert [d.backing.uuid for d in mine] == uuids
    assert [d["locked_by"] for d in vcenter.vm("mt")["disks"]] == ["mt", "mt", "mt"]
    kit.reconfigure(mt, *[kit.remove_disk(d) for d in mine])
    kit.reconfigure(web, *[kit.add_disk(kit.controller_of(web).key, f) for f in (WEB, DATA)])
    snapshot(web)
    kit.wait(web.PowerOnVM_Task())
    assert [d["uuid"] for d in vcenter.vm("web")["disks"]] == uuids


def test_a_disk_of_a_running_vm_is_not_attached_to_another(web: Any, mt: Any, vcenter: Vcenter) -> None:
    kit.wait(web.PowerOnVM_Task())
    with pytest.raises(vim.fault.FileLocked) as caught:
        kit.reconfigure(mt, kit.add_disk(kit.controller_of(mt).key, WEB))
    assert caught.value.file == WEB
    assert "web" in caught.value.msg
    assert len(vcenter.vm("mt")["disks"]) == 1


def test_of_many_that_attach_one_disk_at_once_one_gets_it(si: Any, mt: Any, vcenter: Vcenter) -> None:
    datacenter, pool, key = kit.find(si, vim.Datacenter, "DC"), mt.resourcePool, kit.controller_of(mt).key
    names = [f"mt{index}" for index in range(6)]
    controller = vim.vm.device.VirtualDeviceSpec(
        operation="add",
        device=vim.vm.device.VirtualLsiLogicController(key=key, busNumber=0, sharedBus="noSharing"),
    )
    for name in names:
        made = datacenter.vmFolder.CreateVM_Task(
            config=vim.vm.ConfigSpec(
                name=name,
                memoryMB=4,
                numCPUs=1,
                files=vim.vm.FileInfo(vmPathName="[vmfs1]"),
                deviceChange=[controller],
            ),
            pool=pool,
        )
        kit.wait(kit.wait(made).PowerOnVM_Task())

    def attach(name: str) -> str:
        with kit.session(vcenter, *ADMIN) as own:
            vm = kit.find(own, vim.VirtualMachine, name)
            try:
                kit.reconfigure(vm, kit.add_disk(kit.controller_of(vm).key, WEB))
            except vim.fault.FileLocked:
                return "locked"
            return "attached"

    with ThreadPoolExecutor(len(names)) as pool_of_threads:
        outcomes = list(pool_of_threads.map(attach, names))
    assert sorted(outcomes) == ["attached"] + ["locked"] * (len(names) - 1)
    holders = [vm["name"] for vm in vcenter.inventory()["vms"] if WEB in [d["file"] for d in vm["disks"]]]
    assert sorted(holders) == sorted(["web", names[outcomes.index("attached")]])


def test_a_vm_whose_disk_another_running_one_holds_does_not_power_on(web: Any, mt: Any) -> None:
    kit.reconfigure(mt, kit.add_disk(kit.controller_of(mt).key, DATA))  # web is off, so this goes
    with pytest.raises(vim.fault.GenericVmConfigFault, match="Failed to lock the file"):
        kit.wait(web.PowerOnVM_Task())
    kit.reconfigure(mt, kit.remove_disk(kit.disks_of(mt)[-1]))
    kit.wait(web.PowerOnVM_Task())


def test_a_disk_is_not_attached_twice_to_one_vm(web: Any) -> None:
    key = kit.controller_of(web).key
    with pytest.raises(vim.fault.InvalidDeviceBacking):
        kit.reconfigure(web, kit.add_disk(key, WEB))
    kit.reconfigure(web, kit.remove_disk(kit.disks_of(web)[0]))
    with pytest.raises(vim.fault.InvalidDeviceBacking):
        kit.reconfigure(web, kit.add_disk(key, WEB), kit.add_disk(key, WEB))
    assert files(web) == [DATA]


def test_a_unit_that_is_taken_or_the_controllers_own_is_refused(web: Any) -> None:
    key = kit.controller_of(web).key
    for unit in (0, 7, 16):
        with pytest.raises(vim.fault.InvalidDeviceSpec):
            kit.reconfigure(web, kit.add_disk(key, "", unit=unit, size=MIB))
    assert len(kit.disks_of(web)) == 2


def test_a_full_controller_takes_fifteen_disks_and_no_more(web: Any) -> None:
    key = kit.controller_of(web).key
    kit.reconfigure(web, *[kit.add_disk(key, "", size=MIB) for _ in range(13)])
    assert sorted(d.unitNumber for d in kit.disks_of(web)) == [*range(7), *range(8, 16)]
    with pytest.raises(vim.fault.TooManyDevices):
        kit.reconfigure(web, kit.add_disk(key, "", size=MIB))


def test_a_failed_reconfiguration_leaves_no_new_files(web: Any, tmp_path: Path) -> None:
    before = sorted((tmp_path / "vmfs1/web").iterdir())
    key = kit.controller_of(web).key
    with pytest.raises(vim.fault.FileNotFound):
        kit.reconfigure(web, kit.add_disk(key, "", size=MIB), kit.add_disk(key, "[vmfs1] web/none.vmdk"))
    assert sorted((tmp_path / "vmfs1/web").iterdir()) == before


def test_an_attached_disk_is_not_deleted(si: Any, web: Any, tmp_path: Path) -> None:
    manager, datacenter = si.content.virtualDiskManager, kit.find(si, vim.Datacenter, "DC")
    with pytest.raises(vim.fault.ResourceInUse):
        kit.wait(manager.DeleteVirtualDisk_Task(name=WEB, datacenter=datacenter))
    kit.wait(web.PowerOnVM_Task())
    with pytest.raises(vim.fault.FileLocked):
        kit.wait(manager.DeleteVirtualDisk_Task(name=WEB, datacenter=datacenter))
    with pytest.raises(vim.fault.FileLocked):
        kit.wait(si.content.fileManager.DeleteDatastoreFile_Task(name="[vmfs1] web", datacenter=datacenter))
    assert (tmp_path / "vmfs1/web/web-flat.vmdk").stat().st_size == WEB_BYTES


def test_the_disk_manager_makes_copies_moves_and_deletes_real_files(si: Any, tmp_path: Path) -> None:
    manager, datacenter = si.content.virtualDiskManager, kit.find(si, vim.Datacenter, "DC")
    spec = vim.VirtualDiskManager.FileBackedVirtualDiskSpec(
        diskType="thin", adapterType="lsiLogic", capacityKb=1024
    )
    made = manager.CreateVirtualDisk_Task(name="[vmfs1] a.vmdk", datacenter=datacenter, spec=spec)
    assert kit.wait(made) == "[vmfs1] a.vmdk"
    assert made.info.entity == datacenter  # stock: an entity that pyvmomi cannot read
    (tmp_path / "vmfs1/a-flat.vmdk").write_bytes(b"x" * MIB)
    uuid = manager.QueryVirtualDiskUuid(name="[vmfs1] a.vmdk", datacenter=datacenter)
    for verb, name in (("Copy", "[vmfs1] b.vmdk"), ("Move", "[vmfs3] c.vmdk")):
        call = getattr(manager, verb + "VirtualDisk_Task")
        kit.wait(
            call(
                sourceName="[vmfs1] a.vmdk",
                sourceDatacenter=datacenter,
                destName=name,
                destDatacenter=datacenter,
                force=False,
            )
        )
        assert manager.QueryVirtualDiskUuid(name=name, datacenter=datacenter) == uuid
    assert qemu_read(tmp_path / "vmfs3/c.vmdk", MIB) == b"x" * MIB
    assert not list((tmp_path / "vmfs1").glob("a*"))
    kit.wait(manager.DeleteVirtualDisk_Task(name="[vmfs3] c.vmdk", datacenter=datacenter))
    assert not list((tmp_path / "vmfs3").iterdir())


def test_a_snapshot_puts_a_delta_on_every_disk(web: Any, tmp_path: Path) -> None:
    (tmp_path / "vmfs1/web/web-flat.vmdk").write_bytes(b"base" * (WEB_BYTES // 4))
    ref = snapshot(web)
    assert [chain(d) for d in kit.disks_of(web)] == [
        ["[vmfs1] web/web-000001.vmdk", WEB],
        ["[vmfs1] web/data-000001.vmdk", DATA],
    ]
    assert [d.backing.fileName for d in kit.disks_of(ref)] == [WEB, DATA]
    delta = tmp_path / "vmfs1/web/web-000001.vmdk"
    assert 'parentFileNameHint="web.vmdk"' in delta.read_text()
    info = qemu_info(delta)
    assert (info["format"], info["format-specific"]["data"]["create-type"]) == ("vmdk", "vmfsSparse")
    assert qemu_read(delta, WEB_BYTES) == b"base" * (WEB_BYTES // 4)


def test_removing_a_snapshot_returns_to_the_base(web: Any, tmp_path: Path) -> None:
    ref = snapshot(web)
    kit.wait(ref.RemoveSnapshot_Task(removeChildren=False))
    assert files(web) == [WEB, DATA]
    assert web.snapshot is None
    assert not list((tmp_path / "vmfs1/web").glob("*-0*"))
    assert not list((tmp_path / "vmfs1/web").glob("*.vmsn"))


def grains(delta: Path, content: dict[int, bytes]) -> None:
    """What a guest would have written: sectors of 512 bytes in an ESX sparse extent, by the published layout."""
    data = bytearray(delta.read_bytes())
    free = int.from_bytes(data[28:32], "little")
    table = free
    data += bytes(512 * (free - len(data) // 512 + 32))
    free += 32
    data[2048:2052] = table.to_bytes(4, "little")
    for sector, one in content.items():
        data += one
        at = table * 512 + 4 * sector
        data[at : at + 4] = free.to_bytes(4, "little")
        free += 1
    data[28:32] = free.to_bytes(4, "little")
    delta.write_bytes(data)


def test_a_commit_carries_what_was_written_into_the_base(web: Any, tmp_path: Path) -> None:
    first, second = snapshot(web, "first"), snapshot(web, "second")
    folder = tmp_path / "vmfs1/web"
    grains(folder / "web-000001-delta.vmdk", {0: b"1" * 512, 5: b"5" * 512})
    grains(folder / "web-000002-delta.vmdk", {5: b"n" * 512, 9: b"9" * 512})
    expected = bytearray(WEB_BYTES)
    expected[:512], expected[2560:3072], expected[4608:5120] = b"1" * 512, b"n" * 512, b"9" * 512
    assert qemu_read(folder / "web-000002.vmdk", WEB_BYTES) == expected
    kit.wait(second.RemoveSnapshot_Task(removeChildren=False))
    assert files(web)[0] == "[vmfs1] web/web-000001.vmdk"
    assert qemu_read(folder / "web-000001.vmdk", WEB_BYTES) == expected
    kit.wait(first.RemoveSnapshot_Task(removeChildren=False))
    assert (folder / "web-flat.vmdk").read_bytes() == expected


def test_a_revert_drops_what_was_written_since(web: Any, tmp_path: Path) -> None:
    ref = snapshot(web)
    folder = tmp_path / "vmfs1/web"
    grains(folder / "web-000001-delta.vmdk", {0: b"1" * 512})
    kit.wait(web.PowerOnVM_Task())
    kit.wait(ref.RevertToSnapshot_Task())
    assert web.runtime.powerState == "poweredOff"
    (top, base) = chain(kit.disks_of(web)[0])
    assert base == WEB
    assert qemu_read(folder / top.rsplit("/", 1)[1], WEB_BYTES) == bytes(WEB_BYTES)
    assert len(list(folder.glob("web-0*-delta.vmdk"))) == 1


def test_removing_the_current_root_with_a_child_leaves_a_working_vm(web: Any) -> None:
    first = snapshot(web, "first")
    snapshot(web, "second")
    kit.wait(first.RevertToSnapshot_Task())
    kit.wait(first.RemoveSnapshot_Task(removeChildren=False))  # stock: ends the process
    assert [node.name for node in web.snapshot.rootSnapshotList] == ["second"]
    assert web.snapshot.currentSnapshot is None
    kit.wait(web.RemoveAllSnapshots_Task())
    assert files(web) == [WEB, DATA]
    kit.wait(web.PowerOnVM_Task())


def test_consolidation_waits_until_nobody_holds_a_file(web: Any, mt: Any, tmp_path: Path) -> None:
    snapshot(web)
    kit.reconfigure(mt, kit.add_disk(kit.controller_of(mt).key, WEB))
    with pytest.raises(vim.fault.FileLocked):
        kit.wait(web.RemoveAllSnapshots_Task())
    assert web.runtime.consolidationNeeded
    assert web.snapshot is None
    with pytest.raises(vim.fault.FileLocked):
        kit.wait(web.ConsolidateVMDisks_Task())
    kit.reconfigure(mt, kit.remove_disk(kit.disks_of(mt)[-1]))
    kit.wait(web.ConsolidateVMDisks_Task())
    assert not web.runtime.consolidationNeeded
    assert files(web) == [WEB, DATA]
    assert not list((tmp_path / "vmfs1/web").glob("*-0*"))


def test_snapshots_removed_without_consolidation_leave_the_deltas(web: Any) -> None:
    snapshot(web)
    kit.wait(web.RemoveAllSnapshots_Task(consolidate=False))
    assert web.runtime.consolidationNeeded
    assert files(web)[0] == "[vmfs1] web/web-000001.vmdk"
    kit.wait(web.ConsolidateVMDisks_Task())
    assert files(web) == [WEB, DATA]


def test_a_disk_with_a_snapshot_is_not_detached(web: Any) -> None:
    snapshot(web)
    with pytest.raises(vim.fault.GenericVmConfigFault, match="part of a snapshot"):
        kit.reconfigure(web, kit.remove_disk(kit.disks_of(web)[0]))


def test_a_base_that_was_changed_below_its_delta_is_noticed(web: Any, tmp_path: Path) -> None:
    snapshot(web)
    base = tmp_path / "vmfs1/web/web.vmdk"
    base.write_text(re.sub(r"(?m)^CID=.*$", "CID=0badcafe", base.read_text()))
    with pytest.raises(vim.fault.GenericVmConfigFault, match="parent virtual disk has been modified"):
        kit.wait(web.PowerOnVM_Task())


def test_powering_on_gives_the_written_disk_a_new_cid(web: Any, tmp_path: Path) -> None:
    descriptor = tmp_path / "vmfs1/web/web.vmdk"
    before = descriptor.read_text()
    kit.wait(web.PowerOnVM_Task())
    after = descriptor.read_text()
    assert re.sub(r"CID=\w+", "", before) == re.sub(r"CID=\w+", "", after)
    assert before != after


def test_memory_that_is_short_keeps_a_vm_off(web: Any) -> None:
    kit.reconfigure(web, memoryMB=3 * 1024 + 1)
    with pytest.raises(vim.fault.InsufficientMemoryResourcesFault) as caught:
        kit.wait(web.PowerOnVM_Task())
    assert (caught.value.unreserved, caught.value.requested) == (3 * story.GIB, 3 * story.GIB + MIB)
    kit.reconfigure(web, memoryMB=3 * 1024)
    kit.wait(web.PowerOnVM_Task())
    assert web.runtime.host.summary.quickStats.overallMemoryUsage == 4 * 1024


def test_a_second_vm_of_a_name_is_refused_in_one_folder(si: Any, web: Any) -> None:
    datacenter = kit.find(si, vim.Datacenter, "DC")
    spec = vim.vm.ConfigSpec(name="web", memoryMB=64, numCPUs=1, files=vim.vm.FileInfo(vmPathName="[vmfs1]"))
    pool = web.resourcePool
    with pytest.raises(vim.fault.DuplicateName):
        kit.wait(datacenter.vmFolder.CreateVM_Task(config=spec, pool=pool))
    other = datacenter.vmFolder.CreateFolder("other")
    second = kit.wait(other.CreateVM_Task(config=spec, pool=pool))
    assert sorted(vm.name for vm in web.runtime.host.vm) == ["mt", "web", "web"]
    assert second.config.files.vmPathName == "[vmfs1] web_1/web.vmx"


def test_a_vm_is_not_renamed_to_anothers_name(web: Any) -> None:
    with pytest.raises(vim.fault.DuplicateName):
        kit.wait(web.Rename_Task("mt"))
    kit.wait(web.Rename_Task("web-old"))
    assert (web.name, web.config.name, web.summary.config.name) == ("web-old",) * 3


def test_a_read_only_mount_takes_no_disk(web: Any, si: Any) -> None:
    datastore = kit.find(si, vim.Datastore, "vmfs2")
    modes = {mount.key.name: mount.mountInfo.accessMode for mount in datastore.host}
    assert modes == {"esx1": "readOnly", "esx2": "readWrite"}
    with pytest.raises(vim.fault.CannotAccessFile, match="read-only"):
        kit.reconfigure(web, kit.add_disk(kit.controller_of(web).key, "[vmfs2] x.vmdk", size=MIB))


def test_storage_vmotion_moves_the_files_and_strands_others(
    web: Any, mt: Any, si: Any, tmp_path: Path
) -> None:
    (tmp_path / "vmfs1/web/web-flat.vmdk").write_bytes(b"w" * WEB_BYTES)
    kit.reconfigure(mt, kit.add_disk(kit.controller_of(mt).key, WEB))
    target = kit.find(si, vim.Datastore, "vmfs3")
    kit.wait(mt.RelocateVM_Task(vim.vm.RelocateSpec(datastore=target)))
    assert files(mt) == ["[vmfs3] mt/mt.vmdk", "[vmfs3] mt/web.vmdk"]
    assert qemu_read(tmp_path / "vmfs3/mt/web.vmdk", WEB_BYTES) == b"w" * WEB_BYTES
    assert not (tmp_path / "vmfs1/web/web.vmdk").exists()
    kit.reconfigure(mt, kit.remove_disk(kit.disks_of(mt)[-1]))
    with pytest.raises(vim.fault.FileNotFound):  # web still knows the old path
        kit.wait(web.PowerOnVM_Task())


def test_storage_vmotion_takes_deltas_along(web: Any, si: Any, tmp_path: Path) -> None:
    ref = snapshot(web)
    target = kit.find(si, vim.Datastore, "vmfs3")
    kit.wait(web.RelocateVM_Task(vim.vm.RelocateSpec(datastore=target)))
    assert chain(kit.disks_of(web)[0]) == ["[vmfs3] web/web-000001.vmdk", "[vmfs3] web/web.vmdk"]
    assert not list((tmp_path / "vmfs1/web").glob("*.vmdk"))
    kit.wait(web.PowerOnVM_Task())
    kit.wait(ref.RemoveSnapshot_Task(removeChildren=False))
    assert files(web) == ["[vmfs3] web/web.vmdk", "[vmfs3] web/data.vmdk"]


def test_a_vmotion_changes_the_host(web: Any, si: Any) -> None:
    host = kit.find(si, vim.HostSystem, "esx2")
    kit.wait(web.RelocateVM_Task(vim.vm.RelocateSpec(host=host, pool=host.parent.resourcePool)))
    assert web.runtime.host == host
    assert [vm.name for vm in host.vm] == ["web"]
    assert [vm.name for vm in kit.find(si, vim.HostSystem, "esx1").vm] == ["mt"]


def test_a_disk_grows_but_not_below_a_snapshot(web: Any, tmp_path: Path) -> None:
    disk = kit.disks_of(web)[1]
    disk.capacityInKB, disk.capacityInBytes = 8 * 1024, 8 * MIB
    grow = vim.vm.device.VirtualDeviceSpec(operation="edit", device=disk)
    kit.reconfigure(web, grow)
    assert qemu_info(tmp_path / "vmfs1/web/data.vmdk")["virtual-size"] == 8 * MIB
    assert [d.capacityInBytes for d in kit.disks_of(web) if d.backing.fileName == DATA] == [8 * MIB]
    snapshot(web)
    disk = next(d for d in kit.disks_of(web) if "data" in d.backing.fileName)
    disk.capacityInKB, disk.capacityInBytes = 16 * 1024, 16 * MIB
    with pytest.raises(vim.fault.InvalidDeviceOperation):
        kit.reconfigure(web, vim.vm.device.VirtualDeviceSpec(operation="edit", device=disk))


def test_destroying_a_vm_removes_deltas_too(web: Any, tmp_path: Path) -> None:
    snapshot(web)
    kit.wait(web.Destroy_Task())
    assert not (tmp_path / "vmfs1/web").exists()
