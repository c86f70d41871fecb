"""The stand-in as a child process, and its control port: for tests and laboratories."""

import json
import subprocess
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from simlab.vcenter.errors import ControlRefused, SimulatorDead, SimulatorNotBuilt

ROOT: Final = Path(__file__).resolve().parents[2]
PROGRAM: Final = ROOT / "build" / "vcenter-sim"
END_SECONDS_MAX: Final = 20.0
CONTROL_SECONDS_MAX: Final = 60.0


@dataclass(frozen=True, slots=True)
class Vcenter:
    """A running stand-in: where the vSphere API is, and the verbs of its control port.

    Errors of all verbs: HW-SIMLAB-203 with the reason that the control port gives.
    """

    url: str
    host: str
    port: int
    control: str
    thumbprint: str
    """SHA-256 of the certificate, as AB:CD:…"""
    certificate: Path
    """The certificate, PEM."""
    pid: int
    stock: bool

    def inventory(self) -> dict[str, Any]:
        """The hosts, datastores and VMs as they stand, each list in the order of names."""
        return self._ask("GET", "/inventory")

    def vm(self, name: str) -> dict[str, Any]:
        """The first VM of that name in the inventory."""
        return next(vm for vm in self.inventory()["vms"] if vm["name"] == name)

    def calls(self, **only: str | int) -> list[dict[str, Any]]:
        """The journal, oldest first; `only` may name `method`, `entity`, `since` (an id) and `changing` (any value)."""
        return list(self._ask("GET", "/calls?" + urllib.parse.urlencode(only))["calls"])

    def forget_calls(self) -> None:
        """The journal is empty."""
        self._ask("DELETE", "/calls")

    def arrange(self, method: str, **rule: Any) -> int:
        """The next fitting call of `method` meets the mishap; the answer is the rule's number."""
        return int(self._ask("POST", "/faults", {"method": method, **rule})["id"])

    def arranged(self) -> list[dict[str, Any]]:
        """The rules that still wait for a call."""
        return list(self._ask("GET", "/faults")["faults"])

    def clear(self) -> None:
        """No mishap is arranged any more."""
        self._ask("DELETE", "/faults")

    def connection(self, *, is_open: bool) -> None:
        """vCenter takes connections, or refuses new ones and has cut the ones there were."""
        self._ask("POST", "/connection", {"open": is_open})

    def task_seconds(self, seconds: float) -> None:
        """Every task that begins from now on takes so long."""
        self._ask("POST", "/tasks", {"seconds": seconds})

    def expire_sessions(self) -> int:
        """Every login is over; the answer is how many there were."""
        return int(self._ask("POST", "/sessions/expire", {})["expired"])

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.control + path, data=data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=CONTROL_SECONDS_MAX) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            with error:
                reason = error.read().decode(errors="replace").strip()
            raise ControlRefused(request=f"{method} {path}", reason=reason) from error


def build() -> None:
    """build/vcenter-sim is there and as young as its sources. Errors: HW-SIMLAB-202 with the build's output."""
    done = subprocess.run(
        [ROOT / "scripts" / "build-vcenter"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SimulatorNotBuilt(output=(done.stdout + done.stderr)[-2000:] or "no output")


@contextmanager
def running(inventory: Path | None, *options: str) -> Iterator[Vcenter]:
    """The stand-in runs inside the block and is gone after it; without an inventory it is stock vcsim.

    It is not built here, see `build`. Errors: HW-SIMLAB-201 with what it said.
    """
    source = ["--stock"] if inventory is None else ["--inventory", str(inventory)]
    with tempfile.TemporaryDirectory(prefix="vcenter-sim-") as scratch, tempfile.TemporaryFile() as said:
        certificate = Path(scratch) / "certificate.pem"
        process = subprocess.Popen(
            [PROGRAM, *source, "--certificate", str(certificate), "--until-stdin-closes", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()  # the program says where it is, or ends
            if not line:
                process.wait(END_SECONDS_MAX)
                said.seek(0)
                raise SimulatorDead(output=said.read()[-2000:].decode(errors="replace") or "no output")
            yield Vcenter(certificate=certificate, **json.loads(line))
        finally:
            process.stdin.close()
            try:
                process.wait(END_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
