"""App-consistent points of a live machine: real file systems are frozen, programs run, a snapshot is read (R141)."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agent.adapters.freezer import LinuxFreezer
from agent.adapters.programs import LocalPrograms
from agent.config import QuiesceConfig, load
from agent.errors import ConfigRefused, FreezeFailed, FreezeRefused, ScriptFailed
from agent.main import Agent
from drcore.errors import HomewardError
from masttarget.adapters.retention_files import RetentionFiles
from masttarget.main import Master
from masttarget.points import Kind, Points
from tests.conftest import MountPoint
from tests.system.roles import Pair, Site, at_work, no_retry

MIB = 1 << 20


def program(path: Path, *lines: str) -> tuple[str, ...]:
    """A program of its own."""
    path.write_text("\n".join(["#!/bin/sh", "set -e", *lines, ""]))
    path.chmod(0o700)
    return (str(path),)


class Machine:
    """A file system that somebody writes to all the time; its disk is read by way of a copy, made as the test says."""

    def __init__(self, folder: Path, mount_point: MountPoint) -> None:
        self.folder = folder
        self.mount = mount_point("ext4", 16 * MIB)
        self.image = next(folder.glob("image-*.ext4"))
        self.copy = folder / "copy.raw"
        self.calls = folder / "calls"
        self.site = Site(folder, Pair(self.copy, folder / "target.raw", create="raw"))
        self.warnings: list[HomewardError] = []
        say = f'echo "$HOMEWARD_PHASE $HOMEWARD_ITEM" >> {self.calls}'
        self.config = QuiesceConfig(
            snapshot=program(folder / "snapshot", say, f"cp --sparse=always {self.image} {self.copy}"),
            release=program(folder / "release", say, f"rm -f {self.copy}"),
            pre_freeze=program(folder / "pre", say, f"echo at rest > {self.mount}/application"),
            post_thaw=program(folder / "post", say, f"echo goes on > {self.mount}/application"),
            freeze=(self.mount,),
            script_seconds=20.0,
            freeze_seconds=10.0,
        )
        settings = self.site.masttarget()
        disks = tuple(replace(disk, keep_record=True) for disk in settings.disks)
        self.settings = replace(
            settings, disks=disks, retention=folder / "retention", retention_own_volume=False
        )

    def cycle(self, config: QuiesceConfig) -> Kind:
        """One cycle; the kind of its point, as the master target keeps it."""
        master = Master(self.settings, lambda event, /, **facts: None)
        with at_work(master) as port:
            agent = replace(self.site.agent(port), quiesce=config)
            report = Agent(agent, no_retry, on_warning=self.warnings.append).run()
        points = Points(
            RetentionFiles(self.folder / "retention").points(self.site.item.bytes), self.site.item.hex
        )
        points.load()
        assert points.latest is not None
        assert report.app_consistent == (points.latest.kind is Kind.APP_CONSISTENT)
        return points.latest.kind

    def phases(self) -> list[str]:
        """What was called, in order."""
        found = self.calls.read_text().splitlines()
        self.calls.unlink()
        assert all(line.endswith(f" {self.site.item}") for line in found)
        return [line.split()[0] for line in found]

    def target(self) -> tuple[bool, str]:
        """Whether the file system on the target was at rest, and what the application's file holds there."""
        path = str(self.folder / "target.raw")
        head = subprocess.run(["dumpe2fs", "-h", path], capture_output=True, text=True, check=True).stdout
        found = subprocess.run(
            ["debugfs", "-R", "cat /application", path], capture_output=True, text=True, check=True
        ).stdout
        return "needs_recovery" not in head, found.strip()


@pytest.fixture
def machine(tmp_path: Path, mount_point: MountPoint) -> Machine:
    return Machine(tmp_path, mount_point)


def writes(path: Path) -> float:
    """How long a write took that has to reach the file system."""
    began = time.monotonic()
    with path.open("a") as file:
        file.write("x")
        file.flush()
        os.fsync(file.fileno())
    return time.monotonic() - began


def test_a_point_is_app_consistent_when_it_is_due_and_crash_consistent_in_between(machine: Machine) -> None:
    assert machine.cycle(machine.config) is Kind.APP_CONSISTENT
    assert machine.target() == (True, "at rest"), (
        "frozen: nothing to recover, and what the program wrote is there"
    )
    assert machine.phases() == ["pre-freeze", "snapshot", "post-thaw", "release"]
    assert (machine.mount / "application").read_text() == "goes on\n"
    assert not machine.copy.exists()
    assert machine.cycle(machine.config) is Kind.CRASH_CONSISTENT, "the next one is due in an hour"
    assert machine.phases() == ["snapshot", "release"]
    assert machine.target()[0] is False, "its journal would have to be replayed, as after a power cut"
    assert machine.cycle(replace(machine.config, interval_seconds=0)) is Kind.CRASH_CONSISTENT
    assert machine.warnings == []
    state = machine.folder / "agent" / f"{machine.site.item.hex}.app-consistent"
    state.write_text(f"{time.time() + 7200}\n")
    assert machine.cycle(machine.config) is Kind.APP_CONSISTENT, "a clock that went back makes it due"


@pytest.mark.parametrize(
    ("broken", "code", "phases"),
    [
        ("pre_freeze", "HW-AGENT-011", ["post-thaw", "release", "snapshot", "release"]),
        ("post_thaw", "HW-AGENT-011", ["pre-freeze", "snapshot", "release", "snapshot", "release"]),
        ("freeze", "HW-AGENT-013", ["release", "snapshot", "release"]),
    ],
)
def test_whatever_fails_there_is_a_crash_consistent_point_and_a_warning(
    machine: Machine, broken: str, code: str, phases: list[str]
) -> None:
    wrong: tuple[str | Path, ...] = program(machine.folder / "wrong", "echo no database here", "exit 3")
    if broken == "freeze":
        wrong = (machine.folder,)
    config = replace(machine.config, **{broken: wrong})
    assert machine.cycle(config) is Kind.CRASH_CONSISTENT
    assert [error.code for error in machine.warnings] == [code]
    if broken != "freeze":
        assert "exit status 3: no database here" in str(machine.warnings[0])
    assert machine.phases() == phases
    assert writes(machine.mount / "application") < 5, "nothing stays frozen"


def test_a_snapshot_that_takes_too_long_is_never_called_app_consistent(machine: Machine) -> None:
    slow = program(
        machine.folder / "slow",
        f"if [ -e {machine.folder}/once ]; then cp {machine.image} {machine.copy}; exit; fi",
        f"touch {machine.folder}/once",
        "sleep 30",
    )
    began = time.monotonic()
    assert machine.cycle(replace(machine.config, snapshot=slow, freeze_seconds=1.0)) is Kind.CRASH_CONSISTENT
    assert time.monotonic() - began < 20
    assert [error.code for error in machine.warnings] == ["HW-AGENT-011"]
    assert "no end after" in str(machine.warnings[0])


def test_without_any_snapshot_there_is_no_point(machine: Machine) -> None:
    nothing = program(machine.folder / "nothing", "exit 1")
    with pytest.raises(ScriptFailed):
        machine.cycle(replace(machine.config, snapshot=nothing))
    assert machine.phases() == ["pre-freeze", "post-thaw", "release", "release"]


def test_the_agent_does_not_freeze_what_it_writes_to_itself(machine: Machine) -> None:
    freezer = LinuxFreezer()
    freezer.check((machine.mount,), (machine.folder / "agent",))
    for mounts, own in (
        ((machine.mount,), machine.mount / "state" / "not" / "there" / "yet"),
        ((machine.mount / "application",), machine.folder),
    ):
        with pytest.raises(FreezeRefused):
            freezer.check(mounts, (own,))


def test_a_file_system_that_was_thawed_early_is_told(machine: Machine) -> None:
    freezer = LinuxFreezer()
    freezer.freeze((machine.mount,), 1.0)
    assert 0.2 < writes(machine.mount / "late") < 8, "the watcher thaws when the time is over"
    assert freezer.thaw() == str(machine.mount)
    freezer.freeze((machine.mount,), 30.0)
    other = LinuxFreezer()
    with pytest.raises(FreezeFailed):
        other.freeze((machine.mount,), 30.0)
    assert other.thaw() == "", "what somebody else froze stays frozen"
    assert freezer.thaw() == ""
    assert writes(machine.mount / "late") < 5


FREEZE = """
import sys, time
from pathlib import Path
from agent.adapters.freezer import LinuxFreezer
freezer = LinuxFreezer()
freezer.freeze((Path(sys.argv[1]),), 60.0)
print("frozen", flush=True)
time.sleep(60)
"""


def test_an_agent_that_is_killed_leaves_nothing_frozen(machine: Machine) -> None:
    with subprocess.Popen([sys.executable, "-c", FREEZE, machine.mount], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"frozen\n"
        done = threading.Event()

        def write() -> None:
            writes(machine.mount / "after")
            done.set()

        thread = threading.Thread(target=write)
        thread.start()
        assert not done.wait(0.5), "it is frozen"
        process.send_signal(signal.SIGKILL)
        assert done.wait(20), "it was thawed by the watcher"
        thread.join()


def test_a_program_is_told_what_it_needs_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGNED_URL", "a secret")
    shown = program(tmp_path / "show", f"env > {tmp_path}/environment")
    LocalPrograms().run("snapshot", shown, 10.0, {"HOMEWARD_PHASE": "snapshot"})
    told = (tmp_path / "environment").read_text()
    assert "HOMEWARD_PHASE=snapshot" in told
    assert "SIGNED_URL" not in told
    talkative = program(
        tmp_path / "talk", "head -c 300000 /dev/zero | tr '\\0' x", "echo", "echo end >&2", "exit 1"
    )
    with pytest.raises(ScriptFailed, match="exit status 1: end"):
        LocalPrograms().run("snapshot", talkative, 20.0, {})
    with pytest.raises(ScriptFailed, match="No such file"):
        LocalPrograms().run("release", (str(tmp_path / "missing"),), 1.0, {})


def told(folder: Path, quiesce: str, more: str = "") -> Path:
    path = folder / "agent.toml"
    path.write_text(
        f'[agent]\nmasttarget = "127.0.0.1:1"\nkey_file = "/k"\nitem = "{"1" * 32}"\n{more}\n{quiesce}\n'
        f'[[disk]]\ndisk = "{"2" * 32}"\npath = "/snapshot"\n'
    )
    return path


def test_settings_of_a_snapshot(tmp_path: Path) -> None:
    good = '[quiesce]\nsnapshot = ["/s", "a b"]\nfreeze = ["/data"]\nfreeze_seconds = 5\n'
    found = load(told(tmp_path, good)).quiesce
    assert found is not None
    assert (found.snapshot, found.freeze, found.freeze_seconds) == (("/s", "a b"), (Path("/data"),), 5.0)
    assert (found.interval_seconds, found.script_seconds, found.pre_freeze) == (3600, 60.0, ())
    for text, more in (
        ("[quiesce]", ""),
        ('[quiesce]\nsnapshot = ["s"]', ""),
        ('[quiesce]\nsnapshot = "/s"', ""),
        ('[quiesce]\nsnapshot = ["/s", 3]', ""),
        (good + "nonsense = 1", ""),
        ('[quiesce]\nsnapshot = ["/s"]\nfreeze = ["data"]', ""),
        ('[quiesce]\nsnapshot = ["/s"]\nfreeze_seconds = 60', ""),
        (good, 'group = "pair"'),
    ):
        with pytest.raises(ConfigRefused):
            load(told(tmp_path, text, more))


def test_a_random_writer_never_breaks_an_app_consistent_copy(machine: Machine, dice: random.Random) -> None:
    """Somebody writes while the snapshot is made; the copy needs no recovery and has no error."""
    over = threading.Event()

    def write() -> None:
        number = 0
        while not over.is_set():
            number += 1
            (machine.mount / f"file-{number % 7}").write_bytes(dice.randbytes(200_000))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert machine.cycle(machine.config) is Kind.APP_CONSISTENT
    finally:
        over.set()
        thread.join()
    assert machine.target() == (True, "at rest")
    checked = subprocess.run(["e2fsck", "-fn", machine.folder / "target.raw"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
