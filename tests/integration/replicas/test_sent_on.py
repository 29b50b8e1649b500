"""What one replica sends on leads to another replica, whatever a client writes as its path."""

from __future__ import annotations

from urllib.parse import urlsplit

import anyio
import pytest

from providers.lines import MODERN
from tests.helpers.gateway import in_process
from tests.helpers.people import token, tokens
from tests.helpers.redis_server import RedisServer
from tests.helpers.replicas import replicas

pytestmark = pytest.mark.skipif(not MODERN, reason="replicas send sessions on with FastMCP 4 alone")


async def _exchange(url: str, target: str, headers: dict[str, str]) -> bytes:
    """The answer to a request whose target is written as it is."""
    place = urlsplit(url)
    lines = [f"GET {target} HTTP/1.1", f"Host: {place.netloc}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    async with await anyio.connect_tcp(str(place.hostname), place.port or 80) as stream:
        await stream.send(("\r\n".join(lines) + "\r\n\r\n").encode())
        answer = b""
        with anyio.fail_after(5):
            try:
                while True:
                    answer += await stream.receive()
            except anyio.EndOfStream:
                return answer


async def test_an_answer_from_elsewhere_has_each_header_once(redis: RedisServer) -> None:
    async with replicas(redis, {"all": in_process("everything.py")}, auth=tokens()) as both:
        headers = {"Authorization": f"Bearer {token('bob')}", "Mcp-Session-Id": both[1].gateway.replicas.marked("x")}
        head = (await _exchange(both[0].url, "/mcp", headers)).partition(b"\r\n\r\n")[0]
    names = [line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:]]
    assert b"ratelimit" in names and sorted(names) == sorted(set(names))


@pytest.mark.parametrize("target", ["*@127.0.0.1:{port}/inside%23/mcp", "*.example.com/mcp", "/adapters%23/mcp"])
@pytest.mark.parametrize("has_auth", [True, False])
async def test_a_path_does_not_lead_elsewhere(redis: RedisServer, target: str, has_auth: bool) -> None:
    reached: list[bytes] = []

    async def inside(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            reached.append(await stream.receive())
            await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret")

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with (
        listener,
        replicas(redis, {"all": in_process("everything.py")}, auth=tokens() if has_auth else None) as both,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, inside)
        headers = {"Mcp-Session-Id": both[1].gateway.replicas.marked("x")}
        headers |= {"Authorization": f"Bearer {token('bob')}"} if has_auth else {}
        answer = await _exchange(both[0].url, target.format(port=port), headers)
        tasks.cancel_scope.cancel()
    assert reached == []
    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 401"))
