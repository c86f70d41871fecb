"""A relay between agent and master target: counts, and changes what it is told to change."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

Change = Callable[[bytes, bool], bytes]
"""What becomes of some bytes, told whether they come from the agent; empty: the connection is cut."""


class Relay:
    """Listens on `port`; passes on to `target_port`, which may change between connections."""

    def __init__(self, change: Change = lambda data, from_agent: data) -> None:
        self._change = change
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.target_port = 0
        self.from_agent = 0
        self._over = False
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def _start(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._over:
            with suppress(OSError):
                agent, _ = self._listener.accept()
                try:
                    target = socket.create_connection(("127.0.0.1", self.target_port))
                except OSError:
                    agent.close()
                    continue
                self._start(self._pair, agent, target)

    def _pair(self, agent: socket.socket, target: socket.socket) -> None:
        with agent, target:
            back = threading.Thread(target=self._pass, args=(target, agent, False), daemon=True)
            back.start()
            self._pass(agent, target, True)
            back.join()

    def _pass(self, source: socket.socket, sink: socket.socket, from_agent: bool) -> None:
        with suppress(OSError):
            while data := source.recv(256 * 1024):
                if from_agent:
                    self.from_agent += len(data)
                data = self._change(data, from_agent)
                if not data:
                    break
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """No more connections; both roles have ended before, so every pair has too."""
        self._over = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._listener.close()
