"""How a command ends: at once when all is said, in order while another thread is at work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

LISTENING = "import atexit, sys; atexit.register(lambda: sys.stderr.write('taken apart'))\n"
WORKING = (
    "import threading\n"
    "def work():\n"
    "    threading.main_thread().join()\n"
    "    sys.stderr.write('work done, ')\n"
    "threading.Thread(target=work).start()\n"
)
COMMAND = "from homeward.cli import main\nmain()\n"


def run(script: str, *words: object) -> subprocess.CompletedProcess[bytes]:
    line = [sys.executable, "-c", script, *map(str, words)]
    return subprocess.run(line, capture_output=True, check=False, timeout=60)


def images(directory: Path) -> tuple[Path, Path]:
    one, other = directory / "one.raw", directory / "other.raw"
    one.write_bytes(bytes(65536))
    other.write_bytes(b"x" * 65536)
    return one, other


def test_a_command_answers_in_full_and_leaves_without_taking_itself_apart(tmp_path: Path) -> None:
    done = run(LISTENING + COMMAND, "compare", "--json", *images(tmp_path))
    assert json.loads(done.stdout)["blocks_changed"] == 1
    assert done.returncode == 1
    assert done.stderr == b""


def test_a_command_waits_for_a_thread_that_is_at_work(tmp_path: Path) -> None:
    done = run(LISTENING + WORKING + COMMAND, "compare", "--json", *images(tmp_path))
    assert json.loads(done.stdout)["blocks_changed"] == 1
    assert done.returncode == 1
    assert done.stderr == b"work done, taken apart"


INTERRUPTED_IN = """
import os, signal, sys
from homeward.__main__ import main

class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupter())
main()
"""


@pytest.mark.parametrize("name", ["homeward.cli", "click", "disks.disk"])
def test_ctrl_c_while_the_command_is_imported_ends_it_without_a_word(name: str) -> None:
    done = run(INTERRUPTED_IN.format(name=name), "--version")
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_ctrl_c_is_not_heard_where_the_shell_ignores_it() -> None:
    script = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    done = run(script + INTERRUPTED_IN.format(name="homeward.cli"), "--version")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"version" in done.stdout


def test_ctrl_c_between_the_imports_and_the_verb_ends_it_without_a_word() -> None:
    script = "import homeward.cli\ndef main(): raise KeyboardInterrupt\nhomeward.cli.main = main\n"
    done = run(script + "from homeward.__main__ import main\nmain()\n")
    assert (done.returncode, done.stderr) == (130, b"")
