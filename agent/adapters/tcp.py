"""How the agent reaches the master target: TCP."""

import socket
import struct
from typing import Final

from agent.errors import MasttargetUnreachable
from drcore.limits import HANDSHAKE_SECONDS_MAX, IDLE_SECONDS_MAX

_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4))


class TcpConnect:
    """See `agent.ports.Connect`."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)

    @property
    def peer(self) -> str:
        return f"{self._address[0]}:{self._address[1]}"

    def __call__(self) -> socket.socket:
        try:
            stream = socket.create_connection(self._address, timeout=HANDSHAKE_SECONDS_MAX)
        except OSError as error:
            raise MasttargetUnreachable(address=self.peer, reason=error.strerror or str(error)) from error
        stream.settimeout(None)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            stream.setsockopt(socket.IPPROTO_TCP, option, value)
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            stream.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", IDLE_SECONDS_MAX, 0))
        return stream
