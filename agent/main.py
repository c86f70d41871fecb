"""Wires the agent: settings, key, source disks, connection; runs one cycle, again where a broken connection allows."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from agent.adapters.sent_file import SentFile
from agent.adapters.source_mark import LocalMark
from agent.config import AgentConfig, SourceConfig
from agent.errors import MasttargetUnreachable, Stopped
from agent.ports import Connect, Quiesce, SourceMark, StillSource
from agent.report import Progress, SyncReport
from agent.sync import Sync, SyncDisk, SyncPorts
from disks import catalogue
from disks.digestmap import DigestMap
from disks.image import Image
from drcore.clock import Clock, SystemClock
from drcore.errors import HomewardError, Retry
from drcore.secret import read_key_file
from wireproto.handshake import DiskOffer

if TYPE_CHECKING:  # a plain sync needs neither
    from agent.quiesce import Stand
    from disks.content import DiskContent

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
        quiesce: Quiesce | None = None,
        on_warning: Callable[[HomewardError], None] | None = None,
    ) -> None:
        """`connect` reaches a master target that is not behind the settings' host and port.

        `quiesce` makes the sources stand still for a common point; without it nothing writes to them. `on_warning` is
        told why a point is crash-consistent that should have been app-consistent.
        """
        self._on_warning = on_warning or (lambda error: None)
        self._quiesce = quiesce or StillSource()
        self._config = config
        self._connect = connect or _tcp(config)
        self._on_retry = on_retry
        self._clock = clock or SystemClock()
        self._current: Sync | None = None
        self._stopped = False
        self._proved = Progress()

    @property
    def progress(self) -> Progress:
        """Where the current run stands; of `prove`, what was read."""
        return self._current.standing() if self._current is not None else self._proved

    def stop(self) -> None:
        """`run` ends with `Stopped` (HW-AGENT-007) as soon as it can."""
        self._stopped = True
        if self._current is not None:
            self._current.stop()

    def set_bandwidth(self, rate: int | None) -> None:
        """From now on at most so many bytes a second go out, all lanes together; a run that is under way heeds it."""
        self._config = self._config.but(bandwidth=rate)
        if self._current is not None:
            self._current.set_bandwidth(rate)

    def run(self) -> SyncReport:
        """The point is published. A connection that breaks is made again, as often as the settings allow.

        Errors: `Stopped`, `SourceChanged`, `MasttargetUnreachable`, `ConnectionLost`, `PeerReported`, those of the
        disks, `ScriptFailed` (HW-AGENT-011) without a snapshot.
        """
        stand = self._stand()
        if stand is None:
            return self._run(app_consistent=False)
        try:
            report = self._run(app_consistent=stand.begin())
            stand.published()
            return report
        finally:
            stand.end()

    def _stand(self) -> "Stand | None":
        """What makes the snapshot that is read, where the settings ask for one."""
        config = self._config
        if config.quiesce is None:
            return None
        from agent.adapters.freezer import LinuxFreezer
        from agent.adapters.last_time import LastTimeFile
        from agent.adapters.programs import LocalPrograms
        from agent.quiesce import Stand

        last = LastTimeFile(config.state_directory / f"{config.item.hex}.app-consistent")
        own = (config.state_directory,)
        return Stand(
            config.quiesce,
            str(config.item),
            own,
            LocalPrograms(),
            LinuxFreezer(),
            last,
            self._clock,
            self._on_warning,
        )

    def _run(self, *, app_consistent: bool) -> SyncReport:
        config = self._config
        shared = read_key_file(config.key_file)
        ports = SyncPorts(self._connect, self._clock, os.urandom, shared, self._quiesce, app_consistent)
        point = os.urandom(16)
        attempt, reached = 0, False
        while True:
            with ExitStack() as stack:
                disks = [self._open(stack, index) for index in range(len(config.disks))]
                self._current = Sync(self._config, disks, ports, point)
                if self._stopped:
                    self._current.stop()
                try:
                    report = self._current.run()
                except HomewardError as error:
                    point = (
                        self._current.point
                    )  # of a group, whose word that it is published may have been lost
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
                    return report.but(app_consistent=app_consistent)
            self._clock.sleep(wait)

    def prove(self) -> "tuple[DiskContent, ...]":
        """The content root of every source, read again in full; nothing is sent and no master target is asked.

        Errors: `Stopped`, those of the disks.
        """
        from disks.content import DiskContent, read_root

        config = self._config
        found: list[DiskContent] = []
        with ExitStack() as stack:
            opened = [(disk.disk, self._source(disk)[0]) for disk in config.disks]
            for _, image in opened:
                stack.callback(image.close)
            self._proved = Progress(total_bytes=sum(image.size for _, image in opened))
            for disk, image in opened:
                before = sum(each.size for each in found)

                def on_bytes(position: int, before: int = before) -> None:
                    if self._stopped:
                        raise Stopped()
                    self._proved.scanned_bytes = before + position

                found.append(DiskContent(disk.hex, image.size, read_root(image, image.size, on_bytes)))
        return tuple(found)

    def _source(self, config: SourceConfig) -> tuple[Image, SourceMark]:
        """The source, open for reading, and what tells whether somebody writes to it."""
        if config.url is not None:
            from disks.page_blob import (
                open_page_blob,
            )  # here: what speaks HTTP is nothing that others wait for

            blob = open_page_blob(config.url, self._config.blob_ca_file, self._clock)
            return blob, lambda: blob.change_mark or ""
        assert config.path is not None
        disk = catalogue.open_source(config.path, config.format)
        return disk, LocalMark(disk.files)

    def _open(self, stack: ExitStack, index: int) -> SyncDisk:
        config = self._config.disks[index]
        disk, mark = self._source(config)
        stack.callback(disk.close)
        first_mark = mark()
        sent = SentFile(self._config.state_directory, config.disk.hex)
        stack.callback(sent.close)
        digests = DigestMap(disk.size, self._config.state_directory)
        stack.callback(digests.close)
        return SyncDisk(
            DiskOffer(config.disk.bytes, disk.size), str(disk.path), disk, digests, sent, mark, first_mark
        )


def _tcp(config: AgentConfig) -> Connect:
    """How to reach a master target on another machine."""
    from agent.adapters.tcp import TcpConnect

    return TcpConnect(config.host, config.port)
