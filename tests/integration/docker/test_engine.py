"""An engine hangs, is restarted, or dies, under a gateway that uses it: an engine of the tests' own.

Calls that need it fail and say why, other servers notice nothing, and soon after its return Docker has what it should
have, and no more.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.to_thread
import pytest
from fastmcp import Client
from fastmcp.exceptions import ToolError

from providers.ownership import SERVER
from tests.helpers.containers import data, ours, over_http, over_stdio, until
from tests.helpers.gateway import LEGACY, ServedGateway, client, gateway_over_http, local, servers_toml
from tests.helpers.own_engine import OwnEngine

pytestmark = [
    pytest.mark.timeout(240),
    # The SDK forgets a socket when an engine ends between its being asked for and its answer.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]
HANGS_FOR = 30.0
BACK_WITHIN = 10.0
"""Seconds after the engine's return in which everything has to work again."""
ENGINE_GONE = r"no Docker engine answers at|Docker did not answer within"


@asynccontextmanager
async def gateway(engine: OwnEngine, state: str, **servers: Any) -> AsyncIterator[ServedGateway]:
    toml = servers_toml(servers, state_dir=state, docker_host=engine.host)
    async with gateway_over_http(toml) as served:
        yield served


async def test_a_hung_engine_costs_other_servers_nothing(
    own_engine: OwnEngine, own_state: str, own_client: Any
) -> None:
    """And running containers go on; those that need the engine are told within its deadline."""
    servers = {
        "cold": over_stdio(isolation="call"),
        "warm": over_http(isolation="shared"),
        "near": local("everything.py"),
    }
    async with gateway(own_engine, own_state, **servers) as served, client(served.url, LEGACY) as caller:
        for name in servers:
            assert await data(caller, f"{name}_total") == 1
        await until(lambda: not ours(own_client, "cold"))  # nothing of it is under way
        with own_engine.hung():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_refused_for, HANGS_FOR - 5, caller, "cold_total")
                await _unaffected_for(HANGS_FOR, caller, "near", "warm")
        await _answers(caller, "cold_total")
        await until(lambda: _servers_at(own_client) == ["warm"], within=BACK_WITHIN)


async def _unaffected_for(seconds: float, caller: Client[Any], *servers: str) -> None:
    until_then, number = anyio.current_time() + seconds, 1
    while anyio.current_time() < until_then:
        number += 1
        for server in servers:
            with anyio.fail_after(2):
                assert await data(caller, f"{server}_total") == number
        await anyio.sleep(0.02)


async def _refused_for(seconds: float, caller: Client[Any], tool: str) -> None:
    """The first call learns it by its deadline; later ones are told at once."""
    until_then, calls = anyio.current_time() + seconds, 0
    while anyio.current_time() < until_then:
        with anyio.fail_after(25), pytest.raises(ToolError, match=ENGINE_GONE):
            await caller.call_tool(tool)
        calls += 1
        await anyio.sleep(0.05)
    assert calls > 10


async def _answers(caller: Client[Any], tool: str) -> Any:
    """What a tool answers as soon as it does again; until then it may be refused, but not hang."""
    with anyio.fail_after(BACK_WITHIN):
        while True:
            try:
                return await data(caller, tool)
            except ToolError:  # it rests for a moment after what failed
                await anyio.sleep(0.05)


def _servers_at(engine: Any) -> list[str]:
    return sorted(container.labels[SERVER] for container in ours(engine))


# ----------------------------------------------------------------------------------------------- restarted, killed


@dataclass(frozen=True)
class Outage:
    """How an engine goes, and with which options it comes back. With `--live-restore` its containers outlive it."""

    end: Callable[[OwnEngine], None]
    options: tuple[str, ...] = ()


LIVE = ("--live-restore",)
OUTAGES = pytest.mark.parametrize(
    "outage",
    [Outage(OwnEngine.stop), Outage(OwnEngine.stop, LIVE), Outage(OwnEngine.kill), Outage(OwnEngine.kill, LIVE)],
    ids=["restarted", "restarted-live", "killed", "killed-live"],
)


@OUTAGES
async def test_an_engine_that_comes_back_finds_nothing_lost_or_doubled(
    own_engine: OwnEngine, own_state: str, own_client: Any, outage: Outage
) -> None:
    own_engine.restart(*outage.options)
    containers = {"one": over_stdio(), "web": over_http(isolation="shared")}
    servers = {**containers, "near": local("everything.py")}
    async with gateway(own_engine, own_state, **servers) as served, client(served.url, LEGACY) as caller:
        for name in servers:
            assert await data(caller, f"{name}_total") == 1
        async with anyio.create_task_group() as tasks:
            for name in containers:
                tasks.start_soon(_told_of_its_loss, caller, name)
            await _all_under_way(served, len(containers))
            await anyio.to_thread.run_sync(outage.end, own_engine)
        for name in containers:
            with anyio.fail_after(BACK_WITHIN):
                await _refused_with(ENGINE_GONE, caller, f"{name}_total")
        assert await data(caller, "near_total") == 2
        await anyio.to_thread.run_sync(own_engine.start, *outage.options)
        for name in containers:
            assert await _answers(caller, f"{name}_total") >= 1
        await until(lambda: _servers_at(own_client) == ["one", "web"], within=BACK_WITHIN)
        assert await data(caller, "near_total") == 3


async def _told_of_its_loss(caller: Client[Any], server: str) -> None:
    """A call that is under way when the engine goes ends, and says what became of it."""
    with anyio.fail_after(20):
        await _refused_with(rf"server '{server}': .*(container|Docker)", caller, f"{server}_slow", seconds=60)


async def _refused_with(words: str, caller: Client[Any], tool: str, **arguments: Any) -> None:
    with pytest.raises(ToolError, match=words):
        await caller.call_tool(tool, arguments)


async def _all_under_way(served: ServedGateway, calls: int) -> None:
    with anyio.fail_after(10):
        while served.gateway.pool.statistics().leases < calls:  # noqa: ASYNC110  # nobody tells
            await anyio.sleep(0.01)


@OUTAGES
async def test_a_kept_container_is_there_once_when_the_engine_is_back(
    own_engine: OwnEngine, own_state: str, own_client: Any, outage: Outage
) -> None:
    """Docker starts it again, or it ran on, or another took its place."""
    own_engine.restart(*outage.options)
    kept = over_http(isolation="shared", keep=True)
    async with gateway(own_engine, own_state, kept=kept) as served, client(served.url, LEGACY) as caller:
        assert await data(caller, "kept_total") == 1
        await anyio.to_thread.run_sync(outage.end, own_engine)
        await anyio.to_thread.run_sync(own_engine.start, *outage.options)
        assert await _answers(caller, "kept_total") >= 1
        await until(lambda: _states_at(own_client) == ["running"], within=BACK_WITHIN)
        assert await data(caller, "kept_total") >= 2
        served.path.write_text(servers_toml({}, state_dir=own_state, docker_host=own_engine.host))
        await until(lambda: ours(own_client) == [])


def _states_at(engine: Any) -> list[str]:
    return [container.status for container in ours(engine)]
