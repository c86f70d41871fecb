"""Settings and the local data path's refusals."""

from pathlib import Path

import pytest

from confserver import config
from confserver.adapters.network import TcpNetwork
from confserver.adapters.replication import LocalReplication
from confserver.adapters.role_process import failed
from confserver.config import ReplicationConfig, SourceConfig
from confserver.errors import (
    ConfigRefused,
    DatastoreUnmapped,
    JobCancelled,
    OtherDisk,
    RoleFailed,
    SourceUnknown,
)
from confserver.ports import CycleReport, ReplicaDisk, ReplicaOrder, Standing
from disks import guard
from disks.errors import DiskInUse
from drcore.clock import SystemClock

DISK = "6000c29" + "1" * 25


def order(path: str = "[vmfs1] web.vmdk", size: int = 4096) -> ReplicaOrder:
    return ReplicaOrder("11111111-1111-4111-8111-111111111111", 1, (ReplicaDisk(DISK, path, size, "/azure"),))


@pytest.fixture
def replication(tmp_path: Path) -> LocalReplication:
    (tmp_path / "vmfs1").mkdir()
    settings = ReplicationConfig(
        tmp_path / "key", tmp_path / "state", {"vmfs1": tmp_path / "vmfs1"}, (), None, None
    )
    return LocalReplication(settings, SystemClock())


@pytest.mark.parametrize(
    "path", ["[other] web.vmdk", "web.vmdk", "[vmfs1] ../web.vmdk", "[vmfs1] /etc/passwd", ""]
)
def test_a_path_outside_the_known_datastores_is_refused(replication: LocalReplication, path: str) -> None:
    with pytest.raises(DatastoreUnmapped):
        replication.start(order(path))


def test_a_disk_of_another_uuid_is_not_adopted(replication: LocalReplication, tmp_path: Path) -> None:
    (tmp_path / "vmfs1" / "web.raw").write_bytes(bytes(4096))
    with pytest.raises(OtherDisk) as caught:
        replication.start(order("[vmfs1] web.raw"))
    assert caught.value.wanted_uuid == DISK


def test_a_disk_that_nobody_can_read_is_named(replication: LocalReplication) -> None:
    with pytest.raises(SourceUnknown):
        replication.cycle(order(), lambda: False, lambda count: None)


class Held:
    """A disk that somebody holds for a while, and what was said of it; the clock moves only by sleeping."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.now = 0.0
        self.said: list[Standing] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def session(self, *_: object) -> CycleReport:
        if self.times:
            self.times -= 1
            error = DiskInUse(path="/vmfs1/web.vmdk", holder="a qemu has it open", verb="has locked")
            raise failed("agent", error.as_json())
        return CycleReport("p", 0, 0, 0.0, ())


def held(replication: LocalReplication, monkeypatch: pytest.MonkeyPatch, times: int) -> Held:
    found = Held(times)
    monkeypatch.setattr(replication, "_try", found.session)
    monkeypatch.setattr(replication, "_clock", found)
    return found


def test_a_cycle_says_that_it_waits_for_a_disk_in_use(
    replication: LocalReplication, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = held(replication, monkeypatch, 2)
    assert replication.final_cycle(order(), (), lambda: False, found.said.append).point == "p"
    waits = "waits for up to 18 s: /vmfs1/web.vmdk is in use: a qemu has it open"
    assert [standing.label for standing in found.said] == [waits, waits]
    assert found.now == 3.0


def test_a_disk_that_stays_in_use_ends_the_cycle_with_one_instruction(
    replication: LocalReplication, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = held(replication, monkeypatch, 9)
    with pytest.raises(RoleFailed) as caught:
        replication.final_cycle(order(), (), lambda: False, found.said.append)
    assert found.now == 18.0
    assert caught.value.role_remedy == "unmount or stop what holds it, then retry the job"


def test_a_disk_that_cannot_be_adopted_is_told_in_the_words_of_a_job(
    replication: LocalReplication, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = held(replication, monkeypatch, 0)
    (tmp_path / "vmfs1" / "web.raw").write_bytes(bytes(4096))
    with (tmp_path / "vmfs1" / "web.raw").open("r+b") as file:
        guard.lock(file.fileno(), Path(file.name), exclusive=True)
        with pytest.raises(RoleFailed) as caught:
            replication.start(order("[vmfs1] web.raw"))
    assert found.now == 18.0
    assert (caught.value.role_code, caught.value.role_remedy[-13:]) == ("HW-DISKS-010", "retry the job")


def test_who_waits_for_a_disk_in_use_can_be_cancelled(
    replication: LocalReplication, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = held(replication, monkeypatch, 9)
    with pytest.raises(JobCancelled):
        replication.final_cycle(order(), (), lambda: found.now >= 4.0, found.said.append)
    assert found.now == 4.0


def test_a_closed_port_has_a_reason() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        assert TcpNetwork().reach("127.0.0.1", port) == ""
    assert TcpNetwork().reach("127.0.0.1", port) != ""


def settings(folder: Path, extra: str = "", vsphere: str = 'password_variable = "PASSWORD"') -> Path:
    for name, content in (("token", b"secret-token\n"), ("key", b"k" * 32), ("azure", b"t")):
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o600)
    path = folder / "confserver.toml"
    path.write_text(
        f"""
[confserver]
token_file = "{folder}/token"
state_directory = "{folder}/state"
{extra}
[vsphere]
address = "vc:443"
user = "u"
{vsphere}
[azure]
subscription = "6f1b6bb1-9a5e-4d0a-8a63-5f0d6c0f3a11"
token_file = "{folder}/azure"
[replication]
key_file = "{folder}/key"
[[replication.datastore]]
name = "vmfs1"
directory = "/vmfs/vmfs1"
[[replication.source]]
disk = "6000c291-1111-1111-1111-111111111111"
path = "/dev/sdb"
"""
    )
    return path


def test_settings_are_read_with_credentials_from_outside(tmp_path: Path) -> None:
    found = config.load(settings(tmp_path), {"PASSWORD": "p w"})
    assert (found.host, found.port) == ("127.0.0.1", 8443)
    assert found.token.reveal() == b"secret-token"
    assert found.vsphere.password.reveal() == b"p w"
    assert found.replication.datastores == {"vmfs1": Path("/vmfs/vmfs1")}
    assert found.replication.sources == (SourceConfig("6000c291" + "1" * 24, Path("/dev/sdb"), ""),)
    assert found.database_url == f"sqlite:///{tmp_path}/state/items.sqlite"
    assert (found.replication.retention, found.replication.retention_own_volume) == (None, True)
    assert "p w" not in repr(found)


def test_a_postgresql_url_comes_from_a_variable(tmp_path: Path) -> None:
    path = settings(tmp_path, 'database_variable = "URL"')
    found = config.load(path, {"PASSWORD": "p", "URL": "postgresql://u:p@db/homeward"})
    assert found.database_url == "postgresql+psycopg://u:p@db/homeward"


@pytest.mark.parametrize(
    ("extra", "vsphere", "environment", "reason"),
    [
        ("surprise = 1", 'password_variable = "P"', {"P": "p"}, "unknown key"),
        ("", 'password = "plain"', {}, "password_variable or password_file is missing"),
        ("", 'password_variable = "P"', {}, "P of password_variable is not set"),
        (
            'database_variable = "URL"',
            'password_variable = "P"',
            {"P": "p"},
            "URL of database_variable is not set",
        ),
        ('masttarget_os = "vms"', 'password_variable = "P"', {"P": "p"}, "has to be one of"),
    ],
)
def test_wrong_settings_are_refused(
    tmp_path: Path, extra: str, vsphere: str, environment: dict[str, str], reason: str
) -> None:
    with pytest.raises(ConfigRefused) as caught:
        config.load(settings(tmp_path, extra, vsphere), environment)
    assert reason in str(caught.value)
    for variable in ("P", "URL"):
        asked = f"export {variable}=" in caught.value.sentence("remedy")
        assert asked == reason.startswith(f"{variable} of "), "a variable is not corrected in the file"


def test_a_token_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = settings(tmp_path)
    (tmp_path / "token").chmod(0o644)
    with pytest.raises(ConfigRefused) as caught:
        config.load(path, {"PASSWORD": "p"})
    assert "0644" in str(caught.value)
    assert f"chmod 0600 {tmp_path}/token" in caught.value.sentence("remedy")
