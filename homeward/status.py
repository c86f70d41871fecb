"""The status file: where a role's work stands, for whoever started it. docs/configuration.md describes it."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import click

from homeward.show import Standing

STATUS_SECONDS: Final = 0.5

status_option = click.option(
    "--status",
    type=click.Path(path_type=Path),
    help="Keep a JSON object there, twice a second, that says where the work stands.",
)


@contextmanager
def telling(path: Path | None, standing: Callable[[], Standing]) -> Iterator[None]:
    """While the block runs, the file holds the standing; each time as a whole, and it stays afterwards.

    A file that cannot be written is left alone: work does not fail because nobody can watch it.
    """
    if path is None:
        yield
        return
    over = threading.Event()

    def tell() -> None:
        while True:
            last = over.wait(STATUS_SECONDS)
            with suppress(OSError):
                _write(path, standing())
            if last:
                return

    thread = threading.Thread(target=tell, name="status", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _write(path: Path, standing: Standing) -> None:
    new = path.with_name(path.name + ".new")
    found = {
        "label": standing.label,
        "done": standing.done,
        "total": standing.total,
        "moved": standing.moved,
        "at": time.time(),
    }
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(found, file)
    new.replace(path)
