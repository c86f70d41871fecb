"""Thaws file systems when whoever froze them is gone, or late: `thaw.py SECONDS MOUNT ...`, a process of its own.

On stdin come lines: `+N`, mount N is about to be frozen; `-N`, it was not. When stdin closes, or SECONDS after the
first `+`, every mount of the first kind is thawed. It writes nothing after its first word, imports nothing of ours, and
goes on thawing until stdin closes: a freeze that is under way may be done later.
"""

import contextlib
import fcntl
import os
import select
import sys
import time

FITHAW = 0xC0045878
AGAIN_SECONDS = 0.1


def thaw(descriptors: list[int]) -> None:
    """None of them is frozen; those that were not stay as they are."""
    for descriptor in reversed(descriptors):
        with contextlib.suppress(OSError):
            fcntl.ioctl(descriptor, FITHAW, 0)


def watch(seconds: float, mounts: list[str]) -> None:
    """Everything is thawed; see the module."""
    opened = [os.open(mount, os.O_RDONLY | os.O_DIRECTORY) for mount in mounts]
    os.write(1, b"ready\n")
    frozen: list[int] = []
    deadline, waiting = float("inf"), b""
    while True:
        late = time.monotonic() >= deadline
        if late:
            thaw(frozen)
        rest = AGAIN_SECONDS if late else deadline - time.monotonic()
        if not select.select([0], [], [], None if rest == float("inf") else max(rest, 0.0))[0]:
            continue
        found = os.read(0, 4096)
        if not found:
            thaw(frozen)
            return
        *lines, waiting = (waiting + found).split(b"\n")
        for line in lines:
            descriptor = opened[int(line[1:])]
            if line[:1] == b"+":
                frozen.append(descriptor)
                deadline = min(deadline, time.monotonic() + seconds)
            else:
                frozen.remove(descriptor)


if __name__ == "__main__":
    watch(float(sys.argv[1]), sys.argv[2:])
