"""Hanging up on an agent that takes nothing more."""

import random
import socket
import threading
import time

from masttarget.errors import Stopping
from masttarget.session import PARTING_SECONDS, part
from tests.campaigns.attack import opened_pair
from wireproto.errors import ConnectionLost
from wireproto.link import Link
from wireproto.messages import Alive


def test_an_agent_that_reads_nothing_delays_a_parting_by_seconds_only() -> None:
    _, connection = opened_pair(random.Random(11))
    ours, theirs = socket.socketpair()
    link = Link(connection, ours, threading.Lock(), time.monotonic, "an agent that hangs")
    stuck = threading.Thread(target=_send_until_lost, args=(link,), daemon=True)
    stuck.start()
    while True:  # until the pipe is full and the sender waits in it, with the link's lock
        before = link.bytes_sent
        time.sleep(0.2)
        if link.bytes_sent == before:
            break
    began = time.monotonic()
    part(link, Stopping())
    assert time.monotonic() - began < 5 * PARTING_SECONDS
    stuck.join(5 * PARTING_SECONDS)
    assert not stuck.is_alive()
    theirs.close()


def _send_until_lost(link: Link) -> None:
    try:
        while True:
            link.send(0, Alive())
    except ConnectionLost:
        pass
