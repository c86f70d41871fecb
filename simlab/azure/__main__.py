"""`python -m simlab.azure`: wires the stand-in, says where it listens in one line of JSON, ends on a signal."""

import argparse
import asyncio
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from drcore.errors import HomewardError
from simlab.azure.actions import Actions
from simlab.azure.arm import Manners, ResourceManager
from simlab.azure.blobs import Azurite, PageBlobs
from simlab.azure.certificate import write_certificate
from simlab.azure.control import Control
from simlab.azure.faults import Faults, Journal
from simlab.azure.front import BlobFront
from simlab.azure.inventory import Inventory, read_inventory
from simlab.azure.launch import Endpoints
from simlab.azure.listening import Connections, Server
from simlab.azure.model import Estate, utc_now
from simlab.azure.operations import Operations


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m simlab.azure", description=__doc__)
    parser.add_argument("--inventory", type=Path, required=True, help="JSON file: what there is")
    parser.add_argument("--announce", type=Path, help="write the endpoints to this file too, when ready")
    parser.add_argument(
        "--certificate", type=Path, help="write the certificate (PEM) there; default: a scratch directory"
    )
    parser.add_argument("--token", help="accept this bearer token only; default: any")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end when standard input ends")
    parser.add_argument("--verbose", action="store_true", help="log what is published to standard error")
    return parser.parse_args(words)


async def serve(options: argparse.Namespace, inventory: Inventory, azurite: Azurite, scratch: Path) -> None:
    """All servers were up, announced, and are down again after a signal or the end of standard input."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    if options.until_stdin_closes:
        threading.Thread(target=_await_stdin, args=(loop, ended), daemon=True).start()

    certificate = options.certificate or scratch / "certificate.pem"
    key = scratch / "key.pem"
    write_certificate(certificate, key, utc_now())
    estate = Estate(inventory)
    operations, faults, journal = Operations(utc_now), Faults(), Journal(utc_now)
    blob_connections, arm_connections = Connections(), Connections()
    front = BlobFront(estate, azurite.url.rpartition("/")[0], faults, journal, blob_connections)
    blob_server = Server(front, blob_connections, (certificate, key))
    blobs = PageBlobs(azurite, scratch / "shadows")
    actions = Actions(estate, operations, blobs, inventory.seconds, blob_server.url, scratch / "volumes")
    manners = Manners(options.token, inventory.retry_after_seconds, inventory.page_size)
    manager = ResourceManager(actions, faults, journal, arm_connections, manners)
    arm_server = Server(manager, arm_connections, (certificate, key))
    control_server = Server(Control(actions, faults, journal).application(), Connections(), None)
    servers = (blob_server, arm_server, control_server)
    try:
        for server in servers:
            await server.up()
        endpoints = Endpoints(
            arm=arm_server.url,
            blob=blob_server.url,
            control=control_server.url,
            certificate=str(certificate),
            subscription=estate.subscription,
            pid=os.getpid(),
        )
        announce(endpoints, options.announce)
        await ended.wait()
    finally:
        await asyncio.gather(*(server.down() for server in servers))
        await operations.close()
        await front.close()


def announce(endpoints: Endpoints, file: Path | None) -> None:
    """The endpoints are on standard output, and whole in the file, as one line of JSON."""
    line = json.dumps(asdict(endpoints)) + "\n"
    if file is not None:
        new = file.with_name(file.name + ".new")
        new.write_text(line)
        new.replace(file)
    sys.stdout.write(line)
    sys.stdout.flush()


def _await_stdin(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    loop.call_soon_threadsafe(ended.set)


def main(words: Sequence[str] | None = None) -> int:
    """The exit code: 0 after an orderly end, 2 for an error with its code on standard error."""
    options = arguments(words)
    logging.basicConfig(
        level=logging.INFO if options.verbose else logging.ERROR, format="%(name)s: %(message)s"
    )
    # Azure's client logs its own work at this level, with addresses whose signature is nobody's business.
    logging.getLogger("azure").setLevel(logging.ERROR)
    logging.getLogger("httpx").setLevel(logging.ERROR)
    # The servers follow later: until then a signal is an exception, so that the scratch directory goes.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    scratch = Path(tempfile.mkdtemp(prefix="simlab-azure-"))
    try:
        inventory = read_inventory(options.inventory)
        # Judges the disks' files before anything is started.
        Estate(inventory)
        with Azurite(scratch / "azurite") as azurite:
            asyncio.run(serve(options, inventory, azurite, scratch))
    except HomewardError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
