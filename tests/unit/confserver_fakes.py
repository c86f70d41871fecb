"""Fabrics and a data path that live in one JSON file, so that a killed process leaves them as they were.

Every effective change is a line of the journal in that file; a call that finds everything as asked for writes none.
`break_at` names a change after which the fakes raise (or kill the process), once.
"""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from confserver.errors import RoleFailed
from confserver.items import ItemDisk
from confserver.ports import (
    AzureDisk,
    AzureVm,
    CycleReport,
    Datastore,
    DiskProof,
    Moved,
    Power,
    ReplicaOrder,
    Snapshot,
    Standing,
    Stopped,
    Vcenter,
    Vm,
    VmDisk,
)
from drcore.secret import Secret

MIB = 1024 * 1024
DISKS = (
    VmDisk(
        "6000c29" + "1" * 25,
        "[vmfs1] web/web-000001.vmdk",
        "[vmfs1] web/web.vmdk",
        64 * MIB,
        "lsilogic",
        0,
        0,
    ),
    VmDisk(
        "6000c29" + "2" * 25,
        "[vmfs1] web/web_1-000001.vmdk",
        "[vmfs1] web/web_1.vmdk",
        16 * MIB,
        "lsilogic",
        0,
        3,
    ),
)
AZURE_VM = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/web"
AZURE_DISKS = tuple(
    f"/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/disks/web-{n}" for n in (0, 1)
)
ITEM_DISKS = tuple(ItemDisk(disk.uuid, azure) for disk, azure in zip(DISKS, AZURE_DISKS, strict=True))


class FakeClock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def broken() -> RoleFailed:
    """An error that does not pass by itself."""
    return RoleFailed(
        role="fake",
        role_code="HW-TEST-001",
        role_what="broke",
        role_found="x",
        role_expected="y",
        role_remedy="z",
    )


class World:
    """The file; `state` is read anew for every call, and written before a call answers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.on_change: Callable[[str], None] = lambda name: None
        if not path.exists():
            self._write(
                {
                    "home_power": "on",
                    "snapshotted": True,
                    "snapshots": ["old"],
                    "on": {disk.uuid: "web" for disk in DISKS},
                    "places": {
                        disk.uuid: [disk.controller_type, disk.controller_bus, disk.unit] for disk in DISKS
                    },
                    "azure": "on",
                    "agent_ready": True,
                    "taken": False,
                    "generation": 0,
                    "grants": [],
                    "points": 0,
                    "cycles": [0, 0, 0],
                    "final": False,
                    "lie": "",
                    "written": False,
                    "journal": [],
                }
            )

    def read(self) -> dict[str, Any]:
        """The state now."""
        found: dict[str, Any] = json.loads(self.path.read_text())
        return found

    def _write(self, state: dict[str, Any]) -> None:
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(state))
        new.replace(self.path)

    def set(self, **values: Any) -> None:
        """A change from outside, not journalled."""
        self._write({**self.read(), **values})

    def change(self, name: str, **values: Any) -> None:
        """An effective change is written with its line in the journal; then whoever wants to breaks in."""
        state = self.read()
        state.update(values)
        state["journal"].append(name)
        self._write(state)
        self.on_change(name)

    @property
    def journal(self) -> list[str]:
        """The effective changes so far."""
        found: list[str] = self.read()["journal"]
        return found

    def kill_once_at(self, number: int) -> None:
        """The process dies by SIGKILL right after the change of this number (from 1), before it can tell anybody."""

        def strike(name: str) -> None:
            if len(self.journal) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        self.on_change = strike


class FakeVSphere:
    """See `confserver.ports.VSphere`. VMs `web` and `mt` on one host."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.tools = True

    def vcenter(self) -> Vcenter:
        return Vcenter("vc", "8.0.3", "vc-uuid")

    def vm(self, name: str) -> Vm:
        state = self.world.read()
        disks = []
        for disk in DISKS:
            if state["on"][disk.uuid] != name:
                continue
            kind, bus, unit = state["places"][disk.uuid]
            path = disk.path if state["snapshotted"] and name == "web" else disk.base_path
            disks.append(replace(disk, path=path, controller_type=kind, controller_bus=bus, unit=unit))
        web = name == "web"
        return Vm(
            reference=name,
            name=name,
            instance_uuid=f"{name}-uuid",
            power=Power(state["home_power"]) if web else Power.ON,
            host="esx1",
            memory_bytes=2**30,
            tools_running=not web and self.tools,
            enable_uuid=True,
            controllers=("VirtualLsiLogicController",),
            disks=tuple(disks),
            snapshots=tuple(Snapshot(text, text) for text in state["snapshots"]) if web else (),
            consolidation_needed=False,
        )

    def vms_on(self, host: str) -> tuple[str, ...]:
        return ("web", "mt")

    def datastores(self, host: str) -> tuple[Datastore, ...]:
        return (Datastore("vmfs1", "VMFS", True, True, 2**40),)

    def missing_privileges(self, vm: str, wanted: tuple[str, ...]) -> tuple[str, ...]:
        return ()

    def power_off(self, vm: str) -> None:
        if self.world.read()["home_power"] != "off":
            self.world.change("power-off-home", home_power="off")

    def power_on(self, vm: str) -> None:
        state = self.world.read()
        if state["home_power"] != "on":
            if state["journal"].count("start-azure") or state["azure"] == "off":
                assert state["azure"] == "off", "two running sides"
            self.world.change("power-on-home", home_power="on")

    def merge_snapshots(self, vm: str) -> None:
        if self.world.read()["snapshots"]:
            self.world.change("merge", snapshots=[], snapshotted=False)

    def detach_disk(self, vm: str, uuid: str) -> None:
        state = self.world.read()
        if state["on"][uuid] == vm:
            self.world.change(f"detach {uuid[7]} {vm}", on={**state["on"], uuid: ""})

    def attach_disk(self, vm: str, disk: VmDisk, keep_place: bool) -> None:
        state = self.world.read()
        if state["on"][disk.uuid] == vm:
            return
        assert state["on"][disk.uuid] == "", "attached twice"
        place = [disk.controller_type, disk.controller_bus, disk.unit] if keep_place else ["other", 1, 9]
        self.world.change(
            f"attach {disk.uuid[7]} {vm}",
            on={**state["on"], disk.uuid: vm},
            places={**state["places"], disk.uuid: place},
        )

    def create_snapshot(self, vm: str, name: str) -> None:
        state = self.world.read()
        if name not in state["snapshots"]:
            self.world.change("snapshot", snapshots=[*state["snapshots"], name])

    def remove_snapshot(self, vm: str, name: str) -> None:
        state = self.world.read()
        if name in state["snapshots"]:
            self.world.change("merge-snapshot", snapshots=[s for s in state["snapshots"] if s != name])

    def revert_and_drop_snapshot(self, vm: str, name: str) -> None:
        state = self.world.read()
        assert name in state["snapshots"], "reverted to a snapshot that is not there"
        self.world.change("revert", snapshots=[s for s in state["snapshots"] if s != name], home_power="off")

    def close(self) -> None:
        pass


class FakeAzure:
    """See `confserver.ports.Azure`."""

    def __init__(self, world: World) -> None:
        self.world = world

    def vm(self, resource_id: str) -> AzureVm:
        state = self.world.read()
        on = state["azure"] == "on"
        disks = tuple(
            AzureDisk(name, name.rpartition("/")[2], number or None, disk.size, "Attached")
            for number, (name, disk) in enumerate(zip(AZURE_DISKS, DISKS, strict=True))
        )
        power = Power.ON if on else Power.OFF
        return AzureVm(AZURE_VM, "web", "here", power, not on, "Succeeded", state["agent_ready"], disks)

    def deallocate(self, resource_id: str) -> None:
        if self.world.read()["azure"] != "off":
            self.world.change("deallocate", azure="off")

    def start(self, resource_id: str) -> None:
        state = self.world.read()
        if state["azure"] != "on":
            assert state["home_power"] == "off", "two running sides"
            self.world.change("start-azure", azure="on")

    def grant_access(self, disk_id: str, seconds: int) -> Secret:
        state = self.world.read()
        assert state["azure"] == "off", "a final read of a running machine"
        if disk_id not in state["grants"]:
            self.world.set(grants=[*state["grants"], disk_id])
        return Secret(f"https://blob/{disk_id}?sig=secret".encode())

    def revoke_access(self, disk_id: str) -> None:
        state = self.world.read()
        if disk_id in state["grants"]:
            self.world.set(grants=[grant for grant in state["grants"] if grant != disk_id])


class FakeReplication:
    """See `confserver.ports.Replication`. Its disks have to hang on the master target."""

    def __init__(self, world: World) -> None:
        self.world = world

    def _present(self) -> None:
        assert set(self.world.read()["on"].values()) == {"mt"}, "disks are not on the master target"

    def generation(self, order: ReplicaOrder) -> int:
        found: int = self.world.read()["generation"]
        return found

    def start(self, order: ReplicaOrder) -> None:
        self._present()
        state = self.world.read()
        assert order.generation >= state["generation"], "an older peer"
        if not state["taken"]:
            self.world.change("take-disks", taken=True, generation=order.generation)
        self.fence(order)

    def fence(self, order: ReplicaOrder) -> None:
        if order.generation > self.world.read()["generation"]:
            self._present()
            self.world.change(f"fence {order.generation}", generation=order.generation)

    def cycle(self, order: ReplicaOrder, stopped: Stopped, moved: Moved) -> CycleReport:
        self._present()
        state = self.world.read()
        assert state["taken"]
        assert state["azure"] == "on"
        changed, *rest = state["cycles"] or [0]
        moved(Standing(changed, changed, changed, "comparing"))
        self.world.change(f"cycle {order.generation}", points=state["points"] + 1, cycles=rest, written=True)
        return self._report(changed)

    def final_cycle(
        self,
        order: ReplicaOrder,
        urls: tuple[Secret, ...],
        stopped: Stopped,
        moved: Moved,
    ) -> CycleReport:
        self._present()
        state = self.world.read()
        assert len(state["grants"]) == len(urls) == len(order.disks)
        self.world.change("final-cycle", points=state["points"] + 1, final=True)
        return self._report(4096)

    def _report(self, changed: int) -> CycleReport:
        return CycleReport(f"{self.world.read()['points']:032x}", changed, changed, 0.1, ("aa", "bb"))

    def proof(
        self,
        order: ReplicaOrder,
        urls: tuple[Secret, ...],
        stopped: Stopped,
        moved: Moved,
    ) -> tuple[DiskProof, ...]:
        lie = self.world.read()["lie"]
        return tuple(DiskProof(disk.disk, disk.size, "cc", lie or "cc") for disk in order.disks)

    def stop(self, order: ReplicaOrder) -> None:
        if self.world.read()["taken"]:
            self.world.change("release-disks", taken=False)

    def forget(self, order: ReplicaOrder) -> None:
        if self.world.read()["points"]:
            self.world.change("drop-points", points=0)


class FakeNetwork:
    """See `confserver.ports.Network`."""

    def reach(self, host: str, port: int) -> str:
        return ""


def disks_as_told() -> list[dict[str, str]]:
    """The item's disks as the API is told them."""
    return [asdict(disk) for disk in ITEM_DISKS]
