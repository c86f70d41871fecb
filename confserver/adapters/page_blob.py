"""An Azure disk behind a signed URL: a page blob that holds a fixed VHD, read in its data ranges only."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from confserver.errors import BlobUnreadable
from drcore.limits import MIB
from drcore.units import BLOCK_BYTES, parts

FOOTER_BYTES: Final = 512
"""A fixed VHD is the disk followed by its footer (VHD specification 1.0, Hard Disk Footer Format)."""
PIECE_BYTES: Final = 4 * MIB
"""One request: enough to hide a round trip, little enough to hold."""
READ_SECONDS_MAX: Final = 60


class PageBlob:
    """See the module. `size` is that of the disk. Errors: `BlobUnreadable` (HW-CONF-018), never with the URL."""

    def __init__(self, disk: str, url: str, certificate: Path | None) -> None:
        # Imported here: 0.3 s that only a final point needs.
        from azure.storage.blob import BlobClient

        self._disk = disk
        self._client = BlobClient.from_blob_url(
            # A signed URL hides itself from str(); this is the text.
            str.__str__(url),
            connection_verify=str(certificate) if certificate else True,
            connection_timeout=READ_SECONDS_MAX,
            read_timeout=READ_SECONDS_MAX,
            logging_enable=False,
        )
        with self._failing():
            self.size = int(self._client.get_blob_properties().size) - FOOTER_BYTES

    @contextmanager
    def _failing(self) -> Iterator[None]:
        from azure.core.exceptions import AzureError

        try:
            yield
        except AzureError as error:
            status = getattr(error, "status_code", None)
            code = getattr(error, "error_code", None) or type(error).__name__
            raise BlobUnreadable(disk=self._disk, reason=f"{code}, status {status}") from None

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """(offset, content) of everything that may not be zero, ascending, in whole blocks but the disk's last."""
        done = 0
        for start, end in self._runs():
            start = max(start, done)
            while start < end:
                stop = min(end, start + PIECE_BYTES)
                with self._failing():
                    yield start, bytes(self._client.download_blob(start, stop - start).readall())
                start = done = stop

    def _runs(self) -> Iterator[tuple[int, int]]:
        with self._failing():
            ranges = [
                (int(found.start or 0), int(found.end or 0) + 1)
                for found in self._client.list_page_ranges()
                if not found.cleared and int(found.start or 0) < self.size
            ]
        for start, end in ranges:
            yield start // BLOCK_BYTES * BLOCK_BYTES, min(parts(end, BLOCK_BYTES) * BLOCK_BYTES, self.size)

    def close(self) -> None:
        """Its connections are closed."""
        self._client.close()
