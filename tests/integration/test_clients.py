"""Clients that hosts are made with, each against the real gateway: FastMCP's, those of the Python and TypeScript SDKs,
and FastMCP's command line. They ask the same of it, over streamable HTTP and over stdio."""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import mcp
import pytest
from fastmcp import Client
from fastmcp.client.transports import StdioTransport

from tests.helpers.gateway import (
    ERAS,
    PATIENCE,
    ROOT,
    StdioGateway,
    client,
    gateway_over_http,
    gateway_over_stdio,
    gateway_process,
    in_process,
    local,
    patient_toml,
)
from tests.helpers.processes import eventually

SERVERS = patient_toml(
    {"b": in_process("everything.py", description="A server for tests."), "small": local("hang.py", "proper")}
)
FRONTS = ("http", "stdio")
GREETING = "- b: A server for tests."

pytestmark = pytest.mark.filterwarnings("ignore:The logging capability is deprecated")  # of a backend in this process

MARK = "XDG_APOLLOS_TEST_CLIENT"
"""Begins like what a backend may inherit, so that it reaches all processes that a command starts."""


@asynccontextmanager
async def target(front: str) -> AsyncIterator[str | StdioGateway]:
    """The URL of a gateway that runs, or how one is started."""
    if front == "http":
        async with gateway_over_http(SERVERS) as served:
            yield served.url
    else:
        async with gateway_over_stdio(SERVERS) as command:
            yield command


# -------------------------------------------------------------------------------------------------------- in Python


@pytest.mark.core
@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("front", FRONTS)
async def test_fastmcps_client(front: str, era: str) -> None:
    async with target(front) as where, client(where if isinstance(where, str) else where.transport(), era) as one:
        assert {tool.name for tool in await one.list_tools()} >= {"b_echo", "b_confer", "small_echo"}
        assert (await one.call_tool("b_add", {"a": 2, "b": 3})).data == 5
        assert (await one.call_tool("small_echo", {"text": "hé"})).content[0].text == "hé"
        failed = await one.call_tool("b_fail", {"message": "on purpose"}, raise_on_error=False)
        assert (failed.is_error, failed.content[0].text) == (True, "on purpose")
        assert (await one.read_resource("data://b/item/7"))[0].text == "item 7"
        prompt = await one.get_prompt("b_summarize", {"topic": "owls"})
        assert prompt.messages[0].content.text == "Summarize owls."


@pytest.mark.parametrize("mode", ["auto", "legacy"])
@pytest.mark.parametrize("front", FRONTS)
async def test_the_python_sdks_client(front: str, mode: str) -> None:
    progress: list[tuple[float, float | None]] = []

    async def on_progress(done: float, total: float | None, message: str | None) -> None:
        progress.append((done, total))

    async with target(front) as where:
        server = where if isinstance(where, str) else stdio_parameters(where)
        async with mcp.Client(server, mode=mode, read_timeout_seconds=PATIENCE) as one:
            assert {tool.name for tool in (await one.list_tools()).tools} >= {"b_echo", "small_echo"}
            added = await one.call_tool("b_add", {"a": 2, "b": 3})
            assert added.structured_content == {"result": 5}
            await one.call_tool("b_slow", {"seconds": 0.05, "steps": 2}, progress_callback=on_progress)
            assert progress == [(1, 2), (2, 2)]
            assert (await one.call_tool("b_fail", {"message": "on purpose"})).is_error
            assert (await one.read_resource("data://b/item/7")).contents[0].text == "item 7"
            prompt = await one.get_prompt("b_summarize", {"topic": "owls"})
            assert prompt.messages[0].content.text == "Summarize owls."
            assert GREETING in (one.instructions or "")


def stdio_parameters(gateway: StdioGateway) -> mcp.StdioServerParameters:
    return mcp.StdioServerParameters(command=gateway.command[0], args=gateway.command[1:], env=gateway.env)


# ---------------------------------------------------------------------------------------------------- in TypeScript


@pytest.mark.timeout(300)  # the SDK may have to be fetched
@pytest.mark.parametrize("front", FRONTS)
async def test_the_typescript_sdks_client(front: str, npm_servers: Path) -> None:
    script = str(npm_servers.parent.parent / "client.mjs")
    async with target(front) as where:
        arguments = ["http", where] if isinstance(where, str) else ["stdio", *where.command]
        said = await run("node", script, *arguments, env={} if isinstance(where, str) else where.env)
    told = json.loads(said)
    assert {"b_echo", "b_confer", "small_echo"} <= set(told["tools"])
    assert told["answers"] == {"ask": "yes", "think": "thought", "roots": ["file:///ts"]}
    assert told["heard"]["logs"] == ["ts 0", "ts 1", "ts 2"]
    assert told["heard"]["progress"] == [[1, 2], [2, 2]]
    assert told["heard"]["changes"] == 1
    assert told["later"] == ["b_newcomer"]
    assert (told["failed"]["isError"], told["failed"]["content"][0]["text"]) == (True, "on purpose")
    assert (told["read"]["uri"], told["read"]["text"]) == ("data://b/item/7", "item 7")
    assert told["prompt"] == "Summarize owls."
    assert GREETING in told["instructions"]


async def run(*command: str, env: dict[str, str]) -> str:
    """What a command says on stdout.

    Raises:
        AssertionError: it failed.
    """
    with anyio.fail_after(60):
        done = await anyio.run_process(command, check=False, env={**os.environ, **env}, cwd=ROOT)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    return done.stdout.decode()


# ---------------------------------------------------------------------------------------- FastMCP's command line


@pytest.fixture
async def marked(tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """The environment for a command that finds our servers and that leaves no process behind."""
    path = tmp_path / "servers.toml"
    path.write_text(SERVERS)
    mark = uuid.uuid4().hex
    yield {"APOLLOS_SERVERS": str(path), MARK: mark, "FASTMCP_CHECK_FOR_UPDATES": "off"}
    await eventually(lambda: processes_with(mark) == [])


def processes_with(mark: str) -> list[str]:
    wanted = f"{MARK}={mark}".encode()
    return [folder.name for folder in Path("/proc").glob("[0-9]*") if wanted in environment(folder)]


def environment(process: Path) -> list[bytes]:
    try:
        return (process / "environ").read_bytes().split(b"\0")
    except OSError:  # it has ended meanwhile, or belongs to somebody else
        return []


def fastmcp(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("fastmcp")), *arguments]


@pytest.mark.core
async def test_fastmcp_list_and_call_with_a_url(marked: dict[str, str]) -> None:
    async with gateway_process(SERVERS, env=marked) as served:
        listed = json.loads(await run(*fastmcp("list", served.url, "--json"), env=marked))
        called = await run(*fastmcp("call", served.url, "b_add", "a=2", "b=3", "--json"), env=marked)
    assert {"b_add", "small_echo"} <= {tool["name"] for tool in listed["tools"]}
    assert json.loads(called)["structured_content"] == {"result": 5}


@pytest.mark.core
async def test_fastmcp_inspect(marked: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    await run(*fastmcp("inspect", "server.py", "--format", "fastmcp", "-o", str(file), "--skip-env"), env=marked)
    report = json.loads(file.read_text())
    assert report["server"]["name"] == "Apollos MCP Gateway"
    assert {"b_add", "small_echo"} <= {tool["name"] for tool in report["tools"]}


@pytest.mark.core
async def test_fastmcp_run(marked: dict[str, str]) -> None:
    command, *arguments = fastmcp("run", "server.py", "--no-banner", "--skip-env")
    environ = {**os.environ, **marked}
    transport = StdioTransport(command, arguments, env=environ, cwd=str(ROOT), keep_alive=False)
    async with Client(transport, timeout=PATIENCE, init_timeout=PATIENCE) as one:
        assert {tool.name for tool in await one.list_tools()} >= {"b_add", "small_echo"}
        assert (await one.call_tool("b_add", {"a": 2, "b": 3})).data == 5
        assert processes_with(marked[MARK])
