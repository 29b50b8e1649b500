"""What FastMCP has no components for, through a real root server: completion, subscriptions, streams, roots.

Raw requests, so that nothing is hidden by an SDK that knows better.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from providers import lines
from providers.lines import MCPError, error_data
from tests.helpers.fakes import (
    Call,
    FakeBackend,
    Json,
    Refusal,
    client_of,
    no_waiting,
    settled,
    signed_in,
    time_passes,
    tool,
)
from tests.helpers.house import House, house_of
from tests.helpers.subscribers import Streams, modern

pytestmark = pytest.mark.skipif(not lines.MODERN, reason="FastMCP 3.4 has no way to serve these")

MODERN = "2026-07-28"
URI, PUBLIC = "note://one", "note://fake/one"
SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


async def agreed(call: Call) -> Json:
    return {}


async def echoed(call: Call) -> Json:
    """A completion that says what was asked."""
    params = {key: value for key, value in call.params.items() if key != "_meta"}
    return {"completion": {"values": [str(params)], "total": 12, "hasMore": True}, "_meta": {"seen": True}}


def notes(name: str = "fake", **more: Any) -> FakeBackend:
    answers = {"resources/subscribe": agreed, "resources/unsubscribe": agreed, "completion/complete": echoed}
    capabilities = {"resources": {"subscribe": True}, "tools": {"listChanged": True}, "completions": {}}
    return FakeBackend(name, answers=answers | more.pop("answers", {}), capabilities=capabilities, **more)


class Ear:
    """What one client heard besides its answers."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Json]] = []

    async def __call__(self, message: Any) -> None:
        message = getattr(message, "root", message)
        params = message.params.model_dump(by_alias=True, exclude_none=True, mode="json") if message.params else {}
        self.heard.append((message.method.removeprefix("notifications/"), params))

    @property
    def updated(self) -> list[str]:
        return [params["uri"] for method, params in self.heard if method == "resources/updated"]


@asynccontextmanager
async def client(house: House, mode: str = "legacy") -> AsyncIterator[tuple[Callable[..., Any], Ear]]:
    """A client's raw requests, and what it hears."""
    ear = Ear()
    async with house.client(mode, message_handler=ear) as connected:

        async def ask(method: str, **params: Any) -> Json:
            return await lines.send_raw(connected.session, method, params)

        yield ask, ear


async def refusal(asking: Any) -> Json:
    with pytest.raises(MCPError) as raised:
        await asking
    return error_data(raised.value)


async def updated(backend: FakeBackend, uri: str = URI, **more: Any) -> None:
    await backend.wire.say("notifications/resources/updated", {"uri": uri, **more})
    await settled()


# -------------------------------------------------------------------------------------------------- completion


@pytest.mark.parametrize("mode", ["legacy", MODERN])
@pytest.mark.parametrize(
    ("public", "own"),
    [
        ({"type": "ref/prompt", "name": "fake_a_b"}, {"type": "ref/prompt", "name": "a_b"}),
        ({"type": "ref/resource", "uri": "note://fake/{id}"}, {"type": "ref/resource", "uri": "note://{id}"}),
        ({"type": "ref/resource", "uri": "urn://fake/:x:{id}"}, {"type": "ref/resource", "uri": "urn:x:{id}"}),
    ],
)
async def test_a_completion_goes_to_the_owner_and_its_answer_comes_back_whole(
    mode: str, public: Json, own: Json
) -> None:
    asked = {"argument": {"name": "id", "value": "x"}, "context": {"arguments": {"other": "y"}}}
    async with house_of(notes(), notes("other")) as house, client(house, mode) as (ask, _):
        answer = await ask("completion/complete", ref=public, **asked)
        expected = {"ref": own, **asked}
        assert eval(answer["completion"]["values"][0]) == expected
        assert (answer["completion"]["total"], answer["completion"]["hasMore"]) == (12, True)
        assert answer["_meta"]["seen"] is True


@pytest.mark.parametrize("name", ["nobody_x", "x", "_", "secret_x"])
async def test_what_is_unknown_or_hidden_completes_to_nothing(name: str) -> None:
    hidden = notes("secret").resource().model_copy(update={"required_roles": ("boss",)})
    async with house_of(notes("secret"), records=[hidden], local=None) as house:
        with signed_in("bob"):
            async with client(house) as (ask, _):
                answer = await ask(
                    "completion/complete", ref={"type": "ref/prompt", "name": name}, argument={"name": "a", "value": ""}
                )
                assert answer == {"completion": {"values": []}}
        assert house.backends["secret"].attempts == 0


async def test_a_server_without_completions_answers_as_it_would_directly() -> None:
    async def refuse(call: Call) -> Json:
        raise Refusal(-32601, "Method not found")

    async with house_of(notes(answers={"completion/complete": refuse})) as house, client(house) as (ask, _):
        asked = ask(
            "completion/complete", ref={"type": "ref/prompt", "name": "fake_x"}, argument={"name": "a", "value": ""}
        )
        assert await refusal(asked) == {"code": -32601, "message": "Method not found"}


async def test_a_completion_without_an_argument_is_refused_here() -> None:
    async with house_of(notes()) as house, client(house) as (ask, _):
        told = await refusal(ask("completion/complete", ref={"type": "ref/prompt", "name": "fake_x"}))
        assert told["code"] == -32602
        assert house.backends["fake"].count("completion/complete") == 0


# ------------------------------------------------------------------------------------------- handshake subscriptions


async def test_a_subscriber_hears_with_the_public_uri_and_another_session_does_not() -> None:
    record = notes().resource(isolation="shared")
    async with house_of(notes(), records=[record]) as house, client(house) as (ask, ear), client(house) as (_, other):
        assert await ask("resources/subscribe", uri=PUBLIC) == {}
        await updated(house.backends["fake"], _meta={"why": "edited"})
        assert ear.heard == [("resources/updated", {"uri": PUBLIC, "_meta": {"why": "edited"}})]
        assert other.heard == []
        assert await ask("resources/unsubscribe", uri=PUBLIC) == {}
        await updated(house.backends["fake"])
        assert len(ear.heard) == 1


async def test_the_last_session_that_ends_ends_the_subscription_at_the_backend() -> None:
    backend = notes()
    async with house_of(backend, records=[backend.resource(isolation="shared")]) as house:
        async with client(house) as (ask, _):
            async with client(house) as (ask_too, _):
                await ask("resources/subscribe", uri=PUBLIC)
                await ask_too("resources/subscribe", uri=PUBLIC)
            await settled()
            assert (backend.count("resources/subscribe"), backend.count("resources/unsubscribe")) == (1, 0)
        await backend.heard("resources/unsubscribe")


@pytest.mark.parametrize("uri", ["note://nobody/one", "note://secret/one", "none"])
async def test_what_may_not_be_read_is_refused_like_what_does_not_exist(uri: str) -> None:
    hidden = notes("secret").resource().model_copy(update={"required_roles": ("boss",)})
    async with house_of(notes("secret"), records=[hidden], local=None) as house:
        with signed_in("bob"):
            async with client(house) as (ask, _):
                told = await refusal(ask("resources/subscribe", uri=uri))
                read = await refusal(ask("resources/read", uri=uri))
                assert told == {"code": -32602, "message": f"Unknown resource: {uri!r}"}
                assert told["code"] == read["code"]
                assert await ask("resources/unsubscribe", uri=uri) == {}


async def test_a_refusal_of_the_backend_and_a_failure_of_it_are_told_apart() -> None:
    async def refuse(call: Call) -> Json:
        raise Refusal(-32002, "no such note")

    async with house_of(notes(answers={"resources/subscribe": refuse})) as house, client(house) as (ask, _):
        assert await refusal(ask("resources/subscribe", uri=PUBLIC)) == {"code": -32002, "message": "no such note"}
        house.backends["fake"].wire.die()
        house.backends["fake"].before_open = anyio.sleep_forever
        told = await refusal(ask("resources/subscribe", uri=PUBLIC))
        assert told["code"] == -32603
        assert told["message"].startswith("server 'fake': did not finish")


async def test_a_role_that_is_lost_ends_it_in_silence() -> None:
    backend = notes()
    async with house_of(backend, records=[backend.resource(isolation="shared")], local=None) as house:
        with signed_in("bob"):
            async with client(house) as (ask, ear):
                await ask("resources/subscribe", uri=PUBLIC)
                ear.heard.clear()
                resource = backend.resource(isolation="shared").model_copy(update={"required_roles": ("boss",)})
                await house.store.upsert(resource)
                await settled()
                await updated(backend)
                await backend.heard("resources/unsubscribe")
                await time_passes(1)
                assert ear.updated == []


async def test_a_handshake_client_hears_what_a_backend_of_2026_07_28_tells_on_its_stream() -> None:
    streams = Streams()
    capabilities = {"resources": {"subscribe": True}, "tools": {"listChanged": True}}
    async with house_of(modern(streams, **capabilities)) as house, client(house) as (ask, ear):
        backend = house.backends["fake"]
        await ask("tools/list")
        await ask("resources/subscribe", uri=PUBLIC)
        await streams.tell("notifications/resources/updated", uri=URI)
        await settled()
        assert ear.heard == [("resources/updated", {"uri": PUBLIC})]
        await time_passes(2)
        backend.tools = [tool("newcomer")]
        await streams.tell("notifications/tools/list_changed")
        await time_passes(2)
        assert ear.heard[1:] == [("tools/list_changed", {})]
        assert [each["name"] for each in (await ask("tools/list"))["tools"]] == ["fake_newcomer"]


# ---------------------------------------------------------------------------------------------------------- roots


@pytest.mark.filterwarnings("ignore:The roots capability is deprecated")
async def test_news_of_roots_reach_the_sessions_own_backends_alone() -> None:
    own, shared = notes("own"), notes("shared")
    records = [own.resource(), shared.resource(isolation="shared")]
    async with (
        house_of(own, shared, records=records) as house,
        client_of(house.mcp, roots=["file:///one"]) as one,
        client_of(house.mcp, roots=["file:///two"]) as two,
    ):
        for each in (one, two):
            await each.call_tool("own_echo", {"text": "x"})
            await each.call_tool("shared_echo", {"text": "x"})
        await two.send_roots_list_changed()
        await own.heard("notifications/roots/list_changed")
        await settled()
        told = [
            [message["method"] for message in wire.received].count("notifications/roots/list_changed")
            for wire in own.wires
        ]
        assert told == [0, 1] or sorted(told) == [0, 1]
        assert shared.count("notifications/roots/list_changed") == 0
