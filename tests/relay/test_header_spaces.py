"""Spaces around a header's value are no part of it (RFC 9110, 5.5). The conformance suite checks that, too, but the
relay in front of the gateway takes them away, so it is checked here on the gateway's own socket."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

import anyio

from tests.helpers.clients import NEWEST, OF_MCP
from tests.helpers.gateway import gateway_over_http, in_process, patient_toml


async def test_spaces_around_the_name_in_a_header_do_not_count() -> None:
    async with gateway_over_http(patient_toml({"b": in_process("everything.py")})) as gateway:
        place = urlsplit(gateway.url)
        assert place.hostname is not None and place.port is not None
        async with await anyio.connect_tcp(place.hostname, place.port) as stream:
            await stream.send(padded_request(place.netloc))
            answer = b""
            async for chunk in stream:
                answer += chunk
    assert answer.startswith(b"HTTP/1.1 200"), answer
    assert b"hello" in answer


def padded_request(host: str) -> bytes:
    meta = {
        f"{OF_MCP}protocolVersion": NEWEST,
        f"{OF_MCP}clientInfo": {"name": "by-hand", "version": "1"},
        f"{OF_MCP}clientCapabilities": {},
    }
    params = {"name": "b_echo", "arguments": {"text": "hello"}, "_meta": meta}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
    head = [
        "POST /mcp HTTP/1.1",
        f"Host: {host}",
        "Content-Type: application/json",
        "Accept: application/json, text/event-stream",
        f"MCP-Protocol-Version: {NEWEST}",
        "Mcp-Method: tools/call",
        "Mcp-Name:  b_echo \t ",
        "Connection: close",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*head, "", body]).encode()
