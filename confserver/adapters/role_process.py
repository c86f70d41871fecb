"""The other roles as processes of this machine, through the command line: started, listened to, ended.

Where a role's work stands is in its status file (docs/configuration.md), which is read a few times a second.
"""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from confserver.errors import JobCancelled, RoleDied, RoleFailed
from confserver.ports import Moved, Standing, Stopped

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

    def require_alive(self) -> None:
        """Nobody killed it: where it is gone, what its agent said does not count. Errors: `RoleDied` (HW-CONF-015)."""
        status = self._process.poll()
        if status is not None and status < 0:
            raise RoleDied(role="master target", status=f"signal {-status}", log=str(self._log))

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


class RoleVerb:
    """A verb of a role that works and reports, as a process; a context that leaves nothing of it behind.

    `environment` is added to this process's own: secrets go there and never on a command line or into a file.
    """

    def __init__(
        self, role: str, words: list[str], log: Path, environment: Mapping[str, str], status: Path | None
    ) -> None:
        self._role, self._log, self._status = role, log, status
        if status is not None:
            status.unlink(missing_ok=True)
            words = [*words, "--status", str(status)]
        self._process = _spawn(words, log, subprocess.DEVNULL, {**os.environ, **environment})

    @property
    def running(self) -> bool:
        """Whether it still works."""
        return self._process.poll() is None

    def stop(self) -> None:
        """It ends in order, soon."""
        if self.running:
            self._process.terminate()

    def standing(self) -> Standing | None:
        """Where its work stands; None before it says so."""
        if self._status is None:
            return None
        try:
            found = json.loads(self._status.read_bytes())
            return Standing(found["moved"], found["done"], found["total"], found["label"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def report(self) -> dict[str, Any]:
        """What it printed, once it has ended. Errors: `RoleFailed`, `RoleDied` (HW-CONF-014, 015)."""
        assert self._process.stdout is not None
        text = self._process.stdout.read()
        status = self._process.wait()
        try:
            found: dict[str, Any] = json.loads(text)
        except ValueError:
            raise RoleDied(role=self._role, status=f"exit status {status}", log=str(self._log)) from None
        if "code" in found:
            raise failed(self._role, found)
        return found

    def __enter__(self) -> "RoleVerb":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdout is not None
        if self.running:
            self._process.kill()
        self._process.stdout.close()
        self._process.wait()


def agent_verb(verb: str, config: Path, environment: Mapping[str, str]) -> RoleVerb:
    """The agent's verb at work; log and status file lie beside its settings."""
    log, status = config.with_name("agent.log"), config.with_name("agent.status")
    return RoleVerb("agent", _command("agent", verb, config), log, environment, status)


def masttarget_verb(verb: str, config: Path, *options: str, watched: bool = False) -> RoleVerb:
    """The master target's verb at work, likewise; only those that take long have a status file."""
    log, status = config.with_name("masttarget.log"), config.with_name("masttarget.status")
    words = [*_command("masttarget", verb, config), *options]
    return RoleVerb("master target", words, log, {}, status if watched else None)


def drop_points(config: Path, item: str) -> RoleVerb:
    """The item's recovery points go, all of them."""
    words = [*_command("points", "drop", config), item, "--last", "--yes"]
    return RoleVerb("master target", words, config.with_name("masttarget.log"), {}, None)


def run(verbs: list[RoleVerb], stopped: Stopped, moved: Moved) -> list[dict[str, Any]]:
    """The reports of verbs that work at the same time. Errors: `JobCancelled`, those of `RoleVerb.report`."""
    with ExitStack() as stack:
        for verb in verbs:
            stack.enter_context(verb)
        asked = False
        while any(verb.running for verb in verbs):
            if not asked and stopped():
                asked = True
                for verb in verbs:
                    verb.stop()
            time.sleep(POLL_SECONDS)
            told = [standing for verb in verbs if (standing := verb.standing()) is not None]
            if told:
                moved(_together(told))
        if asked:
            raise JobCancelled()
        return [verb.report() for verb in verbs]


def _together(told: list[Standing]) -> Standing:
    """One standing for several."""
    label = told[0].label if len(told) == 1 else "; ".join(each.label for each in told)
    return Standing(
        sum(each.moved for each in told),
        sum(each.done for each in told),
        sum(each.total for each in told),
        label,
    )


def failed(role: str, found: dict[str, Any]) -> RoleFailed:
    """The role's own error, in this role's words: nobody ran a command of the role's."""
    return RoleFailed(
        role=role,
        role_code=found["code"],
        role_what=found["error"],
        role_found=found["found"],
        role_expected=found["expected"],
        role_remedy=re.sub("run the (same )?command again", "retry the job", found["remedy"]),
    )


def _command(role: str, verb: str, config: Path) -> list[str]:
    return [sys.executable, "-m", "homeward", role, verb, "--json", "--config", str(config)]


def _spawn(
    command: list[str], log: Path, stdin: int, environment: Mapping[str, str] | None = None
) -> "subprocess.Popen[bytes]":
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        # A session of its own: Ctrl-C at the server's terminal is the server's to handle.
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=descriptor,
            start_new_session=True,
            env=environment,
        )
    finally:
        os.close(descriptor)
