"""SIGKILL of either role at random and named points: the same command again ends byte-exact.

Part `sync`: a round makes a source and an older target (or none), starts both roles with a counting relay between them,
kills one or both, checks the target against what was acknowledged, and starts them again until they are done.
Part `masttarget`: see `crash_masttarget` and `crash_retention`. Part `confserver`: see `crash_confserver`. Part
`disks`: see `crash_disks`.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from drcore.limits import MIB
from drcore.units import BLOCK_BYTES
from tests.campaigns import acknowledged, crash_retention
from tests.campaigns.crash_confserver import confserver
from tests.campaigns.crash_disks import disks
from tests.campaigns.crash_masttarget import masttarget
from tests.campaigns.dying import AGENT_POINTS, MASTTARGET_POINTS
from tests.campaigns.relay import Relay
from tests.campaigns.runner import Campaign, Round

TWICE_MAX = 64 * MIB
BLOCKS = 2200  # 137 MiB: more than twice what may be under way
RUN_SECONDS_MAX = 60
FORMATS = ("raw", "raw", "vmdk-monolithicSparse", "vhd-dynamic")
SUFFIXES = {"raw": "raw", "vmdk-monolithicSparse": "vmdk", "vhd-dynamic": "vhd"}


@dataclass
class Stage:
    """The files and settings of one round."""

    directory: Path
    relay: Relay
    format: str
    item: uuid.UUID
    disk: uuid.UUID
    key: bytes

    @property
    def source(self) -> Path:
        return self.directory / "source.raw"

    @property
    def target(self) -> Path:
        return self.directory / f"target.{SUFFIXES[self.format]}"

    def write_settings(self) -> None:
        key = self.directory / "key"
        key.touch(0o600)
        key.write_bytes(self.key)
        (self.directory / "mt.toml").write_text(
            f'[masttarget]\nlisten = "127.0.0.1:0"\nkey_file = "{key}"\nstate_directory = "{self.directory}"\n'
            f'keep_record = false\n[[disk]]\nitem = "{self.item}"\ndisk = "{self.disk}"\npath = "{self.target}"\n'
            f'create = "{self.format}"\nadopt = true\n'
        )
        (self.directory / "agent.toml").write_text(
            f'[agent]\nmasttarget = "127.0.0.1:{self.relay.port}"\nkey_file = "{key}"\nitem = "{self.item}"\n'
            f'state_directory = "{self.directory / "agent"}"\nreconnects = 0\ncompression = "never"\n'
            f'[[disk]]\ndisk = "{self.disk}"\npath = "{self.source}"\n'
        )

    def start(self, role: str, point: str = "", count: int = 1) -> "subprocess.Popen[str]":
        config = self.directory / ("mt.toml" if role == "masttarget" else "agent.toml")
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.campaigns.dying", role, str(config), point, str(count)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if role == "masttarget":
            assert process.stdout is not None
            line = process.stdout.readline()
            if line:
                self.relay.target_port = int(line)
        return process


def fill(path: Path, rng: random.Random, share: float, base: Path | None) -> int:
    """A raw disk; with a base, a copy of it in which `share` of the blocks differ. Answers the bytes that differ."""
    noise = rng.randbytes(4 * MIB)
    different = 0
    with path.open("wb") as file:
        old = base.read_bytes() if base is not None else b""
        file.write(old)
        for block in range(BLOCKS):
            if base is not None and rng.random() >= share:
                continue
            if base is None and rng.random() < 0.1:
                continue  # a hole
            at = rng.randrange(len(noise) - BLOCK_BYTES)
            content = rng.randbytes(16) + noise[at : at + BLOCK_BYTES - 16]
            if base is not None and rng.random() < 0.3:
                content = content[: 4096 * rng.randrange(1, 4)]
            file.seek(block * BLOCK_BYTES)
            file.write(content)
            different += len(content)
        file.truncate(BLOCKS * BLOCK_BYTES - 1536)
    return different


def check_acknowledged(stage: Stage) -> None:
    """Every block that the applied record calls durable has that digest on the (raw) target."""
    if stage.format == "raw":
        acknowledged.check(stage.target, stage.key, stage.item, stage.disk)


def check_not_mixed(stage: Stage, old: bytes) -> None:
    """Every sector of a raw target is old or new."""
    if stage.format != "raw" or not stage.target.exists():
        return
    new, now = stage.source.read_bytes(), stage.target.read_bytes()
    old = old or bytes(len(new))
    if now in (new, old):
        return
    for at in range(0, len(new), 4096):
        piece = now[at : at + 4096]
        assert piece in (new[at : at + 4096], old[at : at + 4096]), f"sector at {at} is mixed"


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    try:
        out, errors = process.communicate(timeout=RUN_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        out, errors = process.communicate()
        raise AssertionError(f"a role hangs: {out} {errors}") from None
    return process.returncode, out + errors


def one_crash(stage: Stage, rng: random.Random) -> "subprocess.Popen[str] | None":
    """Both roles start, one of them dies. Answers the master target if it lives on."""
    victim = rng.choice(("masttarget", "agent"))
    named = rng.random() < 0.6
    point, count = "", 1
    if named:
        point = rng.choice(MASTTARGET_POINTS if victim == "masttarget" else AGENT_POINTS)
        count = (
            int(rng.expovariate(1 / 20)) + 1 if "write" in point or "read" in point or "mark" in point else 1
        )
        count += int(rng.expovariate(1 / 3)) if "flush" in point or "append" in point else 0
    masttarget = stage.start("masttarget", point if victim == "masttarget" else "", count)
    agent = stage.start("agent", point if victim == "agent" else "", count)
    if not named:
        time.sleep(rng.uniform(0.15, 0.9))
        with suppress(ProcessLookupError):
            os.kill((masttarget if victim == "masttarget" else agent).pid, signal.SIGKILL)
    status, words = finish(agent)
    assert status in (0, 2, -signal.SIGKILL), f"the agent ended with {status}: {words}"
    assert "Traceback" not in words, words
    return masttarget


def end(masttarget: "subprocess.Popen[str]") -> None:
    masttarget.terminate()
    status, words = finish(masttarget)
    assert status in (0, 2, -signal.SIGKILL), f"the master target ended with {status}: {words}"
    assert "Traceback" not in words, words


@contextmanager
def sync() -> Iterator[Round]:
    """One machine's disk comes home in spite of kills."""

    def one(rng: random.Random, _: int) -> None:
        with tempfile.TemporaryDirectory() as name:
            relay = Relay()
            try:
                play(Path(name), relay, rng)
            finally:
                relay.close()

    yield one


def play(directory: Path, relay: Relay, rng: random.Random) -> None:
    stage = Stage(
        directory, relay, rng.choice(FORMATS), uuid.UUID(int=rng.getrandbits(128)),
        uuid.UUID(int=rng.getrandbits(128)), rng.randbytes(32),
    )  # fmt: skip
    older = directory / "older.raw"
    fill(older, rng, 1.0, None)
    different = fill(stage.source, rng, rng.choice((0.02, 0.6, 1.0)), older)
    old = b""
    if stage.format == "raw" and rng.random() < 0.7:
        older.rename(stage.target)
        old = stage.target.read_bytes()
    else:
        different = BLOCKS * BLOCK_BYTES
    stage.write_settings()
    kills = rng.choice((1, 1, 2))
    for _ in range(kills):
        masttarget = one_crash(stage, rng)
        check_acknowledged(stage)
        check_not_mixed(stage, old)
        if masttarget is not None:
            if rng.random() < 0.5:
                masttarget.kill()
            end(masttarget)
    masttarget = stage.start("masttarget")
    status, words = finish(stage.start("agent"))
    end(masttarget)
    assert status == 0, words
    judge(stage)
    overhead = 3 * MIB
    assert relay.from_agent <= different + kills * TWICE_MAX + overhead, (
        f"{relay.from_agent} bytes for {different}"
    )
    left = [path.name for path in directory.iterdir() if path.name.endswith(".homeward")]
    assert not left, f"left over: {left}"


def judge(stage: Stage) -> None:
    """The target is byte-exact, for a reader that is not ours."""
    kind = {"raw": "raw", "vhd-dynamic": "vpc"}.get(stage.format, "vmdk")
    status = subprocess.run(
        ["qemu-img", "compare", "-f", "raw", "-F", kind, stage.source, stage.target],
        capture_output=True,
        text=True,
    )
    assert status.returncode == 0, status.stdout + status.stderr


CAMPAIGN = Campaign(
    "crash",
    {"sync": sync, "masttarget": masttarget, "confserver": confserver, "disks": disks},
    one_by_one=frozenset({"confserver"}),
    tellings={"masttarget": crash_retention.say},
)
