"""Every message comes out as it went in; what is cut, too long or out of bounds does not come out at all."""

import pytest

from drcore.errors import HomewardError
from wireproto.barrier import Enrol, Frozen, Harvested, Prepare, Thaw
from wireproto.errors import MessageRefused
from wireproto.messages import (
    EMPTY,
    PREFIX,
    Alive,
    Bye,
    Children,
    Commit,
    Data,
    Differ,
    DiskState,
    DiskTotals,
    Durable,
    Failed,
    Message,
    Mismatch,
    Missing,
    Open,
    Opened,
    Published,
    Ready,
    Refer,
    Report,
    Scanned,
    Seek,
    Unsettled,
    Zeroes,
    decode,
    encode,
)

MESSAGES: list[Message] = [
    Open(),
    Opened(9, b"p" * 16, (DiskState(1 << 40, True, False), DiskState(0, False, True, True))),
    Scanned(3, 2, memoryview(b"s" * 32)),
    Scanned(0, 262144, EMPTY),
    Children(2, 5, memoryview(b"c" * 1024)),
    Children(1, 99, memoryview(b"c" * 16)),
    Differ(2, 5, (1 << 64) - 1, 1, EMPTY),
    Differ(1, 99, 0b111, 0b010, memoryview(b"d" * 512)),
    Data(2, memoryview(b"entries")),
    Zeroes(((0, 1), (1 << 29, 12))),
    Durable(2**63),
    Mismatch((1, 2, 1 << 30)),
    Commit(b"p" * 16, b"q" * 16, (DiskTotals(1, 2, b"r" * 32),)),
    Commit(b"p" * 16, b"q" * 16, (DiskTotals(1, 2, b"r" * 32),), app_consistent=True),
    Published(b"p" * 16),
    Unsettled(),
    Report("HW-MT-001", "was", "fand", "wollte", "tu ö", "reconnect"),
    Bye(),
    Alive(),
    Alive(waits=True),
    Failed(Report("HW-DISKS-003", "was", "fand", "wollte", "tu ö", "permanent")),
    Seek(over=False),
    Seek(over=True),
    Ready(1 << 33),
    Refer(3, memoryview(b"entries")),
    Missing(5, 77, ((3, 0x8001), (1 << 29, 0xFFFF))),
    Missing(1, 16, ()),
    Enrol("web tier"),
    Prepare(b"p" * 16),
    Frozen(b"p" * 16),
    Harvested(b"p" * 16),
    Thaw(b"p" * 16),
]


def plain(message: Message) -> bytes:
    return b"".join(bytes(piece) for piece in encode(message))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_out_as_it_went_in(message: Message) -> None:
    assert decode(memoryview(plain(message))) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_cut_short_or_with_bytes_behind_is_refused(message: Message) -> None:
    whole = plain(message)
    for size in range(len(whole)):
        if isinstance(message, Enrol) and size > PREFIX.size:
            continue  # a shorter name is another name
        if isinstance(message, Data | Refer) and size >= PREFIX.size:
            continue  # a data frame's entries are checked where they are unpacked
        with pytest.raises(HomewardError):
            decode(memoryview(whole[:size]))
    if not isinstance(message, Data | Refer | Enrol):
        with pytest.raises(HomewardError):
            decode(memoryview(whole + b"\0"))


@pytest.mark.parametrize(
    "hostile",
    [
        PREFIX.pack(0, 0, 0, 0, 0, 0),
        PREFIX.pack(99, 0, 0, 0, 0, 0),
        PREFIX.pack(1, 0, 0, 7, 0, 0),
        PREFIX.pack(3, 1, 0, 0, 2**32 - 1, 2**63),
        PREFIX.pack(4, 0, 3, 0, 0, 0),
        PREFIX.pack(4, 0, 1, 0, 65, 0) + bytes(65 * 16),
        PREFIX.pack(4, 0, 1, 0, 1, 2**60) + bytes(16),
        PREFIX.pack(5, 0, 1, 0, 0, 0) + b"\0" * 8 + b"\1" + b"\0" * 7,
        PREFIX.pack(6, 0, 0, 0, 2**31, 0),
        PREFIX.pack(7, 0, 0, 0, 1, 0) + (2**63).to_bytes(8, "little") + b"\1" + bytes(7),
        PREFIX.pack(7, 0, 0, 0, 1, 0) + bytes(16),
        PREFIX.pack(9, 0, 0, 0, 2**31, 0),
        PREFIX.pack(13, 0, 0, 0, 5, 0) + bytes(8),
        PREFIX.pack(13, 0, 0, 0, 6, 0) + b"\xff\xff" + bytes(8),
        PREFIX.pack(16, 2, 0, 0, 0, 0),
        PREFIX.pack(17, 0, 0, 0, 0, 2**34 + 1),
        PREFIX.pack(18, 0, 0, 0, 1025, 0),
        PREFIX.pack(19, 0, 0, 0, 0, 0),
        PREFIX.pack(19, 0, 0, 0, 0, 0) + (1025).to_bytes(8, "little"),
        PREFIX.pack(19, 0, 0, 0, 0, 1024 * 16 + 1) + (1).to_bytes(8, "little"),
        PREFIX.pack(19, 0, 0, 0, 1, 0) + bytes(8) + bytes(8) + b"\1" + bytes(7),
        PREFIX.pack(19, 0, 0, 0, 1, 0) + b"\1" + bytes(7) + bytes(16),
        PREFIX.pack(19, 0, 0, 0, 1, 0) + b"\1" + bytes(7) + (2**63).to_bytes(8, "little") + b"\1" + bytes(7),
        PREFIX.pack(19, 0, 0, 0, 2**31, 0) + bytes(8),
        PREFIX.pack(20, 0, 0, 0, 0, 0),
        PREFIX.pack(20, 0, 0, 0, 0, 0) + b"n" * 256,
        PREFIX.pack(20, 0, 0, 0, 0, 0) + b"\xff\xfe",
        PREFIX.pack(20, 0, 0, 0, 0, 0) + b"a\n",
        PREFIX.pack(21, 0, 0, 0, 0, 0) + bytes(17),
        PREFIX.pack(24, 0, 0, 0, 0, 0) + bytes(15),
    ],
    ids=range(30),
)
def test_a_field_out_of_bounds_is_a_coded_error(hostile: bytes) -> None:
    with pytest.raises(HomewardError):
        decode(memoryview(hostile))


def test_a_report_of_another_number_of_texts_is_refused() -> None:
    with pytest.raises(MessageRefused):
        decode(memoryview(PREFIX.pack(13, 0, 0, 0, 6, 0) + b"\0\0" * 5))


def test_messages_of_references_lie_in_bytes_as_the_document_says() -> None:
    assert plain(Seek(over=False)) == bytes([16]) + bytes(15)
    assert plain(Seek(over=True)) == bytes([16, 1]) + bytes(14)
    assert plain(Ready(0x0102)) == bytes([17]) + bytes(7) + bytes([2, 1]) + bytes(6)
    assert plain(Refer(2, memoryview(b"xy"))) == bytes([18, 0, 0, 0, 2]) + bytes(11) + b"xy"
    told = plain(Missing(3, 0x20, ((0x0405, 0x8001),)))
    head = bytes([19, 0, 0, 0, 1, 0, 0, 0, 0x20]) + bytes(7)
    assert told == head + bytes([3]) + bytes(7) + bytes([5, 4]) + bytes(6) + b"\x01\x80" + bytes(6)
    opened = plain(Opened(1, bytes(16), (DiskState(0, False, False, finds=True),)))
    assert opened[-8:] == bytes([4]) + bytes(7)
