"""A homecoming's surroundings: both stand-ins, real disks, the configuration server as a process, a client of its API.

`laboratory` starts everything in a folder; nothing of it is left after the block.
"""

import contextlib
import random
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import httpx

from disks import catalogue
from disks.disk import Format
from simlab import site
from simlab.azure import launch as azure_launch
from simlab.site import OFF, ON, Site, SiteDisk, SiteOrder
from simlab.vcenter import launch as vcenter_launch

__all__ = ["KEY", "MIB", "OFF", "ON", "SIZES", "Lab", "laboratory"]

MIB: Final = 1024 * 1024
SIZES: Final = {"web": 16 * MIB, "data": 4 * MIB}
UUIDS: Final = {
    "web": "6000c290-1111-2222-3333-444444444444",
    "data": "6000c290-1111-2222-3333-555555555555",
}
KEY: Final = b"k" * 32


class Lab(Site):
    """A site, and a client of its server's API."""

    client: httpx.Client | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """The machine's disks by name."""
        return {disk.name: disk.size for disk in self.order.disks}

    def start(self) -> None:
        super().start()
        headers = {"Authorization": f"Bearer {self.token}"}
        self.client = httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def gone(self) -> int:
        assert self.client is not None
        self.client.close()
        return super().gone()

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
    **order: Any,
) -> Iterator[Lab]:
    """The item `web` failed over and has changed; the server answers. `order` are further keys of `SiteOrder`."""
    (folder / "vmfs1" / "web").mkdir(parents=True)
    for name, size in sizes.items():
        old = bytearray(chance.randbytes(size // 2) + bytes(size // 2))
        disk = catalogue.create(site.target(folder, name), Format.VMDK_MONOLITHIC_FLAT, size)
        disk.write(0, memoryview(old))
        disk.flush()
        disk.close()
        at = size // 16
        old[at : at + 70_000] = chance.randbytes(70_000)
        site.source(folder, name).write_bytes(old)
    disks = tuple(SiteDisk(name, UUIDS[name], size) for name, size in sizes.items())
    subprocess.run([azure_launch.ROOT / "simlab/azure/install"], check=True)
    vcenter_launch.build()
    with site.running(folder, SiteOrder(disks, key=KEY, **order), kind) as found:
        found.start()
        enable(found)
        yield found


def enable(lab: Lab) -> None:
    """The machine is an item."""
    item = lab.ask("POST", "/items", lab.enabling())
    assert (item["state"], uuid.UUID(item["id"]).version) == ("failed-over", 4)
