"""MCP clients by hand, of both eras, over HTTP and over stdio: all that reaches them is noted, word for word.

`connect_http` and `connect_stdio` give a `HandClient` that is ready. It answers questions as its `answers` say: a
request of the gateway's in the handshake era, `input_required` and a retry in that of 2026-07-28.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import anyio
import anyio.abc
from anyio.streams.buffered import BufferedByteReceiveStream

Json = dict[str, Any]

HANDSHAKE, NEWEST = "2025-11-25", "2026-07-28"
OF_MCP = "io.modelcontextprotocol/"
PATIENCE = 8.0
"""Seconds until a client gives up. Nothing that is waited for here takes a tenth of it."""
NAMED_BY = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}

CAPABILITIES: dict[str, Json] = {
    era: {"roots": roots, "sampling": {"tools": {}, "context": {}}, "elicitation": {"form": {}, "url": {}}}
    for era, roots in ((HANDSHAKE, {"listChanged": True}), (NEWEST, {}))
}


class Refused(Exception):
    """The answer is a JSON-RPC error."""

    def __init__(self, error: Json) -> None:
        super().__init__(f"{error.get('code')}: {error.get('message')}")
        self.error = error


@dataclass
class Pending:
    """A request under way."""

    id: int
    method: str
    answer: Json | None = None
    heard: list[Json] = field(default_factory=list)
    """Notifications that came before the answer."""
    done: anyio.Event = field(default_factory=anyio.Event)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)

    @property
    def is_acknowledged(self) -> bool:
        """Whether the server took it as a stream of `subscriptions/listen`."""
        acknowledged = [one for one in self.heard if one["method"] == "notifications/subscriptions/acknowledged"]
        return any(_params(one)["_meta"][f"{OF_MCP}subscriptionId"] == self.id for one in acknowledged)


class HandClient:
    """One client. `heard` are the notifications and `asked` the questions that reached it, in order.

    Args:
        answers: by method, the result or (under `error`) the error that it answers a question with; a function is given
            the params. None leaves it unanswered.
    """

    def __init__(self, era: str, tasks: anyio.abc.TaskGroup, capabilities: Json | None = None) -> None:
        self.era, self._tasks = era, tasks
        self.capabilities = CAPABILITIES[era] if capabilities is None else capabilities
        self.patience = PATIENCE
        self.answers: dict[str, Any] = {}
        self.heard: list[Json] = []
        self.asked: list[Json] = []
        self.welcome: Json = {}
        self.pending: dict[Any, Pending] = {}
        self._next = 0
        self._news = anyio.Event()
        self._line: _Line

    @property
    def is_newest(self) -> bool:
        return self.era == NEWEST

    async def start(self, line: _Line) -> None:
        self._line = line
        if self.is_newest:
            self.welcome = await self.request("server/discover")
            return
        who = {"name": "by-hand", "version": "1"}
        params = {"protocolVersion": self.era, "capabilities": self.capabilities, "clientInfo": who}
        self.welcome = await self.request("initialize", params)
        await self.notify("notifications/initialized")
        await line.ready()

    # --- requests

    async def call(self, tool: str, meta: Json | None = None, **arguments: Any) -> Json:
        """The result of a tool; its questions are answered on the way."""
        return await self.request("tools/call", {"name": tool, "arguments": arguments}, meta)

    async def request(self, method: str, params: Json | None = None, meta: Json | None = None) -> Json:
        """The result of a request.

        Raises:
            Refused: it is an error.
        """
        return result_of(await self.exchange(method, params, meta))

    async def exchange(self, method: str, params: Json | None = None, meta: Json | None = None) -> Pending:
        """A request with its answer; where that is `input_required`, the retry with all that was asked."""
        heard: list[Json] = []
        more: Json = {}
        for _ in range(4):
            pending = await self.begin(method, (params or {}) | more, meta)
            with anyio.fail_after(self.patience):
                await pending.done.wait()
            heard += pending.heard
            result = (pending.answer or {}).get("result") or {}
            if result.get("resultType") != "input_required":
                break
            state = {"requestState": result["requestState"]} if "requestState" in result else {}
            more = {"inputResponses": await self._responses(result.get("inputRequests") or {}), **state}
        pending.heard = heard
        return pending

    async def _responses(self, questions: Json) -> Json:
        return {key: (await self._answer(asked))["result"] for key, asked in questions.items()}

    async def begin(self, method: str, params: Json | None = None, meta: Json | None = None) -> Pending:
        """Send a request and wait for nothing."""
        self._next += 1
        params = dict(params or {})
        meta = {**(meta or {}), **(self._envelope() if self.is_newest else {})}
        if meta:
            params["_meta"] = meta
        pending = self.pending[self._next] = Pending(self._next, method)
        message = {"jsonrpc": "2.0", "id": self._next, "method": method, "params": params}
        await self._line.send(message, pending)
        return pending

    def _envelope(self) -> Json:
        return {
            f"{OF_MCP}protocolVersion": NEWEST,
            f"{OF_MCP}clientInfo": {"name": "by-hand", "version": "1"},
            f"{OF_MCP}clientCapabilities": self.capabilities,
        }

    async def notify(self, method: str, params: Json | None = None) -> None:
        params = params if params is not None or not self.is_newest else {}
        await self._line.send({"jsonrpc": "2.0", "method": method} | ({"params": params} if params else {}), None)

    async def give_up(self, pending: Pending) -> None:
        """Cancel a request, in the way of the era and the line."""
        await self._line.give_up(self, pending)

    @asynccontextmanager
    async def listening(self, **wanted: Any) -> AsyncIterator[Pending]:
        """A stream of `subscriptions/listen`, acknowledged."""
        pending = await self.begin("subscriptions/listen", {"notifications": wanted})
        try:
            await self.until(lambda: pending.is_acknowledged or pending.done.is_set())
            if pending.answer is not None:
                result_of(pending)
            yield pending
        finally:
            with anyio.CancelScope(shield=True):
                await self.give_up(pending)

    # --- what comes in

    async def receive(self, message: Json) -> None:
        if "method" not in message:
            pending = self.pending.pop(message.get("id"), None)
            if pending is not None:
                pending.answer = message
                pending.done.set()
        elif "id" in message:
            self._tasks.start_soon(self._respond, message)
        else:
            self._note(message)
        self._news.set()
        self._news = anyio.Event()

    def _note(self, message: Json) -> None:
        self.heard.append(message)
        for pending in self.pending.values():
            pending.heard.append(message)

    async def _respond(self, question: Json) -> None:
        answer = await self._answer(question)
        if answer is not None:
            await self._line.send({"jsonrpc": "2.0", "id": question["id"], **answer}, None)

    async def _answer(self, question: Json) -> Json | None:
        """The answer to a question, as `{"result": …}` or `{"error": …}`."""
        self.asked.append(question)
        self._news.set()
        self._news = anyio.Event()
        method = question["method"]
        known = self.answers.get(method, {} if method == "ping" else _UNKNOWN)
        known = known(question.get("params") or {}) if callable(known) else known
        return known if known is None or "error" in known else {"result": known}

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that came makes the condition true."""
        with anyio.fail_after(self.patience):
            while not condition():
                await self._news.wait()

    async def notified(self, method: str, **params: Any) -> Json:
        """The first notification of a method whose params hold these; waits for it."""

        def found() -> list[Json]:
            return [one for one in self.heard if one["method"] == method and params.items() <= _params(one).items()]

        try:
            await self.until(lambda: bool(found()))
        except TimeoutError:
            raise TimeoutError(f"{method} {params} did not come") from None
        return found()[0]


_UNKNOWN = {"error": {"code": -32601, "message": "this client does not know the method"}}


def _params(message: Json) -> Json:
    params: Json = message.get("params") or {}
    return params


def result_of(pending: Pending) -> Json:
    assert pending.answer is not None
    if "error" in pending.answer:
        raise Refused(pending.answer["error"])
    result: Json = pending.answer["result"]
    return result


# ------------------------------------------------------------------------------------------------------------- lines


class _Line:
    """How a client's messages travel."""

    async def send(self, message: Json, pending: Pending | None) -> None: ...

    async def ready(self) -> None: ...

    async def give_up(self, client: HandClient, pending: Pending) -> None:
        client.pending.pop(pending.id, None)
        if not pending.done.is_set():
            await client.notify("notifications/cancelled", {"requestId": pending.id, "reason": "not needed"})


class _HttpLine(_Line):
    def __init__(
        self, client: HandClient, http: aiohttp.ClientSession, url: str, headers: Mapping[str, str], tasks: Any
    ) -> None:
        self._client, self._http, self._url, self._own, self._tasks = client, http, url, headers, tasks
        self._session: str | None = None
        self._standing = anyio.Event()

    async def send(self, message: Json, pending: Pending | None) -> None:
        if pending is None:
            await self._post(message)
        else:
            self._tasks.start_soon(self._carry, message, pending)

    async def _carry(self, message: Json, pending: Pending) -> None:
        with pending.scope:
            await self._post(message)
        if not pending.done.is_set() and not pending.scope.cancel_called:
            await self._client.receive(
                {"id": pending.id, "error": {"code": 0, "message": "the stream ended without an answer"}}
            )

    async def _post(self, message: Json) -> None:
        async with self._http.post(self._url, json=message, headers=self._headers(message)) as response:
            self._session = response.headers.get("Mcp-Session-Id", self._session)
            await self._read(response)

    async def _read(self, response: aiohttp.ClientResponse) -> None:
        if response.content_type == "text/event-stream":
            async for line in response.content:
                if line.startswith(b"data:") and line[5:].strip():
                    await self._client.receive(json.loads(line[5:]))
        elif (body := await response.read()).strip():
            message = json.loads(body)
            if "id" in message:
                await self._client.receive(message)

    def _headers(self, message: Json) -> dict[str, str]:
        headers = {**self._own, "Accept": "application/json, text/event-stream"}
        if message.get("method") != "initialize":
            headers["MCP-Protocol-Version"] = self._client.era
        if self._session is not None:
            headers["Mcp-Session-Id"] = self._session
        if self._client.is_newest and "method" in message:
            headers["Mcp-Method"] = message["method"]
            if (key := NAMED_BY.get(message["method"])) is not None:
                headers["Mcp-Name"] = message["params"][key]
        return headers

    async def ready(self) -> None:
        """The standing stream, on which comes what belongs to no request."""
        self._tasks.start_soon(self._stand)
        await self._standing.wait()

    async def _stand(self) -> None:
        async with self._http.get(self._url, headers=self._headers({"method": ""})) as response:
            self._standing.set()
            await self._read(response)

    async def give_up(self, client: HandClient, pending: Pending) -> None:
        if client.is_newest:
            client.pending.pop(pending.id, None)
            pending.scope.cancel()  # the end of the stream says it
        else:
            await super().give_up(client, pending)

    async def end(self) -> None:
        if self._session is not None:
            async with self._http.delete(self._url, headers=self._headers({"method": ""})):
                self._session = None


@asynccontextmanager
async def connect_http(
    url: str,
    era: str,
    *,
    headers: Mapping[str, str] | None = None,
    capabilities: Json | None = None,
    says_goodbye: bool = True,
) -> AsyncIterator[HandClient]:
    """A client over streamable HTTP. One that does not say goodbye leaves all its streams cut."""
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with (
        aiohttp.ClientSession(timeout=timeout, connector=connector, read_bufsize=2**26) as http,
        anyio.create_task_group() as tasks,
    ):
        client = HandClient(era, tasks, capabilities)
        line = _HttpLine(client, http, url, headers or {}, tasks)
        await client.start(line)
        try:
            yield client
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(PATIENCE):
                if says_goodbye:
                    await line.end()
            tasks.cancel_scope.cancel()


class _StdioLine(_Line):
    def __init__(self, client: HandClient, process: anyio.abc.Process) -> None:
        self._client, self._process, self._lock = client, process, anyio.Lock()

    async def send(self, message: Json, pending: Pending | None) -> None:
        assert self._process.stdin is not None
        async with self._lock:
            await self._process.stdin.send(json.dumps(message).encode() + b"\n")

    async def read(self) -> None:
        assert self._process.stdout is not None
        lines = BufferedByteReceiveStream(self._process.stdout)
        while True:
            try:
                line = await lines.receive_until(b"\n", 2**26)
            except (anyio.IncompleteRead, anyio.EndOfStream, anyio.ClosedResourceError):
                return
            await self._client.receive(json.loads(line))


@asynccontextmanager
async def connect_stdio(
    command: list[str], env: Mapping[str, str], era: str, *, capabilities: Json | None = None
) -> AsyncIterator[HandClient]:
    """A client over stdio, with a process of its own."""
    async with (
        await anyio.open_process(command, env=dict(env), stderr=None) as process,
        anyio.create_task_group() as tasks,
    ):
        client = HandClient(era, tasks, capabilities)
        line = _StdioLine(client, process)
        tasks.start_soon(line.read)
        await client.start(line)
        try:
            yield client
        finally:
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                assert process.stdin is not None
                await process.stdin.aclose()
                with anyio.move_on_after(PATIENCE):
                    await process.wait()
                if process.returncode is None:
                    process.kill()
