"""Scenario row S-7 (R231): a VMware VM comes home from Azure, through stand-ins for both and the real roles."""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from confserver import proofs
from disks import catalogue
from disks.disk import Format
from drcore.secret import Secret
from simlab.azure import launch as azure_launch
from simlab.azure.kit import Driver
from simlab.vcenter import launch as vcenter_launch
from simlab.vcenter import story

SUBSCRIPTION = "6f1b6bb1-9a5e-4d0a-8a63-5f0d6c0f3a11"
MIB = 1024 * 1024
SIZES = {"web": 16 * MIB, "data": 4 * MIB}
UUIDS = {"web": "6000c290-1111-2222-3333-444444444444", "data": "6000c290-1111-2222-3333-555555555555"}
KEY = b"k" * 32
ON, OFF = "poweredOn", "poweredOff"
SERVE = (
    "import json, sys; from pathlib import Path; from confserver.main import serve; "
    "serve(Path(sys.argv[1]), lambda host, port: print(json.dumps([host, port]), flush=True))"
)
SEED = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1 << 32)


class Lab:
    """The two fabrics, the configuration server as a process, and a client of its API."""

    def __init__(self, folder: Path, vcenter: vcenter_launch.Vcenter, azure: azure_launch.Endpoints) -> None:
        self.folder = folder
        self.vcenter = vcenter
        self.azure = Driver(azure, "rg-web")
        self.endpoints = azure
        self.config = self._configure()
        self.process: subprocess.Popen[bytes] | None = None
        self.client: httpx.Client | None = None

    def source(self, name: str) -> Path:
        """The running machine's disk."""
        return self.folder / f"azure-{name}.raw"

    def target(self, name: str) -> Path:
        """The disk at home."""
        return self.folder / "vmfs1" / "web" / f"{name}.vmdk"

    def _private(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        path.chmod(0o600)
        return path

    def _configure(self) -> Path:
        sources = "".join(
            f'[[replication.source]]\ndisk = "{UUIDS[name]}"\npath = "{self.source(name)}"\n'
            for name in SIZES
        )
        text = f"""
[confserver]
listen = "127.0.0.1:0"
state_directory = "{self.folder}/state"
token_file = "{self._private("token", b"a-token")}"
masttarget_os = "linux"
[[path]]
address = "{self.vcenter.host}:{self.vcenter.port}"
[vsphere]
address = "{self.vcenter.host}:{self.vcenter.port}"
user = "{story.ADMIN[0]}"
password_variable = "LAB_VCENTER_PASSWORD"
ca_file = "{self.vcenter.certificate}"
[azure]
subscription = "{SUBSCRIPTION}"
endpoint = "{self.endpoints.arm}"
token_file = "{self._private("azure-token", b"azure-token")}"
ca_file = "{self.endpoints.certificate}"
poll_seconds = 1
[replication]
key_file = "{self._private("key", KEY)}"
blob_ca_file = "{self.endpoints.certificate}"
[[replication.datastore]]
name = "vmfs1"
directory = "{self.folder}/vmfs1"
{sources}"""
        path = self.folder / "confserver.toml"
        path.write_text(text)
        return path

    def start(self) -> None:
        """The server answers."""
        environment = {**os.environ, "LAB_VCENTER_PASSWORD": story.ADMIN[1]}
        command = [sys.executable, "-c", SERVE, str(self.config)]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (self.folder / "server.log").read_text()
        host, port = json.loads(line)
        self.client = httpx.Client(
            base_url=f"http://{host}:{port}", headers={"Authorization": "Bearer a-token"}, timeout=60
        )

    def kill(self) -> None:
        """The server is gone, without a word."""
        assert self.process is not None
        self.process.kill()
        self._gone()

    def stop(self) -> int:
        """The server has ended in order; its exit status."""
        assert self.process is not None
        self.process.terminate()
        return self._gone()

    def _gone(self) -> int:
        assert self.process is not None
        assert self.process.stdout is not None
        assert self.client is not None
        self.client.close()
        status = self.process.wait(30)
        self.process.stdout.close()
        self.process = None
        return status

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The API's answer, which has to be a good one."""
        assert self.client is not None
        answer = self.client.request(method, path, json=body)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def run(self, verb: str) -> dict[str, Any]:
        """The verb's job, done."""
        return self.wait(self.ask("POST", f"/items/web/{verb}")["id"])

    def wait(self, job: str, status: str = "done") -> dict[str, Any]:
        """The job, once it is over."""
        deadline = time.monotonic() + 120
        while True:
            found: dict[str, Any] = self.ask("GET", f"/jobs/{job}")
            if found["status"] in ("done", "failed", "stuck"):
                assert found["status"] == status, found["error"]
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.2)

    def state(self) -> str:
        """Where the item stands."""
        return str(self.ask("GET", "/items/web")["state"])

    def equal(self) -> bool:
        """Whether both sides hold the same, judged by qemu-img."""
        return all(
            subprocess.run(
                [
                    "qemu-img",
                    *("compare", "-f", "raw", "-F", "vmdk", str(self.source(name)), str(self.target(name))),
                ],
                stdout=subprocess.DEVNULL,
                check=False,
            ).returncode
            == 0
            for name in SIZES
        )

    def write(self, chance: random.Random, name: str = "web") -> None:
        """The running machine writes something."""
        with self.source(name).open("r+b") as file:
            file.seek(chance.randrange(SIZES[name] - 8192))
            file.write(chance.randbytes(8192))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    print(f"SEED={SEED}")
    chance = random.Random(SEED)
    (tmp_path / "vmfs1" / "web").mkdir(parents=True)
    inventory = story.site(tmp_path)
    machine = next(vm for vm in inventory["vms"] if vm["name"] == "web")
    machine.update(power="on", tools="running")
    machine["disks"] = [
        {"path": f"[vmfs1] web/{name}.vmdk", "uuid": UUIDS[name], "size_bytes": size}
        for name, size in SIZES.items()
    ]
    next(vm for vm in inventory["vms"] if vm["name"] == "mt").update(tools="running")
    for name, size in SIZES.items():
        old = bytearray(chance.randbytes(size // 2) + bytes(size // 2))
        disk = catalogue.create(
            tmp_path / "vmfs1" / "web" / f"{name}.vmdk", Format.VMDK_MONOLITHIC_FLAT, size
        )
        disk.write(0, memoryview(old))
        disk.flush()
        disk.close()
        old[MIB : MIB + 70_000] = chance.randbytes(70_000)
        (tmp_path / f"azure-{name}.raw").write_bytes(old)
    estate = {
        "subscription": SUBSCRIPTION,
        "retry_after_seconds": 0,
        "seconds": dict.fromkeys(("start", "deallocate", "power_off"), 0.0),
        "groups": [
            {
                "name": "rg-web",
                "machines": [{"name": "web", "disks": list(SIZES)}],
                "disks": [{"name": name, "file": f"azure-{name}.raw"} for name in SIZES],
            }
        ],
    }
    (tmp_path / "azure.json").write_text(json.dumps(estate))
    subprocess.run([azure_launch.ROOT / "simlab/azure/install"], check=True)
    vcenter_launch.build()
    with contextlib.ExitStack() as stack:
        vcenter = stack.enter_context(vcenter_launch.running(story.write(tmp_path, inventory)))
        azure = stack.enter_context(azure_launch.running(tmp_path / "azure.json"))
        found = Lab(tmp_path, vcenter, azure)
        stack.callback(found.azure.close)
        found.start()
        try:
            enable(found)
            yield found
        finally:
            if found.process is not None:
                found.kill()


def enable(lab: Lab) -> None:
    disks = [{"disk": UUIDS[name], "azure_disk": lab.azure.path(f"disks/{name}")} for name in SIZES]
    told = {
        "name": "web",
        "vm": "web",
        "masttarget": "mt",
        "azure_vm": lab.azure.path("virtualMachines/web"),
        "os_family": "linux",
        "disks": disks,
    }
    item = lab.ask("POST", "/items", told)
    assert (item["state"], uuid.UUID(item["id"]).version) == ("failed-over", 4)


def test_a_vm_comes_home_and_may_go_back_until_it_is_committed(lab: Lab) -> None:
    chance = random.Random(SEED + 1)
    before = lab.vcenter.vm("web")["disks"]
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
    lab.run("commit")
    assert (lab.state(), lab.azure.power("web"), lab.vcenter.vm("web")["power"]) == (
        "committed",
        "deallocated",
        ON,
    )
    assert lab.vcenter.vm("web")["disks"] == before
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
