"""What an operator sees before a disk is overwritten, and what becomes of a result that nobody can take."""

import os
import pty
import random
import re
import select
import subprocess
import sys
from pathlib import Path

from tests.conftest import LoopDevice
from tests.system.command import ROOT, environment, homeward, make_image, some_content, write_sparse

MIB = 1024 * 1024


def _shell(script: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """The command, started by a shell that bends its descriptors; "$@" is the command."""
    command = ["sh", "-c", script, "sh", sys.executable, "-m", "homeward", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120, cwd=ROOT)


def _on_a_terminal(*words: str | Path, typed: bytes) -> tuple[int, str]:
    """The command on a terminal of its own; what is typed goes to its question."""
    child, terminal = pty.fork()
    if child == 0:
        os.execve(sys.executable, [sys.executable, "-m", "homeward", *map(str, words)], environment())
    seen, answered = b"", False
    while select.select([terminal], [], [], 60)[0]:
        try:
            piece = os.read(terminal, 65536)
        except OSError:
            break
        if not piece:
            break
        seen += piece
        if not answered and b"[y/N]" in seen:
            os.write(terminal, typed)
            answered = True
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), seen.decode()


def _file_system(path: Path, label: str) -> Path:
    path.touch()
    os.truncate(path, 4 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-L", label, path], check=True)
    return path


def test_the_question_shows_source_and_target_in_words_and_a_no_changes_nothing(tmp_path: Path) -> None:
    source, target = _file_system(tmp_path / "s.raw", "fromafar"), _file_system(tmp_path / "t.raw", "athome")
    before = target.read_bytes()
    code, seen = _on_a_terminal("sync", source, target, typed=b"n\n")
    assert code == 2, seen
    assert "HW-HOME-004" in seen
    for words in ("ext 'fromafar'", "ext 'athome'", "at offset 0", "partition table none"):
        assert words in seen, seen
    assert seen.index("fromafar") < seen.index("athome") < seen.index("[y/N]")
    assert target.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.raw", "t.raw"]


def test_a_yes_to_the_question_syncs(tmp_path: Path) -> None:
    source, target = _file_system(tmp_path / "s.raw", "fromafar"), _file_system(tmp_path / "t.raw", "athome")
    code, seen = _on_a_terminal("sync", source, target, typed=b"y\n")
    assert code == 0, seen
    assert target.read_bytes() == source.read_bytes()


def test_the_bar_ends_full_when_all_is_done_and_stopped_when_it_is_not(tmp_path: Path) -> None:
    source = _file_system(tmp_path / "s.raw", "fromafar")
    equal, small = tmp_path / "t.raw", tmp_path / "u.raw"
    equal.write_bytes(source.read_bytes())
    small.write_bytes(bytes(MIB))
    code, seen = _on_a_terminal("sync", source, equal, typed=b"y\n")
    assert (code, re.findall(r"(\d+) %", seen)[-1]) == (0, "100"), seen
    assert re.search(r"B/s +done", seen), seen
    code, seen = _on_a_terminal("sync", source, small, typed=b"y\n")
    assert code == 2, seen
    assert re.search(r"B/s +stopped", seen), seen
    assert "done" not in seen


def test_a_result_that_stdout_does_not_take_is_a_coded_error(tmp_path: Path, dice: random.Random) -> None:
    image = make_image(tmp_path / "a.vmdk", "vmdk-monolithicSparse", some_content(dice, MIB))
    for words in (("info", image), ("info", image, "--json"), ("compare", image, image)):
        done = _shell('exec "$@" > /dev/full', *words)
        assert done.returncode == 2, done
        assert done.stderr.startswith("HW-HOME-010: "), done
        assert "Traceback" not in done.stderr


def test_closed_standard_descriptors_are_no_place_for_a_disk(tmp_path: Path, dice: random.Random) -> None:
    content = some_content(dice, 2 * MIB)
    source = write_sparse(tmp_path / "source.raw", content)
    for number, closed in enumerate((">&-", "2>&-", "<&- >&- 2>&-")):
        target = tmp_path / f"target-{number}.raw"
        done = _shell(f'exec "$@" {closed}', "sync", source, target, "--create", "raw")
        assert done.returncode == 0, done
        assert "Traceback" not in done.stderr
        assert target.read_bytes() == source.read_bytes()


def test_a_read_only_device_is_refused_before_anything_else(
    tmp_path: Path, dice: random.Random, loop_device: LoopDevice
) -> None:
    source = write_sparse(tmp_path / "source.raw", some_content(dice, 2 * MIB))
    below = write_sparse(tmp_path / "below.raw", some_content(dice, 2 * MIB))
    device = loop_device(below)
    # Set back in any case: the kernel keeps the flag for the next file that this loop device shows.
    subprocess.run(["blockdev", "--setro", device], check=True)
    try:
        refused = homeward("sync", source, device, "--adopt", "--state-directory", tmp_path / "state")
    finally:
        subprocess.run(["blockdev", "--setrw", device], check=True)
    assert "read-only" in refused.refused("HW-DISKS-005")


def test_a_target_of_another_format_than_the_one_to_create_is_refused(
    tmp_path: Path, dice: random.Random
) -> None:
    source = write_sparse(tmp_path / "source.raw", some_content(dice, 2 * MIB))
    target = make_image(tmp_path / "target.vmdk", "vmdk-monolithicFlat", bytes(2 * MIB))
    before = target.read_bytes()
    line = homeward("sync", source, target, "--create", "vmdk-monolithicSparse").refused("HW-MT-018")
    assert "monolithicFlat" in line
    assert target.read_bytes() == before
    assert homeward("sync", source, target, "--create", "vmdk-monolithicFlat").code == 0
