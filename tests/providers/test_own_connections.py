"""Connections of a client's own: each is used once its address was found to be the server's, and none is left over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from providers.endpoint import OwnConnections, http_client
from providers.errors import BackendUnavailable

pytestmark = pytest.mark.core
UNSURE = BackendUnavailable("web", "nobody knows.", not_sent=True)


class Doorkeeper:
    """A server that answers each request, and counts who is there."""

    def __init__(self) -> None:
        self.url = ""
        self.open = self.answered = 0
        self.may_finish = anyio.Event()
        self.may_finish.set()
        self._news = anyio.Event()

    async def __call__(self, line: SocketStream) -> None:
        self._changes(1)
        async with line:
            async for _ in line:
                self.answered += 1
                await line.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
                await self.may_finish.wait()
                await line.send(b"k")
        self._changes(-1)

    def _changes(self, by: int) -> None:
        self.open += by
        self._news.set()
        self._news = anyio.Event()

    async def until(self, count: int) -> None:
        with anyio.fail_after(10):
            while self.open != count:
                await self._news.wait()


@asynccontextmanager
async def doorkeeper() -> AsyncIterator[Doorkeeper]:
    server = Doorkeeper()
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        server.url = f"http://127.0.0.1:{listener.extra(SocketAttribute.local_port)}/"
        tasks.start_soon(listener.serve, server)
        yield server
        tasks.cancel_scope.cancel()


async def asked(client: aiohttp.ClientSession, server: Doorkeeper) -> str:
    async with client.get(server.url) as response:
        return await response.text()


async def refuse() -> None:
    raise UNSURE


async def test_a_connect_that_is_given_up_leaves_no_connection() -> None:
    async with doorkeeper() as server, http_client(OwnConnections("web", anyio.sleep_forever)) as client:
        for _ in range(3):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(asked, client, server)
                await server.until(1)
                tasks.cancel_scope.cancel()
            await server.until(0)
        assert not server.answered


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_who_may_not_connect_leaves_no_connection_and_the_others_theirs(host: str) -> None:
    checks: list[Callable[[], Awaitable[None]]] = [anyio.lowlevel.checkpoint, refuse, anyio.lowlevel.checkpoint]

    async def check() -> None:
        await checks.pop(0)()

    async with doorkeeper() as server, http_client(OwnConnections("web", check)) as client:
        server.url, server.may_finish = server.url.replace("127.0.0.1", host), anyio.Event()
        async with client.get(server.url) as first:
            await server.until(1)
            with pytest.raises(BackendUnavailable, match="nobody knows"):
                await asked(client, server)
            await server.until(1)
            server.may_finish.set()
            assert await first.text() == "ok"
            assert (await asked(client, server), server.answered, server.open) == ("ok", 2, 1)


async def test_once_cut_nothing_is_sent_any_more() -> None:
    own = OwnConnections("web", anyio.lowlevel.checkpoint)
    async with doorkeeper() as server, http_client(own) as client:
        assert await asked(client, server) == "ok"
        own.cut()
        await server.until(0)
        with pytest.raises(aiohttp.ClientConnectorError):
            await asked(client, server)
        assert server.answered == 1


async def test_a_client_that_ended_connects_no_more() -> None:
    own = OwnConnections("web", anyio.lowlevel.checkpoint)
    async with http_client(own):
        pass
    assert own.is_cut
