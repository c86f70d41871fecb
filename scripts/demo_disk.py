"""Brings a real disk home before your eyes; `make demo-disk` runs it.

Without arguments it makes two disks from this machine's own files: the disk of a failed-over machine (ext4 in a
dynamic VHD) and the older copy that the vCenter still has (VMDK). With SOURCE and TARGET it works on your disks.
"""

import argparse
import json
import os
import random
import secrets
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

HOUSE = Path(__file__).resolve().parent.parent
HOMEWARD = HOUSE / ".venv/bin/homeward"
TOOLS = ("mke2fs", "debugfs", "qemu-img")
MIB = 1024 * 1024

DISK_BYTES = 1024 * MIB
TREE_BYTES = 500 * MIB
UPDATE_BYTES = 24 * MIB
ROOM_BYTES = 2560 * MIB
"""The files, the raw disk that is made from them, and the two images."""
PLACES = ("/usr/bin", "/usr/lib", "/usr/share")
PAGE_BYTES = 4096
DATABASE_PAGES = 8192
CHANGED_PAGES = 400
LOG_LINES = 60_000
REMOVED_FILES = 25
LINE, LINE_BYTES = "12.5M", 12_500_000
"""Bytes a second of a line of 100 Mbit/s, such as a site-to-site VPN may offer."""
SEED = 20171101
"""Fixed, so that the story is the same every time; the files are those of this machine."""

NEW, OLD = "azure.vhd", "vcenter.vmdk"

QEMU_FORMATS = {
    "raw": "raw",
    "vhd-fixed": "vpc",
    "vhd-dynamic": "vpc",
    "vmdk-monolithicSparse": "vmdk",
    "vmdk-monolithicFlat": "vmdk",
}
COLOURED = sys.stdout.isatty() and "NO_COLOR" not in os.environ


class Failed(Exception):
    """The demo cannot go on; the text says why."""


def say(text: str = "") -> None:
    """A line at once, so that it stands in order with what the commands print."""
    print(text, flush=True)


def head(text: str) -> None:
    """The title of the next step."""
    say()
    say(f"\033[1;36m{text}\033[0m" if COLOURED else f"== {text}")


def size(count: float) -> str:
    """Bytes in MiB or GiB."""
    return f"{count / MIB / 1024:.1f} GiB" if count >= 1024 * MIB else f"{count / MIB:.1f} MiB"


def run(
    *command: str | Path, expected: tuple[int, ...] = (0,), shown: bool = True, capture: bool = False
) -> str:
    """The command has run with one of the expected exit codes; answers its stdout if that is captured."""
    words = [str(word) for word in command]
    if shown:
        name = [Path(words[0]).name, *words[1:]]
        line = f"$ {shlex.join(name)}"
        say(f"\033[1m{line}\033[0m" if COLOURED else line)
    done = subprocess.run(words, stdout=subprocess.PIPE if capture else None, text=True)
    if done.returncode not in expected:
        raise Failed(f"{words[0]} ended with exit code {done.returncode}")
    return done.stdout or ""


def quiet(*command: str | Path) -> None:
    """The command has run; its output shows only if it failed."""
    words = [str(word) for word in command]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise Failed(f"{shlex.join(words)}:\n{done.stdout.strip()}")


# The two disks


def machine_files() -> Iterator[Path]:
    """This machine's regular files with plain names, in a fixed order."""
    for place in PLACES:
        for directory, folders, names in os.walk(place):
            folders.sort()
            for name in sorted(names):
                path = Path(directory, name)
                try:
                    status = path.lstat()
                except OSError:
                    continue
                plain = name.isascii() and not set(name) & set(' "\\')
                if stat.S_ISREG(status.st_mode) and status.st_size and plain and os.access(path, os.R_OK):
                    yield path


def make_tree(tree: Path, newer: Path, tree_bytes: int = TREE_BYTES) -> list[str]:
    """`tree` holds so many bytes of files and a database, `newer` what will be installed later; answers the names."""
    copied = installed = 0
    names: list[str] = []
    for path in machine_files():
        length = path.stat().st_size
        if copied < tree_bytes:
            place = tree / path.relative_to("/")
            copied += length
            names.append(str(place.relative_to(tree)))
        elif installed + length <= UPDATE_BYTES:
            place = newer / f"{installed}-{path.name}"
            installed += length
        elif installed > UPDATE_BYTES * 0.9:
            break
        else:
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    chance = random.Random(SEED)
    folder = tree / "var/lib"
    folder.mkdir(parents=True)
    with (folder / "orders.db").open("wb") as file:
        for _ in range(DATABASE_PAGES):
            file.write(database_page(chance))
    (tree / "var/log").mkdir(parents=True)
    return names


def database_page(chance: random.Random) -> bytes:
    """A page that looks like one: rows of text and numbers, half of it compressible."""
    rows = chance.randbytes(PAGE_BYTES // 4).hex(" ").encode()
    return rows[: PAGE_BYTES - 16].ljust(PAGE_BYTES, b".")


def age(disk: Path, newer: Path, names: list[str], scratch: Path) -> list[str]:
    """The raw disk is as after some days in the cloud; answers in words what happened to it."""
    chance = random.Random(SEED + 1)
    small = [name for name in names if "/share/" in name] or names
    removed = chance.sample(small, min(REMOVED_FILES, len(small)))
    log = scratch / "app.log"
    with log.open("w") as file:
        for line in range(LOG_LINES):
            order, second = chance.randrange(10**9), line % 60
            file.write(f"2017-11-01T09:{line // 60 % 60:02}:{second:02}Z order={order} paid\n")
    installed = sorted(newer.iterdir())
    orders = [f'rm "/{name}"' for name in removed]
    orders += ["mkdir /opt", "cd /opt", *(f'write "{path}" "{path.name}"' for path in installed)]
    orders += ["cd /var/log", f'write "{log}" app.log']
    script = scratch / "debugfs.orders"
    script.write_text("\n".join([*orders, ""]))
    quiet("debugfs", "-w", "-f", script, disk)
    found = subprocess.run(
        ["debugfs", "-R", "blocks /var/lib/orders.db", str(disk)], capture_output=True, text=True, check=True
    )
    blocks = [int(word) for word in found.stdout.split()]
    if len(blocks) < DATABASE_PAGES:
        raise Failed(f"debugfs found {len(blocks)} blocks of the database where {DATABASE_PAGES} are")
    with disk.open("r+b") as file:
        for block in chance.sample(blocks[-DATABASE_PAGES:], CHANGED_PAGES):
            file.seek(block * PAGE_BYTES)
            file.write(database_page(chance))
    written = sum(path.stat().st_size for path in installed)
    return [
        f"{len(installed)} files installed ({size(written)}), {len(removed)} removed",
        f"a log that was written ({size(log.stat().st_size)})",
        f"{CHANGED_PAGES} of {DATABASE_PAGES} pages of a database rewritten here and there",
    ]


def make_disks(place: Path) -> tuple[Path, Path]:
    """The failed-over machine's disk as VHD, the older copy as VMDK; nothing else is left in `place`."""
    head("1  Make the two disks")
    scratch, tree, newer = place / "scratch", place / "scratch/tree", place / "scratch/newer"
    newer.mkdir(parents=True)
    say(f"copying some {TREE_BYTES // MIB} MiB of this machine's files ({', '.join(PLACES)})")
    names = make_tree(tree, newer)
    disk, old, new = scratch / "disk.raw", place / OLD, place / NEW
    say(f"making an ext4 file system of {size(DISK_BYTES)} from {len(names)} files")
    quiet(
        "mke2fs", "-q", "-t", "ext4", "-b", str(PAGE_BYTES), "-d", tree, disk, str(DISK_BYTES // PAGE_BYTES)
    )
    shutil.rmtree(tree)
    say("keeping it as the VMDK that the vCenter still has")
    quiet("qemu-img", "convert", "-f", "raw", "-O", "vmdk", disk, old)
    say("letting some days in the cloud pass:")
    for event in age(disk, newer, names, scratch):
        say(f"  {event}")
    say("keeping that as the VHD of the failed-over machine")
    quiet(
        *("qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "subformat=dynamic,force_size=on"), disk, new
    )
    shutil.rmtree(scratch)
    return new, old


# Bringing it home


@dataclass(frozen=True)
class Roles:
    """The settings files of the two roles; the key that both read lies beside them."""

    agent: Path
    masttarget: Path


def write_roles(place: Path) -> Roles:
    """Key and settings are there, as an operator would write them, but for the port."""
    key = place / "homeward.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(32))
    item, disk = uuid.uuid4(), uuid.uuid4()
    roles = Roles(Path("agent.toml"), Path("masttarget.toml"))
    roles.masttarget.write_text(f"""\
[masttarget]
listen = "127.0.0.1:0"
key_file = "{key}"
state_directory = "{place}/state-masttarget"

[[disk]]
item = "{item}"
disk = "{disk}"
path = "{place / OLD}"
adopt = true
""")
    roles.agent.write_text(f"""\
[agent]
masttarget = "127.0.0.1:PORT"
key_file = "{key}"
state_directory = "{place}/state-agent"
item = "{item}"
bandwidth = "{LINE}"

[[disk]]
disk = "{disk}"
path = "{place / NEW}"
""")
    return roles


def bring_home(roles: Roles, place: Path) -> tuple[dict[str, Any], float]:
    """Two processes, a master target and an agent, have brought the target up to date; answers the agent's report."""
    log = place / "masttarget.log"
    words = [str(HOMEWARD), "masttarget", "serve", "--config", str(roles.masttarget), "--once", "--json"]
    say(f"$ homeward {shlex.join(words[1:])} &")
    with log.open("wb") as errors:
        master = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert master.stdout is not None
        told = master.stdout.readline()
        if "port" not in told:
            raise Failed(f"the master target did not start:\n{told}{log.read_text()}")
        say(told.strip())
        agent = roles.agent.read_text().replace("PORT", str(json.loads(told)["port"]))
        roles.agent.write_text(agent)
        began = time.monotonic()
        found = run(HOMEWARD, "agent", "sync", "--config", roles.agent, "--json", capture=True)
        seconds = time.monotonic() - began
        say(found.strip())
        if master.wait(60):
            raise Failed(f"the master target ended with exit code {master.returncode}:\n{log.read_text()}")
    finally:
        if master.poll() is None:
            master.terminate()
            master.wait()
    return json.loads(found), seconds


def inspect(path: Path) -> dict[str, Any]:
    """What `homeward info` says of the image."""
    found: dict[str, Any] = json.loads(run(HOMEWARD, "info", path, "--json", shown=False, capture=True))
    return found


def judge(source: Path, target: Path) -> None:
    """qemu-img, which has no part in this, finds both equal."""
    formats = [QEMU_FORMATS[inspect(path)["format"]] for path in (source, target)]
    run("qemu-img", "compare", "-f", formats[0], "-F", formats[1], source, target)


def own_story(place: Path) -> None:
    """The demo on disks that it makes itself."""
    if shutil.disk_usage(place).free < ROOM_BYTES:
        raise Failed(f"{place} has less than {size(ROOM_BYTES)} of free space")
    source, target = (disk.relative_to(place) for disk in make_disks(place))
    os.chdir(place)

    head("2  What are they?")
    run(HOMEWARD, "info", source)
    run(HOMEWARD, "info", target)

    head("3  What differs, exactly, and what would have to travel? (exit code 1: they differ)")
    run(HOMEWARD, "compare", source, target, expected=(1,))
    words = run(HOMEWARD, "compare", source, target, "--json", expected=(1,), shown=False, capture=True)
    different = json.loads(words)

    head("4  Bring it home: a master target and an agent, two processes, TCP at 100 Mbit/s and a shared key")
    found, seconds = bring_home(write_roles(place), place)

    head("5  Is it really the same now? Another program judges")
    judge(source, target)
    run(HOMEWARD, "compare", source, target)

    head("In plain words")
    wire = found["bytes_sent"] + found["bytes_received"]
    share = 100 * different["blocks_changed"] / different["blocks_total"]
    allocated = inspect(source)["allocated_bytes"]
    say(
        f"{different['blocks_changed']:,} of {different['blocks_total']:,} blocks ({share:.1f} %) differed, "
        f"in them {size(different['bytes_changed'])}."
    )
    say(
        f"{size(different['bytes_to_send'])} of content was foretold; {size(wire)} crossed the network, "
        "both directions, comparison and acknowledgements included."
    )
    say(f"It took {seconds:.1f} seconds; both disks were read from end to end in them.")
    say(
        f"A blind copy of what the source holds ({size(allocated)}) would have sent {allocated / wire:.0f} times as "
        f"much, and taken {allocated / LINE_BYTES:.0f} seconds on the same line."
    )


def your_disks(source: Path, target: Path, create: str) -> None:
    """The demo on two disks of the user; `homeward sync` asks before it writes."""
    there = target.exists()
    head("What are they?")
    run(HOMEWARD, "info", source)
    if there:
        run(HOMEWARD, "info", target)
        head("What differs? (exit code 1: they differ)")
        run(HOMEWARD, "compare", source, target, expected=(0, 1))
    else:
        say(f"{target} does not exist and will be created as {create}")
    head("Bring it home")
    run(HOMEWARD, "sync", source, target, *(() if there else ("--create", create)))
    head("Is it really the same now? Another program judges")
    judge(source, target)


def suited_format(target: Path) -> str:
    """The format that goes with the target's name."""
    return {".vmdk": "vmdk-monolithicSparse", ".vhd": "vhd-dynamic"}.get(target.suffix.lower(), "raw")


def stop(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM tidies up as Ctrl-C does."""
    raise KeyboardInterrupt


def main() -> int:
    """The demo has run and its files are gone; exit code 0 if everything came out equal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, nargs="?", help="your own source disk")
    parser.add_argument("target", type=Path, nargs="?", help="your own target disk; it will be overwritten")
    parser.add_argument("--create", default="", help="the format of a target that does not exist")
    parser.add_argument("--keep", action="store_true", help="keep the files of the demo")
    told = parser.parse_args()
    if (told.source is None) != (told.target is None):
        parser.error("SOURCE and TARGET go together")
    signal.signal(signal.SIGTERM, stop)
    # mke2fs and debugfs are not on the path of an ordinary user.
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    place: Path | None = None
    try:
        if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
            raise Failed(f"{', '.join(missing)}: not found; make build installs them")
        if told.source is not None:
            your_disks(told.source, told.target, told.create or suited_format(told.target))
            return 0
        (HOUSE / "demo").mkdir(exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix="disk-", dir=HOUSE / "demo"))
        say(f"Everything that is made lies in {place}" + ("" if told.keep else " and is removed at the end."))
        own_story(place)
        return 0
    except Failed as error:
        say(f"the demo stopped: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    finally:
        os.chdir(HOUSE)
        if place is not None and told.keep:
            say(f"kept: {place}")
        elif place is not None:
            shutil.rmtree(place)
            if not any(place.parent.iterdir()):
                place.parent.rmdir()


if __name__ == "__main__":
    sys.exit(main())
