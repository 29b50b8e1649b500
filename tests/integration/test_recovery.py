"""A backend that forgot its session is opened again as it was, and its client hears if it is not what it was."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from tests.helpers.gateway import gateway_over_http, servers_toml
from tests.helpers.http_backend import VERSION, HttpBackend, Seen, answer, http_backend
from tests.helpers.people import Window, window
from tests.helpers.processes import eventually

pytestmark = pytest.mark.core


class Forgetful:
    """A server that knows one session at a time and forgets it when a test says so."""

    def __init__(self) -> None:
        self.tools = ["one"]
        self.sessions = 0
        self.carried_out = 0
        self.forgot = False

    @property
    def answers(self) -> dict[str, Any]:
        return {"initialize": self.opens, "tools/list": self.lists, "tools/call": self.calls}

    async def opens(self, seen: Seen) -> web.StreamResponse:
        self.sessions, self.forgot = self.sessions + 1, False
        facts = {
            "protocolVersion": VERSION,
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "t", "version": "1"},
        }
        return web.json_response(answer(seen, facts), headers={"Mcp-Session-Id": f"session-{self.sessions}"})

    def _unless_forgotten(self, seen: Seen, result: dict[str, Any]) -> web.StreamResponse:
        return web.Response(status=404) if self.forgot else web.json_response(answer(seen, result))

    async def lists(self, seen: Seen) -> web.StreamResponse:
        tools = [{"name": name, "inputSchema": {"type": "object"}} for name in self.tools]
        return self._unless_forgotten(seen, {"tools": tools})

    async def calls(self, seen: Seen) -> web.StreamResponse:
        self.carried_out += not self.forgot
        return self._unless_forgotten(seen, {"content": [{"type": "text", "text": str(self.sessions)}]})


@asynccontextmanager
async def in_use() -> AsyncIterator[tuple[Forgetful, HttpBackend, Window]]:
    server = Forgetful()
    async with (
        http_backend(**server.answers) as backend,
        gateway_over_http(servers_toml({"b": {"url": backend.url}})) as gateway,
        window(gateway.url) as one,
    ):
        await one.connection.list_tools()
        assert await one.call("b_one") == str(server.sessions)
        yield server, backend, one


async def test_a_session_that_was_forgotten_is_opened_again_with_what_its_client_can_be_asked() -> None:
    async with in_use() as (server, backend, one):
        before = server.sessions
        server.forgot = True
        assert await one.call("b_one") == str(before + 1)
        assert server.carried_out == 2
        declared = [seen.message["params"]["capabilities"] for seen in backend.of("initialize")]
        assert declared[-1] == declared[-2] and {"sampling", "elicitation", "roots"} <= declared[-1].keys()


async def test_a_client_hears_that_a_server_that_came_back_offers_something_else() -> None:
    async with in_use() as (server, _, one):
        server.forgot, server.tools = True, ["one", "two"]
        await one.call("b_one")
        await eventually(lambda: one.times("changed", "tools") == 1)
        assert {tool.name for tool in await one.connection.list_tools()} == {"b_one", "b_two"}


async def test_a_client_hears_nothing_of_a_server_that_came_back_as_it_was() -> None:
    async with in_use() as (server, backend, one):
        listed = len(backend.of("tools/list"))
        server.forgot = True
        await one.call("b_one")
        await eventually(lambda: len(backend.of("tools/list")) > listed)
        server.tools = ["one", "two"]
        server.forgot = True
        await one.call("b_one")
        await eventually(lambda: one.times("changed", "tools") == 1)
        assert one.heard == [("changed", "tools")]
