"""What is offered changes while clients are connected: they hear of it, and their lists show it, without a restart.

A backend may change its own lists, and the operator may edit servers.toml.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.helpers.ears import everything
from tests.helpers.gateway import gateway_over_http, gateway_over_stdio, local, patient_toml
from tests.helpers.people import Window, tokens, window
from tests.helpers.processes import eventually

pytestmark = pytest.mark.core

FRONTS = ("http", "stdio")


@asynccontextmanager
async def connected(front: str, toml: str) -> AsyncIterator[tuple[Window, Path]]:
    """A client of a gateway over HTTP or stdio, and the servers.toml that the gateway follows."""
    if front == "http":
        async with gateway_over_http(toml) as gateway, window(gateway.url) as one:
            yield one, gateway.path
    else:
        async with gateway_over_stdio(toml) as command, window(command.transport()) as one:
            yield one, command.path


async def tools(one: Window) -> set[str]:
    return {tool.name for tool in await one.connection.list_tools()}


async def hears_of(one: Window, *kinds: str) -> None:
    """Wait until the client was told that these lists changed, and forget it."""
    await eventually(lambda: all(one.times("changed", kind) for kind in kinds))
    one.heard.clear()


# --------------------------------------------------------------------------------------------- a backend's own change


@pytest.mark.parametrize(
    ("front", "transport"),
    [("http", "stdio"), ("http", "streamable_http"), ("http", "sse"), ("http", "python"), ("stdio", "stdio")],
)
async def test_a_tool_that_comes_and_goes_is_announced_and_listed(front: str, transport: str) -> None:
    async with everything(transport) as table, connected(front, patient_toml({"b": table})) as (one, _):
        before = await tools(one)
        assert await one.call("b_change_tools", name="newcomer") == "newcomer"
        await hears_of(one, "tools")
        assert await tools(one) == before | {"b_newcomer"}
        assert await one.call("b_newcomer") == "newcomer"
        await one.call("b_change_tools", name="newcomer")
        await hears_of(one, "tools")
        assert await tools(one) == before


async def test_a_change_in_one_sessions_process_is_that_sessions_alone() -> None:
    toml = patient_toml({"b": local("everything.py")})
    async with gateway_over_http(toml) as gateway, window(gateway.url) as one, window(gateway.url) as other:
        before = await tools(other)
        assert await other.call("b_pid") != await one.call("b_pid")
        await one.call("b_change_tools", name="newcomer")
        await hears_of(one, "tools")
        assert await tools(one) == before | {"b_newcomer"}
        assert await tools(other) == before


# -------------------------------------------------------------------------------------------- an edit of servers.toml


@pytest.mark.parametrize("front", FRONTS)
async def test_servers_come_go_and_change_while_a_client_is_connected(front: str) -> None:
    first = {"one": local("hang.py", "proper")}
    async with connected(front, patient_toml(first)) as (one, path):
        assert await tools(one) == {"one_echo"}

        path.write_text(patient_toml({**first, "two": local("hang.py", "proper")}))
        await hears_of(one, "tools", "resources", "prompts")
        assert await tools(one) == {"one_echo", "two_echo"}
        assert await one.call("two_echo", text="hello") == "hello"

        renamed = local("hang.py", "proper", tools={"rename": {"echo": "repeat"}})
        path.write_text(patient_toml({"one": renamed, "two": local("hang.py", "proper", is_enabled=False)}))
        await hears_of(one, "tools")
        await eventually_lists(one, {"one_repeat"})
        assert await one.call("one_repeat", text="hello") == "hello"

        path.write_text(patient_toml({}))
        await hears_of(one, "tools")
        await eventually_lists(one, set())


async def eventually_lists(one: Window, expected: set[str]) -> None:
    """The list shows one edit; where that took two steps, the client hears of the second, too."""
    if await tools(one) != expected:
        await hears_of(one, "tools")
    assert await tools(one) == expected


@pytest.mark.parametrize("front", FRONTS)
async def test_a_broken_edit_changes_nothing_and_a_good_one_after_it_counts(front: str) -> None:
    good = {"one": local("hang.py", "proper")}
    async with connected(front, patient_toml(good)) as (one, path):
        assert await tools(one) == {"one_echo"}
        path.write_text("[servers.two]\ncomand = 'mistyped'\n")
        assert await one.call("one_echo", text="still here") == "still here"
        path.write_text(patient_toml({**good, "two": local("hang.py", "proper")}))
        await hears_of(one, "tools")
        assert await tools(one) == {"one_echo", "two_echo"}


async def test_an_edit_leaves_the_sessions_of_other_servers_alone() -> None:
    kept = local("everything.py")
    async with connected("http", patient_toml({"kept": kept, "edited": local("hang.py", "proper")})) as (one, path):
        assert await one.call("kept_total") == 1
        path.write_text(patient_toml({"kept": {**kept, "description": "told anew"}, "new": local("hang.py", "proper")}))
        await hears_of(one, "tools")
        assert "new_echo" in await tools(one)
        assert await one.call("kept_total") == 2


async def test_only_who_may_see_a_server_hears_that_it_came() -> None:
    servers = {"all": local("hang.py", "proper", required_roles=["*"])}
    engineers = {**servers, "new": local("hang.py", "proper", required_roles=["engineer"])}
    guests = {**engineers, "late": local("hang.py", "proper", required_roles=["guest"])}
    async with (
        gateway_over_http(patient_toml(servers), auth=tokens()) as gateway,
        window(gateway.url, "ada", "ada") as ada,
        window(gateway.url, "bob", "bob") as bob,
    ):
        gateway.path.write_text(patient_toml(engineers))
        await hears_of(ada, "tools")
        assert await tools(ada) == {"all_echo", "new_echo"}
        assert await tools(bob) == {"all_echo"}
        gateway.path.write_text(patient_toml(guests))
        await eventually(lambda: bob.times("changed", "tools") > 0)
        assert await tools(bob) == {"all_echo", "late_echo"}
        assert bob.times("changed", "tools") == 1  # of the first change, which came before, he never heard
