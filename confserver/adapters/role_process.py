"""The other roles as processes of this machine, through the command line: started, listened to, ended."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from confserver.errors import JobCancelled, RoleDied, RoleFailed
from confserver.ports import Stopped

POLL_SECONDS: Final = 0.2
STOP_SECONDS_MAX: Final = 120.0
"""A master target flushes and keeps its digest map before it ends."""


class Masttarget:
    """A master target for one session, as a context; `port` is where it listens. It dies with this process."""

    def __init__(self, config: Path, log: Path) -> None:
        self._log = log
        command = [*_command("masttarget", "serve", config), "--once", "--until-stdin-closes"]
        self._process = _spawn(command, log, stdin=subprocess.PIPE)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.strip():
            status = self._process.wait()
            self._close()
            raise RoleDied(role="master target", status=f"exit status {status}", log=str(log))
        found: dict[str, Any] = json.loads(line)
        if "code" in found:
            self._close()
            raise failed("master target", found)
        self.port = int(found["port"])

    def __enter__(self) -> "Masttarget":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def run_agent(config: Path, log: Path, stopped: Stopped) -> dict[str, Any]:
    """The report of one cycle. Errors: `JobCancelled`, `RoleFailed`, `RoleDied` (HW-CONF-007, 014, 015)."""
    process = _spawn(_command("agent", "sync", config), log, stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    asked = False
    with process.stdout as stdout:
        while process.poll() is None:
            if not asked and stopped():
                asked = True
                process.terminate()
            time.sleep(POLL_SECONDS)
        text = stdout.read()
    if asked:
        raise JobCancelled()
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError:
        raise RoleDied(role="agent", status=f"exit status {process.returncode}", log=str(log)) from None
    if "code" in found:
        raise failed("agent", found)
    return found


def failed(role: str, found: dict[str, Any]) -> RoleFailed:
    """The role's own error, in this role's words."""
    return RoleFailed(
        role=role,
        role_code=found["code"],
        role_what=found["error"],
        role_found=found["found"],
        role_expected=found["expected"],
        role_remedy=found["remedy"],
    )


def _command(role: str, verb: str, config: Path) -> list[str]:
    return [sys.executable, "-m", "homeward", role, verb, "--json", "--config", str(config)]


def _spawn(command: list[str], log: Path, stdin: int) -> "subprocess.Popen[bytes]":
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        # A session of its own: Ctrl-C at the server's terminal is the server's to handle.
        return subprocess.Popen(
            command, stdin=stdin, stdout=subprocess.PIPE, stderr=descriptor, start_new_session=True
        )
    finally:
        os.close(descriptor)
