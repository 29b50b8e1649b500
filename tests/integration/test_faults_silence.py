"""Backends that say nothing: while they are connected to, asked who they are, what they offer, or to do something.

Their own callers get a clear error at a deadline that is the server's own. Everybody else notices nothing.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

from tests.helpers.faults import (
    HELLO,
    HTTP,
    QUICK,
    STDIO,
    TRANSPORTS,
    WAIT,
    all_gone,
    backend_pids,
    both,
    broken,
    fails,
    lists_echo,
    offers_tools,
    signal_all,
    text_of,
    undisturbed,
    until_at_rest,
)
from tests.helpers.gateway import ERAS, LATEST, client, gateway_over_http, local, remote, servers_toml
from tests.helpers.http_backend import Seen, event_stream, http_backend
from tests.helpers.processes import eventually, http_server, is_stopped

SOON = 4.0
"""Seconds on top of a deadline, on a busy machine."""

AT_ONCE = 0.5

MUTE = QUICK | {"first_start": 0.6, "connect": 0.3, "initialize": 0.3}
"""For a backend that never gets as far as to need more."""

CANNOT_START = [("connect-hang", HTTP), ("init-hang", STDIO), ("init-hang", HTTP)]


async def tool_names(caller: Any) -> list[str]:
    return [tool.name for tool in await caller.list_tools()]


@pytest.mark.core
@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(("mode", "transport"), CANNOT_START)
async def test_a_backend_that_does_not_start_is_left_out_named_and_then_left_alone(
    mode: str, transport: str, era: str
) -> None:
    async with (
        broken(mode, transport, timeouts=MUTE) as server,
        gateway_over_http(both(server)) as gateway,
        undisturbed(gateway.url, era),
        client(gateway.url, era) as caller,
    ):
        began = time.monotonic()
        assert await tool_names(caller) == ["other_echo"]
        assert time.monotonic() - began < MUTE["list"] + SOON
        for _ in range(2):  # the first failure is forgiven
            with fails(
                "server 'broken'", "did not finish 'initialize' within 0.6 s", within=MUTE["first_start"] + SOON
            ):
                await caller.call_tool("broken_echo", HELLO)
        with fails("failed 2 times in a row", "Last reason: did not finish 'initialize'", within=AT_ONCE):
            await caller.call_tool("broken_echo", HELLO)


@pytest.mark.core
@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_backend_that_does_not_list_is_left_out_and_named(transport: str, era: str) -> None:
    async with (
        broken("list-hang", transport) as server,
        gateway_over_http(both(server)) as gateway,
        undisturbed(gateway.url, era),
        client(gateway.url, era) as caller,
    ):
        began = time.monotonic()
        assert await tool_names(caller) == ["other_echo"]
        assert time.monotonic() - began < QUICK["list"] + SOON
        with fails("server 'broken'", "did not finish 'tools/list' within 1 s", within=QUICK["initialize"] + SOON):
            await caller.call_tool("broken_echo", HELLO)


@pytest.mark.core
@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_backend_that_does_not_list_again_keeps_what_is_known(transport: str, era: str) -> None:
    async with (
        broken("list-once", transport) as server,
        gateway_over_http(both(server, refresh_interval=0.1)) as gateway,
        undisturbed(gateway.url, era),
        client(gateway.url, era) as caller,
    ):
        names = await tool_names(caller)
        assert names == ["broken_echo", "other_echo"]
        catalogue = gateway.gateway.registry.mounts["broken"].catalogue
        with anyio.fail_after(10):
            while "did not finish 'tools/list'" not in str(catalogue.error(gateway.gateway.operator_caller())):
                assert await tool_names(caller) == names  # what is used is asked for again
        began = time.monotonic()
        assert await tool_names(caller) == names
        assert time.monotonic() - began < QUICK["list"]
        assert text_of(await caller.call_tool("broken_echo", HELLO)) == "hello"


@pytest.mark.core
@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_call_that_is_not_answered_ends_at_its_deadline(transport: str, era: str) -> None:
    async with (
        broken("call-hang", transport) as server,
        gateway_over_http(both(server)) as gateway,
        undisturbed(gateway.url, era),
        client(gateway.url, era) as caller,
    ):
        with fails(
            "server 'broken'", "no answer to 'tools/call' within 0.5 s", "timeouts.call", within=QUICK["call"] + SOON
        ):
            await caller.call_tool("broken_echo", HELLO)
        await until_at_rest(gateway)


@pytest.mark.core
@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_progress_does_not_extend_a_call_for_ever(transport: str, era: str) -> None:
    async with (
        broken("progress", transport) as server,
        gateway_over_http(both(server)) as gateway,
        undisturbed(gateway.url, era),
        client(gateway.url, era) as caller,
    ):
        await caller.call_tool("broken_echo", HELLO)
        began = time.monotonic()
        with fails("longest time that a call may take", "timeouts.call_max", within=QUICK["call_max"] + SOON):
            await caller.call_tool("broken_echo", WAIT)
        assert time.monotonic() - began > QUICK["call"]
        await until_at_rest(gateway)


@pytest.mark.core
@pytest.mark.parametrize("era", ERAS)
async def test_a_listing_that_waits_behind_a_long_call_does_not_end_it(era: str) -> None:
    """A simple server does one thing after the other. That it does not list meanwhile does not mean that it is dead."""
    timeouts = QUICK | {"initialize": 0.2, "call_max": 1.5}
    async with (
        broken("progress", STDIO, timeouts=timeouts) as server,
        gateway_over_http(both(server, refresh_interval=0.1)) as gateway,
        client(gateway.url, era) as caller,
    ):
        await caller.list_tools()
        with fails("longest time that a call may take", within=timeouts["call_max"] + SOON):
            await caller.call_tool("broken_echo", WAIT)


@pytest.mark.core
@pytest.mark.parametrize("era", ERAS)
async def test_comments_on_a_stream_are_no_progress(era: str) -> None:
    async def comments(seen: Seen) -> Any:
        response = await event_stream(seen)
        while True:
            await response.write(b": still here\n\n")
            await anyio.sleep(0.02)

    async with (
        http_backend(initialize=offers_tools, **{"tools/list": lists_echo, "tools/call": comments}) as backend,
        gateway_over_http(both({"url": backend.url, "timeouts": QUICK})) as gateway,
        undisturbed(gateway.url, era),
        client(gateway.url, era) as caller,
    ):
        with fails("no answer to 'tools/call' within 0.5 s", within=QUICK["call"] + SOON):
            await caller.call_tool("broken_echo", HELLO)
        await until_at_rest(gateway)


@pytest.mark.core
@pytest.mark.parametrize("era", ERAS)
async def test_a_process_that_was_stopped_is_replaced(era: str) -> None:
    async with (
        broken("late", STDIO) as server,
        gateway_over_http(both(server)) as gateway,
        client(gateway.url, era) as caller,
    ):
        await caller.call_tool("broken_echo", HELLO)
        stopped = backend_pids("late")
        async with undisturbed(gateway.url, era):
            signal_all(stopped, signal.SIGSTOP)
            await eventually(lambda: all(is_stopped(pid) for pid in stopped))
            with fails("no answer to 'tools/call' within 0.5 s", within=QUICK["call"] + SOON):
                await caller.call_tool("broken_echo", HELLO)
            assert text_of(await caller.call_tool("broken_echo", HELLO)) == "hello"
            await eventually(lambda: all_gone(stopped))


async def test_a_stopped_process_of_the_newest_era_is_replaced() -> None:
    """It has no ping to be asked with."""
    server = local("everything.py", timeouts=QUICK | {"first_start": 20.0, "initialize": 20.0, "connect": 5.0})
    async with gateway_over_http(both(server)) as gateway, client(gateway.url, LATEST) as caller:
        pid = (await caller.call_tool("broken_pid")).data
        os.kill(pid, signal.SIGSTOP)
        await eventually(lambda: is_stopped(pid))
        with fails("no answer to 'tools/call' within 0.5 s", within=QUICK["call"] + SOON):
            await caller.call_tool("broken_pid")
        assert (await caller.call_tool("broken_pid")).data != pid
        await eventually(lambda: all_gone({pid}))


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_an_idle_backend_of_the_newest_era_is_asked_and_kept(transport: str) -> None:
    async with AsyncExitStack() as stack:
        table = local("everything.py")
        if transport == HTTP:
            table = remote((await stack.enter_async_context(http_server("everything.py", "http"))).url)
        toml = servers_toml({"idle": table}, health_interval=0.1)
        gateway = await stack.enter_async_context(gateway_over_http(toml))
        caller = await stack.enter_async_context(client(gateway.url, LATEST))
        pid = (await caller.call_tool("idle_pid")).data
        [connection] = gateway.gateway.pool.connections("idle")
        asked = connection.checked_at
        await eventually(lambda: connection.checked_at > asked)
        assert (await caller.call_tool("idle_pid")).data == pid
        assert gateway.gateway.pool.connections("idle") == [connection]


@pytest.mark.core
@pytest.mark.parametrize("era", ERAS)
async def test_a_stopped_remote_server_is_used_again_when_it_goes_on(era: str) -> None:
    async with (
        http_server("hang.py", "proper", "--http") as server,
        gateway_over_http(both({"url": server.url, "timeouts": QUICK})) as gateway,
        undisturbed(gateway.url, era),
        client(gateway.url, era) as caller,
    ):
        await caller.call_tool("broken_echo", HELLO)
        os.kill(server.pid, signal.SIGSTOP)
        await eventually(lambda: is_stopped(server.pid))
        try:
            with fails("no answer to 'tools/call' within 0.5 s", within=QUICK["call"] + SOON):
                await caller.call_tool("broken_echo", HELLO)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert text_of(await caller.call_tool("broken_echo", HELLO)) == "hello"
