"""What a client hears by itself: one `subscriptions/listen` stream by hand, and the test server reached in each way."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from tests.helpers.gateway import GatewayProcess, ServedGateway, in_process, local, remote
from tests.helpers.people import token
from tests.helpers.processes import http_server
from tests.helpers.rpc import NEWEST

TRANSPORTS = ("stdio", "streamable_http", "sse", "python")


@asynccontextmanager
async def everything(transport: str, **more: Any) -> AsyncIterator[dict[str, Any]]:
    """The table of the test server, reached in this way."""
    match transport:
        case "stdio":
            yield local("everything.py", **more)
        case "python":
            yield in_process("everything.py", **more)
        case "sse":
            async with http_server("everything.py", "sse", path="/sse") as server:
                yield remote(server.url, transport_type="sse", **more)
        case _:
            async with http_server("everything.py", "http") as server:
                yield remote(server.url, **more)


class Ears:
    """One `subscriptions/listen` by hand: what comes on it, as it comes."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def next(self) -> Any:
        while line := await self._response.content.readline():
            if line.startswith(b"data:"):
                return json.loads(line[5:])
        raise AssertionError("the stream ended")


@asynccontextmanager
async def ears(gateway: ServedGateway | GatewayProcess, user: str = "ada", **wanted: Any) -> AsyncIterator[Ears]:
    envelope = {
        "io.modelcontextprotocol/protocolVersion": NEWEST,
        "io.modelcontextprotocol/clientInfo": {"name": "by-hand", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    request = {
        "jsonrpc": "2.0",
        "id": 7,
        "method": "subscriptions/listen",
        "params": {"notifications": wanted, "_meta": envelope},
    }
    headers = {
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": NEWEST,
        "Mcp-Method": "subscriptions/listen",
        "Authorization": f"Bearer {token(user)}",
    }
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as http,
        http.post(gateway.url, json=request, headers=headers) as response,
    ):
        assert response.status == 200, await response.text()
        yield Ears(response)


def marked(method: str, **params: Any) -> dict[str, Any]:
    meta = {"io.modelcontextprotocol/subscriptionId": 7} | params.pop("_meta", {})
    return {"jsonrpc": "2.0", "method": f"notifications/{method}", "params": params | {"_meta": meta}}
