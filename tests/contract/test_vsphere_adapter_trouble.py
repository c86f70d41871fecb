"""What the port to a vCenter says when something is wrong: trust, accounts, lost connections, refusals, slow tasks."""

import datetime
import hashlib
import http.server
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pyVmomi import vim

from confserver.adapters.vsphere import PyvmomiVSphere, VsphereSettings
from confserver.errors_fabric import (
    DatastoreMissing,
    FileIsLocked,
    FileRefused,
    HostMemoryShort,
    HostMissing,
    HostUnavailable,
    PrivilegeMissing,
    TaskLate,
    VcenterBusy,
    VcenterCertificateRefused,
    VcenterGarbled,
    VcenterLoginRefused,
    VcenterThumbprintDiffers,
    VcenterTrustRefused,
    VcenterUnreachable,
    VmAmbiguous,
    VmMissing,
)
from confserver.ports import Power, VmDisk
from drcore.errors import HomewardError, Retry
from drcore.secret import Secret
from simlab.vcenter import kit, launch, story
from simlab.vcenter.launch import Vcenter
from simlab.vcenter.story import ADMIN, GIB, MIB, OPERATOR, READER

WEB_FILE = "[vmfs1] web/web.vmdk"
WEB_UUID = "6000c290111122223333444444444444"


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    launch.build()


@pytest.fixture
def vcenter(tmp_path: Path) -> Iterator[Vcenter]:
    with launch.running(story.write(tmp_path, story.site(tmp_path))) as running:
        yield running


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vcenter]:
    """A stand-in for tests that change nothing in it."""
    folder = tmp_path_factory.mktemp("lasting")
    with launch.running(story.write(folder, story.site(folder))) as running:
        yield running


@pytest.fixture
def shared(lasting: Vcenter) -> Vcenter:
    lasting.clear()
    lasting.forget_calls()
    return lasting


def settings_for(vcenter: Vcenter, account: tuple[str, str] = ADMIN) -> VsphereSettings:
    password = Secret(account[1].encode())
    return VsphereSettings(
        vcenter.host, vcenter.port, account[0], password, vcenter.certificate, None, timeout_seconds=20.0
    )


@contextmanager
def connected(settings: VsphereSettings) -> Iterator[PyvmomiVSphere]:
    with closing(PyvmomiVSphere(settings)) as vsphere:
        yield vsphere


@contextmanager
def admin(vcenter: Vcenter) -> Iterator[PyvmomiVSphere]:
    with connected(settings_for(vcenter)) as vsphere:
        yield vsphere


# --- trust ---


@pytest.mark.parametrize("form", ["as shown", "plain", "lower"])
def test_the_pinned_certificate_is_trusted_in_any_spelling(shared: Vcenter, form: str) -> None:
    spelled = {
        "as shown": shared.thumbprint,
        "plain": shared.thumbprint.replace(":", ""),
        "lower": shared.thumbprint.lower(),
    }[form]
    settings = replace(settings_for(shared), ca_file=None, thumbprint=spelled)
    with connected(settings) as vsphere:
        assert vsphere.vcenter().version == "8.0.3"


@pytest.mark.parametrize("ca", [True, False])
def test_another_certificate_than_the_pinned_one_gets_no_password(shared: Vcenter, ca: bool) -> None:
    wanted = hashlib.sha256(b"another").hexdigest().upper()
    settings = replace(settings_for(shared), thumbprint=wanted)
    with (
        connected(settings if ca else replace(settings, ca_file=None)) as vsphere,
        pytest.raises(VcenterThumbprintDiffers) as refusal,
    ):
        vsphere.vcenter()
    assert refusal.value.wanted == wanted
    assert refusal.value.actual == shared.thumbprint.replace(":", "")
    assert refusal.value.retry is Retry.PERMANENT
    assert shared.calls() == []


def test_without_ca_and_thumbprint_the_systems_authorities_decide(shared: Vcenter) -> None:
    with (
        connected(replace(settings_for(shared), ca_file=None)) as vsphere,
        pytest.raises(VcenterCertificateRefused, match=r"HW-CONF-103.*self-signed"),
    ):
        vsphere.vcenter()
    assert shared.calls() == []


def test_another_authority_does_not_vouch(shared: Vcenter, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(certificate()[0])
    for thumbprint in (None, shared.thumbprint):  # with both, both have to hold
        settings = replace(settings_for(shared), ca_file=other, thumbprint=thumbprint)
        with connected(settings) as vsphere, pytest.raises(VcenterCertificateRefused):
            vsphere.vcenter()
    assert shared.calls() == []


@pytest.mark.parametrize("content", [None, "no certificate", ""])
def test_a_ca_file_without_a_certificate_is_refused(
    shared: Vcenter, tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with (
        connected(replace(settings_for(shared), ca_file=file)) as vsphere,
        pytest.raises(VcenterTrustRefused, match=r"HW-CONF-105.*ca\.pem"),
    ):
        vsphere.vcenter()


@pytest.mark.parametrize("thumbprint", ["", "AB:CD", "0" * 40, "x" * 64])
def test_a_thumbprint_that_is_no_sha256_is_refused(shared: Vcenter, thumbprint: str) -> None:
    with (
        connected(replace(settings_for(shared), thumbprint=thumbprint)) as vsphere,
        pytest.raises(VcenterTrustRefused, match="64 hexadecimal digits"),
    ):
        vsphere.vcenter()


def test_a_certificate_that_changes_in_mid_session_is_met_with_the_same_question(tmp_path: Path) -> None:
    file = story.write(tmp_path, story.site(tmp_path))
    with launch.running(file) as first:
        pinned = replace(settings_for(first), ca_file=None, thumbprint=first.thumbprint)
        by_pin, ca = PyvmomiVSphere(pinned), tmp_path / "ca.pem"
        ca.write_bytes(first.certificate.read_bytes())
        by_ca = PyvmomiVSphere(replace(settings_for(first), ca_file=ca))
        by_pin.vcenter()
        by_ca.vcenter()
    with launch.running(file, "--listen", f"127.0.0.1:{first.port}") as second:
        for vsphere in (by_pin, by_ca):
            with pytest.raises(VcenterUnreachable):  # the connection that was there is cut
                vsphere.vcenter()
        for _ in range(2):
            with pytest.raises(VcenterThumbprintDiffers) as refusal:
                by_pin.vcenter()
            assert refusal.value.actual == second.thumbprint.replace(":", "")
            with pytest.raises(VcenterCertificateRefused):
                by_ca.vcenter()
        assert second.calls() == []
        ca.write_bytes(second.certificate.read_bytes())  # the operator trusts the new one
        by_ca.vcenter()
        by_ca.close()
        by_pin.close()


# --- accounts ---


def test_a_wrong_password_is_told_and_tried_once(shared: Vcenter) -> None:
    with (
        connected(settings_for(shared, (ADMIN[0], "a wrong password"))) as vsphere,
        pytest.raises(VcenterLoginRefused, match=r"HW-CONF-106.*administrator@vsphere\.local") as refusal,
    ):
        vsphere.power_on("web")
    assert refusal.value.retry is Retry.PERMANENT
    assert "a wrong password" not in str(refusal.value)
    assert len(shared.calls(method="Login")) == 1  # more would lock the account


def test_the_password_is_not_in_what_is_printed(shared: Vcenter) -> None:
    assert ADMIN[1] not in repr(settings_for(shared))


def test_a_read_only_account_shows_by_its_datastores_and_privileges(shared: Vcenter) -> None:
    wanted = ("VirtualMachine.Interact.PowerOn", "System.Read", "VirtualMachine.State.CreateSnapshot")
    with connected(settings_for(shared, READER)) as vsphere:
        assert vsphere.vm("web").name == "web"
        assert vsphere.datastores("esx1") == ()
        assert vsphere.missing_privileges("web", wanted) == (wanted[0], wanted[2])
        assert vsphere.missing_privileges("web", ()) == ()
    with connected(settings_for(shared, OPERATOR)) as vsphere:
        assert vsphere.missing_privileges("web", wanted) == (wanted[2],)
    with admin(shared) as vsphere:
        assert len(vsphere.datastores("esx1")) == 5
        assert vsphere.missing_privileges("web", wanted) == ()


def test_a_missing_privilege_is_named(shared: Vcenter) -> None:
    with connected(settings_for(shared, READER)) as vsphere:
        acts: dict[str, Callable[[], None]] = {
            "VirtualMachine.Interact.PowerOn": lambda: vsphere.power_on("web"),
            "VirtualMachine.State.CreateSnapshot": lambda: vsphere.create_snapshot("web", "a"),
            "VirtualMachine.Config.RemoveDisk": lambda: vsphere.detach_disk("web", WEB_UUID),
        }
        for privilege, act in acts.items():
            with pytest.raises(PrivilegeMissing, match=privilege) as refusal:
                act()
            assert refusal.value.entity == "VM web"
            assert refusal.value.user == READER[0]
            assert refusal.value.retry is Retry.PERMANENT


# --- connections ---


def test_a_vcenter_that_was_away_is_served_again_in_the_same_session(shared: Vcenter) -> None:
    with admin(shared) as vsphere:
        vsphere.vcenter()
        shared.connection(is_open=False)
        for ask in (vsphere.vcenter, lambda: vsphere.power_on("web")):
            with pytest.raises(VcenterUnreachable) as refusal:
                ask()
            assert refusal.value.retry is Retry.TRANSIENT
        vsphere.close()  # nobody to tell, and no error
        with pytest.raises(VcenterUnreachable):
            vsphere.vcenter()
        shared.connection(is_open=True)
        assert vsphere.vcenter().version == "8.0.3"
        assert vsphere.vm("web").power is Power.OFF


def test_a_short_absence_needs_no_new_login(shared: Vcenter) -> None:
    with admin(shared) as vsphere:
        vsphere.vcenter()
        shared.connection(is_open=False)
        with pytest.raises(VcenterUnreachable):
            vsphere.vcenter()
        shared.connection(is_open=True)
        vsphere.vcenter()
    assert len(shared.calls(method="Login")) == 1


def test_close_logs_out_and_a_later_call_logs_in_again(shared: Vcenter) -> None:
    with admin(shared) as vsphere:
        vsphere.close()  # before the first call there is nothing to end
        vsphere.vcenter()
        vsphere.close()
        vsphere.close()
        assert len(shared.calls(method="Logout")) == 1
        vsphere.vcenter()
    assert len(shared.calls(method="Login")) == 2


def test_a_server_that_says_nothing_is_given_up_in_time(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        settings = VsphereSettings("127.0.0.1", port, "u", Secret(b"p"), None, "00" * 32, timeout_seconds=0.2)
        for trust in (settings, replace(settings, thumbprint=None)):
            with connected(trust) as vsphere, pytest.raises(VcenterUnreachable, match="no answer in time"):
                vsphere.vcenter()


def test_a_name_that_does_not_resolve_is_unreachable() -> None:
    settings = VsphereSettings("vcenter.invalid", 443, "u", Secret(b"p"), None, None, timeout_seconds=5.0)
    with connected(settings) as vsphere, pytest.raises(VcenterUnreachable, match=r"vcenter\.invalid:443"):
        vsphere.vcenter()


def certificate() -> tuple[bytes, bytes]:
    """A self-signed certificate for 127.0.0.1 and its key, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "not a vCenter")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return made.public_bytes(serialization.Encoding.PEM), private


@contextmanager
def web_server(folder: Path, status: int, body: bytes) -> Iterator[VsphereSettings]:
    """Something that speaks HTTPS and is no vCenter."""

    class Page(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    public, private = certificate()
    file = folder / "server.pem"
    file.write_bytes(public + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            port = server.server_address[1]
            yield VsphereSettings("127.0.0.1", port, "u", Secret(b"p"), file, None, timeout_seconds=10.0)
        finally:
            server.shutdown()
            thread.join()


def test_a_name_matters_to_an_authority_and_not_to_a_thumbprint(tmp_path: Path) -> None:
    with web_server(tmp_path, 503, b"") as settings:
        assert settings.ca_file is not None
        by_name = replace(settings, host="localhost")  # the certificate speaks of 127.0.0.1
        with connected(by_name) as vsphere, pytest.raises(VcenterCertificateRefused, match="localhost"):
            vsphere.vcenter()
        der = ssl.PEM_cert_to_DER_cert(settings.ca_file.read_text().partition("-----BEGIN PRIVATE")[0])
        pinned = replace(by_name, ca_file=None, thumbprint=hashlib.sha256(der).hexdigest())
        with connected(pinned) as vsphere, pytest.raises(VcenterBusy):
            vsphere.vcenter()


SOAP = b'<Envelope xmlns="http://schemas.xmlsoap.org/soap/envelope/"><Body>%b</Body></Envelope>'


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (200, b"<html><p>Welcome</html>", "HW-CONF-129"),
        (200, b"", "HW-CONF-129"),
        (200, SOAP % b'<x xmlns="urn:vim25"><returnval type="Nothing">1</returnval></x>', "HW-CONF-129"),
        (500, b"Internal Server Error", "HW-CONF-129"),
        (503, b"starting", "HW-CONF-102"),
        (404, b"not here", "HW-CONF-128"),
    ],
)
def test_what_is_no_vcenter_is_told(tmp_path: Path, status: int, body: bytes, code: str) -> None:
    with web_server(tmp_path, status, body) as settings, connected(settings) as vsphere:
        with pytest.raises(HomewardError) as refusal:
            vsphere.vcenter()
        assert refusal.value.code == code


def test_an_answer_that_cannot_be_read_is_told(shared: Vcenter) -> None:
    shared.arrange("PowerOnVM_Task", fault="TaskInProgress")  # without the task that belongs to it
    with admin(shared) as vsphere, pytest.raises(VcenterGarbled):
        vsphere.power_on("web")


# --- refusals ---

TASK = {"task": {"type": "Task", "value": "task-1"}}
GONE = {"obj": {"type": "VirtualMachine", "value": "vm-1"}}


@pytest.mark.parametrize(
    ("fault", "detail", "code", "says"),
    [
        ("TaskInProgress", TASK, "HW-CONF-112", "at the moment"),
        ("ConcurrentAccess", {}, "HW-CONF-112", "at the moment"),
        ("InvalidState", {}, "HW-CONF-112", "at the moment"),
        ("FileLocked", {"file": WEB_FILE}, "HW-CONF-114", r"\[vmfs1\] web/web\.vmdk is locked"),
        ("FileNotFound", {"file": WEB_FILE}, "HW-CONF-115", r"\[vmfs1\] web/web\.vmdk is not there"),
        ("CannotAccessFile", {"file": WEB_FILE}, "HW-CONF-132", r"\[vmfs1\] web/web\.vmdk"),
        ("NoDiskSpace", {"file": WEB_FILE, "datastore": "vmfs1"}, "HW-CONF-125", "datastore is full"),
        ("HostNotConnected", {}, "HW-CONF-126", "its host takes no orders"),
        ("InvalidHostState", {}, "HW-CONF-126", "its host takes no orders"),
        ("RequestCanceled", {}, "HW-CONF-127", "was cancelled"),
        ("ManagedObjectNotFound", GONE, "HW-CONF-130", "VirtualMachine:vm-1 is gone"),
        ("InvalidDatastorePath", {"datastorePath": "[x] y"}, "HW-CONF-131", r"the datastore of \[x\] y"),
        ("InsufficientMemoryResourcesFault", {"unreserved": 5, "requested": 9}, "8038", "5 bytes free"),
        ("NotEnoughLicenses", {}, "HW-CONF-128", "NotEnoughLicenses: arranged fault"),
    ],
)
def test_each_fault_has_its_error(
    shared: Vcenter, fault: str, detail: dict[str, Any], code: str, says: str
) -> None:
    with admin(shared) as vsphere:
        for kind in ("fault", "task_fault"):
            shared.arrange("PowerOnVM_Task", **{kind: fault}, detail=detail)
            with pytest.raises(HomewardError, match=says) as refusal:
                vsphere.power_on("web")
            assert refusal.value.code == code
            assert refusal.value.__cause__ is not None
        assert vsphere.vm("web").power is Power.OFF


def test_what_is_not_there_is_told(shared: Vcenter) -> None:
    with admin(shared) as vsphere:
        with pytest.raises(VmMissing, match=r"HW-CONF-108.*no VM named nobody"):
            vsphere.power_on("nobody")
        with pytest.raises(HostMissing, match=r"HW-CONF-111"):
            vsphere.vms_on("nowhere")
        with pytest.raises(HostMissing):
            vsphere.datastores("nowhere")
        elsewhere = disk_on("[nowhere] web/web.vmdk")
        with pytest.raises(DatastoreMissing, match=r"HW-CONF-131.*esx1: nfs1, vmfs1, vmfs2, vmfs3, vsan1"):
            vsphere.attach_disk("mt", elsewhere, keep_place=False)


def disk_on(file: str) -> VmDisk:
    return VmDisk("6000c290" * 4, file, file, MIB, "VirtualLsiLogicController", 0, 5)


def test_two_vms_of_one_name_are_not_told_apart(tmp_path: Path) -> None:
    site = story.site(tmp_path)
    site["vms"] += [{"name": "web", "host": "esx1", "datastore": "vmfs3", "folder": "old"}]
    with launch.running(story.write(tmp_path, site)) as vcenter, admin(vcenter) as vsphere:
        with pytest.raises(VmAmbiguous, match=r"HW-CONF-109.*2 VMs named web"):
            vsphere.power_on("web")
        assert vsphere.vms_on("esx1") == ("mt", "web", "web")


def test_too_little_memory_is_8038(tmp_path: Path) -> None:
    site = story.site(tmp_path)
    site["vms"][0]["memory_bytes"] = 4 * GIB
    with (
        launch.running(story.write(tmp_path, site)) as vcenter,
        admin(vcenter) as vsphere,
        pytest.raises(HostMemoryShort, match=r"^8038: the host of VM web") as refusal,
    ):
        vsphere.power_on("web")
    assert (refusal.value.free_bytes, refusal.value.wanted_bytes) == (3 * GIB, 4 * GIB)
    assert refusal.value.retry is Retry.PERMANENT


def test_a_disk_that_another_vm_has_open_is_named_at_power_on(vcenter: Vcenter) -> None:
    with kit.session(vcenter, *ADMIN) as instance:
        mt = kit.find(instance, vim.VirtualMachine, "mt")
        kit.reconfigure(mt, kit.add_disk(kit.controller_of(mt).key, WEB_FILE))
    with (
        admin(vcenter) as vsphere,
        pytest.raises(FileIsLocked, match=r"HW-CONF-114: cannot power on VM web") as refusal,
    ):
        vsphere.power_on("web")
    assert refusal.value.file == WEB_FILE
    assert refusal.value.retry is Retry.PERMANENT


def test_a_file_that_cannot_be_written_there_is_not_attached(tmp_path: Path) -> None:
    site = story.site(tmp_path)
    other = {"name": "spare", "host": "esx2", "datastore": "vmfs2", "disks": [{"size_bytes": MIB}]}
    site["vms"].append(other)
    with launch.running(story.write(tmp_path, site)) as vcenter, admin(vcenter) as vsphere:
        (disk,) = vsphere.vm("spare").disks
        vsphere.detach_disk("spare", disk.uuid)
        with pytest.raises(FileRefused, match=r"HW-CONF-132.*\[vmfs2\] spare/spare\.vmdk"):
            vsphere.attach_disk("mt", disk, keep_place=False)  # esx1 mounts vmfs2 for reading


def test_a_host_that_vcenter_has_lost_is_told(tmp_path: Path) -> None:
    site = story.site(tmp_path)
    site["hosts"][0]["connected"] = False
    site["vms"] = [vm | {"power": "off"} for vm in site["vms"]]
    with (
        launch.running(story.write(tmp_path, site)) as vcenter,
        admin(vcenter) as vsphere,
        pytest.raises(HostUnavailable, match=r"HW-CONF-126") as refusal,
    ):
        vsphere.power_on("web")
    assert refusal.value.retry is Retry.TRANSIENT


# --- slow tasks ---


class LeapingClock:
    """Every look at it finds some minutes passed."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        self.seconds += 400
        return self.seconds

    def now(self) -> float:
        return self.monotonic()

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


def test_a_task_that_takes_too_long_is_left_and_found_again(vcenter: Vcenter) -> None:
    vcenter.arrange("PowerOnVM_Task", task_seconds=1.5)
    with closing(PyvmomiVSphere(settings_for(vcenter), LeapingClock())) as impatient:
        with pytest.raises(TaskLate, match=r"HW-CONF-113.*power on VM web") as refusal:
            impatient.power_on("web")
        assert refusal.value.retry is Retry.TRANSIENT
        with pytest.raises(TaskLate):  # it is still under way, and no second one is begun
            impatient.power_on("web")
    with admin(vcenter) as vsphere:
        vsphere.power_on("web")
        assert vsphere.vm("web").power is Power.ON
    assert len(vcenter.calls(method="PowerOnVM_Task")) == 1


def test_a_verb_waits_for_what_others_do_with_the_vm(vcenter: Vcenter) -> None:
    vcenter.arrange("CreateSnapshot_Task", task_seconds=0.5)
    with kit.session(vcenter, *ADMIN) as instance, admin(vcenter) as vsphere:
        kit.find(instance, vim.VirtualMachine, "web").CreateSnapshot_Task(
            name="backup", memory=False, quiesce=False
        )
        vsphere.merge_snapshots("web")
        assert vsphere.vm("web").snapshots == ()
    assert len(vcenter.calls(method="RemoveAllSnapshots_Task")) == 1


@pytest.mark.parametrize("trouble", ["expired", "cut"])
def test_trouble_while_a_task_is_followed_does_not_lose_it(vcenter: Vcenter, trouble: str) -> None:
    vcenter.arrange("PowerOnVM_Task", task_seconds=1.0)
    if trouble == "cut":
        vcenter.arrange("WaitForUpdatesEx", drop="before", skip=1)
    with admin(vcenter) as vsphere, ThreadPoolExecutor(1) as pool:
        job = pool.submit(vsphere.power_on, "web")
        while trouble == "expired" and not vcenter.calls(method="WaitForUpdatesEx"):
            assert not job.done()
        if trouble == "expired":
            vcenter.expire_sessions()
        job.result()
        assert vsphere.vm("web").power is Power.ON
    assert len(vcenter.calls(method="PowerOnVM_Task")) == 1
