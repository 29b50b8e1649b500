"""One connection to an MCP server, as bytes: kept-alive HTTP, or the two pipes of a process. Called by
`sessions`.

Both are as thin as asyncio allows, so that the driver costs a fraction of what it measures.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import urlsplit

import httptools


class ConnectionLost(ConnectionError):
    """Raised when the other side closed the connection before it answered."""


class HttpConnection(asyncio.Protocol):
    """One kept-alive HTTP connection; one exchange at a time."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._start = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[bytes] | None = None
        self.session_id: str | None = None
        """What the last answer's Mcp-Session-Id said, if it had one."""

    async def connect(self) -> None:
        """Connect, unless that was done and the server has kept the connection open."""
        if self._transport is None or self._transport.is_closing():
            await asyncio.get_running_loop().create_connection(lambda: self, self._host, self._port)

    async def exchange(self, body: bytes, headers: Mapping[str, str]) -> bytes:
        """POST a message and give the body of the answer.

        Raises:
            ConnectionLost: the server closed the connection first.
        """
        if self._transport is None:
            raise ConnectionLost("the server closed the connection before it was asked")
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(f"{self._start}{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._finish(ConnectionLost("the server closed the connection before it answered"))

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"mcp-session-id":
            self.session_id = value.decode()

    def on_body(self, part: bytes) -> None:
        self._parts.append(part)

    def on_message_complete(self) -> None:
        body, self._parts = b"".join(self._parts), []
        self._finish(body)

    def _finish(self, outcome: bytes | ConnectionLost) -> None:
        if self._answer is None or self._answer.done():
            return
        if isinstance(outcome, bytes):
            self._answer.set_result(outcome)
        else:
            self._answer.set_exception(outcome)


class PipeConnection(asyncio.Protocol):
    """The pipes of a stdio server: a line out, a line back, any number at once, told apart by their ids.

    Takes over both file descriptors.
    """

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd, self._write_fd = read_fd, write_fd
        self._waiting: dict[Any, asyncio.Future[bytes]] = {}
        self._rest = b""
        self._reader: asyncio.ReadTransport | None = None
        self._writer: asyncio.WriteTransport | None = None

    async def connect(self) -> None:
        """Start to read and write, unless that was done."""
        if self._writer is not None:
            return
        loop = asyncio.get_running_loop()
        self._reader, _ = await loop.connect_read_pipe(lambda: self, os.fdopen(self._read_fd, "rb", 0))
        pipe = os.fdopen(self._write_fd, "wb", 0)
        self._writer, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, pipe)

    async def exchange(self, body: bytes, request_id: int | None) -> bytes:
        """Write a message and give the line that answers it; nothing, at once, if it is a notification.

        Raises:
            ConnectionLost: the server ended first.
        """
        assert self._writer is not None
        self._writer.write(body + b"\n")
        if request_id is None:
            return b""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = answer
        return await answer

    def close(self) -> None:
        for transport in (self._reader, self._writer):
            if transport is not None:
                transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ConnectionLost("the server ended before it answered"))

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in filter(None, lines):
            message = json.loads(line)
            if "method" in message:  # the server's own request or notification; its ids are not ours
                continue
            answer = self._waiting.pop(message.get("id"), None)
            if answer is not None and not answer.done():
                answer.set_result(line)
