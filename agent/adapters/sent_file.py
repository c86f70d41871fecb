"""The blocks that were sent, as a bitmap in a sparse file: eight bytes for each span."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from agent.errors import StateFailed
from drcore.limits import MIB

_ENTRY: Final = 8


class SentFile:
    """See `agent.ports.SentRecord`. Two files: `NAME.sent` of this run, `NAME.sent-before` of all earlier ones.

    Nothing is flushed: the kernel keeps what a killed process wrote, and after a crash of the machine the record only
    counts, it decides nothing.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._now = directory / f"{name}.sent"
        self._before = directory / f"{name}.sent-before"
        with self._failing():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fold()
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._descriptors = [os.open(path, flags, 0o600) for path in (self._now, self._before)]

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StateFailed(path=str(self._directory), reason=error.strerror or str(error)) from error

    def _fold(self) -> None:
        """What the last run sent is part of what was sent before."""
        if not self._now.exists():
            return
        if not self._before.exists():
            self._now.rename(self._before)
            return
        with self._now.open("rb") as now, self._before.open("r+b") as before:
            position = 0
            while piece := now.read(MIB):
                if any(piece):
                    before.seek(position)
                    old = before.read(len(piece)).ljust(len(piece), b"\0")
                    both = int.from_bytes(piece, "little") | int.from_bytes(old, "little")
                    before.seek(position)
                    before.write(both.to_bytes(len(piece), "little"))
                position += len(piece)
        self._now.unlink()

    def before(self, span: int, blocks: int) -> int:
        with self._failing():
            return int.from_bytes(os.pread(self._descriptors[1], _ENTRY, span * _ENTRY), "little") & blocks

    def mark(self, span: int, blocks: int) -> None:
        with self._failing():
            now = int.from_bytes(os.pread(self._descriptors[0], _ENTRY, span * _ENTRY), "little")
            if blocks & ~now:
                os.pwrite(self._descriptors[0], (now | blocks).to_bytes(_ENTRY, "little"), span * _ENTRY)

    def close(self) -> None:
        descriptors, self._descriptors = self._descriptors, []
        for descriptor in descriptors:
            os.close(descriptor)

    def remove(self) -> None:
        self.close()
        with self._failing():
            self._now.unlink(missing_ok=True)
            self._before.unlink(missing_ok=True)
