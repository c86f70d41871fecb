"""Azure's refusals: an HTTP status, a code and a message in the body `{"error": {"code", "message"}}`.

Messages name the facts as Azure's do. Where a code could not be checked against a recorded answer of Azure,
docs/simlab-azure.md says so.
"""

from collections.abc import Sequence


class Refused(Exception):
    """The call, or the operation it started, is answered with this status, code and message."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}

    def body(self) -> dict[str, object]:
        """The error object of the Resource Manager."""
        return {"error": {"code": self.code, "message": self.message}}


def no_token(reason: str) -> Refused:
    """401 with the challenge that tells a client where tokens come from."""
    challenge = (
        'Bearer authorization_uri="https://login.microsoftonline.com/common", '
        f'error="invalid_token", error_description="{reason}"'
    )
    return Refused(
        401, "AuthenticationFailed", f"Authentication failed. {reason}", {"WWW-Authenticate": challenge}
    )


def no_api_version() -> Refused:
    """400: the query names no api-version."""
    return Refused(
        400,
        "MissingApiVersionParameter",
        "The api-version query parameter (?api-version=) is required for all requests.",
    )


def wrong_api_version(kind: str, location: str, version: str, supported: Sequence[str]) -> Refused:
    """400: the resource provider does not know this api-version."""
    return Refused(
        400,
        "NoRegisteredProviderFound",
        f"No registered resource provider found for location '{location}' and API version '{version}' for type "
        f"'{kind}'. The supported api-versions are '{', '.join(supported)}'.",
    )


def no_subscription(subscription: str) -> Refused:
    """404: no such subscription."""
    return Refused(404, "SubscriptionNotFound", f"The subscription '{subscription}' could not be found.")


def no_group(group: str) -> Refused:
    """404: no such resource group."""
    return Refused(404, "ResourceGroupNotFound", f"Resource group '{group}' could not be found.")


def no_resource(kind: str, name: str, group: str) -> Refused:
    """404: no such resource in the group."""
    return Refused(
        404, "ResourceNotFound", f"The Resource '{kind}/{name}' under resource group '{group}' was not found."
    )


def no_such_path(method: str, path: str) -> Refused:
    """404: nothing of the stand-in answers this path."""
    return Refused(404, "InvalidResourceType", f"The stand-in does not serve {method} {path}.")


def bad_body(reason: str) -> Refused:
    """400: the body is no JSON object or lacks something."""
    return Refused(400, "InvalidRequestContent", f"The request content was invalid: {reason}")


def bad_parameter(name: str, reason: str) -> Refused:
    """400: one parameter has a value that the provider refuses."""
    return Refused(400, "InvalidParameter", f"The value of parameter {name} is invalid: {reason}")


def concurrent() -> Refused:
    """409: another operation holds the resource (as in Azure/azure-cli issue 15765)."""
    return Refused(409, "Conflict", "The request failed due to conflict with a concurrent request.")


def attached_to_running(disk: str, machine_id: str) -> Refused:
    """409: no export while the machine holds the disk (as in microsoft/AzureStorageExplorer issues 5994 and 6654)."""
    return Refused(
        409,
        "Conflict",
        f"Access not permitted because disk {disk} is currently attached to running VM {machine_id}.",
    )


def shared_access(disk: str) -> Refused:
    """409: an export holds the disk (Microsoft Learn, `Download a Windows VHD from Azure`, quotes the message)."""
    return Refused(
        409,
        "OperationNotAllowed",
        f"There is an active shared access signature outstanding for disk {disk}. "
        "Call EndGetAccess before attaching or deleting the disk.",
    )


def attached(disk: str, machine_id: str) -> Refused:
    """409: a disk that belongs to a machine is not deleted."""
    return Refused(409, "OperationNotAllowed", f"Disk {disk} is attached to VM {machine_id}.")


def exists_differently(name: str) -> Refused:
    """409: a resource of that name exists with another source or size."""
    return Refused(
        409, "PropertyChangeNotAllowed", f"Changing property 'creationData' of '{name}' is not allowed."
    )
