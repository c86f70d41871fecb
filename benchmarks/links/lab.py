"""Network links inside this machine: two namespaces, and between them a line of a chosen rate, round trip and loss.

    near ── veth, tbf ── line: routes into a TUN, whose relay gives the packets back later ── veth, tbf ── far

tbf shapes what each end sends; the relay (`relay.c`) delays each packet by half of the round trip and loses some.
Linux's netem does the same, but is missing in many kernels; the relay needs nothing but /dev/net/tun.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

RELAY: Final = Path(__file__).with_name("relay.c")
NEAR_ADDRESS: Final = "10.77.1.2"
FAR_ADDRESS: Final = "10.77.2.2"
QUEUE_SECONDS_MIN: Final = 0.02
"""What the line's buffer holds at least, in seconds of its rate; with a longer round trip as much as that."""
_NUMBERS: Final = count()


@dataclass(frozen=True, slots=True)
class Line:
    """What a link is like. `rate` in Mbit/s, `loss` as a share of the packets of each direction."""

    rate: int
    round_trip_ms: int
    loss: float = 0.0

    @property
    def bytes_a_second(self) -> float:
        """The rate, headers of Ethernet, IP and TCP included."""
        return self.rate * 1e6 / 8

    def __str__(self) -> str:
        lossy = f", {100 * self.loss:g} % loss" if self.loss else ""
        return f"{self.rate:,} Mbit/s, {self.round_trip_ms} ms{lossy}"


@dataclass(frozen=True, slots=True)
class Lab:
    """A link that stands. `near` and `far` are words to put before a command that shall run at that end."""

    near: tuple[str, ...]
    far: tuple[str, ...]


def missing() -> str | None:
    """Why no link can be built here, as one sentence; None when one can."""
    if os.geteuid() != 0:
        return "Links inside this machine need root, for network namespaces."
    for word in ("ip", "tc", "gcc"):
        if shutil.which(word) is None:
            return f"Links inside this machine need the command `{word}`, which is not installed."
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        return f"Links inside this machine need /dev/net/tun: {error.strerror}."
    probe = f"hwprobe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"Links inside this machine need network namespaces: {made.stderr.strip()}."
    shape = (
        "tc",
        "qdisc",
        "add",
        "dev",
        "lo",
        "root",
        "tbf",
        "rate",
        "1mbit",
        "burst",
        "10kb",
        "limit",
        "10kb",
    )
    shaped = subprocess.run(
        ["ip", "netns", "exec", probe, *shape],
        capture_output=True,
        text=True,
        check=False,
    )
    subprocess.run(["ip", "netns", "delete", probe], check=False)
    return f"Links inside this machine need tbf: {shaped.stderr.strip()}." if shaped.returncode else None


@contextmanager
def built(line: Line, scratch: Path, *, congestion: str = "", seed: int = 1) -> Iterator[Lab]:
    """The link stands, and nothing of it is left afterwards. `congestion` is TCP's algorithm at both ends."""
    name = f"hw{os.getpid()}x{next(_NUMBERS)}"
    near, middle, far = f"{name}n", f"{name}l", f"{name}f"
    relay = scratch / "relay"
    if not relay.exists():
        _run("gcc", "-O2", "-Wall", "-Wextra", "-o", str(relay), str(RELAY))
    with ExitStack() as stack:
        for space in (near, middle, far):
            _run("ip", "netns", "add", space)
            stack.callback(_delete, space)
        within = ("ip", "netns", "exec", middle)
        for end, inner, number, address in ((near, "near", 1, NEAR_ADDRESS), (far, "far", 2, FAR_ADDRESS)):
            here = ("ip", "netns", "exec", end)
            gate = f"10.77.{number}.1"
            _run("ip", "link", "add", "line", "netns", end, "type", "veth", "peer", inner, "netns", middle)
            _run(*here, "ip", "address", "add", f"{address}/24", "dev", "line")
            _run(*here, "ip", "link", "set", "line", "up")
            _run(*here, "ip", "link", "set", "lo", "up")
            _run(*here, "ip", "route", "add", "default", "via", gate)
            _run(*within, "ip", "address", "add", f"{gate}/24", "dev", inner)
            _run(*within, "ip", "link", "set", inner, "up")
            _shape(here, line)
            if congestion:
                _run(*here, "sysctl", "-qw", f"net.ipv4.tcp_congestion_control={congestion}")
        _run(*within, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0")
        delay = round(line.round_trip_ms * 1000 / 2)
        process = subprocess.Popen(
            [*within, str(relay), "relay", str(delay), str(round(line.loss * 1e6)), str(seed)],
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(_end, process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", "the relay did not start"
        _run(*within, "sysctl", "-qw", "net.ipv4.conf.relay.rp_filter=0")
        _run(*within, "ip", "link", "set", "relay", "txqueuelen", "10000", "up")
        for table, inner in ((101, "near"), (102, "far")):
            _run(*within, "ip", "route", "add", "default", "dev", "relay", "table", str(table))
            _run(*within, "ip", "rule", "add", "iif", inner, "lookup", str(table))
        yield Lab(("ip", "netns", "exec", near), ("ip", "netns", "exec", far))


def _shape(here: tuple[str, ...], line: Line) -> None:
    """What this end sends is held to the line's rate; its buffer is a round trip long."""
    queue = line.bytes_a_second * max(QUEUE_SECONDS_MIN, line.round_trip_ms / 1000)
    burst = max(16_000, line.bytes_a_second * 0.001)
    _run(
        *(*here, "tc", "qdisc", "add", "dev", "line", "root", "tbf"),
        *("rate", f"{line.rate}mbit", "burst", str(round(burst)), "limit", str(round(queue))),
    )


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr.strip()}"


def _end(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=10)
    assert " full 0" in said, f"the relay was the bottleneck: {said.strip()}"


def _delete(space: str) -> None:
    with suppress(OSError):
        subprocess.run(["ip", "netns", "delete", space], check=False)
