"""A private PostgreSQL: a cluster in a scratch directory, reached by a socket there, gone after the block."""

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

SETTINGS: Final = {
    # Whoever kills a client does not take the power away.
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "shared_buffers": "16MB",
    "max_connections": "60",
}
READY_SECONDS_MAX: Final = 30.0
END_SECONDS_MAX: Final = 30.0
_NUMBERS: Final = itertools.count()


class Cluster:
    """A running cluster."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def url(self, name: str) -> str:
        """The database's URL, as SQLAlchemy takes it."""
        return f"postgresql+psycopg://homeward@/{name}?host={self._directory}"

    def create(self) -> str:
        """A new, empty database; its URL."""
        import psycopg

        name = f"homeward_{os.getpid()}_{next(_NUMBERS)}"
        with psycopg.connect(
            host=str(self._directory), user="homeward", dbname="postgres", autocommit=True
        ) as link:
            link.execute(f'CREATE DATABASE "{name}"')
        return self.url(name)


@contextmanager
def running() -> Iterator[Cluster]:
    """The cluster runs inside the block. Its programs are those of `scripts/install-postgresql`."""
    with tempfile.TemporaryDirectory(prefix="pg-", dir=_place()) as name:
        directory = Path(name)
        who = _unprivileged(directory)
        data = directory / "data"
        _run(
            [_program("initdb"), "-D", data, "-U", "homeward", "-A", "trust", "-N", "--no-instructions"], who
        )
        options = [f"-c{key}={value}" for key, value in {**SETTINGS, "unix_socket_directories": name}.items()]
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [_program("postgres"), "-D", data, *options], cwd="/", stdout=log, stderr=log, **who
            )
        try:
            _await(directory, process)
            yield Cluster(directory)
        finally:
            process.send_signal(signal.SIGINT)  # SIGTERM would wait for clients that a killed test left
            process.wait(END_SECONDS_MAX)


def _place() -> str | None:
    # In memory where there is such a place.
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _unprivileged(directory: Path) -> dict[str, Any]:
    """Who runs the programs: they refuse to run as root, who therefore borrows the package's own user."""
    if os.geteuid() != 0:
        return {}
    shutil.chown(directory, "postgres", "postgres")
    return {"user": "postgres", "group": "postgres", "extra_groups": []}


def _program(name: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: float(path.parts[-3]))
    program = str(found[-1]) if found else shutil.which(name)
    assert program, f"no {name}: scripts/install-postgresql brings it"
    return program


def _run(command: list[Any], who: dict[str, Any]) -> None:
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, **who)
    assert done.returncode == 0, done.stderr


def _await(directory: Path, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + READY_SECONDS_MAX
    while not _answers(directory):
        assert process.poll() is None, (directory / "log").read_text()
        assert time.monotonic() < deadline, (directory / "log").read_text()
        time.sleep(0.05)


def _answers(directory: Path) -> bool:
    import psycopg

    try:
        psycopg.connect(host=str(directory), user="homeward", dbname="postgres").close()
    except psycopg.OperationalError:
        return False
    return True
