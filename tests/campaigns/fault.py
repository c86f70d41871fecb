"""Failing disks, journals and networks: one coded error, no half truth; the same again without the fault is byte-exact.

Parts: `target`, `source`, `journal` (the N-th verb fails with EIO or ENOSPC; a failed flush is never success later) and
`network` (a relay flips, drops, repeats, swaps or cuts bytes). Both roles run in this process, over real sockets.
Part `confserver`: see `fault_confserver`.
"""

import random
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import agent.main
import agent.sync
import masttarget.session
from agent.config import AgentConfig, Compression, SourceConfig
from agent.main import Agent
from disks import catalogue
from disks.errors import FlushFailed, NoSpace, ReadFailed, WriteFailed
from drcore.errors import HomewardError
from drcore.units import BLOCK_BYTES
from masttarget.adapters.files import LocalStore
from masttarget.config import DiskConfig, MasttargetConfig
from masttarget.errors import JournalFailed
from masttarget.main import Master
from tests.campaigns.fault_confserver import confserver
from tests.campaigns.relay import Relay
from tests.campaigns.runner import Campaign, Round

BLOCKS = 150
NO_FAULT = 1 << 30


class Faults:
    """Fails a verb when it is called for the N-th time, and (as a broken medium would) every time after that."""

    def __init__(self, verb: str, number: int, error: Callable[[], HomewardError], lasting: bool) -> None:
        self.verb = verb
        self.left = number
        self.error = error
        self.lasting = lasting
        self.happened = 0

    def check(self, verb: str) -> None:
        if verb != self.verb:
            return
        self.left -= 1
        if self.left == 0 or (self.left < 0 and self.lasting):
            self.happened += 1
            raise self.error()


class Faulty:
    """Stands before a disk or journal; verbs fail as told."""

    def __init__(self, inner: Any, faults: Faults) -> None:
        self.inner = inner
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if not callable(found) or name == "close":
            return found

        def call(*args: Any, **words: Any) -> Any:
            self._faults.check(name)
            return found(*args, **words)

        return call


class FaultyStore(LocalStore):
    """The real store with faults in front of its disks or journals."""

    def __init__(self, scratch: Path, disk: Faults, journal: Faults) -> None:
        super().__init__(scratch)
        self._disk = disk
        self._journal = journal

    def open(self, disk: Any) -> Any:
        return Faulty(super().open(disk), self._disk)

    def create(self, disk: Any, size: int) -> Any:
        return Faulty(super().create(disk, size), self._disk)

    def identity(self, disk: Any) -> Any:
        return super().identity(disk.inner)

    def file_marks(self, disk: Any) -> Any:
        return super().file_marks(disk.inner)

    def change_mark(self, disk: Any) -> str:
        return super().change_mark(disk.inner)

    def journal(self, disk: Any) -> Any:
        return Faulty(super().journal(disk), self._journal)


NONE = Faults("", NO_FAULT, lambda: JournalFailed(path="", reason=""), lasting=False)


class Bench:
    """Source, target and both roles."""

    def __init__(self, directory: Path, rng: random.Random) -> None:
        self.rng = rng
        self.directory = directory
        self.item, self.disk = (uuid.UUID(int=rng.getrandbits(128)) for _ in range(2))
        self.source, self.target = directory / "source.raw", directory / "target.raw"
        self.key = directory / "key"
        self.key.touch(0o600)
        self.key.write_bytes(rng.randbytes(32))
        old = bytearray()
        for _ in range(BLOCKS):
            old += bytes(BLOCK_BYTES) if rng.random() < 0.3 else rng.randbytes(BLOCK_BYTES)
        new = bytearray(old)
        for block in range(BLOCKS):
            choice = rng.random()
            if choice < 0.3:
                new[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = rng.randbytes(BLOCK_BYTES)
            elif choice < 0.5:
                at = block * BLOCK_BYTES + 4096 * rng.randrange(16)
                new[at : at + 4096] = rng.randbytes(4096)
            elif choice < 0.6:
                new[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = bytes(BLOCK_BYTES)
        self.source.write_bytes(new[:-1000])
        if rng.random() < 0.7:
            self.target.write_bytes(old[:-1000])

    def run(self, disk: Faults, journal: Faults, relay: Relay | None = None) -> HomewardError | None:
        """One run of both roles; answers the agent's error."""
        told = DiskConfig(
            self.item,
            self.disk,
            self.target,
            format="",
            create="raw",
            allow_larger=False,
            adopt=True,
            journal=self.directory / "target.raw.homeward",
        )
        config = MasttargetConfig("127.0.0.1", 0, self.key, self.directory, (told,))
        store = FaultyStore(self.directory, disk, journal)
        master = Master(config, lambda event, /, **facts: None, store)
        serving = threading.Thread(target=master.run)
        serving.start()
        port = master.address[1]
        if relay is not None:
            relay.target_port = port
            port = relay.port
        settings = AgentConfig(
            "127.0.0.1",
            port,
            self.key,
            self.directory / "agent",
            self.item,
            (SourceConfig(self.disk, self.source, None),),
            compression=Compression.NEVER if self.rng.random() < 0.5 else Compression.ALWAYS,
            lanes=self.rng.choice((1, 1, 3)),
        )
        try:
            Agent(settings, lambda error, wait: None).run()
        except HomewardError as error:
            return error
        finally:
            master.stop()
            serving.join(30)
            assert not serving.is_alive(), "the master target hangs"
        return None

    def finish(self) -> None:
        """Without a fault the same run ends byte-exact."""
        error = self.run(NONE, NONE)
        assert error is None, f"the run without a fault failed: {error}"
        assert self.source.read_bytes() == self.target.read_bytes(), "source and target differ"


@contextmanager
def _bench(rng: random.Random) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory() as name:
        yield Bench(Path(name), rng)


def _disk_error(verb: str, path: str, full: bool) -> HomewardError:
    if verb == "flush":
        return FlushFailed(path=path, reason="Input/output error")
    if verb == "read":
        return ReadFailed(path=path, offset=0, length=0, reason="Input/output error")
    kind = NoSpace if full else WriteFailed
    return kind(path=path, offset=0, length=0, reason="No space left" if full else "Input/output error")


@contextmanager
def target() -> Iterator[Round]:
    """The N-th read, write, zero or flush of the target fails."""

    def one(rng: random.Random, number: int) -> None:
        with _bench(rng) as bench:
            verb = rng.choice(("read", "write", "zero", "flush"))
            full = rng.random() < 0.5
            faults = Faults(
                verb,
                1 + number % 40 if verb in ("read", "write") else 1 + number % 3,
                lambda: _disk_error(verb, str(bench.target), full),
                lasting=rng.random() < 0.5,
            )
            error = bench.run(faults, NONE)
            assert (error is not None) or not faults.happened, "a fault of the target was not told"
            bench.finish()

    yield one


@contextmanager
def journal() -> Iterator[Round]:
    """The N-th verb of the journal fails."""

    def one(rng: random.Random, number: int) -> None:
        with _bench(rng) as bench:
            verb = rng.choice(("store", "start_applied", "append_applied"))
            faults = Faults(
                verb,
                1 + number % 4,
                lambda: JournalFailed(path=str(bench.directory), reason="No space left on device"),
                lasting=rng.random() < 0.5,
            )
            error = bench.run(NONE, faults)
            assert (error is not None) or not faults.happened, "a fault of the journal was not told"
            bench.finish()

    yield one


@contextmanager
def source() -> Iterator[Round]:
    """The N-th read of the source fails."""
    opening = catalogue.open_source
    faults = NONE

    def open_source(*args: Any) -> Any:
        return Faulty(opening(*args), faults)

    def one(rng: random.Random, number: int) -> None:
        nonlocal faults
        with _bench(rng) as bench:
            faults = Faults(
                "read", 1 + number % 60, lambda: _disk_error("read", str(bench.source), False), lasting=True
            )
            error = bench.run(NONE, NONE)
            assert (error is not None) == bool(faults.happened), "a fault of the source was not told"
            faults = NONE
            bench.finish()

    agent.main.catalogue.open_source = open_source  # type: ignore[assignment]
    try:
        yield one
    finally:
        agent.main.catalogue.open_source = opening


class Mishap:
    """Lets bytes through until one of them is due for a fault."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._from_agent = rng.random() < 0.6
        self._left = int(rng.expovariate(1 / 2e6 if self._from_agent else 1 / 2e3))
        self._kind = rng.choice(("flip", "drop", "repeat", "swap", "cut", "half"))

    def __call__(self, data: bytes, from_agent: bool) -> bytes:
        if from_agent != self._from_agent or self._left < 0:
            return data
        self._left -= len(data)
        return self._spoil(data) if self._left < 0 else data

    def _spoil(self, data: bytes) -> bytes:
        at = self._rng.randrange(len(data))
        match self._kind:
            case "flip":
                return data[:at] + bytes([data[at] ^ 1 << self._rng.randrange(8)]) + data[at + 1 :]
            case "drop":
                return data[:at] + data[at + 1 + self._rng.randrange(500) :]
            case "repeat":
                return data + data[at:]
            case "swap":
                return data[at:] + data[:at]
            case "half":
                return data[:at]
            case _:
                return b""


@contextmanager
def network() -> Iterator[Round]:
    """The network is hostile or broken once; what was lost comes to light with the next heartbeat."""

    def one(rng: random.Random, _: int) -> None:
        with _bench(rng) as bench:
            relay = Relay(Mishap(rng))
            try:
                error = bench.run(NONE, NONE, relay)
            finally:
                relay.close()
            if error is None:
                assert bench.source.read_bytes() == bench.target.read_bytes(), "done, and yet different"
            bench.finish()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agent.sync, "HEARTBEAT_SECONDS", 0.2)
        patch.setattr(masttarget.session, "HEARTBEAT_SECONDS", 0.2)
        yield one


CAMPAIGN = Campaign(
    "fault",
    {
        "target": target,
        "source": source,
        "journal": journal,
        "network": network,
        "confserver": confserver,
    },
    one_by_one=frozenset({"confserver", "network"}),
)
