"""Backends that say too much, or what nobody can understand.

Whoever called gets one result or one error, by the deadline. Nothing of it grows the gateway, holds up another server's
calls, or spoils the list of all servers.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.helpers.faults import (
    BYSTANDER,
    HELLO,
    HTTP,
    QUICK,
    STDIO,
    TRANSPORTS,
    WAIT,
    both,
    broken,
    fails,
    lists_echo,
    offers_tools,
    text_of,
    undisturbed,
)
from tests.helpers.gateway import ERAS, LATEST, LEGACY, client, gateway_over_http, gateway_process, servers_toml
from tests.helpers.http_backend import Seen, answer, event, event_stream, http_backend
from tests.helpers.rpc import HANDSHAKE, NEWEST, raw_client

DEADLINE = QUICK["call"] + 1.0

NOT_UNDERSTOOD = [
    ("garbage", STDIO, "no answer to 'tools/call' within 0.5 s"),
    ("garbage", HTTP, "something that is not JSON"),
    ("bad-text", HTTP, "something that is not JSON"),
    ("wrong-id", STDIO, "no answer to 'tools/call' within 0.5 s"),
    ("wrong-id", HTTP, "something that is not the answer"),
    ("no-object", STDIO, "not what MCP prescribes"),
    ("no-object", HTTP, "not what MCP prescribes"),
    ("wrong-shape", STDIO, "not what MCP prescribes"),
    ("wrong-shape", HTTP, "not what MCP prescribes"),
    ("late", STDIO, "no answer to 'tools/call' within 0.5 s"),
    ("late", HTTP, "no answer to 'tools/call' within 0.5 s"),
]
"""Modes in which a call gets no answer, or none that can be understood, and what its caller is told."""


@pytest.mark.core
@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(("mode", "transport", "problem"), NOT_UNDERSTOOD)
async def test_an_answer_that_is_not_understood_is_one_error_and_costs_no_session(
    mode: str, transport: str, problem: str, era: str
) -> None:
    async with (
        broken(mode, transport) as server,
        gateway_over_http(both(server)) as gateway,
        undisturbed(gateway.url, era),
        client(gateway.url, era) as caller,
    ):
        for _ in range(2):
            with fails("server 'broken'", problem, within=DEADLINE):
                await caller.call_tool("broken_echo", WAIT)
        assert gateway.gateway.pool.statistics().failed == 0


@pytest.mark.core
@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(("mode", "transport"), [("twice", STDIO), ("twice", HTTP), ("late", STDIO), ("late", HTTP)])
async def test_an_answer_too_many_reaches_nobody(mode: str, transport: str, era: str) -> None:
    """Each call gets its own answer, whether the one before was answered twice or only after it was given up."""
    async with (
        broken(mode, transport) as server,
        gateway_over_http(both(server)) as gateway,
        undisturbed(gateway.url, era),
        client(gateway.url, era) as caller,
    ):
        if mode == "late":
            with fails("no answer", within=DEADLINE):
                await caller.call_tool("broken_echo", WAIT)
        for number in range(10):
            text = f"call {number}"
            assert text_of(await caller.call_tool("broken_echo", {"text": text})) == text


@pytest.mark.core
@pytest.mark.parametrize("era", ERAS)
async def test_what_can_be_read_of_damaged_text_is_passed_on(era: str) -> None:
    async with (
        broken("bad-text", STDIO) as server,
        gateway_over_http(both(server)) as gateway,
        client(gateway.url, era) as caller,
    ):
        assert text_of(await caller.call_tool("broken_echo", HELLO)) == "caf\N{REPLACEMENT CHARACTER}"


# ------------------------------------------------------------------------------------------------------ size

MEBIBYTE = 2**20
GROWTH = 64 * MEBIBYTE
"""What they may add to the gateway's memory together, at its highest: each is forgotten before the next comes."""

TOO_LARGE = {
    "bigline-stdio": "more than 16 MiB",
    "endless-stdio": "more than 16 MiB",
    "bigline-http": "more than 16,777,216 bytes",
    "endless-http": "more than 16,777,216 bytes",
    "event": "more than 16,777,216 bytes",
    "gzip": "answers compressed",
}


async def endless_event(seen: Seen) -> web.StreamResponse:
    response = await event_stream(seen, b"data: ")
    while True:
        await response.write(b"x" * MEBIBYTE)


async def gzip_bomb(seen: Seen) -> web.StreamResponse:
    body = gzip.compress(b" " * (64 * MEBIBYTE), compresslevel=1)
    return web.Response(body=body, headers={"Content-Type": "application/json", "Content-Encoding": "gzip"})


@asynccontextmanager
async def all_too_large() -> AsyncIterator[dict[str, dict[str, Any]]]:
    """The tables of one server for each kind of message that is too large."""
    patient = {"timeouts": QUICK | {"call": 10.0, "call_max": 10.0}}
    async with AsyncExitStack() as stack:
        servers = {
            f"{mode}-{transport}": await stack.enter_async_context(broken(mode, transport, **patient))
            for mode in ("bigline", "endless")
            for transport in TRANSPORTS
        }
        for name, tools_call in {"event": endless_event, "gzip": gzip_bomb}.items():
            answers = {"initialize": offers_tools, "tools/list": lists_echo, "tools/call": tools_call}
            backend = await stack.enter_async_context(http_backend(**answers))
            servers[name] = {"url": backend.url, **patient}
        yield servers


def memory_peak(pid: int) -> int:
    """The most memory that a process had so far, in bytes."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


@pytest.mark.core
@pytest.mark.parametrize("era", ERAS)
async def test_a_message_that_is_too_large_is_refused_before_it_costs_memory(era: str) -> None:
    async with (
        all_too_large() as servers,
        gateway_process(servers_toml({**servers, "other": BYSTANDER})) as gateway,
        undisturbed(gateway.url, era),
        client(gateway.url, era) as caller,
    ):
        before = memory_peak(gateway.pid)
        for name, problem in TOO_LARGE.items():
            with fails(f"server '{name}'", problem, within=5.0):
                await caller.call_tool(f"{name}_echo", HELLO)
        assert memory_peak(gateway.pid) - before < GROWTH


@pytest.mark.parametrize("length", [2 * MEBIBYTE, 12 * MEBIBYTE])
async def test_a_large_message_is_passed_on(length: int) -> None:
    async def large_event(seen: Seen) -> web.StreamResponse:
        result = {"content": [{"type": "text", "text": "x" * length}]}
        return await event_stream(seen, event(answer(seen, result)))

    answers = {"initialize": offers_tools, "tools/list": lists_echo, "tools/call": large_event}
    async with (
        http_backend(**answers) as backend,
        gateway_over_http(servers_toml({"large": {"url": backend.url}})) as gateway,
        client(gateway.url, LATEST) as caller,
    ):
        assert len(text_of(await caller.call_tool("large_echo", HELLO))) == length


# ---------------------------------------------------------------------------------------------------- number

FLOOD_ENDS = 10.0
"""Seconds for 20,000 messages, on a busy machine. They cost about one tenth of that."""


@pytest.mark.core
@pytest.mark.parametrize("era", ERAS)
async def test_a_flood_of_log_messages_holds_up_nobody(era: str) -> None:
    """Clients of the handshake era are sent all of them, those of the newest era none that they did not ask for."""
    patient = QUICK | {"call": FLOOD_ENDS, "call_max": FLOOD_ENDS}
    async with (
        broken("flood", STDIO, timeouts=patient) as local,
        broken("flood", HTTP, timeouts=patient) as remote,
        gateway_process(servers_toml({"local": local, "remote": remote, "other": BYSTANDER})) as gateway,
        undisturbed(gateway.url, era),
        raw_client(gateway.url, version=HANDSHAKE if era == LEGACY else NEWEST) as caller,
    ):
        for name in ("local", "remote"):
            result = await caller.call(f"{name}_echo", HELLO)
            assert result["content"][0]["text"] == "hello"


# ----------------------------------------------------------------------------------------------------- lists

ONE_EVENT = MEBIBYTE
"""What the SDK's client takes at most in one event, and so in one list over HTTP."""


@pytest.mark.core
@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("mode", ["many-tools", "big-schema", "endless-list"])
async def test_a_list_without_measure_is_cut_for_that_server_only(mode: str, transport: str, era: str) -> None:
    patient = QUICK | {"initialize": 10.0, "list": 10.0}
    async with (
        broken(mode, transport, timeouts=patient) as server,
        gateway_over_http(both(server)) as gateway,
        client(gateway.url, era) as caller,
    ):
        names = {tool.name for tool in await caller.list_tools()}
        assert {"broken_echo", "other_echo"} <= names and len(names) <= 5_001
        assert "broken_big" not in names
        for name in ("broken_echo", "other_echo"):
            assert text_of(await caller.call_tool(name, HELLO)) == "hello"


@pytest.mark.core
@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_list_of_nonsense_leaves_that_server_out_only(transport: str, era: str) -> None:
    async with (
        broken("odd-list", transport) as server,
        gateway_over_http(both(server)) as gateway,
        undisturbed(gateway.url, era),
        client(gateway.url, era) as caller,
    ):
        assert [tool.name for tool in await caller.list_tools()] == ["other_echo"]
        with fails("server 'broken'", "'tools/list' is not what MCP prescribes", within=DEADLINE):
            await caller.call_tool("broken_echo", HELLO)


@pytest.mark.core
async def test_a_long_list_holds_up_nobody() -> None:
    """It is asked for by hand: the SDK's client takes a second to read it, in the event loop of the others."""
    async with (
        broken("many-tools", STDIO, timeouts=QUICK | {"initialize": 10.0, "list": 10.0}) as server,
        gateway_process(both(server)) as gateway,
        undisturbed(gateway.url, LEGACY),
        raw_client(gateway.url) as caller,
    ):
        for _ in range(5):
            tools = (await caller.request("tools/list", {}))["result"]["tools"]
            assert len(tools) > 1000
            assert len(json.dumps(tools)) < ONE_EVENT
