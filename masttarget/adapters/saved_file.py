"""Old content that is overwritten in this cycle and may still be referred to, in a file without a name."""

import os
from pathlib import Path

from drcore.limits import SAVED_BYTES_MAX
from drcore.units import BLOCK_BYTES

FREE_SHARE = 4
"""At most one in so many bytes that are free is used: the rest is the journal's and the operator's."""


class SavedFile:
    """See `masttarget.elsewhere.Rooms`. The file is gone when it is closed, or the process is."""

    def __init__(self, directory: Path, limit: int = SAVED_BYTES_MAX) -> None:
        import tempfile  # here: most syncs need no room

        self._file = -1
        self.count = 0
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = os.statvfs(directory)
            with tempfile.TemporaryFile(dir=directory) as file:
                self._file = os.dup(file.fileno())
        except OSError:
            return  # without rooms, content that is overwritten too early is sent
        self.count = min(limit, found.f_bavail * found.f_frsize // FREE_SHARE) // BLOCK_BYTES

    def write(self, offset: int, content: memoryview) -> bool:
        try:
            while content:
                done = os.pwrite(self._file, content, offset)
                offset, content = offset + done, content[done:]
        except OSError:  # no space any more
            return False
        return True

    def read(self, offset: int, into: memoryview) -> None:
        # What does not come, whatever the reason, is content that does not prove: it is sent.
        into[:] = bytes(len(into))
        try:
            os.preadv(self._file, [into], offset)
        except OSError:
            return

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
