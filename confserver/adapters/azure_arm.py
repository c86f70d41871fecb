"""The Resource Manager over azure-core's pipeline: calls within limits, long-running operations, coded refusals.

Imported when an adapter is made: azure-core and requests take a quarter of a second to load.
"""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final
from urllib.parse import urlsplit

from azure.core.credentials import AccessToken, TokenCredential
from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError
from azure.core.pipeline import PipelineResponse
from azure.core.pipeline.policies import RequestIdPolicy, UserAgentPolicy
from azure.core.pipeline.transport import RequestsTransport
from azure.core.rest import HttpRequest, HttpResponse
from azure.mgmt.core import ARMPipelineClient
from azure.mgmt.core.policies import ARMChallengeAuthenticationPolicy
from azure.mgmt.core.polling.arm_polling import ARMPolling

from confserver.adapters.azure_settings import AzureSettings
from confserver.errors_azure import (
    AzureAnswerStrange,
    AzureBusy,
    AzureFailing,
    AzureForbidden,
    AzureNotTrusted,
    AzureOperationFailed,
    AzureOperationInterrupted,
    AzureOperationOverdue,
    AzurePackageMissing,
    AzureRefused,
    AzureSignInFailed,
    AzureThrottled,
    AzureUnreachable,
)
from drcore.clock import Clock
from drcore.errors import HomewardError
from drcore.limits import (
    AZURE_ATTEMPTS_MAX,
    AZURE_BUSY_PAUSE_SECONDS_MAX,
    AZURE_MESSAGE_CHARACTERS_MAX,
    AZURE_PAUSE_SECONDS_MAX,
)
from drcore.secret import Secret

PAUSE_SECONDS: Final = 1.0
TOKEN_SECONDS: Final = 3600
THROTTLED: Final = 429
FAILING: Final = frozenset({408, 500, 502, 503, 504})
CONFLICT: Final = 409
# Conflict: Azure/azure-cli issue 15765. ConflictingConcurrentWriteNotAllowed ("Please retry later"):
# cloudfoundry/bosh-azure-cpi-release issue 762.
BUSY: Final = frozenset(
    {"Conflict", "AnotherOperationInProgress", "ConflictingConcurrentWriteNotAllowed", "RetryableError"}
)
INTERRUPTED: Final = BUSY | {
    "InternalExecutionError",
    "InternalOperationError",
    "InternalServerError",
    "NetworkingInternalOperationError",
    "OperationPreempted",
    "ServiceUnavailable",
    "TooManyRequests",
}
"""Codes of failed operations that say nothing against trying again."""
CODE: Final = re.compile(r"[A-Za-z0-9_.-]{1,80}")
SECRETS: Final = (
    (re.compile(r"(https?://[^\s\"'<>?]+)\?[^\s\"'<>]+"), r"\1?***"),
    (re.compile(r"\b(sig=)[^&\s\"']+", re.IGNORECASE), r"\1***"),
    (re.compile(r"\b(bearer\s+)\S+", re.IGNORECASE), r"\1***"),
    (re.compile(r"\beyJ[\w-]+\.[\w.-]+"), "***"),
)
"""Queries of addresses, signatures, bearer tokens, JSON web tokens."""

Answer = PipelineResponse[HttpRequest, HttpResponse]
Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """A call in words, and what its refusals mean: no such resource, or a conflict that its caller can explain."""

    words: str
    missing: Callable[[str, str], HomewardError]
    """From Azure's code and message."""
    explain: Callable[[], HomewardError | None] = lambda: None


@dataclass(frozen=True, slots=True)
class Trouble:
    """An attempt without a good answer. `status` is 0 where no answer came; then `message` says why."""

    status: int
    code: str
    message: str
    retry_after: float | None = None

    @property
    def busy(self) -> bool:
        """Whether another operation is in the way."""
        return self.status == CONFLICT and self.code in BUSY

    @property
    def passing(self) -> bool:
        """Whether the same call may succeed later."""
        return self.status in (0, THROTTLED) or self.status in FAILING or self.busy


class StaticToken:
    """A credential with one token."""

    def __init__(self, token: Secret) -> None:
        self._token: Final = token

    def get_token(
        self, *scopes: str, claims: str | None = None, tenant_id: str | None = None, enable_cae: bool = False,
        **options: Any,
    ) -> AccessToken:  # fmt: skip
        """The token, for whatever scope; when it is over Azure says so."""
        return AccessToken(self._token.reveal().decode(), int(time.time()) + TOKEN_SECONDS)


class Deadline:
    """The end of a verb, with everything it waits for."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock: Final = clock
        self._start: Final = clock.monotonic()
        self.seconds: Final = seconds

    @property
    def passed(self) -> float:
        """Seconds since the verb began."""
        return self._clock.monotonic() - self._start

    def pause(self, seconds: float) -> bool:
        """Whether there was time left; then the pause is over, which the end may have cut."""
        left = self.seconds - self.passed
        if left <= 0:
            return False
        self._clock.sleep(min(seconds, left))
        return True


class ResourceManager:
    """One subscription's endpoint. Every verb may be called from any thread."""

    def __init__(self, settings: AzureSettings, clock: Clock) -> None:
        """Errors: AzurePackageMissing where azure-identity is needed and absent. Nothing is sent yet."""
        self._settings: Final = settings
        self._clock: Final = clock
        self._host: Final = urlsplit(settings.endpoint).netloc.lower()
        transport = RequestsTransport(
            connection_verify=True if settings.ca_file is None else str(settings.ca_file),
            connection_timeout=settings.connect_seconds,
            read_timeout=settings.answer_seconds,
        )
        self._client: Final[ARMPipelineClient[HttpRequest, HttpResponse]] = ARMPipelineClient(
            settings.endpoint,
            policies=[
                RequestIdPolicy(),
                UserAgentPolicy(base_user_agent="homeward"),
                ARMChallengeAuthenticationPolicy(_credential(settings), settings.scope),
            ],
            transport=transport,
        )

    def close(self) -> None:
        """The connections are gone."""
        self._client.close()

    def deadline(self) -> Deadline:
        """The end of a verb that begins now."""
        return Deadline(self._clock, self._settings.operation_seconds_max)

    def get(self, call: Call, path: str, query: Mapping[str, str], deadline: Deadline) -> Document:
        """The resource's document."""
        answer = self.send(call, "GET", self._client.format_url(path), deadline, query)
        document = self._document(call, answer)
        if document is None:
            raise AzureAnswerStrange(call=call.words, seen="an empty answer", wanted="a JSON object")
        return document

    def run(
        self, call: Call, path: str, version: str, deadline: Deadline, body: Document | None = None
    ) -> Document | None:
        """The long-running operation has succeeded; its result, if it has one."""
        url = self._client.format_url(path)
        first = self.send(call, "POST", url, deadline, {"api-version": version}, body)
        polling = Polling(self, call, deadline, self._settings.poll_seconds)
        failure: Trouble | None = None
        try:
            polling.initialize(self._client, first, lambda answer: self._document(call, answer))
            polling.run()
            result: Document | None = polling.resource()
        except HttpResponseError as error:
            failure = self._failure(error)
        except (AzureError, ValueError, AttributeError, TypeError) as error:
            seen = f"{type(error).__name__} when asked for the operation"
            raise AzureAnswerStrange(
                call=call.words, seen=seen, wanted="the state of an operation"
            ) from error
        if failure is None:
            return result
        # Outside of the except: Azure's own words, which might quote a signed URL, are not chained.
        kind = AzureOperationInterrupted if failure.code in INTERRUPTED else AzureOperationFailed
        raise call.explain() or kind(call=call.words, azure_code=failure.code, message=failure.message)

    def send(
        self,
        call: Call,
        method: str,
        url: str,
        deadline: Deadline,
        query: Mapping[str, str] | None = None,
        body: Document | None = None,
    ) -> Answer:
        """A good answer to one call, tried again within the limits.

        Trying again is right for every verb, a POST whose answer was lost included: all of them are idempotent.
        """
        host = urlsplit(url).netloc.lower()
        if urlsplit(url).scheme != "https" or not (host == self._host or host.endswith("." + self._host)):
            # The token goes to nobody else.
            raise AzureAnswerStrange(
                call=call.words, seen=f"an address at {host}", wanted=f"one at {self._host}"
            )
        attempts = 0
        while True:
            request = HttpRequest(method, url, params=dict(query or {}), json=body)
            outcome = self._attempt(request)
            attempts += 1
            if isinstance(outcome, HomewardError):
                raise outcome
            if not isinstance(outcome, Trouble):
                return outcome
            if outcome.status == CONFLICT and (explained := call.explain()) is not None:
                raise explained
            if not outcome.passing:
                raise _refusal(call, outcome)
            if not self._wait(outcome, attempts, deadline):
                raise self._exhausted(call, outcome, attempts, deadline)

    def _wait(self, trouble: Trouble, attempts: int, deadline: Deadline) -> bool:
        """Whether another attempt may be made; then the pause before it is over."""
        pause = (
            PAUSE_SECONDS * 2 ** min(attempts - 1, 10) if trouble.retry_after is None else trouble.retry_after
        )
        if trouble.busy:
            return deadline.pause(min(pause, AZURE_BUSY_PAUSE_SECONDS_MAX))
        return attempts < AZURE_ATTEMPTS_MAX and pause <= AZURE_PAUSE_SECONDS_MAX and deadline.pause(pause)

    def _attempt(self, request: HttpRequest) -> Answer | Trouble | HomewardError:
        try:
            answer: Any = self._client.send_request(request, _return_pipeline_response=True)
        except ClientAuthenticationError as error:
            return AzureSignInFailed(reason=self._clean(error.message))
        except AzureError as error:
            return self._broken(error)
        response: HttpResponse = answer.http_response
        if response.status_code in (200, 201, 202, 204):
            return answer  # type: ignore[no-any-return]
        code, message = self._words(response)
        asked = response.headers.get("Retry-After", "")
        return Trouble(response.status_code, code, message, float(asked) if asked.isdecimal() else None)

    def _broken(self, error: AzureError) -> Trouble | HomewardError:
        """What a failure of the transport means."""
        kinds = [type(error).__name__]
        inner: BaseException | None = error.inner_exception
        while inner is not None and len(kinds) < 8:
            kinds.append(type(inner).__name__)
            found = getattr(inner, "reason", None) or (inner.args[0] if inner.args else None)
            inner = found if isinstance(found, BaseException) else None
        if "SSLCertVerificationError" in kinds:
            reason = "a certificate that cannot be verified"
            return AzureNotTrusted(endpoint=self._settings.endpoint, reason=reason)
        return Trouble(0, "", f"a broken connection ({kinds[-1]})")

    def _exhausted(self, call: Call, trouble: Trouble, attempts: int, deadline: Deadline) -> HomewardError:
        words, code, message = call.words, trouble.code, trouble.message
        if trouble.status == 0:
            endpoint = self._settings.endpoint
            return AzureUnreachable(endpoint=endpoint, call=words, reason=message, attempts=attempts)
        if trouble.status == THROTTLED:
            wait = trouble.retry_after or 0.0
            return AzureThrottled(call=words, azure_code=code, wait_seconds=wait, attempts=attempts)
        if trouble.busy:
            return AzureBusy(call=words, azure_code=code, message=message, seconds=round(deadline.passed, 1))
        return AzureFailing(
            call=words, status=trouble.status, azure_code=code, message=message, attempts=attempts
        )

    def _failure(self, error: HttpResponseError) -> Trouble:
        """Why an operation failed, from the document in which Azure tells it."""
        code, message = ("", error.message) if error.response is None else self._words(error.response)
        return Trouble(CONFLICT, code, message)

    def _words(self, response: Any) -> tuple[str, str]:
        """Azure's code and message in an error document, cleaned; for anything else the start of it."""
        try:
            found = response.json()
            error = found["error"] if isinstance(found["error"], dict) else found
            code, message = str(error["code"]), str(error["message"])
        except (AzureError, ValueError, KeyError, TypeError):
            code, message = "", f"{response.text()[:80]!r}"
        return code if CODE.fullmatch(code) else "no code", self._clean(message)

    def _clean(self, text: str) -> str:
        """One line without anything that opens a door."""
        if self._settings.token is not None:
            text = text.replace(self._settings.token.reveal().decode(), "***")
        for pattern, instead in SECRETS:
            text = pattern.sub(instead, text)
        return " ".join(text.split())[:AZURE_MESSAGE_CHARACTERS_MAX]

    def _document(self, call: Call, answer: Answer) -> Document | None:
        response = answer.http_response
        if not response.text().strip():
            return None
        try:
            found = response.json()
        except (AzureError, ValueError):
            found = None
        if not isinstance(found, dict):
            raise AzureAnswerStrange(call=call.words, seen="no JSON object", wanted="a document of Azure")
        return found


class Polling(ARMPolling):
    """Azure's way of asking for an operation, over our way of sending, and with an end."""

    def __init__(self, manager: ResourceManager, call: Call, deadline: Deadline, seconds: float) -> None:
        super().__init__(timeout=seconds)
        self._manager = manager
        self._call = call
        self._deadline = deadline

    def request_status(self, status_link: str) -> Answer:
        """The answer at one of the operation's addresses."""
        return self._manager.send(self._call, "GET", status_link, self._deadline)

    def _sleep(self, delay: float) -> None:
        if not self._deadline.pause(delay):
            raise AzureOperationOverdue(
                call=self._call.words,
                seconds=round(self._deadline.passed, 1),
                seconds_max=self._deadline.seconds,
            )


def _refusal(call: Call, trouble: Trouble) -> HomewardError:
    code, message = trouble.code, trouble.message
    if trouble.status == 401:
        return AzureSignInFailed(reason=f"{code}: {message}")
    if trouble.status == 403:
        return AzureForbidden(call=call.words, azure_code=code, message=message)
    if trouble.status == 404:
        return call.missing(code, message)
    return AzureRefused(call=call.words, status=trouble.status, azure_code=code, message=message)


def _credential(settings: AzureSettings) -> TokenCredential:
    if settings.token is not None:
        return StaticToken(settings.token)
    try:
        # By its name, because it is no dependency: a configured token needs none of it.
        identity = import_module("azure.identity")
    except ImportError as error:
        raise AzurePackageMissing(package="azure-identity") from error
    credential: TokenCredential = identity.DefaultAzureCredential()
    return credential
