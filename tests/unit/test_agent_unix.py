"""How the agent comes by its connections to a master target on the same machine."""

import socket

import pytest

from agent.adapters.unix import UnixConnect
from agent.errors import MasttargetUnreachable


def test_the_first_connection_is_the_one_that_is_there_and_the_others_are_sockets() -> None:
    first, other = socket.socketpair()
    with first, other, socket.socket(socket.AF_UNIX) as listening:
        listening.bind("")
        listening.listen()
        connect = UnixConnect(listening.getsockname(), first)
        assert connect() is first
        for _ in range(2):
            found = connect()
            accepted, _ = listening.accept()
            found.send(b"x")
            assert accepted.recv(1) == b"x"
            found.close()
            accepted.close()


def test_nobody_there_is_told() -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("")
        with pytest.raises(MasttargetUnreachable, match="refused"):
            UnixConnect(bound.getsockname())()
