"""The root's middleware: what clients are told first, log levels, and calls counted so that they can be waited for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from fastmcp.exceptions import ToolError

from composition.welcome import instructions, purpose
from providers import lines
from providers.identity import Identity
from providers.lines import MCPError
from tests.helpers.fakes import Call, FakeBackend, Json, never, no_waiting, settled, text, time_passes
from tests.helpers.house import OPERATOR, House, house_of

core = pytest.mark.core


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


# ------------------------------------------------------------------------------------ instructions


async def told_first(house: House) -> str:
    async with house.client() as client:
        return str(client.initialize_result.instructions)  # type: ignore[union-attr]


# Not on 3.4, whose SDK has answered before anybody can add to it.
async def test_a_client_is_told_which_servers_there_are_and_what_each_is_for() -> None:
    files, time = FakeBackend("files"), FakeBackend("time")
    records = [files.resource(description="Files of the team."), time.resource()]
    async with house_of(files, time, records=records) as house:
        assert await told_first(house) == (
            "House offers the tools of several servers. A tool is named after its server: 'server_tool'. "
            "The servers:\n- files: Files of the team.\n- time: no description"
        )


async def test_without_servers_a_client_is_told_so() -> None:
    async with house_of() as house:
        assert await told_first(house) == "House: no server is available to you at the moment."
    assert instructions("X", []) == "X: no server is available to you at the moment."


@core
@pytest.mark.parametrize(
    ("description", "said", "purposed"),
    [
        ("ours", "theirs", "ours"),
        (None, "theirs", "theirs"),
        (None, "two\n\n  lines\tof\u2028text", "two lines of text"),
        (None, "x" * 1000, "x" * 299 + "…"),
        (None, None, "fake"),
    ],
)
async def test_what_a_server_is_for(description: str | None, said: str | None, purposed: str) -> None:
    fake = FakeBackend(instructions=said)
    async with house_of(fake, records=[fake.resource(description=description)]) as house, house.client() as client:
        await client.list_tools()
        assert purpose(house.registry.mounts["fake"], OPERATOR) == purposed


@core
async def test_what_a_server_said_to_one_user_is_not_told_to_another() -> None:
    async with house_of(FakeBackend(instructions="for your eyes only")) as house, house.client() as client:
        await client.list_tools()
        assert purpose(house.registry.mounts["fake"], Identity("somebody", "Else")) == "no description"


@core
async def test_to_say_hello_no_server_is_asked() -> None:
    async with house_of(FakeBackend(before_open=never)) as house:
        began = anyio.current_time()
        await told_first(house)
        assert anyio.current_time() == began and house.backends["fake"].attempts == 0


# -------------------------------------------------------------------------------------- log levels


@core
@pytest.mark.parametrize(("level", "heard"), [("debug", ["info", "error"]), ("error", ["error"]), ("alert", [])])
async def test_the_level_that_a_client_asks_for_counts_for_its_session(level: Any, heard: list[str]) -> None:
    async def answer(call: Call) -> Json:
        await call.log("a", "info")
        await call.log("b", "error")
        return text("done")

    levels: list[str] = []
    others: list[str] = []

    async def on_log(message: Any) -> None:
        levels.append(message.level)

    async def on_others_log(message: Any) -> None:
        others.append(message.level)

    async with (
        house_of(FakeBackend(answers={"tools/call": answer})) as house,
        house.client(log_handler=on_log) as client,
        house.client(log_handler=on_others_log) as other,
    ):
        await lines.send_raw(client.session, "logging/setLevel", {"level": level})
        for each in (client, other):
            await each.call_tool("fake_echo")
        await settled()
    assert levels == heard and others == ["info", "error"]


# ------------------------------------------------------------------------------------------- drain


@core
async def test_draining_refuses_new_calls_and_waits_for_the_open_ones() -> None:
    gate, said = anyio.Event(), []

    async def answer(call: Call) -> Json:
        await gate.wait()
        return text("done")

    fake = FakeBackend(answers={"tools/call": answer})
    async with house_of(fake) as house, house.client() as client, anyio.create_task_group() as tasks:

        async def calling() -> None:
            said.append((await client.call_tool("fake_echo")).content[0].text)

        tasks.start_soon(calling)
        await fake.heard("tools/call")
        assert house.root.calls == 1
        drained = anyio.Event()

        async def drain() -> None:
            await house.root.drain(20)
            drained.set()

        tasks.start_soon(drain)
        await settled()
        assert not drained.is_set()
        for use in (client.call_tool("fake_echo"), client.read_resource("x://fake/a"), client.get_prompt("fake_p")):
            with pytest.raises((ToolError, MCPError), match="the gateway is shutting down"):
                await use
        assert len(await client.list_tools()) == 1, "who looks around may"
        gate.set()
        await drained.wait()
        assert house.root.calls == 0
    assert said == ["done"]


@core
async def test_draining_waits_no_longer_than_its_deadline() -> None:
    fake = FakeBackend(answers={"tools/call": never})
    async with house_of(fake) as house, house.client() as client, anyio.create_task_group() as tasks:
        tasks.start_soon(client.call_tool, "fake_echo")
        await fake.heard("tools/call")
        began = anyio.current_time()
        await house.root.drain(20)
        assert anyio.current_time() - began == pytest.approx(20)
        tasks.cancel_scope.cancel()


@core
async def test_without_calls_draining_is_over_at_once() -> None:
    async with house_of(FakeBackend()) as house, house.client() as client:
        await client.call_tool("fake_echo")
        began = anyio.current_time()
        await house.root.drain(20)
        assert anyio.current_time() == began


@core
async def test_calls_are_counted_whatever_becomes_of_them() -> None:
    fake = FakeBackend(answers={"tools/call": never})
    async with house_of(fake) as house, house.client() as client:
        with pytest.raises((ToolError, MCPError)):
            await client.call_tool("fake_unknown")
        with anyio.move_on_after(1):
            await client.call_tool("fake_echo")
        await time_passes(301)  # on 3.4 the client does not say that it gave up; the deadline of the call does
        assert house.root.calls == 0


@core
async def test_after_a_drain_a_gateway_that_starts_again_takes_calls() -> None:
    async with house_of(FakeBackend()) as house, house.client() as client:
        await house.root.drain(20)
        with pytest.raises(ToolError, match="the gateway is shutting down"):
            await client.call_tool("fake_echo")
        house.root.resume()
        await client.call_tool("fake_echo")
