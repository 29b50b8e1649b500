"""At a backend of 2026-07-28 one stream carries what is subscribed to, and the news of lists."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from providers.caller import Caller
from providers.lines import MODERN, MCPError
from tests.helpers.fakes import (
    caller_of,
    modern_caller,
    no_waiting,
    settled,
    time_passes,
)
from tests.helpers.subscribers import OTHER, URI, Streams, desk_of, modern, reader, reader_for

pytestmark = pytest.mark.skipif(not MODERN, reason="FastMCP 3.4 speaks the handshake era alone")


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


@pytest.mark.parametrize("caller", [caller_of(), modern_caller()])
async def test_at_a_modern_backend_one_stream_carries_all(caller: Caller) -> None:
    streams = Streams()
    async with desk_of(modern(streams, resources={"subscribe": True}, tools={"listChanged": True})) as desk:
        one = reader_for(caller)
        await desk.subscribe(one)
        await desk.subscribe(one, uri=OTHER)
        assert streams.asked[-1] == {"toolsListChanged": True, "resourceSubscriptions": sorted([URI, OTHER])}
        await settled()
        assert len(streams.open) == 1
        await streams.tell("notifications/resources/updated", uri=URI, _meta={"why": "edited"})
        [params] = one.listener.mailbox._waiting.values()
        assert params == {"uri": f"public:{URI}", "_meta": {"why": "edited"}}
        desk.subscriptions.unsubscribe(one.listener, URI)
        await desk.backend.until(lambda: streams.asked[-1].get("resourceSubscriptions") == [OTHER])
        one.listener.end()
        await desk.backend.until(lambda: streams.asked[-1] == {"toolsListChanged": True})


async def test_a_stream_that_breaks_is_opened_again_and_what_it_carried_may_have_changed() -> None:
    streams = Streams()
    async with desk_of(modern(streams)) as desk:
        one = reader()
        await desk.subscribe(one)
        streams.end()
        await time_passes(5)
        assert len(streams.open) == 1
        assert one.heard == [f"public:{URI}"]


async def test_a_modern_server_without_subscriptions_answers_as_it_would_directly() -> None:
    streams = Streams()
    async with desk_of(modern(streams, resources={}, tools={"listChanged": True})) as desk:
        with pytest.raises(MCPError, match="Method not found"):
            await desk.subscribe(reader())
