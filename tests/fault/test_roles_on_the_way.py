"""What a network or an attacker between the roles can do: the run ends in one coded error, nothing wrong is applied."""

import random
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from agent.main import Agent
from drcore.errors import HomewardError
from drcore.secret import Secret
from tests.fault.relay import Deed, Once, Relay, cut_short, dropped, flipped, hung_up, reordered, replayed
from tests.system.command import homeward, judge, write_sparse
from tests.system.roles import Pair, Site, write_key
from wireproto.errors import PeerReported, PeerVersion
from wireproto.frame import FrameClass, Header
from wireproto.handshake import DiskOffer, Hello, Purpose, encode_hello, encode_refusal, encode_welcome
from wireproto.handshake import Welcome as WelcomeMessage
from wireproto.keys import handshake_key

MIB = 1024 * 1024
TAMPERED = {"HW-WIRE-003", "HW-WIRE-004", "HW-WIRE-005", "HW-WIRE-006"}


def a_site(folder: Path, dice: random.Random) -> tuple[Site, Path, Path, bytes]:
    """Every third block differs, so that there are questions, answers and data; the old content of the target."""
    new = bytearray(dice.randbytes(12 * MIB))
    old = bytearray(new)
    for at in range(0, len(new), 3 * 65536):
        old[at + 5] ^= 1
    source, target = write_sparse(folder / "source.raw", new), write_sparse(folder / "target.raw", old)
    return Site(folder, Pair(source, target)), source, target, bytes(old)


def only_old_or_new(source: Path, target: Path, old: bytes) -> None:
    """Block for block the target holds what it held or what the source holds."""
    new, found = source.read_bytes(), target.read_bytes()
    for at in range(0, len(new), 65536):
        assert found[at : at + 65536] in (old[at : at + 65536], new[at : at + 65536]), at


def codes(error: HomewardError) -> str:
    return error.peer_code if isinstance(error, PeerReported) else error.code


DEEDS: dict[str, Callable[[random.Random], Deed]] = {
    "flipped": lambda dice: flipped(dice.randrange(8 * 4096)),
    "replayed": lambda dice: replayed,
    "reordered": lambda dice: reordered,
    "dropped": lambda dice: dropped,
    "cut": lambda dice: cut_short,
}


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("deed", DEEDS)
def test_tampered_frames_end_the_run_and_change_nothing_else(
    deed: str, direction: str, tmp_path: Path, dice: random.Random
) -> None:
    site, source, target, old = a_site(tmp_path, dice)
    once = Once(dice.choice([2, 3]), DEEDS[deed](dice))
    with site.listening() as port:
        with Relay(port, **{direction: once}) as relay:
            # A length that was made longer, or a last frame that never came, leaves both ends waiting: the network
            # hangs up in the end.
            timer = threading.Timer(2.0, relay.hang_up)
            timer.start()
            with pytest.raises(HomewardError) as caught:
                site.sync(relay.port, reconnects=0)
            timer.cancel()
            timer.join()
            assert once.done
            assert codes(caught.value) in TAMPERED | {"HW-WIRE-007"}
        only_old_or_new(source, target, old)
        assert site.sync(port).resumed
    judge(target, "raw", source)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_connection_that_breaks_is_made_again(direction: str, tmp_path: Path, dice: random.Random) -> None:
    site, source, target, _ = a_site(tmp_path, dice)
    once = Once(3, hung_up)
    retries: list[HomewardError] = []
    with site.listening() as port, Relay(port, **{direction: once}) as relay:
        config = replace(site.agent(relay.port), reconnects=3)
        report = Agent(config, lambda error, wait: retries.append(error)).run()
    assert report.resumed
    assert [error.code for error in retries] == ["HW-WIRE-007"]
    judge(target, "raw", source)


def test_a_broken_connection_without_reconnects_is_one_error(tmp_path: Path, dice: random.Random) -> None:
    site, *_ = a_site(tmp_path, dice)
    with site.serving() as port, Relay(port, up=Once(1, hung_up)) as relay:
        homeward("agent", "sync", "--config", site.write_agent(relay.port), "--json").refused("HW-WIRE-007")


def test_a_wrong_key_is_refused_on_either_side(tmp_path: Path, dice: random.Random) -> None:
    site, _, target, old = a_site(tmp_path, dice)
    with site.serving() as port:
        write_key(site.key, b"x" * 32)
        homeward("agent", "sync", "--config", site.write_agent(port), "--json").refused("HW-WIRE-002")
    assert target.read_bytes() == old
    assert not site.journal(site.pairs[0]).exists()


def test_an_unknown_item_or_disk_is_refused(tmp_path: Path, dice: random.Random) -> None:
    site, _, target, old = a_site(tmp_path, dice)
    with site.serving() as port:
        text = site.write_agent(port).read_text()
        for mine, code in ((str(site.item), "HW-MT-001"), (str(site.pairs[0].disk), "HW-MT-002")):
            path = tmp_path / "other.toml"
            path.write_text(text.replace(mine, "12345678-1234-1234-1234-123456789abc"))
            homeward("agent", "sync", "--config", path, "--json").refused(code)
    assert target.read_bytes() == old


class Peer:
    """Listens and answers every connection with what `answer` makes of its first bytes."""

    def __init__(self, answer: Callable[[bytes], bytes | None]) -> None:
        self._answer = answer
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                stream, _ = self._listening.accept()
                with stream, suppress(OSError):
                    stream.settimeout(30)
                    answer = self._answer(stream.recv(65536))
                    if answer is None:  # say nothing until the other side gives up
                        stream.recv(1)
                        continue
                    stream.sendall(answer)
                    while stream.recv(65536):
                        pass


def clear(frame_class: FrameClass, body: bytes) -> bytes:
    return Header(frame_class, 0, 0, 0, len(body)).encode() + body


def welcome_of_version_2(hello_frame: bytes) -> bytes:
    key = handshake_key(Secret(b"k" * 32))
    return clear(FrameClass.HANDSHAKE, encode_welcome(WelcomeMessage(2, 0, bytes(32)), hello_frame[24:], key))


def refusal_of_version_2(hello_frame: bytes) -> bytes:
    error = PeerVersion(peer_first=1, peer_last=1, own_first=2, own_last=3)
    return clear(FrameClass.REFUSAL, encode_refusal(error))


ANSWERS: dict[str, tuple[Callable[[bytes], bytes | None], set[str]]] = {
    "welcome of version 2": (welcome_of_version_2, {"HW-WIRE-001"}),
    "refusal of version 2": (refusal_of_version_2, {"HW-WIRE-001"}),
    "http": (lambda _: b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", {"HW-WIRE-004"}),
    "garbage": (lambda _: bytes(range(200)), {"HW-WIRE-004"}),
    "its own bytes": (lambda hello: hello, {"HW-WIRE-002", "HW-WIRE-006"}),
    "a huge length": (lambda _: Header(FrameClass.HANDSHAKE, 0, 0, 0, 2**31).encode(), {"HW-WIRE-005"}),
    "an empty refusal": (lambda _: clear(FrameClass.REFUSAL, b""), {"HW-WIRE-006"}),
    "a sealed frame": (lambda _: clear(FrameClass.SEALED, bytes(64)), {"HW-WIRE-006"}),
    "a goodbye": (lambda _: b"", {"HW-WIRE-007"}),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_whoever_else_answers_is_recognised(name: str, tmp_path: Path, dice: random.Random) -> None:
    site, _, target, old = a_site(tmp_path, dice)
    answer, expected = ANSWERS[name]
    peer = Peer(answer) if name != "a goodbye" else Peer(lambda _: _hang_up())
    with peer, pytest.raises(HomewardError) as caught:
        site.sync(peer.port, reconnects=0)
    assert codes(caught.value) in expected
    assert target.read_bytes() == old


def _hang_up() -> bytes:
    raise ConnectionResetError


def test_a_peer_that_says_nothing_is_given_up(
    tmp_path: Path, dice: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.connecting.HANDSHAKE_SECONDS_MAX", 0.3)
    site, *_ = a_site(tmp_path, dice)
    with Peer(lambda _: None) as peer, pytest.raises(HomewardError) as caught:
        site.sync(peer.port, reconnects=0)
    assert caught.value.code == "HW-AGENT-003"


def test_a_closed_port_is_one_error(tmp_path: Path, dice: random.Random) -> None:
    site, *_ = a_site(tmp_path, dice)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line = homeward("agent", "sync", "--config", site.write_agent(port), "--json").refused("HW-AGENT-003")
    assert f"127.0.0.1:{port}" in line


def hello_of(site: Site, **changes: object) -> bytes:
    hello = Hello(
        Purpose.SESSION,
        site.item.bytes,
        1,
        0,
        0,
        0,
        bytes(32),
        (DiskOffer(site.pairs[0].disk.bytes, 12 * MIB),),
    )
    key = handshake_key(Secret(b"k" * 32))
    return clear(FrameClass.HANDSHAKE, encode_hello(replace(hello, **changes), key))  # type: ignore[arg-type]


def exchange(port: int, data: bytes) -> bytes:
    """What the master target answers before it hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as stream:
        stream.sendall(data)
        stream.shutdown(socket.SHUT_WR)
        out = b""
        with suppress(ConnectionResetError):
            while piece := stream.recv(65536):
                out += piece
        return out


def test_the_master_target_survives_whatever_comes_to_its_port(tmp_path: Path, dice: random.Random) -> None:
    site, source, target, old = a_site(tmp_path, dice)
    with site.serving() as port:
        assert b"HW-WIRE-001" in exchange(port, hello_of(site, first_version=2, last_version=3))
        assert b"HW-WIRE-004" in exchange(port, b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        good = hello_of(site)
        assert b"HW-WIRE-002" in exchange(port, good[:-1] + bytes([good[-1] ^ 1]))
        for data in (
            b"",
            good[:30],
            dice.randbytes(5000),
            good,  # replayed: its Open never comes
            good + good,
            good + clear(FrameClass.SEALED, bytes(100)),
            hello_of(site, purpose=Purpose.LANE, session=99),
        ):
            assert b"Traceback" not in exchange(port, data)
        for _ in range(20):
            flawed = bytearray(good)
            flawed[dice.randrange(len(flawed))] ^= 1 << dice.randrange(8)
            exchange(port, bytes(flawed))
        assert target.read_bytes() == old
        assert not site.journal(site.pairs[0]).exists(), "nobody proved a key: nothing was stored"
        assert homeward("agent", "sync", "--config", site.write_agent(port)).code == 0
    judge(target, "raw", source)
