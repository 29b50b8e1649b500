"""Whose session it is, how large a request may be, how many sessions one user may have, and what the log tells.

Real tokens, real HTTP. A session of somebody else looks like one that there is none of.
"""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import anyio
import pytest

from composition.guard import MAX_BODY_BYTES, MAX_HEADER_BYTES
from providers.lines import MODERN
from tests.helpers.gateway import gateway_over_http, gateway_process, servers_toml
from tests.helpers.http_backend import http_backend
from tests.helpers.people import token, tokens
from tests.helpers.processes import eventually
from tests.helpers.rpc import HANDSHAKE, NEWEST, Json, raw_client

pytestmark = pytest.mark.core

ACCEPT = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
PING: Json = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
HELLO: Json = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {
        "protocolVersion": HANDSHAKE,
        "capabilities": {},
        "clientInfo": {"name": "by-hand", "version": "1"},
    },
}


def bearer(user: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token(user)}"}


@asynccontextmanager
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as client:
        yield client


async def answered(client: aiohttp.ClientSession, verb: str, url: str, headers: dict[str, str], **more: Any) -> Any:
    """Status and body; of a stream only the beginning."""
    async with client.request(verb, url, headers=ACCEPT | headers, **more) as response:
        body = "" if response.content_type == "text/event-stream" else await response.text()
        return response.status, body


# ------------------------------------------------------------------------------------------------ whose session


@pytest.mark.parametrize("verb", ["POST", "GET", "DELETE"])
async def test_a_session_of_another_user_looks_like_none(verb: str) -> None:
    async with (
        gateway_over_http("", auth=tokens()) as gateway,
        raw_client(gateway.url, bearer("ada")) as ada,
        raw_client(gateway.url, bearer("bob")),
        http() as client,
    ):
        assert ada.session_id is not None
        body = {"json": PING} if verb == "POST" else {}
        hers, none = {"Mcp-Session-Id": ada.session_id}, {"Mcp-Session-Id": "0" * 32}
        foreign = await answered(client, verb, gateway.url, bearer("bob") | hers, **body)
        unknown = await answered(client, verb, gateway.url, bearer("bob") | none, **body)
        assert foreign == unknown and foreign[0] == 404
        assert "result" in await ada.request("ping", {}), "it is still hers"


@pytest.mark.parametrize("verb", ["POST", "GET", "DELETE"])
async def test_an_unknown_session_is_not_found(verb: str) -> None:
    async with gateway_over_http("") as gateway, http() as client:
        headers = {"Mcp-Session-Id": "f" * 32}
        status, body = await answered(client, verb, gateway.url, headers, json=PING if verb == "POST" else None)
        assert status == 404 and "Session not found" in body


@pytest.mark.parametrize("verb", ["POST", "GET", "DELETE"])
async def test_without_a_token_nobody_has_a_session(verb: str) -> None:
    async with (
        gateway_over_http("", auth=tokens()) as gateway,
        raw_client(gateway.url, bearer("ada")) as ada,
        http() as client,
    ):
        assert ada.session_id is not None
        for headers in ({}, {"Authorization": "Bearer nobody's"}):
            status, _ = await answered(client, verb, gateway.url, headers | {"Mcp-Session-Id": ada.session_id})
            assert status == 401


async def test_a_session_that_was_ended_is_not_found() -> None:
    async with gateway_over_http("") as gateway, raw_client(gateway.url) as caller, http() as client:
        assert caller.session_id is not None
        headers = {"Mcp-Session-Id": caller.session_id}
        await caller.end()
        for verb in ("POST", "GET", "DELETE"):
            assert (await answered(client, verb, gateway.url, headers, json=PING if verb == "POST" else None))[0] == 404


# ------------------------------------------------------------------------------------------------ how many, how long


async def test_a_user_may_have_so_many_sessions_and_nobody_else_minds() -> None:
    async with (
        gateway_over_http(servers_toml({}, max_sessions_per_user=3), auth=tokens()) as gateway,
        http() as client,
        AsyncExitStack() as stack,
    ):
        mine = [await stack.enter_async_context(raw_client(gateway.url, bearer("ada"))) for _ in range(3)]
        await eventually(lambda: len(gateway.gateway.sessions) == 3)
        async with client.post(gateway.url, json=HELLO, headers=ACCEPT | bearer("ada")) as refused:
            assert refused.status == 429 and int(refused.headers["Retry-After"]) > 0
            error = (await refused.json())["error"]
            assert "3 sessions open" in error["message"]
        async with raw_client(gateway.url, bearer("bob")) as other:
            assert "result" in await other.request("ping", {})
        if MODERN:
            async with raw_client(gateway.url, bearer("ada"), version=NEWEST) as without_session:
                assert "result" in await without_session.request("tools/list", {})
        assert "result" in await mine[0].request("ping", {})
        await mine[0].end()
        await eventually(lambda: len(gateway.gateway.sessions) == 2)
        async with raw_client(gateway.url, bearer("ada")) as again:
            assert "result" in await again.request("ping", {})


async def test_sessions_that_are_opened_at_the_same_time_count_too() -> None:
    async with gateway_over_http(servers_toml({}, max_sessions_per_user=5)) as gateway, http() as client:
        statuses: list[int] = []

        async def hello() -> None:
            statuses.append((await answered(client, "POST", gateway.url, {}, json=HELLO))[0])

        async with anyio.create_task_group() as all_at_once:
            for _ in range(40):
                all_at_once.start_soon(hello)
        assert set(statuses) == {200, 429} and 1 <= statuses.count(200) <= 5
        assert len(gateway.gateway.sessions) <= 5


# ------------------------------------------------------------------------------------------------------- how large


def padded(size: int) -> bytes:
    return json.dumps(PING | {"params": {"_meta": {"pad": "x" * size}}}).encode()


@pytest.mark.parametrize("says_how_long", [True, False])
async def test_a_request_that_is_too_large_is_refused_with_the_reason(says_how_long: bool) -> None:
    async def in_chunks() -> AsyncIterator[bytes]:
        data = padded(MAX_BODY_BYTES)
        for start in range(0, len(data), 2**16):
            yield data[start : start + 2**16]

    async with gateway_over_http("") as gateway, raw_client(gateway.url) as caller, http() as client:
        headers = {"Mcp-Session-Id": caller.session_id or ""}
        data = io.BytesIO(padded(MAX_BODY_BYTES)) if says_how_long else in_chunks()
        status, body = await answered(client, "POST", gateway.url, headers, data=data)
        assert status == 413 and "4,194,304 bytes" in json.loads(body)["error"]["message"]
        assert "result" in await caller.request("ping", {})


async def test_a_large_request_is_taken() -> None:
    async with gateway_over_http("") as gateway, raw_client(gateway.url) as caller, http() as client:
        headers = {"Mcp-Session-Id": caller.session_id or ""}
        data = io.BytesIO(padded(MAX_BODY_BYTES - 1000))
        assert (await answered(client, "POST", gateway.url, headers, data=data))[0] == 200


async def test_headers_that_are_too_large_are_refused() -> None:
    async with gateway_over_http("") as gateway, http() as client:
        headers = {f"X-Pad-{number}": "x" * 8000 for number in range(9)}
        status, body = await answered(client, "POST", gateway.url, headers, json=PING)
        assert status == 431 and f"{MAX_HEADER_BYTES:,} bytes" in json.loads(body)["error"]["message"]


async def test_headers_without_end_are_cut_off_and_cost_nobody_anything() -> None:
    async with gateway_process("") as gateway, raw_client(gateway.url) as caller:
        host, port = gateway.url.split("/")[2].split(":")
        async with await anyio.connect_tcp(host, int(port)) as stream:
            await stream.send(b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Endless: ")
            with anyio.fail_after(20):
                with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
                    while True:
                        await stream.send(b"x" * 65536)
                        with anyio.move_on_after(0.01):
                            assert (await stream.receive()).startswith(b"HTTP/1.1 431 ")
        assert "result" in await caller.request("ping", {})


@pytest.mark.parametrize("trailer", [b"x-t: " + b"a" * 1000 + b"\r\n", b"a" * 1000], ids=["many", "one without end"])
async def test_trailers_without_end_are_cut_off(trailer: bytes) -> None:
    begun = b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nx-first: "
    async with gateway_process("") as gateway, raw_client(gateway.url) as caller:
        host, port = gateway.url.split("/")[2].split(":")
        async with await anyio.connect_tcp(host, int(port)) as stream:
            await stream.send(begun + (b"a\r\n" if b":" in trailer else b""))
            sent = 0
            with anyio.fail_after(20), pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
                while True:
                    await stream.send(trailer * 100)
                    sent += len(trailer) * 100
                    with anyio.move_on_after(0.01):
                        await stream.receive()
        assert sent < 50 * MAX_HEADER_BYTES  # what the sockets hold, too
        assert "result" in await caller.request("ping", {})


@pytest.mark.parametrize("begun", [b"", b"POST", b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: a"])
async def test_who_never_comes_to_the_end_of_the_headers_is_hung_up_on(
    begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("composition.http._HEAD_SECONDS", 0.3)
    async with gateway_over_http("") as gateway, raw_client(gateway.url) as caller:
        host, port = gateway.url.split("/")[2].split(":")
        async with await anyio.connect_tcp(host, int(port)) as stream:
            if begun:
                await stream.send(begun)
            with anyio.fail_after(10), pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await stream.receive()
        assert "result" in await caller.request("ping", {})


# ------------------------------------------------------------------------------------------------- what the log tells


@pytest.mark.parametrize("level", ["debug", "info"])
async def test_no_session_id_is_in_the_log_whatever_happens_to_the_session(level: str) -> None:
    async with (
        http_backend() as backend,
        gateway_process(servers_toml({"b": {"url": backend.url}}), "--log-level", level) as gateway,
        http() as client,
    ):
        ids = []
        async with raw_client(gateway.url) as caller:
            ids.append(caller.session_id or "")
            await caller.request("tools/list", {})
            await caller.request("tools/call", {"name": "b_none", "arguments": {}})
            await caller.request("nonsense", {})
        ended = {"Mcp-Session-Id": ids[0]}
        assert (await answered(client, "POST", gateway.url, ended, json=PING))[0] == 404
        async with client.post(gateway.url, json=HELLO, headers=ACCEPT) as response:
            ids.append(response.headers["Mcp-Session-Id"])
        await answered(client, "POST", gateway.url, {"Mcp-Session-Id": ids[1]}, data=b"{")
        log = gateway.log.read_text()
    assert all(len(each) == 32 for each in ids) and ("session" in log.lower() or level == "info")
    assert not [each for each in ids if each in log]
