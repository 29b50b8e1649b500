"""Backends that die in the middle of a call or between calls, and remote servers that forget their sessions.

A call that may have been carried out is never sent twice: its caller gets an error, at once. A call that provably
was not is repeated, so that a restart between two calls is noticed by nobody.
"""

from __future__ import annotations

import signal
from functools import partial
from typing import Any

import pytest
from aiohttp import web

from tests.helpers.faults import (
    HELLO,
    PATIENT,
    QUICK,
    STDIO,
    WAIT,
    all_gone,
    backend_pids,
    both,
    broken,
    echoes,
    fails,
    lists_echo,
    offers_tools,
    signal_all,
    text_of,
    undisturbed,
    until_at_rest,
)
from tests.helpers.gateway import ERAS, client, gateway_over_http
from tests.helpers.http_backend import Seen, answer, http_backend
from tests.helpers.processes import eventually, http_server

pytestmark = pytest.mark.core

AT_ONCE = 1.0
"""Seconds until a caller hears that the backend died."""


@pytest.mark.parametrize("era", ERAS)
async def test_a_process_killed_in_mid_call_fails_the_call_and_is_replaced(era: str) -> None:
    async with (
        broken("progress", STDIO) as server,
        gateway_over_http(both(server)) as gateway,
        undisturbed(gateway.url, era),
        client(gateway.url, era) as caller,
    ):
        await caller.call_tool("broken_echo", HELLO)
        killed = backend_pids("progress")

        async def kill(*_: Any) -> None:
            signal_all(killed, signal.SIGKILL)

        with fails("server 'broken'", "the process ended (killed by signal 9)", within=AT_ONCE):
            await caller.call_tool("broken_echo", WAIT, progress_handler=kill)
        assert text_of(await caller.call_tool("broken_echo", HELLO)) == "hello"
        assert backend_pids("progress").isdisjoint(killed)
        await until_at_rest(gateway)


@pytest.mark.parametrize("era", ERAS)
async def test_a_remote_server_killed_in_mid_call_fails_the_call_and_is_used_when_it_is_back(era: str) -> None:
    async with (
        http_server("hang.py", "progress", "--http") as server,
        gateway_over_http(both({"url": server.url, "timeouts": QUICK})) as gateway,
        undisturbed(gateway.url, era),
        client(gateway.url, era) as caller,
    ):

        async def kill(*_: Any) -> None:
            signal_all({server.pid}, signal.SIGKILL)

        with fails("server 'broken'", "the connection ended before the answer came", within=AT_ONCE):
            await caller.call_tool("broken_echo", WAIT, progress_handler=kill)
        with fails("server 'broken'", "connection refused", within=AT_ONCE):
            await caller.call_tool("broken_echo", HELLO)
        async with http_server("hang.py", "progress", "--http", port=server.port):
            assert text_of(await caller.call_tool("broken_echo", HELLO)) == "hello"
        await until_at_rest(gateway)


@pytest.mark.parametrize("era", ERAS)
async def test_a_process_that_dies_in_every_call_says_how_and_is_left_alone(era: str) -> None:
    async with (
        broken("die-in-call", STDIO) as server,
        gateway_over_http(both(server)) as gateway,
        undisturbed(gateway.url, era),
        client(gateway.url, era) as caller,
    ):
        for _ in range(2):
            with fails("server 'broken'", "the process ended (exit code 1)", within=AT_ONCE):
                await caller.call_tool("broken_echo", HELLO)
        with fails("failed 2 times in a row and is tried again in", "exit code 1", within=AT_ONCE):
            await caller.call_tool("broken_echo", HELLO)


@pytest.mark.parametrize("era", ERAS)
async def test_a_process_that_dies_between_calls_costs_no_call(era: str) -> None:
    async with (
        broken("late", STDIO, timeouts=PATIENT) as server,
        gateway_over_http(both(server)) as gateway,
        undisturbed(gateway.url, era),
        client(gateway.url, era) as caller,
    ):
        for _ in range(10):
            for _ in range(10):
                assert text_of(await caller.call_tool("broken_echo", HELLO)) == "hello"
            killed = backend_pids("late")
            signal_all(killed, signal.SIGKILL)
            await eventually(partial(all_gone, killed))


@pytest.mark.parametrize("era", ERAS)
async def test_a_remote_server_that_restarts_between_calls_costs_no_call(era: str) -> None:
    async with http_server("hang.py", "proper", "--http") as first:
        port, toml = first.port, both({"url": first.url, "timeouts": PATIENT})
    async with gateway_over_http(toml) as gateway, undisturbed(gateway.url, era), client(gateway.url, era) as caller:
        for _ in range(10):
            async with http_server("hang.py", "proper", "--http", port=port) as server:
                for _ in range(10):
                    assert text_of(await caller.call_tool("broken_echo", HELLO)) == "hello"
                await server.kill()


@pytest.mark.parametrize("era", ERAS)
async def test_a_session_that_the_server_dropped_is_opened_again_and_the_call_sent_once(era: str) -> None:
    sessions: list[str] = []

    async def opens_a_session(seen: Seen) -> web.StreamResponse:
        sessions.append(f"session-{len(sessions)}")
        facts = {
            "protocolVersion": "2025-11-25",
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "t", "version": "1"},
        }
        return web.json_response(answer(seen, facts), headers={"Mcp-Session-Id": sessions[-1]})

    async def knows_the_last_session(seen: Seen) -> web.StreamResponse:
        if seen.headers["Mcp-Session-Id"] != sessions[-1]:
            return web.Response(status=404)
        carried_out.append(seen)
        return await echoes(seen)

    carried_out: list[Seen] = []
    answers = {"initialize": opens_a_session, "tools/list": lists_echo, "tools/call": knows_the_last_session}
    async with (
        http_backend(**answers) as backend,
        gateway_over_http(both({"url": backend.url, "timeouts": QUICK})) as gateway,
        undisturbed(gateway.url, era),
        client(gateway.url, era) as caller,
    ):
        for number in range(1, 11):
            text = f"call {number}"
            assert text_of(await caller.call_tool("broken_echo", {"text": text})) == text
            assert len(carried_out) == number
            sessions.append("forgotten")
        assert backend.of("initialize")[9:10]


@pytest.mark.parametrize("era", ERAS)
async def test_a_call_that_may_have_been_carried_out_is_not_sent_again(era: str) -> None:
    async def hangs_up(seen: Seen) -> web.StreamResponse:
        assert seen.request.transport is not None
        seen.request.transport.close()
        return web.Response()

    async with (
        http_backend(initialize=offers_tools, **{"tools/list": lists_echo, "tools/call": hangs_up}) as backend,
        gateway_over_http(both({"url": backend.url, "timeouts": QUICK})) as gateway,
        undisturbed(gateway.url, era),
        client(gateway.url, era) as caller,
    ):
        with fails("server 'broken'", "the connection ended before the answer came", within=AT_ONCE):
            await caller.call_tool("broken_echo", HELLO)
        assert len(backend.of("tools/call")) == 1


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("hint", ["readOnlyHint", "idempotentHint"])
async def test_a_call_that_may_be_carried_out_twice_is_sent_again_once(hint: str, era: str) -> None:
    async def lists_repeatable(seen: Seen) -> web.StreamResponse:
        tool = {"name": "echo", "inputSchema": {"type": "object"}, "annotations": {hint: True}}
        return web.json_response(answer(seen, {"tools": [tool]}))

    async def hangs_up_once(seen: Seen) -> web.StreamResponse:
        if len(backend.of("tools/call")) > 1:
            return await echoes(seen)
        assert seen.request.transport is not None
        seen.request.transport.close()
        return web.Response()

    answers = {"initialize": offers_tools, "tools/list": lists_repeatable, "tools/call": hangs_up_once}
    async with (
        http_backend(**answers) as backend,
        gateway_over_http(both({"url": backend.url, "timeouts": QUICK})) as gateway,
        undisturbed(gateway.url, era),
        client(gateway.url, era) as caller,
    ):
        assert text_of(await caller.call_tool("broken_echo", HELLO)) == "hello"
        assert len(backend.of("tools/call")) == 2
