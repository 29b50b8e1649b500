"""The test server itself: each tool does what tests rely on, over each transport, in each protocol era that
the installed FastMCP line speaks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
import fastmcp
import pytest
import pytest_asyncio
from fastmcp import Client
from fastmcp.client.elicitation import ElicitResult
from fastmcp.client.transports import SSETransport, StdioTransport, StreamableHttpTransport
from fastmcp.exceptions import ToolError

from tests.helpers.processes import eventually, http_server, is_running, stdio_server

pytestmark = pytest.mark.core

Connect = Callable[..., AbstractAsyncContextManager[Client[Any]]]

BOTH_ERAS = fastmcp.__version__.startswith("4.")
HANDSHAKE = {"mode": "legacy"} if BOTH_ERAS else {}
WITH_SESSION = ["stdio handshake", "http handshake", "sse handshake"]
WITHOUT_SESSION = ["stdio newest", "http newest"] if BOTH_ERAS else []
HEADERS = {"X-Mcp-UserId": "ada", "Authorization": "Bearer t"}


def connect_stdio(**options: Any) -> Client[Any]:
    command = stdio_server("everything.py")
    return Client(StdioTransport(command.command, command.args, keep_alive=False), **options)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def urls() -> AsyncIterator[dict[str, str]]:
    """One process per transport over HTTP, for all tests: they change nothing that another one looks at."""
    async with (
        http_server("everything.py", "http") as http,
        http_server("everything.py", "sse", path="/sse") as sse,
    ):
        yield {"http": http.url, "sse": sse.url}


@pytest.fixture(params=WITH_SESSION + WITHOUT_SESSION)
def connect(request: pytest.FixtureRequest, urls: dict[str, str]) -> Connect:
    """Opens a client; over HTTP all clients reach the same process."""
    return connecting(request.param, urls)


@pytest.fixture(params=WITH_SESSION)
def connect_with_session(request: pytest.FixtureRequest, urls: dict[str, str]) -> Connect:
    return connecting(request.param, urls)


def connecting(way: str, urls: dict[str, str]) -> Connect:
    transport, _, era = way.partition(" ")
    options = HANDSHAKE if era == "handshake" else {}
    if transport == "stdio":
        return lambda **more: connect_stdio(**options, **more)
    kind = SSETransport if transport == "sse" else StreamableHttpTransport
    return lambda **more: Client(kind(urls[transport], headers=HEADERS), **options, **more)


async def result(client: Client[Any], tool: str, **arguments: Any) -> Any:
    """A tool's structured answer, or its text where it has none."""
    answer = await client.call_tool(tool, arguments)
    return answer.data if answer.data is not None else answer.content[0].text  # type: ignore[union-attr]


async def test_it_offers_tools_resources_and_prompts(connect: Connect) -> None:
    async with connect() as client:
        assert {tool.name for tool in await client.list_tools()} >= {"echo", "whoami", "ask", "crash"}
        assert await result(client, "echo", text="hé\nllo") == "hé\nllo"
        assert await result(client, "add", a=2, b=3) == 5
        [greeting] = await client.read_resource("data://greeting")
        [item] = await client.read_resource("data://item/7")
        assert (greeting.text, item.text) == ("hello", "item 7")  # type: ignore[union-attr]
        prompt = await client.get_prompt("summarize", {"topic": "owls"})
        assert prompt.messages[0].content.text == "Summarize owls."  # type: ignore[union-attr]
        with pytest.raises(ToolError, match="on purpose"):
            await client.call_tool("fail", {"message": "on purpose"})


async def test_whoami_tells_meta_and_headers(connect: Connect, request: pytest.FixtureRequest) -> None:
    identity = {"userId": "ada", "roles": ["engineer"]}
    async with connect() as client:
        assert (await result(client, "whoami"))["identity"] is None
        heard = (await client.call_tool("whoami", {}, meta={"dev.apollos/identity": identity})).data
    assert heard["identity"] == identity
    if "stdio" in request.node.name:
        assert heard["headers"] == {} and heard["header_names"] == []
    else:
        assert heard["headers"]["x-mcp-userid"] == "ada"
        assert heard["headers"]["authorization"] == "Bearer t"
        assert heard["header_names"].count("x-mcp-userid") == 1


async def test_total_belongs_to_the_process_and_count_to_the_session(connect_with_session: Connect) -> None:
    async with connect_with_session() as first, connect_with_session() as second:
        is_one_process = await result(first, "pid") == await result(second, "pid")
        before = await result(second, "total", n=0)
        await result(first, "total")
        assert await result(second, "total", n=0) == before + is_one_process
        assert [await result(first, "count"), await result(first, "count", n=2)] == [1, 3]
        assert await result(second, "count", n=5) == 5


async def test_slow_reports_progress(connect: Connect) -> None:
    seen: list[tuple[float, float | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, total))

    async with connect() as client:
        await client.call_tool("slow", {"seconds": 0.01, "steps": 3}, progress_handler=on_progress)
        assert await result(client, "cancellations") == 0
    assert seen == [(1, 3), (2, 3), (3, 3)]


async def test_chatter_reaches_the_log_handler(connect: Connect) -> None:
    seen: list[str] = []
    all_heard = anyio.Event()

    async def on_log(message: Any) -> None:
        seen.append(message.data["msg"])
        if len(seen) == 3:
            all_heard.set()

    async with connect(log_handler=on_log) as client:
        await client.call_tool("chatter", {"n": 3, "tag": "T"})
        with anyio.fail_after(10):
            await all_heard.wait()
    assert seen == ["T 0", "T 1", "T 2"]


async def test_it_asks_the_client(connect: Connect) -> None:
    async def elicit(message: str, *_: Any) -> Any:
        return {"value": f"answer to {message}"}

    async def sample(messages: Any, *_: Any) -> str:
        return f"thought about {messages[0].content.text}"

    handlers = {"elicitation_handler": elicit, "sampling_handler": sample, "roots": ["file:///r"]}
    async with connect(**handlers) as client:
        assert await result(client, "ask", question="colour?") == "answer to colour?"
        assert await result(client, "think", prompt="owls") == "thought about owls"
        assert await result(client, "roots") == '["file:///r"]'


async def test_a_user_may_decline(connect: Connect) -> None:
    async def elicit(*_: Any) -> Any:
        return ElicitResult(action="decline")

    async with connect(elicitation_handler=elicit) as client:
        assert await result(client, "ask", question="colour?") == "decline"


async def test_tools_change_while_running(connect: Connect) -> None:
    changed = anyio.Event()

    async def on_message(message: Any) -> None:
        if getattr(message, "root", message).method == "notifications/tools/list_changed":
            changed.set()

    async with connect(message_handler=on_message) as client:
        await client.call_tool("change_tools", {"name": "newcomer"})
        with anyio.fail_after(10):
            await changed.wait()
        assert await result(client, "newcomer") == "newcomer"
        await client.call_tool("change_tools", {"name": "newcomer"})
        assert "newcomer" not in {tool.name for tool in await client.list_tools()}


async def test_big_answers_with_so_many_megabytes() -> None:
    async with connect_stdio() as client:  # over HTTP the SDK's own client refuses more than 1 MiB
        assert len(await result(client, "big", megabytes=2)) == 2 * 1024 * 1024


async def test_crash_ends_the_process() -> None:
    async with connect_stdio() as client:
        pid = await result(client, "pid")
        with pytest.raises(Exception, match="Connection closed"):  # its class has two names
            await client.call_tool("crash", {})
    await eventually(lambda: not is_running(pid))


async def test_an_http_server_can_come_back_on_its_port() -> None:
    async with http_server("everything.py", "http") as first:
        await first.kill()
        async with http_server("everything.py", "http", port=first.port) as second:
            assert second.url == first.url
            async with Client(second.url) as client:
                assert await result(client, "pid") == second.pid
