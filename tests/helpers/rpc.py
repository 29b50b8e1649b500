"""An MCP client by hand: JSON-RPC over streamable HTTP, so that a test decides every header, id and key."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

Json = dict[str, Any]

HANDSHAKE, NEWEST = "2025-11-25", "2026-07-28"
_OF_MCP = "io.modelcontextprotocol/"


class RawClient:
    """One client. It numbers its requests from 0, as all clients do."""

    def __init__(self, http: aiohttp.ClientSession, url: str, headers: Mapping[str, str], version: str) -> None:
        self._http, self._url, self._own, self._version = http, url, headers, version
        self._next = 0
        self.session_id: str | None = None
        self.welcome: Json = {}
        """What the server said of itself in the handshake."""

    async def shake_hands(self) -> None:
        client = {"name": "by-hand", "version": "1"}
        answer = await self.request(
            "initialize", {"protocolVersion": self._version, "capabilities": {}, "clientInfo": client}
        )
        self.welcome = answer["result"]
        await self._post({"jsonrpc": "2.0", "method": "notifications/initialized"})

    async def call(self, tool: str, arguments: Json, *, meta: Json | None = None) -> Json:
        """The result of a tool."""
        params = {"name": tool, "arguments": arguments} | ({"_meta": meta} if meta else {})
        answer = await self.request("tools/call", params)
        result: Json = answer["result"]
        return result

    async def request(self, method: str, params: Json) -> Json:
        """The one answer to a request; that there is just one, and that it has the request's id, is made sure of."""
        number, self._next = self._next, self._next + 1
        if self._version == NEWEST:
            params = params | {"_meta": (params.get("_meta") or {}) | self._envelope()}
        messages = await self._post({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
        answers = [message for message in messages if "method" not in message]
        assert [answer["id"] for answer in answers] == [number], f"asked with id {number}, heard {answers}"
        return answers[0]

    def _envelope(self) -> Json:
        return {
            f"{_OF_MCP}protocolVersion": NEWEST,
            f"{_OF_MCP}clientInfo": {"name": "by-hand", "version": "1"},
            f"{_OF_MCP}clientCapabilities": {},
        }

    async def _post(self, message: Json) -> list[Json]:
        async with self._http.post(self._url, json=message, headers=self._headers(message)) as response:
            self.session_id = response.headers.get("Mcp-Session-Id", self.session_id)
            body = await response.text()
            assert response.status in (200, 202), f"{response.status}: {body}"
        if response.content_type == "text/event-stream":
            lines = re.split(r"\r\n|\r|\n", body)  # and nothing else, unlike `splitlines`
            return [json.loads(line[5:]) for line in lines if line.startswith("data:") and line[5:].strip()]
        return [json.loads(body)] if body.strip() and "id" in message else []

    def _headers(self, message: Json) -> dict[str, str]:
        headers = {**self._own, "Accept": "application/json, text/event-stream", "MCP-Protocol-Version": self._version}
        if message["method"] == "initialize":
            del headers["MCP-Protocol-Version"]
        if self.session_id is not None:
            headers["Mcp-Session-Id"] = self.session_id
        if self._version == NEWEST:
            headers["Mcp-Method"] = message["method"]
            headers["Mcp-Name"] = message["params"].get("name", "")
        return headers

    async def end(self) -> None:
        """End the session, as a client does that is closed."""
        session_id, self.session_id = self.session_id, None
        if session_id is not None:
            headers = {**self._own, "Mcp-Session-Id": session_id, "MCP-Protocol-Version": self._version}
            async with self._http.delete(self._url, headers=headers) as response:
                assert response.status in (200, 202, 204)


@asynccontextmanager
async def raw_client(
    url: str, headers: Mapping[str, str] | None = None, *, version: str = HANDSHAKE
) -> AsyncIterator[RawClient]:
    """A client that is ready for requests, with its own connections.

    Args:
        headers: sent with every request.
        version: `HANDSHAKE`, with a session, or `NEWEST`, without.
    """
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as http:
        client = RawClient(http, url, headers or {}, version)
        if version == HANDSHAKE:
            await client.shake_hands()
        try:
            yield client
        finally:
            await client.end()
