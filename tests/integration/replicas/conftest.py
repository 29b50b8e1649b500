"""Several gateways on one real Redis. Those that share containers need a Docker engine, too."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.helpers.redis_server import RedisServer, redis_server
from tests.integration.docker.conftest import IN_CI, engine, is_there, state

__all__ = ["engine", "redis", "state"]

OF_CONTAINERS = ["test_containers.py", "test_identity_of_calls.py"]

collect_ignore = [] if is_there() or os.environ.get(IN_CI) else OF_CONTAINERS
"""A test beside theirs says that they are not run."""


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A Redis of the test's own, with a password."""
    with redis_server() as server:
        yield server
