"""Any number of backends over streamable HTTP in one cheap process, told apart by their path.

Started by `processes.http_backend`; prints its port as one line of JSON once it listens. `POST
/{era}/{tools}/{name}` is a backend of that era with so many tools (`hang` for a number never answers); `GET
/counts` tells how many requests of which method each path had.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from functools import cache
from typing import Any, cast

import anyio
import httptools

from benchmarks.answers import Answers, Era
from benchmarks.processes import EVENT_LOOP

HANG = "hang"


class Counts:
    """How many requests each path had, by JSON-RPC method (`GET` and `DELETE` count as such)."""

    def __init__(self) -> None:
        self.by_path: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.sessions = 0


@cache
def answers_of(path: str) -> Answers | None:
    """Who answers at `/{era}/{tools}/{name}`; None for one that hangs."""
    _, era, tool_count, *_ = path.split("/")
    return None if tool_count == HANG else Answers(Era(era), int(tool_count))


class Connection(asyncio.Protocol):
    """One kept-alive connection. Answers are JSON, written in one piece."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._path = ""
        self._body = b""
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._path, self._body = "", b""

    def on_url(self, part: bytes) -> None:
        self._path += part.decode()

    def on_body(self, part: bytes) -> None:
        self._body += part

    def on_message_complete(self) -> None:
        verb = self._parser.get_method().decode()
        if verb == "POST":
            self._answer(json.loads(self._body))
        elif verb == "GET" and self._path == "/counts":
            self._write("200 OK", json.dumps(self._counts.by_path).encode())
        else:
            self._counts.by_path[self._path][verb] += 1
            self._write("405 Method Not Allowed" if verb == "GET" else "200 OK", b"")

    def _answer(self, request: dict[str, Any]) -> None:
        method = request["method"]
        self._counts.by_path[self._path][method] += 1
        answers = answers_of(self._path)
        if answers is None:
            return
        answer = answers.to(request)
        if answer is None:
            self._write("202 Accepted", b"")
        elif method == "initialize":
            self._counts.sessions += 1
            self._write("200 OK", answer, f"Mcp-Session-Id: session-{self._counts.sessions}\r\n")
        else:
            self._write("200 OK", answer)

    def _write(self, status: str, body: bytes, header: str = "") -> None:
        assert self._transport is not None
        about = f"Content-Type: application/json\r\n{header}Content-Length: {len(body)}"
        self._transport.write(f"HTTP/1.1 {status}\r\n{about}\r\n\r\n".encode() + body)


async def serve() -> None:
    """Listen on a free port of loopback until the process is ended."""
    counts = Counts()
    server = await asyncio.get_running_loop().create_server(lambda: Connection(counts), "127.0.0.1", 0)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    async with server:
        await anyio.sleep_forever()


if __name__ == "__main__":
    anyio.run(serve, backend_options=EVENT_LOOP)
