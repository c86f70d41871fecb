"""What a source's files or device show when somebody writes to them."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path


class LocalMark:
    """See `agent.ports.SourceMark`. Files: size and times; devices: the sectors written since the machine started.

    `files` are all that the source consists of, extents and parents included.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = tuple(files)

    def __call__(self) -> str:
        return "; ".join(self._one(path, path.stat()) for path in self._files)

    def _one(self, path: Path, status: os.stat_result) -> str:
        if stat.S_ISBLK(status.st_mode):
            return self._device(status.st_rdev)
        return f"{path.name}: {status.st_size} bytes, modified {status.st_mtime_ns} ns, changed {status.st_ctime_ns} ns"

    def _device(self, number: int) -> str:
        try:
            text = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat").read_text()
            return f"{int(text.split()[6])} sectors written"
        except (OSError, ValueError, IndexError):
            return ""
