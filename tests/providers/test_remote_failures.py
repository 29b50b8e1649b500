"""Streamable HTTP, when something is wrong: whatever a server does, each request gets exactly one answer,
soon, and it says what to do and nothing that could be a secret."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.abc
import pytest
from aiohttp import web

from providers import remote
from providers.wire import WIRE_ERROR_CODE, Message
from tests.helpers.http_backend import (
    ENDED,
    SESSION,
    Inbox,
    Seen,
    always,
    answer,
    event,
    event_stream,
    http_backend,
    line_to,
    notification,
    was_not_sent,
)

pytestmark = pytest.mark.core

SECRET = "s3cr3t-canary"


# -------------------------------------------------------------------------------------------------- statuses


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (301, "answers with a redirect (HTTP 301). Put the final address into 'url'."),
        (307, "answers with a redirect (HTTP 307). Put the final address into 'url'."),
        (401, "asks for credentials (HTTP 401). Set 'headers' of this server."),
        (403, "asks for credentials (HTTP 403). Set 'headers' of this server."),
        (404, "answered HTTP 404. Check its 'url' and 'transport_type'."),
        (429, "answered HTTP 429. Its own log may say why."),
        (500, "answered HTTP 500. Its own log may say why."),
    ],
)
async def test_a_status_that_is_no_answer(status: int, text: str) -> None:
    def refused(seen: Seen) -> web.Response:
        there = str(seen.request.url.with_path("/elsewhere"))
        headers = {"Location": there, "WWW-Authenticate": SECRET}
        return web.Response(status=status, text=f"<html>{SECRET}</html>", content_type="text/html", headers=headers)

    async with http_backend(**{"tools/call": always(refused)}) as backend, line_to(backend) as line:
        assert await line.failure() == {"code": WIRE_ERROR_CODE, "message": f"server 'docs': {text}"}
        assert len(backend.seen) == 1  # nothing was followed
        assert not line.wire.closed.is_set()


@pytest.mark.parametrize("id", [1, None])
async def test_an_error_of_the_server_itself_is_passed_on_whatever_the_status(id: int | None) -> None:
    error = {"code": -32022, "message": "Unsupported", "data": {"supported": ["2026-07-28"]}}
    body = {"jsonrpc": "2.0", "id": id, "error": error}
    refused = always(lambda _: web.json_response(body, status=400))
    async with http_backend(**{"server/discover": refused}) as backend, line_to(backend) as line:
        assert await line.call(1, "server/discover") == {"jsonrpc": "2.0", "id": 1, "error": error}


@pytest.mark.parametrize(
    "body", ['{"error": "no"}', "[]", "{", '{"id": 9, "error": {"code": 1, "message": "x"}}', '{"x":"' + "x" * 70_000]
)
async def test_a_refusal_whose_body_is_no_error_of_ours_is_told_by_its_status(body: str) -> None:
    refused = always(lambda _: web.Response(status=400, text=body, content_type="application/json"))
    async with http_backend(**{"tools/call": refused}) as backend, line_to(backend) as line:
        assert (await line.failure())["message"].startswith("server 'docs': answered HTTP 400.")


# -------------------------------------------------------------------------------------------- broken answers


def body(text: str | bytes, content_type: str = "application/json", **headers: str) -> Callable[[Seen], web.Response]:
    data = text if isinstance(text, bytes) else text.encode()
    return lambda _: web.Response(body=data, content_type=content_type, headers=headers)


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (body(f"<html>{SECRET}"), "answered with something that is not JSON."),
        (body(b'{"jsonrpc":"2.0","id":1,"result":"\xff\xfe"}'), "answered with something that is not JSON."),
        (body("[" * 100_000), "answered with something that is not JSON."),
        (body(""), "answered with something that is not JSON."),
        (body(f'["{SECRET}"]'), "answered with JSON that is not an MCP message."),
        (body('{"jsonrpc":"2.0","id":2,"result":{}}'), "answered with something that is not the answer."),
        (body('{"jsonrpc":"2.0","id":1}'), "answered with something that is not the answer."),
        (body('{"jsonrpc":"2.0","id":1,"method":"x"}'), "answered with something that is not the answer."),
        (body("data: {\n\n", "text/event-stream"), "answered with something that is not JSON."),
        (
            body('data: {"id":2,"result":{}}\n\n', "text/event-stream"),
            "answered with something that is not the answer.",
        ),
        (body("", "text/event-stream"), "the connection ended before the answer came."),
        (
            body(f"<html>{SECRET}</html>", "text/html"),
            "answered with neither JSON nor events. Check that 'url' is its MCP endpoint.",
        ),
        (
            lambda _: web.Response(status=202),
            "answered with neither JSON nor events. Check that 'url' is its MCP endpoint.",
        ),
        (body("x", **{"Content-Encoding": "gzip"}), "answers compressed, although we ask it not to."),
    ],
)
async def test_an_answer_that_is_none(made: Callable[[Seen], web.Response], text: str) -> None:
    async with http_backend(**{"tools/call": always(made)}) as backend, line_to(backend) as line:
        assert (await line.failure())["message"] == f"server 'docs': {text}"
        assert "result" in await line.call(2, "ping")  # the wire is as good as before


async def test_a_connection_that_drops_in_the_middle_of_a_body() -> None:
    async def dropped(seen: Seen) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
        await response.prepare(seen.request)
        await response.write(b'{"jsonrpc"')
        assert seen.request.transport is not None
        seen.request.transport.close()
        return response

    async with http_backend(**{"tools/call": dropped}) as backend, line_to(backend) as line:
        error = await line.failure()
        assert error["message"] == ENDED
        assert not was_not_sent(error)


# ----------------------------------------------------------------------------------------------------- sizes


def resident_bytes() -> int:
    fields = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in fields if line.startswith("VmRSS:")) * 1024


@pytest.mark.parametrize("how", ["json with a length", "endless json", "endless event", "endless comment"])
async def test_what_is_too_large_is_read_no_further_than_the_cap(how: str) -> None:
    gone = anyio.Event()

    async def huge(seen: Seen) -> web.StreamResponse:
        kind = "application/json" if "json" in how else "text/event-stream"
        response = web.StreamResponse(headers={"Content-Type": kind})
        if "length" in how:
            response.content_length = 64 * 1024 * 1024
        try:
            await response.prepare(seen.request)
            await response.write(b'{"result": "' if "json" in how else b"data: " if "event" in how else b": ")
            while True:
                await response.write(b"x" * 65536)
        finally:
            gone.set()

    async with http_backend(**{"tools/call": huge}) as backend, line_to(backend) as line:
        before = resident_bytes()
        text = (await line.failure())["message"]
        with anyio.fail_after(5):
            await gone.wait()  # the connection was given up
        assert resident_bytes() - before < 64 * 1024 * 1024
        assert "of more than 16,777,216 bytes" in text


async def test_a_message_just_within_the_cap_is_passed_on() -> None:
    def large(seen: Seen) -> web.Response:
        return web.json_response(answer(seen, {"text": "x" * (16 * 1024 * 1024 - 1000)}))

    async with http_backend(**{"tools/call": always(large)}) as backend, line_to(backend) as line:
        assert len((await line.call(1))["result"]["text"]) == 16 * 1024 * 1024 - 1000


async def test_a_flood_of_messages_lets_others_have_their_turn() -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async def flood(seen: Seen) -> web.StreamResponse:
        piece = event(notification("noise")) * 20_000
        return await event_stream(seen, piece, event(answer(seen)))

    async with http_backend(**{"tools/call": flood}) as backend, line_to(backend) as line:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(count_turns)
            await line.call(1)
            tasks.cancel_scope.cancel()
        assert len(line.inbox.messages) == 20_001
        assert turns > 20_000 // 64


# ---------------------------------------------------------------------------------------- streams that break


def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_RESUME_PAUSE", 0.01)
    monkeypatch.setattr(remote, "_MIN_RESUME_PAUSE", 0.01)


async def test_an_answer_whose_stream_ends_too_early_is_taken_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hurried(monkeypatch)

    async def first(seen: Seen) -> web.StreamResponse:
        return await event_stream(seen, b"retry: 1\nid: 0\ndata:\n\n")

    async def resumed(seen: Seen) -> web.StreamResponse:
        count = len(backend.of("GET"))
        message = {"jsonrpc": "2.0", "id": 1, "result": {"late": True}} if count == 6 else notification("more")
        return await event_stream(seen, event(message, id=str(count)))

    async with http_backend(**{"tools/call": first, "GET": resumed}) as backend, line_to(backend) as line:
        await line.call(0, "initialize")
        assert (await line.call(1))["result"] == {"late": True}
        assert [seen.headers["Last-Event-ID"] for seen in backend.of("GET")] == ["0", "1", "2", "3", "4", "5"]
        assert all(seen.headers["Mcp-Session-Id"] == SESSION for seen in backend.of("GET"))
        assert line.inbox.messages[1:-1] == [notification("more")] * 5


async def test_a_connection_that_drops_is_an_end_of_the_stream_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    hurried(monkeypatch)

    async def dropped(seen: Seen) -> web.StreamResponse:
        response = await event_stream(seen, b"id: 1\ndata:\n\n", b"data: unfinished")
        assert seen.request.transport is not None
        seen.request.transport.abort()
        return response

    async def resumed(seen: Seen) -> web.StreamResponse:
        return await event_stream(seen, event({"jsonrpc": "2.0", "id": 1, "result": {"late": True}}))

    async with http_backend(**{"tools/call": dropped, "GET": resumed}) as backend, line_to(backend) as line:
        assert (await line.call(1))["result"] == {"late": True}


@pytest.mark.parametrize(("status", "tries"), [(503, 3), (405, 1)])
async def test_an_answer_that_cannot_be_taken_up_again_is_an_error(
    status: int, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurried(monkeypatch)

    async def broken(seen: Seen) -> web.StreamResponse:
        return await event_stream(seen, b"id: 1\ndata:\n\n")

    answers = {"tools/call": broken, "GET": always(lambda _: web.Response(status=status))}
    async with http_backend(**answers) as backend, line_to(backend) as line:
        assert (await line.failure())["message"] == ENDED
        assert len(backend.of("GET")) == tries


# --------------------------------------------------------------------------------------------- lost sessions


def not_found(_: Seen) -> web.Response:
    return web.Response(status=404)


def typescript_example(_: Seen) -> web.Response:
    error = {"code": -32000, "message": "Bad Request: No valid session ID provided"}
    return web.json_response({"jsonrpc": "2.0", "error": error}, status=400)


@pytest.mark.parametrize("lost", [not_found, typescript_example])
async def test_a_session_that_the_server_lost_fails_the_wire_and_the_call_may_be_repeated(
    lost: Callable[[Seen], web.Response],
) -> None:
    async with http_backend(**{"tools/call": always(lost)}) as backend:
        async with line_to(backend) as line:
            await line.shake_hands()
            error = await line.failure()
            assert error["message"] == "server 'docs': ended our session. The next call opens a new one."
            assert was_not_sent(error)
            await line.closed()
            assert line.wire.failure is not None
            assert not line.wire.failure.not_sent  # it speaks for calls of which that is not known
        assert backend.of("DELETE") == []


async def test_every_call_in_flight_gets_its_own_answer_when_the_session_is_lost() -> None:
    first_is_refused = anyio.Event()

    async def lost(seen: Seen) -> web.StreamResponse:
        if seen.message["id"] > 1:
            await first_is_refused.wait()
        return not_found(seen)

    async with http_backend(**{"tools/call": lost}) as backend, line_to(backend) as line:
        await line.shake_hands()
        for number in (1, 2, 3):
            await line.ask(number)
        await line.inbox.answer_to(1)
        assert "session lost" in repr(line.wire)
        first_is_refused.set()
        errors = [(await line.inbox.answer_to(number))["error"] for number in (1, 2, 3)]
        assert all(was_not_sent(error) for error in errors)
        await line.closed()


async def test_a_404_without_a_session_loses_none() -> None:
    async with http_backend(**{"tools/call": always(not_found)}) as backend, line_to(backend) as line:
        error = await line.failure()
        assert not was_not_sent(error)
        assert not line.wire.closed.is_set()


@pytest.mark.parametrize("session_id", ["with space", "x" * 1025, "é"])
async def test_a_session_id_that_mcp_does_not_allow(session_id: str) -> None:
    def initialized(seen: Seen) -> web.Response:
        return web.json_response(answer(seen), headers={"Mcp-Session-Id": session_id})

    async with http_backend(initialize=always(initialized)) as backend:
        async with line_to(backend) as line:
            text = (await line.call(1, "initialize"))["error"]["message"]
            assert text == "server 'docs': gave a session id that MCP does not allow."
        assert backend.of("DELETE") == []


# ------------------------------------------------------------------------------------------- one's own fault


async def test_a_fault_of_ours_ends_this_wire_and_nothing_else() -> None:
    class Broken(Inbox):
        async def deliver(self, message: Message) -> None:
            raise KeyError(SECRET)

    async with http_backend() as backend, line_to(backend) as line:
        line.wire._deliver = Broken().deliver  # type: ignore[attr-defined]
        await line.ask(1)
        await line.closed()
        assert str(line.wire.failure) == "server 'docs': the gateway failed (KeyError). Its log has the details."


async def test_a_stalled_reader_holds_up_its_own_wire_only() -> None:
    stalled = anyio.Event()

    async def stall(_: Message) -> None:
        stalled.set()
        await anyio.sleep_forever()

    async with http_backend() as backend, line_to(backend) as slow, line_to(backend) as fast:
        slow.wire._deliver = stall  # type: ignore[attr-defined]
        await slow.ask(1)
        await stalled.wait()
        assert "result" in await fast.call(1)
