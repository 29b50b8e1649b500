"""No credential of a client reaches a backend: unique words in everything that a client can send with a request, over
each transport and in both eras, and none of them in any byte that a backend gets."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web

from providers.tokens import TokenFile
from tests.helpers.faults import HELLO, echoes, lists_echo, offers_tools
from tests.helpers.gateway import ERAS, LEGACY, gateway_over_http, servers_toml
from tests.helpers.http_backend import HttpBackend, Seen, event, event_stream, http_backend
from tests.helpers.issuer import AUDIENCE, ISSUER, jwt, public_key
from tests.helpers.processes import SERVERS
from tests.helpers.rpc import HANDSHAKE, NEWEST, raw_client

pytestmark = pytest.mark.core

VERSIONS = {era: HANDSHAKE if era == LEGACY else NEWEST for era in ERAS}
TRANSPORTS = ("streamable_http", "sse", "stdio", "python")
CANARY = "canary7f3a"
SENT = {
    "Cookie": f"session={CANARY}-cookie",
    "Proxy-Authorization": f"Bearer {CANARY}-proxy",
    "X-Api-Key": f"{CANARY}-key",
    "X-CSRF-Token": f"{CANARY}-csrf",
    "X-Amz-Security-Token": f"{CANARY}-amz",
    "X-Mcp-UserId": f"{CANARY}-user",
    "X-Mcp-Roles": f"{CANARY}-role",
    "X-Forwarded-For": f"{CANARY}-address",
    "Forwarded": f"for={CANARY}-for",
    "Referer": f"https://example.com/?token={CANARY}-referer",
    "User-Agent": f"{CANARY}-agent",
    "Traceparent": f"{CANARY}-trace",
}
"""Beside the token itself; and a query on the address, see below."""

PYTHON = """
from fastmcp import Context, FastMCP
from fastmcp.server.dependencies import get_access_token, get_http_headers, get_http_request

mcp = FastMCP("echo")

@mcp.tool
def echo(text: str, context: Context) -> str:
    with open({heard!r}, "a") as heard:
        token = get_access_token()
        heard.write(f"{{text}} {{get_http_headers(include_all=True)}} token: {{token and (token.token, token.claims)}}")
        try:
            heard.write(repr(get_http_request().headers))
        except RuntimeError:
            heard.write(" no request")
    return text
"""
Heard = Callable[[], str]


def all_that_came(backend: HttpBackend) -> str:
    return "".join(f"{seen.request.raw_path} {seen.request.raw_headers} {seen.body!r}\n" for seen in backend.seen)


@asynccontextmanager
async def echo_server(transport: str, folder: Path) -> AsyncIterator[tuple[dict[str, Any], Heard]]:
    """A server with the tool `echo`, and all that it ever got."""
    heard = folder / "heard"
    heard.touch()
    match transport:
        case "stdio":
            script = f"env > {heard}; exec tee -a {heard} | {sys.executable} -S {SERVERS / 'hang.py'} proper"
            yield {"command": "sh", "args": ["-c", script]}, heard.read_text
        case "python":
            (folder / "echo.py").write_text(PYTHON.format(heard=str(heard)))
            yield {"python": f"{folder / 'echo.py'}:mcp"}, heard.read_text
        case "sse":
            async with older_backend() as backend:
                yield {"url": backend.url, "transport_type": "sse"}, lambda: all_that_came(backend)
        case _:
            answers = {"initialize": offers_tools, "tools/list": lists_echo, "tools/call": echoes}
            async with http_backend(**answers) as backend:
                yield {"url": backend.url}, lambda: all_that_came(backend)


@asynccontextmanager
async def older_backend() -> AsyncIterator[HttpBackend]:
    """Of HTTP+SSE: what `echoes` and the like answer goes out on the stream."""
    send, receive = anyio.create_memory_object_stream[bytes](100)

    async def stream(seen: Seen) -> web.StreamResponse:
        response = await event_stream(seen, b"event: endpoint\ndata: /messages\n\n")
        async for piece in receive:
            await response.write(piece)
        return response

    def on_the_stream(answerer: Any) -> Any:
        async def answered(seen: Seen) -> web.StreamResponse:
            await send.send(event(json.loads((await answerer(seen)).text)))
            return web.Response(status=202)

        return answered

    async def taken(seen: Seen) -> web.StreamResponse:
        return web.Response(status=202)

    answers = {"initialize": offers_tools, "tools/list": lists_echo, "tools/call": echoes}
    told = {name: on_the_stream(answerer) for name, answerer in answers.items()}
    with send, receive:
        async with http_backend("/sse", **told, **{"GET": stream, "notifications/initialized": taken}) as backend:
            yield backend


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_no_word_of_a_client_reaches_a_backend(transport: str, era: str, tmp_path: Path) -> None:
    auth = {"tokens": "tokens.json", "issuer": ISSUER, "audience": AUDIENCE, "key": public_key()}
    async with echo_server(transport, tmp_path) as (table, heard):
        toml = servers_toml({"docs": {**table, "required_roles": ["*"], "isolation": "shared"}}, auth=auth)
        async with gateway_over_http(toml) as gateway:
            static, _ = TokenFile(gateway.path.with_name("tokens.json")).add("ann", "Ann", [])
            signed = jwt(sub="bob", jti=f"{CANARY}-claim")
            for token, user in ((static, "ann"), (signed, "bob")):
                headers = {**SENT, "Authorization": f"Bearer {token}"}
                url = f"{gateway.url}?access_token={CANARY}-query"
                async with raw_client(url, headers, version=VERSIONS[era]) as caller:
                    await caller.request("tools/list", {})
                    result = await caller.call("docs_echo", {"text": f"hello {user}"})
                    assert result["content"][0]["text"] == f"hello {user}"
    got = heard()
    assert "hello ann" in got and "hello bob" in got
    assert CANARY not in got
    assert not [part for part in (static, static[4:], signed, *signed.split(".")) if part in got]
    assert transport != "python" or got.count("{} token: None no request") == 2
    assert HELLO["text"] in got
