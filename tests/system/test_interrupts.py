"""Ctrl-C stops in order; the same command goes on; what changed meanwhile is noticed."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import LoopDevice
from tests.system.command import (
    changed,
    ended,
    homeward,
    interrupted,
    judge,
    left_beside,
    make_image,
    start,
    wait_until,
    write_sparse,
)

MIB = 1024 * 1024
SIZE = 32 * MIB


def applied(target: Path) -> int:
    """Bytes of the applied record: it grows as blocks become durable."""
    record = target.with_name(target.name + ".homeward") / "applied"
    return record.stat().st_size if record.exists() else 0


def broken_sync(source: Path, target: Path, *options: str | Path) -> None:
    """A sync that got a Ctrl-C after its first blocks were durable."""
    process = start("sync", source, target, "--json", "--bandwidth", "8M", *options)
    began = time.monotonic()
    outcome = interrupted(process, lambda: applied(target) > 1000)
    outcome.refused("HW-AGENT-007", exit_code=130)
    assert time.monotonic() - began < 15


def cycle(target: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(
        (target.with_name(target.name + ".homeward") / "cycle").read_bytes()
    )
    return found


@pytest.mark.parametrize("kind", ["raw", "vmdk-monolithicSparse"])
def test_the_same_command_goes_on_where_the_name_tells_no_format(
    kind: str, tmp_path: Path, dice: random.Random
) -> None:
    content = dice.randbytes(SIZE)
    source = write_sparse(tmp_path / "source.raw", content)
    target = tmp_path / "target"
    command = ("sync", source, target, "--create", kind, "--json")
    broken_sync(source, target, "--create", kind)
    assert homeward(*command).answer()["resumed"] is True
    assert homeward(*command).answer()["blocks_sent"] == 0
    judge(target, kind, source)


def test_an_image_is_no_raw_target_because_one_was_to_be_created(tmp_path: Path, dice: random.Random) -> None:
    content = dice.randbytes(MIB)
    source = write_sparse(tmp_path / "source.raw", content)
    target = tmp_path / "target"
    make_image(target, "vmdk-monolithicSparse", content)
    before = target.read_bytes()
    homeward("sync", source, target, "--create", "raw").refused("HW-DISKS-006")
    assert target.read_bytes() == before


@pytest.mark.parametrize("kind", ["raw", "vmdk-monolithicSparse", "vhd-dynamic"])
def test_the_same_command_goes_on_after_an_interrupt(kind: str, tmp_path: Path, dice: random.Random) -> None:
    content = dice.randbytes(SIZE)
    source = write_sparse(tmp_path / "source.raw", content)
    target = tmp_path / {"raw": "t.raw", "vhd-dynamic": "t.vhd"}.get(kind, "t.vmdk")
    broken_sync(source, target, "--create", kind)
    assert left_beside(target) == [target.name + ".homeward"]
    found = homeward("sync", source, target, "--create", kind, "--json").answer()
    assert found["resumed"] is True
    assert 0 < found["blocks_sent"] < SIZE // 65536
    assert found["bytes_resent"] <= 6 * MIB  # at most the span in the making and what was in the socket
    judge(target, kind, source)
    assert left_beside(target) == []


def test_an_interrupt_is_heard_soon_however_much_is_left_to_send(tmp_path: Path, dice: random.Random) -> None:
    source = write_sparse(tmp_path / "source.raw", dice.randbytes(200 * MIB))
    target = tmp_path / "target.raw"
    process = start("sync", source, target, "--create", "raw", "--bandwidth", "4M", "--json")

    def moving() -> bool:
        return target.exists() and target.stat().st_blocks > 0

    outcome = interrupted(process, moving)
    outcome.refused("HW-AGENT-007", exit_code=130)


def test_what_waited_for_the_bandwidth_is_not_counted_as_sent(tmp_path: Path, dice: random.Random) -> None:
    rate, seconds = 100_000, 2.0
    source = write_sparse(tmp_path / "source.raw", dice.randbytes(12 * MIB))
    target = write_sparse(tmp_path / "target.raw", dice.randbytes(12 * MIB))
    process = start("sync", source, target, "--bandwidth", str(rate), "--json")
    wait_until((tmp_path / "target.raw.homeward" / "cycle").exists)
    began = time.monotonic()
    interrupted(process, lambda: time.monotonic() - began > seconds).refused("HW-AGENT-007", exit_code=130)
    most = rate * (time.monotonic() - began + 1)
    found = homeward("sync", source, target, "--json").answer()
    assert found["bytes_resent"] <= most
    assert found["blocks_sent"] * 65536 >= 12 * MIB - most


def test_an_interrupt_before_anything_began_is_an_interrupt(tmp_path: Path) -> None:
    source = write_sparse(tmp_path / "source.raw", bytes(MIB))
    target = tmp_path / "target.raw"
    work = target.with_name("target.raw.homeward")
    process = start("sync", source, target, "--create", "raw", "--json")
    outcome = interrupted(process, work.exists)
    if outcome.code == 130:  # else it was done before the signal came
        outcome.refused("HW-AGENT-007", exit_code=130)
        assert homeward("sync", source, target, "--create", "raw").code == 0
    judge(target, "raw", source)
    assert left_beside(target) == []


def hears(process: "subprocess.Popen[str]", number: int) -> bool:
    """Whether the process catches the signal: Python by itself catches SIGINT, and leaves SIGTERM alone."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line.split()[1] for line in text.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> number - 1 & 1)


def test_compare_can_be_interrupted(tmp_path: Path, dice: random.Random) -> None:
    piece = dice.randbytes(MIB)
    source, target = tmp_path / "source.raw", tmp_path / "target.raw"
    for path in (source, target):
        with path.open("wb") as file:
            for _ in range(400):
                file.write(piece)
    process = start("compare", source, target, "--json")
    outcome = interrupted(process, lambda: hears(process, signal.SIGTERM))
    if outcome.code != 0:
        outcome.refused("HW-AGENT-007", exit_code=130)


def spoil(target: Path, *, keep_time: bool) -> int:
    """One byte of a block that is durable differs, with the old modification time or a new one; its offset."""
    status = target.stat()
    with target.open("r+b") as file:
        at = next(at for at in range(0, SIZE, 65536) if any(os.pread(file.fileno(), 65536, at)))
        byte = os.pread(file.fileno(), 1, at)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 1]), at)
    if keep_time:
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (target.stat().st_mtime_ns == status.st_mtime_ns) == keep_time
    return at


def test_the_kept_digest_map_is_used_while_the_file_looks_untouched(
    tmp_path: Path, dice: random.Random
) -> None:
    """A change that hides its modification time is not seen: so the disk was not read again."""
    source = write_sparse(tmp_path / "source.raw", dice.randbytes(SIZE))
    target = tmp_path / "target.raw"
    broken_sync(source, target, "--create", "raw")
    assert cycle(target)["closed"]
    at = spoil(target, keep_time=True)
    homeward("sync", source, target, "--json").answer()
    wrong = homeward("compare", source, target, "--json").answer()
    assert wrong["sectors_changed"] == 1
    assert source.read_bytes()[at] != target.read_bytes()[at]


@pytest.mark.parametrize("how", ["modification time", "inode"])
def test_a_target_that_was_touched_meanwhile_is_read_again(
    how: str, tmp_path: Path, dice: random.Random
) -> None:
    source = write_sparse(tmp_path / "source.raw", dice.randbytes(SIZE))
    target = tmp_path / "target.raw"
    broken_sync(source, target, "--create", "raw")
    spoil(target, keep_time=how == "inode")
    if how == "inode":
        copy = tmp_path / "copy.raw"
        shutil.copy2(target, copy)
        os.utime(copy, ns=(target.stat().st_atime_ns, target.stat().st_mtime_ns))
        copy.rename(target)
    found = homeward("sync", source, target, "--json").answer()
    assert found["resumed"] is True
    judge(target, "raw", source)


def test_a_vmdk_that_somebody_else_wrote_to_is_read_again(tmp_path: Path, dice: random.Random) -> None:
    """Its change mark tells, even where the file's times do not."""
    content = dice.randbytes(SIZE)
    source = write_sparse(tmp_path / "source.raw", content)
    target = make_image(tmp_path / "target.vmdk", "vmdk-monolithicFlat", changed(dice, bytes(SIZE)))
    broken_sync(source, target)
    flat = tmp_path / "target-flat.vmdk"
    times = {path: path.stat() for path in (target, flat)}
    spoil(flat, keep_time=True)
    text = target.read_text()
    told = re.search(r"^CID=(\w+)$", text, re.MULTILINE)
    assert told is not None
    other = "0badcafe" if told[1] != "badcafe" else "0badcaff"
    target.write_text(text[: told.start(1)] + other + text[told.end(1) :])
    for path, status in times.items():
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    homeward("sync", source, target, "--json").answer()
    judge(target, "vmdk-monolithicFlat", source)


def test_a_device_goes_on_from_its_state_directory(
    tmp_path: Path, dice: random.Random, loop_device: LoopDevice
) -> None:
    source = write_sparse(tmp_path / "source.raw", dice.randbytes(SIZE))
    device = loop_device(write_sparse(tmp_path / "backing.raw", bytes(SIZE)))
    state = tmp_path / "state"
    options = ("--state-directory", state, "--json")
    process = start("sync", source, device, "--adopt", "--bandwidth", "8M", *options)

    def recorded() -> bool:
        return any(path.stat().st_size > 1000 for path in state.rglob("applied"))

    interrupted(process, recorded).refused("HW-AGENT-007", exit_code=130)
    found = homeward("sync", source, device, *options).answer()
    assert found["resumed"] is True
    assert found["blocks_sent"] < SIZE // 65536
    judge(device, "raw", source)
    assert list(state.rglob("*.undo")), "the way back stays"
    assert homeward("sync", "--drop-undo", device, *options).code == 0
    assert list(state.rglob("*")) == []


def test_a_source_that_changes_where_it_was_read_already_is_noticed(
    tmp_path: Path, dice: random.Random
) -> None:
    source = write_sparse(tmp_path / "source.raw", dice.randbytes(24 * MIB))
    target = tmp_path / "target.raw"
    running = start("sync", source, target, "--create", "raw", "--bandwidth", "8M", "--json")
    wait_until(lambda: target.exists() and target.stat().st_blocks * 512 > 6 * MIB)
    with source.open("r+b") as file:
        file.seek(MIB)
        file.write(b"news")
    ended(running).refused("HW-AGENT-009")
    homeward("sync", source, target, "--json").answer()
    judge(target, "raw", source)


def test_ctrl_c_is_heard_however_low_the_rate(tmp_path: Path, dice: random.Random) -> None:
    source = write_sparse(tmp_path / "source.raw", dice.randbytes(4 * MIB))
    running = start("sync", source, tmp_path / "target.raw", "--create", "raw", "--bandwidth", "10k")
    wait_until(lambda: (tmp_path / "target.raw").exists())
    time.sleep(1)
    began = time.monotonic()
    running.send_signal(signal.SIGINT)
    assert ended(running).code == 130
    assert time.monotonic() - began < 8
