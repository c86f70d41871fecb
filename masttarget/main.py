"""Wires the master target: settings, key, disks, port; runs until it is told to stop."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from disks.disk import Format
from drcore.clock import SystemClock
from drcore.limits import PROGRESS_SECONDS
from drcore.secret import read_key_file
from masttarget.adapters.files import LocalStore
from masttarget.adapters.group_files import GroupFiles
from masttarget.adapters.listen import Listener, Pipe, listen
from masttarget.adapters.retention_files import RetentionFiles
from masttarget.config import MasttargetConfig
from masttarget.errors import ConfigRefused
from masttarget.health import Watch, remember
from masttarget.ports import Log, TargetStore
from masttarget.receive import Reception
from masttarget.retention import Policy, Retention


class Master:
    """A master target that listens. `run` serves; `stop`, from any thread or a signal, ends it in order."""

    def __init__(
        self,
        config: MasttargetConfig,
        log: Log,
        store: TargetStore | None = None,
        *,
        listening: socket.socket | None = None,
        first: Pipe | None = None,
    ) -> None:
        """`listening` is a socket that listens already, in place of the settings' host and port.

        `first` is a connection that is there already.
        """
        clock = SystemClock()
        shared = read_key_file(config.key_file)
        self._log = log
        self._once = False
        self._idle = threading.Event()
        retention = None
        self._closing = ExitStack()
        if config.retention is not None:
            if config.retention_own_volume:
                from masttarget import volume
                from masttarget.adapters.volumes import claim, volume_of

                volume.check(volume_of(config.retention, config))
                self._closing.callback(claim(config.retention, {disk.item.bytes for disk in config.disks}))
            policy = Policy.of(
                config.retention_seconds, config.retention_ladder, verify_points=config.verify_points
            )
            retention = Retention(RetentionFiles(config.retention), clock, policy, log)
        self._listener = Listener(listening or listen(config.host, config.port), shared, clock, first)
        self._reception = Reception(
            config.disks,
            shared,
            store or LocalStore(config.state_directory),
            clock,
            os.urandom,
            log,
            self._session_ended,
            retention,
            GroupFiles(config.retention) if config.retention is not None else None,
        )
        if config.rpo_seconds is not None:
            self._watch(config, config.rpo_seconds, clock, retention)

    def _watch(
        self, config: MasttargetConfig, rpo_seconds: float, clock: SystemClock, retention: Retention | None
    ) -> None:
        """Somebody is told how every disk is doing: the log, and Prometheus where the settings name a port."""
        meters = self._reception.meters.values()
        if retention is not None:
            remember(meters, retention)
        watch = Watch(meters, clock, self._log, rpo_seconds)
        if config.metrics is not None:
            from masttarget.adapters.metrics import (
                MetricsPort,
            )  # here: its library is large, and few ask for it

            port = MetricsPort(watch, *config.metrics)
            self._closing.callback(port.close)
            self._log("metrics", url=f"http://{config.metrics[0]}:{port.port}/metrics")
        over = threading.Event()

        def tell() -> None:
            while not over.wait(PROGRESS_SECONDS):
                if retention is not None:
                    remember(meters, retention)
                watch.tell()

        thread = threading.Thread(target=tell, name="health", daemon=True)
        thread.start()
        self._closing.callback(thread.join)
        self._closing.callback(over.set)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that are really listened on."""
        return self._listener.address

    def run(self, *, once: bool = False) -> None:
        """Serves until `stop`; with `once`, until the first session has ended."""
        self._once = once
        self._listener.run(self._reception.serve)
        self._reception.stop(self._listener.join)
        self._closing.close()
        self._log("stopped")

    def stop(self) -> None:
        """No more connections; `run` closes every disk in order and returns."""
        self._listener.close()

    def _session_ended(self) -> None:
        if self._once:
            self.stop()


def check(config: MasttargetConfig, path: Path) -> None:
    """Every format that the settings name is one. Errors: `ConfigRefused` (HW-MT-014)."""
    names = {kind.value for kind in Format}
    for disk in config.disks:
        for name in (disk.format, disk.create):
            if name and name not in names:
                reason = f"{name!r} is no format; one of {', '.join(sorted(names))}"
                raise ConfigRefused(path=str(path), reason=reason)


def stop_on_signals(stop: Callable[[], None]) -> None:
    """SIGTERM and SIGINT end the role in order."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=stop, name="stop").start())


def stop_when_stdin_closes(stop: Callable[[], None]) -> None:
    """Whoever started the role has gone when its end of stdin closes."""

    def wait() -> None:
        # Not through sys.stdin: a thread that waits in its buffer makes the interpreter abort at its end.
        while os.read(sys.stdin.fileno(), 4096):
            pass
        stop()

    threading.Thread(target=wait, name="stdin", daemon=True).start()
