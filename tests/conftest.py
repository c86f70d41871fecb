"""What many tests borrow from the machine and give back even when they fail: loop devices, mounts, seeds."""

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

LoopDevice = Callable[[Path], Path]
"""Attaches a file, answers the device; detached when the test is over."""
MountPoint = Callable[[str, int], Path]
"""A new file system ("ext4" or "tmpfs") of so many bytes, mounted until the test is over."""


def _run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def loop_device() -> Iterator[LoopDevice]:
    with ExitStack() as stack:

        def attach(path: Path) -> Path:
            device = _run("losetup", "-f", "--show", path)
            stack.callback(_run, "losetup", "-d", device)
            return Path(device)

        yield attach


@pytest.fixture
def mount_point(tmp_path: Path) -> Iterator[MountPoint]:
    with ExitStack() as stack:

        def mount(kind: str, size: int) -> Path:
            number = len(list(tmp_path.glob("mounted-*")))
            point = tmp_path / f"mounted-{number}"
            point.mkdir()
            if kind == "tmpfs":
                _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", point)
            else:
                image = tmp_path / f"image-{number}.{kind}"
                image.touch()
                os.truncate(image, size)
                _run(f"mkfs.{kind}", "-q", "-F", "-m", "0", image)
                _run("mount", "-o", "loop", image, point)
            stack.callback(_run, "umount", point)
            return point

        yield mount


@pytest.fixture
def dice() -> random.Random:
    """Random numbers from a fresh seed that is printed."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)
