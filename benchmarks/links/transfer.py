"""One cycle of homeward over a link, and what iperf3 gets there."""

import json
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.links.lab import FAR_ADDRESS, Lab
from benchmarks.racing import HOMEWARD

PORT: Final = 9443
SECONDS_MAX: Final = 600
COUNTER: Final = Path(__file__).with_name("counter.py")
LOCAL: Final = Lab((), ())
"""No link: both roles on this machine's loopback."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """What one cycle to an empty target took. Bytes are those on the data sockets, out."""

    seconds: float
    wire_bytes: int
    lanes: int

    @property
    def rate(self) -> float:
        """Bytes a second on the wire, from the settings to the point: what the command itself tells."""
        return self.wire_bytes / self.seconds


def send(lab: Lab, source: Path, scratch: Path, *, compression: str = "auto", lanes: int = 0) -> Transfer:
    """Source and a new target hold the same; the target is compared and gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="cycle-", dir=scratch) as name:
        folder = Path(name)
        target = folder / "target.raw"
        address = FAR_ADDRESS if lab.far else "127.0.0.1"
        key, item, disk = folder / "key", uuid.uuid4(), uuid.uuid4()
        key.touch(mode=0o600)
        key.write_bytes(b"0123456789abcdef" * 2)
        at_home, away = folder / "masttarget.toml", folder / "agent.toml"
        at_home.write_text(
            f'[masttarget]\nlisten = "{address}:{PORT if lab.far else 0}"\nkey_file = "{key}"\n'
            f'state_directory = "{folder}/home"\n\n'
            f'[[disk]]\nitem = "{item}"\ndisk = "{disk}"\npath = "{target}"\ncreate = "raw"\n'
        )
        serving = subprocess.Popen(
            [*lab.far, str(HOMEWARD), "masttarget", "serve", "--json", "--once", "--config", str(at_home)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert serving.stdout is not None
            told: dict[str, Any] = json.loads(serving.stdout.readline())
            assert "port" in told, told
            away.write_text(
                f'[agent]\nmasttarget = "{address}:{told["port"]}"\nkey_file = "{key}"\n'
                f'state_directory = "{folder}/away"\nitem = "{item}"\n'
                f'compression = "{compression}"\nlanes = {lanes}\nreconnects = 0\n\n'
                f'[[disk]]\ndisk = "{disk}"\npath = "{source}"\n'
            )
            done = subprocess.run(
                [*lab.near, str(HOMEWARD), "agent", "sync", "--json", "--config", str(away)],
                capture_output=True,
                check=False,
                timeout=SECONDS_MAX,
            )
            assert done.returncode == 0, done.stderr.decode(errors="replace")
            found: dict[str, Any] = json.loads(done.stdout)
            serving.communicate(timeout=SECONDS_MAX)
        finally:
            if serving.poll() is None:
                serving.kill()
                serving.communicate()
        subprocess.run(["cmp", str(source), str(target)], check=True)
        return Transfer(float(found["seconds"]), int(found["bytes_sent"]), int(found["lanes"]))


def iperf3(lab: Lab, connections: int, seconds: float) -> float:
    """Bytes a second that arrive at the far end over so many connections."""
    serving = subprocess.Popen(
        [*lab.far, "iperf3", "-s", "-1", "--forceflush"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        assert serving.stdout is not None
        while b"listening" not in serving.stdout.readline():
            assert serving.poll() is None, "iperf3 does not listen"
        line = [
            *lab.near,
            "iperf3",
            "-c",
            FAR_ADDRESS,
            "-P",
            str(connections),
            "-t",
            f"{max(1, round(seconds))}",
            "-J",
        ]
        done = subprocess.run(line, capture_output=True, check=True, timeout=SECONDS_MAX)
        found: dict[str, Any] = json.loads(done.stdout)
        serving.communicate(timeout=30)
    finally:
        if serving.poll() is None:
            serving.kill()
            serving.communicate()
    return float(found["end"]["sum_received"]["bits_per_second"]) / 8


@dataclass(slots=True)
class Arrivals:
    """What the far end has received: (seconds, bytes so far), ascending."""

    points: list[tuple[float, int]] = field(default_factory=list)

    def middle(self) -> float:
        """Bytes a second, headers included, between a fifth and four fifths of them: neither start nor end."""
        first, whole = self.points[0][1], self.points[-1][1] - self.points[0][1]
        inner = [(at, count) for at, count in self.points if whole <= 5 * (count - first) <= 4 * whole]
        (began, before), (ended, after) = inner[0], inner[-1]
        return (after - before) / (ended - began)


@contextmanager
def counted(lab: Lab) -> Iterator[Arrivals]:
    """What arrives meanwhile is noted; complete when the block has ended."""
    arrivals = Arrivals()
    words = [*lab.far, sys.executable, str(COUNTER)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield arrivals
        finally:
            process.terminate()
            said, _ = process.communicate()
    for line in said.splitlines():
        at, count = line.split()
        arrivals.points.append((float(at), int(count)))
