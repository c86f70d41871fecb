"""Running `homeward` as a user does, and images that others made and judge."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ERROR_KEYS = {"error", "code", "found", "expected", "remedy"}
SUFFIX = {
    "raw": "raw",
    "vhd-fixed": "vhd",
    "vhd-dynamic": "vhd",
    "vhdx-fixed": "vhdx",
    "vhdx-dynamic": "vhdx",
    "vmdk-monolithicSparse": "vmdk",
    "vmdk-monolithicFlat": "vmdk",
}
FILE_FORMATS = tuple(SUFFIX)
_QEMU = {
    "raw": ("raw", ""),
    "vhd-fixed": ("vpc", "subformat=fixed,force_size=on"),
    "vhd-dynamic": ("vpc", "subformat=dynamic,force_size=on"),
    "vhdx-fixed": ("vhdx", "subformat=fixed"),
    "vhdx-dynamic": ("vhdx", "subformat=dynamic"),
    "vmdk-monolithicSparse": ("vmdk", "subformat=monolithicSparse"),
    "vmdk-monolithicFlat": ("vmdk", "subformat=monolithicFlat"),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    def answer(self) -> dict[str, Any]:
        """The one JSON object on stdout; nothing else is there, and the command succeeded or said no."""
        assert self.code in (0, 1), self
        return self._object()

    def _object(self) -> dict[str, Any]:
        assert self.stdout.count("\n") == 1, self
        found = json.loads(self.stdout)
        assert isinstance(found, dict)
        return found

    def refused(self, code: str, *, exit_code: int = 2) -> str:
        """One coded line on stderr, no traceback, and with --json one object; answers the line."""
        assert self.code == exit_code, self
        assert "Traceback" not in self.stderr, self
        lines = [line for line in self.stderr.splitlines() if line.startswith("HW-")]
        assert len(lines) == 1, self
        assert lines[0].startswith(f"{code}: "), self
        for word in ("; found ", "; expected ", "; do "):
            assert word in lines[0], self
        if self.stdout:
            found = self._object()
            assert set(found) == ERROR_KEYS
            assert found["code"] == code
        return lines[0]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}


def start(*words: str | Path, cwd: Path | None = None) -> "subprocess.Popen[str]":
    """The command runs. Whoever starts it waits for it."""
    return subprocess.Popen(
        [sys.executable, "-m", "homeward", *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment(),
    )


def ended(process: "subprocess.Popen[str]", seconds: float = 120) -> Outcome:
    """How it ended; a command that hangs is killed and fails the test."""
    try:
        stdout, stderr = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return Outcome(process.returncode, stdout, stderr)


def homeward(*words: str | Path, cwd: Path | None = None, seconds: float = 120) -> Outcome:
    """The command has run."""
    return ended(start(*words, cwd=cwd), seconds)


def interrupted(process: "subprocess.Popen[str]", when: Callable[[], bool]) -> Outcome:
    """The command got a SIGINT as soon as `when` held; how it ended."""
    wait_until(lambda: when() or process.poll() is not None)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    return ended(process, 30)


def wait_until(when: Callable[[], bool], seconds: float = 60) -> None:
    """`when` holds."""
    deadline = time.monotonic() + seconds
    while not when():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def words(dice: random.Random, size: int) -> bytes:
    """Content that compresses about as text does."""
    lexicon = [dice.randbytes(dice.randrange(2, 12)) for _ in range(500)]
    out = bytearray()
    while len(out) < size:
        out += b" ".join(dice.choices(lexicon, k=2000))
    return bytes(out[:size])


def some_content(dice: random.Random, size: int) -> bytearray:
    """A disk as they are: holes, text, random bytes, zeroes."""
    out = bytearray(size)
    for _ in range(8):
        at = dice.randrange(size)
        length = min(size - at, dice.choice([1, 512, 5000, 70_000, 700_000]))
        out[at : at + length] = words(dice, length) if dice.random() < 0.5 else dice.randbytes(length)
    out[-1:] = b"\x01"
    return out


def changed(dice: random.Random, content: bytes | bytearray) -> bytearray:
    """The content after some life: bytes changed, blocks zeroed, zeroes filled."""
    out = bytearray(content)
    for _ in range(8):
        at = dice.randrange(len(out))
        length = min(len(out) - at, dice.choice([1, 512, 4096, 70_000, 300_000]))
        out[at : at + length] = bytes(length) if dice.random() < 0.3 else dice.randbytes(length)
    return out


def write_sparse(path: Path, content: bytes | bytearray) -> Path:
    """A raw file with holes where `content` is zero."""
    with path.open("wb") as file:
        for at in range(0, len(content), 65536):
            piece = content[at : at + 65536]
            if any(piece):
                file.seek(at)
                file.write(piece)
        file.truncate(len(content))
    return path


def make_image(path: Path, kind: str, content: bytes | bytearray) -> Path:
    """qemu-img made an image of the format with this content (whole sectors unless raw)."""
    if kind == "raw":
        return write_sparse(path, content)
    raw = write_sparse(path.with_suffix(".making"), content)
    form, options = _QEMU[kind]
    command = ["qemu-img", "convert", "-q", "-f", "raw", "-O", form, "-o", options, str(raw), str(path)]
    subprocess.run(command, check=True)
    raw.unlink()
    return path


def judge(path: Path, kind: str, raw: Path) -> None:
    """qemu-img finds the image sound and equal to the raw file (cmp, where both are raw)."""
    if kind == "raw":
        subprocess.run(["cmp", str(path), str(raw)], check=True)
        return
    form = _QEMU[kind][0]
    if form in ("vmdk", "vhdx"):
        subprocess.run(["qemu-img", "check", "-q", "-f", form, str(path)], check=True)
    subprocess.run(["qemu-img", "compare", "-q", "-f", form, "-F", "raw", str(path), str(raw)], check=True)


def left_beside(target: Path) -> list[str]:
    """What lies in the target's directory that belongs to it but is neither it nor its extents."""
    names = (path.name for path in target.parent.iterdir())
    return sorted(name for name in names if name.startswith((f"{target.name}.", f".{target.name}")))
