"""A managed disk of Azure as a source: the fixed VHD in a page blob that a signed URL gives for reading.

Microsoft's own blob client asks for the list of all page ranges again with every download of a page blob, which on a
fragmented disk costs more than the read. So ranged GETs, the list and the properties go through azure-core's pipeline
alone (Azure REST API: Get Blob, Get Blob Properties, Get Page Ranges); a signed URL needs no more than that.
"""

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol

from disks import vhd_layout
from disks.disk import Extent, ExtentKind, Format
from disks.errors import ImageDamaged
from disks.errors_page_blob import PageBlobUnfit
from disks.image import check_range, check_writable, merged
from disks.page_blob_http import HttpBlob
from drcore.clock import Clock, SystemClock
from drcore.limits import (
    DISK_BYTES_MAX,
    PAGE_BLOB_READ_BYTES_MAX,
    PAGE_BLOB_READS_MAX,
    PAGE_LIST_WINDOW_BYTES,
)
from drcore.secret import Secret
from drcore.units import ByteCount

PAGE: Final = 512
FOOTER_BYTES: Final = vhd_layout.FOOTER_BYTES
PIECE_BYTES: Final = PAGE_BLOB_READ_BYTES_MAX
"""What is fetched ahead at once."""


class Blob(Protocol):
    """A page blob whose content is pinned: what is answered is of one state, or an error."""

    @property
    def name(self) -> str:
        """Its address without the signature."""
        ...

    @property
    def etag(self) -> str:
        """The state that all answers are of."""
        ...

    @property
    def length(self) -> int:
        """Bytes of the blob."""
        ...

    def read(self, offset: int, into: memoryview) -> None:
        """`into` holds the blob's bytes from `offset` on."""
        ...

    def page_ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """(start, end) of the pages that hold data in a range of whole pages, ascending; they may stick out of it."""
        ...

    def close(self) -> None:
        """Its connections are gone."""
        ...


class PageBlobDisk:
    """The content of a fixed VHD in a page blob; read only. Owns the blob; every verb may be called from any thread.

    Errors of `read` and `extents`: PageBlobUnreachable, PageBlobRefused, PageBlobChanged, PageBlobUnfit.
    """

    def __init__(self, blob: Blob, size: int) -> None:
        self._blob = blob
        self._size = size
        self._allocated: int | None = None
        self._lock = threading.Lock()
        self._end = -1
        self._ahead: dict[int, Future[bytearray]] = {}
        self._readers = ThreadPoolExecutor(PAGE_BLOB_READS_MAX, thread_name_prefix="page-blob")

    @property
    def format(self) -> Format:
        return Format.VHD_FIXED

    @property
    def size(self) -> ByteCount:
        return ByteCount(self._size)

    @property
    def grain_size(self) -> ByteCount | None:
        return None

    @property
    def path(self) -> Path:
        """The blob's address without its signature, for people; nothing lies there in the file system."""
        return Path(self._blob.name)

    @property
    def files(self) -> tuple[Path, ...]:
        return ()

    @property
    def disk_uuid(self) -> str | None:
        return None

    @property
    def change_mark(self) -> str | None:
        """The ETag: another one means that somebody wrote."""
        return self._blob.etag.strip('"')

    def read(self, offset: int, into: memoryview) -> None:
        check_range(self, offset, len(into))
        if len(into) <= PAGE_BLOB_READ_BYTES_MAX:
            if len(into) and not self._read_ahead(offset, into):
                self._blob.read(offset, into)
            return
        parts = range(0, len(into), PAGE_BLOB_READ_BYTES_MAX)
        running = [
            self._readers.submit(self._blob.read, offset + at, into[at : at + PAGE_BLOB_READ_BYTES_MAX])
            for at in parts
        ]
        try:
            for reading in running:
                reading.result()
        finally:
            # The caller's buffer is his own again when this returns, so nothing may write into it any more.
            for reading in running:
                if not reading.cancel():
                    reading.exception()

    def write(self, offset: int, data: memoryview) -> None:
        check_range(self, offset, len(data))
        check_writable(self, writable=False)

    def zero(self, offset: int, length: int) -> None:
        check_range(self, offset, length)
        check_writable(self, writable=False)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        check_range(self, offset, length)
        return merged(self._runs(offset, length))

    def flush(self) -> None:
        """Nothing is ever written, so nothing waits."""

    def allocated_bytes(self) -> ByteCount:
        if self._allocated is None:
            extents = self.extents(0, self._size)
            self._allocated = sum(extent.length for extent in extents if extent.kind is ExtentKind.DATA)
        return ByteCount(self._allocated)

    def close(self) -> None:
        self._readers.shutdown(cancel_futures=True)
        self._blob.close()

    def _read_ahead(self, offset: int, into: memoryview) -> bool:
        """Whether `into` was filled from pieces that are fetched before they are asked for.

        They are, as soon as reads follow one another; without that, each would wait for a whole round trip, and a scan
        of a disk in Azure would take as long as its round trips.
        """
        first, last = offset // PIECE_BYTES, (offset + len(into) - 1) // PIECE_BYTES
        with self._lock:
            follows, self._end = offset == self._end, offset + len(into)
            if not follows and first not in self._ahead:
                return False
            wanted = range(first, min(first + PAGE_BLOB_READS_MAX, -(-self._size // PIECE_BYTES)))
            for piece in [piece for piece in self._ahead if piece not in wanted]:
                self._ahead.pop(piece).cancel()
            for piece in wanted:
                if piece not in self._ahead:
                    self._ahead[piece] = self._readers.submit(self._piece, piece)
            coming = [(piece, self._ahead[piece]) for piece in range(first, last + 1) if piece in self._ahead]
        if len(coming) != last - first + 1:
            return False
        for piece, future in coming:
            begin = piece * PIECE_BYTES
            start, end = max(offset, begin), min(offset + len(into), begin + PIECE_BYTES)
            try:
                content = memoryview(future.result())
            except CancelledError:  # another reader has gone elsewhere meanwhile
                return False
            into[start - offset : end - offset] = content[start - begin : end - begin]
        return True

    def _piece(self, piece: int) -> bytearray:
        start = piece * PIECE_BYTES
        content = bytearray(min(PIECE_BYTES, self._size - start))
        self._blob.read(start, memoryview(content))
        return content

    def _runs(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """(offset, length, whether data); the list is asked for as the caller comes along."""
        at, end = offset, offset + length
        while at < end:
            first = at // PAGE * PAGE
            window = min((at // PAGE_LIST_WINDOW_BYTES + 1) * PAGE_LIST_WINDOW_BYTES, -(-end // PAGE) * PAGE)
            for start, stop in self._blob.page_ranges(first, window - first):
                start, stop = max(start, at), min(stop, end)
                if stop <= start:
                    continue
                if start > at:
                    yield at, start - at, False
                yield start, stop - start, True
                at = stop
            stop = min(window, end)
            if stop > at:
                yield at, stop - at, False
                at = stop


def open_page_blob(url: Secret, ca_file: Path | None = None, clock: Clock | None = None) -> PageBlobDisk:
    """The managed disk that the signed URL exports is open for reading, pinned to its state of now.

    `ca_file` holds the certificates to trust (PEM) instead of the system's. `clock` measures the pauses between
    attempts. Errors: PageBlobUnfit (no URL, no page blob, no fixed VHD), ImageDamaged (its footer),
    PageBlobRefused, PageBlobUnreachable, PageBlobNotTrusted, PageBlobPackageMissing.
    """
    blob = HttpBlob(url, ca_file, clock or SystemClock())
    try:
        blob.pin()
        return PageBlobDisk(blob, _virtual_size(blob))
    except BaseException:
        blob.close()
        raise


def _virtual_size(blob: Blob) -> int:
    """The footer's current size; raises PageBlobUnfit, ImageDamaged."""
    at = blob.length - FOOTER_BYTES
    if at < PAGE or at % PAGE:
        raise PageBlobUnfit(
            blob=blob.name, seen=f"a blob of {blob.length} bytes", wanted="whole pages and a footer"
        )
    raw = bytearray(FOOTER_BYTES)
    blob.read(at, memoryview(raw))
    if not raw.startswith(vhd_layout.COOKIE):
        raise PageBlobUnfit(
            blob=blob.name, seen=f"{bytes(raw[:8])!r} at the end", wanted="the footer of a fixed VHD"
        )
    return _footer_size(blob.name, bytes(raw), at)


def _footer_size(name: str, raw: bytes, at: int) -> int:
    """The current size in a footer found at `at`, checked; raises ImageDamaged.

    vhd_layout.decode_footer ends at the 2040 GiB of Virtual PC and Hyper-V, where the block table ends. A fixed image
    has none, and Azure exports disks up to 32 TiB in this form. Source as there, "Hard Disk Footer Format".
    """
    seen = [
        ("the footer's checksum", 64, int.from_bytes(raw[64:68], "big"), vhd_layout.checksum(raw, 64)),
        ("the disk type", 60, int.from_bytes(raw[60:64], "big"), int(vhd_layout.DiskType.FIXED)),
    ]
    for structure, place, found, wanted in seen:
        if found != wanted:
            raise ImageDamaged(
                path=name, structure=structure, offset=at + place, seen=str(found), wanted=str(wanted)
            )
    size = int.from_bytes(raw[48:56], "big")
    if size % PAGE or not 0 < size <= min(at, DISK_BYTES_MAX):
        raise ImageDamaged(
            path=name, structure="the current size", offset=at + 48, seen=str(size),
            wanted=f"whole sectors, at most {min(at, DISK_BYTES_MAX)} bytes",
        )  # fmt: skip
    return size
