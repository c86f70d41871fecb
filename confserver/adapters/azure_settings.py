"""How one Azure subscription is reached."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from uuid import UUID

from confserver.errors_azure import AzureSettingsWrong
from drcore.secret import Secret

PUBLIC_CLOUD: Final = "https://management.azure.com"


@dataclass(frozen=True, slots=True)
class AzureSettings:
    """Settings of the adapter; times in seconds. Errors: `AzureSettingsWrong` (HW-CONF-170).

    Without a `token` azure-identity finds the identity (managed identity, environment, az login). `ca_file` holds the
    certificates to trust (PEM) instead of the system's.
    """

    subscription: str
    endpoint: str = PUBLIC_CLOUD
    ca_file: Path | None = None
    token: Secret | None = None
    poll_seconds: float = 5.0
    """Between two questions about an operation, where Azure does not say how long to wait."""
    connect_seconds: float = 10.0
    answer_seconds: float = 60.0
    operation_seconds_max: float = 1800.0
    """A verb has ended by then, with waiting for other operations and all attempts: Windows takes minutes to stop."""

    def __post_init__(self) -> None:
        if wrong := self._wrong():
            raise AzureSettingsWrong(reason=wrong)

    def _wrong(self) -> str:
        try:
            UUID(self.subscription)
            parts = urlsplit(self.endpoint)
            has_more = parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc
            if parts.scheme != "https" or not parts.hostname or parts.port == 0 or has_more:
                return f"the endpoint {self.endpoint!r}"
        except ValueError:
            return f"the subscription {self.subscription!r} or the endpoint {self.endpoint!r}"
        if self.ca_file is not None and not self.ca_file.is_file():
            return f"no CA file at {self.ca_file}"
        if min(self.poll_seconds, self.connect_seconds, self.answer_seconds, self.operation_seconds_max) <= 0:
            return "a time that is not above zero"
        return ""

    @property
    def scope(self) -> str:
        """What a token is asked for: everything at this endpoint."""
        return f"{self.endpoint.rstrip('/')}/.default"
