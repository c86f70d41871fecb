"""How the agent reaches the master target: TCP."""

import socket
import struct
from typing import Final

from agent.errors import MasttargetUnreachable
from agent.lanes import NEAR_SECONDS
from agent.ports import LineState
from drcore.limits import HANDSHAKE_SECONDS_MAX, IDLE_SECONDS_MAX, KIB
from wireproto.link import Transport

_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4))
_UNSENT_BYTES: Final = 128 * KIB
"""What may wait in a far socket for its turn on the line: enough to keep the line busy while the next frame is packed,
and no more, as it counts as under way and no other lane can take it over. The buffers' sizes are left to Linux, which
lets them grow with the line (tcp_wmem, tcp_rmem); a size that is set would stay."""
_INFO_BYTES: Final = 192
_INFO_BYTES_ACKED: Final = 120
_INFO_MIN_RTT_US: Final = 148
"""Offsets in Linux' struct tcp_info (include/uapi/linux/tcp.h)."""


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
        line = self.line(stream)
        if line is not None and line.round_trip >= NEAR_SECONDS:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        return stream

    def line(self, transport: Transport) -> LineState | None:
        if not isinstance(transport, socket.socket):
            return None
        try:
            info = transport.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
        except OSError:
            return None
        if len(info) < _INFO_MIN_RTT_US + 4:  # a kernel before 4.6
            return None
        (delivered,) = struct.unpack_from("=Q", info, _INFO_BYTES_ACKED)
        (round_trip,) = struct.unpack_from("=I", info, _INFO_MIN_RTT_US)
        return LineState(delivered, round_trip / 1e6)
