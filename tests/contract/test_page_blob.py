"""A managed disk's export as a source disk: the stand-in's page blobs, read by their signed URLs."""

import gc
import json
import logging
import os
import random
import subprocess
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from azure.storage.blob import BlobClient

from disks.catalogue import open_source
from disks.digestmap import DigestMap
from disks.disk import Disk, ExtentKind, Format
from disks.errors import DiskReadOnly, OutsideDisk
from disks.errors_page_blob import (
    PageBlobChanged,
    PageBlobNotTrusted,
    PageBlobRefused,
    PageBlobUnfit,
    PageBlobUnreachable,
)
from disks.page_blob import PageBlobDisk, open_page_blob
from disks.scan import RegionRun, scan
from drcore.errors import HomewardError
from drcore.limits import GIB, MIB, PAGE_BLOB_ATTEMPTS_MAX
from drcore.secret import Secret
from simlab.azure.blobs import ACCOUNT, BLOB_NAME
from simlab.azure.content import FOOTER_BYTES
from simlab.azure.kit import Driver
from simlab.azure.launch import ROOT, running
from wireproto.keys import DIGEST_SECRET_BYTES

SUBSCRIPTION = "6f1b6bb1-9a5e-4d0a-8a63-5f0d6c0f3a11"
SIZE = 40 * MIB + 3 * 512
GRANULE = 64 * 1024
HUGE = 3 * 1024 * GIB
SEED = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1 << 32)


@dataclass(slots=True)
class CountingClock:
    """Pauses take no time, and are remembered."""

    pauses: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return sum(self.pauses)

    def now(self) -> float:
        return sum(self.pauses)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)


@dataclass(frozen=True, slots=True)
class Lab:
    """The stand-in, and the file behind its disk `web`."""

    driver: Driver
    source: Path

    @property
    def certificate(self) -> Path:
        return Path(self.driver.endpoints.certificate)

    def url(self, disk: str = "web") -> Secret:
        return Secret(self.driver.export(f"disks/{disk}").encode())

    def key(self) -> str:
        """The key of the stand-in's storage account, which only who writes past the signed URL needs."""
        me = self.driver.endpoints.pid
        for child in Path(f"/proc/{me}/task/{me}/children").read_text().split():
            variables = Path(f"/proc/{child}/environ").read_bytes().decode().split("\0")
            for variable in variables:
                if variable.startswith("AZURITE_ACCOUNTS="):
                    return variable.partition(":")[2]
        raise LookupError("no Azurite under the stand-in")

    def writer(self, url: Secret) -> BlobClient:
        """A client that may write to the blob behind the URL."""
        container = url.reveal().decode().split("/")[4]
        credential = {"account_name": ACCOUNT, "account_key": self.key()}
        return BlobClient(
            f"{self.driver.endpoints.blob}/{ACCOUNT}", container, BLOB_NAME, credential=credential,
            connection_verify=str(self.certificate),
        )  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    print(f"SEED={SEED}")
    chance = random.Random(SEED)
    subprocess.run([ROOT / "simlab/azure/install"], check=True)
    folder = tmp_path_factory.mktemp("azure")
    source = folder / "web.raw"
    with source.open("wb") as new:
        new.truncate(SIZE)
        for _ in range(8):
            length = chance.randrange(1, 2 * MIB)
            os.pwrite(new.fileno(), chance.randbytes(length), chance.randrange(0, SIZE - length))
        os.pwrite(new.fileno(), chance.randbytes(9 * MIB), 20 * MIB)
        os.pwrite(new.fileno(), b"end", SIZE - 3)
    with (folder / "huge.raw").open("wb") as new:
        new.truncate(HUGE)
        os.pwrite(new.fileno(), b"far", HUGE - 600 * GIB)
    disks = [{"name": name, "file": f"{name}.raw"} for name in ("web", "huge")]
    inventory = folder / "inventory.json"
    inventory.write_text(
        json.dumps(
            {
                "subscription": SUBSCRIPTION,
                "retry_after_seconds": 0,
                "groups": [{"name": "rg", "disks": disks}],
            }
        )
    )
    with running(inventory) as endpoints:
        driver = Driver(endpoints, "rg")
        yield Lab(driver, source)
        driver.close()


@pytest.fixture
def clock() -> CountingClock:
    return CountingClock()


@pytest.fixture
def disk(lab: Lab, clock: CountingClock) -> Iterator[PageBlobDisk]:
    opened = open_page_blob(lab.url(), lab.certificate, clock)
    yield opened
    opened.close()
    lab.driver.control("DELETE", "/faults")
    lab.driver.run("POST", "disks/web/endGetAccess")
    # A connection left open would show here, and not in a later test.
    gc.collect()


def content(disk: Disk, offset: int, length: int) -> bytes:
    into = bytearray(b"\xaa" * length)
    disk.read(offset, memoryview(into))
    return bytes(into)


def test_reading_equals_the_source_file_at_odd_offsets_and_lengths(lab: Lab, disk: PageBlobDisk) -> None:
    wanted = lab.source.read_bytes()
    chance = random.Random(SEED)
    assert disk.size == SIZE
    assert content(disk, 0, SIZE) == wanted
    for _ in range(40):
        length = chance.choice((0, 1, 511, 513, chance.randrange(1, MIB), chance.randrange(1, 10 * MIB)))
        offset = chance.choice((SIZE - length, chance.randrange(0, SIZE - length)))
        assert content(disk, offset, length) == wanted[offset : offset + length], (SEED, offset, length)


def test_extents_are_the_allocated_ranges_and_cover_exactly(lab: Lab, disk: PageBlobDisk) -> None:
    wanted = lab.source.read_bytes()
    data = {at for at in range(0, SIZE, GRANULE) if any(wanted[at : at + GRANULE])}
    chance = random.Random(SEED)
    spans = [(0, SIZE), (0, 0), (SIZE - 1, 1)]
    spans += [(offset, chance.randrange(0, SIZE - offset)) for offset in chance.sample(range(SIZE), 12)]
    for offset, length in spans:
        at, last = offset, None
        for extent in disk.extents(offset, length):
            assert extent.offset == at
            assert extent.length > 0
            assert extent.kind is not last, (SEED, offset, length)
            granules = range(at // GRANULE * GRANULE, at + extent.length, GRANULE)
            assert {granule in data for granule in granules} == {extent.kind is ExtentKind.DATA}
            at, last = at + extent.length, extent.kind
        assert at == offset + length
    assert disk.allocated_bytes() == sum(min(GRANULE, SIZE - at) for at in data)


def test_scan_gives_the_digests_of_the_raw_file(lab: Lab, disk: PageBlobDisk, tmp_path: Path) -> None:
    def scanned(image: Disk) -> tuple[list[RegionRun], bytes]:
        digests = DigestMap(image.size, tmp_path)
        runs = list(scan(image, digests, b"s" * DIGEST_SECRET_BYTES, lambda _: None))
        root = digests.root()
        digests.close()
        return runs, root

    raw = open_source(lab.source)
    wanted = scanned(raw)
    raw.close()
    assert scanned(disk) == wanted
    assert wanted[1] != scanned_root_of_nothing(tmp_path)


def scanned_root_of_nothing(folder: Path) -> bytes:
    digests = DigestMap(SIZE, folder)
    root = digests.root()
    digests.close()
    return root


def test_disk_is_a_fixed_vhd_that_nobody_writes_through(disk: PageBlobDisk) -> None:
    assert (disk.format, disk.grain_size, disk.disk_uuid) == (Format.VHD_FIXED, None, None)
    with pytest.raises(DiskReadOnly):
        disk.write(0, memoryview(b"x"))
    with pytest.raises(DiskReadOnly):
        disk.zero(0, 1)
    with pytest.raises(OutsideDisk):
        disk.read(SIZE - 1, memoryview(bytearray(2)))
    disk.flush()


def test_disk_beyond_the_2040_gib_of_hyper_v_is_read_whole(lab: Lab) -> None:
    disk = open_page_blob(lab.url("huge"), lab.certificate)
    at = HUGE - 600 * GIB
    assert disk.size == HUGE
    data = [extent for extent in disk.extents(0, HUGE) if extent.kind is ExtentKind.DATA]
    assert [(extent.offset, extent.length) for extent in data] == [(at, GRANULE)]
    assert content(disk, at, 4) == b"far\0"
    disk.close()


def test_revoked_url_ends_reading_with_a_coded_error_at_once(
    lab: Lab, disk: PageBlobDisk, clock: CountingClock
) -> None:
    assert content(disk, 0, 4096) == lab.source.read_bytes()[:4096]
    lab.driver.run("POST", "disks/web/endGetAccess")
    with pytest.raises(PageBlobRefused) as failure:
        list(disk.extents(0, SIZE))
    with pytest.raises(PageBlobRefused) as failure:
        content(disk, 4096, 12 * MIB)
    assert failure.value.status == 403
    assert failure.value.azure_code != "none"
    assert clock.pauses == []


def test_blob_that_changes_while_it_is_read_is_noticed(lab: Lab, clock: CountingClock) -> None:
    url = lab.url()
    disk = open_page_blob(url, lab.certificate, clock)
    mark = disk.change_mark
    with lab.writer(url) as blob:
        page: bytes = blob.download_blob(0, 512).readall()
        blob.upload_page(page, 0, 512)
        with pytest.raises(PageBlobChanged) as failure:
            content(disk, 0, 512)
        assert mark is not None
        assert failure.value.etag.strip('"') == mark
        with pytest.raises(PageBlobChanged):
            list(disk.extents(0, SIZE))
    disk.close()
    with_new_mark = open_page_blob(url, lab.certificate, clock)
    assert with_new_mark.change_mark != mark
    assert content(with_new_mark, 0, SIZE) == lab.source.read_bytes()
    with_new_mark.close()
    lab.driver.run("POST", "disks/web/endGetAccess")


def test_faults_that_pass_are_survived_within_the_limits(
    lab: Lab, disk: PageBlobDisk, clock: CountingClock
) -> None:
    wanted = lab.source.read_bytes()
    lab.driver.fault("blob/read", "answer", status=429, retry_after=7)
    lab.driver.fault("blob/read", "answer", status=503, code="ServerBusy")
    lab.driver.fault("blob/read", "drop")
    lab.driver.fault("blob/read", "drop-answer")
    lab.driver.fault("blob/read", "delay", seconds=0.2)
    assert content(disk, 20 * MIB, 3 * MIB) == wanted[20 * MIB : 23 * MIB]
    assert clock.pauses == [7.0, 1.0, 2.0, 4.0]
    lab.driver.fault("blob/pages", "drop-answer", count=2)
    assert sum(extent.length for extent in disk.extents(0, SIZE)) == SIZE
    lab.driver.fault("blob/read", "drop", count=3)
    assert content(disk, 1, SIZE - 1) == wanted[1:]


def test_service_that_stays_away_is_told_after_the_last_attempt(
    lab: Lab, disk: PageBlobDisk, clock: CountingClock
) -> None:
    lab.driver.fault("blob/read", "drop", count=None)
    with pytest.raises(PageBlobUnreachable) as failure:
        content(disk, 0, 10 * MIB)
    assert failure.value.attempts == PAGE_BLOB_ATTEMPTS_MAX
    assert max(clock.pauses) == 16.0


def test_longer_pause_than_the_limit_is_told_and_not_waited_for(
    lab: Lab, disk: PageBlobDisk, clock: CountingClock
) -> None:
    lab.driver.fault("blob/read", "answer", status=503, code="ServerBusy", retry_after=3600)
    with pytest.raises(PageBlobUnreachable, match="ServerBusy"):
        content(disk, 0, 512)
    assert clock.pauses == []


def broken_footers(good: bytes) -> Iterator[tuple[str, bytes]]:
    yield "no footer", bytes(FOOTER_BYTES)
    for name, at, value in (("checksum", 100, b"\x01"), ("type", 63, b"\x03"), ("size", 49, b"\x01")):
        wrong = bytearray(good)
        wrong[at : at + 1] = value
        if name != "checksum":
            wrong[64:68] = bytes(4)
            wrong[64:68] = (~sum(wrong) & 0xFFFFFFFF).to_bytes(4, "big")
        yield name, bytes(wrong)


def test_blob_without_a_sound_footer_is_refused(lab: Lab) -> None:
    url = lab.url()
    with lab.writer(url) as blob:
        good = blob.download_blob(SIZE, FOOTER_BYTES).readall()
        for name, footer in broken_footers(good):
            blob.upload_page(footer, SIZE, FOOTER_BYTES)
            with pytest.raises(HomewardError) as failure:
                open_page_blob(url, lab.certificate)
            wanted = "HW-DISKS-043" if name == "no footer" else "HW-DISKS-009"
            assert failure.value.code == wanted, (name, str(failure.value))
        blob.upload_page(good, SIZE, FOOTER_BYTES)
    open_page_blob(url, lab.certificate).close()
    lab.driver.run("POST", "disks/web/endGetAccess")


@pytest.mark.parametrize(
    "url",
    ["", "http://h/c/b?sig=x", "https:///c/b?sig=x", "https://u:p@h/c/b?sig=x", "https://h/c/b", "https://h?sig=x",
     "https://h:99999/c/b?sig=x", "https://[h/c/b?sig=x", "\xe9"],
)  # fmt: skip
def test_what_is_no_signed_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(PageBlobUnfit) as failure:
        open_page_blob(Secret(url.encode()))
    assert not url or url not in str(failure.value)


def test_host_that_cannot_prove_itself_is_not_trusted(lab: Lab, tmp_path: Path, clock: CountingClock) -> None:
    url = lab.url()
    with pytest.raises(PageBlobNotTrusted):
        open_page_blob(url, None, clock)
    with pytest.raises(PageBlobNotTrusted):
        open_page_blob(url, tmp_path / "missing.pem", clock)
    assert clock.pauses == []
    lab.driver.run("POST", "disks/web/endGetAccess")


def test_signature_is_in_no_error_trace_log_or_representation(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = lab.url()
    url = secret.reveal().decode()
    signature = url.partition("sig=")[2].partition("&")[0]
    disk = open_page_blob(secret, lab.certificate, CountingClock())
    shown = [repr(disk), str(disk), str(disk.path), repr(secret)]
    content(disk, 0, 512)
    lab.driver.fault("blob/read", "drop", count=None)
    dead = Secret(url.replace(lab.driver.endpoints.blob, "https://127.0.0.1:1").encode())
    lab.driver.fault("blob/pages", "answer", status=403, code=f"sig={signature}")
    for ask in (
        lambda: content(disk, 0, 512),
        lambda: list(disk.extents(0, 1)),
        lambda: open_page_blob(dead, lab.certificate, CountingClock()),
        lambda: open_page_blob(secret, None, CountingClock()),
    ):
        with pytest.raises(HomewardError) as failure:
            ask()
        shown += [str(failure.value), json.dumps(failure.value.as_json()), repr(failure.value.facts())]
        shown += traceback.format_exception(failure.value)
    disk.close()
    lab.driver.control("DELETE", "/faults")
    lab.driver.run("POST", "disks/web/endGetAccess")
    gc.collect()
    shown += [record.getMessage() + repr(record.args) for record in caplog.records]
    assert len(signature) > 40
    assert [text for text in shown if signature in text] == []
    assert any("sig=***" in record.getMessage() for record in caplog.records)
