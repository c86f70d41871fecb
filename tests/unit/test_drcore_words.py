"""The words everybody speaks: errors that name themselves, settings read strictly, secrets that do not show."""

import os
import uuid
from pathlib import Path

import pytest

from drcore.buffers import Pool
from drcore.errors import HomewardError, Retry
from drcore.secret import KeyFileRefused, Secret, read_key_file
from drcore.settings import SettingsError, Table, parse_rate
from drcore.units import bit_runs, counted, parts


class Example(HomewardError):
    """An error of these tests."""

    code = "HW-TEST-001"
    what = "the {thing} is wrong"
    found = "{number}\nlines"
    expected = "none"
    remedy = "look at {thing}"
    thing: str
    number: int


@pytest.fixture(autouse=True)
def _leave_no_codes_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HomewardError, "registry", dict(HomewardError.registry))


def test_an_error_is_one_line_with_its_facts() -> None:
    error = Example(thing="lid", number=7)
    assert str(error) == "HW-TEST-001: the lid is wrong; found 7 lines; expected none; do look at lid"
    assert error.as_json() == {
        "error": "the lid is wrong",
        "code": "HW-TEST-001",
        "found": "7 lines",
        "expected": "none",
        "remedy": "look at lid",
    }
    assert error.facts() == {"thing": "lid", "number": 7}
    assert error.retry is Retry.PERMANENT


@pytest.mark.parametrize("facts", [{}, {"thing": "lid"}, {"thing": "lid", "number": 1, "other": 2}])
def test_facts_are_exactly_those_declared(facts: dict[str, object]) -> None:
    with pytest.raises(TypeError, match="takes the facts"):
        Example(**facts)


def test_a_fact_that_looks_like_a_place_holder_stays_as_it_is() -> None:
    assert "the {number} {x is wrong" in str(Example(thing="{number} {x", number=1))


def test_a_code_belongs_to_one_class() -> None:
    with pytest.raises(TypeError, match="belongs to Example"):
        type("Another", (HomewardError,), {"code": "HW-TEST-001"})


@pytest.mark.parametrize("code", ["HW-TEST-1", "hw-test-001", "HW-001", "1234567", ""])
def test_a_code_has_the_one_form(code: str) -> None:
    with pytest.raises(TypeError, match="no error code"):
        type("Another", (HomewardError,), {"code": code})


def test_a_secret_never_shows_itself() -> None:
    secret = Secret(b"very secret")
    assert f"{secret} {secret!r} {[secret]}" == "*** *** [***]"
    assert secret.reveal() == b"very secret"


@pytest.mark.parametrize("content", [bytes(range(32)), bytes(range(32)).hex().encode() + b"\n"])
def test_a_key_file_holds_bytes_or_digits(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o400)
    assert read_key_file(path).reveal() == bytes(range(32))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o610])
def test_a_key_file_that_others_may_touch_is_refused(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(bytes(32))
    path.chmod(mode)
    with pytest.raises(KeyFileRefused, match=f"{mode:04o}"):
        read_key_file(path)


def test_a_key_file_of_the_wrong_kind_or_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    for content in (b"", bytes(31), bytes(33), b"zz" * 32, b"\xff" * 64, bytes(200)):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(KeyFileRefused):
            read_key_file(path)
    for bad in (tmp_path, tmp_path / "none", Path("/dev/null")):
        with pytest.raises(KeyFileRefused):
            read_key_file(bad)


def test_a_key_that_is_a_named_pipe_does_not_hold_us(tmp_path: Path) -> None:
    path = tmp_path / "key"
    os.mkfifo(path, 0o600)
    with pytest.raises(KeyFileRefused):
        read_key_file(path)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10000", 10_000),
        ("50M", 50_000_000),
        ("50Mi", 50 << 20),
        ("15.5k", 15_500),
        ("2Gi", 2 << 30),
        ("1T", 10**12),
    ],
)
def test_rates(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "0", "-1", "5i", "M", "5MB", "5 M", "1e9", "0.5", "fast", "5Mib"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(SettingsError):
        parse_rate(text)


def test_a_table_gives_what_was_asked_for_and_tells_of_the_rest() -> None:
    identifier = uuid.uuid4()
    table = Table(
        "top",
        {
            "name": "n",
            "on": True,
            "count": 3,
            "where": "/a/b",
            "id": str(identifier),
            "speed": "50k",
            "kind": "b",
            "peer": "[::1]:80",
            "inner": {"x": 1},
            "rows": [{}, {}],
            "extra": 0,
        },
    )
    assert table.text("name") == "n"
    assert table.flag("on", default=False)
    assert table.number("count", 0, 0, 5) == 3
    assert table.path("where") == Path("/a/b")
    assert table.uuid("id") == identifier
    assert table.rate("speed") == 50_000
    assert table.rate("none") is None
    assert table.choice("kind", ("a", "b"), "a") == "b"
    assert table.choice("absent", ("a", "b"), "a") == "a"
    assert table.address("peer") == ("::1", 80)
    assert table.table("inner").number("x", 0, 0, 1) == 1
    assert len(table.tables("rows")) == 2
    with pytest.raises(SettingsError, match=r"unknown key.*extra"):
        table.end()


@pytest.mark.parametrize(
    ("verb", "arguments", "value"),
    [
        ("text", (), 5),
        ("number", (0, 0, 5), True),
        ("number", (0, 0, 5), "3"),
        ("number", (0, 0, 5), 6),
        ("number", (0, 0, 5), -1),
        ("number", (0, 0, 5), 1.0),
        ("path", (), "relative/path"),
        ("uuid", (), "no"),
        ("rate", (), 5),
        ("choice", (("a",), "a"), "z"),
        ("address", (), "host"),
        ("address", (), "host:"),
        ("address", (), ":80"),
        ("address", (), "host:99999"),
        ("address", (), "host:-1"),
        ("table", (), 5),
        ("tables", (), {}),
        ("tables", (), [5]),
    ],
)
def test_values_of_the_wrong_kind_are_refused(
    verb: str, arguments: tuple[object, ...], value: object
) -> None:
    with pytest.raises(SettingsError, match="key"):
        getattr(Table("t", {"key": value}), verb)("key", *arguments)


def test_what_has_no_default_must_be_there() -> None:
    for verb in ("text", "path", "uuid", "address", "table"):
        with pytest.raises(SettingsError, match="missing"):
            getattr(Table("t", {}), verb)("key")


def test_parts_and_runs_of_bits() -> None:
    assert [parts(size, 4) for size in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert list(bit_runs(0)) == []
    assert list(bit_runs(0b1011001)) == [(0, 1), (3, 2), (6, 1)]
    assert list(bit_runs((1 << 64) - 1)) == [(0, 64)]


@pytest.mark.parametrize(("number", "text"), [(0, "0 disks"), (1, "1 disk"), (1024, "1,024 disks")])
def test_a_number_agrees_with_its_noun(number: int, text: str) -> None:
    assert counted(number, "disk") == text


def test_a_pool_lends_each_buffer_to_one_and_keeps_a_few() -> None:
    pool = Pool(4096, 2)
    with pool.lend() as one, pool.lend() as two, pool.lend() as three:
        one[0], two[0], three[0] = 1, 2, 3
        assert [one[0], two[0], three[0]] == [1, 2, 3]
    with pool.lend() as one, pool.lend() as two, pool.lend() as three:
        assert sorted((one[0], two[0], three[0]))[0] == 0, "the third one is new"
