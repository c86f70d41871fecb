"""Key material, and the file in which the shared key lies until machines enrol."""

import os
import stat
from pathlib import Path
from typing import Final

from drcore.errors import HomewardError

KEY_BYTES: Final = 32


class Secret:
    """Key material that never shows itself in a log, a repr or an error."""

    __slots__ = ("_bytes",)

    def __init__(self, value: bytes) -> None:
        self._bytes = bytes(value)

    def reveal(self) -> bytes:
        """The bytes themselves, for the derivation that needs them."""
        return self._bytes

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__


class KeyFileRefused(HomewardError):
    """The key file cannot be used."""

    code = "HW-CORE-001"
    what = "the key file {path} cannot be used"
    found = "{reason}"
    expected = "a file of 32 random bytes, or 64 hexadecimal digits, that only its owner may read (mode 0600)"
    remedy = "{action}"
    path: str
    reason: str
    action: str


def read_key_file(path: Path) -> Secret:
    """The shared key in the file. Errors: `KeyFileRefused` (HW-CORE-001), also when others may read it."""
    try:
        # O_NONBLOCK: a named pipe must not hold us; it has no effect on files.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            mode = os.fstat(descriptor).st_mode
            data = os.read(descriptor, 4 * KEY_BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _refused(path, error.strerror or str(error)) from error
    if not stat.S_ISREG(mode) or stat.S_IMODE(mode) & 0o077:
        if not stat.S_ISREG(mode):
            raise _refused(path, "no regular file")
        reason = f"a file of mode {stat.S_IMODE(mode):04o}"
        raise KeyFileRefused(path=str(path), reason=reason, action=f"close it to others: chmod 600 {path}")
    if len(data) != KEY_BYTES:
        try:
            data = bytes.fromhex(data.decode().strip())
        except ValueError:
            data = b""
    if len(data) != KEY_BYTES:
        raise _refused(path, "content of another length")
    return Secret(data)


def _refused(path: Path, reason: str) -> KeyFileRefused:
    return KeyFileRefused(
        path=str(path),
        reason=reason,
        action="copy it from the machine that has it; only where none has one yet, make one (this overwrites nothing): "
        f"(umask 077; set -C; head -c 32 /dev/urandom > {path})",
    )
