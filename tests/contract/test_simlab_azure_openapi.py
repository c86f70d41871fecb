"""Every call and answer of the stand-in fits Microsoft's published interface (Compute, Disk 2019-03-01, Resources)."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from openapi_core import Config, OpenAPI
from openapi_core.contrib.requests import RequestsOpenAPIRequest, RequestsOpenAPIResponse
from openapi_core.validation.response.exceptions import InvalidData

from simlab.azure.kit import wait_until
from simlab.azure.launch import ROOT, Endpoints, running

SUBSCRIPTION = "6f1b6bb1-9a5e-4d0a-8a63-5f0d6c0f3a11"
GROUP = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/rg-web"
COMPUTE = f"{GROUP}/providers/Microsoft.Compute"
DOCUMENTS = ROOT / "build/azure-openapi"


class Judge:
    """Sends calls and lets the published documents judge both directions."""

    def __init__(self, endpoints: Endpoints) -> None:
        self.endpoints = endpoints
        self.session = requests.Session()
        # An environment's own bundle of certificates would go before ours.
        self.session.trust_env = False
        self.session.verify = endpoints.certificate
        self.session.headers["Authorization"] = "Bearer a-token"
        self.documents = {
            name: self.load(DOCUMENTS / f"{name}.json") for name in ("compute", "compute-disk", "resources")
        }

    def load(self, file: Path) -> OpenAPI:
        document = json.loads(file.read_text())
        document["servers"] = [{"url": self.endpoints.arm}]
        # The judge knows no OAuth; tokens have tests of their own.
        document.pop("security", None)
        # The documents are Microsoft's; whether they are good OpenAPI is not what is tested, and takes long.
        return OpenAPI.from_dict(document, config=Config(spec_validator_cls=None))

    def call(
        self,
        document: str,
        method: str,
        path: str,
        body: object = None,
        version: str = "2019-03-01",
        **query: str,
    ):
        request = requests.Request(
            method, self.endpoints.arm + path, params={"api-version": version, **query}, json=body
        )
        prepared = self.session.prepare_request(request)
        answer = self.session.send(prepared)
        asked = RequestsOpenAPIRequest(prepared)
        self.documents[document].validate_request(asked)
        # An answer without content has no type to judge by the schema; its status is judged below.
        if answer.content:
            self.documents[document].validate_response(asked, RequestsOpenAPIResponse(answer))
        return answer

    def accepted(self, method: str, path: str, body: object = None, document: str = "compute-disk") -> None:
        answer = self.call(document, method, path, body)
        assert answer.status_code == 202
        address = answer.headers["Azure-AsyncOperation"]

        def succeeded() -> bool:
            status = self.session.get(address).json()["status"]
            assert status in ("InProgress", "Succeeded")
            return bool(status == "Succeeded")

        assert wait_until(succeeded)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    subprocess.run([ROOT / "simlab/azure/install"], check=True)
    folder = tmp_path_factory.mktemp("azure")
    (folder / "disk.raw").write_bytes(bytes(65536))
    disks = [{"name": name, "file": "disk.raw", "os": "Linux"} for name in ("os", "data", "spare")]
    machine = {
        "name": "web",
        "size": "Standard_D2s_v3",
        "disks": ["os", "data"],
        "networks": [{"name": "nic"}],
        "tags": {"role": "web"},
    }
    group = {"name": "rg-web", "machines": [machine], "disks": disks}
    inventory = folder / "inventory.json"
    inventory.write_text(
        json.dumps(
            {"subscription": SUBSCRIPTION, "retry_after_seconds": 0, "page_size": 2, "groups": [group]}
        )
    )
    with running(inventory) as endpoints:
        judge = Judge(endpoints)
        yield judge
        judge.session.close()


def test_machines_fit_the_published_interface(judge: Judge) -> None:
    path = f"{COMPUTE}/virtualMachines/web"
    for expand in ({}, {"$expand": "instanceView"}):
        assert judge.call("compute", "GET", path, **expand).status_code == 200
    assert judge.call("compute", "GET", f"{path}/instanceView").status_code == 200
    assert judge.call("compute", "GET", f"{COMPUTE}/virtualMachines").status_code == 200
    everywhere = f"/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Compute/virtualMachines"
    assert judge.call("compute", "GET", everywhere).status_code == 200
    for verb in ("powerOff", "deallocate"):
        judge.accepted("POST", f"{path}/{verb}", document="compute")
        assert judge.call("compute", "GET", path, **{"$expand": "instanceView"}).status_code == 200
    judge.accepted("POST", f"{path}/start", document="compute")


def test_disks_fit_the_published_interface(judge: Judge) -> None:
    path = f"{COMPUTE}/disks"
    assert judge.call("compute-disk", "GET", f"{path}/os").status_code == 200
    everywhere = f"/subscriptions/{SUBSCRIPTION}/providers/Microsoft.Compute/disks"
    for listing in (path, everywhere):
        page = judge.call("compute-disk", "GET", listing)
        assert "nextLink" in page.json()
    judge.accepted("POST", f"{path}/spare/beginGetAccess", {"access": "Read", "durationInSeconds": 60})
    assert judge.call("compute-disk", "GET", f"{path}/spare").json()["properties"]["diskState"] == "ActiveSAS"
    judge.accepted("POST", f"{path}/spare/endGetAccess")
    empty = {
        "location": "westeurope",
        "properties": {"creationData": {"createOption": "Empty"}, "diskSizeGB": 4},
    }
    judge.accepted("PUT", f"{path}/new", empty)
    assert judge.call("compute-disk", "GET", f"{path}/new").json()["properties"]["diskSizeBytes"] == 4 << 30
    judge.accepted("DELETE", f"{path}/new")
    assert judge.call("compute-disk", "DELETE", f"{path}/new").status_code == 204


def test_snapshots_fit_the_published_interface(judge: Judge) -> None:
    path = f"{COMPUTE}/snapshots"
    source = {"createOption": "Copy", "sourceResourceId": f"{COMPUTE}/disks/os"}
    body = {"location": "westeurope", "properties": {"creationData": source, "incremental": True}}
    judge.accepted("PUT", f"{path}/point", body)
    assert judge.call("compute-disk", "GET", f"{path}/point").json()["properties"]["incremental"] is True
    assert judge.call("compute-disk", "GET", path).status_code == 200
    judge.accepted("POST", f"{path}/point/beginGetAccess", {"access": "Read", "durationInSeconds": 60})
    judge.accepted("POST", f"{path}/point/endGetAccess")
    judge.accepted("DELETE", f"{path}/point")


def test_final_answer_of_a_grant_fits_the_published_interface(judge: Judge) -> None:
    path = f"{COMPUTE}/disks/spare/beginGetAccess"
    answer = judge.call("compute-disk", "POST", path, {"access": "Read", "durationInSeconds": 60})
    location = answer.headers["Location"]
    assert wait_until(lambda: judge.session.get(location).status_code == 200)
    final = judge.session.get(location)
    # The interface gives the schema at the first call; the poller finds what it describes at the Location.
    asked = RequestsOpenAPIRequest(answer.request)
    judge.documents["compute-disk"].validate_response(asked, RequestsOpenAPIResponse(final))
    assert final.json()["accessSAS"].startswith(judge.endpoints.blob)
    judge.accepted("POST", f"{COMPUTE}/disks/spare/endGetAccess")


def test_groups_and_their_errors_fit_the_published_interface(judge: Judge) -> None:
    group = GROUP.replace("resourceGroups", "resourcegroups")
    for path in (group, f"/subscriptions/{SUBSCRIPTION}/resourcegroups"):
        assert judge.call("resources", "GET", path, version="2019-08-01").status_code == 200
    missing = judge.call("resources", "GET", f"{group}-other", version="2019-08-01")
    assert missing.status_code == 404


def test_judge_notices_a_wrong_answer(judge: Judge) -> None:
    prepared = judge.session.prepare_request(
        requests.Request(
            "GET", f"{judge.endpoints.arm}{COMPUTE}/disks/os", params={"api-version": "2019-03-01"}
        )
    )
    answer = judge.session.send(prepared)
    document = answer.json()
    document["properties"]["diskSizeBytes"] = "many"
    answer._content = json.dumps(document).encode()
    with pytest.raises(InvalidData):
        judge.documents["compute-disk"].validate_response(
            RequestsOpenAPIRequest(prepared), RequestsOpenAPIResponse(answer)
        )
