"""A Redis that is killed under a running gateway: what goes on, what is refused, and that all comes back by itself.

A minute is eight seconds here.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import anyio.to_thread
import pytest
from fastmcp.exceptions import ToolError

from composition.stores import store_at
from providers.errors import StoreUnavailable
from providers.lines import MCPError
from providers.store_layers import Patience, StoreState
from tests.helpers.gateway import ServedGateway, gateway_over_http, local, patient_toml
from tests.helpers.people import Window, tokens, window
from tests.helpers.processes import eventually
from tests.helpers.redis_server import PASSWORD, RedisServer, redis_server
from tests.integration.test_live_stores import names, record

pytestmark = pytest.mark.core

A_MINUTE = 8.0
A_SECOND = 1.5
"""With time for a busy machine."""
REFUSALS = (ToolError, MCPError)


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
async def served(redis: RedisServer) -> AsyncIterator[ServedGateway]:
    async with store_at(redis.url) as elsewhere:
        await elsewhere.upsert(record("every", "guest"))
    own = local("everything.py", required_roles=["guest"])
    patience = Patience(grants=A_MINUTE)
    toml = patient_toml({"own": own}, store=redis.url)
    async with gateway_over_http(toml, auth=tokens(), patience=patience) as served:
        yield served


async def readiness(served: ServedGateway) -> tuple[int, dict[str, Any]]:
    url = f"{served.url.removesuffix('/mcp')}/readyz"
    async with aiohttp.ClientSession() as client, client.get(url) as answer:
        return answer.status, await answer.json()


def state_is(served: ServedGateway, state: StoreState) -> Callable[[], bool]:
    return lambda: served.gateway.store.state is state


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_an_outage_from_its_begin_to_its_end(
    served: ServedGateway, redis: RedisServer, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    store = served.gateway.store
    async with window(served.url, "bob", "bob") as bob, window(served.url) as ada:
        assert await bob.call("every_echo", text="before") == "before"
        process = await bob.call("every_pid")
        assert await readiness(served) == (200, {"status": "running"})

        await anyio.to_thread.run_sync(getattr(redis, how))
        await eventually(state_is(served, StoreState.DEGRADED))
        assert await readiness(served) == (200, {"status": "degraded"})
        assert await bob.call("every_pid") == process, "sessions go on from memory"
        for work in (store.upsert(record("late", "guest")), store.delete("every")):
            began = anyio.current_time()
            with pytest.raises(StoreUnavailable):
                await work
            assert anyio.current_time() - began < A_SECOND

        await eventually(lambda: not served.gateway.store.snapshot["every"].required_roles, within=4 * A_MINUTE)
        with pytest.raises(REFUSALS, match="Unknown tool"):
            await bob.call("every_pid")
        assert await names(bob) == {"own"} and await bob.call("own_echo", text="file") == "file"
        assert await ada.call("every_echo", text="admin") == "admin", "who is an administrator by token"

        await anyio.to_thread.run_sync(redis.start if how == "kill" else redis.resume)
        await eventually(state_is(served, StoreState.READY), within=10)
        assert await readiness(served) == (200, {"status": "running"})
        assert await bob.call("every_pid") == process, "the session was never lost"
        await store.upsert(record("late", "guest"))
        assert await bob.call("late_echo", text="after") == "after"
    assert PASSWORD not in caplog.text


async def test_calls_on_grants_that_grew_old_end(served: ServedGateway, redis: RedisServer) -> None:
    said: list[str] = []

    async def calling(person: Window) -> None:
        with pytest.raises(REFUSALS) as refusal:
            await person.call("every_slow", seconds=60)
        said.append(f"{person.tag}: {refusal.value}")

    async with window(served.url, "bob", "bob") as bob, window(served.url) as ada:
        for person in (bob, ada):
            await person.call("every_pid")
        async with anyio.create_task_group() as tasks:
            for person in (bob, ada):
                tasks.start_soon(calling, person)
            await eventually(lambda: served.gateway.root.calls == 2)
            await anyio.to_thread.run_sync(redis.kill)
            await eventually(lambda: served.gateway.root.calls == 1, within=4 * A_MINUTE)
            await eventually(lambda: bool(said))
            assert len(said) == 1 and "bob: " in said[0] and "Unknown tool" in said[0]
            tasks.cancel_scope.cancel()


async def test_what_others_changed_during_the_outage_counts_after_it(served: ServedGateway, redis: RedisServer) -> None:
    async with window(served.url, "bob", "bob") as bob, store_at(redis.url) as elsewhere:
        await bob.call("every_pid")
        await anyio.to_thread.run_sync(redis.kill)
        await eventually(state_is(served, StoreState.DEGRADED))
        await anyio.to_thread.run_sync(redis.start)
        await elsewhere.upsert(record("every", "boss"))
        await elsewhere.upsert(record("late", "guest"))
        await eventually(lambda: "late" in served.gateway.registry.mounts, within=10)
        assert await names(bob) == {"own", "late"}


async def test_a_gateway_starts_while_its_redis_is_away(redis: RedisServer, tmp_path: Path) -> None:
    redis.kill()
    toml = patient_toml({"own": local("everything.py", required_roles=["guest"])}, store=redis.url)
    async with gateway_over_http(toml, auth=tokens()) as served, window(served.url, "bob", "bob") as bob:
        assert await readiness(served) == (200, {"status": "degraded"})
        assert await names(bob) == {"own"}
        await anyio.to_thread.run_sync(redis.start)
        async with store_at(redis.url) as elsewhere:
            await elsewhere.upsert(record("every", "guest"))
        await eventually(lambda: "every" in served.gateway.registry.mounts, within=10)
        assert await names(bob) == {"own", "every"} and await readiness(served) == (200, {"status": "running"})
