"""Freezes file systems, and has another process see to it that they thaw, whatever becomes of this one.

linux/fs.h: FIFREEZE, FITHAW. Freezing writes everything out and lets every writer wait. The watcher (`thaw.py`) thaws
when the time is over, also while this process itself waits for a frozen file system, and when its pipe closes.
"""

import errno
import fcntl
import os
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from agent.adapters.thaw import FITHAW
from agent.errors import FreezeFailed, FreezeRefused

FIFREEZE: Final = 0xC0045877
_END_SECONDS: Final = 5.0


class LinuxFreezer:
    """See `agent.ports.Freezer`."""

    def __init__(self) -> None:
        self._mounts: list[tuple[Path, int]] = []
        self._frozen: list[tuple[Path, int]] = []
        self._watcher: subprocess.Popen[bytes] | None = None

    def check(self, mounts: tuple[Path, ...], own: tuple[Path, ...]) -> None:
        places = [(str(path), _existing(path).stat().st_dev) for path in own]
        for number, name in ((1, "standard output"), (2, "standard error")):
            with suppress(OSError):
                status = os.fstat(number)
                if stat.S_ISREG(status.st_mode):
                    places.append((f"the agent's {name}", status.st_dev))
        for mount in mounts:
            if not os.path.ismount(mount):
                raise FreezeRefused(mount=str(mount), reason="no file system is mounted there")
            for name, device in places:
                if mount.stat().st_dev == device:
                    raise FreezeRefused(
                        mount=str(mount), reason=f"{name} lies on it, so the agent would wait for itself"
                    )

    def freeze(self, mounts: tuple[Path, ...], seconds: float) -> None:
        if not mounts:
            return
        try:
            self._mounts = [
                (mount, os.open(mount, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) for mount in mounts
            ]
            self._watch(seconds)
        except OSError as error:
            raise FreezeFailed(
                mount=str(error.filename or mounts[0]), reason=error.strerror or str(error)
            ) from error
        for number, (mount, descriptor) in enumerate(self._mounts):
            self._tell(f"+{number}")  # before: should this process die in between, it is thawed all the same
            try:
                fcntl.ioctl(descriptor, FIFREEZE, 0)
            except OSError as error:
                if error.errno == errno.EBUSY:
                    self._tell(f"-{number}")  # somebody else froze it, and will thaw it
                raise FreezeFailed(mount=str(mount), reason=error.strerror or str(error)) from error
            self._frozen.append((mount, descriptor))

    def thaw(self) -> str:
        early = ""
        for mount, descriptor in reversed(self._frozen):
            try:
                fcntl.ioctl(descriptor, FITHAW, 0)
            except OSError:  # EINVAL: it was not frozen any more
                early = str(mount)
        for _, descriptor in self._mounts:
            os.close(descriptor)
        self._mounts, self._frozen = [], []
        if self._watcher is not None:
            self._end(self._watcher)
            self._watcher = None
        return early

    def _watch(self, seconds: float) -> None:
        """The watcher runs and has every mount open."""
        program = Path(__file__).with_name("thaw.py")
        paths = [str(mount) for mount, _ in self._mounts]
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", str(program), str(seconds), *paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            start_new_session=True,  # Ctrl-C is for the agent alone
        )
        assert self._watcher.stdout is not None
        if self._watcher.stdout.readline() != b"ready\n":
            raise OSError(errno.ECHILD, "the process that would thaw it did not start", paths[0])

    def _tell(self, word: str) -> None:
        assert self._watcher is not None
        assert self._watcher.stdin is not None
        try:
            os.write(self._watcher.stdin.fileno(), f"{word}\n".encode())
        except OSError as error:
            mount = str(self._mounts[0][0])
            raise FreezeFailed(mount=mount, reason="the process that would thaw it is gone") from error

    def _end(self, watcher: "subprocess.Popen[bytes]") -> None:
        assert watcher.stdin is not None
        assert watcher.stdout is not None
        with suppress(OSError):
            watcher.stdin.close()
        try:
            watcher.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            watcher.kill()
            watcher.wait()
        watcher.stdout.close()


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
