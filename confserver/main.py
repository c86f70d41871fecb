"""Wires the configuration server: settings, databases, fabrics, data path, API; serves until it is told to stop."""

import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from confserver import config as settings
from confserver.config import ConfserverConfig
from confserver.errors import ServerUnready
from confserver.jobs import Engine, Jobs
from confserver.ports import Azure, VSphere
from confserver.schedule import Schedule
from confserver.service import VERBS, Service, Site
from confserver.steps import Ports
from confserver.store import Store
from drcore.clock import SystemClock

ACCEPT_QUEUE: Final = 128
"""Connections that wait to be accepted: some clients and a console, never thousands."""
VCENTER_SECONDS: Final = 60.0
"""One answer of the vCenter."""


class Server:
    """A configuration server. `run` serves until SIGTERM or SIGINT."""

    def __init__(
        self, config: ConfserverConfig, vsphere: VSphere | None = None, azure: Azure | None = None
    ) -> None:
        # Imported here: half a second that only a server needs.
        import uvicorn

        from confserver import api
        from confserver.adapters.network import TcpNetwork
        from confserver.adapters.replication import LocalReplication

        clock = SystemClock()
        for url in (config.database_url, config.jobs_database_url):
            if url.startswith("sqlite:///"):
                Path(url.removeprefix("sqlite:///")).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._socket = _listen(config.host, config.port)
        self._store = Store(config.database_url)
        self._vsphere = vsphere or _vsphere(config)
        replication = LocalReplication(config.replication, clock)
        ports = Ports(self._vsphere, azure or _azure(config), replication)
        engine = Engine(config.jobs_database_url, config.server_name)
        self._jobs = Jobs(engine, self._store, ports, VERBS, clock, config.key)
        site = Site(config.masttarget_os, config.paths)
        service = Service(self._store, self._jobs, ports, TcpNetwork(), clock, site)
        interval = config.replication.interval_seconds
        self._schedule = Schedule(self._jobs, self._store, service.record, clock, interval)
        app = api.build(service, self._store, config.token, self._schedule.standing)
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, lifespan="off")
        )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that are really listened on."""
        host, port = self._socket.getsockname()[:2]
        return str(host), int(port)

    def run(self) -> None:
        """Serves; jobs that a killed server left go on. Jobs under way at the end go on at the next start."""
        self._jobs.start()
        self._schedule.start()
        try:
            self._uvicorn.run(sockets=[self._socket])
        finally:
            self._jobs.close()
            self._vsphere.close()
            self._store.close()


def serve(path: Path, announce: Callable[[str, int], None]) -> None:
    """Serves with the settings of the file until SIGTERM or SIGINT; `announce` is told where.

    It leaves the process at once: a step that is under way would hold it, and is run again at the next start anyway.
    Errors: HW-CONF-001, 021, 022, HW-CORE-001.
    """
    server = Server(settings.load(path, os.environ))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(
            number, lambda *_: None
        )  # uvicorn takes them over, and raises them again when it has ended
    announce(*server.address)
    server.run()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _listen(host: str, port: int) -> socket.socket:
    """The listening socket. Errors: `ServerUnready` (HW-CONF-022)."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=ACCEPT_QUEUE)
    except OSError as error:
        raise ServerUnready(address=f"{host}:{port}", reason=error.strerror or str(error)) from error


def _vsphere(config: ConfserverConfig) -> VSphere:
    from confserver.adapters.vsphere import PyvmomiVSphere, VsphereSettings

    told = config.vsphere
    return PyvmomiVSphere(
        VsphereSettings(
            host=told.host,
            port=told.port,
            user=told.user,
            password=told.password,
            ca_file=told.ca_file,
            thumbprint=told.thumbprint or None,
            timeout_seconds=VCENTER_SECONDS,
        )
    )


def _azure(config: ConfserverConfig) -> Azure:
    from confserver.adapters.azure import ResourceManagerAzure
    from confserver.adapters.azure_settings import AzureSettings

    told = config.azure
    return ResourceManagerAzure(
        AzureSettings(
            subscription=told.subscription,
            endpoint=told.endpoint,
            ca_file=told.ca_file,
            token=told.token,
            poll_seconds=float(told.poll_seconds),
        )
    )
