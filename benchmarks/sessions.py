"""MCP as the load driver speaks it: sessions of both eras over HTTP and pipes, with every answer checked.

Called by `driver` and, for the start-up time, by `measurements`; calls `connections`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks.answers import HANDSHAKE_VERSION, MODERN_VERSION, Era
from benchmarks.connections import HttpConnection, PipeConnection

_CLIENT = {"name": "benchmark", "version": "1"}
_MODERN_META = {
    "io.modelcontextprotocol/protocolVersion": MODERN_VERSION,
    "io.modelcontextprotocol/clientInfo": _CLIENT,
    "io.modelcontextprotocol/clientCapabilities": {},
}
_HELLO = {"protocolVersion": HANDSHAKE_VERSION, "capabilities": {}, "clientInfo": _CLIENT}


class WrongAnswer(Exception):
    """Raised when a server answered something else than what was asked for."""


@dataclass(frozen=True)
class Target:
    """Where a driver sends its load: a URL, or the two ends of a process's pipes."""

    era: Era
    url: str | None = None
    pipes: tuple[int, int] | None = None
    """File descriptors: what the server writes, what it reads."""


class Session(ABC):
    """One MCP session. `begin` once; then `prepare` before, and any number of, `exchange`."""

    def __init__(self, era: Era) -> None:
        self.era = era
        self._last_id = 0

    async def begin(self) -> None:
        """Agree on the session: `initialize`, or in the modern era a look at what the server is.

        Raises:
            WrongAnswer: it refused.
        """
        await self.prepare()
        if self.era is Era.MODERN:
            await self.request("server/discover")
            return
        await self.request("initialize", _HELLO)
        await self._send({"jsonrpc": "2.0", "method": "notifications/initialized"}, None)

    async def request(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """A request and its result, checked."""
        request_id, answer = await self.exchange(method, params or {})
        return result_of(answer, request_id)

    async def exchange(self, method: str, params: dict[str, Any]) -> tuple[int, bytes]:
        """A request and its undecoded answer, with the id that the answer should have."""
        self._last_id += 1
        if self.era is Era.MODERN:
            params = {**params, "_meta": _MODERN_META}
        message = {"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params}
        return self._last_id, await self._send(message, self._last_id)

    @abstractmethod
    async def prepare(self) -> None:
        """Be connected; costs nothing if that is so."""

    @abstractmethod
    async def _send(self, message: dict[str, Any], request_id: int | None) -> bytes: ...

    @abstractmethod
    def close(self) -> None: ...


class HttpSession(Session):
    def __init__(self, era: Era, url: str, token: str | None = None) -> None:
        super().__init__(era)
        self._connection = HttpConnection(url)
        self._headers = {
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": MODERN_VERSION if era is Era.MODERN else HANDSHAKE_VERSION,
        } | ({"Authorization": f"Bearer {token}"} if token else {})

    async def prepare(self) -> None:
        await self._connection.connect()

    async def _send(self, message: dict[str, Any], request_id: int | None) -> bytes:
        headers = self._headers
        if self.era is Era.MODERN:
            headers = {**headers, "Mcp-Method": message["method"]}
            if name := message["params"].get("name"):
                headers["Mcp-Name"] = name
        elif self._connection.session_id is not None:
            headers = {**headers, "Mcp-Session-Id": self._connection.session_id}
        return await self._connection.exchange(json.dumps(message).encode(), headers)

    def close(self) -> None:
        self._connection.close()


class PipeSession(Session):
    def __init__(self, era: Era, pipes: tuple[int, int]) -> None:
        super().__init__(era)
        self._connection = PipeConnection(*pipes)

    async def prepare(self) -> None:
        await self._connection.connect()

    async def _send(self, message: dict[str, Any], request_id: int | None) -> bytes:
        return await self._connection.exchange(json.dumps(message).encode(), request_id)

    def close(self) -> None:
        self._connection.close()


def session_to(target: Target) -> Session:
    """A session with a target, not begun."""
    if target.url is not None:
        return HttpSession(target.era, target.url)
    assert target.pipes is not None
    return PipeSession(target.era, target.pipes)


def result_of(answer: bytes, request_id: int) -> dict[str, Any]:
    """The result in an answer, be it a JSON body or an event stream that other messages may come first in.

    Raises:
        WrongAnswer: there is no result for this request.
    """
    for message in _messages(answer):
        if message.get("id") == request_id and "result" in message:
            result: dict[str, Any] = message["result"]
            return result
    raise WrongAnswer(f"no result for request {request_id} in {answer[:300]!r}")


def _messages(answer: bytes) -> Iterable[dict[str, Any]]:
    if not answer.lstrip().startswith(b"{"):
        return [json.loads(line[5:]) for line in answer.splitlines() if line.startswith(b"data:") and line[5:].strip()]
    return [json.loads(answer)]


def check_call(answer: bytes, request_id: int, text: str) -> None:
    """Raises WrongAnswer unless `echo` gave the text back."""
    result = result_of(answer, request_id)
    if result.get("isError") or result["content"][0].get("text") != text:
        raise WrongAnswer(f"asked echo for {text!r} and got {answer[:300]!r}")


def check_list(answer: bytes, request_id: int, tool_count: int) -> None:
    """Raises WrongAnswer unless the listing has so many tools."""
    listed = len(result_of(answer, request_id).get("tools", ()))
    if listed != tool_count:
        raise WrongAnswer(f"listed {listed} tools, not {tool_count}: {answer[:300]!r}")
