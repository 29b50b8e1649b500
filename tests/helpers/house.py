"""A registry over fake backends behind a real root server: all of the gateway but its files, its HTTP and its wires."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from fastmcp import Client

from composition.registry import Registry
from composition.relay import Relay
from composition.root import RootMiddleware
from composition.welcome import Welcome
from providers import low_level, verbatim
from providers.caller import ClientSessions
from providers.connection import PoolLimits
from providers.direct import DirectServer
from providers.identity import Identity
from providers.parking import ParkingLot
from providers.pool import McpConnectionPool
from providers.resource import McpServerResource
from providers.store import InMemoryMcpResourceStore
from providers.wire import OpenWire
from tests.helpers.fakes import FakeBackend, client_of

OPERATOR = Identity("operator", "Operator", frozenset({"mcp.admin"}))


class House:
    """The parts, put together as the gateway does it.

    Args:
        backends: a server each, with its `resource()` unless `records` has another for it.
        local: the local user, or None where callers are signed in.
    """

    def __init__(
        self,
        *backends: FakeBackend,
        records: list[McpServerResource] | None = None,
        local: Identity | None = OPERATOR,
        **limits: Any,
    ) -> None:
        self.backends = {backend.name: backend for backend in backends}
        self.wires_made: list[str] = []
        self.store = InMemoryMcpResourceStore(records or [backend.resource() for backend in backends])
        self.pool = McpConnectionPool(PoolLimits()._replace(**limits))
        self.sessions, self.parking = ClientSessions(), ParkingLot()
        self.registry = Registry(
            pool=self.pool,
            sessions=self.sessions,
            wire_for=self._wire_for,
            local=local,
            when_used=self._used,
            parking=self.parking,
        )
        self.registry.sync(self.store.snapshot)
        self.sessions.on_end.append(self._session_ended)
        self.root = RootMiddleware(self.registry)
        middleware = [self.root, Welcome("House", self.registry)]
        self.mcp = DirectServer(self.registry, name="House", middleware=middleware, mask_error_details=True)
        Relay(self.registry, self.pool).serve(self.mcp)
        low_level.use_input_schema_lookup(self.mcp, self.registry.input_schema)
        verbatim.install(self.mcp)

    def _wire_for(self, resource: McpServerResource) -> OpenWire:
        self.wires_made.append(resource.name)
        return self.backends[resource.name].open_wire

    async def _used(self) -> None:
        return None

    async def _session_ended(self, session: str) -> None:
        await self.pool.end_session(session)
        self.registry.session_ended(session)

    def client(self, mode: str = "legacy", **handlers: Any) -> Client[Any]:
        return client_of(self.mcp, mode, **handlers)


@asynccontextmanager
async def house_of(*backends: FakeBackend, **options: Any) -> AsyncIterator[House]:
    """A house that runs."""
    house = House(*backends, **options)
    async with anyio.create_task_group() as tasks:
        async with house.pool, house.parking:
            tasks.start_soon(house.registry.run, house.store, tasks)
            await anyio.lowlevel.checkpoint()
            yield house
        tasks.cancel_scope.cancel()
    house.registry.stopped()
