"""Streams of 2026-07-28 clients through a real gateway, fed by backends of either era."""

from __future__ import annotations

import os
import signal
from typing import Any

import anyio
import pytest

from providers.lines import MODERN
from tests.helpers.ears import TRANSPORTS, ears, everything, marked
from tests.helpers.gateway import (
    LATEST,
    ServedGateway,
    gateway_over_http,
    gateway_over_stdio,
    gateway_process,
    local,
    patient_toml,
)
from tests.helpers.people import tokens, window
from tests.helpers.processes import eventually

pytestmark = [
    pytest.mark.skipif(not MODERN, reason="FastMCP 3.4 has no way to serve these"),
    pytest.mark.filterwarnings("ignore:.*deprecated.*", "ignore:.*is removed as of 2026-07-28.*"),
]

URI, PUBLIC = "data://greeting", "data://b/greeting"


async def is_subscribed(gateway: ServedGateway) -> None:
    channels = gateway.gateway.registry.mounts["b"].subscriptions
    await eventually(
        lambda: "1 channels" in repr(channels) and any(each.pins for each in gateway.gateway.pool.connections())
    )


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_stream_carries_updates_and_lists_of_backends_of_either_era(transport: str) -> None:
    """A modern backend is listened to by a stream of the gateway's own; at one with a handshake it subscribes."""
    async with (
        everything(transport, isolation="user") as table,
        gateway_over_http(patient_toml({"b": table})) as gateway,
        window(gateway.url, era=LATEST, sampling_handler=None, elicitation_handler=None, roots=None) as caller,
        ears(gateway, toolsListChanged=True, resourceSubscriptions=[PUBLIC, "data://nobody/x"]) as stream,
    ):
        honored = {"toolsListChanged": True, "resourceSubscriptions": [PUBLIC]}
        assert await stream.next() == marked("subscriptions/acknowledged", notifications=honored)
        await is_subscribed(gateway)
        await caller.connection.list_tools()
        await caller.call("b_touch", uri=URI)
        assert await stream.next() == marked("resources/updated", uri=PUBLIC)
        await caller.call("b_change_tools", name="newcomer")
        assert await stream.next() == marked("tools/list_changed")
        assert "b_newcomer" in [tool.name for tool in await caller.connection.list_tools()]


async def test_a_stream_that_is_dropped_ends_its_subscriptions_at_the_backend() -> None:
    table = local("everything.py", isolation="shared", timeouts={"first_start": 60.0, "list": 60.0})
    async with gateway_over_http(patient_toml({"b": table})) as gateway:
        async with ears(gateway, resourceSubscriptions=[PUBLIC]) as stream:
            await stream.next()
            await is_subscribed(gateway)
        subscriptions = gateway.gateway.registry.mounts["b"].subscriptions
        await eventually(lambda: "0 channels" in repr(subscriptions))
        assert [each.pins for each in gateway.gateway.pool.connections()] == [0]


async def test_a_stream_over_stdio_is_one_too() -> None:
    toml = patient_toml({"b": local("everything.py")})
    quiet: dict[str, Any] = {"sampling_handler": None, "elicitation_handler": None, "roots": None}
    async with gateway_over_stdio(toml) as command, window(command.transport(), era=LATEST, **quiet) as one:
        await one.call("b_pid")
        from mcp.client.subscriptions import ResourceUpdated, listen

        async with listen(one.connection.session, resource_subscriptions=[PUBLIC]) as stream:
            assert stream.honored.resource_subscriptions == [PUBLIC]
            hearing = aiter(stream)
            with anyio.fail_after(20):
                async with anyio.create_task_group() as tasks:

                    async def touch_until_heard() -> None:
                        while True:  # the backend is asked after the acknowledgement
                            await one.call("b_touch", uri=URI)

                    tasks.start_soon(touch_until_heard)
                    assert await anext(hearing) == ResourceUpdated(uri=PUBLIC)
                    tasks.cancel_scope.cancel()


async def test_a_gateway_that_shuts_down_ends_its_streams_with_an_answer() -> None:
    async with (
        gateway_process(patient_toml({"b": local("everything.py")})) as gateway,
        ears(gateway, toolsListChanged=True) as stream,
    ):
        await stream.next()
        os.kill(gateway.pid, signal.SIGTERM)
        end = await stream.next()
        assert end["result"]["_meta"]["io.modelcontextprotocol/subscriptionId"] == 7


async def test_streams_of_two_users_hear_of_their_own_servers() -> None:
    all_may, engineers = local("hang.py", "proper", required_roles=["*"]), local("everything.py", required_roles=["x"])
    async with (
        gateway_over_http(patient_toml({"b": engineers}), auth=tokens()) as gateway,
        ears(gateway, "ada", toolsListChanged=True, resourceSubscriptions=[PUBLIC]) as ada,
        ears(gateway, "bob", toolsListChanged=True, resourceSubscriptions=[PUBLIC]) as bob,
    ):
        assert (await ada.next())["params"]["notifications"]["resourceSubscriptions"] == [PUBLIC]
        assert (await bob.next())["params"]["notifications"] == {"toolsListChanged": True}
        gateway.path.write_text(patient_toml({}))
        assert await ada.next() == marked("tools/list_changed")
        gateway.path.write_text(patient_toml({"all": all_may}))
        assert await bob.next() == marked("tools/list_changed")  # and never of the first change
