"""`sync` on one machine: a master target as its own process, the agent in this one, a local socket between them."""

import fcntl
import json
import os
import signal
import stat
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent.config import AgentConfig, Compression, SourceConfig
from agent.errors import MasttargetUnreachable
from disks import guard
from disks.backing import is_named, sync_directory
from disks.disk import Format
from disks.errors import DiskInUse
from drcore.errors import HomewardError
from drcore.record import Record
from homeward.child import ForkedMasttarget
from homeward.errors import (
    DirectoryMissing,
    LocalStateDamaged,
    MasttargetDied,
    SameDisk,
    WorkplaceFailed,
)
from homeward.show import say
from masttarget.config import DiskConfig, MasttargetConfig, journal_directory
from masttarget.ports import GOES_ON, WAITS
from wireproto.errors import ConnectionLost, PeerReported

if TYPE_CHECKING:
    from agent.main import Agent
    from agent.report import SyncReport

DEFAULT_STATE: Final = Path("/var/lib/homeward/sync")
UNDO: Final = "undo"
"""Where a workplace keeps the old contents that its syncs overwrote."""
UNDO_SECONDS: Final = 366 * 24 * 3600.0
"""They stay until somebody drops them; a year is as good as that, and every later sync is a point of its own."""
STOP_SECONDS_MAX: Final = 120.0
"""How long the master target may take to flush and keep its digest map."""
ENDING_SECONDS: Final = 2.0
"""Another run's hold on a workplace is waited for so long: of one that was killed, the master target still flushes."""
DEATH_SECONDS: Final = 0.2
"""A connection that broke because the master target died: its end is seen within so long."""


class SyncOrder(Record):
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
        self.resumes = self.has_record
        self._lock = -1

    @property
    def has_record(self) -> bool:
        """Whether an open cycle, or one that can be taken back, is remembered here."""
        return (self.path / "cycle").exists() or any(self.path.glob("*.homeward/cycle"))

    def prepare(self) -> dict[str, str]:
        """The directory is there, with a key and the identifiers of item and disk; an earlier run's are used again.

        It is ours until `release`. Errors: `DirectoryMissing` (HW-HOME-002), `LocalStateDamaged` (006),
        `WorkplaceFailed` (007), `DiskInUse` (HW-DISKS-010) while another run has it.
        """
        if not _is_device(self.target) and not self.target.parent.is_dir():
            raise DirectoryMissing(path=str(self.target.parent))
        try:
            deadline = time.monotonic() + ENDING_SECONDS
            while self._lock < 0:
                try:
                    self._claim()
                except DiskInUse:
                    if time.monotonic() >= deadline:
                        raise
                    time.sleep(0.02)
            key, identifiers = self.path / "key", self.path / "identifiers"
            if not key.exists() or not identifiers.exists():
                _write(key, os.urandom(32))
                sync_directory(self.path.parent)  # what is overwritten will be kept in here, and nowhere else
                _write(
                    identifiers, json.dumps({"item": str(uuid.uuid4()), "disk": str(uuid.uuid4())}).encode()
                )
            found = json.loads(identifiers.read_bytes())
            return {name: str(uuid.UUID(found[name])) for name in ("item", "disk")}
        except OSError as error:
            raise self.failed(error) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged("identifiers that cannot be read") from error

    def _claim(self) -> None:
        """The directory is there and ours, unless its last owner was just about to remove it: then once more."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = self.path / "lock"
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_named(descriptor, lock):
                self._lock, descriptor = descriptor, -1
        except BlockingIOError as error:
            holder = "another homeward that syncs it or takes a sync back"
            raise DiskInUse(path=str(self.target), holder=holder, verb="has locked") from error
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def release(self) -> None:
        """What can go is gone, and another run may have the directory; nothing happens where it was not ours."""
        if self._lock < 0:
            return
        try:
            self.tidy()
            (self.path / "lock").unlink(missing_ok=True)
            with suppress(OSError):  # not empty: something is remembered, or the next run has come
                self.path.rmdir()
        finally:
            os.close(self._lock)
            self._lock = -1

    def failed(self, error: OSError) -> WorkplaceFailed:
        """The coded error for what the operating system said about this directory."""
        return WorkplaceFailed(path=str(self.path), reason=error.strerror or str(error))

    def _damaged(self, reason: str) -> LocalStateDamaged:
        return LocalStateDamaged(path=str(self.path), reason=reason)

    def masttarget_config(self, order: SyncOrder, identifiers: dict[str, str]) -> MasttargetConfig:
        """The settings of the master target."""
        disk = uuid.UUID(identifiers["disk"])
        return MasttargetConfig(
            host="",
            port=0,
            key_file=self.path / "key",
            state_directory=self.path,
            disks=(
                DiskConfig(
                    item=uuid.UUID(identifiers["item"]),
                    disk=disk,
                    path=self.target,
                    format=order.target_format.value if order.target_format else "",
                    create=order.create,
                    allow_larger=order.allow_larger,
                    adopt=order.adopt,
                    journal=journal_directory(self.target, self.path, disk),
                ),
            ),
            retention=self.path / UNDO,
            retention_own_volume=False,
            retention_seconds=UNDO_SECONDS,
        )

    def known(self, target_format: Format | None) -> MasttargetConfig | None:
        """The settings of what is remembered here; None when nothing is. Errors: HW-HOME-006, 007."""
        if not self.has_record and not (self.path / UNDO).is_dir():
            return None
        order = SyncOrder(
            self.target, self.target, "", None, target_format, None, Compression.AUTO, True, False, 1
        )
        return self.masttarget_config(order, self.prepare())

    def drop_undo(self) -> bool:
        """There is no way back any more; answers whether there was one. An open cycle stays as it is."""
        try:
            cycles = (*self.path.glob("cycle"), *self.path.glob("*.homeward/cycle"))
            for path in cycles:
                # First: it says how far the undo journal reached, and the next sync would look for that.
                path.with_name("applied").unlink(missing_ok=True)
                sync_directory(path.parent)
            found = (self.path / UNDO).is_dir()
            if found:
                import shutil  # here: it brings libraries that unpack archives

                shutil.rmtree(self.path / UNDO)
            for path in cycles:
                if json.loads(path.read_bytes()).get("published"):
                    for name in ("digests", "cycle"):
                        path.with_name(name).unlink(missing_ok=True)
                    if path.parent != self.path:
                        path.parent.rmdir()
        except OSError as error:
            raise self.failed(error) from error
        except ValueError as error:
            raise self._damaged("a cycle record that cannot be read") from error
        self.tidy()
        return found

    def tidy(self) -> None:
        """What belongs to no open cycle and no undo journal is gone, where the directory is ours."""
        if self._lock < 0 or self.has_record:
            return
        for pattern in (
            "key",
            "identifiers",
            "masttarget.log",
            "*.sent",
            "*.sent-before",
            "*.new",
        ):
            for path in self.path.glob(pattern):
                path.unlink(missing_ok=True)


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
        same = guard.are_one(source, target)
    except OSError:
        return
    if same:
        raise SameDisk(path=str(source))


class LocalSync:
    """One run of `sync` on this machine. `start` forks, so it comes before anything that makes a thread."""

    def __init__(
        self, order: SyncOrder, state: Path, on_retry: Callable[[HomewardError, float], None]
    ) -> None:
        self._order = order
        self._on_retry = on_retry
        self._agent: Agent | None = None
        self._child: ForkedMasttarget | None = None
        self._identifiers: dict[str, str] = {}
        self._stopped = False
        self.workplace = Workplace(order.target, state)

    @property
    def agent(self) -> "Agent | None":
        """The agent, once it runs; for its progress."""
        return self._agent

    def stop(self) -> None:
        """The run ends with `Stopped` as soon as it can; what is durable stays."""
        self._stopped = True
        if self._agent is not None:
            self._agent.stop()

    def start(self) -> None:
        """The master target runs; `run` has to follow. Errors: HW-HOME-002, 005, 006, 007, HW-DISKS-010."""
        check_different(self._order.source, self._order.target)
        try:
            self._identifiers = self.workplace.prepare()
            config = self.workplace.masttarget_config(self._order, self._identifiers)
            self._child = ForkedMasttarget(config, self.workplace.path / "masttarget.log")
        except OSError as error:
            self.workplace.release()
            raise self.workplace.failed(error) from error
        except HomewardError:
            self.workplace.release()
            raise

    def run(self) -> "SyncReport":
        """The target holds what the source holds, durably; beside it stands only what takes that back.

        Errors: those of both roles, and HW-HOME-003.
        """
        assert self._child is not None
        hearing = threading.Thread(target=self._hear, args=(self._child,), name="events", daemon=True)
        hearing.start()
        try:
            return self._run(self._child)
        finally:
            self._child.end(STOP_SECONDS_MAX)
            hearing.join()
            self._child.close()
            self.workplace.release()

    def _hear(self, child: ForkedMasttarget) -> None:
        """Whoever watches knows why nothing moves, and what helps."""
        words = {
            WAITS: f"waiting: no room beside {self.workplace.target} to keep what is overwritten (HW-MT-036). Make "
            f"room on the volume of {self.workplace.path} and the sync goes on by itself; or stop it with Ctrl-C, and "
            "the same command goes on later",
            GOES_ON: "there is room again: the sync goes on",
        }
        for event in child.events():
            if event in words:
                with suppress(OSError):  # a terminal that is gone
                    say(words[event])

    def _run(self, child: ForkedMasttarget) -> "SyncReport":
        # Here, not above: the child imports its own role meanwhile.
        from agent.adapters.unix import UnixConnect
        from agent.main import Agent

        order, identifiers = self._order, self._identifiers
        compression = order.compression
        if compression is Compression.AUTO and order.bandwidth is None:
            # Within a machine bytes cost less than LZ4 does: 4 GB/s against 0.5 on one core.
            compression = Compression.NEVER
        config = AgentConfig(
            host="",
            port=0,
            key_file=self.workplace.path / "key",
            state_directory=self.workplace.path,
            item=uuid.UUID(identifiers["item"]),
            disks=(SourceConfig(uuid.UUID(identifiers["disk"]), order.source, order.source_format),),
            bandwidth=order.bandwidth,
            compression=compression,
            lanes=order.lanes,
        )
        self._agent = Agent(config, self._on_retry, connect=UnixConnect(child.address, child.pipe))
        if self._stopped:
            self._agent.stop()
        try:
            return self._agent.run()
        except (ConnectionLost, MasttargetUnreachable) as error:
            if not child.ended(DEATH_SECONDS):
                raise
            raise self._died(child) from error

    def _died(self, child: ForkedMasttarget) -> HomewardError:
        """What the master target ended with, in its own words where it found some."""
        status = child.end(STOP_SECONDS_MAX)
        said = child.said()
        if said is not None:
            return PeerReported(
                peer_code=said["code"],
                peer_what=said["error"],
                peer_found=said["found"],
                peer_expected=said["expected"],
                peer_remedy=said["remedy"],
                peer_retry="permanent",
            )
        words = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return MasttargetDied(status=words, log=str(self.workplace.path / "masttarget.log"))
