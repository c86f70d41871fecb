"""The configuration server's settings, read once from a TOML file; docs/configuration-confserver.md has every key.

Credentials are never in that file: it names an environment variable or a file of mode 0600 for each.
"""

import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from confserver.errors import ConfigRefused
from drcore.secret import Secret, read_key_file
from drcore.settings import SettingsError, Table

DEFAULT_STATE: Final = Path("/var/lib/homeward/confserver")
SECRET_BYTES_MAX: Final = 16 * 1024
"""A password, a token or a client secret; certificates are paths."""


@dataclass(frozen=True, slots=True)
class VsphereConfig:
    """The vCenter and the account at it. `ca_file` or `thumbprint` is what its certificate is checked against."""

    host: str
    port: int
    user: str
    password: Secret
    ca_file: Path | None
    thumbprint: str


@dataclass(frozen=True, slots=True)
class AzureConfig:
    """The subscription. Without a token azure-identity finds who asks."""

    subscription: str
    endpoint: str
    token: Secret | None
    ca_file: Path | None
    poll_seconds: int


@dataclass(frozen=True, slots=True)
class SourceConfig:
    """Where a disk of the running machine can be read."""

    disk: str
    path: Path
    format: str


@dataclass(frozen=True, slots=True)
class ReplicationConfig:
    """The data path: where its files go, where datastores are on this machine, how the running disks are read."""

    key_file: Path
    state_directory: Path
    datastores: Mapping[str, Path]
    sources: tuple[SourceConfig, ...]
    bandwidth: int | None
    blob_ca_file: Path | None
    interval_seconds: int = 300
    """From the end of one cycle to the begin of the next: a third of the failback policy's RPO threshold."""
    retention: Path | None = None
    """Where the master target keeps recovery points; None: it keeps none."""
    retention_own_volume: bool = True
    """Whether that has to be a volume of its own (R065 to R071)."""


@dataclass(frozen=True, slots=True)
class ConfserverConfig:
    """All settings of the role."""

    host: str
    port: int
    token: Secret
    database_url: str
    jobs_database_url: str
    server_name: str
    masttarget_os: str
    paths: tuple[tuple[str, int], ...]
    key: Secret
    vsphere: VsphereConfig
    azure: AzureConfig
    replication: ReplicationConfig


class _VariableUnset(SettingsError):
    """The settings name an environment variable that nobody has set."""

    def __init__(self, variable: str, key: str) -> None:
        super().__init__(f"the variable {variable} of {key} is not set")
        self.variable = variable


class _SecretExposed(SettingsError):
    """A file with a secret may be read by others than its owner."""

    def __init__(self, path: Path, mode: int) -> None:
        super().__init__(f"{path} has to be a file of mode 0600, not {mode:04o}")
        self.path = path


def load(path: Path, environment: Mapping[str, str]) -> ConfserverConfig:
    """The settings in the file. Errors: `ConfigRefused` (HW-CONF-001), `KeyFileRefused` (HW-CORE-001)."""
    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
        return _read(found, environment)
    except _VariableUnset as error:
        todo = f"export {error.variable}=... where the server is started"
        raise ConfigRefused(path=str(path), reason=str(error), todo=todo) from error
    except _SecretExposed as error:
        raise ConfigRefused(path=str(path), reason=str(error), todo=f"chmod 0600 {error.path}") from error
    except (OSError, tomllib.TOMLDecodeError, SettingsError, UnicodeDecodeError) as error:
        raise ConfigRefused(path=str(path), reason=str(error), todo="correct the file") from error


def _read(found: dict[str, Any], environment: Mapping[str, str]) -> ConfserverConfig:
    top = Table("", found)
    role = top.table("confserver")
    host, port = role.address("listen", "127.0.0.1:8443")
    state = role.path("state_directory", DEFAULT_STATE)
    token = Secret(_read_secret_file(role.path("token_file")).strip())
    if not token.reveal():
        raise SettingsError("[confserver] token_file has to hold a token")
    paths = tuple(_path(entry) for entry in top.tables("path"))
    vsphere = _vsphere(top.table("vsphere"), environment)
    azure = _azure(top.table("azure"), environment)
    replication = _replication(top.table("replication"), state)
    config = ConfserverConfig(
        host=host,
        port=port,
        token=token,
        database_url=_database(role, "database", state / "items.sqlite", environment),
        jobs_database_url=_database(role, "jobs_database", state / "jobs.sqlite", environment),
        server_name=role.text("server_name", "homeward"),
        masttarget_os=role.choice("masttarget_os", ("", "linux", "windows"), ""),
        paths=paths,
        key=read_key_file(replication.key_file),
        vsphere=vsphere,
        azure=azure,
        replication=replication,
    )
    role.end()
    top.end()
    return config


def _database(role: Table, key: str, default: Path, environment: Mapping[str, str]) -> str:
    """A database's URL: from the variable that `KEY_variable` names (it holds a password), else SQLite in the state."""
    variable = role.text(f"{key}_variable", "")
    if not variable:
        return f"sqlite:///{default}"
    url = environment.get(variable, "")
    if not url:
        raise _VariableUnset(variable, f"{key}_variable")
    # SQLAlchemy takes the driver from the scheme; the one that comes with DBOS is psycopg.
    for plain in ("postgresql://", "postgres://"):
        if url.startswith(plain):
            return "postgresql+psycopg://" + url.removeprefix(plain)
    return url


def _vsphere(table: Table, environment: Mapping[str, str]) -> VsphereConfig:
    host, port = table.address("address")
    config = VsphereConfig(
        host=host,
        port=port,
        user=table.text("user"),
        password=_secret(table, "password", environment),
        ca_file=_optional_path(table, "ca_file"),
        thumbprint=table.text("thumbprint", ""),
    )
    table.end()
    return config


def _azure(table: Table, environment: Mapping[str, str]) -> AzureConfig:
    config = AzureConfig(
        subscription=str(table.uuid("subscription")),
        endpoint=table.text("endpoint", "https://management.azure.com"),
        token=_optional_secret(table, "token", environment),
        ca_file=_optional_path(table, "ca_file"),
        poll_seconds=table.number("poll_seconds", 5, 1, 300),
    )
    table.end()
    return config


def _path(table: Table) -> tuple[str, int]:
    found = table.address("address")
    table.end()
    return found


def _optional_path(table: Table, key: str) -> Path | None:
    # An absent path and an empty text are the same to the operator; anything else has to be absolute.
    text = table.text(key, "")
    if not text:
        return None
    if not Path(text).is_absolute():
        raise SettingsError(f"{key} has to be an absolute path, not {text!r}")
    return Path(text)


def _replication(table: Table, state: Path) -> ReplicationConfig:
    datastores = {}
    for store in table.tables("datastore"):
        datastores[store.text("name")] = store.path("directory")
        store.end()
    sources = tuple(_source(entry) for entry in table.tables("source"))
    config = ReplicationConfig(
        key_file=table.path("key_file"),
        state_directory=table.path("state_directory", state / "replication"),
        datastores=datastores,
        sources=sources,
        bandwidth=table.rate("bandwidth"),
        blob_ca_file=_optional_path(table, "blob_ca_file"),
        interval_seconds=table.number("interval_seconds", 300, 5, 86400),
        retention=_optional_path(table, "retention"),
        retention_own_volume=table.flag("retention_own_volume", default=True),
    )
    table.end()
    return config


def _source(table: Table) -> SourceConfig:
    config = SourceConfig(table.uuid("disk").hex, table.path("path"), table.text("format", ""))
    table.end()
    return config


def _optional_secret(table: Table, name: str, environment: Mapping[str, str]) -> Secret | None:
    """The secret that `NAME_variable` or `NAME_file` leads to; None when neither key is there."""
    variable, file = table.text(f"{name}_variable", ""), table.text(f"{name}_file", "")
    if variable and file:
        raise SettingsError(f"{name}_variable and {name}_file exclude each other")
    if file:
        return Secret(_read_secret_file(Path(file)).strip())
    if not variable:
        return None
    value = environment.get(variable, "")
    if not value:
        raise _VariableUnset(variable, f"{name}_variable")
    return Secret(value.encode())


def _secret(table: Table, name: str, environment: Mapping[str, str]) -> Secret:
    found = _optional_secret(table, name, environment)
    if found is None:
        raise SettingsError(f"{name}_variable or {name}_file is missing")
    return found


def _read_secret_file(path: Path) -> bytes:
    """The file's content, if only its owner may read it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise SettingsError(f"{path} has to be a file")
        if stat.S_IMODE(mode) & 0o077:
            raise _SecretExposed(path, stat.S_IMODE(mode))
        return os.read(descriptor, SECRET_BYTES_MAX)
    finally:
        os.close(descriptor)
