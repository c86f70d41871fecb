"""Wires the agent: settings, key, source disks, connection; runs one cycle, again where a broken connection allows."""

import os
import secrets
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

from agent.adapters.sent_file import SentFile
from agent.adapters.source_mark import LocalMark
from agent.adapters.tcp import TcpConnect
from agent.config import AgentConfig
from agent.errors import MasttargetUnreachable
from agent.ports import Connect
from agent.sync import Progress, Sync, SyncDisk, SyncPorts, SyncReport
from disks import catalogue
from disks.digestmap import DigestMap
from drcore.clock import Clock, SystemClock
from drcore.errors import HomewardError, Retry
from drcore.secret import read_key_file
from wireproto.handshake import DiskOffer

BACKOFF_SECONDS: Final = (1.0, 2.0, 5.0, 10.0, 30.0)


class Agent:
    """One cycle of the item that the settings name. `stop` may be called from any thread or a signal handler."""

    def __init__(
        self,
        config: AgentConfig,
        on_retry: Callable[[HomewardError, float], None],
        clock: Clock | None = None,
        *,
        connect: Connect | None = None,
    ) -> None:
        """`connect` reaches a master target that is not behind the settings' host and port."""
        self._config = config
        self._connect = connect or TcpConnect(config.host, config.port)
        self._on_retry = on_retry
        self._clock = clock or SystemClock()
        self._current: Sync | None = None
        self._stopped = False

    @property
    def progress(self) -> Progress:
        """Where the current run stands."""
        return self._current.standing() if self._current is not None else Progress()

    def stop(self) -> None:
        """`run` ends with `Stopped` (HW-AGENT-007) as soon as it can."""
        self._stopped = True
        if self._current is not None:
            self._current.stop()

    def run(self) -> SyncReport:
        """The point is published. A connection that breaks is made again, as often as the settings allow.

        Errors: `Stopped`, `SourceChanged`, `MasttargetUnreachable`, `ConnectionLost`, `PeerReported`, and those of the
        disks.
        """
        config = self._config
        shared = read_key_file(config.key_file)
        ports = SyncPorts(self._connect, self._clock, os.urandom, shared)
        point = secrets.token_bytes(16)
        attempt, reached = 0, False
        while True:
            with ExitStack() as stack:
                disks = [self._open(stack, index) for index in range(len(config.disks))]
                self._current = Sync(config, disks, ports, point)
                if self._stopped:
                    self._current.stop()
                try:
                    report = self._current.run()
                except HomewardError as error:
                    # Once it was reached, a master target that is away is one that restarts.
                    reached = reached or not isinstance(error, MasttargetUnreachable)
                    again = error.retry is Retry.RECONNECT or (
                        isinstance(error, MasttargetUnreachable) and reached
                    )
                    if not again or attempt >= config.reconnects or self._stopped:
                        raise
                    wait = BACKOFF_SECONDS[min(attempt, len(BACKOFF_SECONDS) - 1)]
                    attempt += 1
                    self._on_retry(error, wait)
                else:
                    for disk in disks:
                        disk.sent.remove()
                    return report
            self._clock.sleep(wait)

    def _open(self, stack: ExitStack, index: int) -> SyncDisk:
        config = self._config.disks[index]
        mark = LocalMark(config.path)
        disk = catalogue.open_source(config.path, config.format)
        first_mark = mark()
        stack.callback(disk.close)
        sent = SentFile(self._config.state_directory, config.disk.hex)
        stack.callback(sent.close)
        digests = DigestMap(disk.size, self._config.state_directory)
        stack.callback(digests.close)
        return SyncDisk(
            DiskOffer(config.disk.bytes, disk.size), str(config.path), disk, digests, sent, mark, first_mark
        )
