"""A server on loopback that speaks the MCP Registry's API, with entries that a test writes by hand."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from aiohttp import web

OFFICIAL = "io.modelcontextprotocol.registry/official"

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def server(name: str, version: str = "1.0.0", **more: Any) -> dict[str, Any]:
    """A server.json in today's spelling."""
    described = {"name": name, "description": f"What {name} does.", "version": version}
    return {**described, **more}


def package(kind: str, identifier: str, version: str = "1.0.0", **more: Any) -> dict[str, Any]:
    """A package that speaks over stdio."""
    known = {"registryType": kind, "identifier": identifier, "version": version, "transport": {"type": "stdio"}}
    return {**known, **more}


@dataclass
class Registry:
    """The registry. `instead`, where a test sets it, answers every request."""

    servers: list[dict[str, Any]]
    url: str = ""
    page: int = 100
    instead: Answer | None = None
    asked: list[str] = field(default_factory=list)
    statuses: dict[str, str] = field(default_factory=dict)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path_qs)
        if self.instead is not None:
            return await self.instead(request)
        parts = request.raw_path.partition("?")[0].split("/")
        return self._one(*parts[3:6:2]) if len(parts) == 6 else self._list(request)

    def _list(self, request: web.Request) -> web.Response:
        word = request.query.get("search", "")
        found = [each for each in self.servers if word in each.get("name", "")]
        start = int(request.query.get("cursor", "cursor:0").partition(":")[2])
        size = min(self.page, int(request.query["limit"]))
        rest = start + size < len(found)
        metadata = {"count": size, **({"nextCursor": f"cursor:{start + size}"} if rest else {})}
        body = {"servers": [self._wrapped(each) for each in found[start : start + size]], "metadata": metadata}
        return self._answered(request, json.dumps(body))

    def _answered(self, request: web.Request, text: str) -> web.Response:
        etag = f'"{hash(text)}"'
        if request.headers.get("If-None-Match") == etag:
            return web.Response(status=304)
        return web.Response(text=text, content_type="application/json", headers={"ETag": etag})

    def _one(self, name: str, version: str) -> web.Response:
        name = unquote(name)
        found = [each for each in self.servers if each["name"] == name and version in ("latest", each["version"])]
        return web.json_response(self._wrapped(found[-1])) if found else web.Response(status=404)

    def _wrapped(self, entry: dict[str, Any]) -> dict[str, Any]:
        status = self.statuses.get(entry.get("name", ""), "active")
        return {"server": entry, "_meta": {OFFICIAL: {"status": status, "isLatest": True}}}


@asynccontextmanager
async def registry(*servers: dict[str, Any], **options: Any) -> AsyncIterator[Registry]:
    """A registry with these servers, at a free port."""
    one = Registry(list(servers), **options)
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", one.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        one.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield one
    finally:
        await runner.cleanup()
