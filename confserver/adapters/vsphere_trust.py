"""Which certificate a connection to vCenter trusts.

pyvmomi's own thumbprint check is not used: when the authority is unknown, it switches verification off for all later
connections of the context; and for `localhost` it does so by itself when it is given no context.
"""

import hashlib
import hmac
import re
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from confserver.errors_fabric import VcenterThumbprintDiffers, VcenterTrustRefused
from drcore.secret import Secret

THUMBPRINT: Final = re.compile(r"[0-9A-F]{64}")


@dataclass(frozen=True, slots=True)
class VsphereSettings:
    """Where a vCenter is, who logs in, and what certificate is trusted.

    With a `ca_file` its authorities are trusted, else the system's. With a `thumbprint` (SHA-256, colons or not) that
    one certificate is trusted, whoever signed it; with both, both have to hold. `password` is UTF-8.
    """

    host: str
    port: int
    user: str
    password: Secret
    ca_file: Path | None
    thumbprint: str | None
    timeout_seconds: float

    @property
    def address(self) -> str:
        """Host and port, as errors show it."""
        return f"{self.host}:{self.port}"


def trust(settings: VsphereSettings) -> ssl.SSLContext:
    """A context that verifies: against the authorities, or against the one pinned certificate, fetched and compared.

    Errors: HW-CONF-104 another certificate than the pinned one, HW-CONF-105 unusable settings; OSError of the fetch.
    """
    if settings.thumbprint is None:
        return _authorities(settings)
    wanted = re.sub(r"[:\s]", "", settings.thumbprint).upper()
    if not THUMBPRINT.fullmatch(wanted):
        reason = f"a thumbprint of {len(wanted)} characters"
        raise VcenterTrustRefused(vcenter=settings.address, reason=reason)
    certificate = _fetch(settings)
    actual = hashlib.sha256(certificate).hexdigest().upper()
    if not hmac.compare_digest(actual, wanted):
        raise VcenterThumbprintDiffers(vcenter=settings.address, actual=actual, wanted=wanted)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False  # that one certificate is meant, whatever name leads to it
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it is trusted without the one that signed it
    context.load_verify_locations(cadata=certificate)
    return context


def _authorities(settings: VsphereSettings) -> ssl.SSLContext:
    if settings.ca_file is None:
        return ssl.create_default_context()
    try:
        return ssl.create_default_context(cafile=str(settings.ca_file))
    except OSError as error:  # ssl.SSLError too: no certificate in the file
        reason = f"{settings.ca_file}: {error.strerror or error}"
        raise VcenterTrustRefused(vcenter=settings.address, reason=reason) from error


def _fetch(settings: VsphereSettings) -> bytes:
    """The certificate that the server shows now, in DER; nothing is sent to it."""
    if settings.ca_file is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # the caller compares it and trusts nothing else
    else:
        context = _authorities(settings)
    with (
        socket.create_connection((settings.host, settings.port), settings.timeout_seconds) as plain,
        context.wrap_socket(plain, server_hostname=settings.host) as secure,
    ):
        certificate = secure.getpeercert(binary_form=True)
    return certificate or b""
