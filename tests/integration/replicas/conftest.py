"""Several gateways on one real Redis."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.redis_server import RedisServer, redis_server


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A Redis of the test's own, with a password."""
    with redis_server() as server:
        yield server
