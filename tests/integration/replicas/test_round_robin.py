"""Clients of both eras behind a plain round robin: whichever replica a request reaches, the right one answers it."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import anyio
import pytest

from providers.lines import MODERN
from tests.helpers.gateway import alone, in_process, local
from tests.helpers.people import token, tokens
from tests.helpers.processes import eventually
from tests.helpers.redis_server import RedisServer
from tests.helpers.replicas import replicas, round_robin
from tests.helpers.rpc import HANDSHAKE, NEWEST, Json

pytestmark = [
    pytest.mark.skipif(not MODERN, reason="FastMCP 3.4 knows neither eras nor resumable streams"),
    pytest.mark.filterwarnings("ignore:The logging capability is deprecated"),
]

ASKS: Json = {
    "name": "b_ask",
    "arguments": {"ask": [{"method": "roots/list"}], "then": [[{"method": "roots/list"}]]},
}


def urls(gateways: list[Any]) -> list[str]:
    return [gateway.url for gateway in gateways]


@pytest.mark.parametrize("version", [HANDSHAKE, NEWEST])
async def test_a_call_that_asks_twice_is_answered_by_the_replica_that_asked(redis: RedisServer, version: str) -> None:
    async with (
        replicas(redis, {"b": local("raw_asks.py")}) as both,
        round_robin(urls(both), version=version) as one,
    ):
        answer = await one.finished("tools/call", ASKS)
        assert [question["method"] for question in one.asked] == ["roots/list", "roots/list"]
        assert len(json.loads(answer["result"]["content"][0]["text"])["answers"]) == 2
        assert all(one.went_to.count(url) > 0 for url in urls(both)), "both replicas were asked"


async def test_a_session_is_one_session_wherever_its_requests_arrive(redis: RedisServer) -> None:
    async with (
        replicas(redis, {"all": in_process("everything.py")}) as both,
        round_robin(urls(both), version=HANDSHAKE) as one,
    ):
        counts = [(await one.call("all_count", {}))["content"][0]["text"] for _ in range(4)]
        assert counts == ["1", "2", "3", "4"]
        assert one.session_id and one.session_id.startswith(both[0].gateway.replicas.id)
        assert [len(each.gateway.sessions) for each in both] == [1, 0]


async def test_the_stream_of_a_session_and_its_end_go_the_same_way(redis: RedisServer) -> None:
    async with (
        replicas(redis, {"all": in_process("everything.py")}) as both,
        round_robin(urls(both), version=HANDSHAKE) as one,
        aiohttp.ClientSession() as http,
    ):
        headers = {"Mcp-Session-Id": str(one.session_id), "MCP-Protocol-Version": HANDSHAKE}
        stream = headers | {"Accept": "text/event-stream"}
        async with http.get(both[1].url, headers=stream) as response:
            assert (response.status, response.content_type) == (200, "text/event-stream")
        async with http.delete(both[1].url, headers=headers) as response:
            assert response.status == 200
        await eventually(lambda: len(both[0].gateway.sessions) == 0)
        async with http.delete(both[1].url, headers=headers) as response:
            assert response.status == 404
        one.session_id = None


async def test_the_session_of_another_user_is_like_none_at_every_replica(redis: RedisServer) -> None:
    servers = {"all": in_process("everything.py", required_roles=["*"])}
    bearer = {user: {"Authorization": f"Bearer {token(user)}"} for user in ("ada", "bob")}
    async with (
        replicas(redis, servers, auth=tokens()) as both,
        round_robin(urls(both), bearer["ada"], version=HANDSHAKE) as one,
        aiohttp.ClientSession() as http,
    ):
        session = str(one.session_id)
        strange = [session, session.replace(session[-4:], "0000"), "0" * 12 + ".x", "random"]
        answers = set()
        for method in ("POST", "GET", "DELETE"):
            for url in urls(both):
                for name in strange:
                    headers = bearer["bob"] | {"Mcp-Session-Id": name, "MCP-Protocol-Version": HANDSHAKE}
                    headers["Accept"] = "application/json, text/event-stream"
                    body: Any = {"jsonrpc": "2.0", "id": 1, "method": "ping"} if method == "POST" else None
                    async with http.request(method, url, headers=headers, json=body) as response:
                        answers.add((response.status, await response.text()))
        assert len(answers) == 1 and next(iter(answers))[0] == 404
        assert (await one.call("all_count", {}))["content"][0]["text"] == "1"
        async with http.post(both[1].url, headers={"Mcp-Session-Id": session}, json={}) as response:
            assert response.status == 401


async def test_what_a_replica_kept_is_gone_with_it(redis: RedisServer) -> None:
    async with replicas(redis, {"b": local("raw_asks.py")}, count=1) as left:
        async with replicas(redis, {"b": local("raw_asks.py")}, count=1) as gone:
            modern = round_robin([gone[0].url, left[0].url], version=NEWEST)
            async with modern as one, round_robin(urls(gone), version=HANDSHAKE) as other:
                asked = await one.request("tools/call", ASKS)
                session, other.session_id = other.session_id, None
                other.went_to.append("")
        retry = one.retry(asked["result"])
        async with round_robin(urls(left)) as again, aiohttp.ClientSession() as http:
            answer = await again.request("tools/call", ASKS | retry)
            assert answer["error"]["data"] == {"reason": "invalid_request_state"}
            headers = {"Mcp-Session-Id": str(session), "MCP-Protocol-Version": HANDSHAKE}
            headers["Accept"] = "application/json, text/event-stream"
            body = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
            async with http.post(left[0].url, headers=headers, json=body) as response:
                assert response.status == 404


async def test_a_client_that_goes_away_ends_both_requests(redis: RedisServer) -> None:
    async with (
        replicas(redis, {"all": in_process("everything.py")}) as both,
        round_robin(urls(both), version=HANDSHAKE) as one,
        aiohttp.ClientSession() as http,
    ):
        headers = {"Mcp-Session-Id": str(one.session_id), "MCP-Protocol-Version": HANDSHAKE}
        headers["Accept"] = "text/event-stream"
        response = await http.get(both[1].url, headers=headers)
        busy = await http.get(both[1].url, headers=headers)  # a session has one such stream
        assert busy.status == 409
        busy.close()
        response.close()
        with anyio.fail_after(10):
            while True:
                async with http.get(both[1].url, headers=headers) as once_more:
                    if once_more.status == 200:
                        break
                await anyio.sleep(0.05)


async def test_a_replica_that_drains_turns_away_what_another_sends_and_takes_answers(redis: RedisServer) -> None:
    async with replicas(redis, {"b": local("raw_asks.py")}, count=1) as (only,), aiohttp.ClientSession() as http:
        assert only.gateway.replicas is not None
        headers = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": NEWEST}
        request = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        answer = {"jsonrpc": "2.0", "id": 1, "result": {}}
        found = list[int]()
        for is_leaving in (False, True):
            if is_leaving:
                only.gateway.replicas.leases.leave()
            for body in (request, answer):
                sent_on = headers | {"Apollos-Sent-On": "1"}
                async with http.post(alone(only.url, "b"), json=body, headers=sent_on) as response:
                    found.append(response.status)
        assert 421 not in (*found[:2], found[3]) and found[2] == 421
        async with http.post(alone(only.url, "b"), json=request, headers=headers) as response:
            assert response.status != 421, "a client is not another replica"
