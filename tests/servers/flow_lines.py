"""How `flows` is reached: lines of JSON on stdin and stdout, streamable HTTP, or the older HTTP+SSE."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any
from uuid import uuid4

Json = dict[str, Any]


async def serve(server: Any, make_session: Any, transport: str, port: str = "0") -> None:
    if transport == "stdio":
        await serve_stdio(server, make_session)
    else:
        await serve_http(server, make_session, int(port))


async def serve_stdio(server: Any, make_session: Any) -> None:
    loop, lock = asyncio.get_running_loop(), asyncio.Lock()
    lines = asyncio.StreamReader(limit=2**26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)

    async def send(message: Json) -> None:
        async with lock:  # a line is written whole
            await asyncio.to_thread(write, message)

    def write(message: Json) -> None:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()

    session = make_session(send)
    server.sessions.add(session)
    running = set()
    while line := await lines.readline():
        task = asyncio.ensure_future(server.receive(session, json.loads(line), send))
        running.add(task)
        task.add_done_callback(running.discard)
    for task in running:
        task.cancel()


class _Stream:
    """An event stream to one client: what is sent goes out in order."""

    def __init__(self, request: Any) -> None:
        from aiohttp import web

        self._request = request
        self._response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})

    async def open(self, *, session: str | None = None) -> Any:
        if session is not None:
            self._response.headers["Mcp-Session-Id"] = session
        await self._response.prepare(self._request)
        return self._response

    async def send(self, message: Json) -> None:
        await self.event("message", json.dumps(message))

    async def event(self, kind: str, data: str) -> None:
        await self._response.write(f"event: {kind}\ndata: {data}\n\n".encode())


class _Standing:
    """What a session says by itself waits here until its standing stream is open."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[Json] = asyncio.Queue()

    async def pour(self, stream: _Stream) -> None:
        while True:
            await stream.send(await self.messages.get())


class _Http:
    def __init__(self, server: Any, make_session: Any) -> None:
        self._server, self._make_session = server, make_session
        self._sessions: dict[str, tuple[Any, _Standing]] = {}

    def _open(self) -> tuple[str, Any, _Standing]:
        name, standing = uuid4().hex, _Standing()
        session = self._make_session(standing.messages.put)
        self._sessions[name] = (session, standing)
        self._server.sessions.add(session)
        return name, session, standing

    def _close(self, name: str) -> None:
        session, _ = self._sessions.pop(name)
        self._server.sessions.discard(session)
        for task in list(session.calls.values()):
            task.cancel()

    # --- streamable HTTP

    async def mcp(self, request: Any) -> Any:
        from aiohttp import web

        name = request.headers.get("Mcp-Session-Id")
        if self._server.is_newest:
            return await self._newest(request) if request.method == "POST" else web.Response(status=405)
        message = json.loads(await request.read()) if request.method == "POST" else {}
        if name is None and message.get("method") != "initialize":
            error = {"code": -32600, "message": "Bad Request: no session id"}
            return web.json_response({"jsonrpc": "2.0", "id": message.get("id"), "error": error}, status=400)
        if name is not None and name not in self._sessions:
            return web.Response(status=404)
        if request.method == "DELETE":
            self._close(name)
            return web.Response(status=200)
        if request.method == "GET":
            stream = _Stream(request)
            response = await stream.open()
            await self._sessions[name][1].pour(stream)
            return response
        if name is None:
            name = self._open()[0]
        return await self._post(request, message, self._sessions[name][0], name)

    async def _newest(self, request: Any) -> Any:
        message = json.loads(await request.read())
        return await self._post(request, message, self._make_session(_nobody), None)

    async def _post(self, request: Any, message: Json, session: Any, name: str | None) -> Any:
        from aiohttp import web

        stream = _Stream(request)
        if "id" not in message or "method" not in message:
            await self._server.receive(session, message, stream.send)
            return web.Response(status=202)
        response = await stream.open(session=name)
        # In the handshake era a request outlives its stream; in the newest one its end is how a call is given up.
        await self._server.receive(session, message, stream.send)
        return response

    # --- HTTP+SSE

    async def sse(self, request: Any) -> Any:
        name, _, standing = self._open()
        stream = _Stream(request)
        response = await stream.open()
        try:
            await stream.event("endpoint", f"/messages?session={name}")
            await standing.pour(stream)
        finally:
            self._close(name)
        return response

    async def messages(self, request: Any) -> Any:
        from aiohttp import web

        session, standing = self._sessions[request.query["session"]]
        message = json.loads(await request.read())
        task = asyncio.ensure_future(self._server.receive(session, message, standing.messages.put))
        self._running = {*getattr(self, "_running", ()), task}
        task.add_done_callback(lambda done: self._running.discard(done))
        return web.Response(status=202)


async def _nobody(message: Json) -> None:
    return None


async def serve_http(server: Any, make_session: Any, port: int) -> None:
    from aiohttp import web

    http = _Http(server, make_session)
    application = web.Application(client_max_size=2**26)
    application.router.add_route("*", "/mcp", http.mcp)
    application.router.add_get("/sse", http.sse)
    application.router.add_post("/messages", http.messages)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, os.environ.get("FLOWS_HOST", "127.0.0.1"), port).start()  # in a container: on all
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()
