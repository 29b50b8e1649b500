"""How the gateway ends: politely, impatiently, or killed. No backend process outlives it, and no answer is lost that
could still be given."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import anyio
import anyio.abc
import pytest
from aiohttp import web
from anyio.streams.buffered import BufferedByteReceiveStream

from tests.helpers.faults import (
    BYSTANDER,
    HELLO,
    WAIT,
    all_gone,
    descendants,
    echoes,
    fails,
    lists_echo,
    offers_tools,
    text_of,
)
from tests.helpers.gateway import (
    ERAS,
    LEGACY,
    GatewayProcess,
    client,
    gateway_over_stdio,
    gateway_process,
    local,
    servers_toml,
)
from tests.helpers.http_backend import Seen, http_backend
from tests.helpers.processes import end, eventually

SHUTDOWN = 1.0
STUBBORN = local("hang.py", "stubborn", timeouts={"shutdown": SHUTDOWN})
BACKENDS = servers_toml({"stubborn": STUBBORN, "other": BYSTANDER})
"""One backend that goes when it is told to, and one that does not, nor does its child."""

PROCESSES = 4
"""The two backends, the child, and the guardian that watches over them."""

GONE = SHUTDOWN + 5.0
"""Seconds until nothing is left, on a busy machine."""

AT_ONCE = 4.0

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL]


@dataclass
class Conversation:
    """The gateway over stdio, spoken to by hand, so that the test decides when stdin ends."""

    process: anyio.abc.Process
    lines: BufferedByteReceiveStream

    async def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        await self.tell(method, params, id=1)
        while True:
            answer: dict[str, Any] = json.loads(await self.lines.receive_until(b"\n", 2**20))
            if "method" not in answer:
                return answer

    async def tell(self, method: str, params: dict[str, Any], **more: Any) -> None:
        assert self.process.stdin is not None
        message = {"jsonrpc": "2.0", "method": method, "params": params, **more}
        await self.process.stdin.send(json.dumps(message).encode() + b"\n")

    async def hang_up(self) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.aclose()


@asynccontextmanager
async def conversation(toml: str) -> AsyncIterator[Conversation]:
    async with gateway_over_stdio(toml) as gateway:
        with gateway.log.open("w") as log:
            process = await anyio.open_process(gateway.command, env=gateway.env, stderr=log)
        assert process.stdout is not None
        try:
            talk = Conversation(process, BufferedByteReceiveStream(process.stdout))
            me = {"name": "by-hand", "version": "1"}
            await talk.ask("initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": me})
            await talk.tell("notifications/initialized", {})
            yield talk
        finally:
            with anyio.CancelScope(shield=True):
                await end(process, signal.SIGKILL)


async def backends_of(pid: int) -> set[int]:
    """The processes below a gateway, once all are there."""
    await eventually(lambda: len(descendants(pid)) >= PROCESSES)
    return descendants(pid)


async def ends(process: anyio.abc.Process, below: set[int]) -> int:
    """The exit code of a gateway, once it and all that were below it are gone."""
    with anyio.fail_after(GONE):
        code = await process.wait()
    await eventually(lambda: all_gone(below), within=GONE)
    return code


@pytest.mark.core
@pytest.mark.parametrize("how", SIGNALS)
async def test_a_server_that_is_killed_leaves_no_backend(how: signal.Signals) -> None:
    async with gateway_process(BACKENDS) as gateway:
        async with client(gateway.url, LEGACY) as caller:
            for name in ("stubborn", "other"):
                assert text_of(await caller.call_tool(f"{name}_echo", HELLO)) == "hello"
            below = await backends_of(gateway.pid)
        gateway.process.send_signal(how)
        code = await ends(gateway.process, below)
    assert code == (0 if how in (signal.SIGTERM, signal.SIGINT) else -how)


@pytest.mark.core
@pytest.mark.parametrize("how", [*SIGNALS, "end of stdin"])
async def test_a_stdio_gateway_that_is_killed_or_left_leaves_no_backend(how: signal.Signals | str) -> None:
    async with conversation(BACKENDS) as talk:
        for name in ("stubborn", "other"):
            answer = await talk.ask("tools/call", {"name": f"{name}_echo", "arguments": HELLO})
            assert answer["result"]["content"][0]["text"] == "hello"
        below = await backends_of(talk.process.pid)
        if isinstance(how, signal.Signals):
            talk.process.send_signal(how)
            expected = -how if how is signal.SIGKILL else 128 + how
        else:
            await talk.hang_up()
            expected = 0
        assert await ends(talk.process, below) == expected


@pytest.mark.core
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_gateway_killed_while_its_backends_start_leaves_none(how: signal.Signals) -> None:
    starting = {"mute": local("hang.py", "init-hang"), "stubborn": STUBBORN}
    async with gateway_process(servers_toml(starting)) as gateway:
        await eventually(lambda: len(descendants(gateway.pid)) >= PROCESSES)
        below = descendants(gateway.pid)
        gateway.process.send_signal(how)
        await ends(gateway.process, below)


# ------------------------------------------------------------------------------------------------------- drain


@dataclass
class Slow:
    """A backend that answers calls when it is let."""

    url: str = ""
    at_work: int = 0
    go: anyio.Event = field(default_factory=anyio.Event)

    async def call(self, seen: Seen) -> web.StreamResponse:
        self.at_work += 1
        await self.go.wait()
        return await echoes(seen)


@asynccontextmanager
async def slow_backend() -> AsyncIterator[Slow]:
    slow = Slow()
    answers = {"initialize": offers_tools, "tools/list": lists_echo, "tools/call": slow.call}
    async with http_backend(**answers) as backend:
        slow.url = backend.url
        yield slow


async def until_it_drains(gateway: GatewayProcess) -> None:
    """Until the gateway says of itself that it takes no more calls."""
    async with aiohttp.ClientSession() as http:
        with anyio.fail_after(GONE):
            while True:
                async with http.get(gateway.url.replace("/mcp", "/readyz")) as answer:
                    if answer.status == 503:
                        return
                await anyio.sleep(0.01)


@pytest.mark.core
@pytest.mark.parametrize("era", ERAS)
async def test_a_polite_end_under_load_loses_no_answer(era: str) -> None:
    calls = [f"call {number}" for number in range(20)]
    answers: list[str] = []

    async def call(caller: Any, text: str) -> None:
        answers.append(text_of(await caller.call_tool("slow_echo", {"text": text})))

    async with slow_backend() as slow, gateway_process(servers_toml({"slow": {"url": slow.url}})) as gateway:
        async with client(gateway.url, era) as caller, client(gateway.url, era) as late:
            for each in (caller, late):  # what a client knows of a tool it need not ask for once the gateway has gone
                await each.list_tools()
            async with anyio.create_task_group() as tasks:
                for text in calls:
                    tasks.start_soon(call, caller, text)
                await eventually(lambda: slow.at_work == len(calls))
                gateway.process.send_signal(signal.SIGTERM)
                await until_it_drains(gateway)
                with fails("the gateway is shutting down", within=1.0):
                    await late.call_tool("slow_echo", HELLO)
                slow.go.set()
        with anyio.fail_after(GONE):
            assert await gateway.process.wait() == 0
    assert sorted(answers) == sorted(calls)


@pytest.mark.core
@pytest.mark.parametrize("era", ERAS)
async def test_a_call_longer_than_the_drain_is_ended(era: str) -> None:
    async with (
        slow_backend() as slow,
        gateway_process(servers_toml({"slow": {"url": slow.url}}, drain_timeout=0.5)) as gateway,
        client(gateway.url, era) as caller,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(call_that_fails, caller, "the call was ended: the gateway is shutting down")
        await eventually(lambda: slow.at_work == 1)
        gateway.process.send_signal(signal.SIGTERM)
        with anyio.fail_after(GONE):
            assert await gateway.process.wait() == 0


async def call_that_fails(caller: Any, *words: str) -> None:
    with fails(*words, within=GONE):
        await caller.call_tool("slow_echo", WAIT)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_ends_the_drain(how: signal.Signals) -> None:
    async with (
        slow_backend() as slow,
        gateway_process(servers_toml({"slow": {"url": slow.url}})) as gateway,
        client(gateway.url, LEGACY) as caller,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(call_that_fails, caller)
        await eventually(lambda: slow.at_work == 1)
        gateway.process.send_signal(how)
        await until_it_drains(gateway)
        began = time.monotonic()
        gateway.process.send_signal(how)
        with anyio.fail_after(GONE):
            assert await gateway.process.wait() == 0
        assert time.monotonic() - began < AT_ONCE
