"""What is open ends with its token: streams, calls and what sessions are told, in both eras.

A token stops being valid because it is revoked, because it expires, or because its user has other roles now. What
hangs on it ends within a second, the backend stops working for it, and another user notices nothing.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
from aiohttp import web

from providers.lines import MODERN
from providers.resource import McpServerResource
from providers.tokens import StaticToken, TokenFile
from tests.helpers.faults import HELLO, WAIT, echoes, lists_echo, offers_tools, until_at_rest
from tests.helpers.gateway import ERAS, LEGACY, ServedGateway, gateway_over_http, local, patient_toml
from tests.helpers.http_backend import Seen, http_backend
from tests.helpers.issuer import AUDIENCE, ISSUER, jwt, public_key
from tests.helpers.processes import eventually
from tests.helpers.rpc import HANDSHAKE, NEWEST, RawClient, raw_client

SOON = 2.0
"""Seconds within which it ends. It is half a second and a bit; the rest is for busy machines."""
VERSIONS = {era: HANDSHAKE if era == LEGACY else NEWEST for era in ERAS}


@dataclass
class Team:
    """A gateway with static tokens and JWTs, and one server `docs`, whose tool answers `WAIT` never."""

    gateway: ServedGateway
    file: TokenFile
    waiting: int = 0
    given_up: int = 0
    owners: dict[str, StaticToken] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.gateway.url

    @property
    def leases(self) -> int:
        return self.gateway.gateway.pool.statistics().leases

    async def work_stops(self, within: float, left: int = 0) -> None:
        """Wait until the slot of a call is free and the backend knows; the SDK of 3.4 does not tell it."""
        await eventually(lambda: self.leases == left and self.given_up == int(MODERN), within=within)

    def token(self, user: str) -> str:
        token, self.owners[user] = self.file.add(user, user, ["dev"])
        return token

    def client(self, token: str, version: str) -> Any:
        return raw_client(self.url, bearer(token), version=version)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def team(folder: Path) -> AsyncIterator[Team]:
    made: list[Team] = []

    async def calls(seen: Seen) -> web.StreamResponse:
        if seen.message["params"]["arguments"] == WAIT:
            made[0].waiting += 1
            await anyio.sleep_forever()
        return await echoes(seen)

    async def stops(seen: Seen) -> web.StreamResponse:
        made[0].given_up += 1
        return web.Response(status=202)

    answers = {"initialize": offers_tools, "tools/list": lists_echo, "tools/call": calls}
    auth = {"tokens": "tokens.json", "issuer": ISSUER, "audience": AUDIENCE, "key": public_key()}
    async with http_backend(**answers, **{"notifications/cancelled": stops}) as backend:
        docs = {"url": backend.url, "required_roles": ["dev"]}
        asks = local("raw_asks.py", required_roles=["dev"])
        async with gateway_over_http(patient_toml({"docs": docs, "asks": asks}, auth=auth)) as gateway:
            made.append(Team(gateway, TokenFile(gateway.path.with_name("tokens.json"))))
            yield made[0]


def revoke(team: Team) -> None:
    team.file.revoke(team.owners["ann"].id)


def lose_the_role(team: Team) -> None:
    text = team.file.path.read_text().replace('"dev"', '"guest"', 1)
    team.file.path.write_text(text)


def break_the_file(team: Team) -> None:
    team.file.path.chmod(0o644)


async def waiting_call(caller: RawClient) -> None:
    """A call that no answer comes to, but an end."""
    with pytest.raises((AssertionError, KeyError, aiohttp.ClientError)):  # a stream that ends, a 401, an error
        result = await caller.call("docs_echo", WAIT)
        assert not result["isError"]


@pytest.mark.core
@pytest.mark.parametrize("change", [revoke, lose_the_role])
@pytest.mark.parametrize("era", ERAS)
async def test_a_call_ends_with_its_token_and_so_does_its_work(
    era: str, change: Callable[[Team], None], tmp_path: Path
) -> None:
    async with (
        team(tmp_path) as house,
        house.client(house.token("ann"), VERSIONS[era]) as ann,
        house.client(house.token("bob"), VERSIONS[era]) as bob,
        anyio.create_task_group() as bobs,
    ):
        assert (await ann.call("docs_echo", HELLO))["content"][0]["text"] == "hello"
        bobs.start_soon(bob.call, "docs_echo", WAIT)
        await eventually(lambda: house.waiting == 1)
        async with anyio.create_task_group() as anns:
            anns.start_soon(waiting_call, ann)
            await eventually(lambda: house.waiting == 2)
            change(house)
            began = time.monotonic()
            await house.work_stops(within=SOON, left=1)
        assert time.monotonic() - began < SOON
        ann.session_id = None  # nothing is left to end
        assert (house.waiting, house.leases) == (2, 1)  # bob's goes on
        bobs.cancel_scope.cancel()
    assert repr(house.gateway.gateway.watch) == "<TokenWatch 0 tokens>"


@pytest.mark.core
@pytest.mark.parametrize("era", ERAS)
async def test_a_call_ends_when_its_jwt_expires(era: str, tmp_path: Path) -> None:
    async with team(tmp_path) as house:
        expires = int(time.time()) + 3
        async with house.client(jwt(exp=expires, roles=["dev"]), VERSIONS[era]) as ann:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(waiting_call, ann)
                await eventually(lambda: house.waiting == 1)
                await house.work_stops(within=3 + SOON)
            assert expires <= time.time() < expires + SOON
            ann.session_id = None
        await until_at_rest(house.gateway)


@asynccontextmanager
async def stream(house: Team, caller: RawClient, token: str) -> AsyncIterator[aiohttp.ClientResponse]:
    """The stream of a handshake session on which it is told what belongs to no request."""
    headers = {**bearer(token), "Accept": "text/event-stream", "MCP-Protocol-Version": HANDSHAKE}
    headers["Mcp-Session-Id"] = caller.session_id or ""
    async with aiohttp.ClientSession() as http, http.get(house.url, headers=headers) as answer:
        yield answer


async def rest_of(answer: aiohttp.ClientResponse) -> str:
    """What comes until the stream ends, as it should: not broken off."""
    with anyio.fail_after(SOON):
        return (await answer.read()).decode()


@pytest.mark.core
@pytest.mark.parametrize("change", [revoke, lose_the_role, break_the_file])
async def test_a_stream_ends_with_its_token(change: Callable[[Team], None], tmp_path: Path) -> None:
    async with team(tmp_path) as house:
        token = house.token("ann")
        async with house.client(token, HANDSHAKE) as ann:
            async with stream(house, ann, token) as answer:
                assert answer.status == 200
                change(house)
                assert "data: {" not in await rest_of(answer)
            async with stream(house, ann, token) as again:
                assert again.status == (200 if change is lose_the_role else 401)
            ann.session_id = None


async def test_a_subscription_of_the_newest_era_ends_with_its_token(tmp_path: Path) -> None:
    async with team(tmp_path) as house, house.client(house.token("ann"), NEWEST) as ann:
        ended = anyio.Event()

        async def listen() -> None:
            with pytest.raises((AssertionError, KeyError)):  # it has no answer
                await ann.request("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
            ended.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            await eventually(lambda: repr(house.gateway.gateway.watch) == "<TokenWatch 1 tokens>")
            assert not ended.is_set()
            revoke(house)
            with anyio.fail_after(SOON):
                await ended.wait()


async def test_a_call_that_waits_for_its_client_ends_with_its_token(tmp_path: Path) -> None:
    """It has no request open: it is parked until the client comes back with an answer."""
    async with team(tmp_path) as house, house.client(house.token("ann"), NEWEST) as ann:
        ann.capabilities = {"roots": {}}
        result = await ann.call("asks_ask", {"ask": [{"method": "roots/list"}], "then": []})
        parking = house.gateway.gateway.parking
        assert (result["resultType"], parking.parked, house.leases) == ("input_required", 1, 1)
        revoke(house)
        await eventually(lambda: (parking.parked, house.leases) == (0, 0), within=SOON)


@pytest.mark.core
async def test_a_session_whose_token_is_revoked_hears_nothing_until_it_has_a_new_one(tmp_path: Path) -> None:
    async with team(tmp_path) as house:
        gateway = house.gateway.gateway
        sessions, told = gateway.sessions, list[str]()

        def concerned(identity: Any, *_: Any) -> list[str]:
            told.append(identity.user_id)
            return []

        first = house.token("ann")
        async with house.client(first, HANDSHAKE) as ann:
            await ann.call("docs_echo", HELLO)
            await sessions.announce(concerned)
            assert told == ["ann"]
            revoke(house)
            await eventually(lambda: repr(gateway.watch) == "<TokenWatch 0 tokens>", within=SOON)
            await sessions.announce(concerned)
            assert told == ["ann"]
            # ann with a new token goes on with her session; bob with his cannot
            second, bobs = house.token("ann"), house.token("bob")
            assert await status_of(house, ann, bobs) == 404
            await sessions.announce(concerned)
            assert told == ["ann"]
            assert await status_of(house, ann, second) == 200
            await sessions.announce(concerned)
            assert told == ["ann", "ann"]
            assert await status_of(house, ann, first) == 401
            ann.session_id = None


async def status_of(house: Team, caller: RawClient, token: str) -> int:
    listed = {"jsonrpc": "2.0", "id": 99, "method": "tools/list", "params": {}}
    async with posted(house, caller, token, listed) as answer:
        return answer.status


async def text_for(house: Team, caller: RawClient, token: str, body: dict[str, Any]) -> str:
    async with posted(house, caller, token, body) as answer:
        return await answer.text()


@asynccontextmanager
async def posted(
    house: Team, caller: RawClient, token: str, body: dict[str, Any]
) -> AsyncIterator[aiohttp.ClientResponse]:
    """A request in a caller's session, with a token that may be another's."""
    headers = {**bearer(token), "Accept": "application/json, text/event-stream", "MCP-Protocol-Version": HANDSHAKE}
    headers["Mcp-Session-Id"] = caller.session_id or ""
    async with aiohttp.ClientSession() as http, http.post(house.url, json=body, headers=headers) as answer:
        await answer.read()
        yield answer


@pytest.mark.core
async def test_two_issuers_may_have_users_of_one_name(tmp_path: Path) -> None:
    """And what one of them made is not the other's."""
    async with team(tmp_path) as house:
        static, foreign = house.token("ann"), jwt(sub="ann", roles=["dev"])
        mine = tmp_path / "mine.py"
        mine.write_text(
            "from fastmcp import FastMCP\nmcp = FastMCP('mine')\n@mcp.tool\ndef now() -> str: return 'now'\n"
        )
        made = McpServerResource(name="mine", python=f"{mine}:mcp", created_by="tokens/ann")
        await house.gateway.gateway.store.upsert(made)
        registry = house.gateway.gateway.registry
        await eventually(lambda: registry.resource("mine") is not None)
        async with house.client(static, HANDSHAKE) as hers, house.client(foreign, HANDSHAKE) as another:
            listed = {"jsonrpc": "2.0", "id": 5, "method": "tools/list", "params": {}}
            assert "mine_now" in await text_for(house, hers, static, listed)
            assert "mine_now" not in await text_for(house, another, foreign, listed)
            assert await status_of(house, another, static) == 404
