"""A unix socket in front of the Docker engine: a test sees each request and each answer, and holds up or loses it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
from anyio.abc import SocketStream

from providers.attach import GONE
from providers.engine import find_engine

ASKED, ANSWERED = "asked", "answered"
_REQUEST = re.compile(rb"[A-Z]+ (?:/v[0-9.]+)?(/[^ ?]*)")
_IDENTIFIER = re.compile(r"/[0-9a-f]{64}")

Passes = Callable[[str, str], Awaitable[None]]
"""Awaited before a request (`asked`) or its answer (`answered`) is passed on, with the request's path without version
and identifiers. One that raises `hung_up` ends the connection instead."""

hung_up = anyio.ClosedResourceError


@asynccontextmanager
async def engine_proxy(folder: Path, passes: Passes) -> AsyncIterator[str]:
    """The proxy's address, for `docker_host`."""

    async def serve(client: SocketStream) -> None:
        async with client, await anyio.connect_unix(find_engine().socket_path or "") as engine:
            with suppress(*GONE):
                await _relay(client, engine, passes)

    listener = await anyio.create_unix_listener(folder / "engine.sock")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield f"unix://{folder}/engine.sock"
        tasks.cancel_scope.cancel()


async def _relay(client: SocketStream, engine: SocketStream, passes: Passes) -> None:
    waiting: list[str] = []

    async def forth() -> None:
        with suppress(*GONE):
            async for chunk in client:
                if found := _REQUEST.match(chunk):
                    waiting.append(_IDENTIFIER.sub("", found[1].decode()))
                    await passes(ASKED, waiting[-1])
                await engine.send(chunk)
            if not waiting:  # else the engine would drop what it was asked for: the client is only impatient
                await engine.send_eof()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(forth)
        with suppress(*GONE):
            async for chunk in engine:
                if waiting:
                    await passes(ANSWERED, waiting.pop())
                await client.send(chunk)
        tasks.cancel_scope.cancel()
