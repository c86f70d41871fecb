"""A target that is full, or whose device fails, stops by itself; the other disks of the master target go on."""

import json
import os
import random
import subprocess
import threading
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from agent.main import Agent
from drcore.errors import HomewardError
from tests.conftest import LoopDevice, MountPoint
from tests.system.command import ended, homeward, judge, start, write_sparse
from tests.system.roles import Pair, Site, no_retry

MIB = 1024 * 1024
SIZE = 8 * MIB


@pytest.mark.parametrize(
    "failing", ["full file system", "device that cannot write", "device that cannot read"]
)
def test_one_target_fails_and_the_other_one_goes_on(
    failing: str, tmp_path: Path, dice: random.Random, mount_point: MountPoint, loop_device: LoopDevice
) -> None:
    room = mount_point("tmpfs", 3 * MIB if failing != "device that cannot read" else 2 * SIZE)
    bad = room / "bad.raw"
    if failing == "device that cannot read":
        bad.write_bytes(dice.randbytes(SIZE))
    else:  # it has the size, and no blocks
        bad.touch()
        os.truncate(bad, SIZE)
    code = "HW-DISKS-003"
    if failing != "full file system":
        backing, bad = bad, loop_device(bad)
        code = "HW-DISKS-001" if failing == "device that cannot read" else "HW-DISKS-004"
        os.truncate(backing, SIZE // 2 if failing == "device that cannot read" else SIZE)
        subprocess.run(["blockdev", "--flushbufs", bad], check=True)
    good = write_sparse(tmp_path / "good.raw", dice.randbytes(SIZE))
    old = good.read_bytes()
    sources = [
        write_sparse(tmp_path / f"{name}-source.raw", dice.randbytes(SIZE)) for name in ("bad", "good")
    ]
    sites = [
        Site(tmp_path, Pair(source, target)) for source, target in zip(sources, (bad, good), strict=True)
    ]
    sites[1].item = uuid.uuid4()
    whole = Site(tmp_path, *(site.pairs[0] for site in sites))
    (tmp_path / "retention").mkdir()
    config = whole.write_masttarget(
        retention=json.dumps(str(tmp_path / "retention")), retention_own_volume="false"
    )
    text = config.read_text()
    for site in sites:
        disk = f'"\ndisk = "{site.pairs[0].disk}"'
        text = text.replace(f"{whole.item}{disk}", f"{site.item}{disk}")
    config.write_text(text)
    found: dict[int, object] = {}
    process = start("masttarget", "serve", "--config", config, "--json")
    try:
        assert process.stdout is not None
        port = int(json.loads(process.stdout.readline())["port"])

        def run(number: int) -> None:
            agent = replace(
                sites[number].agent(port), state_directory=tmp_path / f"agent-{number}", reconnects=0
            )
            try:
                found[number] = Agent(agent, no_retry).run()
            except HomewardError as error:
                found[number] = error

        threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        again: dict[int, object] = {}
        write_sparse(sources[1], dice.randbytes(SIZE))  # and the master target still serves whoever is well
        found, again = again, found
        run(1)
    finally:
        process.terminate()
        outcome = ended(process)
    assert "Traceback" not in outcome.stderr, outcome.stderr
    error = again[0]
    assert isinstance(error, HomewardError)
    assert str(error).startswith(f"{code}: "), (error.code, str(error))
    assert not isinstance(again[1], HomewardError), again[1]
    assert not isinstance(found[1], HomewardError), found[1]
    judge(good, "raw", sources[1])
    item = str(sites[1].item)
    listed = homeward("points", "list", item, "--config", config, "--json").answer()["points"]
    assert [point["kind"] for point in listed] == ["as-found", "crash-consistent", "crash-consistent"]
    homeward("points", "rollback", item, listed[0]["sequence"], "--config", config, "--json").answer()
    assert good.read_bytes() == old
