"""What the tests of a room share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from simlab.vcenter import kit, launch, story
from simlab.vcenter.launch import Vcenter
from tests import postgresql


@pytest.fixture(scope="session")
def cluster() -> Iterator[postgresql.Cluster]:
    """A private PostgreSQL."""
    with postgresql.running() as found:
        yield found


@pytest.fixture
def vcenter(tmp_path: Path) -> Iterator[Vcenter]:
    """The stand-in for vCenter, with the site of the story."""
    launch.build()
    with launch.running(story.write(tmp_path, story.site(tmp_path))) as running:
        yield running


@pytest.fixture
def si(vcenter: Vcenter) -> Iterator[Any]:
    """A session of its administrator."""
    with kit.session(vcenter, *story.ADMIN) as instance:
        yield instance


@pytest.fixture
def web(si: Any) -> Any:
    """The VM of the story."""
    return kit.find(si, vim.VirtualMachine, "web")
