"""Answers of a blob service that come in pages, or that no blob service should give: a scripted HTTPS server."""

import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest

from disks.disk import ExtentKind
from disks.errors_page_blob import PageBlobUnfit, PageBlobUnreachable
from disks.page_blob import PageBlobDisk, open_page_blob
from drcore.limits import MIB
from drcore.secret import Secret
from simlab.azure.certificate import write_certificate
from simlab.azure.content import FOOTER_BYTES, fixed_footer

SIZE = 4 * MIB
CONTENT = bytes(range(256)) * (SIZE // 256)
LENGTH = SIZE + FOOTER_BYTES


class NoPause:
    """A clock whose pauses take no time."""

    def monotonic(self) -> float:
        return 0.0

    def now(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server says to one call."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


Script = Callable[[dict[str, str], int, int], Answer | None]
"""From query, first byte and the byte behind the last, to an answer; None: as a blob service would."""


def honest(footer: bytes, first: int, end: int) -> Answer:
    blob = CONTENT + footer
    return Answer(206, blob[first:end], {"Content-Range": f"bytes {first}-{end - 1}/{LENGTH}"})


class Server(ThreadingHTTPServer):
    """A page blob of `CONTENT` whose answers a script may change."""

    daemon_threads = True
    script: Script = staticmethod(lambda query, first, end: None)
    blob_type = "PageBlob"
    asked: list[str]


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Server
    footer = fixed_footer(SIZE, UUID(int=7), 0.0)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        pass

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(LENGTH))
        self.send_header("ETag", '"1"')
        self.send_header("x-ms-blob-type", self.server.blob_type)
        self.end_headers()

    def do_GET(self) -> None:
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        self.server.asked.append(self.path)
        first, _, last = self.headers["x-ms-range"].removeprefix("bytes=").partition("-")
        answer = self.server.script(query, int(first), int(last) + 1)
        if answer is None:
            answer = honest(self.footer, int(first), int(last) + 1)
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Server, Callable[[], PageBlobDisk]]]:
    certificate = tmp_path / "certificate.pem"
    write_certificate(certificate, tmp_path / "key.pem", datetime.now(UTC))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, tmp_path / "key.pem")
    listening = Server(("127.0.0.1", 0), Handler)
    listening.asked = []
    listening.socket = context.wrap_socket(listening.socket, server_side=True)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    disks: list[PageBlobDisk] = []

    def opened() -> PageBlobDisk:
        url = f"https://127.0.0.1:{listening.server_port}/c/b?sv=1&sig=s%2Bs"
        disks.append(open_page_blob(Secret(url.encode()), certificate, NoPause()))
        return disks[-1]

    yield listening, opened
    for disk in disks:
        disk.close()
    listening.shutdown()
    listening.server_close()
    thread.join()


def page(ranges: list[tuple[int, int]], marker: str = "") -> Answer:
    body = "".join(
        f"<PageRange><Start>{start}</Start><End>{end - 1}</End></PageRange>" for start, end in ranges
    )
    cleared = "<ClearRange><Start>0</Start><End>511</End></ClearRange>"
    return Answer(200, f"<PageList>{body}{cleared}<NextMarker>{marker}</NextMarker></PageList>".encode())


def listed(server: Server, answers: dict[str, Answer]) -> None:
    """Page lists are answered by their marker."""
    server.script = lambda query, first, end: answers[query.get("marker", "")] if "comp" in query else None


def test_page_list_in_pages_is_read_to_its_end(server: tuple[Server, Callable[[], PageBlobDisk]]) -> None:
    listed(
        server[0],
        {
            "": page([(512, 1024), (1024, 4096)], "a &amp; b/2"),
            "a & b/2": page([], "3"),
            "3": page([(MIB, 2 * MIB)]),
        },
    )
    disk = server[1]()
    data = [(e.offset, e.length) for e in disk.extents(0, SIZE) if e.kind is ExtentKind.DATA]
    assert data == [(512, 4096 - 512), (MIB, MIB)]
    assert [(e.offset, e.length) for e in disk.extents(700, 10)] == [(700, 10)]
    assert all("sig=s%2Bs" in path for path in server[0].asked)


HOSTILE_LISTS = {
    "descending": {"": page([(1024, 2048), (512, 1024)])},
    "overlapping": {"": page([(0, 2048), (1024, 4096)])},
    "empty range": {"": page([(1024, 1024)])},
    "beyond the blob": {"": page([(0, LENGTH + 512)])},
    "overlapping the page before": {"": page([(0, 4096)], "2"), "2": page([(0, 512)])},
    "a marker that stays": {"": page([], "2"), "2": page([], "2")},
    "no number": {
        "": Answer(200, b"<PageList><PageRange><Start>x</Start><End>1</End></PageRange></PageList>")
    },
    "half a range": {"": Answer(200, b"<PageList><PageRange><Start>0</Start></PageRange></PageList>")},
    "no XML": {"": Answer(200, b"<html><body>Sign in<br></body></html>")},
    "another document": {"": Answer(200, b"<html/>")},
    "nothing": {"": Answer(200)},
}


@pytest.mark.parametrize("name", HOSTILE_LISTS)
def test_page_list_that_contradicts_itself_is_refused(
    server: tuple[Server, Callable[[], PageBlobDisk]], name: str
) -> None:
    listed(server[0], HOSTILE_LISTS[name])
    with pytest.raises(PageBlobUnfit):
        list(server[1]().extents(0, SIZE))


HOSTILE_READS = {
    "the whole blob": Answer(200, CONTENT[:512]),
    "another range": Answer(206, CONTENT[:512], {"Content-Range": f"bytes 512-1023/{LENGTH}"}),
    "another length": Answer(206, CONTENT[:512], {"Content-Range": f"bytes 0-511/{LENGTH + 512}"}),
    "no range": Answer(206, CONTENT[:512]),
    "too much": Answer(206, CONTENT[:1024], {"Content-Range": f"bytes 0-511/{LENGTH}"}),
}


@pytest.mark.parametrize("name", HOSTILE_READS)
def test_bytes_of_another_range_are_refused(
    server: tuple[Server, Callable[[], PageBlobDisk]], name: str
) -> None:
    disk = server[1]()
    into = bytearray(512)
    disk.read(0, memoryview(into))
    assert into == CONTENT[:512]
    server[0].script = lambda query, first, end: HOSTILE_READS[name]
    with pytest.raises(PageBlobUnfit):
        disk.read(0, memoryview(into))


def test_short_answers_are_asked_for_again_and_then_told(
    server: tuple[Server, Callable[[], PageBlobDisk]],
) -> None:
    disk = server[1]()
    short = Answer(206, CONTENT[:500], {"Content-Range": f"bytes 0-511/{LENGTH}"})
    answers = iter([short, short])
    server[0].script = lambda query, first, end: next(answers, None)
    into = bytearray(512)
    disk.read(0, memoryview(into))
    assert into == CONTENT[:512]
    server[0].script = lambda query, first, end: short
    with pytest.raises(PageBlobUnreachable, match="500 bytes of 512"):
        disk.read(0, memoryview(into))


def test_blob_of_another_type_is_refused(server: tuple[Server, Callable[[], PageBlobDisk]]) -> None:
    server[0].blob_type = "BlockBlob"
    with pytest.raises(PageBlobUnfit, match="BlockBlob"):
        server[1]()
