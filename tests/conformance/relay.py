"""A plain HTTP relay between the suite and a gateway: it takes the namespace away and changes nothing else.

The suite knows one server with fixed names; the gateway offers that server under its namespace. Headers, status,
streams and what is wrong in a request pass as they are.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

from tests.helpers.names import Names

_OF_THE_CONNECTION = {"connection", "content-length", "host", "keep-alive", "transfer-encoding"}


class Relay:
    def __init__(self, http: aiohttp.ClientSession, target: str, names: Names) -> None:
        self._http, self._target, self._names = http, target, names

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        sent = self._request_body(body)
        async with self._http.request(
            request.method, self._target, data=sent, headers=self._headers(request, body)
        ) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _OF_THE_CONNECTION}
            if answer.content_type != "text/event-stream":
                told = self._answer_body(await answer.read())
                return web.Response(status=answer.status, headers=kept, body=told)
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for line in answer.content:
                await response.write(self._line(line))
            return response

    def _headers(self, request: web.Request, body: bytes) -> dict[str, str]:
        """The client's own; where they name the relay, they name the gateway instead."""
        here, there = request.headers["Host"], urlsplit(self._target).netloc
        own = f"127.0.0.1:{urlsplit(str(request.url)).port}"
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _OF_THE_CONNECTION}
        headers["Host"] = there if here == own else here
        if headers.get("Origin") == f"http://{own}":
            headers["Origin"] = f"http://{there}"
        if "Mcp-Name" in headers:
            headers["Mcp-Name"] = self._names.header(_method(body), headers["Mcp-Name"])
        return headers

    def _request_body(self, body: bytes) -> bytes | None:
        try:
            return json.dumps(self._names.inward(json.loads(body))).encode()
        except ValueError:
            return body or None

    def _answer_body(self, body: bytes) -> bytes:
        try:
            return json.dumps(self._names.outward(json.loads(body))).encode()
        except ValueError:
            return body

    def _line(self, line: bytes) -> bytes:
        """One line of an event stream."""
        if not line.startswith(b"data:") or not line[5:].strip():
            return line
        return b"data: " + self._answer_body(line[5:].strip()) + b"\n"


def _method(body: bytes) -> str:
    try:
        message = json.loads(body)
    except ValueError:
        return ""
    return str(message.get("method")) if isinstance(message, dict) else ""


@asynccontextmanager
async def relay(target: str, namespace: str) -> AsyncIterator[str]:
    """A running relay; gives its URL."""
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout, read_bufsize=2**24) as http:
        application = web.Application(client_max_size=2**24)
        application.router.add_route("*", "/mcp", Relay(http, target, Names(namespace)).handle)
        async with served(application) as url:
            yield url


@asynccontextmanager
async def served(application: web.Application) -> AsyncIterator[str]:
    """The application at a free port; gives the URL of its `/mcp`. A request whose client left is cancelled."""
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/mcp"
    finally:
        await runner.cleanup()
