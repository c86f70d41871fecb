"""The stand-in as a child process, for tests and laboratories."""

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from simlab.azure.errors import StandInDead

ROOT: Final = Path(__file__).resolve().parents[2]
READY_SECONDS_MAX: Final = 90.0
END_SECONDS_MAX: Final = 20.0


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a running stand-in is reached."""

    arm: str
    blob: str
    control: str
    certificate: str
    subscription: str
    pid: int


@contextmanager
def running(inventory: Path, *options: str) -> Iterator[Endpoints]:
    """The stand-in runs inside the block and is gone after it. Errors: HW-SIMLAB-105 with what it said."""
    command = [
        sys.executable,
        "-m",
        "simlab.azure",
        "--inventory",
        str(inventory),
        "--until-stdin-closes",
        *options,
    ]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said
        )
        try:
            line = _first_line(process)
            if not line:
                process.kill()
                process.wait()
                said.seek(0)
                raise StandInDead(output=said.read()[-2000:].decode(errors="replace") or "no output")
            yield Endpoints(**json.loads(line))
        finally:
            _end(process)


def _first_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    deadline = time.monotonic() + READY_SECONDS_MAX
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return b""
            part = os.read(descriptor, 4096)
            if not part:
                return b""
            line += part
    return line


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    try:
        process.wait(END_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
