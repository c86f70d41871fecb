"""A cycle whose undo records do not fit waits as long as it takes, says so, and goes on by itself."""

import json
import random
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

import agent.adapters.tcp
import agent.sync
import masttarget.adapters.listen
import masttarget.receive
import masttarget.session
from agent.main import Agent
from agent.report import SyncReport
from masttarget.ports import GOES_ON, WAITS
from tests.conftest import MountPoint
from tests.system.command import ended, start, wait_until
from tests.system.roles import Kept, Pair, Site, no_retry

MIB = 1024 * 1024
IDLE_SECONDS = 1
"""What a silent peer may take here; the heart beats twice in it."""


def test_a_full_retention_volume_is_waited_for_beyond_every_time_limit_of_the_line(
    tmp_path: Path, dice: random.Random, mount_point: MountPoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (agent.adapters.tcp, masttarget.adapters.listen, masttarget.receive, agent.sync):
        monkeypatch.setattr(module, "IDLE_SECONDS_MAX", IDLE_SECONDS)
    for module in (agent.sync, masttarget.session):
        monkeypatch.setattr(module, "HEARTBEAT_SECONDS", IDLE_SECONDS / 4)
    source, target = tmp_path / "source.raw", tmp_path / "target.raw"
    source.write_bytes(dice.randbytes(24 * MIB))
    target.write_bytes(dice.randbytes(24 * MIB))
    site = Kept(tmp_path, Pair(source, target))
    site.retention = mount_point("tmpfs", 4 * MIB)
    found: list[SyncReport] = []
    with site.listening() as port:
        role = Agent(replace(site.agent(port), lanes=3), no_retry)
        running = threading.Thread(target=lambda: found.append(role.run()), name="cycle")
        running.start()
        wait_until(lambda: any(event == WAITS for event, _ in site.log))
        running.join(4 * IDLE_SECONDS)
        assert running.is_alive()
        assert role.progress.waits
        subprocess.run(["mount", "-o", "remount,size=64m", site.retention], check=True)
        running.join(60)
        assert not running.is_alive()
    assert found
    assert target.read_bytes() == source.read_bytes()
    events = [event for event, _ in site.log]
    assert events.count("session began") == 1
    assert GOES_ON in events


def test_whoever_runs_the_agent_is_told_why_nothing_moves(
    tmp_path: Path, dice: random.Random, mount_point: MountPoint
) -> None:
    source, target = tmp_path / "source.raw", tmp_path / "target.raw"
    source.write_bytes(dice.randbytes(8 * MIB))
    target.write_bytes(dice.randbytes(8 * MIB))
    site = Site(tmp_path, Pair(source, target))
    room = mount_point("tmpfs", 4 * MIB)
    config = site.write_masttarget(retention=json.dumps(str(room)), retention_own_volume="false")
    serving = start("masttarget", "serve", "--config", config, "--json")
    try:
        assert serving.stdout is not None
        port = json.loads(serving.stdout.readline())["port"]
        running = start("agent", "sync", "--config", site.write_agent(port))
        assert running.stderr is not None
        assert "HW-MT-036" in running.stderr.readline()
        subprocess.run(["mount", "-o", "remount,size=64m", room], check=True)
        outcome = ended(running)
    finally:
        serving.terminate()
        ended(serving)
    assert outcome.code == 0
    assert "source and target hold the same" in outcome.stdout
    assert target.read_bytes() == source.read_bytes()
