"""`subscriptions/listen` streams of 2026-07-28 clients, through a real root server, in raw requests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest

from providers import lines, low_level
from tests.composition.test_relay import MODERN, PUBLIC, SUBSCRIPTION, notes, updated
from tests.helpers.fakes import (
    Call,
    Json,
    no_waiting,
    settled,
    signed_in,
    time_passes,
)
from tests.helpers.house import House, house_of

pytestmark = pytest.mark.skipif(not lines.MODERN, reason="FastMCP 3.4 has no way to serve these")


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


class Stream:
    """A `subscriptions/listen` request, and what comes on it in order."""

    def __init__(self) -> None:
        self.frames: list[tuple[str, Json]] = []
        self.result: Json | None = None

    async def __call__(self, message: Any) -> None:
        self.frames.append(message)


@asynccontextmanager
async def listening(house: House, **wanted: Any) -> AsyncIterator[Stream]:
    """A client with one stream. It is spoken to below the SDK's client, which would demultiplex what comes."""
    stream = Stream()
    send, answers = anyio.create_memory_object_stream[Any](0)
    back, received = anyio.create_memory_object_stream[Any](100)
    envelope = {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientInfo": {"name": "raw", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    request = {
        "jsonrpc": "2.0",
        "id": "ears",
        "method": "subscriptions/listen",
        "params": {"notifications": wanted, "_meta": envelope},
    }

    async def read() -> None:
        with suppress(anyio.ClosedResourceError):
            async for item in received:
                note(item)

    def note(item: Any) -> None:
        message, _ = lines.from_session_message(item)
        if "method" in message:
            stream.frames.append((message["method"].removeprefix("notifications/"), message["params"]))
        else:
            stream.result = message.get("result") or message.get("error")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(low_level.serve_in_memory, house.mcp, answers, back)
        tasks.start_soon(read)
        async with send, received:
            await send.send(lines.to_session_message(request))
            await settled()
            yield stream
        tasks.cancel_scope.cancel()
    back.close()
    answers.close()


def marked(**params: Any) -> Json:
    return params | {"_meta": {SUBSCRIPTION: "ears"}}


async def test_a_stream_is_acknowledged_first_and_tells_what_was_asked_for() -> None:
    backend = notes()
    async with (
        house_of(backend, records=[backend.resource(isolation="user")]) as house,
        listening(house, toolsListChanged=True, resourceSubscriptions=[PUBLIC, "note://nobody/x"]) as stream,
    ):
        honored = {"toolsListChanged": True, "resourceSubscriptions": [PUBLIC]}
        assert stream.frames == [("subscriptions/acknowledged", marked(notifications=honored))]
        await backend.heard("resources/subscribe")
        await settled()
        await updated(backend, _meta={"why": "edited"})
        await updated(backend, "note://two")
        [(method, params)] = stream.frames[1:]
        assert (method, params["uri"]) == ("resources/updated", PUBLIC)
        assert params["_meta"] == {"why": "edited", SUBSCRIPTION: "ears"}


async def test_a_server_that_is_slow_to_take_a_subscription_holds_up_no_stream_and_its_client_misses_nothing() -> None:
    gate = anyio.Event()

    async def slow(call: Call) -> Json:
        await gate.wait()
        return {}

    backend = notes(answers={"resources/subscribe": slow})
    async with (
        house_of(backend, records=[backend.resource(isolation="user")]) as house,
        listening(house, resourceSubscriptions=[PUBLIC]) as stream,
    ):
        await time_passes(6)
        assert [method for method, _ in stream.frames] == ["subscriptions/acknowledged"]
        gate.set()
        await settled()
        assert [params["uri"] for _, params in stream.frames[1:]] == [PUBLIC], "something may have been missed"
        await updated(backend)
        assert [params["uri"] for _, params in stream.frames[1:]] == [PUBLIC, PUBLIC]


async def test_lists_that_were_not_asked_for_are_not_told_of() -> None:
    async with house_of(notes()) as house, listening(house, promptsListChanged=True) as stream:
        await house.store.delete("fake")
        await time_passes(1)
        assert [method for method, _ in stream.frames] == ["subscriptions/acknowledged", "prompts/list_changed"]
        assert stream.frames[1][1] == marked()


async def test_a_stream_tells_of_no_server_that_its_user_may_not_read() -> None:
    hidden = notes("secret").resource().model_copy(update={"required_roles": ("boss",)})
    async with house_of(notes("secret"), records=[hidden], local=None) as house:
        with signed_in("bob"):
            async with listening(house, toolsListChanged=True, resourceSubscriptions=["note://secret/one"]) as stream:
                await house.store.delete("secret")
                await time_passes(1)
                assert stream.frames == [
                    ("subscriptions/acknowledged", marked(notifications={"toolsListChanged": True}))
                ]


async def test_what_a_stream_asked_for_ends_with_it() -> None:
    backend = notes()
    async with house_of(backend, records=[backend.resource(isolation="user")]) as house:
        async with listening(house, resourceSubscriptions=[PUBLIC]):
            await backend.heard("resources/subscribe")
        await backend.heard("resources/unsubscribe")
        await settled()
        assert repr(house.registry.listeners) == "<Listeners 0 sessions, 0 streams>"


async def test_the_gateway_that_shuts_down_ends_streams_properly() -> None:
    async with house_of(notes()) as house, listening(house, toolsListChanged=True) as stream:
        house.registry.listeners.stop()
        await settled()
        assert stream.result is not None
        assert stream.result["_meta"][SUBSCRIPTION] == "ears"


async def test_too_many_resources_on_one_stream_are_refused() -> None:
    uris = [f"note://fake/{number}" for number in range(1001)]
    async with house_of(notes()) as house, listening(house, resourceSubscriptions=uris) as stream:
        assert stream.result is not None
        assert "1,000" in stream.result["message"]
