"""What the campaigns of the configuration server share: a laboratory for many rounds, and looks at all that a job
may change, by others than the server: pyvmomi, the Resource Manager, the file system, the stand-ins' own journals.
"""

import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import IO, Any, Final

from pyVmomi import vim

from simlab.vcenter import kit, story
from tests.system.homecoming import MIB, OFF, ON, Lab, laboratory

SIZES: Final = {"web": 2 * MIB, "data": MIB}
OLD_SNAPSHOT: Final = "old"
"""Hangs on the VM at home at the start of every round, so that a reprotect has something to merge."""
MINE: Final = ("web", "mt")
GROUP: Final = "rg-web"
ROLES_SECONDS_MAX: Final = 20.0
_DELTA: Final = re.compile(r"-\d{6}((?:-delta)?)\.vmdk")
_BOOKS: Final = re.compile(
    r"state/(items|jobs)\.sqlite.*|server\.log|die-at|.*\.log|.*\.nvram|.*\.vmx|azure\.json|inventory\.json"
)


@dataclass(frozen=True, slots=True)
class Look:
    """All that a job may change. Two looks are equal when nobody could tell them apart."""

    vms: dict[str, Any]
    azure: dict[str, Any]
    files: tuple[str, ...]
    item: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Effects:
    """What was done since some instant: tasks of the vCenter that succeeded, changes of power in Azure."""

    tasks: dict[tuple[str, str], int]
    power: tuple[str, ...]


_DISKS: Final = len(SIZES)
_MOVED: Final = {("ReconfigVM_Task", "web"): _DISKS, ("ReconfigVM_Task", "mt"): _DISKS}
ONCE: Final = {
    "reprotect": Effects(
        {("PowerOffVM_Task", "web"): 1, ("RemoveAllSnapshots_Task", "web"): 1, **_MOVED}, ()
    ),
    "failback": Effects(
        {("CreateSnapshot_Task", "web"): 1, ("PowerOnVM_Task", "web"): 1, **_MOVED},
        ("deallocating", "deallocated"),
    ),
    "commit": Effects({("RemoveSnapshot_Task", "web"): 1}, ()),
    "cancel": Effects(
        {
            ("PowerOffVM_Task", "web"): 1,
            ("RevertToSnapshot_Task", "web"): 1,
            ("RemoveSnapshot_Task", "web"): 1,
            **_MOVED,
        },
        ("starting", "running"),
    ),
    "cancel-reprotect": Effects(_MOVED, ()),
}
"""What each verb does to both fabrics, when it is done: every effect, and how often."""
REPEATED: Final = ("RevertToSnapshot_Task", "web")
"""May come again after a death between it and the removal of the snapshot: nobody can see that a VM that is off was
reverted, and it is the same afterwards."""
# Files that a state has beside those that were there before the first reprotect.
# The master target's journal holds the generation, which never falls.
_JOURNALS: Final = re.compile(r"vmfs1/web/[a-z]+\.vmdk\.homeward/.+")
_ROLES: Final = re.compile(
    r"state/replication/[0-9a-f-]{36}/((agent|masttarget)\.[a-z]+|[0-9a-f]{32}\.sent(-before)?)"
)
_DELTAS: Final = re.compile(r"vmfs1/web/[a-z]+-N(-delta)?\.vmdk")
_MEMORY: Final = re.compile(r"vmfs1/web/web-Snapshot\d+\.vmsn")
EXTRA: Final[dict[str, tuple[re.Pattern[str], ...]]] = {
    "failed-over": (_DELTAS, _MEMORY, _JOURNALS),
    "protected": (_JOURNALS, _ROLES),
    "failed-back": (_JOURNALS, _DELTAS, _MEMORY),
    "committed": (_JOURNALS,),
}


class Nursling:
    """A server of the nursery (see `dying_server`), with as much of Popen's words as a laboratory uses."""

    def __init__(self, nursery: "subprocess.Popen[bytes]") -> None:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        nursery.stdin.write(b"\n")
        nursery.stdin.flush()
        self._pipe = nursery.stdout
        self.stdout = self
        self.pid = int(self._pipe.readline())
        self._status: int | None = None

    def readline(self) -> bytes:
        """Where it listens; empty if it died before."""
        line = self._pipe.readline()
        if line.startswith(b"{"):
            return line
        self._status = int(line)
        return b""

    def close(self) -> None:
        """The pipe is the nursery's."""

    def poll(self) -> int | None:
        """How it died, if it has."""
        if self._status is None and select.select([self._pipe], [], [], 0)[0]:
            self._status = int(self._pipe.readline())
        return self._status

    def wait(self, timeout: float) -> int:
        """How it died."""
        if self._status is None:
            assert select.select([self._pipe], [], [], timeout)[0], "the server lives on"
            self._status = int(self._pipe.readline())
        return self._status

    def kill(self) -> None:
        """It dies."""
        self._strike(signal.SIGKILL)

    def terminate(self) -> None:
        """It is asked to end."""
        self._strike(signal.SIGTERM)

    def _strike(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Nursed(Lab):
    """A laboratory whose servers come from a nursery, so that a new one answers at once."""

    _nursery: "subprocess.Popen[bytes] | None" = None

    def spawn(self, log: IO[bytes]) -> Any:
        if self._nursery is None:
            self._nursery = subprocess.Popen(
                [sys.executable, "-m", "tests.campaigns.dying_server", str(self.config)],
                stdin=subprocess.PIPE,
                # unbuffered: nothing may lie unseen when the pipe is looked at
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.environment(),
                bufsize=0,
            )
        return Nursling(self._nursery)

    def close(self) -> None:
        super().close()
        if self._nursery is not None:
            assert self._nursery.stdin is not None
            assert self._nursery.stdout is not None
            self._nursery.stdin.close()
            self._nursery.wait(30)
            self._nursery.stdout.close()


class Stage:
    """A laboratory in which one item comes home again and again."""

    def __init__(self, lab: Lab, client: Any) -> None:
        self.lab = lab
        self._client = client
        self._vms = {name: kit.find(client, vim.VirtualMachine, name) for name in MINE}
        self._calls = 0
        self._events = 0
        self.origin = self.look()

    # Looking

    def look(self) -> Look:
        """Everything now."""
        return Look(self._at_home(), self._in_azure(), self._files(), self._item())

    def _at_home(self) -> dict[str, Any]:
        found = {name: _describe(self._client, vm) for name, vm in self._vms.items()}
        if len(found["mt"]["disks"]) > 1:
            found["mt"]["disks"] = [_unplaced(disk) for disk in found["mt"]["disks"]]
        return found

    def _in_azure(self) -> dict[str, Any]:
        driver = self.lab.azure
        machine = driver.get("virtualMachines/web")
        disks = {name: driver.get(f"disks/{name}")["properties"]["diskState"] for name in self.lab.sizes}
        exports = [
            volume["name"]
            for volume in driver.control("GET", "/inventory")["volumes"]
            if volume["export_expires"]
        ]
        return {
            "power": driver.power("web"),
            # Failed is Azure's word for its own last operation on the machine, until another succeeds.
            "settled": machine["properties"]["provisioningState"] in ("Succeeded", "Failed"),
            "disks": disks,
            "exports": exports,
        }

    def _files(self) -> tuple[str, ...]:
        folder = self.lab.folder
        names = (
            str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() or path.is_symlink()
        )
        return tuple(sorted(_DELTA.sub(r"-N\1.vmdk", name) for name in names if not _BOOKS.fullmatch(name)))

    def _item(self) -> dict[str, Any]:
        found = self.lab.ask("GET", "/items/web")
        return {name: found[name] for name in ("state", "job")}

    def expected(self, verb: str) -> Look:
        """What is to be seen when the verb is done, whatever happened on its way. Files are left to `nothing_left`."""
        web, mt = self.origin.vms["web"], self.origin.vms["mt"]
        replica = {
            **self.origin.azure,
            "power": "running",
            "disks": dict.fromkeys(self.lab.sizes, "Attached"),
        }
        if verb in ("reprotect", "cancel"):
            moved = sorted((_unplaced(disk) for disk in (*web["disks"], *mt["disks"])), key=_file)
            vms = {
                "web": {**web, "power": OFF, "disks": [], "snapshots": []},
                "mt": {**mt, "disks": moved},
            }
            return Look(vms, replica, (), {"state": "protected", "job": None})
        if verb == "cancel-reprotect":
            home = {**web, "power": OFF}
            return Look({"web": home, "mt": mt}, replica, (), {"state": "failed-over", "job": None})
        stopped = {**replica, "power": "deallocated", "disks": dict.fromkeys(self.lab.sizes, "Reserved")}
        home = {**web, "power": ON}
        if verb == "failback":
            item = self.lab.ask("GET", "/items/web")["id"]
            tops = [{**disk, "file": disk["file"].replace(".vmdk", "-N.vmdk")} for disk in web["disks"]]
            home = {**home, "disks": tops, "snapshots": [f"homeward-failback-{item}"]}
        state = "failed-back" if verb == "failback" else "committed"
        return Look({"web": home, "mt": mt}, stopped, (), {"state": state, "job": None})

    def nothing_left(self, seen: Look) -> None:
        """Every file is one that was there before, or one that the item's state has."""
        allowed = EXTRA[seen.item["state"]]
        left = [
            name
            for name in seen.files
            if name not in self.origin.files and not any(pattern.fullmatch(name) for pattern in allowed)
        ]
        assert not left, f"left over while {seen.item['state']}: {left}"
        gone = set(self.origin.files) - set(seen.files)
        assert not gone, f"gone while {seen.item['state']}: {gone}"

    def effects(self) -> Effects:
        """What was done since the last call of this."""
        calls = self.lab.vcenter.calls(since=self._calls)
        self._calls = max([self._calls, *(call["id"] for call in calls)])
        tasks = Counter(
            (call["method"], call["entity_name"])
            for call in calls
            if call["changing"] and call.get("task_result") == "success"
        )
        if REPEATED in tasks:
            tasks[REPEATED] = 1
        events = self.lab.azure.control("GET", f"/events?after={self._events}")["events"]
        self._events = max([self._events, *(event["sequence"] for event in events)])
        return Effects(dict(tasks), tuple(event["power"] for event in events))

    def no_two_owners(self) -> None:
        """No disk hangs on two VMs, and nothing runs on both sides once the VM at home was off.

        What moves between two looks may be seen twice; in one of the two orders it is not.
        """
        twice = self._twice(("web", "mt"))
        if twice:
            twice &= self._twice(("mt", "web"))
        assert not twice, f"on two VMs: {twice}"
        if self._item()["state"] in ("failed-over", "reprotecting"):
            return
        home = _describe(self._client, self._vms["web"])["power"] == ON
        both = home and self.lab.azure.power("web") == "running"
        # Only one of them is started at a time, after the other was stopped: so this order cannot deceive.
        assert not both, f"both sides run while the item is {self._item()['state']}"

    def _twice(self, order: tuple[str, str]) -> set[str]:
        first, second = (
            {str(disk["uuid"]) for disk in _describe(self._client, self._vms[name])["disks"]}
            for name in order
        )
        return first & second

    def no_roles(self) -> None:
        """No agent and no master target of this laboratory runs any more."""
        deadline = time.monotonic() + ROLES_SECONDS_MAX
        while found := roles(self.lab.folder):
            assert time.monotonic() < deadline, f"still running: {found}"
            time.sleep(0.05)

    def state(self) -> str:
        """The item's."""
        return str(self._item()["state"])

    # Bringing about

    def fail_over(self) -> None:
        """The machine, committed at home, has failed over again."""
        self.lab.ask("POST", "/items/web/events/fail-over")
        self.switch_azure("running")

    def begin(self, chance: Random) -> None:
        """The round's start: the machine failed over and has changed; the VM at home runs, on a snapshot."""
        lab = self.lab
        self.switch_home(on=True)
        web = self._vms["web"]
        if web.snapshot is None:
            kit.wait(web.CreateSnapshot_Task(name=OLD_SNAPSHOT, memory=False, quiesce=False))
        for name in lab.sizes:
            if chance.random() < 0.8:
                lab.write(chance, name)
        self.effects()

    def switch_azure(self, power: str) -> None:
        """Somebody switched the machine in Azure, if it was not so."""
        if self.lab.azure.power("web") != power:
            self.lab.azure.control("POST", "/power", {"group": GROUP, "machine": "web", "power": power})

    def switch_home(self, *, on: bool) -> None:
        """Somebody switched the VM at home, if it was not so."""
        web = self._vms["web"]
        if (web.runtime.powerState == ON) != on:
            kit.wait(web.PowerOnVM_Task() if on else web.PowerOffVM_Task())

    def say(self) -> str:
        """The end of the server's log, for whoever has to find out."""
        return (self.lab.folder / "server.log").read_text()[-3000:]


@contextmanager
def stage(chance: Random) -> Iterator[Stage]:
    """A laboratory with small disks and quick fabrics; gone after the block."""
    with ExitStack() as stack:
        # In memory where there is such a place: a campaign would wait for thousands of flushes.
        place = Path("/dev/shm")
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="homecoming-", dir=place if place.is_dir() else None)
        )
        lab = stack.enter_context(laboratory(Path(folder), chance, SIZES, Nursed))
        client = stack.enter_context(kit.session(lab.vcenter, *story.ADMIN))
        yield Stage(lab, client)


def undone(job: dict[str, Any], before: Look, after: Look) -> None:
    """Everything is as before the job, but for what has no way back: merged snapshots, bytes that were written."""
    vms = {name: dict(found) for name, found in before.vms.items()}
    done = [step["name"] for step in job["steps"] if step["phase"] == "do" and not step["failure"]]
    if "merge-snapshots" in done:
        vms["web"]["disks"] = [
            {**disk, "file": disk["file"].replace("-N.vmdk", ".vmdk")} for disk in vms["web"]["disks"]
        ]
        vms["web"]["snapshots"] = []
    if job["report"].get("written"):
        vms["web"]["power"] = OFF
    assert after.vms == vms, f"{after.vms} is not {vms}"
    assert after.azure == before.azure, f"{after.azure} is not {before.azure}"
    assert after.item == before.item, f"{after.item} is not {before.item}"


def _describe(client: Any, vm: Any) -> dict[str, Any]:
    found = kit.read(client, vm, "config.hardware.device", "snapshot", "runtime")
    devices = {device.key: device for device in found["config.hardware.device"]}
    disks = []
    for disk in devices.values():
        if not isinstance(disk, vim.vm.device.VirtualDisk):
            continue
        controller = devices[disk.controllerKey]
        disks.append(
            {
                "uuid": str(disk.backing.uuid),
                "file": _DELTA.sub(r"-N\1.vmdk", str(disk.backing.fileName)),
                "size": int(disk.capacityInBytes),
                "place": (type(controller).__name__, int(controller.busNumber), int(disk.unitNumber)),
            }
        )
    return {
        "power": str(found["runtime"].powerState),
        "disks": sorted(disks, key=_file),
        "snapshots": _names(found["snapshot"].rootSnapshotList if "snapshot" in found else ()),
        "consolidation": bool(found["runtime"].consolidationNeeded),
    }


def _file(disk: dict[str, Any]) -> str:
    return str(disk["file"])


def _unplaced(disk: dict[str, Any]) -> dict[str, Any]:
    # On the master target a disk hangs wherever there is room.
    return {name: value for name, value in disk.items() if name != "place"}


def _names(trees: Any) -> list[str]:
    return [name for tree in trees for name in (str(tree.name), *_names(tree.childSnapshotList))]


def roles(folder: Path) -> list[tuple[int, str]]:
    """The agents and master targets of a laboratory that run: process id and command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if {"agent", "masttarget"} & set(words) and any(str(folder) in word for word in words):
            found.append((int(entry.parent.name), " ".join(words)))
    return found
