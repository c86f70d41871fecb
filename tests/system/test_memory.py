"""Disks of 16 TiB: no process needs more than 256 MiB, however large the disk and whatever is on it."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from drcore.units import BLOCK_BYTES
from tests.conftest import MountPoint
from tests.system.command import ROOT, ended, environment, homeward, left_beside, start

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
RESIDENT_MAX = 256 * MIB


def peak(process: int) -> int:
    """The most that the process has ever had resident, in bytes; 0 when it has ended."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = [line.split()[1] for line in text.splitlines() if line.startswith("VmHWM:")]
    return int(found[0]) * KIB if found else 0


def family(process: int) -> list[int]:
    """The process and its children."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        children = []
    return [process, *map(int, children)]


def test_sparse_disks_of_16_tib(tmp_path: Path, dice: random.Random, mount_point: MountPoint) -> None:
    """Both files are nearly all holes; tmpfs holds files of this size where ext4 does not."""
    point = mount_point("tmpfs", 2 * GIB)
    source, target = point / "source.raw", point / "target.raw"
    places = sorted(dice.randrange(16 * TIB // MIB) * MIB for _ in range(40))
    for path in (source, target):
        with path.open("wb") as file:
            file.truncate(16 * TIB)
    with source.open("r+b") as file:
        for at in places:
            file.seek(at)
            file.write(dice.randbytes(MIB))
    process = start("sync", source, target, "--json")
    peaks: dict[int, int] = {}
    while process.poll() is None:
        for number in family(process.pid):
            peaks[number] = max(peaks.get(number, 0), peak(number))
        time.sleep(0.05)
    found = ended(process).answer()
    assert len(peaks) == 2, "agent and master target"
    print({number: f"{size // MIB} MiB" for number, size in peaks.items()}, found["seconds"], "s")
    assert max(peaks.values()) <= RESIDENT_MAX
    assert found["virtual_size"] == 16 * TIB
    assert found["blocks_sent"] == len(set(places)) * 16
    with source.open("rb") as one, target.open("rb") as other:
        for at in places:
            assert os.pread(one.fileno(), MIB, at) == os.pread(other.fileno(), MIB, at)
    assert target.stat().st_blocks * 512 <= 41 * MIB
    assert left_beside(target) == ["target.raw.homeward"], "the way back"
    compared = homeward("compare", source, target, "--json")
    assert (compared.code, compared.answer()["blocks_total"]) == (0, 16 * TIB // BLOCK_BYTES)


def test_64_gib_scattered_over_16_tib(tmp_path: Path) -> None:
    """Data in every region of the disk, made up as it is read; both roles in one process of their own."""
    outcome = subprocess.run(
        [sys.executable, "-m", "tests.system.generated", str(tmp_path)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert outcome.returncode == 0, outcome.stderr
    found = json.loads(outcome.stdout)
    print(found)
    assert found["data_bytes"] == 64 * GIB
    assert found["blocks_sent"] == found["blocks_stale"] > 1000
    assert found["resident_growth"] <= RESIDENT_MAX
