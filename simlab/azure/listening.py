"""HTTP servers on free ports of the loopback, whose connections can be cut in the middle of a call."""

import asyncio
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

ADDRESS: Final = "127.0.0.1"
READY_POLL_SECONDS: Final = 0.005
GRACE_SECONDS: Final = 1
"""How long a stopping server waits for calls under way."""


class Connections:
    """The open connections of one server, by the client's address and port."""

    def __init__(self) -> None:
        self._open: Final[dict[tuple[str, int], tuple[asyncio.Transport, asyncio.Event]]] = {}

    def protocol(self) -> type[H11Protocol]:
        """The protocol class with which a server keeps this register."""
        register = self._open

        class Registered(H11Protocol):
            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                super().connection_made(transport)
                register[transport.get_extra_info("peername")[:2]] = (transport, asyncio.Event())

            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                for address, (transport, lost) in list(register.items()):
                    if transport is self.transport:
                        lost.set()
                        del register[address]

        return Registered

    async def cut(self, scope: Any, *, sent_first: bool) -> None:
        """The connection of this call is gone; `sent_first`: what was sent before still arrives."""
        host, port = scope["client"]
        transport, lost = self._open[host, port]
        if sent_first:
            transport.close()
        else:
            transport.abort()
        await lost.wait()


class Server(uvicorn.Server):
    """A server that leaves signals to whoever runs it, and tells its port before it is up."""

    def __init__(self, app: Any, connections: Connections, certificate: tuple[Path, Path] | None) -> None:
        self._socket: Final = socket.create_server((ADDRESS, 0))
        # Accepted sockets inherit it. Without it a body waits 40 ms for the acknowledgement of its head.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port: Final[int] = self._socket.getsockname()[1]
        self._task: asyncio.Task[None] | None = None
        super().__init__(
            uvicorn.Config(
                app,
                http=connections.protocol(),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=60,
                timeout_graceful_shutdown=GRACE_SECONDS,
                ssl_certfile=str(certificate[0]) if certificate else None,
                ssl_keyfile=str(certificate[1]) if certificate else None,
            )
        )

    @property
    def url(self) -> str:
        """Its address."""
        return f"{'https' if self.config.ssl_certfile else 'http'}://{ADDRESS}:{self.port}"

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Nothing is captured: three servers share one process."""
        yield

    async def up(self) -> None:
        """It answers."""
        self._task = asyncio.create_task(self.serve(sockets=[self._socket]))
        while not self.started and not self._task.done():
            await asyncio.sleep(READY_POLL_SECONDS)
        if self._task.done():
            await self._task

    async def down(self) -> None:
        """It does not listen any more and its connections are gone."""
        self.should_exit = True
        if self._task is not None:
            await self._task
        self._socket.close()
