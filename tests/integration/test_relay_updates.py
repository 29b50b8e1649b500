"""Subscriptions, completion and news of roots through a real gateway to real servers, in both eras.

What a client subscribed to reaches that client and nobody else; what nobody wants any more ends at the backend.
"""

from __future__ import annotations

from typing import Any

import pytest

from providers.lines import MODERN, MCPError, mcp_types
from tests.helpers.ears import TRANSPORTS, everything
from tests.helpers.gateway import (
    LATEST,
    LEGACY,
    gateway_over_http,
    gateway_over_stdio,
    local,
    patient_toml,
)
from tests.helpers.people import Window, tokens, window
from tests.helpers.processes import ServerCommand, eventually

pytestmark = [
    pytest.mark.skipif(not MODERN, reason="FastMCP 3.4 has no way to serve these"),
    pytest.mark.filterwarnings("ignore:.*deprecated.*", "ignore:.*is removed as of 2026-07-28.*"),
]

URI, PUBLIC = "data://greeting", "data://b/greeting"


async def subscribe(one: Window, uri: str = PUBLIC) -> None:
    await one.connection.session.subscribe_resource(uri)


async def updated(one: Window, times: int = 1) -> None:
    await eventually(lambda: one.times("updated", PUBLIC) == times)


async def subscribed(one: Window) -> Any:
    """How many sessions the backend counts."""
    return (await one.call("b_subscribed")).get(URI, 0)


async def nobody_is_subscribed(one: Window) -> None:
    while await subscribed(one):
        pass


# ------------------------------------------------------------------------------------------------- handshake clients


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_subscriber_hears_of_updates_until_it_unsubscribes(transport: str) -> None:
    async with (
        everything(transport) as table,
        gateway_over_http(patient_toml({"b": table})) as gateway,
        window(gateway.url) as one,
        window(gateway.url) as other,
    ):
        await other.call("b_pid")
        await subscribe(one)
        assert await one.call("b_touch", uri=URI) == 1
        await updated(one)
        await one.connection.session.unsubscribe_resource(PUBLIC)
        await nobody_is_subscribed(one)
        assert await one.call("b_touch", uri=URI) == 0
        assert (one.times("updated", PUBLIC), other.heard) == (1, [])


async def test_it_is_the_same_over_stdio() -> None:
    toml = patient_toml({"b": local("everything.py")})
    async with gateway_over_stdio(toml) as command, window(command.transport()) as one:
        await subscribe(one)
        assert await one.call("b_touch", uri=URI) == 1
        await updated(one)


async def test_what_the_backend_says_unasked_reaches_subscribers_alone() -> None:
    table = local("everything.py", isolation="shared")
    async with (
        gateway_over_http(patient_toml({"b": table})) as gateway,
        window(gateway.url) as one,
        window(gateway.url) as caller,
    ):
        await subscribe(one)
        await caller.call("b_touch_unasked", uri=URI)
        await updated(one)
        assert caller.times("updated", PUBLIC) == 0


@pytest.mark.parametrize("transport", ["stdio", "streamable_http"])
async def test_many_sessions_share_one_subscription_that_ends_with_the_last_of_them(transport: str) -> None:
    async with (
        everything(transport, isolation="shared") as table,
        gateway_over_http(patient_toml({"b": table})) as gateway,
        window(gateway.url) as watcher,
    ):
        async with window(gateway.url) as one:
            async with window(gateway.url) as other:
                await subscribe(one)
                await subscribe(other)
                assert await subscribed(watcher) == 1
                await watcher.call("b_touch", uri=URI)
                await updated(one)
                await updated(other)
            assert await subscribed(watcher) == 1
        await nobody_is_subscribed(watcher)
        assert watcher.heard == []


async def test_users_and_windows_of_one_user_are_kept_apart() -> None:
    table = local("everything.py", required_roles=["*"])
    async with (
        gateway_over_http(patient_toml({"b": table}), auth=tokens()) as gateway,
        window(gateway.url, "ada", "one") as one,
        window(gateway.url, "ada", "two") as two,
        window(gateway.url, "bob", "bob") as bob,
    ):
        for each in (one, two, bob):
            await subscribe(each)
        await two.call("b_touch", uri=URI)
        await updated(two)
        await bob.call("b_touch", uri=URI)
        await updated(bob)
        assert (one.heard, len(two.heard), len(bob.heard)) == ([], 1, 1)


async def test_who_loses_the_right_to_read_hears_nothing_more() -> None:
    table = local("everything.py", isolation="shared")
    async with (
        gateway_over_http(patient_toml({"b": {**table, "required_roles": ["*"]}}), auth=tokens()) as gateway,
        window(gateway.url, "ada", "ada") as ada,
        window(gateway.url, "bob", "bob") as bob,
    ):
        await subscribe(ada)
        await subscribe(bob)
        gateway.path.write_text(patient_toml({"b": {**table, "required_roles": ["engineer"]}}))
        await eventually(lambda: bob.times("changed", "tools") > 0)
        await ada.call("b_touch", uri=URI)
        await updated(ada)
        assert bob.times("updated", PUBLIC) == 0
        with pytest.raises(MCPError, match="Unknown resource"):
            await subscribe(bob)


async def test_after_a_crash_the_subscription_is_there_again_and_the_client_hears_once() -> None:
    async with gateway_over_http(patient_toml({"b": local("everything.py")})) as gateway, window(gateway.url) as one:
        await subscribe(one)
        await one.connection.call_tool("b_crash", raise_on_error=False)
        await updated(one)
        assert await subscribed(one) == 1
        await one.call("b_touch", uri=URI)
        await updated(one, times=2)


async def test_a_server_that_is_reached_in_another_way_now_is_subscribed_there() -> None:
    async with gateway_over_http(patient_toml({"b": local("everything.py")})) as gateway, window(gateway.url) as one:
        await subscribe(one)
        gateway.path.write_text(patient_toml({"b": local("everything.py", env={"ANOTHER": "process"})}))
        await updated(one)
        assert await subscribed(one) == 1


async def test_a_refusal_comes_as_the_backend_gave_it() -> None:
    async with gateway_over_http(patient_toml({"b": local("everything.py")})) as gateway, window(gateway.url) as one:
        with pytest.raises(MCPError) as raised:
            await subscribe(one, "refused://b/:x")
        assert raised.value.error.model_dump(exclude_none=True) == {
            "code": -32602,
            "message": "this one cannot be subscribed to",
            "data": {"why": "it is refused"},
        }


# ------------------------------------------------------------------------------------------------ completion, roots


@pytest.mark.parametrize("era", [LEGACY, LATEST])
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_completion_reaches_its_owner(transport: str, era: str) -> None:
    async with (
        everything(transport) as table,
        gateway_over_http(patient_toml({"b": table})) as gateway,
        window(gateway.url, era=era) as one,
    ):
        session = one.connection.session
        prompt = await session.complete(
            mcp_types.PromptReference(name="b_summarize"), {"name": "topic", "value": "ca"}, {"tone": "dry"}
        )
        assert prompt.completion.values == ["summarize topic=ca {'tone': 'dry'}"]
        assert (prompt.completion.total, prompt.completion.has_more) == (7, True)
        template = await session.complete(
            mcp_types.ResourceTemplateReference(uri="data://b/item/{id}"), {"name": "id", "value": "4"}
        )
        assert template.completion.values == ["data://item/{id} id=4 {}"]
        unknown = await session.complete(mcp_types.PromptReference(name="nobody_x"), {"name": "topic", "value": ""})
        assert unknown.completion.values == []


async def test_news_of_roots_reach_the_process_of_that_session() -> None:
    async with (
        gateway_over_http(patient_toml({"b": local("everything.py")})) as gateway,
        window(gateway.url) as one,
        window(gateway.url) as other,
    ):
        await one.call("b_pid")
        await other.call("b_pid")
        await one.connection.send_roots_list_changed()
        while not await one.call("b_roots_news"):
            pass
        assert await other.call("b_roots_news") == 0


# -------------------------------------------------------------------------------------------- third-party servers


async def test_the_reference_server_completes_and_updates(everything_server: ServerCommand) -> None:
    table = {"command": everything_server.command, "args": everything_server.args}
    uri = "demo://b/resource/dynamic/text/1"
    async with (
        gateway_over_http(patient_toml({"b": table})) as gateway,
        window(gateway.url) as one,
        window(gateway.url) as other,
    ):
        reference = mcp_types.PromptReference(name="b_completable-prompt")
        departments = await one.connection.session.complete(reference, {"name": "department", "value": "S"})
        assert departments.completion.values == ["Sales", "Support"]
        names = await one.connection.session.complete(reference, {"name": "name", "value": ""}, {"department": "Sales"})
        assert names.completion.values == ["David", "Eve", "Frank"]
        with pytest.raises(MCPError, match="Prompt unknown not found"):
            await one.connection.session.complete(
                mcp_types.PromptReference(name="b_unknown"), {"name": "x", "value": ""}
            )
        await subscribe(one, uri)
        await one.call("b_toggle-subscriber-updates")
        await eventually(lambda: one.times("updated", uri) > 0)
        assert other.heard == []


async def test_the_memory_server_tells_of_its_graph_and_completes_nothing(memory_server: ServerCommand) -> None:
    table = {"command": memory_server.command, "args": memory_server.args, "env": memory_server.env}
    graph = "memory://b/knowledge-graph"
    async with gateway_over_http(patient_toml({"b": table})) as gateway, window(gateway.url) as one:
        await one.connection.list_tools()
        await subscribe(one, graph)
        await one.call("b_create_entities", entities=[{"name": "Ada", "entityType": "person", "observations": []}])
        await eventually(lambda: one.times("updated", graph) > 0)
        with pytest.raises(MCPError) as raised:
            await one.connection.session.complete(mcp_types.PromptReference(name="b_x"), {"name": "x", "value": ""})
        assert raised.value.error.code == -32601
        async with window(gateway.url) as later:
            declared = later.connection.session.server_capabilities
            assert declared is not None
            assert (declared.completions, declared.prompts) == (None, None)
            assert declared.resources is not None
            assert declared.resources.subscribe
