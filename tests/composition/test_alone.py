"""One server alone at `/adapters/{name}/mcp`: its own names, its own sessions, the same guards as for all servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import anyio
import pytest
from fastmcp.server.auth import AuthProvider

from composition.gateway import Gateway
from composition.registry import Registry
from providers import lines
from tests.helpers.ears import ears
from tests.helpers.gateway import (
    ERAS,
    LATEST,
    ServedGateway,
    alone,
    gateway_over_http,
    in_process,
    patient_toml,
)
from tests.helpers.people import token, tokens, window
from tests.helpers.processes import eventually
from tests.helpers.rpc import raw_client

core = pytest.mark.core
modern = pytest.mark.skipif(not lines.MODERN, reason="FastMCP 3.4 serves no such requests")

ACCEPT = {"Accept": "application/json, text/event-stream"}
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "by-hand", "version": "1"}},
}
BACKEND = in_process("everything.py", required_roles=["*"])
URI = "data://greeting"
MUTE = {"sampling_handler": None, "elicitation_handler": None, "roots": None}
HIDDEN = in_process("everything.py", required_roles=["engineer"])


@asynccontextmanager
async def gateway(auth: AuthProvider | None = None, **servers: Any) -> AsyncIterator[ServedGateway]:
    async with gateway_over_http(patient_toml(servers or {"b": BACKEND, "c": HIDDEN}), auth=auth) as served:
        yield served


OF_A_MOMENT = ("date", "ratelimit")


async def ask(method: str, url: str, headers: dict[str, str], json: Any = None) -> tuple[int, dict[str, str], bytes]:
    """Status, headers but those that tell of a moment, and body."""
    async with (
        aiohttp.ClientSession() as http,
        http.request(method, url, headers=ACCEPT | headers, json=json) as answer,
    ):
        body = await answer.read() if method == "POST" or answer.content_type != "text/event-stream" else b""
        return (
            answer.status,
            {name.lower(): value for name, value in answer.headers.items() if name.lower() not in OF_A_MOMENT},
            body,
        )


async def begin(url: str, headers: dict[str, str] | None = None) -> str:
    """The id of a new session."""
    status, told, _ = await ask("POST", url, headers or {}, INITIALIZE)
    assert status == 200
    return told["mcp-session-id"]


def as_(user: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(user)}"}


# ----------------------------------------------------------------------------------------------------------- its names


@core
@pytest.mark.parametrize("era", ERAS)
async def test_tools_resources_and_prompts_have_the_names_that_the_backend_gave_them(era: str) -> None:
    async with gateway() as served, window(alone(served.url, "b"), era=era) as one:
        names = {tool.name for tool in await one.connection.list_tools()}
        assert {"add", "ask"} <= names and not any(name.startswith("b_") for name in names)
        assert await one.call("add", a=2, b=3) == 5
        assert "data://greeting" in {str(resource.uri) for resource in await one.connection.list_resources()}
        assert [str(part.uri) for part in await one.connection.read_resource("data://greeting")] == ["data://greeting"]
        prompts = await one.connection.list_prompts()
        assert prompts and not any(prompt.name.startswith("b_") for prompt in prompts)


@core
async def test_names_of_the_composed_address_do_not_hold_at_that_of_one_server_nor_those_of_others() -> None:
    async with gateway() as served, window(alone(served.url, "b")) as one:
        for name in ("b_add", "c_add", "nothing"):
            with pytest.raises(Exception, match="Unknown tool"):
                await one.call(name, a=1, b=1)


@modern
async def test_the_welcome_is_that_of_the_server() -> None:
    async with gateway() as served, raw_client(alone(served.url, "b")) as one:
        assert one.welcome["instructions"] == "A server for tests."
        assert one.welcome["serverInfo"]["name"] == "b"
        assert "tools" in one.welcome["capabilities"]


@core
async def test_who_came_for_one_server_hears_of_its_changes_and_not_of_those_of_others() -> None:
    async with (
        gateway() as served,
        window(alone(served.url, "b")) as one,
        window(alone(served.url, "c")) as other,
        window(served.url) as all_of_them,
    ):
        await one.call("change_tools", name="newcomer")
        await eventually(lambda: one.times("changed", "tools") and all_of_them.times("changed", "tools"))
        assert not other.heard


@modern
@pytest.mark.filterwarnings("ignore:.*deprecated.*", "ignore:.*is removed as of 2026-07-28.*")
async def test_subscriptions_and_completion_have_its_own_uris_and_names() -> None:
    async with gateway() as served, window(alone(served.url, "b")) as one, window(served.url) as other:
        await one.connection.session.subscribe_resource(URI)
        await other.connection.session.subscribe_resource("data://b/greeting")
        await one.call("touch", uri=URI)
        await other.call("b_touch", uri=URI)
        await eventually(lambda: one.times("updated", URI) and other.times("updated", "data://b/greeting"))
        assert {text for what, text in one.heard if what == "updated"} == {URI}
        prompt = {"type": "ref/prompt", "name": (await one.connection.list_prompts())[0].name}
        argument = {"name": "name", "value": ""}
        async with raw_client(served.url) as all_of_them, raw_client(alone(served.url, "b")) as alone_:
            prefixed = await all_of_them.request(
                "completion/complete", {"ref": prompt | {"name": f"b_{prompt['name']}"}, "argument": argument}
            )
            own = await alone_.request("completion/complete", {"ref": prompt, "argument": argument})
            assert own["result"] == prefixed["result"]


@modern
async def test_a_stream_of_the_newest_era_carries_what_concerns_the_server() -> None:
    async with (
        gateway() as served,
        window(alone(served.url, "b"), era=LATEST, **MUTE) as one,
        window(alone(served.url, "c"), era=LATEST, **MUTE) as other,
        ears(
            replace(served, url=alone(served.url, "b")),
            toolsListChanged=True,
            resourceSubscriptions=[URI, "data://b/x"],
        ) as stream,
    ):
        acknowledged = await stream.next()
        assert URI in acknowledged["params"]["notifications"]["resourceSubscriptions"]
        await other.call("change_tools", name="elsewhere")
        await one.call("touch", uri=URI)
        assert (await stream.next())["params"]["uri"] == URI
        await one.call("change_tools", name="newcomer")
        assert (await stream.next())["method"] == "notifications/tools/list_changed"


# --------------------------------------------------------------------------------------------------------- who may come


@core
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT", "OPTIONS"])
async def test_what_may_not_be_read_answers_like_what_is_not_there(method: str) -> None:
    async with gateway(tokens()) as served:
        body = INITIALIZE if method == "POST" else None
        answers = [
            await ask(method, alone(served.url, name), as_("bob"), body) for name in ("c", "nothing", "c_x", "B")
        ]
        assert answers.count(answers[0]) == len(answers)
        assert answers[0][0] == (405 if method in ("PUT", "OPTIONS") else 404)


@core
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}], ids=["no token", "a wrong one"])
async def test_who_is_not_authenticated_is_told_so_before_anything_else(headers: dict[str, str]) -> None:
    async with gateway(tokens()) as served:
        expected = await ask("POST", served.url, headers, INITIALIZE)
        assert expected[0] == 401
        for name in ("b", "c", "nothing"):
            assert await ask("POST", alone(served.url, name), headers, INITIALIZE) == expected


@core
@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}], ids=str)
async def test_hosts_and_origins_are_guarded_as_at_the_composed_address(headers: dict[str, str]) -> None:
    async with gateway() as served:
        assert await ask("POST", alone(served.url, "b"), headers, INITIALIZE) == await ask(
            "POST", served.url, headers, INITIALIZE
        )


@core
async def test_sizes_are_guarded_too() -> None:
    async with gateway() as served:
        assert (await ask("POST", alone(served.url, "b"), {"X-Long": "x" * 70_000}, INITIALIZE))[0] == 431


@core
async def test_sessions_of_all_addresses_count_together() -> None:
    toml = patient_toml({"b": BACKEND}, max_sessions_per_user=2)
    async with gateway_over_http(toml) as served:
        await begin(served.url)
        await begin(alone(served.url, "b"))
        assert (await ask("POST", alone(served.url, "b"), {}, INITIALIZE))[0] == 429
        assert (await ask("POST", served.url, {}, INITIALIZE))[0] == 429


# ------------------------------------------------------------------------------------------------------------- sessions


@core
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_a_session_lives_at_the_address_where_it_was_opened_and_nowhere_else(method: str) -> None:
    async with gateway() as served:
        places = [served.url, alone(served.url, "b"), alone(served.url, "c")]
        for place in places:
            own = {"Mcp-Session-Id": await begin(place)}
            ping = {"jsonrpc": "2.0", "id": 2, "method": "ping"} if method == "POST" else None
            for other in places:
                if other != place:
                    foreign = await ask(method, other, own, ping)
                    unknown = await ask(method, other, {"Mcp-Session-Id": "0" * 32}, ping)
                    assert foreign == unknown and foreign[0] == 404
            assert (await ask("POST", place, own, {"jsonrpc": "2.0", "id": 2, "method": "ping"}))[0] == 200


@core
async def test_a_session_of_somebody_else_answers_like_one_that_is_not_there() -> None:
    async with gateway(tokens()) as served:
        url = alone(served.url, "b")
        own = {"Mcp-Session-Id": await begin(url, as_("ada"))}
        for method in ("GET", "POST", "DELETE"):
            ping = {"jsonrpc": "2.0", "id": 2, "method": "ping"} if method == "POST" else None
            foreign = await ask(method, url, own | as_("bob"), ping)
            assert foreign == await ask(method, url, {"Mcp-Session-Id": "0" * 32} | as_("bob"), ping)


@core
async def test_a_session_is_ended_by_its_client_and_by_the_end_of_its_server() -> None:
    async with gateway() as served:
        url = alone(served.url, "b")
        first, second = [{"Mcp-Session-Id": await begin(url)} for _ in range(2)]
        assert (await ask("DELETE", url, first))[0] == 200
        assert (await ask("DELETE", url, first))[0] == 404
        served.path.write_text(patient_toml({"c": HIDDEN}))
        await eventually(lambda: "b" not in served.gateway.registry.mounts)
        gone = await ask("DELETE", url, second)
        assert gone == await ask("DELETE", alone(served.url, "nothing"), second) and gone[0] == 404
        await eventually(lambda: not len(served.gateway.sessions))
        served.path.write_text(patient_toml({"b": BACKEND}))
        await eventually(lambda: "b" in served.gateway.registry.mounts)
        assert (await ask("DELETE", url, second))[0] == 404, "who comes back is somebody else"
        await begin(url)


@core
async def test_a_stream_ends_with_its_server() -> None:
    async with gateway() as served, aiohttp.ClientSession() as http:
        url = alone(served.url, "b")
        own = ACCEPT | {"Mcp-Session-Id": await begin(url)}
        async with http.get(url, headers=own, timeout=aiohttp.ClientTimeout(total=20)) as stream:
            assert stream.status == 200
            served.path.write_text(patient_toml({"c": HIDDEN}))
            await stream.read()


@modern
async def test_a_stream_of_the_newest_era_ends_with_its_server_too() -> None:
    async with (
        gateway() as served,
        ears(served, toolsListChanged=True) as of_all,
        ears(replace(served, url=alone(served.url, "b")), toolsListChanged=True) as stream,
    ):
        await of_all.next()
        await stream.next()
        served.path.write_text(patient_toml({"c": HIDDEN}))
        assert (await stream.next())["result"]
        with pytest.raises(AssertionError, match="ended"):
            await stream.next()
        assert (await of_all.next())["method"] == "notifications/tools/list_changed"


@core
async def test_a_role_that_is_taken_away_ends_access_in_running_sessions() -> None:
    async with gateway(tokens()) as served, window(alone(served.url, "b"), "bob") as one:
        assert await one.call("add", a=1, b=1) == 2
        served.path.write_text(patient_toml({"b": in_process("everything.py", required_roles=["engineer"])}))
        registry: Registry = served.gateway.registry
        await eventually(lambda: registry.mounts["b"].resource.required_roles == ("engineer",))
        with pytest.raises(Exception):  # noqa: B017 - each line of FastMCP has its own error for a session that is gone
            await one.call("add", a=1, b=1)


@core
async def test_a_front_is_made_once_and_only_when_somebody_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    make = Gateway.front

    def front(self: Gateway, view: Any, name: str, **options: Any) -> Any:
        made.append(name)
        return make(self, view, name, **options)

    monkeypatch.setattr(Gateway, "front", front)
    async with gateway() as served, anyio.create_task_group() as tasks:
        before = list(made)
        for _ in range(10):
            tasks.start_soon(begin, alone(served.url, "b"))
    assert made[len(before) :] == ["b"]
    assert "b" not in before


@core
async def test_a_call_goes_on_while_other_servers_come_and_go() -> None:
    async with gateway() as served, window(alone(served.url, "b")) as one:
        answers: list[Any] = []

        async def call() -> None:
            answers.append(await one.call("slow", seconds=1.5, steps=3))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await eventually(lambda: any(what == "progress" for what, _ in one.heard))
            served.path.write_text(patient_toml({"b": BACKEND, "newcomer": BACKEND}))
            await eventually(lambda: "newcomer" in served.gateway.registry.mounts)
            assert not answers, "the call is still under way"
        assert len(answers) == 1
