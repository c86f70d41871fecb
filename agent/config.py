"""The agent's settings, read once from a TOML file. docs/configuration.md describes every key."""

import os
import uuid
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from agent.errors import ConfigRefused
from disks.disk import Format
from drcore.limits import APP_CONSISTENT_SECONDS, GROUP_FREEZE_SECONDS_MAX, LANES_MAX, SCRIPT_SECONDS
from drcore.record import Record
from drcore.secret import Secret
from drcore.settings import SettingsError, Table
from wireproto.barrier import GROUP_NAME_BYTES_MAX

DEFAULT_STATE = Path("/var/lib/homeward/agent")
_FORMATS = ("", *(kind.value for kind in Format))


class Compression(Enum):
    """Whether content is compressed before it is sealed; `auto` measures what pays."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class SourceConfig(Record):
    """One source disk: a path on this machine, or a signed URL of a page blob; then `path` is None."""

    disk: uuid.UUID
    path: Path | None
    format: Format | None
    url: Secret | None = None


class QuiesceConfig(Record):
    """How a snapshot of one instant is made. Programs are lists of words, without a shell; empty: none."""

    snapshot: tuple[str, ...]
    release: tuple[str, ...] = ()
    pre_freeze: tuple[str, ...] = ()
    post_thaw: tuple[str, ...] = ()
    freeze: tuple[Path, ...] = ()
    """Mount points of the file systems that lie on the sources."""
    script_seconds: float = SCRIPT_SECONDS
    freeze_seconds: float = GROUP_FREEZE_SECONDS_MAX
    interval_seconds: int = APP_CONSISTENT_SECONDS
    """An app-consistent point is due so often; 0: never."""


class AgentConfig(Record):
    """All settings of the role. `bandwidth` is in bytes a second; with 0 `lanes` their number is measured."""

    host: str
    port: int
    key_file: Path
    state_directory: Path
    item: uuid.UUID
    disks: tuple[SourceConfig, ...]
    generation: int = 1
    bandwidth: int | None = None
    compression: Compression = Compression.AUTO
    lanes: int = 1
    reconnects: int = 0
    group: str = ""
    """The replication group whose members have common points; empty: none."""
    quiesce: QuiesceConfig | None = None
    """What makes the snapshot that is read; None: the sources are read as they are."""
    blob_ca_file: Path | None = None
    """Certificates to trust for signed URLs (PEM); the system's if None."""


def load(path: Path, environment: Mapping[str, str] | None = None) -> AgentConfig:
    """The settings in the file, signed URLs from the environment.

    Errors: `ConfigRefused` (HW-AGENT-001); an unknown key is one.
    """
    import tomllib  # here: `sync` has no settings file and would wait for it

    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
        return _read(found, os.environ if environment is None else environment)
    except (OSError, tomllib.TOMLDecodeError, SettingsError, UnicodeDecodeError) as error:
        raise ConfigRefused(path=str(path), reason=str(error)) from error


def _read(found: dict[str, Any], environment: Mapping[str, str]) -> AgentConfig:
    top = Table("", found)
    role = top.table("agent")
    host, port = role.address("masttarget")
    disks = tuple(_disk(table, environment) for table in top.tables("disk"))
    quiesce = _quiesce(top.table("quiesce")) if top.has("quiesce") else None
    top.end()
    if not disks:
        raise SettingsError("no [[disk]] table")
    if len({disk.disk for disk in disks}) != len(disks):
        raise SettingsError("two [[disk]] tables have the same disk UUID")
    config = AgentConfig(
        host=host,
        port=port,
        key_file=role.path("key_file"),
        state_directory=role.path("state_directory", DEFAULT_STATE),
        item=role.uuid("item"),
        disks=disks,
        generation=role.number("generation", 1, 0, 2**63 - 1),
        bandwidth=role.rate("bandwidth"),
        compression=Compression(role.choice("compression", tuple(c.value for c in Compression), "auto")),
        lanes=role.number("lanes", 0, 0, LANES_MAX),
        reconnects=role.number("reconnects", 5, 0, 1000),
        group=role.text("group", ""),
        quiesce=quiesce,
        blob_ca_file=role.path("blob_ca_file") if role.has("blob_ca_file") else None,
    )
    role.end()
    if config.group and quiesce is not None:
        raise SettingsError(
            "[quiesce] is for items without a [agent] group, whose points have an instant of their own: take the "
            "group's machines down, or take snapshots of all of them at one instant before their agents start and "
            "name these as paths; for app-consistent points of this machine alone leave group out"
        )
    if len(config.group.encode()) > GROUP_NAME_BYTES_MAX or not config.group.isprintable():
        raise SettingsError(f"[agent] group has to be printable, of at most {GROUP_NAME_BYTES_MAX} bytes")
    return config


def _quiesce(table: Table) -> QuiesceConfig:
    programs = {key: table.words(key) for key in ("snapshot", "release", "pre_freeze", "post_thaw")}
    for key, words in programs.items():
        if words and not Path(words[0]).is_absolute():
            raise SettingsError(f"[quiesce] {key}: {words[0]!r} is no absolute path of a program")
    if not programs["snapshot"]:
        raise SettingsError("[quiesce] snapshot is missing: what changes can only be read from a snapshot")
    mounts = tuple(Path(word) for word in table.words("freeze"))
    if not all(mount.is_absolute() for mount in mounts) or len(set(mounts)) != len(mounts):
        raise SettingsError("[quiesce] freeze has to be absolute mount points, each once")
    config = QuiesceConfig(
        **programs,
        freeze=mounts,
        script_seconds=float(table.number("script_seconds", SCRIPT_SECONDS, 1, 3600)),
        freeze_seconds=float(
            table.number("freeze_seconds", int(GROUP_FREEZE_SECONDS_MAX), 1, int(GROUP_FREEZE_SECONDS_MAX))
        ),
        interval_seconds=table.number(
            "app_consistent_interval_seconds", APP_CONSISTENT_SECONDS, 0, 7 * 86400
        ),
    )
    table.end()
    return config


def _disk(table: Table, environment: Mapping[str, str]) -> SourceConfig:
    disk, told = table.uuid("disk"), table.choice("format", _FORMATS, "")
    variable = table.text("url_variable", "")
    if variable and (told or table.has("path")):
        raise SettingsError("[disk] url_variable excludes path and format: a page blob is a fixed VHD")
    if variable and not environment.get(variable):
        raise SettingsError(f"the variable {variable} of url_variable is not set")
    if variable:
        config = SourceConfig(disk, None, None, Secret(environment[variable].encode()))
    else:
        config = SourceConfig(disk, table.path("path"), Format(told) if told else None)
    table.end()
    return config
