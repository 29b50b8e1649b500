"""A backend in memory, scripted in a few lines: the only fake, at the only border, `OpenWire`.

`FakeBackend` is a proper MCP server of the handshake era (or, when told, of the 2026-07-28 era) that speaks JSON-RPC
dictionaries. A test replaces single answers, holds opening or closing up, lets it die, and counts what happened.
`no_waiting` makes the running loop's timers go off as soon as nothing else is left to do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.abc import TaskGroup
from fastmcp import Client, FastMCP
from fastmcp.server.auth import AccessToken
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser

from providers.caller import Caller
from providers.connection import PoolLimits, Target
from providers.errors import BackendError, BackendUnavailable
from providers.identity import IDENTITY_META_KEY, Identity
from providers.lines import MODERN
from providers.pool import McpConnectionPool
from providers.resource import McpServerResource
from providers.wire import Deliver, Message, Wire

VERSION, MODERN_VERSION = "2025-11-25", "2026-07-28"
DAY = 24 * 3600.0

Json = dict[str, Any]

ALICE = Identity("alice", "Alice", frozenset({"engineer"}), "https://issuer.example")
BOB = Identity("bob", "Bob", frozenset({"engineer"}), "https://issuer.example")


def caller_of(identity: Identity = ALICE, session: str = "session:1", **more: Any) -> Caller:
    """A caller from a client session."""
    return Caller(identity, session, **more)


def modern_caller(identity: Identity = ALICE, **more: Any) -> Caller:
    """A caller of the 2026-07-28 era, which has no sessions."""
    return Caller(identity, f"user:{identity.key}", has_session=False, is_modern=True, **more)


@contextmanager
def signed_in(user: str, *, claims_have_subject: bool = True, **claims: Any) -> Iterator[None]:
    """Within the block requests carry a verified token, as FastMCP's authentication leaves one behind."""
    told = {"sub": user, **claims} if claims_have_subject else claims
    token = AccessToken(token="secret", client_id="client", scopes=[], subject=user, claims=told)
    reset = auth_context_var.set(AuthenticatedUser(token))
    try:
        yield
    finally:
        auth_context_var.reset(reset)


def client_of(server: FastMCP[Any], mode: str = "legacy", **handlers: Any) -> Client[Any]:
    """A real client in memory, of the handshake era unless `mode` says otherwise."""
    return Client(server, **handlers, **({"mode": mode} if MODERN else {}))


def tool(name: str, **more: Any) -> Json:
    """A tool as a server lists it."""
    return {"name": name, "inputSchema": {"type": "object"}, **more}


def text(value: str) -> Json:
    """A tool's result that is one text."""
    return {"content": [{"type": "text", "text": value}], "isError": False}


class Refusal(Exception):
    """Raised by an answer: the backend answers with this JSON-RPC error."""

    def __init__(self, code: int = -32603, message: str = "refused") -> None:
        super().__init__(message)
        self.error = {"code": code, "message": message}


class Silence(Exception):
    """Raised by an answer: the backend never answers this request."""


@dataclass
class Call:
    """One request as the backend got it."""

    wire: FakeWire
    message: Message
    identity: Identity | None

    @property
    def id(self) -> Any:
        return self.message["id"]

    @property
    def params(self) -> Json:
        return self.message.get("params") or {}

    @property
    def meta(self) -> Json:
        return self.params.get("_meta") or {}

    @property
    def arguments(self) -> Json:
        return self.params.get("arguments") or {}

    @property
    def user(self) -> str | None:
        """On whose behalf, as `_meta` says."""
        told = self.meta.get(IDENTITY_META_KEY)
        return told["userId"] if told else None

    async def progress(self, progress: float, **more: Any) -> None:
        params = {"progressToken": self.meta.get("progressToken"), "progress": progress, **more}
        await self.wire.say("notifications/progress", params)

    async def log(self, data: str, level: str = "info") -> None:
        await self.wire.say("notifications/message", {"level": level, "data": data})


Answer = Callable[[Call], Awaitable[Json]]


class FakeWire(Wire):
    """One open line to the fake; the end that the backend holds."""

    def __init__(self, backend: FakeBackend, deliver: Deliver, tasks: TaskGroup) -> None:
        super().__init__(backend.name)
        self.identity_in_meta = backend.identity_in_meta
        self.received: list[Message] = []
        self.cancelled: list[Any] = []
        self._backend, self._deliver, self._tasks = backend, deliver, tasks
        self._running: dict[Any, anyio.CancelScope] = {}
        self._answers: dict[Any, tuple[anyio.Event, list[Message]]] = {}
        self._next_question = 0

    def __repr__(self) -> str:
        return f"<FakeWire {self.server} {'closed' if self.closed.is_set() else 'open'}>"

    async def send(self, message: Message, headers: Mapping[str, str]) -> None:
        await anyio.lowlevel.checkpoint()
        if self.closed.is_set():
            raise BackendUnavailable(self.server, "is not there.", not_sent=True)
        if self._backend.before_send is not None:
            await self._backend.before_send(self, message)
        self.received.append(message)
        if message.get("method") == "notifications/cancelled":
            self._cancel(message["params"]["requestId"])
        elif "method" in message and "id" in message:
            self._tasks.start_soon(self._answer, Call(self, message, self.identity))
        elif asked := self._answers.get(str(message.get("id"))):
            event, answers = asked
            answers.append(message)
            event.set()
        self._backend.noticed()

    async def _answer(self, call: Call) -> None:
        with anyio.CancelScope() as self._running[call.id]:
            try:
                answer = {"result": await self._backend.answer(call)}
            except Refusal as refusal:
                answer = {"error": refusal.error}
            except Silence:
                return
            finally:
                self._running.pop(call.id, None)
            await self.deliver({"jsonrpc": "2.0", "id": call.id, **answer})

    def _cancel(self, request_id: Any) -> None:
        self.cancelled.append(request_id)
        if scope := self._running.get(request_id):
            scope.cancel()

    # --- what the backend does by itself

    async def deliver(self, message: Message) -> None:
        """Send any message to the gateway, however wrong."""
        if not self.closed.is_set():
            await self._deliver(message)

    async def say(self, method: str, params: Json | None = None) -> None:
        await self.deliver({"jsonrpc": "2.0", "method": method} | ({} if params is None else {"params": params}))

    async def ask(self, method: str, params: Json | None = None, request_id: Any = None) -> Message:
        """Ask the gateway's client something and give the whole answer."""
        self._next_question += 1
        request_id = request_id or f"q{self._next_question}"
        event, answers = self._answers[str(request_id)] = (anyio.Event(), [])
        await self.deliver({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params or {}})
        await event.wait()
        return answers[0]

    def die(self, problem: str = "has crashed.") -> None:
        """End as a process that crashes: pending calls fail, the wire is dead."""
        self.fail(BackendUnavailable(self.server, problem))


@dataclass
class FakeBackend:
    """A server. `answers` maps a method to what the test wants instead of the proper answer.

    Counts: `wires` are all that were ever opened, `open` those that are open now, `most_open` the peak, `attempts` how
    often one was asked for. Hooks: `before_open`, `before_close` and `before_send` are awaited, and may wait or raise.
    """

    name: str = "fake"
    tools: list[Json] = field(default_factory=lambda: [tool("echo")])
    answers: dict[str, Answer] = field(default_factory=dict)
    is_modern: bool = False
    knows_handshake: bool = True
    identity_in_meta: bool = True
    capabilities: Json = field(default_factory=lambda: {"tools": {"listChanged": True}, "logging": {}})
    instructions: str | None = None
    before_open: Callable[[], Awaitable[None]] | None = None
    before_close: Callable[[], Awaitable[None]] | None = None
    before_send: Callable[[FakeWire, Message], Awaitable[None]] | None = None
    wires: list[FakeWire] = field(default_factory=list)
    attempts: int = 0
    open: int = 0
    most_open: int = 0
    _news: anyio.Event = field(default_factory=anyio.Event)

    def resource(self, **more: Any) -> McpServerResource:
        return McpServerResource(name=self.name, command="fake", required_roles=("*",), **more)

    def target(self, generation: int = 1, on_change: Callable[..., None] = lambda *_: None, **more: Any) -> Target:
        return Target(self.resource(**more), generation, self.open_wire, on_change)

    @asynccontextmanager
    async def open_wire(self, deliver: Deliver) -> AsyncIterator[Wire]:
        self.attempts += 1
        self.noticed()
        if self.before_open is not None:
            await self.before_open()
        async with anyio.create_task_group() as tasks:
            wire = FakeWire(self, deliver, tasks)
            self.wires.append(wire)
            self.open += 1
            self.most_open = max(self.most_open, self.open)
            try:
                yield wire
            finally:
                with anyio.CancelScope(shield=True):
                    if self.before_close is not None:
                        await self.before_close()
                self.open -= 1
                wire.closed.set()
                tasks.cancel_scope.cancel()
                self.noticed()

    # --- what it answers

    async def answer(self, call: Call) -> Json:
        method = call.message["method"]
        if method in self.answers:
            result = await self.answers[method](call)
        elif method == "initialize" and self.knows_handshake:
            return {"protocolVersion": VERSION, **self._facts()}
        elif method == "server/discover" and self.is_modern:
            return self._modern({"supportedVersions": [MODERN_VERSION], **self._facts()})
        else:
            result = self._proper(method, call)
        return self._modern(result) if MODERN_VERSION in str(call.meta) else result

    def _facts(self) -> Json:
        facts = {"capabilities": self.capabilities, "serverInfo": {"name": self.name, "version": "1"}}
        return facts | ({"instructions": self.instructions} if self.instructions else {})

    def _modern(self, result: Json) -> Json:
        return {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"} | result

    def _proper(self, method: str, call: Call) -> Json:
        match method:
            case "ping":
                return {}
            case "tools/list":
                return {"tools": self.tools}
            case "resources/list":
                return {"resources": []}
            case "resources/templates/list":
                return {"resourceTemplates": []}
            case "prompts/list":
                return {"prompts": []}
            case "tools/call":
                return text(str(call.arguments.get("text", "")))
            case _:
                raise Refusal(-32601, f"no method '{method}'")

    # --- what a test sees

    @property
    def wire(self) -> FakeWire:
        """The newest one."""
        return self.wires[-1]

    def count(self, method: str) -> int:
        """How often a method came in, over all wires."""
        return sum(message.get("method") == method for wire in self.wires for message in wire.received)

    def noticed(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds of this backend."""
        with anyio.fail_after(60):
            while not condition():
                await self._news.wait()

    async def heard(self, method: str, times: int = 1) -> None:
        await self.until(lambda: self.count(method) >= times)


@asynccontextmanager
async def pool_of(**limits: Any) -> AsyncIterator[McpConnectionPool]:
    async with McpConnectionPool(PoolLimits()._replace(**limits)) as pool:
        yield pool


async def never(*_: Any) -> Any:
    """An answer, or a hook, that does not end by itself."""
    await anyio.sleep_forever()


def fails(error: BackendError) -> Callable[[], Awaitable[None]]:
    """A hook that raises."""

    async def hook() -> None:
        raise error

    return hook


def held(gate: anyio.Event) -> Callable[..., Awaitable[Any]]:
    """A hook that waits for a gate to open."""

    async def hook(*_: Any) -> None:
        await gate.wait()

    return hook


async def time_passes(seconds: float) -> None:
    """Let so much of the test's own time go by. Only within `no_waiting`: elsewhere it would be a wait."""
    assert "time" in vars(asyncio.get_running_loop()), "only within no_waiting"
    await anyio.sleep(seconds)


async def settled(turns: int = 50) -> None:
    """Let everything run that can run without time passing."""
    for _ in range(turns):
        await anyio.lowlevel.checkpoint()


@contextmanager
def no_waiting() -> Iterator[None]:
    """In the running loop an hour passes in a millisecond: when nothing else is left to do, the next timer goes off.
    Only for tests that are all in memory: a thread, a socket or a process needs time of its own."""
    loop: Any = asyncio.get_running_loop()
    selector, time, began = loop._selector, loop.time, loop.time()
    select, now = selector.select, began

    def leap(timeout: float | None = None) -> Any:
        nonlocal now
        events = select(0)
        if events or timeout == 0:
            return events
        if timeout is None or now - began > DAY:
            restore()
            raise AssertionError("a test waits for what never happens")
        now += timeout
        return events

    def restore() -> None:
        selector.select, loop.time = select, time

    selector.select, loop.time = leap, lambda: now
    try:
        yield
    finally:
        restore()
