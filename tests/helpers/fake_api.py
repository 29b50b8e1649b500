"""A small REST API for the commands: it keeps what it is sent, and notes how it was asked."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Json = dict[str, Any]
TOKEN = "a-token-of-the-tests"


class FakeApi:
    """`asked` holds method, path, media type and `If-Match` of each request, `sent` the bodies."""

    def __init__(self) -> None:
        self.adapters: dict[str, Json] = {}
        self.asked: list[tuple[str, str, str, str | None]] = []
        self.sent: list[Json] = []
        self.url = ""
        self.refusal: web.Response | None = None
        """The next answer, whatever is asked."""
        self.is_overtaken = False
        """Whether somebody else changes a server between a read and the write that follows."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.method, request.path, request.content_type, request.headers.get("If-Match")))
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.Response(status=401, headers={"WWW-Authenticate": "Bearer"})
        if self.refusal is not None:
            return self.refusal
        body = await request.json() if request.can_read_body else None
        if body is not None:
            self.sent.append(body)
        name = request.match_info.get("name")
        return self._of_all(request.method, body) if name is None else self._of_one(request, name, body)

    def _of_all(self, method: str, body: Any) -> web.Response:
        if method == "GET":
            return web.json_response([self.adapters[name] for name in sorted(self.adapters)])
        if "url" in body and not body["url"].startswith("http"):
            return problem(400, "The body is wrong.", [{"key": "url", "text": "must begin with http://"}])
        if body["name"] in self.adapters:
            return problem(409, "This name is taken. Choose another.")
        self.adapters[body["name"]] = body | {"source": "api", "version": 1}
        return web.json_response(self.adapters[body["name"]], status=201)

    def _of_one(self, request: web.Request, name: str, body: Any) -> web.Response:
        known = self.adapters.get(name)
        if known is None:
            return problem(404, "There is nothing of this name that you may see.")
        tag = f'"{known["version"]}"'
        if request.method != "GET":
            if self.is_overtaken or request.headers.get("If-Match") != tag:
                return problem(412, "The server was changed since you read it. Read it again and repeat the change.")
            if known["source"] == "servers.toml":
                return problem(409, "This server stands in servers.toml. Change it there.")
        if request.method == "DELETE":
            del self.adapters[name]
            return web.Response(status=204)
        known.update(body or {})
        return web.json_response(known, headers={"ETag": tag})


def problem(status: int, detail: str, errors: list[Json] | None = None) -> web.Response:
    body = {"type": "about:blank", "title": "-", "status": status, "detail": detail}
    return web.Response(
        status=status,
        text=json.dumps(body | ({"errors": errors} if errors else {})),
        content_type="application/problem+json",
    )


@asynccontextmanager
async def fake_api() -> AsyncIterator[FakeApi]:
    """One that runs at a free port."""
    api = FakeApi()
    application = web.Application()
    application.router.add_route("*", "/adapters", api.handle)
    application.router.add_route("*", "/adapters/{name}", api.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        api.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield api
    finally:
        await runner.cleanup()
