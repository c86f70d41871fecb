"""A whole site on one machine: both stand-ins, and a configuration server for a machine that has failed over.

The machine `web` has its old disks in `FOLDER/vmfs1/web/NAME.vmdk`, where the simulated vCenter finds them, and the
disks with which it runs in Azure in `FOLDER/azure-NAME.raw`, where the stand-in for Azure and the agent find them. Who
calls makes both before; everything else is made here. Tests, campaigns and the demo share it.
"""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, TypeVar

from simlab.azure import launch as azure_launch
from simlab.azure.kit import Driver
from simlab.vcenter import launch as vcenter_launch
from simlab.vcenter import story

SUBSCRIPTION: Final = "6f1b6bb1-9a5e-4d0a-8a63-5f0d6c0f3a11"
GROUP: Final = "rg-web"
MACHINE: Final = "web"
MASTTARGET: Final = "mt"
PASSWORD_VARIABLE: Final = "LAB_VCENTER_PASSWORD"
END_SECONDS_MAX: Final = 30.0
ON, OFF = "poweredOn", "poweredOff"
SERVER_SETTINGS: Final = """\
[confserver]
listen = "127.0.0.1:{port}"
state_directory = "{folder}/state"
token_file = "{folder}/token"
masttarget_os = "linux"

[[path]]
address = "{vcenter.host}:{vcenter.port}"

[vsphere]
address = "{vcenter.host}:{vcenter.port}"
user = "{user}"
password_variable = "{password}"
ca_file = "{vcenter.certificate}"

[azure]
subscription = "{subscription}"
endpoint = "{azure.arm}"
token_file = "{folder}/azure-token"
ca_file = "{azure.certificate}"
poll_seconds = 1

[replication]
key_file = "{folder}/key"
blob_ca_file = "{azure.certificate}"
interval_seconds = {interval}
{bandwidth}{retention}
[[replication.datastore]]
name = "vmfs1"
directory = "{folder}/vmfs1"
"""
RETENTION: Final = 'retention = "{folder}/retention"\nretention_own_volume = false\n'


@dataclass(frozen=True, slots=True)
class SiteDisk:
    """A disk of the machine, on both sides."""

    name: str
    uuid: str
    size: int


@dataclass(frozen=True, slots=True)
class SiteOrder:
    """What is to be at the site. `bandwidth` is a rate as in the settings, empty for none."""

    disks: tuple[SiteDisk, ...]
    snapshots: tuple[str, ...] = ()
    interval_seconds: int = 86400
    bandwidth: str = ""
    retention: bool = False
    """Whether the master target keeps recovery points."""
    port: int = 0
    """Where the server listens on the loopback; 0 takes a free one, another at each start."""
    azure_seconds: float = 0.0
    """How long Azure takes for a power verb."""
    key: bytes = b""
    """The item's key; a random one if empty."""


class Site:
    """A running site. The server is started and ended by `start`, `stop` and `kill`; `url` is where it listens."""

    def __init__(
        self, folder: Path, order: SiteOrder, vcenter: vcenter_launch.Vcenter, azure: azure_launch.Endpoints
    ) -> None:
        self.folder = folder
        self.order = order
        self.vcenter = vcenter
        self.endpoints = azure
        self.azure = Driver(azure, GROUP)
        self.token = secrets.token_hex(16)
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.config = self._configure()

    def source(self, name: str) -> Path:
        """The disk with which the machine runs in Azure."""
        return source(self.folder, name)

    def target(self, name: str) -> Path:
        """The disk at home."""
        return target(self.folder, name)

    def enabling(self) -> dict[str, Any]:
        """The machine as the API wants to be told of it."""
        return {
            "name": MACHINE,
            "vm": MACHINE,
            "masttarget": MASTTARGET,
            "azure_vm": self.azure.path(f"virtualMachines/{MACHINE}"),
            "os_family": "linux",
            "disks": [
                {"disk": disk.uuid, "azure_disk": self.azure.path(f"disks/{disk.name}")}
                for disk in self.order.disks
            ],
        }

    def environment(self) -> dict[str, str]:
        """What the server has to find there."""
        return {**os.environ, PASSWORD_VARIABLE: story.ADMIN[1]}

    def client_environment(self) -> dict[str, str]:
        """What `homeward` needs to ask the server."""
        return {**os.environ, "HOMEWARD_SERVER": self.url, "HOMEWARD_TOKEN_FILE": str(self.folder / "token")}

    def start(self) -> None:
        """The server answers; what it says goes to `server.log`."""
        with self.log.open("ab") as log:
            self.process = self.spawn(log)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert b"port" in line, line.decode() + self.log.read_text()
        found = json.loads(line)
        self.url = f"http://{found['host']}:{found['port']}"

    def spawn(self, log: IO[bytes]) -> "subprocess.Popen[bytes]":
        """The server's process, which says on its standard output where it listens."""
        command = [sys.executable, "-m", "homeward", "confserver", "serve", "--json"]
        words = [*command, "--config", str(self.config)]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, env=self.environment())

    @property
    def log(self) -> Path:
        """What the server says."""
        return self.folder / "server.log"

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
        status = self.process.wait(END_SECONDS_MAX)
        self.process.stdout.close()
        self.process = None
        return status

    def close(self) -> None:
        """No server runs, and nothing of the client side is left open."""
        if self.process is not None:
            self.kill()
        self.azure.close()

    def _configure(self) -> Path:
        for name, content in (
            ("token", self.token.encode()),
            ("azure-token", secrets.token_hex(16).encode()),
            ("key", self.order.key or secrets.token_bytes(32)),
        ):
            path = self.folder / name
            path.touch(mode=0o600)
            path.write_bytes(content)
        text = SERVER_SETTINGS.format(
            folder=self.folder,
            vcenter=self.vcenter,
            azure=self.endpoints,
            user=story.ADMIN[0],
            password=PASSWORD_VARIABLE,
            subscription=SUBSCRIPTION,
            interval=self.order.interval_seconds,
            port=self.order.port,
            bandwidth=f'bandwidth = "{self.order.bandwidth}"\n' if self.order.bandwidth else "",
            retention=RETENTION.format(folder=self.folder) if self.order.retention else "",
        )
        for disk in self.order.disks:
            path = self.source(disk.name)
            text += f'\n[[replication.source]]\ndisk = "{disk.uuid}"\npath = "{path}"\n'
        settings = self.folder / "confserver.toml"
        settings.write_text(text)
        return settings


def source(folder: Path, name: str) -> Path:
    """Where the running machine's disk lies, raw."""
    return folder / f"azure-{name}.raw"


def target(folder: Path, name: str) -> Path:
    """Where the disk at home lies, a VMDK."""
    return folder / "vmfs1" / MACHINE / f"{name}.vmdk"


_Kind = TypeVar("_Kind", bound=Site)
Make = Callable[[Path, SiteOrder, vcenter_launch.Vcenter, azure_launch.Endpoints], _Kind]


@contextmanager
def running(folder: Path, order: SiteOrder, make: Make[_Kind]) -> Iterator[_Kind]:
    """The stand-ins run inside the block, and whatever server was started is gone after it; `make` is `Site` or a kind.

    The disks are there already on both sides. The stand-ins have to be built (`make lab`).
    """
    with ExitStack() as stack:
        inventory = story.write(folder, _vcenter(folder, order))
        (folder / "azure.json").write_text(json.dumps(_azure(order)))
        vcenter = stack.enter_context(vcenter_launch.running(inventory))
        azure = stack.enter_context(azure_launch.running(folder / "azure.json"))
        site = make(folder, order, vcenter, azure)
        stack.callback(site.close)
        yield site


def _vcenter(folder: Path, order: SiteOrder) -> dict[str, Any]:
    inventory = story.site(folder)
    for vm in inventory["vms"]:
        vm["tools"] = "running"
        if vm["name"] == MACHINE:
            vm["power"] = "on"
            vm["disks"] = [
                {"path": f"[vmfs1] {MACHINE}/{disk.name}.vmdk", "uuid": disk.uuid, "size_bytes": disk.size}
                for disk in order.disks
            ]
            vm["snapshots"] = [{"name": name} for name in order.snapshots[:1]]
            for name in order.snapshots[1:]:
                _deepest(vm["snapshots"][0])["children"] = [{"name": name}]
    return inventory


def _deepest(snapshot: dict[str, Any]) -> dict[str, Any]:
    while children := snapshot.get("children"):
        snapshot = children[0]
    return snapshot


def _azure(order: SiteOrder) -> dict[str, Any]:
    return {
        "subscription": SUBSCRIPTION,
        "retry_after_seconds": 0,
        "seconds": dict.fromkeys(("start", "deallocate", "power_off"), order.azure_seconds),
        "groups": [
            {
                "name": GROUP,
                "machines": [{"name": MACHINE, "disks": [disk.name for disk in order.disks]}],
                "disks": [{"name": disk.name, "file": f"azure-{disk.name}.raw"} for disk in order.disks],
            }
        ],
    }
