"""The stand-in's Resource Manager, asked by azure-core's pipeline and poller as the control layer asks it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from azure.core.exceptions import HttpResponseError, ServiceResponseError
from azure.core.rest import HttpRequest, HttpResponse

from simlab.azure.kit import GROUP_VERSION, NETWORK_VERSION, Driver, wait_until
from simlab.azure.launch import ROOT, running

SUBSCRIPTION = "6f1b6bb1-9a5e-4d0a-8a63-5f0d6c0f3a11"
MACHINES = 16
MIB = 1024 * 1024


def inventory(folder: Path) -> Path:
    """A group with machines `m0 …`, each with a system and a data disk, and one disk that nobody has."""
    (folder / "small.raw").write_bytes(b"\xeb" * 4096 + bytes(MIB - 4096))
    disk = {"file": "small.raw", "format": "raw"}
    machines = [
        {
            "name": f"m{index}",
            "disks": [f"m{index}-os", f"m{index}-data"],
            "networks": [{"name": f"m{index}-nic"}],
        }
        for index in range(MACHINES)
    ]
    names = [name for machine in machines for name in machine["disks"]]
    file = folder / "inventory.json"
    file.write_text(
        json.dumps(
            {
                "subscription": SUBSCRIPTION,
                "retry_after_seconds": 0,
                "page_size": 5,
                "groups": [
                    {
                        "name": "rg-web",
                        "location": "westeurope",
                        "machines": machines,
                        "disks": [{"name": name, **disk} for name in [*names, "spare"]],
                    }
                ],
            }
        )
    )
    return file


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    subprocess.run([ROOT / "simlab/azure/install"], check=True)
    with running(inventory(tmp_path_factory.mktemp("azure")), "--token", "a-token") as endpoints:
        driver = Driver(endpoints, "rg-web")
        yield driver
        driver.close()


@pytest.fixture(autouse=True)
def no_faults_left(driver: Driver) -> Iterator[None]:
    yield
    driver.control("DELETE", "/faults")


NUMBERS = count()


@pytest.fixture
def machine() -> str:
    """A machine that no other test touches."""
    return f"m{next(NUMBERS)}"


def refusal(answer: HttpResponse) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def events(driver: Driver, machine: str) -> list[str]:
    return [
        event["power"] for event in driver.control("GET", "/events")["events"] if event["machine"] == machine
    ]


def test_machine_tells_power_and_disks(driver: Driver, machine: str) -> None:
    plain = driver.get(f"virtualMachines/{machine}")
    viewed = driver.get(f"virtualMachines/{machine}", **{"$expand": "instanceView"})
    assert "instanceView" not in plain["properties"]
    codes = [status["code"] for status in viewed["properties"]["instanceView"]["statuses"]]
    assert codes == ["ProvisioningState/succeeded", "PowerState/running"]
    profile = plain["properties"]["storageProfile"]
    assert profile["osDisk"]["managedDisk"]["id"] == driver.path(f"disks/{machine}-os")
    assert [(disk["lun"], disk["name"]) for disk in profile["dataDisks"]] == [(0, f"{machine}-data")]
    disk = driver.get(f"disks/{machine}-os")
    assert disk["managedBy"] == plain["id"]
    assert (disk["properties"]["diskState"], disk["properties"]["diskSizeBytes"]) == ("Attached", MIB)


def test_names_in_paths_are_compared_without_case(driver: Driver, machine: str) -> None:
    path = driver.path(f"virtualMachines/{machine}")
    assert driver.get(path.upper().replace("/SUBSCRIPTIONS", "/subscriptions"))["name"] == machine


def test_deallocation_is_a_long_running_operation_and_reserves_the_disks(
    driver: Driver, machine: str
) -> None:
    first = driver.ask("POST", f"virtualMachines/{machine}/deallocate")
    assert first.status_code == 202
    assert first.headers["Retry-After"] == "0"
    operation, location = first.headers["Azure-AsyncOperation"], first.headers["Location"]
    assert driver.power(machine) == "deallocating"
    assert driver.ask("GET", location.removeprefix(driver.endpoints.arm)).status_code == 202
    path = operation.removeprefix(driver.endpoints.arm)
    assert wait_until(lambda: driver.get(path)["status"] == "Succeeded")
    assert driver.get(path)["endTime"] > driver.get(path)["startTime"]
    assert driver.ask("GET", location.removeprefix(driver.endpoints.arm)).status_code == 200
    assert driver.power(machine) == "deallocated"
    assert driver.get(f"disks/{machine}-os")["properties"]["diskState"] == "Reserved"
    profile = driver.get(f"virtualMachines/{machine}")["properties"]["storageProfile"]
    assert "storageAccountType" not in profile["osDisk"]["managedDisk"]
    driver.run("POST", f"virtualMachines/{machine}/start")
    assert events(driver, machine) == ["deallocating", "deallocated", "starting", "running"]


def test_power_off_keeps_the_disks_attached(driver: Driver, machine: str) -> None:
    driver.run("POST", f"virtualMachines/{machine}/powerOff")
    assert driver.power(machine) == "stopped"
    answer = driver.ask(
        "POST", f"disks/{machine}-os/beginGetAccess", {"access": "Read", "durationInSeconds": 60}
    )
    assert refusal(answer) == (409, "Conflict")


def test_verb_that_has_nothing_to_do_succeeds(driver: Driver, machine: str) -> None:
    driver.run("POST", f"virtualMachines/{machine}/start")
    assert driver.power(machine) == "running"
    assert events(driver, machine) == []


def test_second_operation_on_a_machine_is_refused(driver: Driver, machine: str) -> None:
    assert driver.ask("POST", f"virtualMachines/{machine}/deallocate").status_code == 202
    assert refusal(driver.ask("POST", f"virtualMachines/{machine}/start")) == (409, "Conflict")
    assert wait_until(lambda: driver.power(machine) == "deallocated")


def test_running_machines_disk_is_not_exported(driver: Driver, machine: str) -> None:
    answer = driver.ask(
        "POST", f"disks/{machine}-os/beginGetAccess", {"access": "Read", "durationInSeconds": 60}
    )
    assert refusal(answer) == (409, "Conflict")
    assert driver.path(f"virtualMachines/{machine}") in answer.json()["error"]["message"]
    assert driver.get(f"disks/{machine}-os")["properties"]["diskState"] == "Attached"


def test_export_holds_the_machine_until_it_ends(driver: Driver, machine: str) -> None:
    driver.run("POST", f"virtualMachines/{machine}/deallocate")
    url = driver.export(f"disks/{machine}-data")
    assert url.startswith(driver.endpoints.blob)
    assert driver.export(f"disks/{machine}-data") == url
    assert driver.get(f"disks/{machine}-data")["properties"]["diskState"] == "ActiveSAS"
    answer = driver.ask("POST", f"virtualMachines/{machine}/start")
    assert refusal(answer) == (409, "OperationNotAllowed")
    assert f"{machine}-data" in answer.json()["error"]["message"]
    assert driver.power(machine) == "deallocated"
    assert driver.run("POST", f"disks/{machine}-data/endGetAccess") is None
    assert driver.get(f"disks/{machine}-data")["properties"]["diskState"] == "Reserved"
    driver.run("POST", f"virtualMachines/{machine}/start")
    assert driver.power(machine) == "running"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"access": "Write", "durationInSeconds": 60},
        {"access": "Read", "durationInSeconds": 60 * 86400 + 1},
    ],
    ids=["empty", "write", "too-long"],
)
def test_unfit_export_request_is_refused(driver: Driver, body: dict[str, object]) -> None:
    assert refusal(driver.ask("POST", "disks/spare/beginGetAccess", body)) == (400, "InvalidParameter")


def test_lists_come_in_pages_and_machine_ids_name_the_group_in_capitals(driver: Driver) -> None:
    pages, names, ids = 0, [], []
    page = driver.get("virtualMachines")
    while True:
        pages += 1
        names += [item["name"] for item in page["value"]]
        ids += [item["id"] for item in page["value"]]
        if "nextLink" not in page:
            break
        page = driver.client.send_request(HttpRequest("GET", page["nextLink"])).json()
    assert pages == -(-MACHINES // 5)
    assert names == [f"m{index}" for index in range(MACHINES)]
    assert all("/resourceGroups/RG-WEB/" in identity for identity in ids)


def test_group_and_network_interface_are_told(driver: Driver) -> None:
    group = driver.get(driver.path(""), **{"api-version": GROUP_VERSION})
    assert (group["name"], group["location"]) == ("rg-web", "westeurope")
    path = driver.path("").replace("/providers", "") + "/providers/Microsoft.Network/networkInterfaces/m3-nic"
    card = driver.get(path, **{"api-version": NETWORK_VERSION})
    assert card["properties"]["ipConfigurations"][0]["properties"]["privateIPAddress"] == "10.0.0.4"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg-web", "SubscriptionNotFound"),
        (f"/subscriptions/{SUBSCRIPTION}/resourceGroups/other", "ResourceGroupNotFound"),
    ],
)
def test_missing_subscription_and_group_are_told_apart(driver: Driver, path: str, code: str) -> None:
    assert refusal(driver.ask("GET", path, **{"api-version": GROUP_VERSION})) == (404, code)


@pytest.mark.parametrize("resource", ["virtualMachines/nobody", "disks/nothing", "snapshots/nothing"])
def test_missing_resource_is_not_found(driver: Driver, resource: str) -> None:
    assert refusal(driver.ask("GET", resource)) == (404, "ResourceNotFound")


def test_path_that_is_not_served_says_so(driver: Driver) -> None:
    assert refusal(driver.ask("GET", "galleries/g")) == (404, "InvalidResourceType")


def test_missing_and_unknown_api_versions_are_refused(driver: Driver) -> None:
    unknown = driver.ask("GET", "virtualMachines/m0", **{"api-version": "2099-01-01"})
    assert refusal(unknown) == (400, "NoRegisteredProviderFound")
    assert "2024-07-01" in unknown.json()["error"]["message"]
    assert refusal(driver.ask("GET", "virtualMachines/m0", **{"api-version": ""})) == (
        400,
        "MissingApiVersionParameter",
    )


def test_wrong_token_is_challenged(driver: Driver) -> None:
    stranger = Driver(driver.endpoints, "rg-web", token="another")
    answer = stranger.ask("GET", "virtualMachines/m0")
    stranger.close()
    assert refusal(answer) == (401, "AuthenticationFailed")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer authorization_uri=")


def test_throttled_call_is_retried_by_the_pipeline_and_done_once(driver: Driver, machine: str) -> None:
    driver.fault("virtualMachines/deallocate", "answer", status=429, retry_after=0, count=2)
    driver.run("POST", f"virtualMachines/{machine}/deallocate")
    calls = driver.calls("virtualMachines/deallocate", f"/{machine}/")
    assert [call["status"] for call in calls] == [429, 429, 202]
    assert len({call["client_request_id"] for call in calls}) == 1
    assert events(driver, machine) == ["deallocating", "deallocated"]


def test_operation_that_fails_half_way_surfaces_and_leaves_the_old_state(
    driver: Driver, machine: str
) -> None:
    driver.fault(
        "virtualMachines/deallocate", "fail-operation", status=409, code="AllocationFailed", message="no luck"
    )
    with pytest.raises(HttpResponseError) as failure:
        driver.run("POST", f"virtualMachines/{machine}/deallocate")
    assert failure.value.error is not None
    assert failure.value.error.code == "AllocationFailed"
    assert driver.power(machine) == "running"
    assert driver.get(f"virtualMachines/{machine}")["properties"]["provisioningState"] == "Failed"
    driver.run("POST", f"virtualMachines/{machine}/deallocate")
    assert driver.get(f"virtualMachines/{machine}")["properties"]["provisioningState"] == "Succeeded"


def test_failed_export_leaves_nothing_granted(driver: Driver) -> None:
    driver.fault("disks/beginGetAccess", "fail-operation", status=500, code="InternalServerError")
    with pytest.raises(HttpResponseError, match="InternalServerError"):
        driver.export("disks/spare")
    assert driver.get("disks/spare")["properties"]["diskState"] == "Unattached"


def test_cut_connection_is_asked_again(driver: Driver, machine: str) -> None:
    driver.fault("virtualMachines/get", "drop")
    assert driver.get(f"virtualMachines/{machine}")["name"] == machine
    calls = driver.calls("virtualMachines/get", f"/{machine}")
    assert [(call["cut"], call["status"]) for call in calls] == [(True, 0), (False, 200)]


def test_lost_answer_shows_in_the_journal_as_done(driver: Driver, machine: str) -> None:
    driver.fault("virtualMachines/deallocate", "drop-answer")
    with pytest.raises(ServiceResponseError):
        driver.ask("POST", f"virtualMachines/{machine}/deallocate")
    assert [
        (call["cut"], call["status"]) for call in driver.calls("virtualMachines/deallocate", f"/{machine}/")
    ] == [(True, 202)]
    assert wait_until(lambda: driver.power(machine) == "deallocated")


def test_fault_can_skip_calls_and_be_listed(driver: Driver) -> None:
    driver.fault("disks/*", "answer", status=404, code="Gone", skip=1)
    assert driver.ask("GET", "disks/spare").status_code == 200
    assert refusal(driver.ask("GET", "disks/spare")) == (404, "Gone")
    assert driver.ask("GET", "disks/spare").status_code == 200
    rule = driver.control("GET", "/faults")["faults"][0]
    assert (rule["count"], rule["hits"]) == (0, 1)


@pytest.mark.parametrize(
    "body", [{"operation": "x", "effect": "explode"}, {"effect": "drop"}, {"operation": "x", "y": 1}]
)
def test_malformed_fault_is_refused(driver: Driver, body: dict[str, object]) -> None:
    with pytest.raises(urllib.error.HTTPError) as failure:
        driver.control("POST", "/faults", body)
    failure.value.close()
    assert failure.value.code == 400


def test_operator_may_switch_a_machine_behind_our_back(driver: Driver, machine: str) -> None:
    driver.control("POST", "/power", {"group": "rg-web", "machine": machine, "power": "deallocated"})
    assert driver.power(machine) == "deallocated"
    driver.export(f"disks/{machine}-os")
    with pytest.raises(urllib.error.HTTPError) as failure:
        driver.control("POST", "/power", {"group": "rg-web", "machine": machine, "power": "running"})
    failure.value.close()
    assert failure.value.code == 409
    driver.run("POST", f"disks/{machine}-os/endGetAccess")
    driver.control("POST", "/power", {"group": "rg-web", "machine": machine, "power": "running"})
    assert events(driver, machine) == ["deallocated", "running"]


def test_journal_keeps_no_secret(driver: Driver) -> None:
    url = driver.export("disks/spare")
    driver.run("POST", "disks/spare/endGetAccess")
    journal = json.dumps(driver.control("GET", "/calls"))
    assert "spare" in journal
    assert "a-token" not in journal
    assert url.partition("sig=")[2] not in journal


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("{", "HW-SIMLAB-101"),
        ('{"subscription": "no"}', "HW-SIMLAB-101"),
        (
            '{"subscription": "%s", "groups": [{"name": "g", "machines": [{"name": "m", "disks": ["d"]}]}]}',
            "HW-SIMLAB-101",
        ),
        (
            '{"subscription": "%s", "groups": [{"name": "g", "disks": [{"name": "d", "file": "no.raw"}]}]}',
            "HW-SIMLAB-102",
        ),
        (
            '{"subscription": "%s", "groups": [{"name": "g", "disks": [{"name": "d", "file": "odd.raw"}]}]}',
            "HW-SIMLAB-102",
        ),
    ],
    ids=["no-json", "no-uuid", "no-such-disk", "no-file", "odd-size"],
)
def test_unfit_inventory_ends_with_one_coded_line(tmp_path: Path, content: str, code: str) -> None:
    (tmp_path / "odd.raw").write_bytes(b"x" * 513)
    (tmp_path / "inventory.json").write_text(content.replace("%s", SUBSCRIPTION))
    command = [sys.executable, "-m", "simlab.azure", "--inventory", str(tmp_path / "inventory.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{code}: ")
    assert done.stderr.count("\n") == 1


def test_signal_ends_it_with_everything_that_it_started(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    announced = tmp_path / "announced.json"
    command = [sys.executable, "-m", "simlab.azure", "--inventory", str(inventory(tmp_path))]
    with subprocess.Popen(
        [*command, "--announce", str(announced), "--certificate", str(tmp_path / "trust.pem")],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert announced.read_text() == line
        assert json.loads(line)["certificate"] == str(tmp_path / "trust.pem")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 1
        process.terminate()
        assert process.wait(20) == 0
    assert not Path(f"/proc/{children[0]}").exists()
    assert list(scratch.iterdir()) == []


def test_kill_ends_the_blob_service_too(tmp_path: Path) -> None:
    with running(inventory(tmp_path)) as endpoints:
        children = Path(f"/proc/{endpoints.pid}/task/{endpoints.pid}/children").read_text().split()
        os.kill(endpoints.pid, signal.SIGKILL)
        assert len(children) == 1
        assert wait_until(lambda: not Path(f"/proc/{children[0]}").exists())
    shutil.rmtree(Path(endpoints.certificate).parent)
