"""The third-party servers themselves, without the gateway: each starts and offers what the other tests rely on."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastmcp import Client
from fastmcp.client.transports import StdioTransport

from tests.helpers.processes import ServerCommand

pytestmark = pytest.mark.timeout(300)  # the first test of each kind may have to fetch a package


@asynccontextmanager
async def connected(server: ServerCommand, **options: Any) -> AsyncIterator[Client[Any]]:
    environment = {**os.environ, **server.env}  # uvx has to find its cache, wherever that is
    transport = StdioTransport(server.command, server.args, env=environment, keep_alive=False)
    async with Client(transport, init_timeout=60, **options) as client:
        yield client


async def tools(client: Client[Any]) -> set[str]:
    return {tool.name for tool in await client.list_tools()}


async def text(client: Client[Any], tool: str, **arguments: Any) -> str:
    answer = await client.call_tool(tool, arguments)
    found: str = answer.content[0].text  # type: ignore[union-attr]
    return found


async def test_time(time_server: ServerCommand) -> None:
    async with connected(time_server) as client:
        assert await tools(client) == {"get_current_time", "convert_time"}
        assert "UTC" in await text(client, "get_current_time", timezone="UTC")


async def test_git(git_server: ServerCommand, git_repository: Path) -> None:
    async with connected(git_server) as client:
        assert await tools(client) >= {"git_log", "git_status"}
        assert "first" in await text(client, "git_log", repo_path=str(git_repository))


async def test_everything(everything_server: ServerCommand) -> None:
    async with connected(everything_server, roots=["file:///r"]) as client:
        assert await tools(client) >= {"echo"}
        assert await text(client, "echo", message="hello") == "Echo: hello"
        assert len(await client.list_resources()) > 0
        assert len(await client.list_prompts()) > 0


async def test_filesystem(filesystem_server: ServerCommand, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("hello")
    async with connected(filesystem_server) as client:
        assert await tools(client) >= {"read_text_file", "write_file"}
        assert await text(client, "read_text_file", path=str(tmp_path / "note.txt")) == "hello"


async def test_memory(memory_server: ServerCommand, tmp_path: Path) -> None:
    ada = {"name": "Ada", "entityType": "person", "observations": ["writes programs"]}
    async with connected(memory_server) as client:
        await client.call_tool("create_entities", {"entities": [ada]})
        assert "Ada" in await text(client, "read_graph")
    assert "Ada" in (tmp_path / "memory.jsonl").read_text()
