"""What tests and laboratories drive a running stand-in with: Microsoft's own pipeline, and the control port."""

import json
import time
import urllib.request
from collections.abc import Callable
from typing import Any, Final

from azure.core.credentials import AccessToken
from azure.core.pipeline import PipelineResponse
from azure.core.pipeline.policies import RequestIdPolicy, RetryPolicy
from azure.core.pipeline.transport import RequestsTransport
from azure.core.polling import LROPoller
from azure.core.rest import HttpRequest, HttpResponse
from azure.mgmt.core import ARMPipelineClient
from azure.mgmt.core.policies import ARMChallengeAuthenticationPolicy

from simlab.azure.launch import Endpoints

MACHINE_VERSION: Final = "2024-07-01"
DISK_VERSION: Final = "2024-03-02"
GROUP_VERSION: Final = "2022-09-01"
NETWORK_VERSION: Final = "2024-05-01"
OPERATION_SECONDS_MAX: Final = 60.0
POLL_SECONDS: Final = 0.05
TOKEN_SECONDS: Final = 3600


class StaticToken:
    """A credential with one token that never ends."""

    def __init__(self, token: str = "a-token") -> None:
        self._token: Final = token

    def get_token(
        self,
        *scopes: str,
        claims: str | None = None,
        tenant_id: str | None = None,
        enable_cae: bool = False,
        **options: Any,
    ) -> AccessToken:
        """The token, for whatever scope."""
        return AccessToken(self._token, int(time.time()) + TOKEN_SECONDS)


class Driver:
    """A client of the Resource Manager made of azure-core and azure-mgmt-core, and of the control port."""

    def __init__(self, endpoints: Endpoints, group: str, token: str = "a-token") -> None:
        self.endpoints: Final = endpoints
        self._group: Final = group
        self.client: Final[ARMPipelineClient[HttpRequest, HttpResponse]] = ARMPipelineClient(
            endpoints.arm,
            policies=[
                RequestIdPolicy(),
                RetryPolicy(retry_backoff_factor=0.01),
                ARMChallengeAuthenticationPolicy(StaticToken(token), "https://management.azure.com/.default"),
            ],
            transport=RequestsTransport(connection_verify=endpoints.certificate),
        )

    def close(self) -> None:
        """Its connections are gone."""
        self.client.close()

    def path(self, resource: str) -> str:
        """The full path of `disks/name/…` and its like in the driver's group."""
        start = f"/subscriptions/{self.endpoints.subscription}/resourceGroups/{self._group}"
        return f"{start}/providers/Microsoft.Compute/{resource}" if resource else start

    def _send(self, method: str, resource: str, body: object, query: dict[str, str]) -> Any:
        path = resource if resource.startswith("/") else self.path(resource)
        version = DISK_VERSION if "/disks" in path or "/snapshots" in path else MACHINE_VERSION
        request = HttpRequest(method, path, params={"api-version": version, **query}, json=body)
        request.url = self.client.format_url(request.url)
        return self.client.send_request(request, _return_pipeline_response=True)

    def ask(self, method: str, resource: str, body: object = None, **query: str) -> HttpResponse:
        """The answer to one call, whatever its status."""
        answer: HttpResponse = self._send(method, resource, body, query).http_response
        return answer

    def get(self, resource: str, **query: str) -> Any:
        """The document of a resource. Raises azure-core's error for a status from 400 on."""
        answer = self.ask("GET", resource, **query)
        answer.raise_for_status()
        return answer.json()

    def run(self, method: str, resource: str, body: object = None) -> Any:
        """The result of a long-running operation, as ARMPolling brings it; raises azure-core's errors."""
        from azure.mgmt.core.polling.arm_polling import ARMPolling

        first = self._send(method, resource, body, {})
        first.http_response.raise_for_status()
        poller: LROPoller[Any] = LROPoller(self.client, first, _document, ARMPolling(timeout=POLL_SECONDS))
        return poller.result(OPERATION_SECONDS_MAX)

    def power(self, machine: str) -> str:
        """The end of the machine's PowerState code."""
        codes = [status["code"] for status in self.get(f"virtualMachines/{machine}/instanceView")["statuses"]]
        return next(str(code).partition("/")[2] for code in codes if code.startswith("PowerState/"))

    def export(self, volume: str, seconds: int = 600) -> str:
        """The signed URL of `disks/name` or `snapshots/name`."""
        answer = self.run(
            "POST", f"{volume}/beginGetAccess", {"access": "Read", "durationInSeconds": seconds}
        )
        return str(answer["accessSAS"])

    def control(self, method: str, path: str, body: object = None) -> Any:
        """The control port's answer. Raises urllib's error for a status from 400 on."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.endpoints.control + path, data=data, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            content = answer.read()
        return json.loads(content) if content else None

    def fault(self, operation: str, effect: str, **details: Any) -> None:
        """A fault rule is in force."""
        self.control("POST", "/faults", {"operation": operation, "effect": effect, **details})

    def calls(self, operation: str, containing: str = "") -> list[dict[str, Any]]:
        """The journal's calls of the operation whose path contains the text."""
        calls = self.control("GET", f"/calls?operation={operation}")["calls"]
        return [call for call in calls if containing.lower() in call["path"].lower()]


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _document(response: PipelineResponse[HttpRequest, HttpResponse]) -> Any:
    content = response.http_response
    return content.json() if content.text() else None
