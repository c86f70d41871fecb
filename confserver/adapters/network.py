"""Whether a TCP port answers."""

import socket
from typing import Final

PROBE_SECONDS: Final = 3.0
"""A port that is open answers within a round trip; a filtered one never does."""


class TcpNetwork:
    """See `confserver.ports.Network`."""

    def reach(self, host: str, port: int) -> str:
        try:
            socket.create_connection((host, port), timeout=PROBE_SECONDS).close()
        except OSError as error:
            return error.strerror or str(error) or "no answer"
        return ""
