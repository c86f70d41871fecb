"""The data path on one machine: a master target and an agent as processes, datastores as directories.

A cycle is one session: the master target is started for it and ends with it. What a broken cycle left lies in the
journal beside each target, so the next one goes on there.
"""

import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from confserver.adapters.content import content_root, image_root
from confserver.adapters.page_blob import PageBlob
from confserver.adapters.role_process import Masttarget, run_agent
from confserver.config import ReplicationConfig
from confserver.errors import DatastoreUnmapped, JobCancelled, OtherDisk, RoleFailed, SourceUnknown
from confserver.ports import CycleReport, DiskProof, Moved, ReplicaDisk, ReplicaOrder, Stopped
from disks import catalogue
from drcore.clock import Clock
from drcore.units import SECTOR_BYTES

_PATH: Final = re.compile(r"^\[([^\[\]/]+)\] (.+)$")
DISK_IN_USE: Final = "HW-DISKS-010"
HANDOVER_SECONDS: Final = (1.0, 2.0, 5.0, 10.0)
"""Pauses for a disk that a master target of a killed server still holds: it lets go when it sees that it is alone."""


class LocalReplication:
    """See `confserver.ports.Replication`. Any thread; one item is worked on by one job at a time."""

    def __init__(self, config: ReplicationConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._sources = {source.disk: source for source in config.sources}

    def start(self, order: ReplicaOrder) -> None:
        for disk in order.disks:
            path = self._local(disk)
            image = catalogue.open_source(path)
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
        self._place(order).mkdir(mode=0o700, parents=True, exist_ok=True)

    def cycle(self, order: ReplicaOrder, stopped: Stopped, moved: Moved) -> CycleReport:
        sources = []
        for disk in order.disks:
            source = self._sources.get(disk.disk)
            if source is None:
                raise SourceUnknown(disk=disk.disk)
            sources.append((source.path, source.format))
        return self._session(order, sources, stopped, moved)

    def final_cycle(
        self, order: ReplicaOrder, urls: tuple[str, ...], stopped: Stopped, moved: Moved
    ) -> CycleReport:
        """As the port says. The blobs' data ranges are staged in sparse files here, gone afterwards."""
        place = self._place(order)
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        sources = [(place / f"{disk.disk}.raw", "raw") for disk in order.disks]
        try:
            for disk, url, (path, _) in zip(order.disks, urls, sources, strict=True):
                self._stage(disk, url, path, stopped, moved)
            return self._session(order, sources, stopped, moved)
        finally:
            for path, _ in sources:
                path.unlink(missing_ok=True)

    def proof(
        self, order: ReplicaOrder, urls: tuple[str, ...], stopped: Stopped, moved: Moved
    ) -> tuple[DiskProof, ...]:
        proofs = []
        for disk, url in zip(order.disks, urls, strict=True):
            on_bytes = _watch(stopped, moved)
            with ExitStack() as stack:
                blob = PageBlob(disk.disk, url, self._config.blob_ca_file)
                stack.callback(blob.close)
                source = content_root(blob.size, blob.pieces(), on_bytes)
            target = image_root(self._local(disk), on_bytes)
            proofs.append(DiskProof(disk.disk, disk.size, source, target))
        return tuple(proofs)

    def stop(self, order: ReplicaOrder) -> None:
        """As the port says; no role runs between cycles, so there are only files to remove."""
        shutil.rmtree(self._place(order), ignore_errors=True)

    def forget(self, order: ReplicaOrder) -> None:
        """As the port says; the master target keeps no points of published cycles."""
        self.stop(order)

    # One session

    def _session(
        self, order: ReplicaOrder, sources: list[tuple[Path, str]], stopped: Stopped, moved: Moved
    ) -> CycleReport:
        for pause in (*HANDOVER_SECONDS, 0.0):
            try:
                return self._try(order, sources, stopped, moved)
            except RoleFailed as error:
                if error.role_code != DISK_IN_USE or not pause:
                    raise
            self._clock.sleep(pause)
        raise AssertionError

    def _try(
        self, order: ReplicaOrder, sources: list[tuple[Path, str]], stopped: Stopped, moved: Moved
    ) -> CycleReport:
        place = self._place(order)
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings = _write(place / "masttarget.toml", self._masttarget(order))
        with Masttarget(settings, place / "masttarget.log") as masttarget:
            agent = _write(place / "agent.toml", self._agent(order, sources, masttarget.port))
            found = run_agent(agent, place / "agent.log", stopped)
        moved(int(found["bytes_sent"]))
        return CycleReport(
            point=str(found["point"]),
            content_bytes=sum(disk["sectors_sent"] for disk in found["disks"]) * SECTOR_BYTES,
            bytes_sent=int(found["bytes_sent"]),
            seconds=float(found["seconds"]),
            roots=tuple(str(disk["root"]) for disk in found["disks"]),
        )

    def _masttarget(self, order: ReplicaOrder) -> list[Mapping[str, Any]]:
        role = {
            "": "[masttarget]",
            "listen": "127.0.0.1:0",
            "key_file": str(self._config.key_file),
            "state_directory": str(self._place(order)),
        }
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

    def _agent(
        self, order: ReplicaOrder, sources: list[tuple[Path, str]], port: int
    ) -> list[Mapping[str, Any]]:
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
        disks = [
            {"": "[[disk]]", "disk": str(uuid.UUID(disk.disk)), "path": str(path), "format": kind}
            for disk, (path, kind) in zip(order.disks, sources, strict=True)
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

    def _stage(self, disk: ReplicaDisk, url: str, path: Path, stopped: Stopped, moved: Moved) -> None:
        """The file holds what the blob holds, sparse where the blob is. Errors: HW-CONF-007, 011, 018."""
        blob = PageBlob(disk.disk, url, self._config.blob_ca_file)
        try:
            if blob.size != disk.size:
                raise OtherDisk(
                    path=disk.azure_disk,
                    found_uuid=disk.disk,
                    found_bytes=blob.size,
                    wanted_uuid=disk.disk,
                    wanted_bytes=disk.size,
                )
            on_bytes = _watch(stopped, moved)
            with open(path, "wb", opener=_private) as file:
                file.truncate(blob.size)
                for offset, content in blob.pieces():
                    file.seek(offset)
                    file.write(content)
                    on_bytes(offset + len(content))
        finally:
            blob.close()


def _watch(stopped: Stopped, moved: Moved) -> Callable[[int], None]:
    def on_bytes(count: int) -> None:
        if stopped():
            raise JobCancelled()
        moved(count)

    return on_bytes


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
