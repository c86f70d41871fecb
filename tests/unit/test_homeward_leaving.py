"""How a command ends: at once when all is said, in order while another thread is at work."""

import json
import subprocess
import sys
from pathlib import Path

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
