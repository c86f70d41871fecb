"""The data path on one machine: a master target and an agent as processes, datastores as directories.

A cycle is one session: the master target is started for it and ends with it. What a broken cycle left lies in the
journal beside each target, so the next one goes on there.
"""

import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from confserver.adapters.role_process import Masttarget, agent_verb, drop_points, failed, masttarget_verb, run
from confserver.config import ReplicationConfig
from confserver.errors import DatastoreUnmapped, JobCancelled, OtherDisk, RoleFailed, SourceUnknown
from confserver.ports import CycleReport, DiskProof, Moved, ReplicaDisk, ReplicaOrder, Standing, Stopped
from disks import catalogue
from drcore.clock import Clock
from drcore.errors import HomewardError
from drcore.secret import Secret
from drcore.units import SECTOR_BYTES

_Found = TypeVar("_Found")

_PATH: Final = re.compile(r"^\[([^\[\]/]+)\] (.+)$")
DISK_IN_USE: Final = "HW-DISKS-010"
HANDOVER_SECONDS: Final = (1.0, 2.0, 5.0, 10.0)
"""Pauses for a disk that a master target of a killed server still holds: it lets go when it sees that it is alone."""

STOPPED_SECONDS: Final = 0.5
"""While it waits, it looks so often whether the job is cancelled."""


class LocalReplication:
    """See `confserver.ports.Replication`. Any thread; one item is worked on by one job at a time."""

    def __init__(self, config: ReplicationConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._sources = {source.disk: source for source in config.sources}

    def generation(self, order: ReplicaOrder) -> int:
        # In a directory of its own: a question leaves nothing behind and meets no session that is under way.
        with tempfile.TemporaryDirectory(prefix="homeward-") as scratch:
            settings = _write(Path(scratch) / "masttarget.toml", self._masttarget(order))
            (found,) = run([masttarget_verb("show", settings)], _never, _unwatched)
        return max((int(disk["generation"]) for disk in found["disks"]), default=0)

    def start(self, order: ReplicaOrder) -> None:
        def recognise() -> None:
            for disk in order.disks:
                self._recognise(disk)

        self._patiently(recognise)
        self.fence(order)

    def fence(self, order: ReplicaOrder) -> None:
        settings = self._write_masttarget(order)

        def adopt() -> None:
            verb = masttarget_verb("adopt", settings, "--generation", str(order.generation))
            run([verb], _never, _unwatched)

        self._patiently(adopt)

    def cycle(self, order: ReplicaOrder, stopped: Stopped, moved: Moved) -> CycleReport:
        sources = []
        for disk in order.disks:
            source = self._sources.get(disk.disk)
            if source is None:
                raise SourceUnknown(disk=disk.disk)
            sources.append({"path": str(source.path), "format": source.format})
        return self._session(order, _Sources(sources), stopped, moved)

    def final_cycle(
        self, order: ReplicaOrder, urls: tuple[Secret, ...], stopped: Stopped, moved: Moved
    ) -> CycleReport:
        """As the port says; the agent reads the blobs themselves, only where their page ranges hold data."""
        return self._session(order, _signed(urls), stopped, moved)

    def proof(
        self, order: ReplicaOrder, urls: tuple[Secret, ...], stopped: Stopped, moved: Moved
    ) -> tuple[DiskProof, ...]:
        sources = _signed(urls)
        targets = self._write_masttarget(order)
        settings = _write(self._place(order) / "agent.toml", self._agent(order, sources, 0))

        def prove() -> list[dict[str, Any]]:
            verbs = [
                agent_verb("prove", settings, sources.environment),
                masttarget_verb("prove", targets, watched=True),
            ]
            return run(verbs, stopped, moved)

        ours, theirs = self._patiently(prove, stopped, moved)
        return tuple(
            DiskProof(disk.disk, disk.size, source["content_root"], target["content_root"])
            for disk, source, target in zip(order.disks, ours["disks"], theirs["disks"], strict=True)
        )

    def stop(self, order: ReplicaOrder) -> None:
        """As the port says; no role runs between cycles, so there are only files to remove."""
        shutil.rmtree(self._place(order), ignore_errors=True)

    def forget(self, order: ReplicaOrder) -> None:
        """As the port says. Errors: `RoleFailed` where somebody still reads from a point, or the volume is away."""
        if self._config.retention is not None:
            run([drop_points(self._write_masttarget(order), order.item)], _never, _unwatched)
        self.stop(order)

    # One session

    def _session(
        self, order: ReplicaOrder, sources: "_Sources", stopped: Stopped, moved: Moved
    ) -> CycleReport:
        return self._patiently(lambda: self._try(order, sources, stopped, moved), stopped, moved)

    def _patiently(
        self, action: Callable[[], _Found], stopped: Stopped | None = None, moved: Moved | None = None
    ) -> _Found:
        """What the action answers once nobody else uses the disks. Errors: its own; `JobCancelled` while it waits."""
        for pause in HANDOVER_SECONDS:
            try:
                return action()
            except HomewardError as error:
                code = error.role_code if isinstance(error, RoleFailed) else error.code
                if code != DISK_IN_USE:
                    raise
                why = error.role_what if isinstance(error, RoleFailed) else error.sentence("what")
                who = error.role_found if isinstance(error, RoleFailed) else error.sentence("found")
            if moved is not None:
                moved(Standing(0, 0, 0, f"waits for up to {sum(HANDOVER_SECONDS):.0f} s: {why}: {who}"))
            self._pause(pause, stopped or _never)
        return action()

    def _pause(self, seconds: float, stopped: Stopped) -> None:
        """So much time has passed. Errors: `JobCancelled` (HW-CONF-007)."""
        deadline = self._clock.monotonic() + seconds
        while (left := deadline - self._clock.monotonic()) > 0:
            if stopped():
                raise JobCancelled()
            self._clock.sleep(min(left, STOPPED_SECONDS))

    def _try(self, order: ReplicaOrder, sources: "_Sources", stopped: Stopped, moved: Moved) -> CycleReport:
        settings = self._write_masttarget(order)
        with Masttarget(settings, settings.with_name("masttarget.log")) as masttarget:
            agent = _write(self._place(order) / "agent.toml", self._agent(order, sources, masttarget.port))
            try:
                (found,) = run([agent_verb("sync", agent, sources.environment)], stopped, moved)
            except RoleFailed:
                masttarget.require_alive()
                raise
        return CycleReport(
            point=str(found["point"]),
            content_bytes=sum(disk["sectors_sent"] for disk in found["disks"]) * SECTOR_BYTES,
            bytes_sent=int(found["bytes_sent"]),
            seconds=float(found["seconds"]),
            roots=tuple(str(disk["root"]) for disk in found["disks"]),
        )

    def _recognise(self, disk: ReplicaDisk) -> None:
        """The disk at its path has the plan's UUID and size. Errors: `OtherDisk` (HW-CONF-011), `RoleFailed`."""
        path = self._local(disk)
        try:
            image = catalogue.open_source(path)
        except HomewardError as error:  # what the master target would say of it, in the words of a job
            raise failed("master target", error.as_json()) from error
        try:
            found = catalogue.identity(image)
        finally:
            image.close()
        own = (found.disk_uuid or "").replace("-", "").replace(" ", "").lower()
        if own != disk.disk or found.size != disk.size:
            raise OtherDisk(
                path=disk.path,
                found_uuid=own or "none",
                found_bytes=found.size,
                wanted_uuid=disk.disk,
                wanted_bytes=disk.size,
            )

    def _write_masttarget(self, order: ReplicaOrder) -> Path:
        place = self._place(order)
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _write(place / "masttarget.toml", self._masttarget(order))

    def _masttarget(self, order: ReplicaOrder) -> list[Mapping[str, Any]]:
        role: dict[str, Any] = {
            "": "[masttarget]",
            "listen": "127.0.0.1:0",
            "key_file": str(self._config.key_file),
            "state_directory": str(self._place(order)),
        }
        if self._config.retention is not None:
            role["retention"] = str(self._config.retention)
            role["retention_own_volume"] = self._config.retention_own_volume
        # Adopted here, because `start` held UUID and size against the plan (contract of adoption).
        disks = [
            {
                "": "[[disk]]",
                "item": order.item,
                "disk": str(uuid.UUID(disk.disk)),
                "path": str(self._local(disk)),
                "adopt": True,
            }
            for disk in order.disks
        ]
        return [role, *disks]

    def _agent(self, order: ReplicaOrder, sources: "_Sources", port: int) -> list[Mapping[str, Any]]:
        role: dict[str, Any] = {
            "": "[agent]",
            "masttarget": f"127.0.0.1:{port}",
            "key_file": str(self._config.key_file),
            "item": order.item,
            "generation": order.generation,
            "state_directory": str(self._place(order)),
            # The master target is this session's own: when it is gone, so is the session.
            "reconnects": 0,
        }
        if self._config.bandwidth is not None:
            role["bandwidth"] = str(self._config.bandwidth)
        if self._config.blob_ca_file is not None:
            role["blob_ca_file"] = str(self._config.blob_ca_file)
        disks = [
            {"": "[[disk]]", "disk": str(uuid.UUID(disk.disk)), **source}
            for disk, source in zip(order.disks, sources.keys, strict=True)
        ]
        return [role, *disks]

    # Files

    def _place(self, order: ReplicaOrder) -> Path:
        return self._config.state_directory / str(uuid.UUID(order.item))

    def _local(self, disk: ReplicaDisk) -> Path:
        """The disk's file on this machine. Errors: `DatastoreUnmapped` (HW-CONF-012)."""
        found = _PATH.match(disk.path)
        directory = self._config.datastores.get(found[1]) if found else None
        if found is None or directory is None:
            raise DatastoreUnmapped(path=disk.path, reason="a datastore without a directory")
        path = (directory / found[2]).resolve()
        if not path.is_relative_to(directory.resolve()):
            raise DatastoreUnmapped(path=disk.path, reason="a path that leads out of its datastore")
        return path


@dataclass(frozen=True, slots=True)
class _Sources:
    """Where the agent reads: the keys of each `[[disk]]`, and the environment that holds what no file may hold."""

    keys: list[dict[str, str]]
    environment: dict[str, str] = field(default_factory=dict, repr=False)


def _signed(urls: tuple[Secret, ...]) -> _Sources:
    variables = [f"HOMEWARD_SOURCE_URL_{number}" for number in range(len(urls))]
    texts = [url.reveal().decode() for url in urls]
    return _Sources(
        [{"url_variable": variable} for variable in variables], dict(zip(variables, texts, strict=True))
    )


def _never() -> bool:
    return False


def _unwatched(_: object) -> None:
    pass


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _write(path: Path, tables: list[Mapping[str, Any]]) -> Path:
    """The tables as TOML; the key "" of each is its heading."""
    lines = []
    for table in tables:
        lines.append(table[""])
        # A JSON string, number or truth value is a TOML one of the same meaning.
        lines += [f"{key} = {json.dumps(value)}" for key, value in table.items() if key]
    with open(path, "w", opener=_private) as file:
        file.write("\n".join([*lines, ""]))
    return path
