"""What a backend sends during a call reaches the client that made the call, or nobody. Real clients, real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from fastmcp import Client
from fastmcp.exceptions import ToolError

from providers import lines
from providers.errors import GatewayError
from tests.helpers.desk import Inbox, desk_with, said_by
from tests.helpers.fakes import (
    Call,
    FakeBackend,
    Json,
    client_of,
    never,
    no_waiting,
    settled,
    text,
    time_passes,
)

core = pytest.mark.core


@pytest.fixture(autouse=True)
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


# ---------------------------------------------------------------------------------------- progress


@core
async def test_progress_reaches_the_call_that_it_is_about_under_the_clients_own_token() -> None:
    async def answer(call: Call) -> Json:
        for step in (1, 2):
            await call.progress(step, total=2, message=call.arguments["text"])
        return text(call.arguments["text"])

    backend, one, other = FakeBackend(answers={"tools/call": answer}), Inbox(), Inbox()
    async with desk_with(backend) as desk, one.client(desk) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: said_by(client, "a", progress_handler=one.on_progress))
        tasks.start_soon(lambda: said_by(client, "b", progress_handler=other.on_progress))
    assert one.progress == [(1, 2, "a"), (2, 2, "a")] and other.progress == [(1, 2, "b"), (2, 2, "b")]
    tokens = [message["params"]["_meta"]["progressToken"] for message in backend.wire.received[2:]]
    assert len(set(tokens)) == 2


@core
async def test_progress_with_a_token_that_is_not_that_calls_reaches_nobody() -> None:
    async def answer(call: Call) -> Json:
        for token in (call.meta["progressToken"] + 1, str(call.meta["progressToken"]), None, [1], 1.5):
            await call.wire.say("notifications/progress", {"progressToken": token, "progress": 1})
        return text("done")

    backend, inbox = FakeBackend(answers={"tools/call": answer}), Inbox()
    async with desk_with(backend) as desk, inbox.client(desk) as client:
        await said_by(client, progress_handler=inbox.on_progress)
    assert inbox.progress == []


@core
async def test_progress_that_comes_after_the_answer_reaches_nobody() -> None:
    backend, inbox, calls = FakeBackend(), Inbox(), []

    async def answer(call: Call) -> Json:
        calls.append(call)
        return text("done")

    backend.answers["tools/call"] = answer
    async with desk_with(backend) as desk, inbox.client(desk) as client:
        await said_by(client, progress_handler=inbox.on_progress)
        await calls[0].progress(5)
        await said_by(client, progress_handler=inbox.on_progress)
    assert inbox.progress == []


@core
async def test_progress_keeps_a_call_alive_up_to_the_longest() -> None:
    async def works_for_ever(call: Call) -> Json:
        while True:
            await time_passes(4)
            await call.progress(1)

    backend, inbox = FakeBackend(answers={"tools/call": works_for_ever}), Inbox()
    async with desk_with(backend, call=5, call_max=60) as desk, inbox.client(desk) as client:
        began = anyio.current_time()
        with pytest.raises(ToolError, match="within the longest time that a call may take"):
            await said_by(client, progress_handler=inbox.on_progress)
        assert anyio.current_time() - began == pytest.approx(60) and len(inbox.progress) == 14


# -------------------------------------------------------------------------------------------- logs


def logs_during_the_call(*levels: str) -> Any:
    async def answer(call: Call) -> Json:
        for level in levels:
            await call.log(call.arguments["text"], level)
        return text(call.arguments["text"])

    return answer


@core
async def test_a_log_reaches_the_client_of_the_call() -> None:
    backend, caller, other = (
        FakeBackend(answers={"tools/call": logs_during_the_call("info", "error")}),
        Inbox(),
        Inbox(),
    )
    async with desk_with(backend) as desk, caller.client(desk) as client, other.client(desk):
        await said_by(client, "mine")
        await settled()
    assert caller.logs == [("info", "mine"), ("error", "mine")] and other.logs == []


@core
async def test_a_log_between_calls_reaches_nobody() -> None:
    backend, inbox = FakeBackend(), Inbox()
    async with desk_with(backend) as desk, inbox.client(desk) as client:
        await said_by(client)
        await backend.wire.say("notifications/message", {"level": "error", "data": "private"})
        await settled()
    assert inbox.logs == []


@core
async def test_a_log_of_a_level_that_is_none_reaches_nobody() -> None:
    backend, inbox = FakeBackend(answers={"tools/call": logs_during_the_call("loud")}), Inbox()
    async with desk_with(backend) as desk, inbox.client(desk) as client:
        await said_by(client)
        await settled()
    assert inbox.logs == []


@core
@pytest.mark.parametrize("has_session", [True, False])
async def test_with_two_calls_at_once_a_log_is_for_their_one_session_or_for_nobody(has_session: bool) -> None:
    """Without sessions two calls of a user may come from two windows, and nothing says which one a log is about."""
    go_on = anyio.Event()

    async def answer(call: Call) -> Json:
        if call.arguments["text"] == "first":
            await go_on.wait()
        else:
            await call.log("second's")
            go_on.set()
        return text("done")

    backend, inbox = FakeBackend(answers={"tools/call": answer}), Inbox()
    async with desk_with(backend, has_session=has_session) as desk, inbox.client(desk) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(said_by, client, "first")
            await backend.heard("tools/call")
            tasks.start_soon(said_by, client, "second")
        await settled()
    assert inbox.logs == ([("info", "second's")] if has_session else [])


# ---------------------------------------------------------------------------------- a client that left


async def test_a_client_that_leaves_in_mid_call_ends_the_call_at_the_backend() -> None:
    backend = FakeBackend(answers={"tools/call": never})
    async with desk_with(backend) as desk, anyio.create_task_group() as tasks:
        async with client_of(desk.server) as client:
            tasks.start_soon(fails_somehow, client)
            await backend.heard("tools/call")
        await backend.until(lambda: bool(backend.wire.cancelled))
        await desk.session.request("ping", {}, None)


async def fails_somehow(client: Client[Any]) -> None:
    with pytest.raises((ToolError, RuntimeError, lines.MCPError, GatewayError)):
        await said_by(client)
