"""The connection to an engine that misbehaves: one that never answers, and one that breaks off. No Docker is needed."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio.abc import SocketStream

from providers import ownership
from providers.container import Container
from providers.docker import McpContainerManager
from providers.docker_engine import DockerEngine, EngineHung, ImageMissing
from tests.helpers.containers import over_stdio, record

MOST_THREADS = 8
VERSION = b'{"ApiVersion": "1.41"}'


@asynccontextmanager
async def engine_at(folder: Path, serve: Callable[[SocketStream], Awaitable[None]]) -> AsyncIterator[str]:
    """The address of an engine that treats each connection like this."""
    listener = await anyio.create_unix_listener(folder / "engine.sock")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        yield f"unix://{folder}/engine.sock"
        tasks.cancel_scope.cancel()


# ---------------------------------------------------------------------------------------------- one that never answers


class Hung:
    """Accepts connections and says nothing, until it is let go."""

    def __init__(self) -> None:
        self.let_go = anyio.Event()

    async def __call__(self, stream: SocketStream) -> None:
        async with stream:
            await self.let_go.wait()


@asynccontextmanager
async def hung_engine(folder: Path) -> AsyncIterator[DockerEngine]:
    server = Hung()
    async with engine_at(folder, server) as host:
        engine = DockerEngine(host)
        try:
            yield engine
        finally:
            server.let_go.set()
            await engine.rest()
            engine.close()


def workers() -> int:
    return sum(thread.name == "AnyIO worker thread" for thread in threading.enumerate())


async def refused(engine: DockerEngine, deadline: float) -> str:
    with pytest.raises(EngineHung) as caught:
        await engine.call("files", lambda api: api.ping(), deadline)
    return caught.value.problem


async def test_a_hung_engine_holds_no_more_than_its_threads(tmp_path: Path) -> None:
    async with hung_engine(tmp_path) as hung:
        before = workers()
        for _ in range(5 * MOST_THREADS):
            await refused(hung, 0.02)
            assert workers() - before <= MOST_THREADS


async def test_a_hung_engine_holds_no_more_threads_for_callers_who_give_up(tmp_path: Path) -> None:
    async with hung_engine(tmp_path) as hung:
        before = workers()
        for _ in range(5 * MOST_THREADS):
            with anyio.move_on_after(0.01) as patience:
                await refused(hung, 60)
            assert patience.cancelled_caught
            assert workers() - before <= MOST_THREADS


async def test_while_all_threads_are_stuck_calls_are_refused_at_once(tmp_path: Path) -> None:
    async with hung_engine(tmp_path) as hung:
        async with anyio.create_task_group() as tasks:
            for _ in range(MOST_THREADS):
                tasks.start_soon(refused, hung, 0.1)
        with anyio.fail_after(2):
            for _ in range(MOST_THREADS):
                assert "has not answered" in await refused(hung, 60)


async def test_who_gives_up_before_a_thread_began_leaves_its_place_free(tmp_path: Path) -> None:
    async with hung_engine(tmp_path) as hung:
        for _ in range(5 * MOST_THREADS):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await refused(hung, 60)
        assert "did not answer within" in await refused(hung, 0.1)


# ------------------------------------------------------------------------------------------------- one that breaks off


PROGRESS = b'{"status":"Downloading","progressDetail":{"current":1,"total":10},"id":"a1"}\r\n'


def answer(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nApi-Version: 1.41\r\n\r\n"
    return head % len(body) + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
BROKEN = {
    "between two chunks": HEAD + chunk(PROGRESS),
    "within a chunk": HEAD + chunk(PROGRESS) + b"4f\r\n" + PROGRESS[:20],
    "within a chunk's size": HEAD + chunk(PROGRESS) + b"4",
    "within an object": HEAD + chunk(PROGRESS) + chunk(PROGRESS[:20]) + b"0\r\n\r\n",
    "before the end of the head": HEAD[:40],
    "before anything": b"",
    "with nonsense": HEAD + chunk(PROGRESS) + b"zz\r\nnonsense\r\n",
}


def breaking_off(pull: bytes) -> Callable[[SocketStream], Awaitable[None]]:
    """An engine that has every image, and answers a pull with these bytes and no more."""

    async def serve(stream: SocketStream) -> None:
        async with stream:
            received = b""
            async for data in stream:
                received += data
                if not received.endswith(b"\r\n\r\n"):
                    continue
                if b"POST" in received:
                    await stream.send(pull or b" ")
                    return
                await stream.send(answer(VERSION if b"/version" in received else b'{"Id": "sha256:1"}'))
                received = b""

    return serve


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[ownership.Instance]:
    instance = ownership.claim(tmp_path / "state", tmp_path / "servers.toml")
    yield instance
    instance.release()


@pytest.mark.parametrize("where", BROKEN)
async def test_a_pull_that_breaks_off_is_a_failure(instance: Any, tmp_path: Path, where: str) -> None:
    async with engine_at(tmp_path, breaking_off(BROKEN[where])) as host:
        manager = McpContainerManager(instance, host=host)
        with pytest.raises(ImageMissing, match=r"could not be pulled: .* Run: docker pull apollos-test/everything"):
            await manager.pull_image(record("files", over_stdio()))
        manager.close()


async def test_a_pull_that_comes_to_its_end_is_none(instance: Any, tmp_path: Path) -> None:
    async with engine_at(tmp_path, breaking_off(HEAD + chunk(PROGRESS) + b"0\r\n\r\n")) as host:
        manager = McpContainerManager(instance, host=host)
        assert (await manager.pull_image(record("files", over_stdio()))).id == "sha256:1"
        manager.close()


# ---------------------------------------------------------------------------------------------------- one that refuses


def removing_with(status: bytes) -> Callable[[SocketStream], Awaitable[None]]:
    """An engine that answers like this when it is to remove a container, and has nothing else."""

    async def serve(stream: SocketStream) -> None:
        async with stream:
            received = b""
            async for data in stream:
                received += data
                if not received.endswith(b"\r\n\r\n"):
                    continue
                if b"/version" in received:
                    await stream.send(answer(VERSION))
                else:
                    said = status if received.startswith(b"DELETE") and b"/containers/" in received else b"404 Nothing"
                    await stream.send(b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % said)
                received = b""

    return serve


@pytest.mark.parametrize(("status", "is_gone"), [(b"204 Done", True), (b"404 Nothing", True), (b"409 Conflict", False)])
async def test_a_container_is_gone_when_the_engine_says_so(
    instance: Any, tmp_path: Path, status: bytes, is_gone: bool
) -> None:
    web = Container("id-1", "apollos-mcp-web", "web", "shared", "print")
    instance.remember(web.name, web.id)
    async with engine_at(tmp_path, removing_with(status)) as host:
        manager = McpContainerManager(instance, host=host)
        assert await manager.stop_server(web, grace=0) is is_gone
        assert manager.is_untidy is not is_gone  # it is looked at again
        assert (web.name in instance.containers()) is not is_gone
        manager.close()
