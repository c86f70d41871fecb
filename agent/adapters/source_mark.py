"""What a source's files or device show when somebody writes to them."""

import os
import stat
from pathlib import Path


class LocalMark:
    """See `agent.ports.SourceMark`. Files: size and times; devices: the sectors written since the machine started."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self) -> str:
        status = self._path.stat()
        if stat.S_ISBLK(status.st_mode):
            return self._device(status.st_rdev)
        # A VMDK descriptor's extents are named after it and lie beside it.
        extents = sorted(self._path.parent.glob(f"{self._path.stem}-*{self._path.suffix}"))
        return "; ".join(self._file(path) for path in (self._path, *extents))

    def _device(self, number: int) -> str:
        try:
            text = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat").read_text()
            return f"{int(text.split()[6])} sectors written"
        except (OSError, ValueError, IndexError):
            return ""

    def _file(self, path: Path) -> str:
        status = path.stat()
        return f"{path.name}: {status.st_size} bytes, modified {status.st_mtime_ns} ns, changed {status.st_ctime_ns} ns"
