"""The errors of a disk that is read from Azure by a signed URL. None of them carries the URL's signature."""

from drcore.errors import HomewardError, Retry


class PageBlobUnreachable(HomewardError):
    """The blob service did not answer, or not whole, as often as it was asked."""

    code = "HW-DISKS-040"
    retry = Retry.TRANSIENT
    what = "the exported disk {blob} could not be read"
    found = "{reason} at {place}, after {attempts} attempts"
    expected = "an answer of the blob service"
    remedy = (
        "check the network, proxy and firewall between here and that host, then run the same command again"
    )
    blob: str
    place: str
    reason: str
    attempts: int


class PageBlobRefused(HomewardError):
    """The blob service answered no: an export that is over or revoked, or something that is not there."""

    code = "HW-DISKS-041"
    what = "the blob service refused to give the exported disk {blob}"
    found = "HTTP status {status} with Azure's code {azure_code} at {place}"
    expected = "an export that is granted and not over yet"
    remedy = "grant access to the disk again (az disk grant-access) and run the same command with the new URL"
    blob: str
    place: str
    status: int
    azure_code: str


class PageBlobChanged(HomewardError):
    """Somebody wrote to the blob after it was opened, so that what was read is of two states."""

    code = "HW-DISKS-042"
    what = "the exported disk {blob} changed while it was read"
    found = "an ETag other than {etag} at {place}"
    expected = "a disk that nobody writes to"
    remedy = (
        "deallocate the machine (or export a snapshot), grant access again and run the same command again"
    )
    blob: str
    place: str
    etag: str


class PageBlobUnfit(HomewardError):
    """Something was found that is no export of a managed disk, or an answer that contradicts itself."""

    code = "HW-DISKS-043"
    what = "{blob} cannot be used as the export of a disk"
    found = "{seen}"
    expected = "{wanted}"
    remedy = "check that the URL is the one that Azure gave for the disk or snapshot, and that no proxy changes answers"
    blob: str
    seen: str
    wanted: str


class PageBlobNotTrusted(HomewardError):
    """The service at the URL's host cannot prove to be who it should be."""

    code = "HW-DISKS-044"
    what = "the blob service at {blob} is not trusted"
    found = "{reason}"
    expected = "a certificate that leads to a known authority or to the given CA file"
    remedy = "name the right CA file, or remove what stands between here and Azure and answers in its place"
    blob: str
    reason: str


class PageBlobPackageMissing(HomewardError):
    """The Python package that speaks HTTP with Azure is not installed here."""

    code = "HW-DISKS-045"
    what = "exported disks cannot be read on this machine"
    found = "no Python package {package}"
    expected = "it beside homeward"
    remedy = "install it: pip install {package}"
    package: str
