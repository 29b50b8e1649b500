"""A real HTTP server on loopback that answers as a test says, and the other end of a wire to it.

It runs in the test's own event loop, so that a test can wait for what happened at the server. Unless a test says
otherwise it is a proper little MCP server of the handshake era.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from aiohttp import web

from providers.endpoint import http_client
from providers.remote import streamable_http_wire
from providers.resource import McpServerResource, Timeouts, TransportType
from providers.sse import sse_wire
from providers.wire import NOT_SENT, WIRE_ERROR_CODE, Message, Wire
from tests.helpers.processes import eventually

SESSION = "session-1"
VERSION = "2025-11-25"
ENDED = "server 'docs': the connection ended before the answer came."
PATIENCE = 20.0
"""Seconds until a test that waits for something gives up."""

Answerer = Callable[["Seen"], Awaitable[web.StreamResponse]]


@dataclass
class Seen:
    """One request as it came in."""

    request: web.Request
    body: bytes

    @property
    def verb(self) -> str:
        return self.request.method

    @property
    def headers(self) -> Mapping[str, str]:
        return self.request.headers

    @property
    def message(self) -> Message:
        message: Message = json.loads(self.body)
        return message

    @property
    def subject(self) -> str:
        """What it is answered by: the method of its message, or the HTTP verb where it has none."""
        return str(self.message.get("method", "answer")) if self.verb == "POST" else self.verb

    def header_names(self) -> list[str]:
        """As they were sent, in lower case; a header that came twice is there twice."""
        return [name.decode().lower() for name, _ in self.request.raw_headers]


@dataclass
class HttpBackend:
    """The server. `answers` maps a method of MCP, or GET and DELETE, to what the test wants."""

    url: str = ""
    answers: dict[str, Answerer] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    _news: anyio.Event = field(default_factory=anyio.Event)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        seen = Seen(request, await request.read())
        self.seen.append(seen)
        self._news.set()
        self._news = anyio.Event()
        return await self.answers.get(seen.subject, proper)(seen)

    def of(self, subject: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.subject == subject]

    async def wait_for(self, subject: str, count: int = 1) -> Seen:
        """The `count`-th request about a subject, as soon as it is here."""
        with anyio.fail_after(PATIENCE):
            while len(self.of(subject)) < count:
                await self._news.wait()
        return self.of(subject)[count - 1]


async def proper(seen: Seen) -> web.StreamResponse:
    """What a proper server answers."""
    if seen.verb == "GET":
        return web.Response(status=405)
    if seen.verb == "DELETE" or "id" not in seen.message or "method" not in seen.message:
        return web.Response(status=200 if seen.verb == "DELETE" else 202)
    if seen.subject == "initialize":
        result = {"protocolVersion": VERSION, "capabilities": {}, "serverInfo": {"name": "t", "version": "1"}}
        return web.json_response(answer(seen, result), headers={"Mcp-Session-Id": SESSION})
    return web.json_response(answer(seen))


def answer(seen: Seen, result: Message | None = None) -> Message:
    return {"jsonrpc": "2.0", "id": seen.message["id"], "result": {"ok": True} if result is None else result}


def notification(text: str) -> Message:
    return {"jsonrpc": "2.0", "method": "notifications/message", "params": {"data": text}}


def event(message: Message, *, id: str | None = None) -> bytes:
    head = f"id: {id}\n" if id is not None else ""
    return f"{head}event: message\ndata: {json.dumps(message)}\n\n".encode()


async def event_stream(seen: Seen, *pieces: bytes) -> web.StreamResponse:
    """Begin a stream of events; it ends when the handler returns."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(seen.request)
    for piece in pieces:
        await response.write(piece)
    return response


def always(make: Callable[[Seen], web.StreamResponse]) -> Answerer:
    """An answerer that needs to wait for nothing. A response is made anew for each request."""

    async def answerer(seen: Seen) -> web.StreamResponse:
        return make(seen)

    return answerer


@asynccontextmanager
async def http_backend(path: str = "/mcp", **answers: Answerer) -> AsyncIterator[HttpBackend]:
    """A running server. Its `url` ends with the path; every path is answered alike."""
    backend = HttpBackend(answers=dict(answers))
    application = web.Application(client_max_size=64 * 1024 * 1024)
    application.router.add_route("*", "/{path:.*}", backend.handle)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        backend.url = f"http://127.0.0.1:{runner.addresses[0][1]}{path}"
        yield backend
    finally:
        with anyio.CancelScope(shield=True):
            await runner.cleanup()


class Inbox:
    """What a wire delivered, in order."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._news = anyio.Event()

    async def deliver(self, message: Message) -> None:
        self.messages.append(message)
        self._news.set()
        self._news = anyio.Event()

    async def wait_for(self, count: int) -> list[Message]:
        with anyio.fail_after(PATIENCE):
            while len(self.messages) < count:
                await self._news.wait()
        return self.messages

    async def answer_to(self, request_id: Any) -> Message:
        """The answer to a request, as soon as it is here."""
        count = 0
        while True:
            for message in self.messages[count:]:
                if "method" not in message and message.get("id") == request_id:
                    return message
            count = len(self.messages)
            await self.wait_for(count + 1)

    async def error_for(self, request_id: Any) -> str:
        """The text of an error answer."""
        return str((await self.answer_to(request_id))["error"]["message"])


@dataclass
class Line:
    """An open wire and what comes out of it."""

    wire: Wire
    inbox: Inbox

    async def call(self, id: Any = 1, method: str = "tools/call", headers: Mapping[str, str] | None = None) -> Message:
        """Send a request and wait for its answer."""
        await self.ask(id, method, headers)
        return await self.inbox.answer_to(id)

    async def ask(self, id: Any = 1, method: str = "tools/call", headers: Mapping[str, str] | None = None) -> None:
        await self.wire.send({"jsonrpc": "2.0", "id": id, "method": method, "params": {}}, headers or {})

    async def failure(self, id: Any = 1) -> Message:
        """The error that a call ends with: one that the wire made, and the only answer there is."""
        error: Message = (await self.call(id))["error"]
        assert error["code"] == WIRE_ERROR_CODE
        assert len([message for message in self.inbox.messages if message.get("id") == id]) == 1
        return error

    async def tell(self, method: str, **params: Any) -> None:
        await self.wire.send({"jsonrpc": "2.0", "method": method, "params": params}, {})

    async def shake_hands(self) -> None:
        await self.call(0, "initialize")
        await self.tell("notifications/initialized")

    async def closed(self) -> None:
        with anyio.fail_after(PATIENCE):
            await self.wire.closed.wait()


def was_not_sent(error: Message) -> bool:
    """Whether an error says that the server never received the request."""
    return bool((error.get("data") or {}).get(NOT_SENT))


def wire_tasks() -> list[str]:
    """The tasks that wires have now, by the names of what they run."""
    return [name for task in asyncio.all_tasks() if (name := task.get_name()).startswith("providers.")]


async def at_rest() -> None:
    """Wait until no wire does anything in the background."""
    await eventually(lambda: not wire_tasks())


def remote(url: str, transport: TransportType | None = None, **more: Any) -> McpServerResource:
    kind = transport or TransportType.STREAMABLE_HTTP
    return McpServerResource(name="docs", transport_type=kind, url=url, **more)


@asynccontextmanager
async def open_line(resource: McpServerResource, **options: Any) -> AsyncIterator[Line]:
    """A wire of the resource's own kind, with a client of its own."""
    inbox = Inbox()
    kind = sse_wire if resource.transport_type is TransportType.SSE else streamable_http_wire
    async with http_client() as client, kind(resource, inbox.deliver, client, **options) as wire:
        yield Line(wire, inbox)


def line_to(backend: HttpBackend, **more: Any) -> AbstractAsyncContextManager[Line]:
    return open_line(remote(backend.url, **more))


HURRY = Timeouts(connect=0.2, initialize=0.5, shutdown=0.5)
"""Deadlines for tests that wait until one has passed."""
