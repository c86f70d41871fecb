"""How the agent reaches a master target on its own machine: a socket of the kernel's abstract name space."""

import socket
import struct
from typing import Final

from agent.errors import MasttargetUnreachable
from agent.ports import LineState
from drcore.limits import IDLE_SECONDS_MAX, LOCAL_SOCKET_BYTES
from wireproto.link import Transport


class UnixConnect:
    """See `agent.ports.Connect`."""

    peer: Final = "the master target on this machine"

    def __init__(self, address: bytes, first: Transport | None = None) -> None:
        """`first` is the first connection, which is there already."""
        self._address = address
        self._first = first

    def __call__(self) -> Transport:
        first, self._first = self._first, None
        return first or self._stream()

    def _stream(self) -> socket.socket:
        stream = socket.socket(socket.AF_UNIX)
        try:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LOCAL_SOCKET_BYTES)
            stream.connect(self._address)
        except OSError as error:
            stream.close()
            raise MasttargetUnreachable(address=self.peer, reason=error.strerror or str(error)) from error
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            stream.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", IDLE_SECONDS_MAX, 0))
        return stream

    def line(self, transport: Transport) -> LineState | None:
        """A socket within the machine has no line."""
        return None
