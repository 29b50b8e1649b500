"""Streamable HTTP, at the end: whatever is under way, leaving the wire ends it, soon, and leaves nothing behind."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import anyio
import pytest
from aiohttp import web

from providers.errors import BackendUnavailable
from tests.helpers.http_backend import (
    HURRY,
    SESSION,
    Seen,
    event,
    event_stream,
    http_backend,
    line_to,
    notification,
    open_line,
    proper,
    remote,
    wire_tasks,
)
from tests.helpers.ports import dead_port
from tests.helpers.processes import eventually

pytestmark = pytest.mark.core


def sockets() -> int:
    """How many sockets this process has open."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists the folder
            count += str(descriptor.readlink()).startswith("socket:")
    return count


async def never(seen: Seen) -> web.StreamResponse:
    await anyio.sleep_forever()
    raise AssertionError


async def chatting_for_ever(seen: Seen) -> web.StreamResponse:
    response = await event_stream(seen)
    while True:
        await response.write(event(notification("again")))
        await anyio.lowlevel.checkpoint()


async def own_stream(seen: Seen) -> web.StreamResponse:
    response = await event_stream(seen, event(notification("hello")))
    await anyio.sleep_forever()
    return response


async def test_leaving_ends_all_that_is_under_way() -> None:
    answers = {"tools/call": never, "prompts/get": chatting_for_ever, "GET": own_stream, "ping": never}
    async with http_backend(**answers) as backend:
        before = sockets()
        async with line_to(backend) as line:
            await line.shake_hands()
            for number, method in enumerate(["tools/call", "tools/call", "prompts/get", "ping"], 1):
                await line.ask(number, method)
                await backend.wait_for(method)
            await line.inbox.wait_for(10)
            assert wire_tasks()
        assert not wire_tasks()
        assert backend.of("DELETE")[0].headers["Mcp-Session-Id"] == SESSION
        delivered = len(line.inbox.messages)
        await eventually(lambda: sockets() == before)
        assert len(line.inbox.messages) == delivered


async def test_a_server_that_does_not_end_the_session_is_not_waited_for() -> None:
    async with http_backend(DELETE=never) as backend:
        with anyio.fail_after(3):
            async with line_to(backend, timeouts=HURRY) as line:
                await line.shake_hands()
        await backend.wait_for("DELETE")


async def test_a_server_that_is_gone_is_no_reason_to_raise() -> None:
    async with http_backend() as backend, line_to(backend, timeouts=HURRY) as line:
        await line.shake_hands()
        with dead_port() as port:
            line.wire._endpoint.url = line.wire._endpoint.url.with_port(port)  # type: ignore[attr-defined]


async def test_the_session_is_ended_also_when_the_owner_is_cancelled() -> None:
    async with http_backend() as backend:
        with anyio.CancelScope() as scope:
            async with line_to(backend) as line:
                await line.shake_hands()
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert len(backend.of("DELETE")) == 1


async def test_what_the_owner_raises_comes_out_as_it_is() -> None:
    cause = ValueError("cause")
    async with http_backend() as backend:
        with pytest.raises(KeyError, match="mine") as caught:
            async with line_to(backend) as line:
                await line.shake_hands()
                raise KeyError("mine") from cause
    assert caught.value.__cause__ is cause


async def test_a_wire_that_sent_nothing_leaves_without_a_word() -> None:
    with dead_port() as port:
        async with open_line(remote(f"http://127.0.0.1:{port}/mcp")):
            pass


async def test_many_wires_share_one_client_and_leave_nothing() -> None:
    async with http_backend() as backend:
        before = sockets()
        async with anyio.create_task_group() as tasks:

            async def visit() -> None:
                async with line_to(backend) as line:
                    await line.shake_hands()
                    await line.call(1)

            for _ in range(20):
                tasks.start_soon(visit)
        assert len(backend.of("DELETE")) == 20
        await eventually(lambda: sockets() == before)
        assert not wire_tasks()


async def test_a_call_that_is_answered_while_the_wire_closes_is_not_delivered() -> None:
    may_answer = anyio.Event()

    async def late(seen: Seen) -> web.StreamResponse:
        await may_answer.wait()
        return await proper(seen)

    async def answer_first(seen: Seen) -> web.StreamResponse:
        may_answer.set()
        await anyio.lowlevel.checkpoint()
        return await proper(seen)

    async with http_backend(**{"tools/call": late, "DELETE": answer_first}) as backend:
        async with line_to(backend) as line:
            await line.call(0, "initialize")
            await line.ask(1)
            await backend.wait_for("tools/call")
        assert [message["id"] for message in line.inbox.messages] == [0]


async def test_nothing_is_delivered_once_the_wire_is_dead() -> None:
    async with http_backend(**{"prompts/get": chatting_for_ever}) as backend, line_to(backend) as line:
        await line.ask(1, "prompts/get")
        await line.inbox.wait_for(3)
        line.wire.fail(BackendUnavailable("docs", "is dead."))
        delivered = len(line.inbox.messages)
        for _ in range(100):
            await anyio.lowlevel.checkpoint()  # in each of them the server writes
        assert len(line.inbox.messages) == delivered
