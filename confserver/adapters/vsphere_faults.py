"""Every failure of a call to vCenter becomes one of our errors here: faults of vSphere, HTTP, TLS, sockets, XML."""

import re
import ssl
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Final
from xml.parsers.expat import ExpatError

from pyVmomi import vim, vmodl

from confserver.errors_fabric import (
    DatastoreFull,
    DatastoreMissing,
    DiskFileMissing,
    FileIsLocked,
    FileRefused,
    HostMemoryShort,
    HostUnavailable,
    ObjectGone,
    PrivilegeMissing,
    TaskCancelled,
    VcenterBusy,
    VcenterCertificateRefused,
    VcenterGarbled,
    VcenterLoginRefused,
    VcenterRefused,
    VcenterUnreachable,
    VmBusy,
)
from drcore.errors import HomewardError


class Unreadable(Exception):
    """An answer that pyvmomi could not make an object of, with its reason."""


FOREIGN: Final = (vmodl.MethodFault, OSError, HTTPException, ExpatError, Unreadable)
"""What a call lets through. Anything else is a defect of ours."""

BUSY_STATUS: Final = frozenset({429, 500, 502, 503, 504})
"""HTTP states in which a vCenter that starts, or the proxy before it, asks for patience."""
LOCKED: Final = re.compile(r"lock the file", re.IGNORECASE)
"""How ESXi says that a disk is locked in a fault that is not `FileLocked`; it is the English message."""
NAMED_DISK: Final = re.compile(r"disk '([^']+)'")


@dataclass(frozen=True, slots=True)
class About:
    """What a call was for: facts for the errors that it may end in."""

    vcenter: str
    """Host and port."""
    user: str
    verb: str
    subject: str
    """Such as `VM web`."""


def translated(error: Exception, about: About) -> HomewardError:
    """The coded error for one of `FOREIGN`."""
    if isinstance(error, vmodl.MethodFault):
        return _of_fault(error, about)
    if isinstance(error, ssl.SSLCertVerificationError):
        return VcenterCertificateRefused(vcenter=about.vcenter, reason=error.verify_message or str(error))
    if isinstance(error, TimeoutError):
        return VcenterUnreachable(vcenter=about.vcenter, reason="no answer in time")
    if isinstance(error, OSError):
        return VcenterUnreachable(
            vcenter=about.vcenter, reason=error.strerror or str(error) or "a broken connection"
        )
    if isinstance(error, HTTPException):
        return _of_http(error, about)
    return VcenterGarbled(vcenter=about.vcenter, reason=str(error) or "no sense")


def reason_of(fault: Any) -> str:
    """The sentences that vCenter gives with a fault, else the fault's name.

    ESXi's own, such as which file is locked, often stand in the details only.
    """
    details = (detail.message for detail in fault.faultMessage or ())
    sentences = (fault.msg, getattr(fault, "reason", None), *details)
    told = dict.fromkeys(" ".join(str(sentence).split()) for sentence in sentences if sentence)
    return "; ".join(told) or kind_of(fault)


def kind_of(thing: Any) -> str:
    """The name of its vSphere type, without the package."""
    return type(thing).__name__.rpartition(".")[2]


def _of_http(error: HTTPException, about: About) -> HomewardError:
    status = re.match(r"(\d{3})\b", str(error))  # pyvmomi keeps the status in the message only
    if status is None:
        return VcenterUnreachable(vcenter=about.vcenter, reason=str(error) or type(error).__name__)
    if int(status[1]) in BUSY_STATUS:
        return VcenterBusy(vcenter=about.vcenter, reason=f"HTTP status {error}")
    return _refused(about, "HTTP status", str(error))


def _refused(about: About, fault: str, reason: str) -> VcenterRefused:
    return VcenterRefused(
        vcenter=about.vcenter, verb=about.verb, subject=about.subject, fault=fault, reason=reason
    )


def _of_fault(fault: Any, about: About) -> HomewardError:
    what = {"verb": about.verb, "subject": about.subject}
    reason = reason_of(fault)
    if isinstance(fault, vim.fault.InvalidLogin):
        return VcenterLoginRefused(vcenter=about.vcenter, user=about.user, reason=reason)
    if isinstance(fault, vim.fault.NotAuthenticated):  # twice: a new login did not help
        return VcenterBusy(vcenter=about.vcenter, reason="it ends every session at once")
    if isinstance(fault, vim.fault.NoPermission):
        return PrivilegeMissing(
            **what, user=about.user, privileges=_privileges(fault), entity=_entity(fault, about)
        )
    if isinstance(
        fault, (vim.fault.InsufficientMemoryResourcesFault, vim.fault.InsufficientHostMemoryCapacityFault)
    ):
        return HostMemoryShort(
            vm=about.subject.removeprefix("VM "), free_bytes=fault.unreserved, wanted_bytes=fault.requested
        )
    if isinstance(fault, (vmodl.fault.HostCommunication, vim.fault.InvalidHostState)):
        return HostUnavailable(**what, reason=reason)
    if isinstance(
        fault,
        (
            vim.fault.TaskInProgress,
            vim.fault.ResourceInUse,
            vim.fault.ConcurrentAccess,
            vim.fault.InvalidState,
        ),
    ):
        return VmBusy(**what, reason=reason)
    if isinstance(fault, vmodl.fault.RequestCanceled):
        return TaskCancelled(**what, reason=reason)
    if isinstance(fault, vmodl.fault.ManagedObjectNotFound):
        return ObjectGone(**what, gone=str(fault.obj).strip("'"))
    return _of_storage(fault, about, reason)


def _of_storage(fault: Any, about: About, reason: str) -> HomewardError:
    """Faults of files and datastores, and those that have no error of their own."""
    what = {"verb": about.verb, "subject": about.subject}
    if isinstance(fault, vim.fault.NoDiskSpace):
        return DatastoreFull(**what, reason=reason)
    if isinstance(fault, vim.fault.FileLocked):
        return FileIsLocked(**what, file=fault.file or "of a disk", reason=reason)
    if isinstance(fault, vim.fault.FileNotFound):
        return DiskFileMissing(**what, file=fault.file or "of a disk", reason=reason)
    if isinstance(fault, vim.fault.FileFault):
        return FileRefused(**what, file=fault.file or "of a disk", reason=reason)
    if isinstance(fault, vim.fault.InvalidDatastore):
        file = getattr(fault, "datastorePath", None) or fault.name or "the disk"
        return DatastoreMissing(**what, file=file, reason=reason)
    if isinstance(fault, vim.fault.VmConfigFault) and LOCKED.search(reason):
        named = NAMED_DISK.search(reason)
        return FileIsLocked(**what, file=named[1] if named else "of a disk", reason=reason)
    return _refused(about, kind_of(fault), reason)


def _privileges(fault: Any) -> str:
    """All missing privileges where vCenter tells them (7.0.3.2 and later), else the one that it does."""
    missing = getattr(fault, "missingPrivileges", None) or ()
    names = sorted({name for entry in missing for name in entry.privilegeIds})
    return ", ".join(names) or fault.privilegeId or "that vCenter does not name"


def _entity(fault: Any, about: About) -> str:
    """The object by the name that the operator knows, if it is the one asked for."""
    if fault.object is None or isinstance(fault.object, vim.VirtualMachine):
        return about.subject
    return str(fault.object).strip("'")
