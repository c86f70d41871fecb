"""The REST API over fakes: shapes, tokens, coded errors with an HTTP status."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from confserver import api
from drcore.secret import Secret
from tests.unit.confserver_fakes import AZURE_VM, disks_as_told
from tests.unit.confserver_rig import Rig, running

with warnings.catch_warnings():
    # Starlette announces that its client will move to another HTTP library.
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

TOKEN = {"Authorization": "Bearer a-token"}
TOLD: dict[str, Any] = {
    "name": "web",
    "vm": "web",
    "masttarget": "mt",
    "azure_vm": AZURE_VM,
    "os_family": "linux",
    "disks": disks_as_told(),
}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with running(tmp_path) as found:
        yield found


@pytest.fixture
def client(rig: Rig) -> Iterator[TestClient]:
    app = api.build(rig.service, rig.store, Secret(b"a-token"))
    with TestClient(app, raise_server_exceptions=False) as found:
        yield found


def test_a_machine_comes_home_over_the_api(rig: Rig, client: TestClient) -> None:
    item = client.post("/items", json=TOLD, headers=TOKEN).json()
    assert (item["state"], item["direction"]) == ("failed-over", "Azure to on-premises")
    assert client.post("/items", json=TOLD, headers=TOKEN).json() == item
    assert client.get("/items", headers=TOKEN).json() == {"items": [item]}
    rig.vsphere.tools = False
    checks = client.get("/items/web/preflight", headers=TOKEN).json()
    assert (checks["answer"], checks["verb"]) == ("no", "reprotect")
    rig.vsphere.tools = True
    for verb, state in (("reprotect", "protected"), ("failback", "failed-back"), ("commit", "committed")):
        plan = client.post(f"/items/web/{verb}?plan=true", headers=TOKEN).json()
        answer = client.post(f"/items/web/{verb}", headers=TOKEN)
        assert answer.status_code == 202, answer.text
        job = answer.json()["id"]
        rig.jobs.wait(rig.store.job(job))
        shown = client.get(f"/jobs/{job}", headers=TOKEN).json()
        assert (shown["status"], shown["error"]) == ("done", None)
        assert [step["name"] for step in shown["steps"]] == [step["step"] for step in plan["steps"]]
        assert client.get("/items/web", headers=TOKEN).json()["state"] == state
    listed = client.get("/jobs?item=web", headers=TOKEN).json()["jobs"]
    assert [job["verb"] for job in listed] == ["reprotect", "failback", "commit"]


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({}, "no bearer token"),
        ({"Authorization": "Bearer b-token"}, "another token"),
        ({"Authorization": "Basic a-token"}, "no bearer token"),
        ({"Authorization": "Bearer "}, "no bearer token"),
    ],
)
def test_without_the_token_nothing_is_told(client: TestClient, headers: dict[str, str], found: str) -> None:
    for method, path in (("GET", "/items"), ("GET", "/jobs"), ("POST", "/items/web/reprotect")):
        answer = client.request(method, path, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "HW-CONF-019")
        assert answer.json()["found"] == found


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/items/nobody", None, 404, "HW-CONF-002"),
        ("GET", "/items/nobody/preflight", None, 404, "HW-CONF-002"),
        ("GET", "/jobs/nothing", None, 404, "HW-CONF-003"),
        ("POST", "/items/web/failback", None, 409, "HW-CONF-004"),
        ("POST", "/items/web/reprotect", None, 412, "HW-CONF-006"),
        ("POST", "/items/web/fly", None, 400, "HW-CONF-020"),
        ("POST", "/items", {"name": "web"}, 400, "HW-CONF-020"),
        ("POST", "/items", {**TOLD, "surprise": 1}, 400, "HW-CONF-020"),
        ("POST", "/items", {**TOLD, "name": "../etc"}, 400, "HW-CONF-020"),
        ("POST", "/items", {**TOLD, "vm": "x" * 200_000}, 400, "HW-CONF-020"),
        (
            "POST",
            "/items",
            {**TOLD, "name": "db", "disks": [{**TOLD["disks"][0], "azure_disk": "/no/such/disk"}]},
            409,
            "HW-CONF-024",
        ),
        ("GET", "/nowhere", None, 404, "HW-CONF-020"),
    ],
)
def test_errors_are_coded_objects(
    rig: Rig, client: TestClient, method: str, path: str, body: Any, status: int, code: str
) -> None:
    rig.vsphere.tools = False
    client.post("/items", json=TOLD, headers=TOKEN)
    answer = client.request(method, path, json=body, headers=TOKEN)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert set(answer.json()) == {"error", "code", "found", "expected", "remedy"}


def test_a_body_of_unknown_length_is_refused(client: TestClient) -> None:
    answer = client.post("/items", content=iter([b"{}"]), headers=TOKEN)
    assert (answer.status_code, answer.json()["code"]) == (400, "HW-CONF-020")


def test_a_completed_migration_closes_the_way_home(client: TestClient) -> None:
    client.post("/items", json=TOLD, headers=TOKEN)
    moved = client.post("/items/web/events/complete-migration", headers=TOKEN)
    assert moved.json()["state"] == "migrated"
    assert client.post("/items/web/reprotect", headers=TOKEN).status_code == 409


def test_the_description_names_every_path_and_shape(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert {"/items", "/items/{item}/{verb}", "/jobs/{job}/retry"} <= set(described["paths"])
    assert {"ItemShape", "JobShape", "PlanShape", "ErrorShape"} <= set(described["components"]["schemas"])
