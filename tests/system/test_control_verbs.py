"""The story of scenario row S-7 (R231) told by the command alone: what an administrator types, and what it answers."""

import json
import os
import random
import signal
import subprocess
import sys
from typing import Any

from tests.system.test_confserver_homecoming import Lab, lab

__all__ = ["lab"]


def homeward(site: Lab, *words: str, status: int = 0) -> str:
    """What the command printed on stdout; it had to end with this status."""
    ended = subprocess.run(
        [sys.executable, "-m", "homeward", *words],
        capture_output=True,
        text=True,
        env=site.client_environment(),
        timeout=120,
    )
    assert ended.returncode == status, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stdout


def answer(site: Lab, *words: str, status: int = 0) -> Any:
    """The one JSON object."""
    text = homeward(site, *words, "--json", status=status)
    assert text.count("\n") == 1
    return json.loads(text)


def leave_watching(site: Lab) -> None:
    """Somebody looked at the item's job and went away by Ctrl-C."""
    watching = subprocess.Popen(
        [sys.executable, "-m", "homeward", "jobs", "watch", "web"],
        env=site.client_environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watching.stderr is not None
    assert watching.stderr.readline() == "reprotect of web: running\n"
    watching.send_signal(signal.SIGINT)
    said, told = watching.communicate(timeout=60)
    assert (watching.returncode, said) == (130, "")
    assert "the job goes on: homeward jobs watch" in told


def test_one_machine_comes_home_by_the_command_alone(lab: Lab) -> None:
    assert "failed-over" in homeward(lab, "items", "list")
    assert answer(lab, "items", "show", "web")["generation"] >= 0
    assert answer(lab, "preflight", "web")["answer"] == "ok"
    assert "way back" in homeward(lab, "reprotect", "web", "--plan")
    assert answer(lab, "items", "show", "web")["state"] == "failed-over", "a plan touches nothing"
    assert "jobs watch" in homeward(lab, "reprotect", "web")
    leave_watching(lab)
    watched = answer(lab, "jobs", "watch", "web")
    assert (watched["verb"], watched["status"]) == ("reprotect", "done"), "Ctrl-C leaves the job alone"
    assert "next cycle" in homeward(lab, "items", "show", "web")
    lab.write(random.Random(9))
    job = answer(lab, "failback", "web", "--verify", "full", "--wait")
    assert job["report"]["proof"]["verified"] == "full"
    assert job["status"] == "done"
    shown = homeward(lab, "jobs", "show", job["id"])
    assert "authenticated with the item's key" in shown
    assert "authentic" in homeward(lab, "jobs", "show", "web", "--key-file", str(lab.folder / "key"))
    other = lab.folder / "other-key"
    other.touch(mode=0o600)
    other.write_bytes(bytes(32))
    assert answer(lab, "jobs", "show", "web", "--key-file", str(other), status=2)["code"] == "HW-HOME-012"
    assert answer(lab, "commit", "web", "--wait")["status"] == "done"
    assert answer(lab, "items", "show", "web")["state"] == "committed"
    assert [one["verb"] for one in answer(lab, "jobs", "list", "--item", "web")["jobs"]] == [
        "reprotect",
        "failback",
        "commit",
    ]
    assert lab.equal()


def test_what_the_server_refuses_comes_out_as_one_coded_error(lab: Lab) -> None:
    refused = answer(lab, "failback", "web", status=2)
    assert refused["code"].startswith("HW-CONF-")
    assert answer(lab, "items", "show", "nobody", status=2)["code"].startswith("HW-CONF-")
    assert lab.stop() == 0
    environment = {**os.environ, "HOMEWARD_SERVER": "http://127.0.0.1:1", "HOMEWARD_TOKEN": "x"}
    away = subprocess.run(
        [sys.executable, "-m", "homeward", "items", "list"], capture_output=True, text=True, env=environment
    )
    assert (away.returncode, away.stdout) == (2, "")
    assert away.stderr.startswith("HW-HOME-008: ")
