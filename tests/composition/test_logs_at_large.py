"""What a backend logs while no call runs: for the one client session that its connection belongs to, or for nobody."""

from __future__ import annotations

from typing import Any

import pytest

from providers.identity import Identity
from providers.lines import Json
from tests.helpers.fakes import FakeBackend, settled
from tests.helpers.house import House, house_of

pytestmark = pytest.mark.core


class Inbox:
    def __init__(self) -> None:
        self.logs: list[tuple[str, Any]] = []

    async def __call__(self, message: Any) -> None:
        self.logs.append((message.level, message.data))


def log(level: str, data: str) -> Json:
    return {"level": level, "data": data}


async def say_between_calls(house: House, isolation: str, *levels: str) -> tuple[Inbox, Inbox]:
    """Two clients have called; then each one's connection logs. What each heard."""
    mine, other = Inbox(), Inbox()
    backend = house.backends["fake"]
    async with house.client(log_handler=mine) as one, house.client(log_handler=other) as two:
        await one.call_tool("fake_echo", {"text": "x"})
        await two.call_tool("fake_echo", {"text": "x"})
        for level in levels:
            await backend.wires[0].say("notifications/message", log(level, "first"))
        await settled()
    return mine, other


async def test_it_reaches_the_session_that_the_connection_is_for_and_no_other() -> None:
    backend = FakeBackend()
    async with house_of(backend) as house:
        mine, other = await say_between_calls(house, "session", "info")
    heard = sorted([mine.logs, other.logs])
    assert heard == [[], [("info", "first")]]


@pytest.mark.parametrize("isolation", ["shared", "user"])
async def test_on_a_connection_that_several_sessions_share_it_is_nobodys(isolation: str) -> None:
    backend = FakeBackend()
    async with house_of(backend, records=[backend.resource(isolation=isolation)]) as house:
        mine, other = await say_between_calls(house, isolation, "info")
    assert (mine.logs, other.logs) == ([], [])


@pytest.mark.filterwarnings("ignore:The logging capability is deprecated")
async def test_each_session_hears_only_the_level_that_it_wants() -> None:
    backend, inbox = FakeBackend(capabilities={"tools": {}, "logging": {}}), Inbox()
    async with house_of(backend) as house, house.client(log_handler=inbox) as client:
        await client.set_logging_level("error")
        await client.call_tool("fake_echo", {"text": "x"})
        for level in ("info", "loud", "critical"):
            await backend.wires[-1].say("notifications/message", log(level, "x"))
        await settled()
    assert inbox.logs == [("critical", "x")]


async def test_who_may_not_use_the_server_any_more_hears_nothing() -> None:
    backend, inbox, developer = FakeBackend(), Inbox(), Identity("d", "D", frozenset({"dev"}))
    record = backend.resource().model_copy(update={"required_roles": ("dev",)})
    async with (
        house_of(backend, records=[record], local=developer) as house,
        house.client(log_handler=inbox) as client,
    ):
        await client.call_tool("fake_echo", {"text": "x"})
        wire = backend.wires[-1]
        await wire.say("notifications/message", log("info", "before"))
        await settled()
        house.registry.sync({"fake": record.model_copy(update={"required_roles": ("ops",)})})
        await wire.say("notifications/message", log("info", "after"))
        await settled()
    assert inbox.logs == [("info", "before")]
