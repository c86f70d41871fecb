"""The master target of a local sync: a child of this process, forked rather than started anew.

A fork has everything that is imported already, where a new interpreter would need 0.2 s to get as far. The child is
forked before this process has a second thread. The first connection is memory that both have (`shared_pipe`); for
further ones it listens on a socket of its own name space (unix(7), abstract), which moves a byte for a third of what
TCP on the loopback device takes. What crosses either is sealed all the same.
"""

import gc
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

import disks.catalogue  # noqa: F401 - what both roles need is imported once, before the fork
import wireproto.link  # noqa: F401
from drcore.errors import coded
from homeward.logs import log_to_stderr
from homeward.shared_pipe import SharedPipe, SharedPipes
from masttarget.config import MasttargetConfig
from masttarget.ports import Log

_BACKLOG: Final = 128
_SAID_BYTES_MAX: Final = 65536


class ForkedMasttarget:
    """A master target that serves one session and ends with it, or when this process is gone."""

    def __init__(self, config: MasttargetConfig, log: Path) -> None:
        """It runs. `log` receives what it has to tell."""
        self._status: int | None = None
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("")  # an empty name: the kernel gives one that nobody has
            listening.listen(_BACKLOG)
            self.address: bytes = listening.getsockname()
            stdin, self._alive = os.pipe()
            self._said, stdout = os.pipe()
            self._events, events = os.pipe()
            stderr = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            sys.stdout.flush()
            sys.stderr.flush()
            self._pipes = SharedPipes()
            gc.freeze()  # what is there stays: a search for cycles in the child would only copy its pages
            self.process = os.fork()
            if self.process == 0:
                os.close(self._alive)
                os.close(self._said)
                os.close(self._events)
                _serve(config, listening, self._pipes.keep(1), (stdin, stdout, stderr), events)
            for descriptor in (stdin, stdout, stderr, events):
                os.close(descriptor)
        self.pipe = self._pipes.keep(0)
        """The first connection to it."""
        self._ended = os.pidfd_open(self.process)

    def events(self) -> Iterator[str]:
        """The names of the events that it logs, as they come, until it has ended."""
        with os.fdopen(self._events, encoding="utf-8") as lines:
            for line in lines:
                yield line.rstrip("\n")

    def said(self) -> dict[str, Any] | None:
        """The error with which it ended, as `HomewardError.as_json` gives it; None where it said nothing."""
        try:
            found: dict[str, Any] = json.loads(os.read(self._said, _SAID_BYTES_MAX))
        except ValueError:
            return None
        return found

    def end(self, seconds_max: float) -> int:
        """It has flushed, tidied up and ended, or was killed after `seconds_max`; its status as a process has it."""
        if self._alive >= 0:
            os.close(self._alive)
            self._alive = -1
        if self._status is None:
            if not self.ended(seconds_max):
                os.kill(self.process, signal.SIGKILL)
            _, status = os.waitpid(self.process, 0)
            self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def ended(self, seconds: float) -> bool:
        """Whether it has ended, waiting so long for it. Nothing polls: the kernel wakes us."""
        return bool(select.select([self._ended], [], [], seconds)[0])

    def close(self) -> None:
        """The descriptors are given back; `end` was called, and `events` came to its end."""
        os.close(self._said)
        os.close(self._ended)
        self._pipes.give_back()


def _telling(log: Log, events: int) -> Log:
    """A log that also tells the parent every event's name; who cannot hear it now, misses it."""
    os.set_blocking(events, False)

    def both(event: str, /, **facts: object) -> None:
        log(event, **facts)
        with suppress(OSError):
            os.write(events, f"{event}\n".encode())

    return both


def _serve(
    config: MasttargetConfig,
    listening: socket.socket,
    pipe: SharedPipe,
    standard: tuple[int, int, int],
    events: int,
) -> NoReturn:
    """The child's whole life. It ends here: what the parent has still to do is not for its copy to do again."""
    status = 1
    try:
        # Here, not above: while the child imports its role, the parent imports its own.
        from masttarget.main import Master, stop_on_signals, stop_when_stdin_closes

        os.setsid()  # Ctrl-C reaches the parent only, which stops both in order
        for number, descriptor in enumerate(standard):
            os.dup2(descriptor, number)
        try:
            master = Master(config, _telling(log_to_stderr(), events), listening=listening, first=pipe)
            stop_on_signals(master.stop)
            stop_when_stdin_closes(master.stop)
            master.run(once=True)
            status = 0
        except Exception as error:
            os.write(1, json.dumps(coded(error).as_json()).encode())
            status = 2
    except BaseException:
        import traceback

        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)
