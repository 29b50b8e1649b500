"""The pool under pressure, seen from outside: how many sessions a backend has to bear, who waits, and for how long."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from aiohttp import web

from tests.helpers.faults import (
    HELLO,
    WAIT,
    both,
    echoes,
    fails,
    lists_echo,
    text_of,
    until_at_rest,
)
from tests.helpers.gateway import ERAS, client, gateway_over_http, servers_toml
from tests.helpers.http_backend import VERSION, Seen, answer, http_backend
from tests.helpers.processes import eventually

SLOTS, CALLERS = 4, 50


@dataclass
class Counting:
    """A backend that counts its sessions, and the calls at work. Calls with the text `wait` go on until `go`."""

    url: str = ""
    open: set[str] = field(default_factory=set)
    opened: int = 0
    most_open: int = 0
    at_work: int = 0
    most_at_work: int = 0
    order: list[str] = field(default_factory=list)
    go: anyio.Event = field(default_factory=anyio.Event)

    async def initialize(self, seen: Seen) -> web.StreamResponse:
        session = f"session-{self.opened}"
        self.opened += 1
        self.open.add(session)
        self.most_open = max(self.most_open, len(self.open))
        facts = {"protocolVersion": VERSION, "capabilities": {"tools": {}}, "serverInfo": {"name": "t", "version": "1"}}
        return web.json_response(answer(seen, facts), headers={"Mcp-Session-Id": session})

    async def delete(self, seen: Seen) -> web.StreamResponse:
        self.open.discard(seen.headers["Mcp-Session-Id"])
        return web.Response()

    async def call(self, seen: Seen) -> web.StreamResponse:
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        self.order.append(seen.message["params"]["arguments"]["text"])
        try:
            if self.order[-1] != HELLO["text"]:
                await self.go.wait()
            return await echoes(seen)
        finally:
            self.at_work -= 1


@asynccontextmanager
async def counting() -> AsyncIterator[Counting]:
    backend = Counting()
    answers = {"initialize": backend.initialize, "DELETE": backend.delete, "tools/call": backend.call}
    async with http_backend(**answers, **{"tools/list": lists_echo}) as server:
        backend.url = server.url
        yield backend


@pytest.mark.core
@pytest.mark.parametrize("era", ERAS)
async def test_no_more_sessions_than_slots_and_first_come_first_served(era: str) -> None:
    """Every call has a session of its own, the fifty wait for four slots, and each comes to its turn."""
    async with counting() as backend:
        table = {"url": backend.url, "isolation": "call"}
        toml = servers_toml({"busy": table}, max_connections=SLOTS, acquire_timeout=30.0)
        numbers = [str(number) for number in range(CALLERS)]
        async with gateway_over_http(toml) as gateway, client(gateway.url, era) as caller:
            async with anyio.create_task_group() as tasks:
                for waiting, number in enumerate(numbers, 1):
                    tasks.start_soon(ask_and_check, caller, number)
                    await eventually(lambda waiting=waiting: gateway.gateway.root.calls == waiting)  # type: ignore[misc]
                backend.go.set()
            await until_at_rest(gateway)
        assert backend.most_open <= SLOTS and backend.most_at_work <= SLOTS
        assert sorted(backend.order, key=int) == numbers
        assert all(abs(place - int(number)) < SLOTS for place, number in enumerate(backend.order))


async def ask_and_check(caller: Any, text: str) -> None:
    assert text_of(await caller.call_tool("busy_echo", {"text": text})) == text


@pytest.mark.core
@pytest.mark.parametrize("era", ERAS)
async def test_who_waits_too_long_for_a_slot_is_told_so(era: str) -> None:
    async with counting() as backend:
        table = {"url": backend.url, "isolation": "call"}
        toml = servers_toml({"busy": table}, max_connections=1, acquire_timeout=0.5)
        async with gateway_over_http(toml) as gateway, client(gateway.url, era) as caller:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask_and_check, caller, "wait")
                await eventually(lambda: backend.at_work == 1)
                began = time.monotonic()
                with fails("server 'busy'", "within 0.5 s: all 1 are in use", "raise max_connections", within=1.5):
                    await caller.call_tool("busy_echo", HELLO)
                assert time.monotonic() - began >= 0.5
                backend.go.set()
            await ask_and_check(caller, "hello")


@pytest.mark.parametrize("era", ERAS)
async def test_waiters_who_give_up_take_no_slot_with_them(era: str) -> None:
    moments = random.Random(29)
    async with counting() as backend:
        table = {"url": backend.url, "isolation": "call"}
        toml = servers_toml({"busy": table}, max_connections=2, acquire_timeout=30.0)
        async with gateway_over_http(toml) as gateway, client(gateway.url, era) as caller:
            for turn in range(5):
                async with anyio.create_task_group() as tasks:
                    for number in range(20):
                        tasks.start_soon(give_up, caller, f"{turn}-{number}", moments.uniform(0, 0.2))
            await until_at_rest(gateway)
            backend.go.set()
            await ask_and_check(caller, "hello")
            await eventually(lambda: not backend.open)
        assert backend.most_open <= 2


async def give_up(caller: Any, text: str, after: float) -> None:
    with anyio.move_on_after(after):
        await caller.call_tool("busy_echo", {"text": text})


LIMITS = [{"idle_timeout": 0.5}, {"max_lifetime": 0.5, "health_interval": 0.1}]


@pytest.mark.core
@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("limit", LIMITS, ids=["idle", "lifetime"])
async def test_sessions_close_when_idle_or_old_and_never_while_they_work(limit: dict[str, float], era: str) -> None:
    async with counting() as backend:
        toml = both({"url": backend.url}, **limit)
        async with gateway_over_http(toml) as gateway, client(gateway.url, era) as caller:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(caller.call_tool, "broken_echo", WAIT)
                await eventually(lambda: backend.at_work == 1)
                working = set(backend.open)
                pool = gateway.gateway.pool
                await eventually(lambda: time_passed(pool, "broken") > 2 * 0.5)
                assert backend.open == working
                backend.go.set()
            await eventually(lambda: not backend.open)
            assert text_of(await caller.call_tool("broken_echo", HELLO)) == "hello"


def time_passed(pool: Any, server: str) -> float:
    """Seconds since the oldest connection of a server was opened."""
    return max(anyio.current_time() - connection.created_at for connection in pool.connections(server))
