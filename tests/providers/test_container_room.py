"""Where room for one more container comes from: of all servers, the container that was idle longest."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from providers.caller import Caller
from providers.connection import ConnectionState, Key, PooledConnection, PoolLimits, Target
from providers.container_launcher import ContainerLauncher
from providers.container_managers import ContainerOptions
from providers.container_slots import Idle
from providers.container_supervisor import ContainerSupervisor
from providers.pool import McpConnectionPool
from providers.remote import streamable_http_wire
from providers.resource import McpServerResource
from providers.wire import OpenWire
from tests.helpers.containers import over_stdio, record

pytestmark = pytest.mark.core


class Pool:
    """A pool with connections to containers over stdio, idle since then."""

    limits = PoolLimits()

    def __init__(self, **idle_since: float) -> None:
        self.retired: list[str] = []
        self._idle_since = idle_since

    def connections(self, server: str | None = None) -> list[PooledConnection]:
        return [self._connection(name, since) for name, since in self._idle_since.items() if name not in self.retired]

    def _connection(self, name: str, since: float) -> PooledConnection:
        resource = record(name, over_stdio()).model_copy(update={"keep": name == "kept"})
        opener, open_wire = cast("Caller", None), cast("OpenWire", None)
        target, key = Target(resource, 1, open_wire), Key(name, 1, "s1;modern;")
        return PooledConnection(target, key, opener, since, since, since, ConnectionState.IDLE)

    def retire(self, connection: PooledConnection) -> None:
        self.retired.append(connection.server)


def supervisor(folder: Path, pool: Pool) -> ContainerSupervisor:
    options = ContainerOptions(folder / "servers.toml", folder / "state", max_containers=2)

    async def nothing_secret(resource: McpServerResource) -> McpServerResource:
        return resource

    connections = cast("McpConnectionPool", pool)
    return ContainerSupervisor(options, connections, streamable_http_wire, lambda _: None, nothing_secret)


def over_http_since(*since: float, stopped: list[float]) -> ContainerLauncher:
    def idle() -> list[Idle]:
        return [Idle(moment, partial(stopped.append, moment)) for moment in since if moment not in stopped]

    launcher: Any = SimpleNamespace(idle=idle, end_scope=lambda scope: None)
    return cast("ContainerLauncher", launcher)


async def test_the_container_that_was_idle_longest_makes_room_whichever_servers_it_is(tmp_path: Path) -> None:
    pool, stopped = Pool(files=3.0), list[float]()
    rooms = supervisor(tmp_path, pool)
    rooms.launchers.append(over_http_since(5.0, 4.0, stopped=stopped))
    rooms.launchers.append(over_http_since(2.0, stopped=stopped))
    order: list[Any] = []
    while rooms._make_room():
        order.append((list(stopped), list(pool.retired)))
    assert order == [([2.0], []), ([2.0], ["files"]), ([2.0, 4.0], ["files"]), ([2.0, 4.0, 5.0], ["files"])]


async def test_a_container_that_is_to_be_kept_makes_no_room(tmp_path: Path) -> None:
    pool = Pool(kept=1.0)
    assert not supervisor(tmp_path, pool)._make_room()
    assert not pool.retired
