"""Streamable HTTP, as it goes when all is well: answers, sessions, what the server sends by itself, and cancelling."""

from __future__ import annotations

import anyio
import pytest
from aiohttp import web

from providers import remote
from providers.errors import BackendUnavailable
from providers.identity import Identity
from providers.wire import Message
from tests.helpers.http_backend import (
    HURRY,
    SESSION,
    VERSION,
    Answerer,
    Seen,
    always,
    answer,
    at_rest,
    event,
    event_stream,
    http_backend,
    line_to,
    notification,
    proper,
)

pytestmark = pytest.mark.core

MODERN = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "echo"}


async def test_an_answer_comes_as_json() -> None:
    async with http_backend() as backend, line_to(backend) as line:
        assert await line.call(1) == {"jsonrpc": "2.0", "id": 1, "result": {"ok": True}}
        (seen,) = backend.seen
        assert seen.message == {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {}}
        assert seen.headers["Content-Type"] == "application/json"
        assert seen.headers["Accept"] == "application/json, text/event-stream"
        assert seen.headers["Accept-Encoding"] == "identity"


async def test_an_answer_comes_as_events_and_what_precedes_it_is_handed_up_in_order() -> None:
    async def chatty(seen: Seen) -> web.StreamResponse:
        pieces = [event(notification(str(number))) for number in range(5)]
        return await event_stream(seen, b": hello\n\n", *pieces, event(answer(seen)))

    async with http_backend(**{"tools/call": chatty}) as backend, line_to(backend) as line:
        await line.call(1)
        texts = [message["params"]["data"] for message in line.inbox.messages[:-1]]
        assert texts == ["0", "1", "2", "3", "4"]


async def test_a_stream_that_stays_open_after_the_answer_is_not_waited_for() -> None:
    gone = anyio.Event()

    async def lingering(seen: Seen) -> web.StreamResponse:
        try:
            response = await event_stream(seen, event(answer(seen)))
            await anyio.sleep_forever()
            return response
        finally:
            gone.set()

    async with http_backend(**{"tools/call": lingering}) as backend, line_to(backend) as line:
        await line.call(1)
        with anyio.fail_after(5):
            await gone.wait()  # and its connection is given up


@pytest.mark.parametrize("as_events", [False, True])
async def test_calls_one_after_the_other_use_one_connection(as_events: bool) -> None:
    has_answer = anyio.Event()

    async def either(seen: Seen) -> web.StreamResponse:
        if not as_events:
            return await proper(seen)
        response = await event_stream(seen, event(answer(seen)))
        await has_answer.wait()
        return response

    async with http_backend(**{"tools/call": either}) as backend, line_to(backend) as line:
        for number in range(5):
            has_answer = anyio.Event()
            await line.call(number)
            has_answer.set()
            await at_rest()  # the end of the stream has been read
        assert len({seen.request.get_extra_info("peername") for seen in backend.seen}) == 1


async def test_fifty_calls_at_once_are_answered_out_of_order() -> None:
    everyone_is_here = anyio.Event()

    async def reversed_order(seen: Seen) -> web.StreamResponse:
        if len(backend.seen) == 50:
            everyone_is_here.set()
        await everyone_is_here.wait()
        for _ in range(50 - seen.message["id"]):
            await anyio.lowlevel.checkpoint()
        return web.json_response(answer(seen, {"number": seen.message["id"]}))

    async with http_backend(**{"tools/call": reversed_order}) as backend, line_to(backend) as line:
        for number in range(50):
            await line.ask(number)
        messages = await line.inbox.wait_for(50)
        assert sorted(message["id"] for message in messages) == list(range(50))
        assert all(message["result"]["number"] == message["id"] for message in messages)


async def test_what_the_server_asks_is_handed_up_and_our_answer_is_posted() -> None:
    answered = anyio.Event()
    question = {"jsonrpc": "2.0", "id": "q", "method": "elicitation/create", "params": {}}

    async def asking(seen: Seen) -> web.StreamResponse:
        response = await event_stream(seen, event(question))
        await answered.wait()
        await response.write(event(answer(seen)))
        return response

    async with http_backend(**{"tools/call": asking}) as backend, line_to(backend) as line:
        await line.ask(1)
        assert await line.inbox.wait_for(1) == [question]
        await line.wire.send({"jsonrpc": "2.0", "id": "q", "result": {"action": "accept"}}, {})
        assert (await backend.wait_for("answer")).message["result"] == {"action": "accept"}
        answered.set()
        assert "result" in await line.inbox.answer_to(1)


async def test_a_large_request_arrives_whole() -> None:
    async with http_backend() as backend, line_to(backend) as line:
        params = {"text": "x" * 3_000_000}
        await line.wire.send({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}, {})
        await line.inbox.answer_to(1)
        assert backend.seen[0].message["params"] == params


# ------------------------------------------------------------------------------------------------------------ sessions


async def test_the_session_and_the_version_of_the_handshake_go_with_all_that_follows_it() -> None:
    async with http_backend() as backend:
        async with line_to(backend) as line:
            await line.shake_hands()
            await line.call(1)
            await backend.wait_for("GET")
        assert [seen.subject for seen in backend.seen if seen.verb != "GET"] == [
            "initialize",
            "notifications/initialized",
            "tools/call",
            "DELETE",
        ]
        first, *others = backend.seen
        assert not {"mcp-session-id", "mcp-protocol-version"} & set(first.header_names())
        for seen in others:
            assert seen.headers["Mcp-Session-Id"] == SESSION
            assert seen.headers["MCP-Protocol-Version"] == VERSION


async def test_a_new_handshake_forgets_the_old_session() -> None:
    async with http_backend() as backend, line_to(backend) as line:
        await line.shake_hands()
        await line.call(9, "initialize")
        assert not {"mcp-session-id", "mcp-protocol-version"} & set(backend.of("initialize")[1].header_names())


async def test_a_version_that_comes_from_above_is_sent_as_it_is() -> None:
    async with http_backend() as backend, line_to(backend) as line:
        await line.shake_hands()
        await line.call(1, headers={"MCP-Protocol-Version": "2025-06-18"})
        assert backend.of("tools/call")[0].headers["MCP-Protocol-Version"] == "2025-06-18"
        assert backend.of("tools/call")[0].header_names().count("mcp-protocol-version") == 1


async def test_without_a_session_nothing_is_ended() -> None:
    async with http_backend() as backend:
        async with line_to(backend) as line:
            await line.call(1, "server/discover", MODERN)
            await line.call(2, "tools/call", MODERN)
        assert [seen.subject for seen in backend.seen] == ["server/discover", "tools/call"]
        assert all("mcp-session-id" not in seen.header_names() for seen in backend.seen)
        assert backend.seen[1].headers["Mcp-Name"] == "echo"


async def test_initialized_is_accepted_before_anything_may_follow_it() -> None:
    may_accept, sent = anyio.Event(), anyio.Event()

    async def slow(seen: Seen) -> web.StreamResponse:
        await may_accept.wait()
        return await proper(seen)

    async with http_backend(**{"notifications/initialized": slow}) as backend, line_to(backend) as line:

        async def shake_hands() -> None:
            await line.shake_hands()
            sent.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(shake_hands)
            await backend.wait_for("notifications/initialized")
            await anyio.wait_all_tasks_blocked()
            assert not sent.is_set()
            may_accept.set()
        assert sent.is_set()


async def never(seen: Seen) -> web.StreamResponse:
    await anyio.sleep_forever()
    raise AssertionError


async def test_a_notification_that_is_never_accepted_holds_up_no_call() -> None:
    answers = {"notifications/progress": never}
    async with http_backend(**answers) as backend, line_to(backend) as line:
        await line.tell("notifications/progress")
        assert "result" in await line.call(1)


async def test_a_server_that_is_slow_to_take_our_answers_gets_eight_at_a_time() -> None:
    may_accept, sent = anyio.Event(), []

    async def slow(seen: Seen) -> web.StreamResponse:
        await may_accept.wait()
        return await proper(seen)

    async with http_backend(answer=slow) as backend, line_to(backend) as line:

        async def send_answers() -> None:
            for number in range(20):
                await line.wire.send({"jsonrpc": "2.0", "id": number, "result": {}}, {})
                sent.append(number)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_answers)
            await backend.wait_for("answer", 8)
            await anyio.wait_all_tasks_blocked()
            assert sent == list(range(8))
            may_accept.set()
        await backend.wait_for("answer", 20)


async def test_a_handshake_that_is_not_taken_in_time_is_not_waited_for() -> None:
    answers = {"notifications/initialized": never}
    async with http_backend(**answers) as backend, line_to(backend, timeouts=HURRY) as line:
        await line.shake_hands()
        assert "result" in await line.call(1)
        assert backend.of("GET") == []


# --------------------------------------------------------------------------------------------- the server's own stream


def own_stream(*streams: list[bytes]) -> Answerer:
    """A GET stream that brings these pieces, a list for each time that it is opened; the last stays open."""
    waiting = list(streams)

    async def opened(seen: Seen) -> web.StreamResponse:
        pieces = waiting.pop(0)
        response = await event_stream(seen, *pieces)
        if not waiting:
            await anyio.sleep_forever()
        return response

    return opened


async def test_what_the_server_sends_by_itself_is_handed_up() -> None:
    stream = own_stream([event(notification("hello"))])
    async with http_backend(GET=stream) as backend, line_to(backend) as line:
        await line.shake_hands()
        assert (await line.inbox.wait_for(2))[1] == notification("hello")
        (seen,) = backend.of("GET")
        assert seen.headers["Accept"] == "text/event-stream"
        assert "content-type" not in seen.header_names()


async def test_its_own_stream_is_opened_again_after_the_last_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_LISTEN_PAUSE", 0.01)
    pieces = [event(notification("a"), id="7")], [b"data: {broken\n\n"], [event(notification("b"))]
    async with http_backend(GET=own_stream(*pieces)) as backend, line_to(backend) as line:
        await line.shake_hands()
        assert (await line.inbox.wait_for(3))[1:] == [notification("a"), notification("b")]
        assert [seen.headers.get("Last-Event-ID") for seen in backend.of("GET")] == [None, "7", "7"]


async def test_an_answer_on_the_servers_own_stream_is_nobodys() -> None:
    forged = {"jsonrpc": "2.0", "id": 1, "result": {"forged": True}}
    stream = own_stream([event(forged), event(notification("after"))])
    answers = {"GET": stream, "tools/call": never}
    async with http_backend(**answers) as backend, line_to(backend) as line:
        await line.ask(1)
        await line.shake_hands()
        assert (await line.inbox.wait_for(2))[1] == notification("after")


@pytest.mark.parametrize("status", [400, 404, 405])
async def test_a_server_without_a_stream_of_its_own_is_asked_once(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_LISTEN_PAUSE", 0.0)
    async with http_backend(GET=always(lambda _: web.Response(status=status))) as backend:
        async with line_to(backend) as line:
            await line.shake_hands()
            await backend.wait_for("GET")
            assert "result" in await line.call(1)
            assert not line.wire.closed.is_set()
        assert len(backend.of("GET")) == 1


# ---------------------------------------------------------------------------------------------------------- cancelling


class Hanging:
    """A call that never ends by itself, and tells when the connection to it is gone."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces
        self.gone = anyio.Event()

    async def __call__(self, seen: Seen) -> web.StreamResponse:
        try:
            response = await event_stream(seen, *self.pieces) if self.pieces else web.Response()
            await anyio.sleep_forever()
            return response
        finally:
            self.gone.set()


@pytest.mark.parametrize("pieces", [(), (b": still working\n\n",)])
@pytest.mark.parametrize(("headers", "is_posted"), [(MODERN, False), ({}, True)])
async def test_cancelling_ends_the_request(pieces: tuple[bytes, ...], headers: dict[str, str], is_posted: bool) -> None:
    hanging = Hanging(*pieces)
    async with http_backend(**{"tools/call": hanging}) as backend:
        async with line_to(backend) as line:
            await line.ask(1, "tools/call", headers)
            await backend.wait_for("tools/call")
            await line.tell("notifications/cancelled", requestId=1)
            with anyio.fail_after(5):
                await hanging.gone.wait()
            if is_posted:
                seen = await backend.wait_for("notifications/cancelled")
                assert seen.message["params"] == {"requestId": 1}
            assert "result" in await line.call(2, "ping")
        assert len(backend.of("notifications/cancelled")) == is_posted
        assert [message["id"] for message in line.inbox.messages] == [2]


async def test_a_cancel_that_comes_after_the_answer_is_dropped() -> None:
    async with http_backend() as backend, line_to(backend) as line:
        await line.call(1)
        await line.tell("notifications/cancelled", requestId=1)
        await line.call(2)
        assert [seen.subject for seen in backend.seen] == ["tools/call", "tools/call"]


async def test_a_cancel_before_the_request_has_left_is_not_too_early() -> None:
    async with http_backend() as backend, line_to(backend) as line:
        await line.ask(1, "tools/call", MODERN)
        await line.tell("notifications/cancelled", requestId=1)
        await line.call(2, "ping", MODERN)
        assert [seen.subject for seen in backend.seen] == ["ping"]


# ------------------------------------------------------------------------------------------------------------ identity


async def test_the_identity_is_that_of_the_moment_of_sending() -> None:
    async with http_backend() as backend, line_to(backend) as line:
        line.wire.identity = Identity("alice", "Alice")
        await line.ask(1)
        line.wire.identity = Identity("bob", "Bob")
        await line.inbox.answer_to(1)
        await line.call(2)
        assert [seen.headers["X-Mcp-UserId"] for seen in backend.seen] == ["alice", "bob"]


async def test_a_closed_wire_takes_nothing_more() -> None:
    async with http_backend() as backend:
        async with line_to(backend) as line:
            assert repr(line.wire) == "<_StreamableHttpWire docs: open, 0 calls>"
        assert repr(line.wire) == "<_StreamableHttpWire docs: closed, 0 calls>"
        message: Message = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        with pytest.raises(BackendUnavailable, match="server 'docs': the connection is closed") as caught:
            await line.wire.send(message, {})
        assert caught.value.not_sent
        assert backend.seen == []
