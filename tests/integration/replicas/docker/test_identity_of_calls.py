"""Whose a call is that one replica passes on to another: the same verified user at both, and nobody else gets in."""

from __future__ import annotations

import time
from typing import Any

import aiohttp
import pytest

from providers.assertions import Assertion, sign
from providers.identity import Identity
from providers.lines import MODERN
from tests.helpers.containers import over_http, over_stdio
from tests.helpers.gateway import LATEST, LEGACY, ServedGateway, alone, client
from tests.helpers.people import identity, token, tokens
from tests.helpers.redis_server import RedisServer
from tests.helpers.replicas import replicas, round_robin
from tests.helpers.rpc import HANDSHAKE, NEWEST

pytestmark = [
    pytest.mark.skipif(not MODERN, reason="FastMCP 3.4 knows no 2026-07-28"),
    pytest.mark.filterwarnings("ignore:The logging capability is deprecated"),
]

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": HANDSHAKE, "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}},
}


async def ask(gateway: ServedGateway, user: str, tool: str, era: str = LATEST, **arguments: Any) -> Any:
    async with client(gateway.url, era, auth=token(user)) as caller:
        return (await caller.call_tool(tool, arguments)).data


async def test_the_backend_hears_of_the_same_user_through_either(redis: RedisServer, state: str, engine: Any) -> None:
    servers = {"box": over_stdio(isolation="shared", required_roles=["*"])}
    async with replicas(redis, servers, auth=tokens("zoe"), state_dir=state) as both:
        for era in (LATEST, LEGACY):
            for user in ("ada", "zoe", "bob"):
                heard = [await ask(gateway, user, "box_whoami", era) for gateway in both]
                assert heard[0] == heard[1]
                assert identity(user) in heard[0].values() or identity(user).items() <= heard[0].items()


async def test_each_user_has_one_container_of_all_replicas(redis: RedisServer, state: str, engine: Any) -> None:
    servers = {"box": over_http(isolation="user", required_roles=["*"])}
    async with replicas(redis, servers, auth=tokens(), state_dir=state) as both:
        assert [await ask(gateway, "ada", "box_total") for gateway in both] == [1, 2]
        assert [await ask(gateway, "bob", "box_total") for gateway in reversed(both)] == [1, 2]
        held = [len(gateway.gateway.replicas.leases) for gateway in both]  # type: ignore[union-attr]
        assert sum(held) == len(held) or sum(held) >= 2


@pytest.mark.parametrize("version", [HANDSHAKE, NEWEST])
async def test_questions_and_progress_pass_through_the_owner(
    redis: RedisServer, state: str, engine: Any, version: str
) -> None:
    servers = {"box": over_stdio(isolation="user", required_roles=["*"])}
    headers = {"Authorization": f"Bearer {token('ada')}"}
    async with replicas(redis, servers, auth=tokens(), state_dir=state) as both:
        await ask(both[0], "ada", "box_total")
        for urls in ([both[0].url], [both[1].url], [both[1].url, both[0].url]):
            async with round_robin(urls, headers, version=version) as one:
                call = {"name": "box_ask", "arguments": {"question": "Sure?"}}
                answer = await one.finished("tools/call", call)
                assert [question["method"] for question in one.asked] == ["elicitation/create"]
                assert not answer["result"].get("isError"), answer
                slow = {"name": "box_slow", "arguments": {"seconds": 1.2, "steps": 2}, "_meta": {"progressToken": 7}}
                told = await one.messages("tools/call", slow)
                assert [each["params"]["progressToken"] for each in told if "method" in each] == [7, 7]


async def status(url: str, bearer: str, **headers: str) -> int:
    headers = {"Accept": "application/json, text/event-stream", "Authorization": f"Bearer {bearer}", **headers}
    async with aiohttp.ClientSession() as http, http.post(url, json=INITIALIZE, headers=headers) as response:
        await response.read()
        return response.status


async def test_only_a_fresh_assertion_for_this_replica_and_server_is_let_in(
    redis: RedisServer, state: str, engine: Any
) -> None:
    servers = {"box": over_http(isolation="shared", required_roles=["*"])}
    servers["other"] = over_http(isolation="shared", required_roles=["*"])
    async with replicas(redis, servers, auth=tokens(), state_dir=state) as both:
        await ask(both[0], "ada", "box_total")
        owner = next(each for each in both if len(each.gateway.replicas.leases))  # type: ignore[arg-type, union-attr]
        us = owner.gateway.replicas
        assert us is not None
        lease = us.leases.held(("box", "shared"))
        assert lease is not None
        mine = Assertion(Identity("eve", "Eve", frozenset({"x"}), "i"), "box", "shared", lease.holder.token)
        key, url = us.fence.key, alone(owner.url, "box")
        good = sign(mine, us.id, key)
        assert await status(url, good) == 200
        assert await status(url, good) == 401, "used before"
        older = Assertion(mine.identity, "box", "shared", lease.holder.token - 1)
        refused = {
            "another key": sign(mine, us.id, b"x" * 32),
            "another replica": sign(mine, "0" * 12, key),
            "another lease": sign(older, us.id, key),
            "another scope": sign(Assertion(mine.identity, "box", "user:a", lease.holder.token), us.id, key),
            "old": sign(mine, us.id, key, now=lambda: time.time() - 60),
            "of tomorrow": sign(mine, us.id, key, now=lambda: time.time() + 60),
        }
        assert {why: await status(url, bearer) for why, bearer in refused.items()} == dict.fromkeys(refused, 401)
        for elsewhere in (owner.url, alone(owner.url, "other"), url + "/", url + "?x=1#y"):
            expected = 200 if elsewhere.startswith(url + "?") else 401
            found = await status(elsewhere, sign(mine, us.id, key))
            assert found == expected or (found in (404, 307) and elsewhere == url + "/"), elsewhere
        headers = {"Apollos-Sent-On": "1", "X-Mcp-UserId": "ada", "X-Mcp-Roles": "mcp.admin"}
        assert await status(url, "nobody", **headers) == 401
