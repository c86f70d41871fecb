"""The adapter for Azure against the stand-in: every verb, twice, disturbed, refused; and what it never shows."""

import gc
import json
import logging
import random
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from confserver.adapters.azure import ResourceManagerAzure
from confserver.adapters.azure_arm import Call, ResourceManager
from confserver.adapters.azure_settings import AzureSettings
from confserver.errors_azure import (
    AzureAnswerStrange,
    AzureBusy,
    AzureDiskExported,
    AzureDiskInUse,
    AzureDiskMissing,
    AzureDiskUnmanaged,
    AzureFailing,
    AzureForbidden,
    AzureIdWrong,
    AzureNotTrusted,
    AzureOperationFailed,
    AzureOperationInterrupted,
    AzureOperationOverdue,
    AzurePackageMissing,
    AzureRefused,
    AzureSettingsWrong,
    AzureSignInFailed,
    AzureStateUnexpected,
    AzureThrottled,
    AzureUnreachable,
    AzureVmMissing,
)
from confserver.ports import Azure, Power
from disks.errors_page_blob import PageBlobRefused
from disks.page_blob import open_page_blob
from drcore.errors import HomewardError, Retry
from drcore.limits import AZURE_ATTEMPTS_MAX, MIB
from drcore.secret import Secret
from simlab.azure.kit import Driver
from simlab.azure.launch import ROOT, Endpoints, running

SUBSCRIPTION = "6f1b6bb1-9a5e-4d0a-8a63-5f0d6c0f3a11"
TOKEN = "a-token-that-nobody-may-see"
MACHINES = 32
SIZE = 2 * MIB


@dataclass(slots=True)
class QuickClock:
    """Pauses are remembered, count in full, and take a fiftieth of a second at most."""

    pauses: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return sum(self.pauses)

    def now(self) -> float:
        return sum(self.pauses)

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        time.sleep(min(seconds, 0.02))


def inventory(folder: Path) -> Path:
    (folder / "disk.raw").write_bytes(random.Random(1).randbytes(SIZE))
    machines = [{"name": f"m{n}", "disks": [f"m{n}-os", f"m{n}-data"]} for n in range(MACHINES)]
    names = [name for machine in machines for name in machine["disks"]]
    disks = [{"name": name, "file": "disk.raw"} for name in names]
    file = folder / "inventory.json"
    seconds = {"start": 0.3, "deallocate": 0.3}
    group = {"name": "rg-web", "location": "westeurope", "machines": machines, "disks": disks}
    file.write_text(
        json.dumps(
            {"subscription": SUBSCRIPTION, "retry_after_seconds": 0, "seconds": seconds, "groups": [group]}
        )
    )
    return file


@pytest.fixture(scope="module")
def endpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoints]:
    subprocess.run([ROOT / "simlab/azure/install"], check=True)
    with running(inventory(tmp_path_factory.mktemp("azure")), "--token", TOKEN) as found:
        yield found


@pytest.fixture
def driver(endpoints: Endpoints) -> Iterator[Driver]:
    with closing(Driver(endpoints, "rg-web", TOKEN)) as made:
        yield made
        made.control("DELETE", "/faults")
    # A connection left open would show here, and not in a later test.
    gc.collect()


@pytest.fixture
def settings(endpoints: Endpoints) -> AzureSettings:
    return AzureSettings(
        SUBSCRIPTION,
        endpoints.arm,
        Path(endpoints.certificate),
        Secret(TOKEN.encode()),
        operation_seconds_max=600.0,
    )


@pytest.fixture
def clock() -> QuickClock:
    return QuickClock()


@pytest.fixture
def azure(settings: AzureSettings, clock: QuickClock) -> Iterator[ResourceManagerAzure]:
    with closing(ResourceManagerAzure(settings, clock)) as made:
        port: Azure = made
        assert port is made
        yield made


NUMBERS = count()


@pytest.fixture
def machine() -> str:
    """A machine that no other test touches."""
    return f"m{next(NUMBERS)}"


def vm_id(driver: Driver, machine: str) -> str:
    return driver.path(f"virtualMachines/{machine}")


def posts(driver: Driver, machine: str, verb: str) -> int:
    return len([call for call in driver.calls(f"*/{verb}", f"/{machine}") if call["method"] == "POST"])


def test_module_is_light_and_knows_no_azure_until_an_adapter_is_made() -> None:
    script = (
        "import sys, time; start = time.perf_counter(); import confserver.adapters.azure; "
        "print(time.perf_counter() - start, sorted({'azure.core', 'azure.mgmt', 'requests'} & sys.modules.keys()))"
    )
    said = subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, text=True)
    seconds, _, loaded = said.strip().partition(" ")
    assert loaded == "[]"
    assert float(seconds) < 0.5


def test_vm_tells_power_agent_and_disks(azure: ResourceManagerAzure, driver: Driver, machine: str) -> None:
    found = azure.vm(vm_id(driver, machine))
    assert (found.name, found.location, found.provisioning) == (machine, "westeurope", "Succeeded")
    assert (found.power, found.deallocated, found.agent_ready) == (Power.ON, False, True)
    disks = [(disk.name, disk.lun, disk.size, disk.state) for disk in found.disks]
    assert disks == [(f"{machine}-os", None, SIZE, "Attached"), (f"{machine}-data", 0, SIZE, "Attached")]
    assert found.disks[0].resource_id == driver.path(f"disks/{machine}-os")


def test_deallocated_vm_still_tells_its_disks_sizes(
    azure: ResourceManagerAzure, driver: Driver, machine: str
) -> None:
    driver.control("POST", "/power", {"group": "rg-web", "machine": machine, "power": "deallocated"})
    found = azure.vm(vm_id(driver, machine))
    assert (found.power, found.deallocated, found.agent_ready) == (Power.OFF, True, False)
    assert [(disk.size, disk.state) for disk in found.disks] == [(SIZE, "Reserved")] * 2


def test_stopped_from_inside_is_off_and_not_deallocated(
    azure: ResourceManagerAzure, driver: Driver, machine: str
) -> None:
    driver.run("POST", f"virtualMachines/{machine}/powerOff")
    found = azure.vm(vm_id(driver, machine))
    assert (found.power, found.deallocated) == (Power.OFF, False)
    azure.deallocate(vm_id(driver, machine))
    assert driver.power(machine) == "deallocated"


def test_power_verbs_do_their_work_once(azure: ResourceManagerAzure, driver: Driver, machine: str) -> None:
    identity = vm_id(driver, machine)
    azure.start(identity)
    assert posts(driver, machine, "start") == 0
    azure.deallocate(identity)
    assert driver.power(machine) == "deallocated"
    azure.deallocate(identity)
    assert posts(driver, machine, "deallocate") == 1
    azure.start(identity)
    assert driver.power(machine) == "running"
    assert azure.vm(identity.upper().replace("/SUBSCRIPTIONS", "/subscriptions")).power is Power.ON


def test_verb_waits_for_anothers_operation(
    azure: ResourceManagerAzure, driver: Driver, machine: str, clock: QuickClock
) -> None:
    identity = vm_id(driver, machine)
    assert driver.ask("POST", f"virtualMachines/{machine}/deallocate").status_code == 202
    assert azure.vm(identity).power is Power.CHANGING
    azure.start(identity)
    assert driver.power(machine) == "running"
    assert clock.pauses[0] == 1.0


def test_granted_access_reads_the_disk_until_it_is_revoked(
    azure: ResourceManagerAzure, driver: Driver, machine: str, endpoints: Endpoints
) -> None:
    identity, disk = vm_id(driver, machine), driver.path(f"disks/{machine}-data")
    azure.deallocate(identity)
    first = azure.grant_access(disk, 600)
    assert azure.vm(identity).disks[1].state == "ActiveSAS"
    old = open_page_blob(first, Path(endpoints.certificate))
    second = azure.grant_access(disk, 600)
    with pytest.raises(PageBlobRefused):
        old.read(0, memoryview(bytearray(512)))
    old.close()
    new = open_page_blob(second, Path(endpoints.certificate))
    into = bytearray(SIZE)
    new.read(0, memoryview(into))
    assert bytes(into) == random.Random(1).randbytes(SIZE)
    azure.revoke_access(disk)
    with pytest.raises(PageBlobRefused):
        new.read(0, memoryview(into))
    new.close()
    azure.revoke_access(disk)
    assert azure.vm(identity).disks[1].state == "Reserved"


def test_revoking_where_nothing_is_granted_succeeds_on_a_running_machine_too(
    azure: ResourceManagerAzure, driver: Driver, machine: str
) -> None:
    azure.revoke_access(driver.path(f"disks/{machine}-os"))
    driver.fault("disks/endGetAccess", "answer", status=400, code="BadRequest", message="nothing to end")
    azure.revoke_access(driver.path(f"disks/{machine}-os"))


def test_grant_that_a_killed_step_began_is_replaced(
    azure: ResourceManagerAzure, driver: Driver, machine: str, endpoints: Endpoints
) -> None:
    azure.deallocate(vm_id(driver, machine))
    body = {"access": "Read", "durationInSeconds": 600}
    assert driver.ask("POST", f"disks/{machine}-os/beginGetAccess", body).status_code == 202
    url = azure.grant_access(driver.path(f"disks/{machine}-os"), 600)
    open_page_blob(url, Path(endpoints.certificate)).close()
    azure.revoke_access(driver.path(f"disks/{machine}-os"))


def test_disk_of_a_machine_that_is_not_deallocated_is_not_exported(
    azure: ResourceManagerAzure, driver: Driver, machine: str, clock: QuickClock
) -> None:
    with pytest.raises(AzureDiskInUse) as failure:
        azure.grant_access(driver.path(f"disks/{machine}-os"), 600)
    assert failure.value.state == "Attached"
    assert failure.value.retry is Retry.PERMANENT
    assert clock.pauses == []


def test_start_under_an_export_is_refused_and_names_the_disk(
    azure: ResourceManagerAzure, driver: Driver, machine: str
) -> None:
    identity, disk = vm_id(driver, machine), driver.path(f"disks/{machine}-data")
    azure.deallocate(identity)
    azure.grant_access(disk, 600)
    with pytest.raises(AzureDiskExported, match="revoke") as failure:
        azure.start(identity)
    assert failure.value.disks == f"{machine}-data"
    azure.revoke_access(disk)
    azure.start(identity)
    assert driver.power(machine) == "running"


def test_snapshot_of_a_running_machines_disk_is_exported(
    azure: ResourceManagerAzure, driver: Driver, machine: str
) -> None:
    creation = {"createOption": "Copy", "sourceResourceId": driver.path(f"disks/{machine}-os")}
    body = {"location": "westeurope", "properties": {"creationData": creation}}
    driver.run("PUT", f"snapshots/{machine}-now", body)
    snapshot = driver.path(f"snapshots/{machine}-now")
    assert azure.grant_access(snapshot, 600).reveal().startswith(b"https://")
    azure.revoke_access(snapshot)
    driver.run("DELETE", f"snapshots/{machine}-now")


@pytest.mark.parametrize("effect", ["answer", "drop", "drop-answer", "delay"])
def test_every_verb_survives_faults_that_pass(
    azure: ResourceManagerAzure, driver: Driver, machine: str, clock: QuickClock, effect: str
) -> None:
    identity, disk = vm_id(driver, machine), driver.path(f"disks/{machine}-os")
    more: dict[str, dict[str, Any]] = {"answer": {"retry_after": 7}, "delay": {"seconds": 0.05}}
    details = more.get(effect, {})

    def disturbed(*operations: str) -> None:
        for operation in operations:
            driver.fault(operation, effect, **details)

    disturbed("virtualMachines/get", "virtualMachines/deallocate", "operations/get")
    azure.deallocate(identity)
    assert driver.power(machine) == "deallocated"
    disturbed("disks/get", "disks/beginGetAccess", "operations/get")
    assert azure.grant_access(disk, 600)
    disturbed("disks/endGetAccess", "operations/get", "disks/get")
    azure.revoke_access(disk)
    disturbed("virtualMachines/start", "operations/get")
    azure.start(identity)
    assert driver.power(machine) == "running"
    assert [rule["count"] for rule in driver.control("GET", "/faults")["faults"]] == [0] * 11
    assert effect != "answer" or clock.pauses.count(7.0) == 11


def ended(azure: ResourceManagerAzure, identity: str, kind: type[HomewardError]) -> HomewardError:
    with pytest.raises(kind) as failure:
        azure.vm(identity)
    return failure.value


def test_limits_of_trying_again(
    azure: ResourceManagerAzure, driver: Driver, machine: str, clock: QuickClock
) -> None:
    identity = vm_id(driver, machine)
    faults: tuple[tuple[str, dict[str, Any], type[HomewardError]], ...] = (
        ("drop", {}, AzureUnreachable),
        ("answer", {"status": 429}, AzureThrottled),
        ("answer", {"status": 503, "code": "ServiceUnavailable"}, AzureFailing),
    )
    for effect, details, kind in faults:
        clock.pauses.clear()
        driver.fault("virtualMachines/get", effect, count=None, **details)
        error = ended(azure, identity, kind)
        assert error.retry is Retry.TRANSIENT
        assert error.facts()["attempts"] == AZURE_ATTEMPTS_MAX
        assert clock.pauses == [1, 2, 4, 8, 16, 32]
        driver.control("DELETE", "/faults")
    clock.pauses.clear()
    driver.fault("virtualMachines/get", "answer", status=429, retry_after=3600)
    assert ended(azure, identity, AzureThrottled).facts()["wait_seconds"] == 3600
    assert clock.pauses == []


def test_operation_of_another_that_does_not_end_is_told(
    azure: ResourceManagerAzure, driver: Driver, machine: str, clock: QuickClock
) -> None:
    driver.fault("virtualMachines/deallocate", "answer", status=409, code="Conflict", count=None)
    with pytest.raises(AzureBusy) as failure:
        azure.deallocate(vm_id(driver, machine))
    assert failure.value.retry is Retry.TRANSIENT
    assert sum(clock.pauses) == 600
    assert max(clock.pauses) == 15


def test_conflict_that_waiting_does_not_end_is_refused_at_once(
    azure: ResourceManagerAzure, driver: Driver, machine: str, clock: QuickClock
) -> None:
    driver.control("POST", "/power", {"group": "rg-web", "machine": machine, "power": "deallocated"})
    driver.fault(
        "virtualMachines/start", "answer", status=409, code="OperationNotAllowed", message="quota of cores"
    )
    with pytest.raises(AzureRefused, match=r"OperationNotAllowed: quota of cores"):
        azure.start(vm_id(driver, machine))
    assert clock.pauses == []


@pytest.mark.parametrize(
    ("code", "kind"),
    [("AllocationFailed", AzureOperationFailed), ("OperationPreempted", AzureOperationInterrupted)],
)
def test_operation_that_fails_half_way_is_told_with_azures_words(
    azure: ResourceManagerAzure, driver: Driver, machine: str, code: str, kind: type[HomewardError]
) -> None:
    driver.fault(
        "virtualMachines/deallocate", "fail-operation", status=409, code=code, message="no room here"
    )
    with pytest.raises(kind, match=f"{code}: no room here"):
        azure.deallocate(vm_id(driver, machine))
    azure.deallocate(vm_id(driver, machine))
    assert driver.power(machine) == "deallocated"


def test_operation_without_an_end_is_left_at_the_deadline(
    settings: AzureSettings, driver: Driver, machine: str
) -> None:
    clock = QuickClock()
    with closing(ResourceManagerAzure(replace(settings, operation_seconds_max=12.0), clock)) as azure:
        with pytest.raises(AzureOperationOverdue) as failure:
            azure.deallocate(vm_id(driver, machine))
        assert failure.value.seconds_max == 12
        assert clock.pauses == [5, 5, 2]
    with closing(ResourceManagerAzure(settings, QuickClock())) as azure:
        azure.deallocate(vm_id(driver, machine))


def test_machine_that_somebody_starts_again_is_no_success(
    azure: ResourceManagerAzure, driver: Driver, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ResourceManager, "run", lambda *_, **__: None)
    with pytest.raises(AzureStateUnexpected, match="on, not deallocated"):
        azure.deallocate(vm_id(driver, machine))


def test_missing_machine_and_disk_are_told_apart(azure: ResourceManagerAzure, driver: Driver) -> None:
    for verb in (azure.vm, azure.deallocate, azure.start):
        with pytest.raises(AzureVmMissing, match="ResourceNotFound"):
            verb(vm_id(driver, "nobody"))
    with pytest.raises(AzureDiskMissing):
        azure.grant_access(driver.path("disks/nothing"), 60)
    with pytest.raises(AzureDiskMissing):
        azure.revoke_access(driver.path("disks/nothing"))


@pytest.mark.parametrize(
    "change",
    [lambda i: "", lambda i: i + "?x=1", lambda i: i + "/start", lambda i: i.replace("m0", ".."), lambda i: i[1:],
     lambda i: i.replace("virtualMachines", "disks"), lambda i: i.replace(SUBSCRIPTION[:8], "00000000"),
     lambda i: i.replace("rg-web", "a%2fb"), lambda i: i.replace("Compute", "Network")],
)  # fmt: skip
def test_what_is_no_id_of_a_machine_is_refused_before_anything_is_sent(
    azure: ResourceManagerAzure, driver: Driver, change: Callable[[str], str]
) -> None:
    before = len(driver.calls("*"))
    with pytest.raises(AzureIdWrong):
        azure.deallocate(change(vm_id(driver, "m0")))
    assert len(driver.calls("*")) == before


def test_refusals_of_identity_and_role_are_told_apart(
    settings: AzureSettings, azure: ResourceManagerAzure, driver: Driver, machine: str
) -> None:
    driver.fault(
        "virtualMachines/get", "answer", status=403, code="AuthorizationFailed", message="may not read"
    )
    with pytest.raises(AzureForbidden, match="AuthorizationFailed: may not read"):
        azure.vm(vm_id(driver, machine))
    wrong = replace(settings, token=Secret(b"another-token"))
    with closing(ResourceManagerAzure(wrong, QuickClock())) as stranger, pytest.raises(AzureSignInFailed):
        stranger.vm(vm_id(driver, machine))


def test_endpoint_that_is_not_azure_is_not_trusted(settings: AzureSettings, driver: Driver) -> None:
    clock = QuickClock()
    identity = vm_id(driver, "m0")
    with (
        closing(ResourceManagerAzure(replace(settings, ca_file=None), clock)) as azure,
        pytest.raises(AzureNotTrusted),
    ):
        azure.vm(identity)
    assert clock.pauses == []
    dead = replace(settings, endpoint="https://127.0.0.1:1")
    with closing(ResourceManagerAzure(dead, clock)) as azure, pytest.raises(AzureUnreachable):
        azure.vm(identity)


def test_token_goes_to_no_other_host(settings: AzureSettings) -> None:
    manager = ResourceManager(settings, QuickClock())
    call = Call(
        "a poll", lambda code, message: AzureVmMissing(resource_id="", azure_code=code, message=message)
    )
    for url in ("https://127.0.0.1.example/x", settings.endpoint.replace("https", "http") + "/x"):
        with pytest.raises(AzureAnswerStrange, match="an address at"):
            manager.send(call, "GET", url, manager.deadline())
    manager.close()


def without(document: dict[str, Any], path: str) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(document))
    place: Any = copy
    *way, last = path.split(".")
    for step in way:
        place = place[int(step)] if step.isdigit() else place[step]
    del place[last]
    return copy


@pytest.mark.parametrize(
    ("path", "kind"),
    [("properties", AzureAnswerStrange), ("properties.instanceView", AzureAnswerStrange), ("id", AzureAnswerStrange),
     ("properties.storageProfile.osDisk", AzureAnswerStrange),
     ("properties.storageProfile.osDisk.managedDisk", AzureDiskUnmanaged)],
)  # fmt: skip
def test_document_that_lacks_something_is_told(
    azure: ResourceManagerAzure,
    driver: Driver,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    kind: type[HomewardError],
) -> None:
    real = ResourceManager.get

    def changed(self: ResourceManager, call: Call, where: str, *rest: Any) -> dict[str, Any]:
        document = real(self, call, where, *rest)
        return without(document, path) if "/virtualMachines/" in where else document

    monkeypatch.setattr(ResourceManager, "get", changed)
    with pytest.raises(kind):
        azure.vm(vm_id(driver, "m0"))


def test_hibernated_machine_is_not_stopped_for_good(
    azure: ResourceManagerAzure, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ResourceManager.get

    def hibernated(self: ResourceManager, call: Call, where: str, *rest: Any) -> dict[str, Any]:
        document = real(self, call, where, *rest)
        if "/virtualMachines/" in where:
            codes = ("PowerState/deallocated", "HibernationState/Hibernated")
            document["properties"]["instanceView"]["statuses"] = [{"code": code} for code in codes]
        return document

    monkeypatch.setattr(ResourceManager, "get", hibernated)
    found = azure.vm(vm_id(driver, "m0"))
    assert (found.power, found.deallocated) == (Power.SUSPENDED, True)


@pytest.mark.parametrize(
    "wrong",
    [{"subscription": "x"}, {"endpoint": "http://h"}, {"endpoint": "https://h/path"}, {"endpoint": "https://u@h"},
     {"endpoint": "https://"}, {"ca_file": Path("/nowhere.pem")}, {"poll_seconds": 0.0}],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(settings: AzureSettings, wrong: dict[str, Any]) -> None:
    with pytest.raises(AzureSettingsWrong):
        replace(settings, **wrong)


def test_missing_packages_are_named(settings: AzureSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    with pytest.raises(AzurePackageMissing, match="azure-identity"):
        ResourceManagerAzure(replace(settings, token=None))
    monkeypatch.delitem(sys.modules, "confserver.adapters.azure_arm")
    monkeypatch.setitem(sys.modules, "azure.mgmt.core", None)
    with pytest.raises(AzurePackageMissing, match="azure-mgmt-core"):
        ResourceManagerAzure(settings)


def test_no_token_or_signed_url_is_in_errors_traces_logs_or_representations(
    azure: ResourceManagerAzure,
    settings: AzureSettings,
    driver: Driver,
    machine: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    identity, disk = vm_id(driver, machine), driver.path(f"disks/{machine}-os")
    azure.deallocate(identity)
    url = azure.grant_access(disk, 600)
    text = url.reveal().decode()
    signature = text.partition("sig=")[2].partition("&")[0]
    jwt = "eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl"
    words = f"see {text} or sig={signature}, token {TOKEN}, Bearer opaque-secret or {jwt}"
    hidden = (signature, TOKEN, "opaque-secret", jwt)
    shown = [repr(url), str(url), repr(settings), repr(azure)]
    verbs: tuple[tuple[str, str, Callable[[], object]], ...] = (
        ("virtualMachines/start", "answer", lambda: azure.start(identity)),
        ("virtualMachines/get", "answer", lambda: azure.vm(identity)),
        ("disks/beginGetAccess", "fail-operation", lambda: azure.grant_access(disk, 600)),
        ("disks/get", "answer", lambda: azure.revoke_access(disk)),
    )
    for operation, effect, verb in verbs:
        driver.fault(operation, effect, status=400, code="Odd", message=words)
        with pytest.raises(HomewardError) as failure:
            verb()
        shown += [str(failure.value), json.dumps(failure.value.as_json()), repr(failure.value.facts())]
        shown += traceback.format_exception(failure.value)
        assert "Odd" in str(failure.value)
    driver.control("DELETE", "/faults")
    azure.revoke_access(disk)
    shown += [
        record.getMessage() + repr(record.args) for record in caplog.records if "simlab" not in record.name
    ]
    assert len(signature) > 40
    assert [(secret, text) for secret in hidden for text in shown if secret in text] == []
