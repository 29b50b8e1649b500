"""Containers that two replicas share, each a process: one of them runs a container, both reach it, and when its owner
dies, freezes or leaves, the other takes over. Real gateways, a real engine, a real Redis."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from fastmcp.exceptions import FastMCPError

from providers.fence import LEASE
from providers.lines import MODERN
from tests.helpers.containers import over_http, over_stdio, until
from tests.helpers.gateway import LATEST, LEGACY, GatewayProcess, client
from tests.helpers.processes import is_stopped
from tests.helpers.redis_server import RedisServer
from tests.helpers.replicas import replica_process

pytestmark = pytest.mark.skipif(not MODERN, reason="FastMCP 3.4 knows no 2026-07-28")

LEASE_SECONDS = 8.0
TABLES = {"stdio": over_stdio, "http": over_http}


@asynccontextmanager
async def two(redis: RedisServer, state: str, **tables: Any) -> AsyncIterator[list[GatewayProcess]]:
    """Two replicas, the first of which has the containers of servers that all share: it is there first."""
    async with (
        replica_process(redis, tables, state_dir=state) as one,
        replica_process(redis, tables, state_dir=state) as other,
    ):
        yield [one, other]


def running(engine: Any) -> list[int]:
    """The leases of the containers that there are."""
    found = engine.containers.list(all=True, filters={"label": "apollos.mcp.server=box"}, ignore_removed=True)
    return [int(container.labels[LEASE]) for container in found]


async def count(process: GatewayProcess, era: str = LATEST) -> int:
    async with client(process.url, era) as caller:
        return int((await caller.call_tool("box_total", {})).data)


async def count_soon(process: GatewayProcess) -> int:
    """As soon as it is answered: a call that was under way when the owner died is told so, and not repeated."""
    with anyio.fail_after(2 * LEASE_SECONDS):
        while True:
            try:
                return await count(process)
            except FastMCPError:
                await anyio.sleep(0.05)


async def test_one_container_over_http_serves_all(redis: RedisServer, state: str, engine: Any) -> None:
    async with two(redis, state, box=over_http(isolation="shared")) as both:
        counts = [await count(process, era) for era in (LATEST, LEGACY) for process in both]
        assert counts == [1, 2, 3, 4]
        assert running(engine) == [1]


async def test_one_container_over_stdio_serves_all(redis: RedisServer, state: str, engine: Any) -> None:
    async with two(redis, state, box=over_stdio(isolation="shared")) as both:
        assert [await count(process) for process in [*both, *both]] == [1, 2, 3, 4]
        assert running(engine) == [1]


@pytest.mark.parametrize("kind", TABLES)
async def test_a_killed_owner_is_replaced(redis: RedisServer, state: str, engine: Any, kind: str) -> None:
    async with two(redis, state, box=TABLES[kind](isolation="shared")) as (owner, other):
        assert [await count(each) for each in (owner, other)] == [1, 2]
        os.kill(owner.pid, signal.SIGKILL)
        started = anyio.current_time()
        assert await count_soon(other) == 1, "another container"
        assert anyio.current_time() - started < LEASE_SECONDS + 6
        assert running(engine) == [2], "what the dead one left is gone"


async def test_a_frozen_owner_is_replaced_and_finds_out(redis: RedisServer, state: str, engine: Any) -> None:
    async with two(redis, state, box=over_http(isolation="shared")) as (owner, other):
        assert [await count(each) for each in (owner, other)] == [1, 2]
        os.kill(owner.pid, signal.SIGSTOP)
        await until(lambda: is_stopped(owner.pid))
        try:
            assert await count_soon(other) == 1, "another container"
            assert running(engine) == [2]
        finally:
            os.kill(owner.pid, signal.SIGCONT)
        assert await count_soon(owner) == 2, "now it is the one that goes through the other"
        assert running(engine) == [2]
        await until(lambda: "another replica runs its container now" in owner.log.read_text())


async def test_an_owner_that_leaves_hands_over_at_once(redis: RedisServer, state: str, engine: Any) -> None:
    async with two(redis, state, box=over_http(isolation="shared")) as (owner, other):
        assert [await count(each) for each in (owner, other)] == [1, 2]
        os.kill(owner.pid, signal.SIGTERM)
        with anyio.fail_after(LEASE_SECONDS - 1):
            assert await count(other) == 1, "no call fails"
        assert running(engine) == [2]
