"""`sync` on one machine: a master target as its own process, the agent in this one, TCP on loopback between them."""

import json
import os
import secrets
import signal
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent.config import AgentConfig, Compression, SourceConfig
from agent.main import Agent
from agent.sync import SyncReport
from disks.disk import Format
from drcore.errors import HomewardError
from homeward.errors import (
    DirectoryMissing,
    LocalStateDamaged,
    MasttargetDied,
    SameDisk,
    WorkplaceFailed,
)
from wireproto.errors import ConnectionLost, PeerReported

DEFAULT_STATE: Final = Path("/var/lib/homeward/sync")
STOP_SECONDS_MAX: Final = 120.0
"""How long the master target may take to flush and keep its digest map."""


@dataclass(frozen=True, slots=True)
class SyncOrder:
    """What the operator asked for."""

    source: Path
    target: Path
    create: str
    source_format: Format | None
    target_format: Format | None
    bandwidth: int | None
    compression: Compression
    allow_larger: bool
    adopt: bool
    lanes: int


class Workplace:
    """The directory beside the target (for a device: below the state directory) where a broken sync is remembered."""

    def __init__(self, target: Path, state: Path) -> None:
        self.target = Path(os.path.realpath(target))
        if _is_device(self.target):
            self.path = state / (str(self.target).strip("/").replace("/", "-") + ".homeward")
        else:
            self.path = self.target.with_name(self.target.name + ".homeward")
        self.resumes = (self.path / "cycle").exists() or any(self.path.glob("*.homeward/cycle"))

    def prepare(self) -> dict[str, str]:
        """The directory is there, with a key and the identifiers of item and disk; an earlier run's are used again.

        Errors: `DirectoryMissing` (HW-HOME-002), `LocalStateDamaged` (006), `WorkplaceFailed` (007).
        """
        if not _is_device(self.target) and not self.target.parent.is_dir():
            raise DirectoryMissing(path=str(self.target.parent))
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            key, identifiers = self.path / "key", self.path / "identifiers"
            if not key.exists() or not identifiers.exists():
                _write(key, secrets.token_bytes(32))
                _write(
                    identifiers, json.dumps({"item": str(uuid.uuid4()), "disk": str(uuid.uuid4())}).encode()
                )
            found = json.loads(identifiers.read_bytes())
            return {name: str(uuid.UUID(found[name])) for name in ("item", "disk")}
        except OSError as error:
            raise self._failed(error) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged("identifiers that cannot be read") from error

    def _failed(self, error: OSError) -> WorkplaceFailed:
        return WorkplaceFailed(path=str(self.path), reason=error.strerror or str(error))

    def _damaged(self, reason: str) -> LocalStateDamaged:
        return LocalStateDamaged(path=str(self.path), reason=reason)

    def masttarget_config(self, order: SyncOrder, identifiers: dict[str, str]) -> Path:
        """The settings file for the master target."""
        lines = [
            "[masttarget]",
            'listen = "127.0.0.1:0"',
            f"key_file = {json.dumps(str(self.path / 'key'))}",
            f"state_directory = {json.dumps(str(self.path))}",
            "keep_record = false",
            "[[disk]]",
            f'item = "{identifiers["item"]}"',
            f'disk = "{identifiers["disk"]}"',
            f"path = {json.dumps(str(self.target))}",
            f'format = "{order.target_format.value if order.target_format else ""}"',
            f'create = "{order.create}"',
            f"allow_larger = {json.dumps(order.allow_larger)}",
            f"adopt = {json.dumps(order.adopt)}",
        ]
        path = self.path / "masttarget.toml"
        try:
            _write(path, "\n".join([*lines, ""]).encode())
        except OSError as error:
            raise self._failed(error) from error
        return path

    def tidy(self) -> None:
        """What belongs to no open cycle is gone, the directory too when nothing is left in it."""
        if (self.path / "cycle").exists() or any(self.path.glob("*.homeward/cycle")):
            return
        for pattern in (
            "key",
            "identifiers",
            "masttarget.toml",
            "masttarget.log",
            "*.sent",
            "*.sent-before",
            "*.new",
        ):
            for path in self.path.glob(pattern):
                path.unlink(missing_ok=True)
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()


def _is_device(path: Path) -> bool:
    try:
        return stat.S_ISBLK(path.stat().st_mode)
    except OSError:
        return False


def _write(path: Path, data: bytes) -> None:
    new = path.with_name(path.name + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def check_different(source: Path, target: Path) -> None:
    """Source and target are not one disk. Errors: `SameDisk` (HW-HOME-005)."""
    try:
        same = source.samefile(target)
    except OSError:
        return
    if same:
        raise SameDisk(path=str(source))


class LocalSync:
    """One run of `sync` on this machine."""

    def __init__(
        self, order: SyncOrder, state: Path, on_retry: Callable[[HomewardError, float], None]
    ) -> None:
        self._order = order
        self._on_retry = on_retry
        self._agent: Agent | None = None
        self._stopped = False
        self.workplace = Workplace(order.target, state)

    @property
    def agent(self) -> Agent | None:
        """The agent, once it runs; for its progress."""
        return self._agent

    def stop(self) -> None:
        """The run ends with `Stopped` as soon as it can; what is durable stays."""
        self._stopped = True
        if self._agent is not None:
            self._agent.stop()

    def run(self) -> SyncReport:
        """The target holds what the source holds, durably, and no trace of the run is left beside it.

        Errors: those of both roles, and HW-HOME-002, 003, 005, 006.
        """
        check_different(self._order.source, self._order.target)
        identifiers = self.workplace.prepare()
        try:
            process = self._spawn(self.workplace.masttarget_config(self._order, identifiers))
            try:
                return self._run(process, identifiers)
            finally:
                self._end(process)
        finally:
            self.workplace.tidy()

    def _spawn(self, config: Path) -> "subprocess.Popen[bytes]":
        log = os.open(
            self.workplace.path / "masttarget.log",
            os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC,
            0o600,
        )
        try:
            # A session of its own, so that Ctrl-C reaches this process only, which stops both in order.
            return subprocess.Popen(
                [
                    *(sys.executable, "-m", "homeward", "masttarget", "serve", "--json"),
                    *("--config", str(config), "--once", "--until-stdin-closes"),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        finally:
            os.close(log)

    def _run(self, process: "subprocess.Popen[bytes]", identifiers: dict[str, str]) -> SyncReport:
        port = self._port(process)
        order = self._order
        config = AgentConfig(
            host="127.0.0.1",
            port=port,
            key_file=self.workplace.path / "key",
            state_directory=self.workplace.path,
            item=uuid.UUID(identifiers["item"]),
            disks=(SourceConfig(uuid.UUID(identifiers["disk"]), order.source, order.source_format),),
            bandwidth=order.bandwidth,
            compression=order.compression,
            lanes=order.lanes,
        )
        self._agent = Agent(config, self._on_retry)
        if self._stopped:
            self._agent.stop()
        try:
            return self._agent.run()
        except ConnectionLost as error:
            status = process.poll()
            if status is None:
                raise
            raise self._died(status) from error

    def _port(self, process: "subprocess.Popen[bytes]") -> int:
        """The port that the master target listens on. Errors: what it reports instead, `MasttargetDied`."""
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            found: dict[str, Any] = json.loads(line)
        except ValueError:
            raise self._died(process.wait()) from None
        if "code" in found:
            raise PeerReported(
                peer_code=found["code"],
                peer_what=found["error"],
                peer_found=found["found"],
                peer_expected=found["expected"],
                peer_remedy=found["remedy"],
                peer_retry="permanent",
            )
        return int(found["port"])

    def _died(self, status: int) -> MasttargetDied:
        words = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return MasttargetDied(status=words, log=str(self.workplace.path / "masttarget.log"))

    def _end(self, process: "subprocess.Popen[bytes]") -> None:
        """The master target has ended; it flushes, keeps its digest map and tidies up before."""
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
