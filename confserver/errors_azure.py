"""What can go wrong with Azure. No error carries a token or a signed URL; Azure's own words are cleaned of both."""

from drcore.errors import HomewardError, Retry


class AzureUnreachable(HomewardError):
    """The Resource Manager did not answer, or not whole, as often as it was asked."""

    code = "HW-CONF-150"
    retry = Retry.TRANSIENT
    what = "Azure does not answer at {endpoint}"
    found = "{reason} at {call}, after {attempts} attempts"
    expected = "an answer of the Azure Resource Manager"
    remedy = "check the network, proxy and firewall between here and that host (port 443)"
    endpoint: str
    call: str
    reason: str
    attempts: int


class AzureNotTrusted(HomewardError):
    """Who answers at the endpoint cannot prove to be Azure."""

    code = "HW-CONF-151"
    what = "the service at {endpoint} is not trusted"
    found = "{reason}"
    expected = "a certificate that leads to a known authority or to the configured CA file"
    remedy = (
        "configure the right CA file, or remove what stands between here and Azure and answers in its place"
    )
    endpoint: str
    reason: str


class AzurePackageMissing(HomewardError):
    """A Python package that the way to Azure needs is not installed."""

    code = "HW-CONF-152"
    what = "Azure cannot be asked from this machine"
    found = "no Python package {package}"
    expected = "it beside homeward"
    remedy = "install it: pip install {package}"
    package: str


class AzureSignInFailed(HomewardError):
    """Azure does not accept who we say we are, or there is nothing to say it with."""

    code = "HW-CONF-153"
    what = "the sign-in to Azure failed"
    found = "{reason}"
    expected = (
        "a managed identity, a service principal (AZURE_CLIENT_ID, AZURE_TENANT_ID, …) or a valid token"
    )
    remedy = "check the identity of the configuration server, its secret and the clock of this machine"
    reason: str


class AzureForbidden(HomewardError):
    """The identity is known and may not do this."""

    code = "HW-CONF-154"
    what = "Azure does not allow {call}"
    found = "{azure_code}: {message}"
    expected = (
        "a role that allows it (Virtual Machine Contributor and Disk Backup Reader, or one of your own)"
    )
    remedy = "assign the role to the configuration server's identity on the resource group of the machine"
    call: str
    azure_code: str
    message: str


class AzureRefused(HomewardError):
    """Azure said no, for a reason that waiting does not remove."""

    code = "HW-CONF-155"
    what = "Azure refused {call}"
    found = "HTTP status {status}, {azure_code}: {message}"
    expected = "a call that Azure accepts"
    remedy = "remove what Azure names; the activity log of the resource in the portal tells more"
    call: str
    status: int
    azure_code: str
    message: str


class AzureVmMissing(HomewardError):
    """There is no such machine."""

    code = "HW-CONF-156"
    what = "the Azure machine {resource_id} does not exist"
    found = "{azure_code}: {message}"
    expected = "a virtual machine with this resource id"
    remedy = "check the id, and whether the machine was deleted or moved to another resource group"
    resource_id: str
    azure_code: str
    message: str


class AzureDiskMissing(HomewardError):
    """There is no such disk or snapshot."""

    code = "HW-CONF-157"
    what = "the Azure disk {resource_id} does not exist"
    found = "{azure_code}: {message}"
    expected = "a managed disk or a snapshot with this resource id"
    remedy = "check the id, and whether the disk was deleted or moved to another resource group"
    resource_id: str
    azure_code: str
    message: str


class AzureThrottled(HomewardError):
    """Too many calls were made of the subscription, by whomever."""

    code = "HW-CONF-158"
    retry = Retry.TRANSIENT
    what = "Azure limits the calls of this subscription"
    found = "{azure_code} at {call}, to be tried again in {wait_seconds} seconds, after {attempts} attempts"
    expected = "calls within the limits"
    remedy = "wait; if it stays so, find who else calls (Azure Resource Manager throttling in the portal's metrics)"
    call: str
    azure_code: str
    wait_seconds: float
    attempts: int


class AzureBusy(HomewardError):
    """Another operation holds the resource, longer than we wait."""

    code = "HW-CONF-159"
    retry = Retry.TRANSIENT
    what = "another operation in Azure is in the way of {call}"
    found = "{azure_code}: {message}, for {seconds} seconds"
    expected = "a resource that nobody else changes"
    remedy = "look at the activity log of the resource and let the other operation end"
    call: str
    azure_code: str
    message: str
    seconds: float


class AzureOperationFailed(HomewardError):
    """Azure accepted the operation and then failed it."""

    code = "HW-CONF-160"
    what = "Azure could not carry out {call}"
    found = "{azure_code}: {message}"
    expected = "the operation to succeed"
    remedy = "remove what Azure names; the activity log of the resource in the portal tells more"
    call: str
    azure_code: str
    message: str


class AzureOperationInterrupted(HomewardError):
    """Azure accepted the operation and then broke off for a reason of its own."""

    code = "HW-CONF-161"
    retry = Retry.TRANSIENT
    what = "Azure broke off {call}"
    found = "{azure_code}: {message}"
    expected = "the operation to succeed"
    remedy = "nothing: the step is tried again; if it stays so, look at status.azure.com"
    call: str
    azure_code: str
    message: str


class AzureOperationOverdue(HomewardError):
    """The operation was still under way when our patience ended. It may still succeed."""

    code = "HW-CONF-162"
    retry = Retry.TRANSIENT
    what = "Azure has not finished {call}"
    found = "still under way after {seconds} seconds"
    expected = "an end within {seconds_max} seconds"
    remedy = "look at the resource in the portal; trying again goes on from what is so by then"
    call: str
    seconds: float
    seconds_max: float


class AzureDiskExported(HomewardError):
    """A machine cannot start while one of its disks can be read by a signed URL."""

    code = "HW-CONF-163"
    what = "the Azure machine {vm} cannot start: its disks are exported"
    found = "read access granted to {disks}"
    expected = "access that was revoked before the start"
    remedy = "revoke it (az disk revoke-access) and start again; a job does so by itself before its start"
    vm: str
    disks: str


class AzureDiskInUse(HomewardError):
    """A disk cannot be exported while its machine holds it."""

    code = "HW-CONF-164"
    what = "the Azure disk {disk} cannot be exported"
    found = "it is {state}: its machine is not deallocated"
    expected = "a deallocated machine, or a snapshot of the disk"
    remedy = "stop and deallocate the machine (az vm deallocate); a shutdown from inside is not enough"
    disk: str
    state: str


class AzureAnswerStrange(HomewardError):
    """The answer is none that the Resource Manager gives."""

    code = "HW-CONF-165"
    what = "the answer to {call} is not one of Azure"
    found = "{seen}"
    expected = "{wanted}"
    remedy = "check the configured endpoint, and whether a proxy answers in Azure's place"
    call: str
    seen: str
    wanted: str


class AzureIdWrong(HomewardError):
    """What should be a resource id is none, or one of something else."""

    code = "HW-CONF-166"
    what = "{resource_id} is not the id of {kind}"
    found = "{seen}"
    expected = "/subscriptions/{subscription}/resourceGroups/GROUP/providers/Microsoft.Compute/{pattern}/NAME"
    remedy = "copy the resource id from the portal (JSON view) or from az vm show"
    resource_id: str
    kind: str
    seen: str
    subscription: str
    pattern: str


class AzureFailing(HomewardError):
    """The Resource Manager itself fails, each time it was asked."""

    code = "HW-CONF-167"
    retry = Retry.TRANSIENT
    what = "Azure failed at {call}"
    found = "HTTP status {status}, {azure_code}: {message}, after {attempts} attempts"
    expected = "an answer"
    remedy = "nothing: the step is tried again; if it stays so, look at status.azure.com"
    call: str
    status: int
    azure_code: str
    message: str
    attempts: int


class AzureDiskUnmanaged(HomewardError):
    """The machine has a disk that is no managed disk, which cannot be exported."""

    code = "HW-CONF-168"
    what = "the Azure machine {vm} has a disk that is not a managed disk"
    found = "{disk}"
    expected = "managed disks only"
    remedy = "convert the machine (az vm convert) and enable the item again"
    vm: str
    disk: str


class AzureStateUnexpected(HomewardError):
    """An operation succeeded, and the resource is not as it should be afterwards: somebody else changes it."""

    code = "HW-CONF-169"
    what = "{resource_id} is not as it was made by {call}"
    found = "{seen}"
    expected = "{wanted}"
    remedy = "find in the activity log who changes it (autostart, a schedule, another person), and try again"
    resource_id: str
    call: str
    seen: str
    wanted: str


class AzureSettingsWrong(HomewardError):
    """The settings for Azure cannot be used."""

    code = "HW-CONF-170"
    what = "the settings for Azure cannot be used"
    found = "{reason}"
    expected = "an https endpoint without path, a subscription's UUID, limits above zero"
    remedy = "correct the configuration"
    reason: str
