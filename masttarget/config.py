"""The master target's settings, read once from a TOML file. docs/configuration.md describes every key."""

import ipaddress
import re
import uuid
from pathlib import Path
from typing import Any, Final

from drcore.limits import RETENTION_SECONDS, RPO_SECONDS
from drcore.record import Record
from drcore.settings import SettingsError, Table
from masttarget.errors import ConfigRefused
from wireproto.barrier import GROUP_NAME_BYTES_MAX

_UNIT: Final = {"m": 60.0, "h": 3600.0, "d": 86400.0}
DISK_UUID = "disk-uuid:"
"""What a `path` begins with that is a VMware disk UUID."""
DEFAULT_STATE = Path("/var/lib/homeward/masttarget")


class DiskConfig(Record):
    """One target disk. `create` is a format's name or empty; `journal` is where its journal directory goes."""

    item: uuid.UUID
    disk: uuid.UUID
    path: Path
    format: str
    create: str
    allow_larger: bool
    adopt: bool
    journal: Path
    disk_uuid: str = ""
    """The VMware disk UUID (32 hexadecimal digits) that the device is found by; empty where `path` is one."""
    group: str = ""
    """The replication group whose members have common points; empty: none."""
    keep_record: bool = False
    """Whether identity, generation and session number outlive a published cycle (a sync of its own leaves nothing)."""


class MasttargetConfig(Record):
    """All settings of the role."""

    host: str
    port: int
    key_file: Path
    state_directory: Path
    disks: tuple[DiskConfig, ...] = ()
    retention: Path | None = None
    """Where old contents and recovery points are kept; None: nowhere."""
    retention_own_volume: bool = True
    """Whether that has to be a volume of its own (R065 to R071)."""
    retention_seconds: float = RETENTION_SECONDS
    retention_ladder: tuple[tuple[float, float], ...] = ()
    """(age, distance) in seconds: of points older than the one, one in the other is kept. Empty: every point is."""
    verify_points: bool = False
    """Whether what was written is read again before a point is published, for its content root."""
    rpo_seconds: float | None = None
    """From which lag on somebody is told; None: nobody watches (a sync that runs once)."""
    metrics: tuple[str, int] | None = None
    """Host and port of this machine where Prometheus may ask."""


def load(path: Path) -> MasttargetConfig:
    """The settings in the file. Errors: `ConfigRefused` (HW-MT-014); an unknown key is one."""
    import tomllib  # here: `sync` has no settings file and would wait for it

    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
        return _read(found)
    except (OSError, tomllib.TOMLDecodeError, SettingsError, UnicodeDecodeError) as error:
        raise ConfigRefused(path=str(path), reason=str(error)) from error


def _read(found: dict[str, Any]) -> MasttargetConfig:
    top = Table("", found)
    role = top.table("masttarget")
    host, port = role.address("listen", "127.0.0.1:9443")
    state = role.path("state_directory", DEFAULT_STATE)
    key_file = role.path("key_file")
    keep_record = role.flag("keep_record", default=True)
    retention = role.path("retention") if role.has("retention") else None
    own_volume = role.flag("retention_own_volume", default=True)
    hours = role.number("retention_hours", RETENTION_SECONDS // 3600, 1, 24 * 366)
    ladder = _ladder(role.text("retention_ladder", ""), hours * 3600.0)
    verify_points = role.flag("verify_points", default=True)
    metrics = _loopback(role) if role.has("metrics") else None
    role.end()
    disks = tuple(_disk(table, state, keep_record or retention is not None) for table in top.tables("disk"))
    top.end()
    if len({disk.disk for disk in disks}) != len(disks):
        raise SettingsError("two [[disk]] tables have the same disk UUID")
    if len({disk.path for disk in disks}) != len(disks):
        raise SettingsError("two [[disk]] tables have the same path")
    _check_groups(disks, retention)
    return MasttargetConfig(
        host, port, key_file, state, disks, retention, own_volume, hours * 3600.0, ladder, verify_points,
        RPO_SECONDS, metrics,
    )  # fmt: skip


def _ladder(text: str, seconds: float) -> tuple[tuple[float, float], ...]:
    """The rungs in `2h:30m, 12h:4h`; each is older than the one before, keeps fewer, and lies in the window."""
    steps: list[tuple[float, float]] = []
    for rung in text.split(",") if text.strip() else ():
        told = re.fullmatch(r"\s*(\d{1,5})([mhd]):(\d{1,5})([mhd])\s*", rung)
        if told is None:
            raise SettingsError(f"[masttarget] retention_ladder: {rung.strip()!r} is no rung such as 2h:30m")
        step = (int(told[1]) * _UNIT[told[2]], int(told[3]) * _UNIT[told[4]])
        before = steps[-1] if steps else (-1.0, 0.0)
        if not (before[0] < step[0] < seconds and before[1] < step[1]):
            reason = "has to be older than the one before, keep fewer points, and lie within retention_hours"
            raise SettingsError(f"[masttarget] retention_ladder: {rung.strip()!r} {reason}")
        steps.append(step)
    return tuple(steps)


def _check_groups(disks: tuple[DiskConfig, ...], retention: Path | None) -> None:
    """Groups make sense: an item is in one or in none, and there is somewhere to note what becomes a common point."""
    for disk in disks:
        if any(other.item == disk.item and other.group != disk.group for other in disks):
            raise SettingsError(f"the [[disk]] tables of item {disk.item} name different groups")
    if retention is None and any(disk.group for disk in disks):
        raise SettingsError("a [[disk]] group needs [masttarget] retention: common points are kept there")


def _loopback(role: Table) -> tuple[str, int]:
    """An address that only this machine reaches: whoever may ask for metrics is not asked who they are."""
    host, port = role.address("metrics")
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise SettingsError(
            f"[masttarget] metrics has to be a port of this machine (127.0.0.1, [::1]), not {host!r}"
        )
    return host, port


def _disk(table: Table, state: Path, keep_record: bool) -> DiskConfig:
    disk_uuid, path = _place(table)
    disk = table.uuid("disk")
    config = DiskConfig(
        item=table.uuid("item"),
        disk=disk,
        path=path,
        format=table.text("format", ""),
        create=table.text("create", ""),
        allow_larger=table.flag("allow_larger", default=False),
        adopt=table.flag("adopt", default=False),
        journal=state / f"{disk}.homeward" if disk_uuid else journal_directory(path, state, disk),
        disk_uuid=disk_uuid,
        group=table.text("group", ""),
        keep_record=keep_record,
    )
    if len(config.group.encode()) > GROUP_NAME_BYTES_MAX or not config.group.isprintable():
        raise SettingsError(f"[[disk]] group has to be printable, of at most {GROUP_NAME_BYTES_MAX} bytes")
    table.end()
    if disk_uuid and (config.create or config.format not in ("", "raw")):
        raise SettingsError("[disk] a disk that is found by its UUID is a device: raw, and never created")
    return config


def _place(table: Table) -> tuple[str, Path]:
    """The VMware disk UUID, if that is what `path` has, and the path (of such a disk only a name for people)."""
    text = table.text("path")
    if not text.startswith(DISK_UUID):
        path = Path(text)
        if not path.is_absolute():
            raise SettingsError(f"[disk] path has to be an absolute path or {DISK_UUID}UUID, not {text!r}")
        return "", path
    digits = re.sub(r"[-\s]", "", text.removeprefix(DISK_UUID)).lower()
    if not re.fullmatch(r"[0-9a-f]{32}", digits):
        raise SettingsError(f"[disk] path: {text!r} has no UUID of 32 hexadecimal digits")
    return digits, Path(DISK_UUID + digits)


def journal_directory(path: Path, state: Path, disk: uuid.UUID) -> Path:
    """Where the journal of the target at `path` goes.

    A file's lies beside it, so that it moves with the datastore; a device has no beside.
    """
    return state / f"{disk}.homeward" if path.is_block_device() else path.with_name(path.name + ".homeward")
