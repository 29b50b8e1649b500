"""What the benchmark's backends say: canned MCP answers for one era and one number of tools. Standard library
only, because the stdio backend starts without site-packages.

Called by `http_backend` and `stdio_backend`. A modern backend refuses `initialize` and a handshake backend
does not know `server/discover`, so a row of the report can only have been measured in the era that it names.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Any

HANDSHAKE_VERSION = "2025-11-25"
MODERN_VERSION = "2026-07-28"

_METHOD_NOT_FOUND = -32601
_UNSUPPORTED_VERSION = -32022

SERVER_INFO = {"name": "benchmark-backend", "version": "1"}


class Era(StrEnum):
    """How a session is agreed on: by `initialize`, or not at all (2026-07-28: each request says all)."""

    HANDSHAKE = "handshake"
    MODERN = "modern"


def tool(name: str) -> dict[str, Any]:
    """One tool as a listing shows it: a description and a schema of everyday size (about 500 bytes)."""
    return {
        "name": name,
        "description": f"{name}: gives its text back. It stands for a tool whose author wrote two or three "
        "lines on what it does, when to use it, and what it returns to the model that called it.",
        "inputSchema": {
            "type": "object",
            "properties": {
                "text": {"type": "string", "description": "The text to give back."},
                "limit": {"type": "integer", "description": "How much of it at most.", "default": 100},
            },
            "required": ["text"],
        },
    }


def tools(count: int) -> list[dict[str, Any]]:
    """`echo`, and as many more as make `count`."""
    return [tool("echo"), *(tool(f"tool_{number:03}") for number in range(1, count))]


class Answers:
    """Answers JSON-RPC requests for one backend; everything that can be is encoded beforehand."""

    def __init__(self, era: Era, tool_count: int) -> None:
        self._era = era
        # The modern era wants a kind on every result, and on lists how long and for whom they may be kept.
        self._kind = {"resultType": "complete"} if era is Era.MODERN else {}
        listing = {"ttlMs": 0, "cacheScope": "private", **self._kind} if era is Era.MODERN else {}
        self._canned = {
            "ping": json.dumps(self._kind),
            "tools/list": json.dumps({"tools": tools(tool_count), **listing}, separators=(",", ":")),
        }
        if era is Era.MODERN:
            about = {
                "supportedVersions": [MODERN_VERSION],
                "_meta": {"io.modelcontextprotocol/serverInfo": SERVER_INFO},
            }
            self._canned["server/discover"] = json.dumps({"capabilities": {"tools": {}}, **about, **listing})
        else:
            about = {"protocolVersion": HANDSHAKE_VERSION, "serverInfo": SERVER_INFO}
            self._canned["initialize"] = json.dumps({"capabilities": {"tools": {}}, **about})

    def to(self, request: dict[str, Any]) -> bytes | None:
        """The answer to one message, encoded; None where none is due (a notification)."""
        if "id" not in request:
            return None
        method = request["method"]
        if method == "tools/call":
            return self._result(request["id"], json.dumps(self._echo(request["params"])))
        canned = self._canned.get(method)
        return self._result(request["id"], canned) if canned is not None else self._refusal(request)

    def _echo(self, params: dict[str, Any]) -> dict[str, Any]:
        return {
            "content": [{"type": "text", "text": params["arguments"]["text"]}],
            "isError": False,
            **self._kind,
        }

    def _result(self, request_id: int | str, result: str) -> bytes:
        return f'{{"jsonrpc":"2.0","id":{json.dumps(request_id)},"result":{result}}}'.encode()

    def _refusal(self, request: dict[str, Any]) -> bytes:
        error: dict[str, Any] = {"code": _METHOD_NOT_FOUND, "message": f"no method {request['method']}"}
        if request["method"] == "initialize":
            requested = request["params"]["protocolVersion"]
            data = {"supported": [MODERN_VERSION], "requested": requested}
            error = {"code": _UNSUPPORTED_VERSION, "message": "unsupported protocol version", "data": data}
        return json.dumps({"jsonrpc": "2.0", "id": request["id"], "error": error}).encode()
