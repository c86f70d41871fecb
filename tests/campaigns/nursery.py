"""Processes of `dying` that are born at once: forked from one that has loaded all that they need.

Most of a short process' life is the loading of its modules, which no campaign is about. `python -m
tests.campaigns.nursery FD` has loaded them; it has one thread and opens nothing. Each message on the socket FD is the
words of a process that is to be born, with its standard output, its standard error and a socket on which the nursery
tells its process descriptor and then how it ended. The child runs and ends as a process that was started by itself
does: it leaves the loop, and the interpreter's usual end follows. When the socket is closed all children die.
"""

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

_WORDS_BYTES_MAX = 8192
_STATUS_BYTES = 4


class Nursling:
    """A child of the nursery, with as much of Popen's words as a campaign uses."""

    def __init__(self, nursery: socket.socket, words: tuple[str, ...]) -> None:
        reading, writing = os.pipe()
        errors = os.memfd_create("errors")
        self._end, there = socket.socketpair()
        try:
            socket.send_fds(nursery, [json.dumps(words).encode()], [writing, errors, there.fileno()])
        finally:
            os.close(writing)
            there.close()
        self.stdout: IO[str] = os.fdopen(reading)
        self._errors: IO[str] = os.fdopen(errors)
        _, (self._process,), _, _ = socket.recv_fds(self._end, 1, 1)
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """How it ended; TimeoutExpired when it did not within that time."""
        if self.returncode is None:
            self._end.settimeout(timeout)
            try:
                told = self._end.recv(_STATUS_BYTES, socket.MSG_WAITALL)
            except TimeoutError:
                raise subprocess.TimeoutExpired("a child of the nursery", timeout or 0.0) from None
            assert len(told) == _STATUS_BYTES, "the nursery is gone"
            self.returncode = int.from_bytes(told, "little", signed=True)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """It has ended, and everything that it held here is closed; what it said since the last line that was read."""
        self.wait(timeout)
        with self.stdout, self._errors, self._end:
            os.close(self._process)
            self._errors.seek(0)
            return self.stdout.read(), self._errors.read()

    def send_signal(self, number: signal.Signals) -> None:
        """It got the signal, unless it has ended."""
        if self.returncode is None:
            try:
                signal.pidfd_send_signal(self._process, number)
            except ProcessLookupError:
                return

    def kill(self) -> None:
        """It dies."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """It is asked to end."""
        self.send_signal(signal.SIGTERM)


Birth = Callable[..., Nursling]
"""A process with these words is born."""


@contextmanager
def nursery() -> Iterator[Birth]:
    """Within it, processes of `dying` are born at once; with it they end."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here:
        with there:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.campaigns.nursery", str(there.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[there.fileno()],
            )
        try:
            yield lambda *words: Nursling(here, words)
        finally:
            here.close()
            assert process.wait() == 0, "the nursery died"


class _Loop:
    """The nursery's own side."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, tuple[int, socket.socket]] = {}
        """By their process descriptors: process id, and where to tell how it ended."""

    def run(self) -> list[str] | None:
        """In a child: its words. In the nursery: None, once nobody is there any more who could ask."""
        while True:
            ready, _, _ = select.select([self._control, *self._children], [], [])
            for descriptor in ready:
                if descriptor is not self._control:
                    self._bury(descriptor)
                    continue
                words, given, _, _ = socket.recv_fds(self._control, _WORDS_BYTES_MAX, 3)
                if not words:
                    self._end()
                    return None
                if not self._bear(given):
                    return [str(word) for word in json.loads(words)]

    def _bear(self, given: list[int]) -> bool:
        """A child is born; False within it."""
        told = socket.socket(fileno=given[2])
        child = os.fork()
        if child == 0:
            os.dup2(given[0], 1)
            os.dup2(given[1], 2)
            for descriptor in (*given[:2], *self._children):
                os.close(descriptor)
            for _, other in self._children.values():
                other.close()
            told.close()
            self._control.close()
            return False
        for descriptor in given[:2]:
            os.close(descriptor)
        process = os.pidfd_open(child)
        self._children[process] = (child, told)
        _tell(lambda: socket.send_fds(told, [b"\n"], [process]))
        return True

    def _bury(self, process: int) -> None:
        """The child has ended, and that was told."""
        child, told = self._children.pop(process)
        os.close(process)
        _, status = os.waitpid(child, 0)
        ended = os.waitstatus_to_exitcode(status).to_bytes(_STATUS_BYTES, "little", signed=True)
        with told:
            _tell(lambda: told.sendall(ended))

    def _end(self) -> None:
        for process, (child, _) in self._children.items():
            signal.pidfd_send_signal(process, signal.SIGKILL)
            os.waitpid(child, 0)


def _tell(saying: Callable[[], object]) -> None:
    """It was said, if anybody listens."""
    try:
        saying()
    except (BrokenPipeError, ConnectionResetError):
        return


def main() -> int:
    """See the module."""
    from tests.campaigns import dying

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who began us ends us
    assert threading.active_count() == 1, "a fork takes one thread along"
    gc.collect()
    gc.freeze()
    words = _Loop(socket.socket(fileno=int(sys.argv[1]))).run()
    if words is None:
        return 0
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv[1:] = words
    return dying.main()


if __name__ == "__main__":
    sys.exit(main())
