"""Servers that other people wrote, all of them behind one gateway: over stdio and, where they offer it, over HTTP.

`conftest` fetches them; `test_third_party_direct` shows that they work without a gateway.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import mcp
import pytest
from fastmcp.client.elicitation import ElicitResult
from fastmcp.client.transports import StdioTransport

from tests.helpers.gateway import PATIENCE, gateway_over_http, gateway_over_stdio, patient_toml, remote
from tests.helpers.people import Window, window
from tests.helpers.processes import ServerCommand, eventually
from tests.helpers.reference import everything_over_http

pytestmark = pytest.mark.timeout(300)  # the first test that needs a package may have to fetch it


def process(server: ServerCommand) -> dict[str, Any]:
    """The table of a third-party server."""
    uses = {"env": server.env} if server.env else {}
    return {"command": server.command, "args": server.args, **uses}


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
    async with everything_over_http(everything_server.command) as url:
        yield url


@asynccontextmanager
async def connected(table: dict[str, Any], **options: Any) -> AsyncIterator[Window]:
    """A client of a gateway with this one server, `b`."""
    toml = patient_toml({"b": table})
    async with gateway_over_http(toml) as gateway, window(gateway.url, **options) as one:
        yield one


async def text(one: Window, tool: str, **arguments: Any) -> str:
    return text_of(await one.connection.call_tool(tool, arguments))


def text_of(answer: Any) -> str:
    """The text of a tool's answer."""
    return "\n".join(getattr(content, "text", "") for content in answer.content)


# ---------------------------------------------------------------------------------- six servers, three makes of client

Call = tuple[str, dict[str, Any]]


@pytest.fixture
def work(git_repository: Path, tmp_path: Path) -> list[tuple[Call, str]]:
    """A call of each server, with a text that its answer holds."""
    note = str(tmp_path / "note.txt")
    ada = {"name": "Ada", "entityType": "person", "observations": ["writes programs"]}
    return [
        (("time_get_current_time", {"timezone": "UTC"}), "UTC"),
        (("git_git_log", {"repo_path": str(git_repository)}), "first"),
        (("files_write_file", {"path": note, "content": "hello"}), "note.txt"),
        (("files_read_text_file", {"path": note}), "hello"),
        (("memory_create_entities", {"entities": [ada]}), "Ada"),
        (("memory_search_nodes", {"query": "Ada"}), "writes programs"),
        (("everything_echo", {"message": "hi"}), "Echo: hi"),
        (("remote_echo", {"message": "hi"}), "Echo: hi"),
    ]


async def by_fastmcp(target: str | StdioTransport, calls: list[Call]) -> list[str]:
    async with window(target) as one:
        names = {tool.name for tool in await one.connection.list_tools()}
        assert names >= {tool for tool, _ in calls}
        return [await text(one, tool, **arguments) for tool, arguments in calls]


async def by_the_python_sdk(url: str, calls: list[Call]) -> list[str]:
    async with mcp.Client(url, read_timeout_seconds=PATIENCE) as one:
        names = {tool.name for tool in (await one.list_tools()).tools}
        assert names >= {tool for tool, _ in calls}
        return [text_of(await one.call_tool(tool, arguments)) for tool, arguments in calls]


async def by_the_typescript_sdk(url: str, calls: list[Call]) -> list[str]:
    script = str(Path(__file__).parent / "npm" / "call.mjs")
    with anyio.fail_after(60):
        done = await anyio.run_process(["node", script, url, json.dumps(calls)], check=False)
    assert done.returncode == 0, done.stderr.decode()
    texts: list[str] = json.loads(done.stdout)
    return texts


@pytest.mark.parametrize("client", [by_fastmcp, by_the_python_sdk, by_the_typescript_sdk])
async def test_six_servers_behind_one_gateway_each_do_their_work(
    client: Callable[[str, list[Call]], Awaitable[list[str]]],
    five_processes: dict[str, dict[str, Any]],
    everything_url: str,
    work: list[tuple[Call, str]],
) -> None:
    servers = {**five_processes, "remote": remote(everything_url)}
    async with gateway_over_http(patient_toml(servers)) as gateway:
        heard = await client(gateway.url, [call for call, _ in work])
    does_each(work, heard)


async def test_they_do_it_for_a_client_that_starts_the_gateway_over_stdio_too(
    five_processes: dict[str, dict[str, Any]], everything_url: str, work: list[tuple[Call, str]]
) -> None:
    servers = {**five_processes, "remote": remote(everything_url)}
    async with gateway_over_stdio(patient_toml(servers)) as command:
        heard = await by_fastmcp(command.transport(), [call for call, _ in work])
    does_each(work, heard)


def does_each(work: list[tuple[Call, str]], heard: list[str]) -> None:
    for (call, expected), answer in zip(work, heard, strict=True):
        assert expected in answer, call


# ------------------------------------------------------------------------------------------- the reference server


@pytest.fixture(params=["stdio", "http"])
def reference(request: pytest.FixtureRequest, everything_server: ServerCommand) -> dict[str, Any]:
    """Its table, reached in one way or the other."""
    if request.param == "stdio":
        return process(everything_server)
    return remote(request.getfixturevalue("everything_url"))


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

    async with connected(reference, elicitation_handler=decline) as one:
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
    async with connected(reference, **mute) as one:
        names = {tool.name for tool in await one.connection.list_tools()}
        assert "b_echo" in names
        assert names.isdisjoint(NEEDS_THE_CLIENT)


async def test_its_results_resources_and_prompts_come_through(reference: dict[str, Any]) -> None:
    async with connected(reference) as one:
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
        gateway_over_http(patient_toml({"b": reference})) as gateway,
        window(gateway.url, tag="one") as one,
        window(gateway.url, tag="two") as two,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(think, one)
        tasks.start_soon(think, two)
    for caller in (one, two):
        assert [what for what, _ in caller.heard].count("prompt") == 1
