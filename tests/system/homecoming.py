"""A homecoming's surroundings: both stand-ins, real disks, the configuration server as a process, a client of its API.

`laboratory` starts everything in a folder; nothing of it is left after the block.
"""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Final

import httpx

from disks import catalogue
from disks.disk import Format
from simlab.azure import launch as azure_launch
from simlab.azure.kit import Driver
from simlab.vcenter import launch as vcenter_launch
from simlab.vcenter import story

SUBSCRIPTION: Final = "6f1b6bb1-9a5e-4d0a-8a63-5f0d6c0f3a11"
MIB: Final = 1024 * 1024
SIZES: Final = {"web": 16 * MIB, "data": 4 * MIB}
UUIDS: Final = {
    "web": "6000c290-1111-2222-3333-444444444444",
    "data": "6000c290-1111-2222-3333-555555555555",
}
KEY: Final = b"k" * 32
ON, OFF = "poweredOn", "poweredOff"
SERVE: Final = ("-m", "homeward", "confserver", "serve", "--json", "--config")
"""What Python is told to serve with; the configuration file follows, and one line with host and port is answered."""


class Lab:
    """The two fabrics, the configuration server as a process, and a client of its API."""

    def __init__(
        self,
        folder: Path,
        vcenter: vcenter_launch.Vcenter,
        azure: azure_launch.Endpoints,
        sizes: Mapping[str, int],
    ) -> None:
        self.folder = folder
        self.sizes = sizes
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
            for name in self.sizes
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

    def close(self) -> None:
        """Nothing of the client side is left open."""
        self.azure.close()

    def start(self) -> None:
        """The server answers."""
        with (self.folder / "server.log").open("ab") as log:
            self.process = self.spawn(log)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (self.folder / "server.log").read_text()
        told = json.loads(line)
        self.client = httpx.Client(
            base_url=f"http://{told['host']}:{told['port']}",
            headers={"Authorization": "Bearer a-token"},
            timeout=60,
        )

    def spawn(self, log: IO[bytes]) -> "subprocess.Popen[bytes]":
        """The server's process, which says on its standard output where it listens."""
        command = [sys.executable, *SERVE, str(self.config)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=self.environment())

    def environment(self) -> dict[str, str]:
        """What the server has to find there."""
        return {**os.environ, "LAB_VCENTER_PASSWORD": story.ADMIN[1]}

    def kill(self) -> None:
        """The server is gone, without a word."""
        assert self.process is not None
        self.process.kill()
        self.gone()

    def stop(self) -> int:
        """The server has ended in order; its exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.gone()

    def gone(self) -> int:
        """The server has ended, as it was about to; its exit status."""
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
            for name in self.sizes
        )

    def write(self, chance: random.Random, name: str = "web") -> None:
        """The running machine writes something."""
        with self.source(name).open("r+b") as file:
            file.seek(chance.randrange(self.sizes[name] - 8192))
            file.write(chance.randbytes(8192))


@contextlib.contextmanager
def laboratory(
    folder: Path,
    chance: random.Random,
    sizes: Mapping[str, int] = SIZES,
    kind: type[Lab] = Lab,
) -> Iterator[Lab]:
    """The item `web` failed over and has changed; the server answers."""
    inventory = _site(folder, sizes)
    for name, size in sizes.items():
        old = bytearray(chance.randbytes(size // 2) + bytes(size // 2))
        disk = catalogue.create(folder / "vmfs1" / "web" / f"{name}.vmdk", Format.VMDK_MONOLITHIC_FLAT, size)
        disk.write(0, memoryview(old))
        disk.flush()
        disk.close()
        at = size // 16
        old[at : at + 70_000] = chance.randbytes(70_000)
        (folder / f"azure-{name}.raw").write_bytes(old)
    group = {
        "name": "rg-web",
        "machines": [{"name": "web", "disks": list(sizes)}],
        "disks": [{"name": name, "file": f"azure-{name}.raw"} for name in sizes],
    }
    told = {
        "subscription": SUBSCRIPTION,
        "retry_after_seconds": 0,
        "seconds": dict.fromkeys(("start", "deallocate", "power_off"), 0.0),
        "groups": [group],
    }
    (folder / "azure.json").write_text(json.dumps(told))
    subprocess.run([azure_launch.ROOT / "simlab/azure/install"], check=True)
    vcenter_launch.build()
    with contextlib.ExitStack() as stack:
        vcenter = stack.enter_context(vcenter_launch.running(story.write(folder, inventory)))
        azure = stack.enter_context(azure_launch.running(folder / "azure.json"))
        found = kind(folder, vcenter, azure, sizes)
        stack.callback(found.close)
        found.start()
        try:
            enable(found)
            yield found
        finally:
            if found.process is not None:
                found.kill()


def _site(folder: Path, sizes: Mapping[str, int]) -> dict[str, Any]:
    (folder / "vmfs1" / "web").mkdir(parents=True)
    inventory = story.site(folder)
    machine = next(vm for vm in inventory["vms"] if vm["name"] == "web")
    machine.update(power="on", tools="running")
    machine["disks"] = [
        {"path": f"[vmfs1] web/{name}.vmdk", "uuid": UUIDS[name], "size_bytes": size}
        for name, size in sizes.items()
    ]
    next(vm for vm in inventory["vms"] if vm["name"] == "mt").update(tools="running")
    return inventory


def enable(lab: Lab) -> None:
    """The machine is an item."""
    disks = [{"disk": UUIDS[name], "azure_disk": lab.azure.path(f"disks/{name}")} for name in lab.sizes]
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
