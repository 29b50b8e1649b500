"""A web server on loopback with one document, for what reads documents from the web."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web


class Site:
    """A web server that answers as a test says, and remembers what it was asked."""

    def __init__(self) -> None:
        self.body, self.status, self.headers = b"one", 200, {"ETag": '"1"'}
        self.asked: list[dict[str, str]] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(dict(request.headers))
        if request.headers.get("If-None-Match") == self.headers.get("ETag", "none"):
            return web.Response(status=304)
        return web.Response(status=self.status, body=self.body, headers=self.headers)


@asynccontextmanager
async def serving(site: Site, tls: ssl.SSLContext | None = None) -> AsyncIterator[Site]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", site.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    site.url = f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}/catalog.yaml"
    try:
        yield site
    finally:
        await runner.cleanup()
