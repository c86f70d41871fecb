"""The journal's records: what was written is read, a torn tail is ignored, anything else is refused."""

import io
import json
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from masttarget.adapters.journal_directory import JournalDirectory
from masttarget.errors import JournalDamaged, JournalFailed
from masttarget.journal import (
    AppliedFrame,
    CleanClose,
    CycleRecord,
    decode_applied,
    encode_applied,
    encode_start,
)
from masttarget.target import AppliedRun

DISK = bytes(range(16))
RECORD = CycleRecord(
    item="11" * 16,
    disk=DISK.hex(),
    generation=2,
    session=7,
    source_bytes=12345,
    created=False,
    identity={"uuid": "none", "path": "/a b/ü.raw", "size": "12345"},
    published="ab" * 16,
    closed=CleanClose(((5, 12345, 1_700_000_000_123_456_789), (6, 1, 2)), "c1d", "ff" * 32),
)

runs = st.one_of(
    st.builds(AppliedRun, st.integers(0, 2**40), st.integers(1, 2**40), st.just(b"")),
    st.integers(1, 5).flatmap(
        lambda count: st.builds(
            AppliedRun,
            st.integers(0, 2**40),
            st.just(count),
            st.binary(min_size=16 * count, max_size=16 * count),
        )
    ),
)
frames = st.builds(
    AppliedFrame,
    st.integers(0, 2**63),
    st.integers(0, 255),
    st.integers(0, 2**63),
    st.lists(runs, max_size=4).map(tuple),
)


@given(st.lists(frames, max_size=5))
def test_applied_frames_come_back_as_they_went(written: list[AppliedFrame]) -> None:
    data = encode_start(DISK) + b"".join(encode_applied(frame) for frame in written)
    assert list(decode_applied(io.BytesIO(data).read, DISK)) == written


def some_frames() -> list[AppliedFrame]:
    return [
        AppliedFrame(1, 1, 0, (AppliedRun(0, 2, b"a" * 32), AppliedRun(9, 400, b""))),
        AppliedFrame(1, 2, 0, ()),
        AppliedFrame(2, 1, 1, (AppliedRun(4, 1, b"b" * 16),)),
    ]


def test_a_tail_torn_at_any_byte_leaves_the_records_before_it() -> None:
    written = some_frames()
    pieces = [encode_applied(frame) for frame in written]
    data = encode_start(DISK) + b"".join(pieces)
    ends = [len(encode_start(DISK))]
    for piece in pieces:
        ends.append(ends[-1] + len(piece))
    for cut in range(len(data) + 1):
        whole = max((index for index, end in enumerate(ends) if end <= cut), default=0)
        assert list(decode_applied(io.BytesIO(data[:cut]).read, DISK)) == written[:whole], cut
        # What a file system may leave behind the cut: zeroes, or old bytes.
        for tail in (bytes(100), b"\xff" * 100):
            if cut < len(data) and cut >= ends[0]:
                found = list(decode_applied(io.BytesIO(data[:cut] + tail).read, DISK))
                assert found[:whole] == written[:whole]
                assert len(found) <= whole + 1


def test_a_bit_that_flipped_ends_the_record_before_it() -> None:
    written = some_frames()
    head = len(encode_start(DISK))
    data = encode_start(DISK) + b"".join(encode_applied(frame) for frame in written)
    for bit in range(8 * head, 8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        found = list(decode_applied(io.BytesIO(bytes(flipped)).read, DISK))
        assert found == written[: len(found)]
        assert len(found) < len(written)


def test_an_applied_record_of_another_disk_or_version_is_refused() -> None:
    good = encode_start(DISK)
    for start in (encode_start(bytes(16)), b"HWAX" + good[4:], good[:4] + b"\x02\0\0\0" + good[8:]):
        with pytest.raises(ValueError, match="another disk or version"):
            list(decode_applied(io.BytesIO(start).read, DISK))


def test_a_cycle_record_comes_back_as_it_went() -> None:
    for record in (RECORD, replace(RECORD, closed=None, published="", identity={})):
        assert CycleRecord.decode(record.encode()) == record


WRONG: list[object] = [None, -1, 2**70, 1.5, "zz", "", [], {}, [[1]], True]


def test_a_cycle_record_with_a_wrong_value_is_refused_or_harmless() -> None:
    """Whatever stands in the file, decoding answers a record of the declared types or a reason."""
    good = json.loads(RECORD.encode())
    for name in good:
        for wrong in WRONG:
            check_decoded(json.dumps({**good, name: wrong}).encode())
        check_decoded(json.dumps({key: value for key, value in good.items() if key != name}).encode())
    for name in good["closed"]:
        for wrong in WRONG:
            check_decoded(json.dumps({**good, "closed": {**good["closed"], name: wrong}}).encode())
    for text in (b"", b"null", b"[]", b"7", b"{", b"\xff\xfe", b"[" * 100_000, b'{"version": 1}'):
        with pytest.raises(ValueError, match="cycle record"):
            CycleRecord.decode(text)


def test_a_cycle_record_with_flipped_bits_is_refused_or_harmless() -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    data = RECORD.encode()
    for _ in range(5000):
        flipped = bytearray(data)
        for _ in range(dice.choice([1, 1, 3])):
            flipped[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        check_decoded(bytes(flipped))


def check_decoded(data: bytes) -> None:
    try:
        record = CycleRecord.decode(data)
    except ValueError:
        return
    assert type(record.item) is str
    assert type(record.disk) is str
    assert len(bytes.fromhex(record.published)) in (0, 16)
    for number in (record.generation, record.session, record.source_bytes):
        assert type(number) is int
        assert 0 <= number < 2**63
    assert type(record.created) is bool
    assert all(type(value) is str for value in record.identity.values())
    if record.closed is not None:
        assert type(record.closed.change_mark) is str
        assert type(record.closed.map_root) is str
        for mark in record.closed.files:
            assert len(mark) == 3
            assert all(type(part) is int for part in mark)


def test_the_directory_keeps_and_removes_everything(tmp_path: Path) -> None:
    journal = JournalDirectory(tmp_path / "j")
    assert journal.load() is None
    assert list(journal.read_applied(DISK)) == []
    assert journal.kept_map("00") is None
    journal.store(RECORD)
    assert (tmp_path / "j").stat().st_mode & 0o777 == 0o700
    assert journal.load() == RECORD
    journal.start_applied(DISK)
    for frame in some_frames():
        journal.append_applied([frame])
    assert list(journal.read_applied(DISK)) == some_frames()
    windows = [b"w" * 1_500_000, bytes(1 << 20), b"v" * 16, bytes(1 << 20)]
    root = journal.keep_map(iter(windows))
    kept = journal.kept_map(root)
    assert kept is not None
    assert b"".join(kept) == b"".join(windows)
    assert (tmp_path / "j" / "digests").stat().st_blocks * 512 < 2 << 20, "zeroes stay holes"
    scattered = [(b"x" * 16).ljust(65536, b"\0") * 16, bytes(5000) + b"end"]
    kept = journal.kept_map(journal.keep_map(iter(scattered)))
    assert kept is not None
    assert b"".join(kept) == b"".join(scattered)
    assert (tmp_path / "j" / "digests").stat().st_blocks * 512 <= 18 * 4096
    journal.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_kept_map_that_changed_is_not_used(tmp_path: Path) -> None:
    journal = JournalDirectory(tmp_path / "j")
    journal.store(RECORD)
    root = journal.keep_map(iter([b"w" * 4096]))
    with (tmp_path / "j" / "digests").open("r+b") as file:
        file.seek(77)
        file.write(b"x")
    assert journal.kept_map(root) is None


def test_damage_and_failures_are_coded(tmp_path: Path) -> None:
    journal = JournalDirectory(tmp_path / "j")
    journal.store(RECORD)
    (tmp_path / "j" / "cycle").write_bytes(b"{")
    with pytest.raises(JournalDamaged):
        journal.load()
    (tmp_path / "j" / "applied").write_bytes(encode_start(bytes(16)))
    with pytest.raises(JournalDamaged):
        list(journal.read_applied(DISK))
    (tmp_path / "j" / "cycle").unlink()
    (tmp_path / "j" / "cycle").mkdir()
    with pytest.raises(JournalFailed):
        journal.load()
    (tmp_path / "file").touch()
    with pytest.raises(JournalFailed):
        JournalDirectory(tmp_path / "file" / "j").store(RECORD)


def test_a_replaced_record_is_the_old_one_until_it_is_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = JournalDirectory(tmp_path / "j")
    journal.store(RECORD)

    def fails(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(JournalFailed):
            journal.store(replace(RECORD, session=8))
    assert journal.load() == RECORD
    journal.store(replace(RECORD, session=9))
    assert journal.load() == replace(RECORD, session=9)
