"""The agent's sources: a path on this machine, or a signed URL out of the environment."""

from pathlib import Path

import pytest

from agent import config
from agent.errors import ConfigRefused

URL = "https://account.blob.example/container/disk?sig=very-secret"
HEAD = """
[agent]
masttarget = "10.0.0.5:9443"
key_file = "/etc/homeward/homeward.key"
item = "7b0c9f6e-54a5-4a52-9d0e-2f1f5f0a6a11"
blob_ca_file = "/etc/homeward/ca.pem"

[[disk]]
disk = "f3f1c9c2-0a73-4a0d-8c0e-6f2f0f5b7a01"
"""


def load(folder: Path, keys: str, environment: dict[str, str]) -> config.AgentConfig:
    path = folder / "agent.toml"
    path.write_text(HEAD + keys)
    return config.load(path, environment)


def test_a_signed_url_comes_from_the_environment_and_shows_itself_nowhere(tmp_path: Path) -> None:
    found = load(tmp_path, 'url_variable = "DISK_URL"', {"DISK_URL": URL})
    (disk,) = found.disks
    assert disk.url is not None
    assert (disk.url.reveal().decode(), disk.path) == (URL, None)
    assert "very-secret" not in repr(found)
    assert found.blob_ca_file == Path("/etc/homeward/ca.pem")


@pytest.mark.parametrize(
    ("keys", "environment", "reason"),
    [
        ('url_variable = "DISK_URL"', {}, "DISK_URL of url_variable is not set"),
        ('url_variable = "DISK_URL"\npath = "/disk"', {"DISK_URL": URL}, "excludes path"),
        ('url_variable = "DISK_URL"\nformat = "raw"', {"DISK_URL": URL}, "excludes path"),
        (f'url = "{URL}"', {}, "path is missing"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused_without_showing_a_url(
    tmp_path: Path, keys: str, environment: dict[str, str], reason: str
) -> None:
    with pytest.raises(ConfigRefused) as caught:
        load(tmp_path, keys, environment)
    assert reason in str(caught.value)
    assert "very-secret" not in str(caught.value)
