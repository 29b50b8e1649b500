"""Several gateways on one Redis for tests: in this process or as processes, and clients that go from one to the next as
a balancer would send them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import anyio
from fastmcp.server.auth import AuthProvider

from tests.helpers.asked import ALL, AskedClient
from tests.helpers.gateway import GatewayProcess, ServedGateway, gateway_over_http, gateway_process, patient_toml
from tests.helpers.ports import free_port
from tests.helpers.redis_server import RedisServer
from tests.helpers.rpc import HANDSHAKE, NEWEST

Servers = Mapping[str, Mapping[str, Any]]


@asynccontextmanager
async def replicas(
    redis: RedisServer, servers: Servers, *, auth: AuthProvider | None = None, count: int = 2, **more: Any
) -> AsyncIterator[list[ServedGateway]]:
    """Gateways of this process with the same servers.

    Args:
        more: keys of `[gateway]`.
    """
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            port = free_port()
            toml = patient_toml(servers, store=redis.url, replica_url=f"http://127.0.0.1:{port}", **more)
            made.append(await stack.enter_async_context(gateway_over_http(toml, auth=auth, port=port)))
        yield made


@asynccontextmanager
async def replica_process(redis: RedisServer, servers: Servers, **more: Any) -> AsyncIterator[GatewayProcess]:
    """One replica as a process of its own."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    toml = patient_toml(servers, store=redis.url, replica_url=url, **more)
    async with gateway_process(toml, "--log-level", "info", port=port) as process:
        yield process


class RoundRobin(AskedClient):
    """A client each of whose requests goes to the next of several addresses. `went_to` says where they went."""

    def __init__(self, urls: list[str], http: aiohttp.ClientSession, headers: Mapping[str, str], version: str) -> None:
        self._urls, self.went_to = urls, list[str]()
        super().__init__(http, urls[0], headers, version)

    @property
    def _url(self) -> str:
        self.went_to.append(self._urls[len(self.went_to) % len(self._urls)])
        return self.went_to[-1]

    @_url.setter
    def _url(self, url: str) -> None:
        return None


@asynccontextmanager
async def round_robin(
    urls: list[str], headers: Mapping[str, str] | None = None, *, version: str = NEWEST
) -> AsyncIterator[RoundRobin]:
    """A client that is ready for requests and can be asked everything."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as http:
        client = RoundRobin(urls, http, headers or {}, version)
        client.capabilities = ALL
        if version == HANDSHAKE:
            await client.shake_hands()
        try:
            yield client
        finally:
            with anyio.CancelScope(shield=True):
                await client.end()
