"""What can go wrong with bytes in motion."""

from contextlib import suppress
from typing import Final

from drcore.errors import HomewardError, Retry

REPORT_TEXT_MAX: Final = 1000


class PeerVersion(HomewardError):
    """The two ends share no version of the protocol."""

    code = "HW-WIRE-001"
    what = "the peer speaks another version of the protocol"
    found = "versions {peer_first} to {peer_last}"
    expected = "a version from {own_first} to {own_last}"
    remedy = "install the same release of homeward on both machines"
    peer_first: int
    peer_last: int
    own_first: int
    own_last: int


class NotProved(HomewardError):
    """The peer could not prove that it holds the shared key."""

    code = "HW-WIRE-002"
    what = "the peer does not hold the same key"
    found = "a handshake whose proof does not match"
    expected = "a proof made with the key of this side's key file"
    remedy = "copy the key file to both machines again and check that both configurations name it"


class FrameRefused(HomewardError):
    """A frame was not what its seal says: changed, cut, replayed, reordered or of another session."""

    code = "HW-WIRE-003"
    what = "a sealed frame was refused"
    found = "{reason} at stream {stream}, sequence {sequence}"
    expected = "the next frame exactly as the peer sealed it"
    remedy = (
        "run the same command again; if it happens again, something between the machines alters the traffic"
    )
    reason: str
    stream: int
    sequence: int


class NotTheProtocol(HomewardError):
    """The bytes are no frame at all."""

    code = "HW-WIRE-004"
    what = "the peer does not speak homeward's protocol"
    found = "{reason}"
    expected = "a frame header that starts with HWF1"
    remedy = "check host and port of the peer: something else answers there"
    reason: str


class LimitExceeded(HomewardError):
    """A field is beyond its limit."""

    code = "HW-WIRE-005"
    what = "a message of the peer is beyond a limit"
    found = "{field} = {value}"
    expected = "at most {limit}"
    remedy = "install the same release of homeward on both machines; if they are, report this as a defect"
    field: str
    value: int
    limit: int


class MessageRefused(HomewardError):
    """A message is malformed or not legal where the dialogue stands."""

    code = "HW-WIRE-006"
    what = "the peer sent a message that does not fit the dialogue"
    found = "{reason}"
    expected = "one of the messages that docs/protocol.md allows here"
    remedy = "install the same release of homeward on both machines; if they are, report this as a defect"
    reason: str


class ConnectionLost(HomewardError):
    """The connection ended before the dialogue did."""

    code = "HW-WIRE-007"
    retry = Retry.RECONNECT
    what = "the connection to {peer} was lost"
    found = "{reason}"
    expected = "a connection that lasts until the point is published"
    remedy = "run the same command again: it goes on where it stopped"
    peer: str
    reason: str


class SealingExhausted(HomewardError):
    """A stream has used up what one key may seal."""

    code = "HW-WIRE-008"
    retry = Retry.RECONNECT
    what = "a stream has sealed as much as its keys allow"
    found = "epoch {epoch}"
    expected = "at most {limit} epochs in one session"
    remedy = "run the same command again: a new session has fresh keys"
    epoch: int
    limit: int


class PeerReported(HomewardError):
    """The peer ended the dialogue with an error of its own; this one carries it as it came."""

    code = "HW-WIRE-009"
    what = "{peer_what}"
    found = "{peer_found}"
    expected = "{peer_expected}"
    remedy = "{peer_remedy}"
    peer_code: str
    peer_what: str
    peer_found: str
    peer_expected: str
    peer_remedy: str
    peer_retry: str

    def __init__(self, **facts: str) -> None:
        super().__init__(**facts)
        with suppress(ValueError):  # a word that this release does not know: a person decides
            self.retry = Retry(self.peer_retry)  # type: ignore[misc]

    def __str__(self) -> str:
        return super().__str__().replace(type(self).code, self.peer_code, 1)

    def as_json(self) -> dict[str, str]:
        """As `HomewardError.as_json`, under the code that the peer gave."""
        return {**super().as_json(), "code": self.peer_code}
