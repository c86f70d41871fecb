"""How the agent opens its connections: a session's first one, and its further lanes."""

import threading
from collections.abc import Callable

from agent.config import AgentConfig
from agent.errors import MasttargetUnreachable
from agent.ports import Connect
from drcore.clock import Clock
from drcore.limits import HANDSHAKE_SECONDS_MAX
from drcore.record import Record
from drcore.secret import Secret
from wireproto.connection import SESSION_STREAM, Connection, Greeted, Received
from wireproto.errors import ConnectionLost, MessageRefused
from wireproto.handshake import DiskOffer, Hello, Purpose
from wireproto.keys import RANDOM_BYTES
from wireproto.link import Link
from wireproto.messages import Open, Opened, Report, error_of


class Caller(Record):
    """What every connection of one run has in common. `patient` is asked when nothing moves on one for too long."""

    config: AgentConfig
    connect: Connect
    clock: Clock
    random: Callable[[int], bytes]
    shared: Secret
    offers: tuple[DiskOffer, ...]
    patient: Callable[[], bool]

    def call(self, purpose: Purpose, session: int, lane: int) -> tuple[Link, Opened]:
        """The peer is there, proved, and has opened the session or lane.

        Errors: `MasttargetUnreachable` (HW-AGENT-003), `ConnectionLost`, `PeerReported`.
        """
        clock = self.clock
        connection = Connection(is_agent=True, shared=self.shared)
        link = Link(
            connection,
            self.connect(),
            threading.Lock(),
            clock.monotonic,
            self.connect.peer,
        )
        link.patient = self.patient
        try:
            hello = Hello(
                purpose,
                self.config.item.bytes,
                self.config.generation,
                session,
                lane,
                int(clock.now() * 1000),
                self.random(RANDOM_BYTES),
                self.offers,
            )
            _greet(link, connection.greet(hello))
            link.send(SESSION_STREAM, Open())
            event = link.receive()
            if isinstance(event, Received) and isinstance(event.message, Report):
                raise error_of(event.message)
            if not isinstance(event, Received) or not isinstance(event.message, Opened):
                raise MessageRefused(reason="no opening")
            return link, event.message
        except BaseException:
            link.close()
            raise


def _greet(link: Link, hello: bytes) -> None:
    """The master target proved its key. Errors: `MasttargetUnreachable` (HW-AGENT-003) when it says nothing."""
    silent = threading.Event()

    def hang_up() -> None:
        silent.set()
        link.close()

    deadline = threading.Timer(HANDSHAKE_SECONDS_MAX, hang_up)
    deadline.daemon = True
    deadline.start()
    try:
        link.send_clear(hello)
        if not isinstance(link.receive(), Greeted):
            raise MessageRefused(reason="no welcome")
    except ConnectionLost as error:
        if not silent.is_set():
            raise
        reason = f"something takes the connection and says nothing for {HANDSHAKE_SECONDS_MAX:.0f} seconds"
        raise MasttargetUnreachable(address=link.peer, reason=reason) from error
    finally:
        deadline.cancel()
