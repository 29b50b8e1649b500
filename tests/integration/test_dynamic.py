"""A session as a chat client has it: a model finds a real server, adds it, uses it and removes it, and the lists change
at each step. Others at the same gateway notice nothing."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastmcp.client.elicitation import ElicitResult

from providers.lines import MODERN
from tests.helpers.clients import NEWEST, connect_stdio
from tests.helpers.gateway import gateway_over_http, gateway_over_stdio, in_process, patient_toml
from tests.helpers.mcp_registry import package, registry, server
from tests.helpers.people import Window, tokens, window
from tests.helpers.processes import ServerCommand, eventually

pytestmark = pytest.mark.timeout(300)  # the package may have to be fetched

PINS = dict(pin.split("@") for pin in (Path(__file__).parent / "uvx.txt").read_text().split())
ZONE = {"type": "named", "name": "--local-timezone", "description": "Where we are", "isRequired": True}
HERE = {"local-timezone": "UTC"}


@asynccontextmanager
async def configured(tmp_path: Path, **more: Any) -> AsyncIterator[str]:
    """The servers.toml of a gateway whose users find mcp-server-time in a registry, and nothing in catalogs."""
    time = package("pypi", "mcp-server-time", PINS["mcp-server-time"], packageArguments=[ZONE])
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text("version: 3\nname: none\nregistry: {}\n")
    async with registry(server("com.example/time", packages=[time])) as listing:
        keys = {"dynamic": True, "mcp_registry": listing.url, "catalogs": [str(catalog)], "state_dir": str(tmp_path)}
        servers = {"all": in_process("everything.py", required_roles=["*"])}
        yield patient_toml(servers, **keys, **more)


async def tools(one: Window) -> set[str]:
    return {tool.name for tool in await one.connection.list_tools()}


async def use(one: Window, tool: str, **arguments: Any) -> dict[str, Any]:
    answer = await one.connection.call_tool_mcp(tool, arguments)
    form: dict[str, Any] = answer.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert not form.get("isError"), form
    return form


async def whole_session(one: Window) -> str:
    """Find, add, use and remove a server; its name."""
    before = await tools(one)
    found = await use(one, "gateway_find_servers", query="time", source="registry")
    (entry,) = found["structuredContent"]["servers"]
    assert entry["name"] == "com.example/time" and "local-timezone" in entry["state"]
    added = await use(one, "gateway_add_server", name=entry["name"], source=entry["source"], config=HERE)
    name: str = added["structuredContent"]["name"]
    await eventually(lambda: one.times("changed", "tools") == 1)
    assert await tools(one) - before == {f"{name}_get_current_time", f"{name}_convert_time"}
    now = await use(one, f"{name}_get_current_time", timezone="UTC")
    assert "UTC" in now["content"][0]["text"]
    await use(one, "gateway_remove_server", name=name)
    await eventually(lambda: one.times("changed", "tools") == 2)
    assert await tools(one) == before
    return name


@pytest.mark.core
async def test_a_chat_client_adds_and_removes_a_server_over_stdio(tmp_path: Path, time_server: ServerCommand) -> None:
    approvals: list[str] = []

    async def approve(message: str, *_: Any) -> ElicitResult[Any]:
        approvals.append(message)
        return ElicitResult(action="accept", content={"approve": True})

    async with (
        configured(tmp_path) as toml,
        gateway_over_stdio(toml) as gateway,
        window(gateway.transport(), elicitation_handler=approve) as one,
    ):
        assert await whole_session(one) == "time"
    assert len(approvals) == 1 and f"uvx --from mcp-server-time=={PINS['mcp-server-time']}" in approvals[0]


@pytest.mark.skipif(not MODERN, reason="FastMCP 3.4 knows no clients of 2026-07-28")
async def test_so_does_a_client_of_2026_07_28(tmp_path: Path, time_server: ServerCommand) -> None:
    async with (
        configured(tmp_path) as toml,
        gateway_over_stdio(toml) as gateway,
        connect_stdio(gateway.command, {**os.environ, **gateway.env}, NEWEST) as one,
        one.listening(toolsListChanged=True),
    ):
        one.patience = 60.0
        one.answers["elicitation/create"] = {"action": "accept", "content": {"approve": True}}
        added = await one.call("gateway_add_server", name="com.example/time", source="registry", config=HERE)
        assert added["structuredContent"]["name"] == "time" and len(one.asked) == 1
        await one.until(lambda: len(changes(one)) == 1)
        assert "UTC" in str(await one.call("time_get_current_time", timezone="UTC"))
        await one.call("gateway_remove_server", name="time")
        await one.until(lambda: len(changes(one)) == 2)
        assert "time_get_current_time" not in str(await one.request("tools/list"))


def changes(one: Any) -> list[Any]:
    return [message for message in one.heard if message["method"] == "notifications/tools/list_changed"]


@pytest.mark.core
async def test_the_other_sessions_of_a_gateway_notice_nothing(tmp_path: Path, time_server: ServerCommand) -> None:
    async with (
        configured(tmp_path, dynamic_allow=["pypi:mcp-server-time"]) as toml,
        gateway_over_http(toml, auth=tokens()) as gateway,
        window(gateway.url, "bob") as bob,
        window(gateway.url, "bob") as bobs_other,
        window(gateway.url, "ada") as admin,
    ):
        before = [await tools(each) for each in (bobs_other, admin)]
        name = await whole_session(bob)
        assert name.startswith("time-")
        assert [await tools(each) for each in (bobs_other, admin)] == before
        assert not bobs_other.heard and not admin.heard and not bob.times("question", "")
