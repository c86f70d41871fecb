"""`make site`: what it prints for a second terminal works there, and Ctrl-C leaves nothing behind."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simlab.azure import launch as azure_launch
from simlab.vcenter import launch as vcenter_launch

ROOT = Path(__file__).resolve().parents[2]
LAST_WORDS = "Ctrl-C here"
END_SECONDS_MAX = 60.0


@contextmanager
def site() -> Iterator["subprocess.Popen[str]"]:
    """The site as a process, which is gone after the block."""
    command = [sys.executable, "-u", str(ROOT / "scripts" / "live_site.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.communicate(timeout=END_SECONDS_MAX)
                finally:
                    process.kill()


def commands_of(said: str) -> list[str]:
    """The lines that are to be typed."""
    return [line.strip() for line in said.splitlines() if line.startswith("    ")]


def test_what_is_printed_for_a_second_terminal_works_there_and_ctrl_c_ends_it() -> None:
    subprocess.run([azure_launch.ROOT / "simlab/azure/install"], check=True)
    vcenter_launch.build()
    with site() as process:
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if LAST_WORDS in line:
                break
        typed = commands_of(said)
        assert typed, said
        (folder,) = (Path(line.removeprefix("cd ")) for line in typed if line.startswith("cd "))
        surroundings = [line for line in typed if re.match(r"cd |export ", line)]
        first = [
            line for line in typed if re.match(r"homeward (items enable|preflight|\w+ web --plan)|dd ", line)
        ]
        assert len(first) == 4, typed
        script = "\n".join(["set -e", *surroundings, *first])
        done = subprocess.run(
            ["bash", "-c", script], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "answer: ok" in done.stdout
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=END_SECONDS_MAX)
        assert process.returncode == 0, rest
        assert "Traceback" not in rest
        assert not folder.exists()
