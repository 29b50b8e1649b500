"""Servers in containers through the gateway, over stdio, Streamable HTTP and SSE, as a client sees them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest
from fastmcp import Client

from tests.helpers.containers import TIME, ours, over_http, over_stdio, times_made, until
from tests.helpers.gateway import (
    ERAS,
    LEGACY,
    ServedGateway,
    client,
    gateway_over_http,
    gateway_over_stdio,
    servers_toml,
)

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("engine")]


@asynccontextmanager
async def gateway(state: str, **servers: dict[str, Any]) -> AsyncIterator[ServedGateway]:
    async with gateway_over_http(servers_toml(servers, state_dir=state)) as served:
        yield served


async def data(caller: Client[Any], tool: str, **arguments: Any) -> Any:
    return (await caller.call_tool(tool, arguments)).data


@pytest.mark.core
@pytest.mark.parametrize("era", ERAS)
async def test_a_third_party_server_over_stdio(state: str, era: str) -> None:
    async with gateway(state, time=over_stdio(TIME)) as served, client(served.url, era) as caller:
        assert {tool.name for tool in await caller.list_tools()} == {"time_get_current_time", "time_convert_time"}
        answer = await caller.call_tool("time_get_current_time", {"timezone": "Asia/Tokyo"})
        assert "+09:00" in answer.content[0].text


@pytest.mark.core
async def test_a_third_party_server_for_a_host_that_starts_the_gateway_itself(state: str) -> None:
    toml = servers_toml({"time": over_stdio(TIME)}, state_dir=state)
    async with gateway_over_stdio(toml) as started, client(started.transport(), LEGACY) as caller:
        answer = await caller.call_tool("time_get_current_time", {"timezone": "UTC"})
        assert "UTC" in answer.content[0].text


@pytest.mark.core
@pytest.mark.parametrize("transport", ["streamable_http", "sse"])
async def test_a_server_over_http(state: str, transport: str) -> None:
    table = over_http(transport_type=transport)
    async with gateway(state, web=table) as served, client(served.url, LEGACY) as caller:
        assert await data(caller, "web_add", a=2, b=3) == 5
        assert len(await data(caller, "web_echo", text="x" * 400_000)) == 400_000
        seen: list[float] = []

        async def note(progress: float, total: float | None, message: str | None) -> None:
            seen.append(progress)

        await caller.call_tool("web_slow", {"seconds": 0.1, "steps": 3}, progress_handler=note)
        assert seen == [1, 2, 3]


@pytest.mark.core
@pytest.mark.parametrize("table", [over_stdio(), over_http()], ids=["stdio", "http"])
async def test_what_a_server_remembers_belongs_to_one_session(state: str, table: dict[str, Any], engine: Any) -> None:
    async with gateway(state, every=table) as served:
        async with client(served.url, LEGACY) as one, client(served.url, LEGACY) as other:
            assert [await data(one, "every_total") for _ in range(3)] == [1, 2, 3]
            assert await data(other, "every_total") == 1
            assert await data(one, "every_total") == 4
        await until(lambda: not ours(engine))  # with the sessions their containers went


@pytest.mark.core
@pytest.mark.parametrize("table", [over_stdio, over_http], ids=["stdio", "http"])
async def test_a_shared_server_has_one_container(state: str, table: Any, engine: Any) -> None:
    """And it is started once, however many come while it is cold."""
    async with gateway(state, every=table(isolation="shared")) as served, AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(client(served.url, LEGACY)) for _ in range(8)]
        totals: list[int] = []

        async def call(caller: Client[Any]) -> None:
            totals.append(await data(caller, "every_total"))

        async with anyio.create_task_group() as tasks:
            for caller in callers:
                tasks.start_soon(call, caller)
        assert sorted(totals) == list(range(1, 9))
        async with client(served.url, LEGACY) as newcomer:
            assert await data(newcomer, "every_total") == 9  # it is warm
        assert len(ours(engine)) == 1
        assert times_made(engine, "every") == 1


@pytest.mark.core
async def test_output_is_whole_however_it_is_cut_into_frames(state: str) -> None:
    """Long lines on stdout with lines on stderr in between."""
    toml = servers_toml({"every": over_stdio()}, state_dir=state)
    async with gateway_over_stdio(toml) as started, client(started.transport(), LEGACY) as caller:
        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(caller.call_tool, "every_say", {"text": f"line {number}", "times": 200})
            for _ in range(3):
                assert len(await data(caller, "every_big", megabytes=2)) == 2 * 2**20
        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(_echo, caller, f"{number}" * 1000)


async def _echo(caller: Client[Any], text: str) -> None:
    assert await data(caller, "every_echo", text=text) == text


@pytest.mark.core
async def test_a_container_sees_little(state: str) -> None:
    servers = {"every": over_stdio(), "web": over_http(isolation="shared")}
    servers["out"] = over_stdio(docker_network="internet")
    async with gateway(state, **servers) as served, client(served.url, LEGACY) as caller:
        inside = await data(caller, "every_inside")
        assert (inside["uid"], inside["gid"]) == (65534, 65534)
        assert int(inside["capabilities"], 16) == 0
        assert inside["no_new_privileges"] == "1"
        assert inside["interfaces"] == ["lo"]
        assert inside["writable"] == ["/data", "/tmp"]
        assert inside["environment"]["HOME"] == "/tmp"
        assert not any(name.startswith("APOLLOS") for name in inside["environment"])
        assert len((await data(caller, "web_inside"))["interfaces"]) == 2
        assert len((await data(caller, "out_inside"))["interfaces"]) == 2


@pytest.mark.core
async def test_a_secret_is_a_file_that_inspection_does_not_show(state: str, engine: Any) -> None:
    canary = "canary-4711-secret"
    table = over_stdio(docker_secrets={"token": canary}, env={"PLAIN": "visible"})
    async with gateway(state, every=table) as served, client(served.url, LEGACY) as caller:
        path = (await data(caller, "every_inside"))["environment"]["TOKEN_FILE"]
        assert path == "/run/secrets/token"
        assert await data(caller, "every_read", path=path) == canary
        assert canary not in str(engine.api.inspect_container(ours(engine, "every")[0].id))


@pytest.mark.core
async def test_nothing_of_stdio_traffic_is_in_dockers_log(state: str, engine: Any) -> None:
    async with gateway(state, every=over_stdio()) as served, client(served.url, LEGACY) as caller:
        await data(caller, "every_echo", text="private")
        assert engine.api.inspect_container(ours(engine, "every")[0].id)["LogPath"] == ""


async def test_five_servers_and_twenty_sessions_of_each(state: str, engine: Any) -> None:
    servers = {f"s{number}": over_http(isolation="shared") for number in range(3)}
    servers |= {f"s{number}": over_stdio(isolation="shared") for number in range(3, 5)}
    async with gateway(state, **servers) as served, AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(client(served.url, LEGACY)) for _ in range(20)]
        found: list[str] = []

        async def use(caller: Client[Any], number: int) -> None:
            for server in servers:
                nonce = f"{server}-{number}"
                assert await data(caller, f"{server}_echo", text=nonce) == nonce
                found.append(nonce)

        async with anyio.create_task_group() as tasks:
            for number, caller in enumerate(callers):
                tasks.start_soon(use, caller, number)
        assert len(set(found)) == 100
        assert len(ours(engine)) == 5
