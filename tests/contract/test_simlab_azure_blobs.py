"""The stand-in's exports: page blobs read by azure-storage-blob, revoked, renewed, compared, disturbed."""

import gc
import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.core.exceptions import HttpResponseError
from azure.mgmt.compute import ComputeManagementClient
from azure.storage.blob import BlobClient

from simlab.azure.blobs import Azurite, PageBlobs, Published
from simlab.azure.content import FOOTER_BYTES
from simlab.azure.inventory import read_inventory
from simlab.azure.kit import Driver, StaticToken, wait_until
from simlab.azure.launch import ROOT, running
from simlab.azure.model import Estate

SUBSCRIPTION = "6f1b6bb1-9a5e-4d0a-8a63-5f0d6c0f3a11"
KIB = 1024
MIB = 1024 * KIB
DISK_BYTES = 1024 * MIB
SEED = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1 << 32)


def scattered(file: Path, size: int, runs: int, chance: random.Random) -> None:
    """A sparse file with random runs, odd in place and length, some across its end."""
    with file.open("wb") as new:
        new.truncate(size)
        for _ in range(runs):
            length = chance.randrange(1, 3 * MIB)
            offset = chance.randrange(0, size - length)
            os.pwrite(new.fileno(), chance.randbytes(length), offset)
        os.pwrite(new.fileno(), b"end", size - 3)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Driver, Path]]:
    print(f"SEED={SEED}")
    chance = random.Random(SEED)
    subprocess.run([ROOT / "simlab/azure/install"], check=True)
    folder = tmp_path_factory.mktemp("azure")
    scattered(folder / "web-os.raw", DISK_BYTES, 12, chance)
    for name in ("spare", "other", "busy", "tracked"):
        scattered(folder / f"{name}.raw", 16 * MIB, 3, chance)
    scattered(folder / "web-data.raw", 16 * MIB + 512, 2, chance)
    packed = folder / "packed.vhd"
    subprocess.run(
        [
            "qemu-img",
            *("convert", "-f", "raw", "-O", "vpc", "-o", "subformat=fixed,force_size=on"),
            folder / "spare.raw",
            packed,
        ],
        check=True,
    )
    raw = ["web-os", "web-data", "spare", "other", "busy", "tracked"]
    disks = [{"name": name, "file": f"{name}.raw"} for name in raw]
    disks.append({"name": "packed", "file": "packed.vhd", "format": "vhd-fixed"})
    machines = [
        {"name": "web", "disks": ["web-os", "web-data"], "power": "deallocated"},
        {"name": "live", "disks": ["tracked"]},
    ]
    inventory = folder / "inventory.json"
    inventory.write_text(
        json.dumps(
            {
                "subscription": SUBSCRIPTION,
                "retry_after_seconds": 0,
                "groups": [{"name": "rg-web", "machines": machines, "disks": disks}],
            }
        )
    )
    with running(inventory) as endpoints:
        driver = Driver(endpoints, "rg-web")
        yield driver, folder
        driver.close()


@pytest.fixture(autouse=True)
def nothing_left(lab: tuple[Driver, Path]) -> Iterator[None]:
    yield
    driver, _ = lab
    driver.control("DELETE", "/faults")
    for volume in driver.control("GET", "/inventory")["volumes"]:
        if volume["state"] == "ActiveSAS":
            driver.run("POST", volume["id"] + "/endGetAccess")


def reader(driver: Driver, url: str) -> BlobClient:
    return BlobClient.from_blob_url(
        url,
        connection_verify=driver.endpoints.certificate,
        retry_backoff_factor=0,
        initial_backoff=0.01,
        increment_base=0,
    )


def downloaded(blob: BlobClient, file: Path) -> tuple[Path, int]:
    """The blob's allocated ranges in a sparse file of its size, and how many bytes they are."""
    moved = 0
    with file.open("wb") as new:
        new.truncate(blob.get_blob_properties().size)
        for piece in blob.list_page_ranges():
            length = piece.end - piece.start + 1
            os.pwrite(new.fileno(), blob.download_blob(piece.start, length).readall(), piece.start)
            moved += length
    return file, moved


def refused(blob: BlobClient) -> int:
    with pytest.raises(HttpResponseError) as failure:
        blob.download_blob(0, 512).readall()
    assert failure.value.status_code is not None
    return failure.value.status_code


def test_export_of_a_gibibyte_equals_the_file_and_is_a_fixed_vhd(
    lab: tuple[Driver, Path], tmp_path: Path
) -> None:
    driver, folder = lab
    source = folder / "web-os.raw"
    with reader(driver, driver.export("disks/web-os")) as blob:
        assert blob.get_blob_properties().size == DISK_BYTES + FOOTER_BYTES
        file, moved = downloaded(blob, tmp_path / "export.vhd")
    assert moved < source.stat().st_blocks * 512 + 64 * 64 * KIB
    # Azure's creator mark means `size by the field`; releases of QEMU before 10 have to be told.
    export = f"driver=vpc,force_size_calc=current_size,file.filename={file}"
    command = ["qemu-img", "compare", "--image-opts", export, f"driver=raw,file.filename={source}"]
    compared = subprocess.run(command, capture_output=True, text=True)
    info = ["qemu-img", "info", "--output=json", "--image-opts", export]
    assert json.loads(subprocess.check_output(info))["virtual-size"] == DISK_BYTES
    assert compared.returncode == 0, compared.stdout


def test_export_of_a_fixed_vhd_file_is_its_content_with_azures_footer(lab: tuple[Driver, Path]) -> None:
    driver, folder = lab
    with reader(driver, driver.export("disks/packed")) as blob:
        content = blob.download_blob().readall()
    assert content[:-FOOTER_BYTES] == (folder / "spare.raw").read_bytes()
    footer = content[-FOOTER_BYTES:]
    assert (footer[:8], footer[28:32], footer[48:56]) == (
        b"conectix",
        b"wa\0\0",
        (16 * MIB).to_bytes(8, "big"),
    )


def test_next_export_shows_what_the_file_holds_then(lab: tuple[Driver, Path]) -> None:
    driver, folder = lab
    source = folder / "web-data.raw"
    driver.export("disks/web-data")
    driver.run("POST", "disks/web-data/endGetAccess")
    driver.run("POST", "virtualMachines/web/start")
    with source.open("r+b") as running_disk:
        os.pwrite(running_disk.fileno(), os.urandom(70000), 5 * MIB + 17)
        os.pwrite(running_disk.fileno(), bytes(2 * MIB), 9 * MIB)
        os.pwrite(running_disk.fileno(), b"tail", 16 * MIB + 508)
    driver.run("POST", "virtualMachines/web/deallocate")
    with reader(driver, driver.export("disks/web-data")) as blob:
        content = blob.download_blob().readall()
    driver.run("POST", "disks/web-data/endGetAccess")
    assert content[:-FOOTER_BYTES] == source.read_bytes()


def test_ended_export_is_really_refused_and_stays_refused_after_a_new_one(lab: tuple[Driver, Path]) -> None:
    driver, _ = lab
    with reader(driver, driver.export("disks/other")) as old:
        assert len(old.download_blob(0, 512).readall()) == 512
        driver.run("POST", "disks/other/endGetAccess")
        assert refused(old) == 403
        with reader(driver, driver.export("disks/other")) as new:
            assert len(new.download_blob(0, 512).readall()) == 512
        assert refused(old) == 403
        driver.run("POST", "disks/other/endGetAccess")


def test_export_ends_by_itself_when_its_time_is_over(lab: tuple[Driver, Path]) -> None:
    driver, _ = lab
    with reader(driver, driver.export("disks/other", seconds=1)) as blob:
        state = driver.get("disks/other")["properties"]["diskState"]
        assert wait_until(lambda: driver.get("disks/other")["properties"]["diskState"] == "Unattached")
        assert refused(blob) == 403
    assert state == "ActiveSAS"


def test_signature_is_checked_and_fits_one_disk_only(lab: tuple[Driver, Path]) -> None:
    driver, _ = lab
    mine, theirs = driver.export("disks/other"), driver.export("disks/spare")
    for url in (
        mine.partition("?")[0] + "?" + theirs.partition("?")[2],
        mine.replace("sig=", "sig=A"),
        mine.partition("?")[0],
    ):
        with reader(driver, url) as blob:
            assert refused(blob) in (403, 404)
    with reader(driver, mine) as blob, pytest.raises(HttpResponseError) as failure:
        blob.upload_page(bytes(512), 0, 512)
    assert failure.value.status_code == 403


@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <ssl.SSLSocket:pytest.PytestUnraisableExceptionWarning"
)
def test_disturbed_reads_are_retried_by_the_client(lab: tuple[Driver, Path]) -> None:
    driver, folder = lab
    driver.fault("blob/read", "answer", status=503, code="ServerBusy")
    driver.fault("blob/read", "drop")
    driver.fault("blob/read", "drop-answer")
    with reader(driver, driver.export("disks/busy")) as blob:
        content = blob.download_blob(0, 8 * MIB).readall()
        container = blob.container_name
    # The client forgets to close a connection that broke off; its warning belongs to this test, not to a later one.
    gc.collect()
    assert content == (folder / "busy.raw").read_bytes()[: 8 * MIB]
    calls = [(call["status"], call["cut"]) for call in driver.calls("blob/read", container)]
    assert calls == [(503, False), (0, True), (206, True), (206, False)]


def test_snapshots_of_a_running_machine_differ_by_what_was_written_between(lab: tuple[Driver, Path]) -> None:
    driver, folder = lab
    source = folder / "tracked.raw"
    with source.open("r+b") as disk:
        os.pwrite(disk.fileno(), b"\xaa" * 2 * MIB, 2 * MIB)
    before = snapshot(driver, "before", "tracked")
    with source.open("r+b") as disk:
        os.pwrite(disk.fileno(), b"new", 8 * MIB + 5)
        os.pwrite(disk.fileno(), bytes(MIB), 2 * MIB + 4096)
    after = snapshot(driver, "after", "tracked")
    with source.open("r+b") as disk:
        os.pwrite(disk.fileno(), b"later", 12 * MIB)
    assert driver.power("live") == "running"
    with reader(driver, after) as blob:
        assert blob.download_blob(8 * MIB + 5, 3).readall() == b"new"
        assert blob.download_blob(12 * MIB, 5).readall() != b"later"
        driver.fault("blob/differences", "drop-answer")
        changed, cleared = blob.get_page_range_diff_for_managed_disk(before)
        assert [call["cut"] for call in driver.calls("blob/differences")] == [True, False]
        assert changed == [{"start": 8 * MIB, "end": 8 * MIB + 4095}]
        assert cleared == [{"start": 2 * MIB + 4096, "end": 3 * MIB + 4095}]
        changed, cleared = blob.get_page_range_diff_for_managed_disk(before, 0, 2 * MIB + 8192)
        assert (changed, cleared) == ([], [{"start": 2 * MIB + 4096, "end": 2 * MIB + 8191}])
        with pytest.raises(HttpResponseError) as failure:
            list(blob.list_page_ranges(previous_snapshot="2026-01-01T00:00:00.0000000Z"))
        assert failure.value.status_code == 501
    with reader(driver, before) as blob, pytest.raises(HttpResponseError, match="newer"):
        blob.get_page_range_diff_for_managed_disk(after)
    for name in ("before", "after"):
        driver.run("POST", f"snapshots/{name}/endGetAccess")
    with reader(driver, after) as blob, pytest.raises(HttpResponseError) as failure:
        blob.get_page_range_diff_for_managed_disk(before)
    assert failure.value.status_code == 403


def snapshot(driver: Driver, name: str, disk: str) -> str:
    creation = {"createOption": "Copy", "sourceResourceId": driver.path(f"disks/{disk}")}
    body = {"location": "westeurope", "properties": {"creationData": creation, "incremental": True}}
    made = driver.run("PUT", f"snapshots/{name}", body)
    assert (made["properties"]["provisioningState"], made["properties"]["incremental"]) == ("Succeeded", True)
    return driver.export(f"snapshots/{name}")


def test_disk_made_from_a_snapshot_outlives_it(lab: tuple[Driver, Path]) -> None:
    driver, folder = lab
    snapshot(driver, "base", "other")
    creation = {"createOption": "Copy", "sourceResourceId": driver.path("snapshots/base")}
    body = {"location": "westeurope", "properties": {"creationData": creation}}
    assert driver.run("PUT", "disks/copy", body)["properties"]["diskState"] == "Unattached"
    assert driver.run("PUT", "disks/copy", body)["properties"]["creationData"] == {
        **creation,
        "sourceUniqueId": driver.get("snapshots/base")["properties"]["uniqueId"],
    }
    other = {
        "location": "westeurope",
        "properties": {"creationData": {"createOption": "Empty"}, "diskSizeGB": 1},
    }
    assert driver.ask("PUT", "disks/copy", other).status_code == 409
    assert driver.ask("DELETE", "snapshots/base").status_code == 409
    driver.run("POST", "snapshots/base/endGetAccess")
    driver.run("DELETE", "snapshots/base")
    assert driver.ask("GET", "snapshots/base").status_code == 404
    with reader(driver, driver.export("disks/copy")) as blob:
        content = blob.download_blob().readall()
    assert content[:-FOOTER_BYTES] == (folder / "other.raw").read_bytes()
    driver.run("POST", "disks/copy/endGetAccess")
    driver.run("DELETE", "disks/copy")
    assert driver.ask("DELETE", "disks/copy").status_code == 204
    assert driver.ask("DELETE", "disks/web-os").status_code == 409
    assert (folder / "other.raw").exists()


def test_microsofts_newest_compute_client_agrees(lab: tuple[Driver, Path]) -> None:
    driver, _ = lab
    endpoints = driver.endpoints
    with ComputeManagementClient(
        StaticToken(),
        SUBSCRIPTION,
        base_url=endpoints.arm,
        credential_scopes=["https://management.azure.com/.default"],
        connection_verify=endpoints.certificate,
        polling_interval=0.05,
    ) as client:
        machine = client.virtual_machines.get("rg-web", "live", expand="instanceView")
        assert machine.instance_view is not None
        assert [status.code for status in machine.instance_view.statuses or []][-1] == "PowerState/running"
        assert {item.name for item in client.virtual_machines.list("rg-web")} == {"web", "live"}
        disk = client.disks.get("rg-web", "tracked")
        assert (disk.disk_state, disk.disk_size_bytes) == ("Attached", 16 * MIB)
        client.virtual_machines.begin_deallocate("rg-web", "live").result()
        grant = {"access": "Read", "durationInSeconds": 60}
        access = client.disks.begin_grant_access("rg-web", "tracked", grant).result()
        assert access.access_sas is not None
        with reader(driver, access.access_sas) as blob:
            assert blob.get_blob_properties().size == 16 * MIB + FOOTER_BYTES
        client.disks.begin_revoke_access("rg-web", "tracked").result()
        client.virtual_machines.begin_start("rg-web", "live").result()
        assert driver.power("live") == "running"


def test_publication_writes_only_what_has_changed(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as new:
        new.truncate(DISK_BYTES)
        os.pwrite(new.fileno(), os.urandom(3 * MIB), 100 * MIB)
    (tmp_path / "inventory.json").write_text(
        json.dumps(
            {
                "subscription": SUBSCRIPTION,
                "groups": [{"name": "g", "disks": [{"name": "d", "file": "disk.raw"}]}],
            }
        )
    )
    volume = next(iter(Estate(read_inventory(tmp_path / "inventory.json")).volumes()))
    with Azurite(tmp_path / "azurite") as azurite:
        blobs = PageBlobs(azurite, tmp_path / "shadows")
        assert blobs.publish(volume) == Published(3 * MIB, 0)
        assert blobs.publish(volume) == Published(0, 0)
        with disk.open("r+b") as known:
            os.pwrite(known.fileno(), b"one byte", 900 * MIB)
            os.pwrite(known.fileno(), bytes(MIB), 101 * MIB)
        assert blobs.publish(volume) == Published(64 * KIB, MIB)
        blobs.remove(volume)
        assert list((tmp_path / "shadows").iterdir()) == []
