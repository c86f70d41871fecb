"""Runs a whole site until Ctrl-C, for whoever wants to bring a machine home by hand in a second terminal.

`make site` runs it: a simulated vCenter, a stand-in for Azure, disks made of this machine's own files, and a
configuration server. The machine `web` has failed over and is not an item yet.
"""

import argparse
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import demo  # beside this file; it also lets the rooms be found

# isort: split
from demo_disk import HOMEWARD, TOOLS, Failed, say, size, stop

from drcore.errors import HomewardError
from simlab import site as lab
from simlab.site import MACHINE, Site, SiteOrder
from simlab.vcenter import story

PORT = 8443
"""The server's own default, while it is free."""
WATCH_SECONDS = 0.2


def free_port() -> int:
    """The default port, or any other that nobody uses."""
    for wanted in (PORT, 0):
        try:
            with socket.create_server(("127.0.0.1", wanted)) as found:
                return int(found.getsockname()[1])
        except OSError:
            continue
    raise Failed("no free port on 127.0.0.1")


def enabling(site: Site) -> str:
    """The command that makes the machine an item."""
    facts = site.enabling()
    words = ["homeward", "items", "enable", MACHINE, "--vm", facts["vm"], "--masttarget", facts["masttarget"]]
    words += ["--os", facts["os_family"], "--azure-vm", facts["azure_vm"]]
    words += [f"--disk={disk['disk']}={disk['azure_disk']}" for disk in facts["disks"]]
    return shlex.join(words)


def tell(site: Site) -> None:
    """What there is, what a second terminal needs, and what can be tried there."""
    system, data = (disk.name for disk in site.order.disks)
    serve = f"{lab.PASSWORD_VARIABLE}={shlex.quote(story.ADMIN[1])} homeward confserver serve --config confserver.toml"
    lines = f"""
The site runs. In a second terminal:

    cd {shlex.quote(str(site.folder))}
    export PATH={shlex.quote(str(HOMEWARD.parent))}:$PATH
    export HOMEWARD_SERVER={site.url}
    export HOMEWARD_TOKEN_FILE=token

The machine {MACHINE} comes home:

    {enabling(site)}
    homeward preflight {MACHINE}
    homeward reprotect {MACHINE} --plan
    homeward reprotect {MACHINE} --wait
    homeward items show {MACHINE}
    dd if=/dev/urandom of=azure-{data}.raw bs=64k seek=100 count=32 conv=notrunc   # it goes on working in Azure
    homeward replicate {MACHINE} --wait
    homeward failback {MACHINE} --wait
    qemu-img compare -f raw -F vmdk azure-{system}.raw vmfs1/{MACHINE}/{system}.vmdk
    homeward jobs show {MACHINE} --key-file key
    homeward commit {MACHINE} --wait          # or: homeward cancel {MACHINE} --wait

The recovery points of the way home, from the first cycle on:

    ITEM=$(ls state/replication)
    homeward points list $ITEM --config state/replication/$ITEM/masttarget.toml

What can go wrong: Ctrl-C and homeward jobs watch {MACHINE}; homeward cancel {MACHINE} while a job runs; a disk that
somebody holds (qemu-io vmfs1/{MACHINE}/{data}.vmdk); the server killed in the middle, and started again:

    kill -9 {site.process.pid if site.process else ""}
    {serve} &

Mishaps of the fabrics are ordered at control ports (docs/simlab-vcenter.md, docs/simlab-azure.md):

    vCenter  {site.vcenter.control}
    Azure    {site.endpoints.control}

The server's settings are in confserver.toml, what it says in server.log.
Ctrl-C here ends what was started here, and removes the files.
"""
    say(lines.rstrip())


def hold(site: Site) -> None:
    """Only Ctrl-C or SIGTERM leads out; a server that ended is mentioned, and may be started again by hand."""
    told = False
    while True:
        if not told and site.process is not None and site.process.poll() is not None:
            told = True
            say(
                "the configuration server has ended; the stand-ins go on, and the command above starts it again"
            )
        time.sleep(WATCH_SECONDS)


def run(stack: ExitStack, place: Path, port: int) -> None:
    """The site runs, and says how to use it."""
    demo.make_disks(place)
    order = SiteOrder(
        (demo.SYSTEM, demo.DATA),
        snapshots=("before the update",),
        interval_seconds=300,
        bandwidth=demo.LINE,
        retention=True,
        azure_seconds=demo.AZURE_SECONDS,
        port=port,
    )
    with demo.doing("starting a simulated vCenter, a stand-in for Azure and the configuration server"):
        site = stack.enter_context(lab.running(place, order, Site))
        site.start()
    tell(site)
    hold(site)


def main() -> int:
    """The site ran until somebody ended it, and nothing of it is left; exit code 0 then."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep the files")
    keep = parser.parse_args().keep
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
    demo.tools_on_path()
    place: Path | None = None
    ran = False
    try:
        if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
            raise Failed(f"{', '.join(missing)}: not found; make build installs them")
        (demo.HOUSE / "demo").mkdir(exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix="site-", dir=demo.HOUSE / "demo"))
        if shutil.disk_usage(place).free < demo.ROOM_BYTES:
            raise Failed(f"{place} has less than {size(demo.ROOM_BYTES)} of free space")
        with ExitStack() as stack:
            ran = True
            run(stack, place, free_port())
        return 0
    except (Failed, HomewardError, subprocess.SubprocessError) as error:
        say(f"the site stopped: {error}")
        return 1
    except KeyboardInterrupt:
        say("the site has ended")
        return 0 if ran else 130
    finally:
        if place is not None and keep:
            say(f"kept: {place}")
        elif place is not None:
            shutil.rmtree(place, ignore_errors=True)
            if not any(place.parent.iterdir()):
                place.parent.rmdir()


if __name__ == "__main__":
    sys.exit(main())
