"""The calls of the blob service: one pinned page blob behind a signed URL, tried again within limits, never shown.

The URL is a key. It stands in no error, and foreign errors, whose text may hold it, are never chained to ours.
"""

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import SplitResult, quote, urlsplit
from xml.etree import ElementTree

from disks.errors_page_blob import (
    PageBlobChanged,
    PageBlobNotTrusted,
    PageBlobPackageMissing,
    PageBlobRefused,
    PageBlobUnfit,
    PageBlobUnreachable,
)
from drcore.clock import Clock
from drcore.errors import HomewardError
from drcore.limits import (
    KIB,
    PAGE_BLOB_ATTEMPTS_MAX,
    PAGE_BLOB_PAUSE_SECONDS_MAX,
    PAGE_LIST_BYTES_MAX,
)
from drcore.secret import Secret

if TYPE_CHECKING:
    from azure.core.rest import HttpResponse

SERVICE_VERSION: Final = "2020-10-02"
"""The first version of the service whose page lists come in pages (Azure REST API, Get Page Ranges)."""
CONNECT_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 60.0
PAUSE_SECONDS: Final = 0.5
RECEIVE_BYTES: Final = 256 * KIB
PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
CHANGED: Final = 412
SIGNATURE: Final = re.compile(r"(\bsig=)[^&\s\"'\\)]+", re.IGNORECASE)
CODE: Final = re.compile(r"[A-Za-z0-9]{1,64}")
TALKATIVE: Final = ("urllib3.connectionpool", "urllib3.util.retry")
"""Loggers that write whole URLs at their lower levels."""

T = TypeVar("T")


class SignatureFilter(logging.Filter):
    """No signature leaves with a record of the loggers that carry this filter."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = SIGNATURE.sub(r"\1***", record.getMessage()), ()
        return True


_FILTER: Final = SignatureFilter()


@dataclass(frozen=True, slots=True)
class Call:
    """One call: what it asks for, in words and in HTTP."""

    place: str
    method: str = "GET"
    query: str = ""
    byte_range: tuple[int, int] | None = None
    """First byte and the byte behind the last."""


@dataclass(frozen=True, slots=True)
class Again:
    """An attempt failed in a way that may pass: why, and how long the service asks to wait."""

    reason: str
    pause_seconds: float | None = None


class HttpBlob:
    """A page blob by its signed URL. `pin` comes first. Every verb may be called from any thread."""

    def __init__(self, url: Secret, ca_file: Path | None, clock: Clock) -> None:
        """Errors: PageBlobUnfit, PageBlobNotTrusted, PageBlobPackageMissing; nothing is sent yet."""
        parts = _split(url)
        self.name: Final = f"{parts.scheme}://{parts.netloc}{parts.path}"
        self.etag = ""
        self.length = 0
        self._url: Final = url
        self._clock: Final = clock
        for logger in TALKATIVE:
            logging.getLogger(logger).addFilter(_FILTER)
        if ca_file is not None and not ca_file.is_file():
            raise PageBlobNotTrusted(blob=self.name, reason=f"no CA file at {ca_file}")
        try:
            from azure.core import PipelineClient
            from azure.core.pipeline.transport import RequestsTransport
        except ImportError as error:
            raise PageBlobPackageMissing(package="azure-core requests") from error
        transport = RequestsTransport(
            connection_verify=True if ca_file is None else str(ca_file),
            connection_timeout=CONNECT_SECONDS,
            read_timeout=ANSWER_SECONDS,
            connection_data_block_size=RECEIVE_BYTES,
        )
        self._client: Final[Any] = PipelineClient(
            f"{parts.scheme}://{parts.netloc}", policies=[], transport=transport
        )

    def pin(self) -> None:
        """`length` and `etag` are the blob's; from now on an answer of another state is an error."""

        def take(answer: "HttpResponse") -> tuple[str, str, int]:
            kind = answer.headers.get("x-ms-blob-type", "no blob")
            length = answer.headers.get("Content-Length", "")
            return kind, answer.headers.get("ETag", ""), int(length) if length.isdecimal() else 0

        kind, self.etag, self.length = self._ask(Call("its properties", "HEAD"), take)
        if kind != "PageBlob" or not self.etag:
            seen = f"{kind[:40]} with {'an' if self.etag else 'no'} ETag"
            raise PageBlobUnfit(blob=self.name, seen=seen, wanted="a page blob with an ETag")

    def read(self, offset: int, into: memoryview) -> None:
        """`into` holds the bytes from `offset` on; errors as of `PageBlobDisk`."""
        end = offset + len(into)
        wanted = f"bytes {offset}-{end - 1}/{self.length}"

        def take(answer: "HttpResponse") -> Again | None:
            if answer.status_code != 206 or answer.headers.get("Content-Range") != wanted:
                seen = (
                    f"status {answer.status_code}, range {answer.headers.get('Content-Range', 'none')[:60]!r}"
                )
                raise PageBlobUnfit(blob=self.name, seen=seen, wanted=f"status 206 with {wanted}")
            done = 0
            for part in answer.iter_raw():
                if done + len(part) > len(into):
                    raise PageBlobUnfit(blob=self.name, seen="more bytes than asked for", wanted=wanted)
                into[done : done + len(part)] = part
                done += len(part)
            return None if done == len(into) else Again(f"{done} bytes of {len(into)}")

        self._ask(Call(f"bytes {offset} to {end}", byte_range=(offset, end)), take)

    def page_ranges(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """(start, end) of the pages that hold data, ascending; the list's pages are fetched as the caller goes on.

        The first and the last may stick out of what was asked for.
        """
        end = offset + length
        marker, at = "", 0
        while True:
            query = "comp=pagelist" + (f"&marker={marker}" if marker else "")
            place = f"the page list of bytes {offset} to {end}"
            document = self._ask(Call(place, query=query, byte_range=(offset, end)), self._take_list)
            ranges, following = self._read_list(document)
            for start, stop in ranges:
                if not at <= start < stop <= self.length:
                    seen = f"a page range from {start} to {stop} behind {at}"
                    raise PageBlobUnfit(
                        blob=self.name, seen=seen, wanted=f"ascending ranges up to {self.length}"
                    )
                yield start, stop
                at = stop
            if not following:
                return
            if following == marker:
                raise PageBlobUnfit(
                    blob=self.name, seen="a page list that does not end", wanted="its next page"
                )
            marker = following

    def close(self) -> None:
        """The connections are gone."""
        self._client.close()

    def _take_list(self, answer: "HttpResponse") -> bytes:
        content = bytearray()
        for part in answer.iter_raw():
            content += part
            if len(content) > PAGE_LIST_BYTES_MAX:
                wanted = f"at most {PAGE_LIST_BYTES_MAX} bytes"
                raise PageBlobUnfit(blob=self.name, seen="a longer page list", wanted=wanted)
        return bytes(content)

    def _read_list(self, document: bytes) -> tuple[list[tuple[int, int]], str]:
        """The ranges in a PageList document, and the marker of the next one."""
        try:
            # expat limits the growth of entities itself; the document comes from the service that holds the disk.
            root = ElementTree.fromstring(document)  # noqa: S314
            ranges = [
                (int(found.findtext("Start", "")), int(found.findtext("End", "")) + 1)
                for found in root.iter("PageRange")
            ]
        except (ElementTree.ParseError, ValueError):
            root = None
        if root is None or root.tag != "PageList":
            raise PageBlobUnfit(blob=self.name, seen=f"{document[:40]!r}", wanted="an XML document PageList")
        return ranges, quote(root.findtext("NextMarker") or "", safe="")

    def _ask(self, call: Call, take: Callable[["HttpResponse"], T | Again]) -> T:
        """What `take` makes of the answer. It runs once for each attempt and may be given half an answer.

        Raises outside of every `except`, so that no foreign error with the URL in its text is chained.
        """
        reason = ""
        for attempt in range(PAGE_BLOB_ATTEMPTS_MAX):
            outcome = self._attempt(call, take)
            if isinstance(outcome, HomewardError):
                raise outcome
            if not isinstance(outcome, Again):
                return outcome
            reason = outcome.reason
            pause = PAUSE_SECONDS * 2**attempt if outcome.pause_seconds is None else outcome.pause_seconds
            if pause > PAGE_BLOB_PAUSE_SECONDS_MAX or attempt + 1 == PAGE_BLOB_ATTEMPTS_MAX:
                break
            self._clock.sleep(pause)
        raise PageBlobUnreachable(blob=self.name, place=call.place, reason=reason, attempts=attempt + 1)

    def _attempt(self, call: Call, take: Callable[["HttpResponse"], T | Again]) -> T | Again | HomewardError:
        from azure.core.exceptions import AzureError
        from azure.core.rest import HttpRequest

        headers = {"x-ms-version": SERVICE_VERSION, "Accept-Encoding": "identity"}
        if self.etag:
            headers["If-Match"] = self.etag
        if call.byte_range is not None:
            headers["x-ms-range"] = f"bytes={call.byte_range[0]}-{call.byte_range[1] - 1}"
        url = self._url.reveal().decode()
        request = HttpRequest(call.method, f"{url}&{call.query}" if call.query else url, headers=headers)
        try:
            with self._client.send_request(request, stream=True) as answer:
                if answer.status_code not in (200, 206):
                    return self._refusal(call, answer)
                return take(answer)
        except AzureError as error:
            return self._broken(error)
        except HomewardError as error:
            return error
        except (OSError, ValueError) as error:
            # What the libraries below make of headers that are no HTTP.
            return Again(f"a broken answer ({type(error).__name__})")

    def _refusal(self, call: Call, answer: "HttpResponse") -> Again | HomewardError:
        status = answer.status_code
        code = answer.headers.get("x-ms-error-code", "")
        code = code if CODE.fullmatch(code) else "none"
        if status in PASSING:
            asked = answer.headers.get("Retry-After", "")
            return Again(
                f"HTTP status {status} with Azure's code {code}", float(asked) if asked.isdecimal() else None
            )
        if status == CHANGED:
            return PageBlobChanged(blob=self.name, place=call.place, etag=self.etag)
        return PageBlobRefused(blob=self.name, place=call.place, status=status, azure_code=code)

    def _broken(self, error: Exception) -> Again | HomewardError:
        """What a failure of the transport means; of its text nothing is used."""
        kinds = [type(error).__name__]
        inner: BaseException | None = getattr(error, "inner_exception", None)
        while inner is not None and len(kinds) < 8:
            kinds.append(type(inner).__name__)
            found = getattr(inner, "reason", None) or (inner.args[0] if inner.args else None)
            inner = found if isinstance(found, BaseException) else None
        if "SSLCertVerificationError" in kinds:
            return PageBlobNotTrusted(blob=self.name, reason="a certificate that cannot be verified")
        return Again(f"a broken connection ({kinds[-1]})")


def _split(url: Secret) -> SplitResult:
    """The URL's parts; raises PageBlobUnfit, which says what is wrong and never what stands there."""
    wrong = ""
    try:
        parts = urlsplit(url.reveal().decode("ascii"))
        if parts.scheme != "https":
            wrong = "another scheme than https"
        elif not parts.hostname or parts.port == 0:
            wrong = "no host"
        elif "@" in parts.netloc or parts.fragment:
            wrong = "a user name or a fragment"
        elif parts.path.count("/") < 2 or "sig=" not in parts.query:
            wrong = "no container, blob and signature"
    except ValueError:
        wrong = "something that is no URL"
    if wrong:
        raise PageBlobUnfit(
            blob="the signed URL", seen=wrong, wanted="https://HOST/CONTAINER/BLOB?...&sig=..."
        )
    return parts
