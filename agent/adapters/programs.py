"""The administrator's programs: without a shell, with a clean environment, within a time, their exit status heeded."""

import os
import select
import signal
import subprocess
import time
from contextlib import suppress
from typing import Final

from agent.errors import ScriptFailed

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SAID_BYTES: Final = 4096
_PIPE_BYTES: Final = 65536
"""What a pipe holds on Linux (pipe(7))."""
_TOLD_CHARACTERS: Final = 300
_POLL_SECONDS: Final = 0.05
_DEATH_SECONDS: Final = 1.0
"""A killed program ends within so long, unless it waits for a frozen file system; the thaw lets it end."""


class LocalPrograms:
    """See `agent.ports.Programs`. Of what a program prints the end is told where it fails; nothing is kept in a file,
    which might lie on a frozen file system."""

    def run(self, phase: str, program: tuple[str, ...], seconds: float, facts: dict[str, str]) -> None:
        deadline = time.monotonic() + seconds
        try:
            process = subprocess.Popen(
                program,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={"PATH": _PATH, "LANG": "C.UTF-8", **facts},
                cwd="/",
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise ScriptFailed(phase=phase, program=program[0], reason=str(error)) from error
        said, status = b"", None
        try:
            assert process.stdout is not None
            while status is None and time.monotonic() < deadline:
                said = (said + _heard(process.stdout.fileno()))[-_SAID_BYTES:]
                status = process.poll()
            # What it said last may still lie in the pipe, behind much else; a child that it left behind may go on.
            for _ in range(_PIPE_BYTES // _SAID_BYTES):
                more = _heard(process.stdout.fileno(), 0.0)
                said = (said + more)[-_SAID_BYTES:]
                if not more:
                    break
        finally:
            if status is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_DEATH_SECONDS)
            assert process.stdout is not None
            process.stdout.close()
        if status != 0:
            text = said.decode(errors="replace")
            words = (
                "".join(one if one.isprintable() or one == "\n" else " " for one in text).strip().splitlines()
            )
            told = f": {words[-1][:_TOLD_CHARACTERS]}" if words else ""
            how = f"no end after {seconds:.1f} seconds" if status is None else f"exit status {status}"
            raise ScriptFailed(phase=phase, program=program[0], reason=how + told)


def _heard(descriptor: int, seconds: float = _POLL_SECONDS) -> bytes:
    """What the program says within so long."""
    if not select.select([descriptor], [], [], seconds)[0]:
        return b""
    found = os.read(descriptor, _SAID_BYTES)
    if not found:
        time.sleep(seconds)  # it has closed its end and is still running
    return found
