"""What once crossed from one user, token or call to another, or let one spoil it for the rest, and must not again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest

from providers.caller import Caller, Front
from providers.catalogue import Catalogue
from providers.errors import BackendUnavailable, PoolExhausted
from providers.lease import lease
from providers.pool import McpConnectionPool
from tests.helpers.fakes import (
    ALICE,
    BOB,
    VERSION,
    FakeBackend,
    Json,
    caller_of,
    no_waiting,
    pool_of,
    settled,
    text,
    tool,
)

pytestmark = pytest.mark.core

WIDE = replace(ALICE, roles=frozenset({"mcp.admin"}))
NARROW = replace(ALICE, roles=frozenset({"guest"}))


@asynccontextmanager
async def catalogue_of(
    backend: FakeBackend, pool: McpConnectionPool, isolation: str = "session"
) -> AsyncIterator[tuple[Catalogue, list[str]]]:
    """A catalogue that follows its backend, and the users who were told of changes."""
    told: list[str] = []
    async with anyio.create_task_group() as tasks:
        catalogue = Catalogue(pool, lambda: target, lambda kinds, identity: told.append(identity.user_id))
        target = backend.target(on_change=lambda caller, method: catalogue.changed(caller, method), isolation=isolation)
        catalogue.start(tasks)
        yield catalogue, told
        tasks.cancel_scope.cancel()


async def names(catalogue: Catalogue, caller: Caller) -> list[str]:
    listing = await catalogue.get(caller)
    return [each["name"] for each in listing.tools] if listing else []


# --- what a server says of itself, and what it offers


async def test_what_a_server_tells_one_user_of_itself_is_not_told_to_another() -> None:
    async def introduce(call: Any) -> Json:
        return {
            "protocolVersion": VERSION,
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "fake", "version": "1"},
            "instructions": f"for {call.identity.user_id}",
        }

    backend = FakeBackend(answers={"initialize": introduce})
    async with pool_of() as pool, catalogue_of(backend, pool) as (catalogue, _):
        for user in (ALICE, BOB):
            listing = await catalogue.get(caller_of(user, f"session:{user.user_id}"))
            assert listing is not None and listing.facts["instructions"] == f"for {user.user_id}"
            assert catalogue.known_to(user) is listing


async def test_a_narrower_token_of_one_user_gets_a_listing_of_its_own() -> None:
    async def offer(call: Any) -> Json:
        return {"tools": [tool("_".join(sorted(call.identity.roles)).replace(".", "-"))]}

    backend = FakeBackend(answers={"tools/list": offer})
    async with pool_of() as pool, catalogue_of(backend, pool) as (catalogue, _):
        assert await names(catalogue, caller_of(WIDE, "session:1")) == ["mcp-admin"]
        assert await names(catalogue, caller_of(NARROW, "session:2")) == ["guest"]


async def test_nothing_is_listed_on_behalf_of_clients_that_have_gone() -> None:
    backend = FakeBackend()
    with no_waiting():
        async with pool_of() as pool, catalogue_of(backend, pool) as (catalogue, _):
            for number in range(5):
                user = replace(ALICE, user_id=f"user {number}")
                await names(catalogue, caller_of(user, f"session:{number}"))
                await pool.end_session(f"session:{number}")
                catalogue.forget_session(f"session:{number}")
            await settled()
            asked = backend.attempts
            await anyio.sleep(1000)
            catalogue.tick()
            await settled()
            assert backend.attempts == asked and backend.open == 0
            assert await names(catalogue, caller_of(replace(ALICE, user_id="user 0"), "session:new")) == ["echo"]


@pytest.mark.parametrize(("isolation", "second"), [("shared", BOB), ("user", ALICE)])
async def test_everybody_who_shares_a_backend_hears_of_its_change(isolation: str, second: Any) -> None:
    backend = FakeBackend()
    with no_waiting():
        async with pool_of() as pool, catalogue_of(backend, pool, isolation) as (catalogue, told):
            callers = [caller_of(ALICE, "session:1"), caller_of(second, "session:2")]
            for caller in callers:
                await names(catalogue, caller)
            backend.tools = [tool("echo"), tool("new")]
            await anyio.sleep(2)
            await backend.wire.say("notifications/tools/list_changed")
            await settled()
            assert [await names(catalogue, caller) for caller in callers] == [["echo", "new"]] * 2
            assert set(told) == {ALICE.user_id, second.user_id}


async def test_a_server_that_announces_changes_without_end_is_asked_once_a_second() -> None:
    backend = FakeBackend()

    async def offer_and_announce(call: Any) -> Json:
        await call.wire.say("notifications/tools/list_changed")
        return {"tools": [tool("echo")]}

    backend.answers["tools/list"] = offer_and_announce
    with no_waiting():
        async with pool_of() as pool, catalogue_of(backend, pool) as (catalogue, _):
            await names(catalogue, caller_of())
            for _ in range(10):
                await anyio.sleep(1)
                catalogue.tick()
                await settled()
            assert backend.count("tools/list") <= 12


async def test_a_listing_that_is_no_text_ends_nothing() -> None:
    backend = FakeBackend(tools=[tool("echo"), {**tool("odd"), "description": "\ud800"}])
    async with pool_of() as pool, catalogue_of(backend, pool) as (catalogue, _):
        assert await names(catalogue, caller_of()) == ["echo"]


# --- calls


async def test_two_tokens_of_one_user_do_not_lend_each_other_their_roles() -> None:
    backend = FakeBackend()
    async with pool_of(acquire_timeout=0.05) as pool:
        target = backend.target()
        async with lease(pool, target, caller_of(NARROW)) as narrow:
            with pytest.raises(PoolExhausted):
                async with lease(pool, target, caller_of(WIDE)):
                    pass
            assert narrow.session.wire.identity == NARROW


def front_of(caller: Caller, inbox: list[tuple[str, str]]) -> Front:
    class Inbox(Front):
        async def tell(self, method: str, params: Json) -> None:
            inbox.append((self.caller.identity.user_id, str(params["data"])))

    return Inbox(None, caller)


@pytest.mark.parametrize("isolation", ["shared", "user"])
async def test_what_a_given_up_call_says_later_reaches_nobody_else(isolation: str) -> None:
    backend, started, go_on = FakeBackend(), anyio.Event(), anyio.Event()
    inbox: list[tuple[str, str]] = []

    async def answer(call: Any) -> Json:
        if call.arguments["text"] == "first":
            started.set()
            with anyio.CancelScope(shield=True):
                await go_on.wait()
                await call.log("the first caller's secret")
        else:
            go_on.set()
            await settled()
        return text("ok")

    backend.answers["tools/call"] = answer
    first = caller_of(ALICE, "session:1")
    second = caller_of(BOB if isolation == "shared" else ALICE, "session:2")
    async with pool_of() as pool, anyio.create_task_group() as tasks:
        target, giving_up = backend.target(isolation=isolation), anyio.CancelScope()

        async def call(caller: Caller, words: str) -> None:
            async with lease(pool, target, caller, front_of(caller, inbox)) as held:
                await held.request("tools/call", {"name": "echo", "arguments": {"text": words}})

        async def give_up() -> None:
            with giving_up:
                await call(first, "first")

        tasks.start_soon(give_up)
        await started.wait()
        giving_up.cancel()
        await settled()
        await call(second, "second")
    assert inbox == []


async def test_a_client_that_does_not_listen_does_not_hold_up_the_next() -> None:
    backend = FakeBackend()

    async def chat(call: Any) -> Json:
        if call.arguments["text"] == "chatty":
            await call.log("hello")
        return text("ok")

    backend.answers["tools/call"] = chat

    class Deaf(Front):
        async def tell(self, method: str, params: Json) -> None:
            await anyio.sleep_forever()

    with no_waiting():
        async with pool_of() as pool:
            target = backend.target(isolation="shared")
            alice = caller_of(ALICE, "session:1")
            async with lease(pool, target, alice, Deaf(None, alice)) as held:
                await held.request("tools/call", {"name": "echo", "arguments": {"text": "chatty"}})
            async with lease(pool, target, caller_of(BOB, "session:2")) as held:
                assert await held.request("tools/call", {"name": "echo", "arguments": {"text": "plain"}})


async def test_a_backend_that_asks_too_much_at_once_is_refused() -> None:
    backend, asking = FakeBackend(), 100

    async def ask_much(call: Any) -> Json:
        for number in range(asking):
            await call.wire.deliver({"jsonrpc": "2.0", "id": f"q{number}", "method": "roots/list"})
        return text("ok")

    backend.answers["tools/call"] = ask_much

    class Slow(Front):
        open, most = 0, 0

        async def ask(self, method: str, params: Json | None) -> Json:
            Slow.open += 1
            Slow.most = max(Slow.most, Slow.open)
            await anyio.sleep_forever()
            return {}

    caller = caller_of(capabilities=frozenset({"roots"}))
    async with pool_of() as pool, lease(pool, backend.target(), caller, Slow(None, caller)) as held:
        await held.request("tools/call", {"name": "echo", "arguments": {}})
    assert Slow.most <= 16


async def test_what_was_not_sent_goes_elsewhere_and_leaves_the_other_calls_alone() -> None:
    backend, slow = FakeBackend(), anyio.Event()

    async def answer(call: Any) -> Json:
        if call.arguments["text"] == "slow":
            await slow.wait()
        return text("ok")

    async def refuse_once(wire: Any, message: Json) -> None:
        words = (message.get("params") or {}).get("arguments", {}).get("text")
        if words == "refused" and wire is backend.wires[0]:
            raise BackendUnavailable("fake", "no connection.", not_sent=True)

    backend.answers["tools/call"], backend.before_send = answer, refuse_once
    answers: list[str] = []
    async with pool_of() as pool, anyio.create_task_group() as tasks:

        async def call(words: str) -> None:
            async with lease(pool, backend.target(), caller_of()) as held:
                await held.request("tools/call", {"name": "echo", "arguments": {"text": words}})
                answers.append(words)

        tasks.start_soon(call, "slow")
        await backend.heard("tools/call")
        await call("refused")
        slow.set()
    assert answers == ["refused", "slow"]


async def test_the_death_of_many_sessions_at_once_is_one_failure() -> None:
    backend = FakeBackend()
    async with pool_of() as pool:
        for number in range(8):
            async with lease(pool, backend.target(), caller_of(ALICE, f"session:{number}")):
                pass
        for wire in list(backend.wires):
            wire.die()
        await settled()
        async with lease(pool, backend.target(), caller_of(ALICE, "session:0")):
            pass


async def test_for_nobody_nothing_is_renewed() -> None:
    backend = FakeBackend()
    with no_waiting():
        async with pool_of() as pool, catalogue_of(backend, pool) as (catalogue, _):
            await names(catalogue, caller_of())
            for _ in range(6 * 60):
                await anyio.sleep(60)
                catalogue.tick()
                await settled()
            assert backend.count("tools/list") <= 2 and backend.open == 0
            await names(catalogue, caller_of())
            await settled()
            assert backend.count("tools/list") <= 3, "the next one who asks has it renewed"
