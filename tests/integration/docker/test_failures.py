"""What goes wrong with containers, done to real ones: killed, out of memory, crashing, deaf, or not to be had."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import pytest
from fastmcp import Client
from fastmcp.exceptions import ToolError

from providers.container_launcher import ServerState
from tests.helpers.containers import ours, over_http, over_stdio, until
from tests.helpers.gateway import (
    LEGACY,
    ServedGateway,
    client,
    gateway_over_http,
    servers_toml,
)

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("engine")]
KINDS = pytest.mark.parametrize("table", [over_stdio, over_http], ids=["stdio", "http"])


@asynccontextmanager
async def gateway(state: str, options: dict[str, Any] | None = None, **servers: Any) -> AsyncIterator[ServedGateway]:
    async with gateway_over_http(servers_toml(servers, state_dir=state, **(options or {}))) as served:
        yield served


async def data(caller: Client[Any], tool: str, **arguments: Any) -> Any:
    return (await caller.call_tool(tool, arguments)).data


async def failure(caller: Client[Any], tool: str, **arguments: Any) -> str:
    with pytest.raises(ToolError) as caught:
        await caller.call_tool(tool, arguments)
    return str(caught.value)


@KINDS
async def test_a_killed_container_fails_its_call_at_once_and_is_replaced(state: str, table: Any, engine: Any) -> None:
    async with gateway(state, every=table()) as served, client(served.url, LEGACY) as caller:
        assert await data(caller, "every_total") == 1
        [container] = ours(engine, "every")
        async with anyio.create_task_group() as tasks:
            told: list[str] = []

            async def call() -> None:
                told.append(await failure(caller, "every_slow", seconds=60))

            tasks.start_soon(call)
            await _under_way(served)
            with anyio.fail_after(10):
                await anyio.to_thread.run_sync(container.kill)
                await until(lambda: bool(told))
        assert "server 'every'" in told[0] and "137" in told[0]
        assert await data(caller, "every_total") == 1  # a new container, which remembers nothing
        assert [each.id for each in ours(engine, "every")] != [container.id]


async def _under_way(served: ServedGateway) -> None:
    """Until a call has reached its connection."""
    with anyio.fail_after(10):
        while not served.gateway.pool.statistics().leases:  # noqa: ASYNC110  # nobody tells
            await anyio.sleep(0.01)


@KINDS
async def test_a_container_that_runs_out_of_memory_says_so(state: str, table: Any) -> None:
    async with gateway(state, every=table(docker_memory="128m")) as served, client(served.url, LEGACY) as caller:
        told = await failure(caller, "every_eat_memory", megabytes=400)
        assert "ran out of memory" in told and "docker_memory" in told
        assert await data(caller, "every_echo", text="again") == "again"


@KINDS
async def test_a_container_that_crashes_at_its_start_tells_its_last_words(state: str, table: Any, engine: Any) -> None:
    """And is not started again and again: from then on calls fail at once."""
    broken = table(args=["crash", "no", "such", "table"])
    async with gateway(state, every=broken) as served, client(served.url, LEGACY) as caller:
        told = await failure(caller, "every_echo", text="x")
        assert "exit code 3" in told and "no such table" in told
        [launcher] = served.gateway.containers.launchers
        for _ in range(40):
            assert "no such table" in await failure(caller, "every_echo", text="x")
        assert launcher.restarts <= 3
        await until(lambda: launcher.state is ServerState.CRASH_LOOP, within=30)
        with anyio.fail_after(1):
            assert "times in a row" in await failure(caller, "every_echo", text="x")
        await until(lambda: ours(engine, "every") == [])


async def test_a_server_that_never_reads_is_ended_all_the_same(state: str, engine: Any) -> None:
    deaf = over_stdio(args=["deaf"], timeouts={"first_start": 3, "shutdown": 2})
    async with gateway(state, every=deaf) as served, client(served.url, LEGACY) as caller:
        assert "did not finish 'initialize'" in await failure(caller, "every_echo", text="x")
        await until(lambda: ours(engine, "every") == [])


@KINDS
async def test_a_missing_image_is_told_at_once(state: str, table: Any) -> None:
    gone = table("apollos-test/nowhere:1.0")
    async with gateway(state, every=gone) as served, client(served.url, LEGACY) as caller:
        assert "Run: docker pull apollos-test/nowhere:1.0" in await failure(caller, "every_echo", text="x")


async def test_a_broken_server_costs_the_others_nothing(state: str) -> None:
    servers = {"bad": over_stdio(args=["crash"]), "good": over_stdio()}
    async with gateway(state, **servers) as served, client(served.url, LEGACY) as caller:
        await failure(caller, "bad_echo", text="x")
        assert await data(caller, "good_echo", text="fine") == "fine"


@KINDS
async def test_an_idle_container_is_stopped_and_started_by_the_next_call(state: str, table: Any, engine: Any) -> None:
    async with gateway(state, every=table(idle_stop=1.5)) as served, client(served.url, LEGACY) as caller:
        assert await data(caller, "every_total") == 1
        await data(caller, "every_slow", seconds=3)  # in use is not idle
        assert await data(caller, "every_total") == 2
        await until(lambda: ours(engine, "every") == [])
        assert await data(caller, "every_total") == 1


@KINDS
async def test_there_are_never_more_containers_than_allowed(state: str, table: Any, engine: Any) -> None:
    servers = {name: table() for name in ("one", "two", "three")}
    async with gateway(state, {"max_containers": 2}, **servers) as served, client(served.url, LEGACY) as caller:
        for _ in range(2):
            for name in servers:
                assert await data(caller, f"{name}_echo", text=name) == name
                assert len(ours(engine)) <= 2


@KINDS
async def test_a_server_that_leaves_the_file_takes_its_containers_with_it(state: str, table: Any, engine: Any) -> None:
    async with gateway(state, every=table(), other=table()) as served, client(served.url, LEGACY) as caller:
        await data(caller, "every_total")
        served.path.write_text(servers_toml({"other": table()}, state_dir=state))
        await until(lambda: ours(engine, "every") == [])


async def test_an_eager_server_runs_before_anybody_asks(state: str, engine: Any) -> None:
    async with gateway(state, web=over_http(isolation="shared", start="eager")) as served:
        await served.gateway.start()
        await until(lambda: [each.status for each in ours(engine, "web")] == ["running"])


async def test_containers_that_somebody_removes_are_missed(state: str, engine: Any) -> None:
    async with gateway(state, web=over_http(isolation="shared")) as served, client(served.url, LEGACY) as caller:
        assert await data(caller, "web_total") == 1
        await anyio.to_thread.run_sync(lambda: ours(engine, "web")[0].remove(force=True, v=True))
        assert await data(caller, "web_total") == 1
