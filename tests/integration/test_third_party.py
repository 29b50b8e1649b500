"""Servers that other people wrote, all of them behind one gateway: over stdio and, where they offer it, over HTTP.

`conftest` fetches them; `test_third_party_direct` shows that they work without a gateway.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastmcp.client.elicitation import ElicitResult

from tests.helpers.gateway import gateway_over_http, gateway_over_stdio, remote, servers_toml
from tests.helpers.people import Window, window
from tests.helpers.ports import free_port
from tests.helpers.processes import START_TIMEOUT, ServerCommand, end, eventually

pytestmark = pytest.mark.timeout(300)  # the first test that needs a package may have to fetch it

SLOW_START = {"first_start": 60.0, "list": 60.0}
"""Where the machine is busy, several interpreters that start at once take their time, and a list waits for all."""


def process(server: ServerCommand, **more: Any) -> dict[str, Any]:
    """The table of a third-party server."""
    uses = {"env": server.env} if server.env else {}
    return {"command": server.command, "args": server.args, "timeouts": SLOW_START, **uses, **more}


@pytest.fixture
def five_processes(
    time_server: ServerCommand,
    git_server: ServerCommand,
    everything_server: ServerCommand,
    filesystem_server: ServerCommand,
    memory_server: ServerCommand,
) -> dict[str, dict[str, Any]]:
    servers = {
        "time": time_server,
        "git": git_server,
        "everything": everything_server,
        "files": filesystem_server,
        "memory": memory_server,
    }
    return {name: process(server) for name, server in servers.items()}


@pytest.fixture
async def everything_url(everything_server: ServerCommand) -> AsyncIterator[str]:
    """The reference server over streamable HTTP."""
    port = free_port()
    command = [everything_server.command, "streamableHttp"]
    environment = {**os.environ, "PORT": str(port)}
    server = await anyio.open_process(command, env=environment, stdin=None, stdout=None, stderr=None)
    try:
        await eventually_listens(port)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        with anyio.CancelScope(shield=True):
            await end(server, signal.SIGTERM)


async def eventually_listens(port: int) -> None:
    with anyio.fail_after(START_TIMEOUT):
        while True:
            try:
                await (await anyio.connect_tcp("127.0.0.1", port)).aclose()
                return
            except OSError:
                await anyio.sleep(0.05)


@asynccontextmanager
async def connected(front: str, toml: str, **options: Any) -> AsyncIterator[Window]:
    if front == "http":
        async with gateway_over_http(toml) as gateway, window(gateway.url, **options) as one:
            yield one
    else:
        async with gateway_over_stdio(toml) as command, window(command.transport(), **options) as one:
            yield one


async def text(one: Window, tool: str, **arguments: Any) -> str:
    """The text of a tool's answer."""
    answer = await one.connection.call_tool(tool, arguments)
    return "\n".join(getattr(content, "text", "") for content in answer.content)


@pytest.mark.parametrize("front", ["http", "stdio"])
async def test_six_servers_behind_one_gateway_each_do_their_work(
    front: str,
    five_processes: dict[str, dict[str, Any]],
    everything_url: str,
    git_repository: Path,
    tmp_path: Path,
) -> None:
    servers = {**five_processes, "remote": remote(everything_url, timeouts=SLOW_START)}
    ada = {"name": "Ada", "entityType": "person", "observations": ["writes programs"]}
    async with connected(front, servers_toml(servers)) as one:
        names = {tool.name.partition("_")[0] for tool in await one.connection.list_tools()}
        assert names == set(servers)
        assert "UTC" in await text(one, "time_get_current_time", timezone="UTC")
        assert "first" in await text(one, "git_git_log", repo_path=str(git_repository))
        await text(one, "files_write_file", path=str(tmp_path / "note.txt"), content="hello")
        assert await text(one, "files_read_text_file", path=str(tmp_path / "note.txt")) == "hello"
        await text(one, "memory_create_entities", entities=[ada])
        assert "writes programs" in await text(one, "memory_search_nodes", query="Ada")
        for name in ("everything", "remote"):
            assert await text(one, f"{name}_echo", message="hello") == "Echo: hello"
    assert (tmp_path / "note.txt").read_text() == "hello"


# ------------------------------------------------------------------------------------------- the reference server


@pytest.fixture(params=["stdio", "http"])
def reference(request: pytest.FixtureRequest, everything_server: ServerCommand) -> dict[str, Any]:
    """Its table, reached in one way or the other."""
    if request.param == "stdio":
        return process(everything_server)
    return remote(request.getfixturevalue("everything_url"), timeouts=SLOW_START)


NEEDS_THE_CLIENT = {"b_trigger-sampling-request", "b_trigger-elicitation-request", "b_get-roots-list"}
"""What it offers only once it has heard what the client can do; then it says that its list has changed."""


async def offered(one: Window, names: set[str]) -> None:
    """Wait until these tools are listed; as long as they are not, the client hears when to look again."""
    while not names <= {tool.name for tool in await one.connection.list_tools()}:
        await eventually(lambda: one.times("changed", "tools") > 0)
        one.heard.clear()


async def test_it_asks_the_caller_and_tells_him_of_its_progress(reference: dict[str, Any]) -> None:
    async def decline(*_: Any) -> Any:
        return ElicitResult(action="decline")

    async with connected("http", servers_toml({"b": reference}), elicitation_handler=decline) as one:
        await offered(one, NEEDS_THE_CLIENT)
        one.heard.clear()
        assert one.tag in await text(one, "b_trigger-sampling-request", prompt="owls", maxTokens=10)
        assert "file:///ada" in await text(one, "b_get-roots-list")
        assert "declined" in await text(one, "b_trigger-elicitation-request")
        await one.call("b_trigger-long-running-operation", duration=0.2, steps=2)
        await one.heard_all(3)
    heard = [what for what, _ in one.heard]
    assert heard.count("prompt") == 1
    assert heard.count("progress") >= 2


async def test_it_does_not_offer_what_the_client_cannot_do(reference: dict[str, Any]) -> None:
    mute = {"elicitation_handler": None, "sampling_handler": None, "roots": None}
    async with connected("http", servers_toml({"b": reference}), **mute) as one:
        names = {tool.name for tool in await one.connection.list_tools()}
        assert "b_echo" in names
        assert names.isdisjoint(NEEDS_THE_CLIENT)


async def test_its_results_resources_and_prompts_come_through(reference: dict[str, Any]) -> None:
    async with connected("http", servers_toml({"b": reference})) as one:
        client = one.connection
        weather = await client.call_tool("b_get-structured-content", {"location": "Chicago"})
        assert set(weather.structured_content or {}) == {"temperature", "conditions", "humidity"}
        picture = await client.call_tool("b_get-tiny-image", {})
        assert "image" in [content.type for content in picture.content]

        links = await client.call_tool("b_get-resource-links", {"count": 2})
        uris = [str(content.uri) for content in links.content if content.type == "resource_link"]
        assert len(uris) == 2
        assert all(uri.startswith("demo://b/") for uri in uris)
        assert [len(await client.read_resource(uri)) for uri in uris] == [1, 1]

        listed = [str(resource.uri) for resource in await client.list_resources()]
        assert await client.read_resource(listed[0])
        templates = [template.name for template in await client.list_resource_templates()]
        assert templates
        prompts = {prompt.name for prompt in await client.list_prompts()}
        assert "b_simple-prompt" in prompts
        assert (await client.get_prompt("b_simple-prompt", {})).messages


async def test_two_clients_of_it_at_once_are_each_asked_for_their_own(reference: dict[str, Any]) -> None:
    async def think(one: Window) -> None:
        await offered(one, NEEDS_THE_CLIENT)
        one.heard.clear()
        assert one.tag in await text(one, "b_trigger-sampling-request", prompt=one.tag, maxTokens=10)
        assert f"file:///{one.tag}" in await text(one, "b_get-roots-list")

    async with (
        gateway_over_http(servers_toml({"b": reference})) as gateway,
        window(gateway.url, tag="one") as one,
        window(gateway.url, tag="two") as two,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(think, one)
        tasks.start_soon(think, two)
    for caller in (one, two):
        assert [what for what, _ in caller.heard].count("prompt") == 1
