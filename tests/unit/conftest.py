"""What the tests of a room share."""

from collections.abc import Iterator

import pytest

from tests import postgresql


@pytest.fixture(scope="session")
def cluster() -> Iterator[postgresql.Cluster]:
    """A private PostgreSQL."""
    with postgresql.running() as found:
        yield found
