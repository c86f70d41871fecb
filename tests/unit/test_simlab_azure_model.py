"""Decisions of the stand-in for Azure that need no server: states, refusals, faults, the journal, the inventory."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from simlab.azure.errors import InventoryUnreadable
from simlab.azure.faults import Effect, Fault, Faults, Journal
from simlab.azure.inventory import Inventory, Power, read_inventory
from simlab.azure.model import Access, Estate, Kind
from simlab.azure.operations import Area, Operation, Operations, Status
from simlab.azure.refusals import Refused

SUBSCRIPTION = "6f1b6bb1-9a5e-4d0a-8a63-5f0d6c0f3a11"
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def inventory_file(folder: Path, **changes: Any) -> Path:
    (folder / "disk.raw").write_bytes(bytes(1024))
    group = {
        "name": "rg",
        "machines": [{"name": "web", "disks": ["os"]}],
        "disks": [{"name": "os", "file": "disk.raw"}, {"name": "spare", "file": "disk.raw"}],
    }
    file = folder / "inventory.json"
    file.write_text(json.dumps({"subscription": SUBSCRIPTION, "groups": [{**group, **changes}]}))
    return file


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    return read_inventory(inventory_file(tmp_path))


class Clock:
    """A clock that stands until it is set."""

    now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def estate(inventory: Inventory, clock: Clock) -> Estate:
    return Estate(inventory, clock)


def test_same_inventory_gives_the_same_identities(inventory: Inventory) -> None:
    first, second = Estate(inventory), Estate(inventory)
    assert [volume.unique_id for volume in first.volumes()] == [
        volume.unique_id for volume in second.volumes()
    ]
    assert len({volume.unique_id for volume in first.volumes()}) == 2


@pytest.mark.parametrize(
    ("power", "state"),
    [
        (Power.RUNNING, "Attached"),
        (Power.STOPPED, "Attached"),
        (Power.DEALLOCATING, "Attached"),
        (Power.DEALLOCATED, "Reserved"),
        (Power.STARTING, "Attached"),
    ],
)
def test_disk_state_follows_the_machines_power(estate: Estate, power: Power, state: str) -> None:
    machine = estate.machine(SUBSCRIPTION, "rg", "web")
    machine.power = power
    assert estate.disk_state(machine.disks[0]) == state


def test_only_a_deallocated_machines_disk_may_be_exported(estate: Estate) -> None:
    machine = estate.machine(SUBSCRIPTION, "RG", "WEB")
    for power in Power:
        machine.power = power
        if power is Power.DEALLOCATED:
            estate.check_exportable(machine.disks[0])
        else:
            with pytest.raises(Refused) as refusal:
                estate.check_exportable(machine.disks[0])
            assert refusal.value.status == 409


def test_export_that_is_over_holds_nothing(estate: Estate, clock: Clock) -> None:
    machine = estate.machine(SUBSCRIPTION, "rg", "web")
    machine.power = Power.DEALLOCATED
    disk = machine.disks[0]
    disk.access = Access("policy", NOON + timedelta(seconds=60), "url")
    assert estate.disk_state(disk) == "ActiveSAS"
    with pytest.raises(Refused, match="outstanding for disk os"):
        estate.check_startable(machine)
    clock.now = NOON + timedelta(seconds=60)
    assert estate.disk_state(disk) == "Reserved"
    estate.check_startable(machine)


def test_machine_whose_disk_is_being_exported_may_not_start(estate: Estate) -> None:
    machine = estate.machine(SUBSCRIPTION, "rg", "web")
    machine.power = Power.DEALLOCATED
    machine.disks[0].busy = True
    with pytest.raises(Refused, match="concurrent"):
        estate.check_startable(machine)


def test_attached_disk_may_not_be_deleted_and_a_spare_one_may(estate: Estate) -> None:
    estate.check_deletable(estate.volume(Kind.DISK, SUBSCRIPTION, "rg", "spare"))
    with pytest.raises(Refused, match="attached"):
        estate.check_deletable(estate.volume(Kind.DISK, SUBSCRIPTION, "rg", "os"))


@pytest.mark.parametrize("identity", ["", "/subscriptions/x", "/a/b/c/d/e/Microsoft.Compute/galleries/g"])
def test_id_that_names_no_volume_is_a_bad_parameter(estate: Estate, identity: str) -> None:
    with pytest.raises(Refused) as refusal:
        estate.volume_by_id(identity)
    assert refusal.value.status == 400


def test_secret_of_an_export_is_not_in_its_representation() -> None:
    assert "sig=" not in repr(Access("policy", NOON, "https://x/?sig=secret"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"disks": [{"name": "os", "file": "disk.raw"}, {"name": "OS", "file": "disk.raw"}]},
            "names os twice",
        ),
        ({"machines": [{"name": "web", "disks": ["os", "os"]}]}, "names os twice"),
        ({"machines": [{"name": "web", "disks": []}]}, "at least 1 item"),
        ({"machines": [{"name": "web", "disks": ["os"], "colour": "red"}]}, "Extra inputs"),
        ({"name": "ends."}, "pattern"),
    ],
)
def test_inventory_says_what_is_wrong(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InventoryUnreadable) as failure:
        read_inventory(inventory_file(tmp_path, **changes))
    assert reason in failure.value.reason


def test_faults_count_skip_and_match_in_their_order() -> None:
    faults = Faults()
    faults.add(Fault(operation="disks/*", count=1, skip=1, code="first"))
    faults.add(Fault(operation="DISKS/GET", count=None, code="second"))
    taken = [fault.code if (fault := faults.take("disks/get")) else None for _ in range(4)]
    assert taken == ["second", "first", "second", "second"]
    assert faults.take("snapshots/get") is None
    faults.clear()
    assert faults.take("disks/get") is None


def test_fault_tells_when_to_come_back() -> None:
    assert Fault(operation="*", retry_after=7).refusal().headers == {"Retry-After": "7"}
    assert Fault(operation="*", effect=Effect.ANSWER).refusal().headers == {}


def test_journal_lists_by_operation_and_from_a_number_on(clock: Clock) -> None:
    journal = Journal(clock)
    for operation in ("disks/get", "disks/list", "virtualMachines/get"):
        journal.note("arm", operation, "GET", "/p", {"authorization": "Bearer secret"})
    assert [call["operation"] for call in journal.listing("disks/*")] == ["disks/get", "disks/list"]
    assert [call["sequence"] for call in journal.listing(after=2)] == [3]
    assert "secret" not in json.dumps(journal.listing())


def carried_out(work: Any, doom: Refused | None = None) -> Operation:
    async def run() -> Operation:
        operations = Operations(Clock())
        operation = operations.begin("x", Area.DISK, "here", work, doom)
        assert operation.status is Status.IN_PROGRESS
        assert operations.find(operation.id) is operation
        while operation.ended is None:
            await asyncio.sleep(0)
        await operations.close()
        return operation

    return asyncio.run(run())


def test_operation_answers_what_its_work_brought() -> None:
    async def work(operation: Operation) -> dict[str, Any]:
        return {"accessSAS": "u"}

    document = carried_out(work).document()
    assert (document["status"], document["properties"]) == ("Succeeded", {"output": {"accessSAS": "u"}})


def test_doomed_operation_fails_in_the_middle() -> None:
    reached: list[str] = []

    async def work(operation: Operation) -> None:
        reached.append("begin")
        await operation.pass_time(0)
        reached.append("end")

    document = carried_out(work, Refused(409, "Doom", "as ordered")).document()
    assert (document["status"], document["error"]) == ("Failed", {"code": "Doom", "message": "as ordered"})
    assert reached == ["begin"]


def test_broken_stand_in_fails_the_operation_instead_of_hanging_it(caplog: pytest.LogCaptureFixture) -> None:
    async def work(operation: Operation) -> None:
        raise OSError("disk gone")

    document = carried_out(work).document()
    assert document["error"]["code"] == "InternalServerError"
    assert "disk gone" in document["error"]["message"]
    assert "broke down" in caplog.text
