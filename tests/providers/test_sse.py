"""The older HTTP+SSE: messages go to the address that the stream names, answers come on the stream."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from aiohttp import web

from providers.errors import BackendError, BackendProtocolError, BackendTimeout, BackendUnavailable
from providers.identity import Identity
from providers.resource import TransportType
from providers.wire import NOT_SENT, Message
from tests.helpers.http_backend import (
    HURRY,
    Answerer,
    HttpBackend,
    Line,
    Seen,
    always,
    answer,
    event,
    event_stream,
    http_backend,
    notification,
    open_line,
    remote,
    wire_tasks,
)
from tests.helpers.ports import dead_port
from tests.helpers.processes import eventually

pytestmark = pytest.mark.core

ACCEPTED = always(lambda _: web.Response(status=202, text="Accepted"))


class Stream:
    """The stream of one session: what a test sends goes out on it, until the test ends it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._pieces: list[bytes] = []
        self._is_over = False
        self._news = anyio.Event()

    async def __call__(self, seen: Seen) -> web.StreamResponse:
        head = f"event: endpoint\ndata: {self.address}\n\n".encode() if self.address else b": hello\n\n"
        response = await event_stream(seen, head)
        while not self._is_over:
            await self._news.wait()
            self._news = anyio.Event()
            pieces, self._pieces = self._pieces, []
            await response.write(b"".join(pieces))
        return response

    def say(self, *messages: Message) -> None:
        self.write(b"".join(event(message) for message in messages))

    def write(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._news.set()

    def end(self) -> None:
        self._is_over = True
        self._news.set()


@asynccontextmanager
async def sse_backend(address: str = "/messages?session=1", **answers: Answerer) -> AsyncIterator[HttpBackend]:
    """A server whose stream is `backend.answers["GET"]`; it answers each request with its own parameters."""
    stream = Stream(address)

    async def echo(seen: Seen) -> web.StreamResponse:
        stream.say(answer(seen, {"echo": seen.message["params"]}))
        return await ACCEPTED(seen)

    usual: dict[str, Answerer] = {"GET": stream, "tools/call": echo, "notifications/initialized": ACCEPTED}
    async with http_backend("/sse", **{**usual, **answers}) as backend:
        yield backend


def stream_of(backend: HttpBackend) -> Stream:
    stream = backend.answers["GET"]
    assert isinstance(stream, Stream)
    return stream


@asynccontextmanager
async def line_to(backend: HttpBackend, **more: object) -> AsyncIterator[Line]:
    async with open_line(remote(backend.url, TransportType.SSE, **more)) as line:
        yield line


@pytest.mark.parametrize("address", ["/messages?session=1", "messages?session=1", "{server}/messages?session=1"])
async def test_messages_go_where_the_stream_says_and_answers_come_on_it(address: str) -> None:
    async with sse_backend() as backend:
        stream_of(backend).address = address.format(server=backend.url.removesuffix("/sse"))
        async with line_to(backend) as line:
            assert (await line.call(1))["result"] == {"echo": {}}
            await line.tell("notifications/initialized")
            assert [seen.request.raw_path for seen in backend.seen] == ["/sse"] + ["/messages?session=1"] * 2
            assert backend.seen[0].headers["Accept"] == "text/event-stream"


async def test_headers_and_identity_go_with_every_message() -> None:
    async with sse_backend() as backend:
        async with line_to(backend, headers={"X-Api-Key": "key"}) as line:
            line.wire.identity = Identity("alice", "Alice")
            await line.call(1, headers={"Cookie": "no"})
        first, second = backend.seen
        assert first.headers["X-Api-Key"] == second.headers["X-Api-Key"] == "key"
        assert second.headers["X-Mcp-UserId"] == "alice"
        assert "cookie" not in second.header_names()


async def test_what_the_server_sends_by_itself_is_handed_up_in_order() -> None:
    async with sse_backend() as backend, line_to(backend) as line:
        messages = [notification(str(number)) for number in range(100)]
        stream_of(backend).say(*messages)
        assert await line.inbox.wait_for(100) == messages


async def test_many_calls_at_once_are_answered() -> None:
    async with sse_backend() as backend, line_to(backend) as line:
        for number in range(50):
            await line.ask(number)
        assert sorted(message["id"] for message in await line.inbox.wait_for(50)) == list(range(50))


async def test_garbage_and_answers_that_nobody_waits_for_are_dropped() -> None:
    async with sse_backend() as backend, line_to(backend) as line:
        stream = stream_of(backend)
        for piece in (b"data: {\n\n", b"data: []\n\n", b'data: {"id": {}, "result": 1}\n\n', b"event: x\ndata: y\n\n"):
            stream.write(piece)
        stream.say({"jsonrpc": "2.0", "id": 1, "result": {"too": "early"}})
        stream.write(b"event: endpoint\ndata: /elsewhere\n\n")
        stream.say(notification("mark"))
        assert await line.inbox.wait_for(1) == [notification("mark")]
        assert (await line.call(1))["result"] == {"echo": {}}
        stream.say({"jsonrpc": "2.0", "id": 1, "result": {"answered": "twice"}})
        await line.call(2)
        assert [message.get("id") for message in line.inbox.messages] == [None, 1, 2]


async def test_cancelling_is_told_and_a_late_answer_is_dropped() -> None:
    answers = {"prompts/get": ACCEPTED, "notifications/cancelled": ACCEPTED}
    async with sse_backend(**answers) as backend, line_to(backend) as line:
        await line.ask(1, "prompts/get")
        await backend.wait_for("prompts/get")
        await line.tell("notifications/cancelled", requestId=1)
        await backend.wait_for("notifications/cancelled")
        stream_of(backend).say({"jsonrpc": "2.0", "id": 1, "result": {}})
        await line.call(2)
        assert [message["id"] for message in line.inbox.messages] == [2]


# --------------------------------------------------------------------------------------------------- opening


async def refused(backend: HttpBackend, **more: object) -> BackendError:
    with pytest.raises(BackendError) as caught:
        async with line_to(backend, **more):
            raise AssertionError("it opened")
    assert not wire_tasks()
    return caught.value


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:1/messages", "https://example.com/", "//other/messages", "http://["]
)
async def test_an_address_at_another_server_is_refused(address: str) -> None:
    async with sse_backend(address) as backend:
        error = await refused(backend)
        assert isinstance(error, BackendProtocolError)
        assert str(error) == "server 'docs': named an address for messages that is not at its own 'url'."


async def test_credentials_in_an_address_are_not_taken_over() -> None:
    async with sse_backend() as backend:
        stream_of(backend).address = backend.url.replace("//", "//someone:else@").replace("/sse", "/messages")
        async with line_to(backend) as line:
            await line.call(1)
        assert "authorization" not in backend.of("tools/call")[0].header_names()


async def test_a_stream_that_names_no_address_is_given_up() -> None:
    async with sse_backend("") as backend:
        error = await refused(backend, timeouts=HURRY)
        assert isinstance(error, BackendTimeout)
        assert error.not_sent
        assert "named no address for messages within 0.2 seconds" in str(error)


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (lambda _: web.Response(status=401), "asks for credentials (HTTP 401)"),
        (lambda _: web.Response(status=404), "answered HTTP 404. Check its 'url'"),
        (lambda _: web.Response(status=302), "answers with a redirect (HTTP 302)"),
        (lambda _: web.Response(text="<html>", content_type="text/html"), "answered with no events"),
        (lambda _: web.Response(text="", content_type="text/event-stream"), "ended its stream of events"),
    ],
)
async def test_what_is_no_stream_is_refused(made: object, text: str) -> None:
    async with sse_backend(GET=always(made)) as backend:  # type: ignore[arg-type]
        error = await refused(backend)
        assert str(error).startswith(f"server 'docs': {text}")


async def test_a_refused_connection() -> None:
    with dead_port() as port, pytest.raises(BackendUnavailable, match="connection refused") as caught:
        async with open_line(remote(f"http://127.0.0.1:{port}/sse", TransportType.SSE)):
            raise AssertionError("it opened")
    assert caught.value.not_sent


# --------------------------------------------------------------------------------------------------- failing


async def test_when_the_stream_ends_the_wire_is_dead() -> None:
    async with sse_backend(**{"prompts/get": ACCEPTED}) as backend, line_to(backend) as line:
        await line.ask(1, "prompts/get")
        await backend.wait_for("prompts/get")
        stream_of(backend).end()
        await line.closed()
        assert str(line.wire.failure) == "server 'docs': ended its stream of events, and with it the session."
        with pytest.raises(BackendUnavailable) as caught:
            await line.ask(2)
        assert caught.value.not_sent


async def test_an_event_beyond_the_cap_ends_the_wire() -> None:
    async with sse_backend() as backend:
        resource = remote(backend.url, TransportType.SSE)
        async with open_line(resource, max_message_bytes=10_000) as line:
            stream_of(backend).write(b"data: " + b"x" * 10_001)
            await line.closed()
            assert isinstance(line.wire.failure, BackendProtocolError)
            assert "more than 10,000 bytes" in str(line.wire.failure)


async def test_a_message_that_is_refused_is_an_error_for_its_sender_alone() -> None:
    refused = always(lambda _: web.Response(status=500, text="s3cr3t"))
    async with sse_backend(**{"prompts/get": refused}) as backend, line_to(backend) as line:
        text = json.dumps(await line.call(1, "prompts/get"))
        assert "server 'docs': answered HTTP 500" in text
        assert "s3cr3t" not in text
        assert "result" in await line.call(2)


async def test_a_message_that_is_refused_after_its_answer_came_has_had_its_answer() -> None:
    async def answer_and_refuse(seen: Seen) -> web.StreamResponse:
        stream_of(backend).say(answer(seen))
        await line.inbox.answer_to(1)
        return web.Response(status=500)

    async with sse_backend(**{"prompts/get": answer_and_refuse}) as backend, line_to(backend) as line:
        await line.call(1, "prompts/get")
        await line.call(2)
        await eventually(lambda: len(wire_tasks()) == 1)  # only the stream is still read
        assert [message["id"] for message in line.inbox.messages] == [1, 2]


async def test_a_session_that_the_server_lost_fails_the_wire_and_the_call_may_be_repeated() -> None:
    lost = always(lambda _: web.Response(status=404))
    async with sse_backend(**{"prompts/get": lost}) as backend, line_to(backend) as line:
        error = (await line.call(1, "prompts/get"))["error"]
        assert "ended our session" in error["message"]
        assert error["data"] == {NOT_SENT: True}
        await line.closed()


async def test_leaving_ends_all_that_is_under_way() -> None:
    async def never(seen: Seen) -> web.StreamResponse:
        await anyio.sleep_forever()
        raise AssertionError

    async with sse_backend(**{"prompts/get": never}) as backend:
        async with line_to(backend) as line:
            await line.ask(1, "prompts/get")
            await backend.wait_for("prompts/get")
            assert wire_tasks()
        assert not wire_tasks()
        assert line.wire.failure is None
