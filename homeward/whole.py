"""`sync --create` of a format that is written whole: the source is read once, the new file read back and compared."""

import contextlib
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.errors import Stopped
from agent.report import DiskReport, SyncReport
from disks import catalogue
from disks.digestmap import DigestMap
from disks.disk import Disk, Format
from disks.errors_vmdk import WrittenOtherwise
from disks.scan import scan
from drcore.units import BLOCK_BYTES, DIGEST_BYTES, SECTOR_BYTES, ZERO_DIGEST, parts

WRITTEN_WHOLE = (Format.VMDK_STREAM_OPTIMIZED,)
SECRET_BYTES = 192


@dataclass(slots=True)
class WholeSync:
    """One such run. Nothing goes over a socket, nothing is resumed: a broken run leaves no file."""

    source: Path
    source_format: Format | None
    target: Path
    bytes_done: int = 0
    bytes_total: int = 0
    _stopped: bool = False

    def stop(self) -> None:
        """The run ends with `Stopped` as soon as it can."""
        self._stopped = True

    def run(self) -> SyncReport:
        """The target exists, durable, and reads as the source.

        Errors: those of opening and reading the source, of creating the target, WrittenOtherwise (HW-DISKS-056).
        """
        source = catalogue.open_source(self.source, self.source_format)
        with contextlib.closing(source), tempfile.TemporaryDirectory() as scratch:
            # The source is read twice (to write, to compare), the target once.
            self.bytes_total = 3 * source.size
            secret = secrets.token_bytes(SECRET_BYTES)
            found: list[DigestMap] = []

            def verify(written: Disk) -> None:
                for number, disk in enumerate((source, written), 1):
                    found.append(DigestMap(source.size, Path(scratch)))
                    self._scan(disk, found[-1], secret, number * source.size)
                roots = [digests.root().hex() for digests in found]
                if roots[0] != roots[1]:
                    raise WrittenOtherwise(
                        path=str(self.target),
                        source=str(self.source),
                        found_root=roots[1],
                        source_root=roots[0],
                    )

            try:
                catalogue.write_whole(self.target, source, self._reached, verify)
                return self._report(source.size, found[0])
            finally:
                for digests in found:
                    digests.close()

    def _reached(self, position: int) -> None:
        if self._stopped:
            raise Stopped()
        self.bytes_done = position

    def _scan(self, disk: Disk, digests: DigestMap, secret: bytes, before: int) -> None:
        for _ in scan(disk, digests, secret, lambda position: self._reached(before + position)):
            pass

    def _report(self, size: int, digests: DigestMap) -> SyncReport:
        blocks = sum(_data_blocks(digests))
        content = min(blocks * BLOCK_BYTES, size)
        disk = DiskReport(
            disk="",
            virtual_size=size,
            blocks_sent=blocks,
            sectors_sent=parts(content, SECTOR_BYTES),
            content_bytes=content,
            bytes_resent=0,
            root=digests.root(),
            target_bytes=parts(size, 512) * 512,
        )
        return SyncReport((disk,), 0, 0, resumed=False, point=b"")


def _data_blocks(digests: DigestMap) -> Iterator[int]:
    """How many blocks of each window hold something."""
    for window in digests.windows():
        if window.count(0) != len(window):
            yield sum(
                window[at : at + DIGEST_BYTES] != ZERO_DIGEST for at in range(0, len(window), DIGEST_BYTES)
            )
