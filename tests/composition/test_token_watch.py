"""The watch over what hangs on tokens: when it ends what, and what a client is told whose request ends."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from fastmcp.server.auth import AccessToken
from starlette.types import Message, Receive, Scope, Send

from composition.token_watch import EndsWithToken, TokenWatch
from tests.helpers.processes import eventually

pytestmark = pytest.mark.core

Change = Callable[["Door"], None]


def access(token: str = "t", *, expires_at: int | None = None, **claims: Any) -> AccessToken:
    claims = {"sub": "ann", "iss": "i", "roles": ["dev"]} | claims
    return AccessToken(token=token, client_id="c", scopes=[], subject="ann", claims=claims, expires_at=expires_at)


class Door:
    """Verifies one token, in the way that a test says."""

    def __init__(self) -> None:
        self.answer: AccessToken | None = access()
        self.fault: Exception | None = None
        self.stands_open = anyio.Event()
        self.stands_open.set()
        self.asked = 0

    async def verify(self, token: str) -> AccessToken | None:
        self.asked += 1
        await self.stands_open.wait()
        if self.fault is not None:
            raise self.fault
        return self.answer


@asynccontextmanager
async def watched() -> AsyncIterator[tuple[Door, TokenWatch]]:
    door = Door()
    watch = TokenWatch(door.verify)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch.run)
        yield door, watch
        tasks.cancel_scope.cancel()


def set_answer(answer: AccessToken | None) -> Change:
    return lambda door: setattr(door, "answer", answer)


CHANGES: dict[str, Change] = {
    "it proves nothing": set_answer(None),
    "other roles": set_answer(access(roles=["dev", "ops"])),
    "no roles": set_answer(access(roles=[])),
    "another user": set_answer(access(sub="bob")),
    "another issuer": set_answer(access(iss="j")),
    "another name": set_answer(access(name="Ann")),
    "no subject": set_answer(access(sub="")),
    "it cannot be verified": lambda door: setattr(door, "fault", RuntimeError("the issuer is down")),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_what_hangs_on_a_token_is_ended_once_when(change: str) -> None:
    async with watched() as (door, watch):
        ended: list[str] = []
        watch.hold(lambda: ended.append("released"), access())()
        with watch.holding(lambda: ended.append("held"), access()):
            await eventually(lambda: door.asked == 1)
            assert not ended
            CHANGES[change](door)
            await eventually(lambda: bool(ended), within=2)
        assert ended == ["held"] and repr(watch) == "<TokenWatch 0 tokens>"


async def test_a_token_that_expires_ends_even_while_its_issuer_is_silent() -> None:
    """And no other look is begun meanwhile."""
    async with watched() as (door, watch):
        door.stands_open = anyio.Event()
        is_over = anyio.Event()
        with watch.holding(is_over.set, access(expires_at=int(time.time()) + 2)), anyio.fail_after(4):
            await is_over.wait()
        assert door.asked == 1
        door.stands_open.set()


async def test_one_that_is_slow_delays_no_other() -> None:
    async with watched() as (door, watch):
        door.stands_open, slow, quick = anyio.Event(), anyio.Event(), anyio.Event()
        with watch.holding(slow.set, access()):
            await eventually(lambda: door.asked == 1)
            with watch.holding(quick.set, access("other", expires_at=int(time.time()))), anyio.fail_after(2):
                await quick.wait()
            assert not slow.is_set()
        door.stands_open.set()


async def test_a_token_is_looked_at_once_for_all_that_hangs_on_it() -> None:
    async with watched() as (door, watch):
        ended: list[int] = []
        for number in range(100):
            watch.hold(lambda number=number: ended.append(number), access())  # type: ignore[misc]
        await eventually(lambda: door.asked > 0)
        assert door.asked == 1
        door.answer = None
        await eventually(lambda: bool(ended))
        assert ended == list(range(100))


def test_without_tokens_nothing_is_held() -> None:
    watch = TokenWatch(None)
    with watch.holding(lambda: None), watch.holding(lambda: None, access()):
        assert repr(watch) == "<TokenWatch 0 tokens>"


# ------------------------------------------------------------------------------------------------------------ requests


class User:
    def __init__(self) -> None:
        self.access_token = access()


async def sent_by(app: Callable[[Scope, Receive, Send], Awaitable[None]], *, user: object = None) -> list[Message]:
    """What a client gets of an application whose request ends with its token."""
    got: list[Message] = []

    async def send(message: Message) -> None:
        got.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    async with watched() as (door, watch):
        door.answer = None
        guarded = EndsWithToken(app, watch, "https://mcp.example.com/metadata")
        with anyio.fail_after(3):
            await guarded({"type": "http", "user": user or User()}, receive, send)
        assert repr(watch) == "<TokenWatch 0 tokens>"
    return got


START = {"type": "http.response.start", "status": 200, "headers": []}


async def test_an_answer_that_has_not_begun_is_a_refusal() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await anyio.sleep_forever()

    start, body = await sent_by(app)
    headers = dict(start["headers"])
    assert start["status"] == 401 and b"not valid any more" in body["body"]
    assert b'resource_metadata="https://mcp.example.com/metadata"' in headers[b"www-authenticate"]


async def test_an_answer_that_has_begun_is_brought_to_its_end() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await anyio.sleep_forever()

    assert (await sent_by(app))[2:] == [{"type": "http.response.body", "body": b"", "more_body": False}]


async def test_an_answer_that_is_complete_gets_nothing_more() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"a"})
        await anyio.sleep_forever()

    assert len(await sent_by(app)) == 2


async def test_a_request_without_a_token_is_left_alone() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)

    assert await sent_by(app, user=object()) == [START]
