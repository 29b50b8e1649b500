"""One user's flood is refused with the standard headers, and no other user's call is. Real HTTP, real tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import anyio
import pytest

from providers.lines import MODERN
from tests.helpers.gateway import ServedGateway, gateway_over_http, in_process, servers_toml
from tests.helpers.people import token, tokens
from tests.helpers.processes import eventually
from tests.helpers.rpc import HANDSHAKE, NEWEST, raw_client

pytestmark = pytest.mark.core

ACCEPT = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
SERVERS = {"open": in_process("everything.py", required_roles=["*"], isolation="user")}


def bearer(user: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(user)}"}


async def post(http: aiohttp.ClientSession, url: str, **headers: str) -> tuple[int, Mapping[str, str], Any]:
    async with http.post(url, json=PING, headers=ACCEPT | headers) as answer:
        is_json = answer.content_type == "application/json"
        return answer.status, answer.headers, await (answer.json() if is_json else answer.text())


@pytest.fixture
async def slow() -> AsyncIterator[ServedGateway]:
    """A gateway where a user may send ten requests at once, and five a second."""
    toml = servers_toml(SERVERS, max_requests_per_second=5)
    async with gateway_over_http(toml, auth=tokens("eve")) as gateway:
        yield gateway


async def test_a_flood_is_refused_and_nobody_else_notices(slow: ServedGateway) -> None:
    statuses: list[int] = []
    async with aiohttp.ClientSession() as http, raw_client(slow.url, bearer("bob")) as bob:

        async def flood() -> None:
            status, headers, body = await post(http, slow.url, **bearer("eve"), **{"Mcp-Session-Id": "0" * 32})
            statuses.append(status)
            if status == 429:
                assert int(headers["Retry-After"]) >= 1
                assert headers["RateLimit-Policy"] == '"requests";q=10;w=2'
                assert headers["RateLimit"].startswith('"requests";r=')
                assert "more requests than one user may send" in body["error"]["message"]

        async with anyio.create_task_group() as tasks:
            for _ in range(60):
                tasks.start_soon(flood)
            for number in range(5):
                result = await bob.call("open_add", {"a": number, "b": 1})
                assert result["structuredContent"] == {"result": number + 1}
    assert set(statuses) == {404, 429} and statuses.count(429) >= 40


async def test_each_answer_says_how_much_is_left(slow: ServedGateway) -> None:
    async with aiohttp.ClientSession() as http:
        left = []
        for _ in range(2):
            _, headers, _ = await post(http, slow.url, **bearer("bob"), **{"Mcp-Session-Id": "0" * 32})
            left.append(headers["RateLimit"].split(";")[1])
    assert left == ["r=9", "r=8"]


async def test_what_a_client_writes_does_not_make_it_another(slow: ServedGateway) -> None:
    async with aiohttp.ClientSession() as http:
        statuses = [
            (
                await post(
                    http,
                    slow.url,
                    **bearer("eve"),
                    **{"X-Forwarded-For": f"10.0.0.{number}", "X-Mcp-UserId": f"user{number}", "Mcp-Session-Id": "0"},
                )
            )[0]
            for number in range(13)
        ]
    assert statuses[:10] == [404] * 10 and 429 in statuses[10:]


async def test_two_tokens_of_one_user_share_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = tokens("eve")
    verifier.tokens["another"] = dict(verifier.tokens[token("eve")])
    toml = servers_toml(SERVERS, max_requests_per_second=0.001)
    async with gateway_over_http(toml, auth=verifier) as gateway, aiohttp.ClientSession() as http:
        assert (await post(http, gateway.url, **bearer("eve"), **{"Mcp-Session-Id": "0"}))[0] == 404
        again = {"Authorization": "Bearer another", "Mcp-Session-Id": "0"}
        assert [(await post(http, gateway.url, **again))[0] for _ in range(2)] == [429, 429]


async def guess(http: aiohttp.ClientSession, url: str, headers: dict[str, str], statuses: list[int]) -> None:
    statuses.append((await post(http, url, **headers))[0])


@pytest.mark.parametrize("kind", ["guessed", "none", "no subject"])
async def test_guessing_is_refused_by_address_and_known_tokens_still_work(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("composition.door.STRANGERS_PER_SECOND", 0.01)
    monkeypatch.setattr("composition.door.STRANGERS_AT_ONCE", 10.0)
    verifier = tokens("eve")
    for number in range(30):
        verifier.tokens[f"nobody-{number}"] = {"client_id": "tests", "iss": "https://login.example.com"}
    statuses: list[int] = []
    async with gateway_over_http(servers_toml(SERVERS), auth=verifier) as gateway, aiohttp.ClientSession() as http:
        known = {**bearer("bob"), "Mcp-Session-Id": "0"}
        assert (await post(http, gateway.url, **known))[0] == 404
        async with anyio.create_task_group() as tasks:
            for number in range(30):
                word = "nobody" if kind == "no subject" else "guess"
                headers = {} if kind == "none" else {"Authorization": f"Bearer {word}-{number}", "Mcp-Session-Id": "0"}
                tasks.start_soon(guess, http, gateway.url, headers, statuses)
        assert statuses.count(429) == 20
        assert (await post(http, gateway.url, **known))[0] == 404
        status, headers, body = await post(http, gateway.url, **bearer("eve"), **{"Mcp-Session-Id": "0"})
        assert status == 429 and "without a valid token" in body["error"]["message"] and "RateLimit" not in headers


async def test_without_users_there_is_no_limit_that_nobody_wrote() -> None:
    async with gateway_over_http("") as gateway, aiohttp.ClientSession() as http:
        assert {(await post(http, gateway.url, **{"Mcp-Session-Id": "0"}))[0] for _ in range(250)} == {404}
    toml = servers_toml({}, max_requests_per_second=0.001)
    async with gateway_over_http(toml) as gateway, aiohttp.ClientSession() as http:
        assert [(await post(http, gateway.url, **{"Mcp-Session-Id": "0"}))[0] for _ in range(2)] == [404, 429]


# ------------------------------------------------------------------------------------------------- calls under way


async def status_of_a_call(url: str) -> tuple[int, str | None]:
    """Of one of eve's, in the 2026-07-28 era: the status, and when she may try again."""
    of_mcp = "io.modelcontextprotocol/"
    meta = {f"{of_mcp}protocolVersion": NEWEST, f"{of_mcp}clientInfo": {"name": "x", "version": "1"}}
    params = {"name": "open_echo", "arguments": {"text": "x"}, "_meta": meta | {f"{of_mcp}clientCapabilities": {}}}
    headers = {"MCP-Protocol-Version": NEWEST, "Mcp-Method": "tools/call", "Mcp-Name": "open_echo"}
    message = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params}
    headers |= ACCEPT | bearer("eve")
    async with aiohttp.ClientSession() as http, http.post(url, json=message, headers=headers) as answer:
        assert (await answer.json())["error"]["code"] == -32000
        return answer.status, answer.headers.get("Retry-After")


@pytest.mark.parametrize("version", (HANDSHAKE, NEWEST) if MODERN else (HANDSHAKE,))
async def test_a_user_may_have_so_many_calls_under_way_and_nobody_else_minds(version: str) -> None:
    toml = servers_toml(SERVERS, max_calls_per_user=2)
    async with (
        gateway_over_http(toml, auth=tokens("eve")) as gateway,
        raw_client(gateway.url, bearer("eve"), version=version) as eve,
        raw_client(gateway.url, bearer("eve"), version=version) as eve_too,
        raw_client(gateway.url, bearer("bob"), version=version) as bob,
        anyio.create_task_group() as tasks,
    ):
        slow = {"name": "open_slow", "arguments": {"seconds": 60}}
        tasks.start_soon(eve.request, "tools/call", slow)
        tasks.start_soon(eve_too.request, "tools/call", slow)
        await eventually(lambda: gateway.gateway.root.calls == 2)
        echo = {"name": "open_echo", "arguments": {"text": "x"}}
        if version == NEWEST:  # in the handshake era the answer has begun by then
            assert await status_of_a_call(gateway.url) == (429, "1")
        answer = await eve.request("tools/call", echo)
        if MODERN:
            assert answer["error"]["code"] == -32000 and answer["error"]["data"] == {"retryAfter": 1}
            assert "2 calls under way" in answer["error"]["message"]
        else:  # a tool's text, as 3.4 has it
            assert answer["result"]["isError"] and "2 calls under way" in str(answer["result"]["content"])
        assert "tools" in (await eve.request("tools/list", {}))["result"]
        assert (await bob.call("open_echo", {"text": "x"}))["content"][0]["text"] == "x"
        tasks.cancel_scope.cancel()
