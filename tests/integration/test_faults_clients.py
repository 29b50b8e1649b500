"""Clients that change their mind, hang up, or go away with calls open.

The backend hears of it at once, so that it stops working for nobody, and no slot and no task of the gateway stays
behind.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web

from tests.helpers.faults import (
    HELLO,
    HTTP,
    STDIO,
    TRANSPORTS,
    WAIT,
    all_gone,
    backend_pids,
    both,
    echoes,
    lists_echo,
    offers_tools,
    text_of,
    undisturbed,
    until_at_rest,
)
from tests.helpers.gateway import ERAS, LATEST, ServedGateway, client, gateway_over_http, local
from tests.helpers.http_backend import Seen, http_backend
from tests.helpers.processes import eventually
from tests.helpers.rpc import HANDSHAKE, NEWEST, RawClient, raw_client

BESIDE_A_THOUSAND = 5.0
"""Seconds that another call may take beside a thousand: clients and gateway are one process here."""

HEARS_WITHIN = 2.0
"""Seconds until a backend knows that nobody waits any more. It is some milliseconds; the rest is for busy machines."""


@dataclass(frozen=True)
class Listener:
    """A backend that answers `WAIT` never, and everything else at once."""

    table: dict[str, Any]
    calls: Callable[[], int]
    """How many calls it got so far."""
    cancelled: Callable[[], int]
    """How many of them it was told to stop."""

    async def has(self, calls: int) -> None:
        await eventually(lambda: self.calls() >= calls)

    async def hears(self, cancelled: int) -> None:
        await eventually(lambda: self.cancelled() >= cancelled, within=HEARS_WITHIN)


@asynccontextmanager
async def listener(transport: str, folder: Path, **more: Any) -> AsyncIterator[Listener]:
    if transport == STDIO:
        file = folder / "heard"
        file.touch()

        def count(method: str) -> int:
            return file.read_text().split().count(method)

        table = local("hang.py", "late", env={"HEARD": str(file)}, **more)
        yield Listener(table, lambda: count("tools/call"), lambda: count("notifications/cancelled"))
        return

    heard: Counter[str] = Counter()

    async def waits(seen: Seen) -> web.StreamResponse:
        heard["call"] += 1
        if seen.message["params"]["arguments"] == WAIT:
            await anyio.sleep_forever()
        return await echoes(seen)

    async def stops(seen: Seen) -> web.StreamResponse:
        heard["cancelled"] += 1
        return web.Response(status=202)

    answers = {"initialize": offers_tools, "tools/list": lists_echo, "tools/call": waits}
    async with http_backend(**answers, **{"notifications/cancelled": stops}) as backend:
        yield Listener({"url": backend.url, **more}, lambda: heard["call"], lambda: heard["cancelled"])


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_cancelled_call_is_cancelled_at_the_backend(transport: str, era: str, tmp_path: Path) -> None:
    """By a notification in the handshake era, by closing the stream in the newest."""
    async with (
        listener(transport, tmp_path) as backend,
        gateway_over_http(both(backend.table)) as gateway,
        undisturbed(gateway.url, era),
        client(gateway.url, era) as caller,
    ):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(caller.call_tool, "broken_echo", WAIT)
            await backend.has(calls=1)
            tasks.cancel_scope.cancel()
        await backend.hears(cancelled=1)
        await until_at_rest(gateway)
        assert text_of(await caller.call_tool("broken_echo", HELLO)) == "hello"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_client_of_the_newest_era_that_hangs_up_has_cancelled(transport: str, tmp_path: Path) -> None:
    async with (
        listener(transport, tmp_path) as backend,
        gateway_over_http(both(backend.table)) as gateway,
        undisturbed(gateway.url, LATEST),
    ):
        async with raw_client(gateway.url, version=NEWEST) as caller, anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(caller.call, "broken_echo", WAIT)
            await backend.has(calls=5)
            tasks.cancel_scope.cancel()
        await backend.hears(cancelled=5)
        await until_at_rest(gateway)


async def call_without_an_answer(caller: RawClient) -> None:
    with pytest.raises(AssertionError, match=r"heard \[\]"):
        await caller.call("broken_echo", WAIT)


async def test_a_session_that_is_ended_with_calls_open_cancels_them(tmp_path: Path) -> None:
    async with (
        listener(HTTP, tmp_path) as backend,
        gateway_over_http(both(backend.table)) as gateway,
        raw_client(gateway.url, version=HANDSHAKE) as caller,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(5):
            tasks.start_soon(call_without_an_answer, caller)
        await backend.has(calls=5)
        await caller.end()
        await backend.hears(cancelled=5)
        await until_at_rest(gateway)


async def test_a_session_that_is_ended_with_calls_open_ends_its_process(tmp_path: Path) -> None:
    async with (
        listener(STDIO, tmp_path) as backend,
        gateway_over_http(both(backend.table)) as gateway,
        raw_client(gateway.url, version=HANDSHAKE) as caller,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(5):
            tasks.start_soon(call_without_an_answer, caller)
        await backend.has(calls=5)
        its_own = backend_pids("late")
        await caller.end()
        await eventually(lambda: all_gone(its_own), within=HEARS_WITHIN)
        await until_at_rest(gateway)


# ----------------------------------------------------------------------------------------- a thousand of them

ALL, AT_ONCE = 1_000, 50
LONGEST = 0.03
"""Seconds after which a call is cancelled at the latest: some are before they reach the backend, some long after."""

Call = Callable[[], Awaitable[Any]]


async def cancel_a_thousand(call: Call, backend: Listener) -> None:
    """Start calls that are never answered, fifty at a time. In every other round each is cancelled at a moment of its
    own, in the rest all are once the backend works at them."""
    moments = random.Random(40)
    for turn in range(ALL // AT_ONCE):
        before = backend.calls()
        async with anyio.create_task_group() as tasks:
            for _ in range(AT_ONCE):
                after = moments.uniform(0, LONGEST) if turn % 2 else math.inf
                tasks.start_soon(cancelled_call, call, after)
            if turn % 2 == 0:
                await backend.has(calls=before + AT_ONCE)
                tasks.cancel_scope.cancel()


async def cancelled_call(call: Call, after: float) -> None:
    with anyio.move_on_after(after) as scope:
        await call()
    assert scope.cancelled_caught


async def assert_nothing_stays(gateway: ServedGateway, tasks_before: int) -> None:
    await until_at_rest(gateway)
    await eventually(lambda: gateway.gateway.root.calls == 0)
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks_before)


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_thousand_cancelled_calls_leave_no_slot_and_no_task(transport: str, era: str, tmp_path: Path) -> None:
    """A client of the newest era cancels by dropping the connection."""
    async with (
        listener(transport, tmp_path) as backend,
        gateway_over_http(both(backend.table)) as gateway,
        client(gateway.url, era) as caller,
    ):
        await caller.call_tool("broken_echo", HELLO)
        tasks_before = len(asyncio.all_tasks())
        async with undisturbed(gateway.url, era, slowest=BESIDE_A_THOUSAND):
            await cancel_a_thousand(lambda: caller.call_tool("broken_echo", WAIT), backend)
        await assert_nothing_stays(gateway, tasks_before)
        assert text_of(await caller.call_tool("broken_echo", HELLO)) == "hello"


@pytest.mark.core
async def test_a_thousand_dropped_connections_leave_no_slot_and_no_task(tmp_path: Path) -> None:
    """In the handshake era a client that hangs up may come back for the answer: its calls end at their deadline."""
    async with (
        listener(STDIO, tmp_path, timeouts={"call": 4.0}) as backend,
        gateway_over_http(both(backend.table)) as gateway,
        raw_client(gateway.url, version=HANDSHAKE) as caller,
    ):
        await caller.call("broken_echo", HELLO)
        tasks_before = len(asyncio.all_tasks())
        await cancel_a_thousand(lambda: caller.call("broken_echo", WAIT), backend)
        await assert_nothing_stays(gateway, tasks_before)
        assert (await caller.call("broken_echo", HELLO))["content"][0]["text"] == "hello"
