"""Brings a machine home before your eyes: reprotect and failback of a VMware VM that failed over to Azure.

`make demo` runs it. Everything is on this machine: a simulated vCenter, a stand-in for Azure, disks made of this
machine's own files. What brings the machine home is the real thing, by its command alone.
"""

import argparse
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOUSE))

import demo_disk as disk_demo  # noqa: E402 - beside this file
from demo_disk import COLOURED, HOMEWARD, MIB, PAGE_BYTES, Failed, quiet, say, size  # noqa: E402

from drcore.errors import HomewardError  # noqa: E402
from simlab import site as lab  # noqa: E402
from simlab.site import MACHINE, Site, SiteDisk, SiteOrder  # noqa: E402
from simlab.vcenter import kit, story  # noqa: E402

SYSTEM = SiteDisk("system", "6000c290-7a10-4c1d-9a31-0d5be1c0a001", 256 * MIB)
DATA = SiteDisk("data", "6000c290-7a10-4c1d-9a31-0d5be1c0a002", 64 * MIB)
TREE_BYTES = 96 * MIB
DATA_PAGES = 8192
ROOM_BYTES = 2048 * MIB
"""The files, both disks on both sides, and what the stand-in for Azure exports."""
LINE = "12.5M"
"""100 Mbit/s in bytes a second: a site-to-site VPN."""
AZURE_SECONDS = 2.0
SEED = 20171101
"""Fixed, so that the story is the same every time; the files are those of this machine."""


def head(number: int, text: str) -> None:
    """The title of the next step."""
    say()
    line = f"{number}  {text}"
    say(f"\033[1;36m{line}\033[0m" if COLOURED else f"== {line}")


def tell(text: str) -> None:
    """What happens, in plain words, wrapped to the width of a page."""
    import textwrap

    for line in textwrap.wrap(" ".join(text.split()), 96):
        say(f"\033[2m{line}\033[0m" if COLOURED else line)


@contextmanager
def doing(text: str) -> Iterator[None]:
    """A line for something that takes a moment, with its time when it is over."""
    began = time.monotonic()
    if sys.stdout.isatty():
        from rich.console import Console

        with Console().status(text):
            yield
    else:
        yield
    say(f"{text}: {time.monotonic() - began:.1f} s")


class Told:
    """What the audience sees of the command line: every command before its output."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def homeward(self, *words: str) -> None:
        """`homeward` with these words was shown, and has ended well."""
        self.run(str(HOMEWARD), *words)

    def run(self, *words: str) -> None:
        """The command was shown, and has ended well."""
        line = f"$ {shlex.join([Path(words[0]).name, *words[1:]])}"
        say(f"\033[1m{line}\033[0m" if COLOURED else line)
        # Through a pipe what goes to stderr belongs into the story too, in its place.
        together = None if sys.stdout.isatty() else subprocess.STDOUT
        done = subprocess.run(
            words, cwd=self._site.folder, env=self._site.client_environment(), stderr=together, check=False
        )
        if done.returncode:
            raise Failed(f"{Path(words[0]).name} {words[1]} ended with exit code {done.returncode}")


# The machine's disks


def make_disks(place: Path) -> list[Path]:
    """Both disks at home and in Azure, alike, and then some days pass in Azure; answers what is to be installed."""
    scratch, newer = place / "scratch", place / "newer"
    scratch.mkdir()
    newer.mkdir()
    system, data = lab.source(place, SYSTEM.name), lab.source(place, DATA.name)
    with doing(f"making a system disk of {size(SYSTEM.size)} from this machine's files"):
        names = disk_demo.make_tree(scratch / "tree", newer, TREE_BYTES)
        blocks = str(SYSTEM.size // PAGE_BYTES)
        quiet("mke2fs", "-q", "-t", "ext4", "-b", str(PAGE_BYTES), "-d", scratch / "tree", system, blocks)
    with doing(f"making a data disk of {size(DATA.size)} with a database"):
        chance = random.Random(SEED)
        with data.open("wb") as file:
            for _ in range(DATA_PAGES):
                file.write(disk_demo.database_page(chance))
            file.truncate(DATA.size)
    with doing("keeping both as the VMDKs that the vCenter still has"):
        (place / "vmfs1" / MACHINE).mkdir(parents=True)
        for disk in (SYSTEM, DATA):
            words = ("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=monolithicFlat")
            quiet(*words, lab.source(place, disk.name), lab.target(place, disk.name))
    installed = sorted(newer.iterdir())
    later = installed[len(installed) // 2 :]
    for path in later:
        path.rename(scratch / path.name)
    with doing("letting some days pass in Azure"):
        events = disk_demo.age(system, newer, names, scratch)
        rewrite_pages(data, 300, SEED + 1)
    for event in (*events, f"300 of {DATA_PAGES} pages of the data disk rewritten here and there"):
        say(f"  {event}")
    kept = place / "later"
    kept.mkdir()
    for path in later:
        (scratch / path.name).rename(kept / path.name)
    shutil.rmtree(scratch)
    shutil.rmtree(newer)
    return sorted(kept.iterdir())


def rewrite_pages(data: Path, count: int, seed: int) -> None:
    """The machine in Azure has rewritten so many pages of its data disk."""
    chance = random.Random(seed)
    with data.open("r+b") as file:
        for page in chance.sample(range(DATA_PAGES), count):
            file.seek(page * PAGE_BYTES)
            file.write(disk_demo.database_page(chance))


def go_on_working(site: Site, files: list[Path], pages: int, seed: int) -> None:
    """The machine in Azure has installed these files and rewritten pages of its data disk."""
    orders = site.folder / "debugfs.orders"
    lines = ["cd /opt", *(f'write "{path}" "{path.name}"' for path in files)]
    orders.write_text("\n".join([*lines, ""]))
    quiet("debugfs", "-w", "-f", orders, site.source(SYSTEM.name))
    rewrite_pages(site.source(DATA.name), pages, seed)
    written = sum(path.stat().st_size for path in files)
    tell(
        f"The machine in Azure goes on working: {len(files)} files installed ({size(written)}), {pages} pages of its "
        "data disk rewritten."
    )


# Judging, by others than homeward


def hardware(site: Site) -> dict[str, Any]:
    """Power and disks of the VM at home, asked of the vCenter by another client."""
    with kit.session(site.vcenter, *story.ADMIN) as instance:
        vm = kit.find(instance, kit.vim.VirtualMachine, MACHINE)
        controllers = {device.key: device for device in vm.config.hardware.device}
        disks = {
            disk.backing.uuid: (
                disk.backing.fileName,
                f"{controllers[disk.controllerKey].deviceInfo.label}, unit {disk.unitNumber}",
            )
            for disk in kit.disks_of(vm)
        }
        return {"power": str(vm.runtime.powerState), "disks": disks}


def judge(holds: bool, text: str) -> None:
    """What was expected is so, and the audience has seen it; raises Failed otherwise."""
    mark = "✓" if holds else "✗"
    colour = "32" if holds else "31"
    say(f"\033[{colour}m{mark}\033[0m {text}" if COLOURED else f"{mark} {text}")
    if not holds:
        raise Failed(f"this does not hold: {text}")


def judge_disks(site: Site, told: Told) -> None:
    """qemu-img, which has no part in this, finds both sides equal."""
    for disk in (SYSTEM, DATA):
        source, target = (path(disk.name).relative_to(site.folder) for path in (site.source, site.target))
        told.run("qemu-img", "compare", "-f", "raw", "-F", "vmdk", str(source), str(target))


# The story


def set_up(stack: ExitStack, place: Path) -> tuple[Site, list[Path]]:
    """The site runs, its server with it."""
    head(1, "A machine that failed over")
    tell(
        "web was a VM with two disks at home. Its site went down, it was failed over to Azure, and has worked "
        "there for some days. Now the site is back, and in the vCenter there is still the old VM with its old "
        "disks, running, with a snapshot that somebody once took."
    )
    later = make_disks(place)
    order = SiteOrder(
        (SYSTEM, DATA),
        snapshots=("before the update",),
        interval_seconds=300,
        bandwidth=LINE,
        azure_seconds=AZURE_SECONDS,
    )
    with doing("starting a simulated vCenter and a stand-in for Azure"):
        site = stack.enter_context(lab.running(place, order, Site))
    for uuid, (path, where) in hardware(site)["disks"].items():
        say(f"  at home  {path}  {where}  {uuid}")
    for disk in order.disks:
        say(f"  in Azure {site.azure.path(f'disks/{disk.name}')}")
    return site, later


def begin(site: Site, told: Told) -> None:
    """The configuration server knows the machine."""
    head(2, "Start the configuration server, and tell it of the machine")
    say("$ homeward confserver serve --config confserver.toml &")
    site.start()
    say(f"$ export HOMEWARD_SERVER={site.url} HOMEWARD_TOKEN_FILE=token")
    facts = site.enabling()
    disks = [f"--disk={disk['disk']}={disk['azure_disk']}" for disk in facts["disks"]]
    words = ("--vm", facts["vm"], "--masttarget", facts["masttarget"], "--azure-vm", facts["azure_vm"])
    told.homeward("items", "enable", MACHINE, *words, "--os", "linux", *disks)


def reprotect(site: Site, told: Told, later: list[Path]) -> None:
    """The machine replicates home, twice."""
    head(3, "Is everything ready? Pre-flight touches nothing")
    told.homeward("preflight", MACHINE)
    head(4, "What would a reprotect do? A plan touches nothing either")
    told.homeward("reprotect", MACHINE, "--plan")
    head(5, "Reprotect: the disks at home are brought up to date while the machine goes on in Azure")
    tell(
        "The old VM is powered off, its snapshot merged, its disks are handed to the master target, and only what "
        f"differs travels, on a line of {LINE[:-1]} MB a second."
    )
    told.homeward("reprotect", MACHINE, "--wait")
    head(6, "A second pass after more changes")
    go_on_working(site, later[: len(later) // 2], 100, SEED + 2)
    tell(
        "From now on a cycle runs every five minutes by itself. This one is asked for, as nobody wants to wait."
    )
    told.homeward("replicate", MACHINE, "--wait")
    told.homeward("items", "show", MACHINE)


def failback(site: Site, told: Told, later: list[Path]) -> None:
    """The machine runs at home."""
    head(7, "Failback: the downtime begins and ends in here")
    go_on_working(site, later[len(later) // 2 :], 150, SEED + 3)
    told.homeward("preflight", MACHINE, "--for", "failback")
    tell(
        "The machine in Azure is stopped and deallocated. Then its disks are read for the last time, from Azure "
        "itself. Both roles read their own side again from end to end; only if both found the same does the VM at "
        "home start."
    )
    told.homeward("failback", MACHINE, "--wait")


def check(site: Site, told: Told, before: dict[str, Any]) -> None:
    """Others than homeward find everything as it should be."""
    head(8, "Is it true? Others judge: qemu-img, a second client of the vCenter, Azure")
    judge_disks(site, told)
    judge(True, "the VMDKs at home hold what the failed-over machine's disks hold (qemu-img)")
    power = site.azure.power(MACHINE)
    judge(power == "deallocated", f"the machine in Azure is {power}")
    found = hardware(site)
    judge(found["power"] == "poweredOn", f"the VM at home is {found['power']}")
    places = {uuid: where for uuid, (_, where) in found["disks"].items()}
    was = {uuid: where for uuid, (_, where) in before["disks"].items()}
    judge(places == was, "each of its disks hangs at the controller and unit where it hung before")
    head(9, "The report: both content roots, authenticated with the item's key")
    told.homeward("jobs", "show", MACHINE, "--key-file", "key")
    head(10, "Commit: until now `homeward cancel web` would have taken the machine back to Azure")
    told.homeward("commit", MACHINE, "--wait")
    found = hardware(site)
    own = {f"[vmfs1] {MACHINE}/{disk.name}.vmdk" for disk in (SYSTEM, DATA)}
    paths = {path for path, _ in found["disks"].values()}
    judge(paths == own, f"the VM has its own VMDKs, without snapshots: {', '.join(sorted(paths))}")
    judge(found["power"] == "poweredOn", "and it runs")
    judge_disks(site, told)


def tell_story(stack: ExitStack, place: Path) -> None:
    """The whole story; raises Failed where it does not come out as told."""
    began = time.monotonic()
    site, later = set_up(stack, place)
    told = Told(site)
    before = hardware(site)
    begin(site, told)
    reprotect(site, told, later)
    failback(site, told, later)
    check(site, told, before)
    with doing("ending the configuration server in order"):
        judge(site.stop() == 0, "it ended with exit code 0")
    head(11, "In plain words")
    tell(
        f"In {time.monotonic() - began:.0f} seconds a machine of {size(SYSTEM.size + DATA.size)} came home: compared "
        "instead of copied, stopped only for the last difference, proved equal by both sides, and with a way back "
        "until the commit. The same commands do it with a real vCenter and a real subscription; README.md says how."
    )


def tools_on_path() -> None:
    """mke2fs and debugfs are found, which are not on the path of an ordinary user."""
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def main() -> int:
    """The demo has run and its files are gone; exit code 0 if everything came out as told."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep the files of the demo")
    keep = parser.parse_args().keep
    signal.signal(signal.SIGTERM, disk_demo.stop)
    tools_on_path()
    place: Path | None = None
    try:
        if missing := [tool for tool in disk_demo.TOOLS if shutil.which(tool) is None]:
            raise Failed(f"{', '.join(missing)}: not found; make build installs them")
        (HOUSE / "demo").mkdir(exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix="story-", dir=HOUSE / "demo"))
        say(f"Everything that is made lies in {place}" + ("" if keep else " and is removed at the end."))
        if shutil.disk_usage(place).free < ROOM_BYTES:
            raise Failed(f"{place} has less than {size(ROOM_BYTES)} of free space")
        with ExitStack() as stack:
            tell_story(stack, place)
        return 0
    except (Failed, HomewardError) as error:
        say(f"the demo stopped: {error}")
        if place is not None and (log := place / "server.log").exists() and log.stat().st_size:
            say(f"the configuration server's last words:\n{log.read_text()[-2000:]}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    finally:
        if place is not None and keep:
            say(f"kept: {place}")
        elif place is not None:
            shutil.rmtree(place)
            if not any(place.parent.iterdir()):
                place.parent.rmdir()


if __name__ == "__main__":
    sys.exit(main())
