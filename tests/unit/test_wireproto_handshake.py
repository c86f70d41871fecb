"""The two clear messages, the refusal, and what a peer without the key can learn or do: nothing."""

import dataclasses

import pytest

from drcore.errors import HomewardError
from drcore.limits import FRAME_BYTES_MAX, HANDSHAKE_BYTES_MAX
from drcore.secret import Secret
from wireproto import handshake
from wireproto.connection import Connection, Greeted
from wireproto.errors import (
    LimitExceeded,
    MessageRefused,
    NotProved,
    NotTheProtocol,
    PeerReported,
    PeerVersion,
)
from wireproto.frame import HEADER_BYTES, FrameClass, Header
from wireproto.handshake import DiskOffer, Hello, Purpose
from wireproto.keys import handshake_key
from wireproto.messages import Open

KEY = Secret(b"k" * 32)
HELLO = Hello(
    purpose=Purpose.SESSION,
    item=b"i" * 16,
    generation=7,
    session=0,
    lane=0,
    sent_ms=1_700_000_000_000,
    random=b"r" * 32,
    disks=(DiskOffer(b"a" * 16, 1 << 40), DiskOffer(b"b" * 16, 12345)),
)


def test_a_hello_comes_out_as_it_went_in() -> None:
    proof_key = handshake_key(KEY)
    assert handshake.decode_hello(handshake.encode_hello(HELLO, proof_key), proof_key) == HELLO


def test_a_hello_with_any_bit_flipped_is_refused() -> None:
    proof_key = handshake_key(KEY)
    encoded = handshake.encode_hello(HELLO, proof_key)
    for bit in range(8 * len(encoded)):
        hostile = bytearray(encoded)
        hostile[bit // 8] ^= 1 << bit % 8
        with pytest.raises((NotProved, PeerVersion)):
            handshake.decode_hello(bytes(hostile), proof_key)


def test_a_hello_cut_anywhere_is_refused() -> None:
    proof_key = handshake_key(KEY)
    encoded = handshake.encode_hello(HELLO, proof_key)
    for size in range(len(encoded)):
        with pytest.raises((NotProved, MessageRefused)):
            handshake.decode_hello(encoded[:size], proof_key)


@pytest.mark.parametrize(("first", "last"), [(2, 9), (0, 0), (9, 2), (65535, 65535)])
def test_a_peer_of_another_version_is_told_so_even_without_the_key(first: int, last: int) -> None:
    hello = dataclasses.replace(HELLO, first_version=first, last_version=last)
    encoded = handshake.encode_hello(hello, handshake_key(Secret(b"?" * 32)))
    with pytest.raises(PeerVersion) as caught:
        handshake.decode_hello(encoded, handshake_key(KEY))
    assert f"versions {first} to {last}" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"disks": ()}, MessageRefused),
        ({"disks": (DiskOffer(b"a" * 16, 1), DiskOffer(b"a" * 16, 2))}, MessageRefused),
        ({"disks": (DiskOffer(b"a" * 16, 2**63),)}, LimitExceeded),
        ({"lane": 16}, LimitExceeded),
    ],
)
def test_a_proved_hello_beyond_a_limit_is_refused(
    changes: dict[str, object], error: type[HomewardError]
) -> None:
    proof_key = handshake_key(KEY)
    encoded = handshake.encode_hello(dataclasses.replace(HELLO, **changes), proof_key)  # type: ignore[arg-type]
    with pytest.raises(error):
        handshake.decode_hello(encoded, proof_key)


def test_the_wrong_key_is_refused_by_the_master_target() -> None:
    agent = Connection(is_agent=True, shared=Secret(b"x" * 32))
    target = Connection(is_agent=False, shared=KEY)
    with pytest.raises(NotProved):
        target.receive(agent.greet(HELLO))


def test_a_welcome_with_the_wrong_key_is_refused_by_the_agent() -> None:
    agent, target = Connection(is_agent=True, shared=KEY), Connection(is_agent=False, shared=KEY)
    other = Connection(is_agent=False, shared=Secret(b"x" * 32))
    greeting = agent.greet(HELLO)
    target.receive(greeting)
    other._offered, other._hello = target._offered, target._hello
    with pytest.raises(NotProved):
        agent.receive(other.welcome(b"w" * 32, 0))


def test_a_refusal_arrives_with_code_and_words() -> None:
    agent, target = Connection(is_agent=True, shared=KEY), Connection(is_agent=False, shared=KEY)
    agent.greet(HELLO)
    with pytest.raises(PeerReported) as caught:
        agent.receive(target.refuse(NotProved()))
    assert caught.value.as_json()["code"] == NotProved.code
    assert str(caught.value).startswith(f"{NotProved.code}: the peer does not hold the same key")


def test_a_refusal_full_of_control_characters_cannot_forge_lines() -> None:
    agent, target = Connection(is_agent=True, shared=KEY), Connection(is_agent=False, shared=KEY)
    agent.greet(HELLO)
    error = NotTheProtocol(reason="evil\n\x1b[2Jline" + "x" * 5000)
    with pytest.raises(PeerReported) as caught:
        agent.receive(target.refuse(error))
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_before_the_proof_a_peer_makes_us_hold_no_more_than_a_handshake() -> None:
    target = Connection(is_agent=False, shared=KEY)
    huge = Header(FrameClass.SEALED, 0, 0, 0, FRAME_BYTES_MAX - HEADER_BYTES).encode()
    with pytest.raises(NotTheProtocol):
        target.receive(huge)
    with pytest.raises(LimitExceeded):
        Connection(is_agent=False, shared=KEY).receive(
            Header(FrameClass.HANDSHAKE, 0, 0, 0, HANDSHAKE_BYTES_MAX + 1).encode()
        )


def test_something_that_is_not_homeward_is_told_from_the_first_bytes() -> None:
    for noise in (b"GET / HTTP/1.1\r\nHost: home\r\n", b"\x16\x03\x01\x02\x00" + bytes(40), bytes(24)):
        with pytest.raises(NotTheProtocol):
            Connection(is_agent=False, shared=KEY).receive(noise)


def test_a_second_hello_and_a_welcome_out_of_place_are_refused() -> None:
    agent, target = Connection(is_agent=True, shared=KEY), Connection(is_agent=False, shared=KEY)
    greeting = agent.greet(HELLO)
    assert isinstance(target.receive(greeting)[0], Greeted)
    with pytest.raises(MessageRefused):
        target.receive(greeting)
    with pytest.raises(MessageRefused):
        Connection(is_agent=True, shared=KEY).receive(target.welcome(b"w" * 32, 0))


def test_a_replayed_hello_gets_keys_that_the_replayer_does_not_have() -> None:
    agent, target = Connection(is_agent=True, shared=KEY), Connection(is_agent=False, shared=KEY)
    greeting = agent.greet(HELLO)
    target.receive(greeting)
    agent.receive(target.welcome(b"1" * 32, 0))
    opening = bytes(agent.send(0, Open(), 0.0))
    again = Connection(is_agent=False, shared=KEY)
    again.receive(greeting)
    again.welcome(b"2" * 32, 0)
    with pytest.raises(HomewardError):
        again.receive(opening)
