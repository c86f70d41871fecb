"""Reading a settings table strictly: every key is asked for once, with its type; what was not asked for is an error."""

import re
import uuid
from pathlib import Path
from typing import Any, Final

_MISSING: Final = object()
_RATE: Final = r"^(\d+(?:\.\d+)?)([kKMGT]?)(i?)$"
RATE_MIN: Final = 10_000
"""Bytes a second: below it a frame takes minutes and acknowledgements are taken for silence."""
_POWER: Final = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4}


class SettingsError(ValueError):
    """A setting is missing, unknown or of the wrong kind; the role's `config.py` makes a coded error of it."""


def parse_rate(text: str) -> int:
    """Bytes a second: `50M` is 50,000,000, `50Mi` is 50 * 2^20. Errors: `SettingsError`."""
    found = re.match(_RATE, text)
    if found is None or (found[3] and not found[2]):
        raise SettingsError(f"{text!r} is no rate (such as 50M or 50Mi, in bytes a second)")
    rate = int(float(found[1]) * (1024 if found[3] else 1000) ** _POWER[found[2]])
    if rate < RATE_MIN:
        meant = f" (did you mean {text}M?)" if text.isdigit() and rate else ""
        raise SettingsError(f"{text!r} is {rate} bytes a second, at which nothing moves{meant}")
    return rate


class Table:
    """One table of a settings file, with its name for messages."""

    def __init__(self, name: str, values: Any) -> None:
        if not isinstance(values, dict):
            raise SettingsError(f"{name} has to be a table")
        self._name = name
        self._values = dict(values)

    def _take(self, key: str, kind: type, default: object) -> Any:
        value = self._values.pop(key, default)
        if value is _MISSING:
            raise SettingsError(f"{self._where(key)} is missing")
        if value is not default and (
            not isinstance(value, kind) or (kind is int and isinstance(value, bool))
        ):
            raise SettingsError(f"{self._where(key)} has to be of type {kind.__name__}, not {value!r}")
        return value

    def _where(self, key: str) -> str:
        return f"[{self._name}] {key}" if self._name else key

    def has(self, key: str) -> bool:
        """Whether the key is there and was not asked for yet."""
        return key in self._values

    def text(self, key: str, default: object = _MISSING) -> str:
        """A string."""
        return str(self._take(key, str, default))

    def flag(self, key: str, *, default: bool) -> bool:
        """True or false."""
        return bool(self._take(key, bool, default))

    def number(self, key: str, default: int, least: int, most: int) -> int:
        """A whole number within bounds."""
        value = int(self._take(key, int, default))
        if not least <= value <= most:
            raise SettingsError(f"{self._where(key)} has to be from {least} to {most}, not {value}")
        return value

    def path(self, key: str, default: object = _MISSING) -> Path:
        """An absolute path."""
        value = Path(str(self._take(key, str, default)))
        if not value.is_absolute():
            raise SettingsError(f"{self._where(key)} has to be an absolute path, not {str(value)!r}")
        return value

    def words(self, key: str) -> tuple[str, ...]:
        """A list of strings, none of them empty; empty when the key is absent."""
        found = self._take(key, list, [])
        if not all(isinstance(word, str) and word and "\0" not in word for word in found):
            raise SettingsError(f"{self._where(key)} has to be a list of strings, not {found!r}")
        return tuple(found)

    def uuid(self, key: str) -> uuid.UUID:
        """A UUID in its usual form."""
        text = self.text(key)
        try:
            return uuid.UUID(text)
        except ValueError as error:
            raise SettingsError(f"{self._where(key)} has to be a UUID, not {text!r}") from error

    def rate(self, key: str) -> int | None:
        """A rate in bytes a second; None when the key is absent."""
        text = self._take(key, str, None)
        return None if text is None else parse_rate(text)

    def choice(self, key: str, choices: tuple[str, ...], default: str) -> str:
        """One of a few words."""
        value = self.text(key, default)
        if value not in choices:
            raise SettingsError(f"{self._where(key)} has to be one of {', '.join(choices)}, not {value!r}")
        return value

    def address(self, key: str, default: object = _MISSING) -> tuple[str, int]:
        """`host:port`."""
        text = self.text(key, default)
        host, _, port = text.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            raise SettingsError(f"{self._where(key)} has to be HOST:PORT, not {text!r}")
        return host.strip("[]"), int(port)

    def table(self, key: str) -> "Table":
        """A table inside this one."""
        if key not in self._values:
            raise SettingsError(f"the table [{key}] is missing")
        return Table(key, self._values.pop(key))

    def tables(self, key: str) -> list["Table"]:
        """An array of tables, perhaps empty."""
        found = self._values.pop(key, [])
        if not isinstance(found, list):
            raise SettingsError(f"{key} has to be an array of tables: [[{key}]]")
        return [Table(key, value) for value in found]

    def end(self) -> None:
        """Nothing is left that was not asked for."""
        if self._values:
            raise SettingsError(f"unknown key {self._where(next(iter(self._values)))}")
