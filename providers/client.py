"""A session with one backend: opens FastMCP clients over our wires, dictionary in, dictionary out.

The pool comes in through `open_session` and calls `BackendSession.request`. Below is a wire (bytes, caps, death);
between the two FastMCP's client negotiates the protocol era, numbers requests and matches answers. What a backend
sends by itself never reaches FastMCP's client: it is taken off the wire here, in order, and passed to the front of the
call that it belongs to.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any

import anyio
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream
from fastmcp import Client
from fastmcp.client.transports.base import ClientTransport
from mcp import ClientSession
from mcp.shared.message import SessionMessage
from pydantic import ValidationError

from providers import lines
from providers.caller import CallClock, Front
from providers.errors import BackendError, BackendProtocolError, BackendTimeout, BackendUnavailable
from providers.identity import IDENTITY_META_KEY, Identity, build_identity_meta
from providers.lines import Json, MCPError
from providers.resource import McpServerResource, Timeouts, TransportType
from providers.wire import NOT_SENT, WIRE_ERROR_CODE, Message, OpenWire, Wire

logger = logging.getLogger(__name__)

_QUESTIONS = {"sampling/createMessage": "sampling", "elicitation/create": "elicitation", "roots/list": "roots"}
_REFUSED = {"code": -32601, "message": "The client that made this call cannot be asked this."}


class _Outbox:
    """What FastMCP's client writes, put on the wire in the writer's own task: back-pressure reaches the caller."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def send(self, item: SessionMessage) -> None:
        message, headers = lines.from_session_message(item)
        await self._wire.send(message, headers)

    async def aclose(self) -> None:
        return None

    async def __aenter__(self) -> _Outbox:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class _WireTransport(ClientTransport):
    """FastMCP's view of a wire."""

    def __init__(self, open_wire: OpenWire, inbox: Callable[[Message], Any], identity: Identity | None) -> None:
        self._open_wire, self._inbox, self._identity = open_wire, inbox, identity
        self.wire: Wire | None = None
        self.tasks: TaskGroup

    @asynccontextmanager
    async def connect_session(self, **options: Any) -> AsyncIterator[ClientSession]:
        options.pop("transport_options", None)
        answers, read = anyio.create_memory_object_stream[SessionMessage | Exception](0)

        async def deliver(message: Message) -> None:
            if "method" in message and message["method"] != "ping":
                await self._inbox(message)
            else:
                await _forward(answers, message)

        async with answers, read, anyio.create_task_group() as self.tasks, self._open_wire(deliver) as wire:
            self.wire, wire.identity = wire, self._identity
            self.tasks.start_soon(_close_with, wire, answers)
            async with lines.ForwardingSession(read, _Outbox(wire), **options) as session:  # type: ignore[arg-type]
                yield session
            self.tasks.cancel_scope.cancel()


async def _forward(answers: MemoryObjectSendStream[SessionMessage | Exception], message: Message) -> None:
    try:
        item = lines.to_session_message(message)
    except ValidationError:
        logger.debug("dropped a message that is not JSON-RPC")
        return
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        await answers.send(item)


async def _close_with(wire: Wire, answers: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
    """A dead wire ends the stream of answers, so that every pending request fails at once."""
    await wire.closed.wait()
    await answers.aclose()


class BackendSession:
    """One open MCP session with a backend. `facts` is what the server said of itself."""

    def __init__(self, resource: McpServerResource, on_change: Callable[[str], None]) -> None:
        self.server = resource.name
        self.facts: Json = {}
        self._timeouts: Timeouts = resource.timeouts
        self._on_change = on_change
        self._fronts: dict[int, Front] = {}
        self._next_token = 0
        self._asked: dict[Any, anyio.CancelScope] = {}
        self._session: ClientSession
        self.start_soon: Callable[..., None]
        self.wire: Wire
        self.era: Any = None

    def __repr__(self) -> str:
        return f"<BackendSession {self.server} {self.facts.get('protocolVersion')} {len(self._fronts)} calls>"

    def attach(self, wire: Wire, client: Client[Any]) -> None:
        """Take over what FastMCP's client negotiated over the wire."""
        self.wire, self._session = wire, client.session
        self.facts, self.era = lines.server_facts(client), lines.era_memory(client)

    @property
    def is_modern(self) -> bool:
        return lines.is_modern_version(self.facts.get("protocolVersion"))

    # ------------------------------------------------------------------------------------------------------ requests

    async def request(self, method: str, params: Json, front: Front | None, *, deadline: float | None = None) -> Json:
        """Send one request and wait for the answer.

        Args:
            params: as the backend is to see them; `_meta` gets our progress token and, for a process, the identity.
            front: the client's request that waits; progress and questions go there.
            deadline: seconds without progress (the server's `call` timeout when None); progress extends it, up to
                `call_max`.

        Raises:
            MCPError: the backend answered with an error.
            BackendUnavailable: the connection ended; `not_sent` says whether the request may be sent again.
            BackendTimeout: no answer in time.
            BackendProtocolError: the answer is not MCP.
        """
        clock = CallClock(deadline or self._timeouts.call, self._timeouts.call_max)
        token = self._next_token = self._next_token + 1
        with clock.scope:
            if front is not None:
                front.clock, self._fronts[token] = clock, front
            try:
                return await self._send(method, self._with_meta(params, token if front else None))
            finally:
                self._fronts.pop(token, None)
        raise BackendTimeout(
            self.server,
            f"no answer to '{method}' {clock.waited}. The request was cancelled. "
            "If it needs longer, raise timeouts.call or timeouts.call_max of this server.",
        )

    def _with_meta(self, params: Json, token: int | None) -> Json:
        meta = dict(params.get("_meta") or {})
        if token is not None:
            meta["progressToken"] = token
        if self.wire.identity_in_meta and self.wire.identity is not None:
            meta[IDENTITY_META_KEY] = build_identity_meta(self.wire.identity)
        else:
            meta.pop(IDENTITY_META_KEY, None)  # only the gateway says who calls
        return {**params, "_meta": meta} if meta else {key: params[key] for key in params if key != "_meta"}

    async def _send(self, method: str, params: Json) -> Json:
        if self.wire.closed.is_set():
            raise self._death(not_sent=True)
        try:
            return await lines.send_raw(self._session, method, params or None)
        except MCPError as error:
            failure = self._own_failure(error)
            if failure is None:
                raise
            raise failure from None
        except ValidationError as error:
            raise BackendProtocolError(
                self.server, f"its answer to '{method}' is not what MCP prescribes ({error.error_count()} faults)."
            ) from None

    def _own_failure(self, error: MCPError) -> BackendError | None:
        """The failure of the wire or the session that an error stands for; None when the backend itself answered."""
        data = lines.error_data(error)
        if data["code"] == WIRE_ERROR_CODE:
            detail = data.get("data")
            problem = str(data["message"]).removeprefix(f"server '{self.server}': ")
            return BackendUnavailable(
                self.server, problem, not_sent=isinstance(detail, dict) and bool(detail.get(NOT_SENT))
            )
        return self._death(not_sent=False) if self.wire.closed.is_set() else None

    def _death(self, *, not_sent: bool) -> BackendError:
        failure = self.wire.failure
        problem = failure.problem if failure else "the connection was closed before the answer came. Try again."
        kind = type(failure) if failure else BackendUnavailable
        return kind(self.server, problem, not_sent=not_sent)

    async def ping(self, deadline: float) -> bool:
        """Whether the backend is there. The 2026-07-28 era has no ping; there a living wire must do."""
        if self.wire.closed.is_set():
            return False
        if self.is_modern:
            return True
        try:
            await self.request("ping", {}, None, deadline=deadline)
        except (BackendError, MCPError) as error:
            return isinstance(error, MCPError)  # an error answer is an answer
        return True

    # ------------------------------------------------------------------------------- what the backend sends by itself

    async def receive(self, message: Message) -> None:
        """Take one request or notification from the backend, in the order of the wire."""
        method, params = str(message["method"]), message.get("params") or {}
        if "id" in message:
            self.start_soon(self._answer, message["id"], method, params)
        elif method == "notifications/cancelled":
            scope = self._asked.get(params.get("requestId"))
            if scope is not None:
                scope.cancel()
        elif method == "notifications/progress":
            await self._progress(params)
        elif method == "notifications/message":
            front = self._caller()
            if front is not None:
                await self._tell(front.tell(method, params))
        elif method.endswith("/list_changed"):
            self._on_change(method)

    async def _progress(self, params: Json) -> None:
        token = params.get("progressToken")
        front = self._fronts.get(token) if isinstance(token, int) else None
        if front is not None:
            front.clock.touch()
            await self._tell(front.progress(params))

    async def _tell(self, sending: Awaitable[None]) -> None:
        try:
            await sending
        except (anyio.ClosedResourceError, anyio.BrokenResourceError, MCPError):
            logger.debug("server '%s': the client left before a notification reached it", self.server)

    def _caller(self) -> Front | None:
        """The front that an unaddressed message belongs to. All calls on a connection come from one client session;
        where the client's era has no sessions they may come from several windows of one user, and then it is nobody's
        unless there is just one."""
        fronts = list(self._fronts.values())
        if not fronts or (len(fronts) > 1 and not fronts[-1].caller.has_session):
            return None
        return fronts[-1]

    async def _answer(self, request_id: Any, method: str, params: Json) -> None:
        with anyio.CancelScope() as scope:
            self._asked[request_id] = scope
            try:
                answer = await self._ask(method, params)
            finally:
                self._asked.pop(request_id, None)
            with suppress(BackendError):
                await self.wire.send({"jsonrpc": "2.0", "id": request_id, **answer}, self._era_headers())

    async def _ask(self, method: str, params: Json) -> Json:
        front = self._caller()
        if front is None or _QUESTIONS.get(method) not in front.caller.capabilities:
            return {"error": _REFUSED}
        with front.clock.resting():
            try:
                return {"result": await front.ask(method, params)}
            except MCPError as error:
                return {"error": lines.error_data(error)}
            except (anyio.ClosedResourceError, anyio.BrokenResourceError):
                return {"error": _REFUSED}

    def _era_headers(self) -> Mapping[str, str]:
        version = self.facts.get("protocolVersion")
        return {"mcp-protocol-version": version} if version else {}


async def _never_asked(*_: Any) -> Any:
    """FastMCP's client declares what it has a handler for; the questions themselves never come this way."""
    raise AssertionError("questions are taken off the wire")


def _declare(capabilities: frozenset[str]) -> Json:
    handlers = {"elicitation": "elicitation_handler", "sampling": "sampling_handler", "roots": "roots"}
    return {handlers[name]: _never_asked for name in capabilities}


@asynccontextmanager
async def open_session(
    resource: McpServerResource,
    open_wire: OpenWire,
    *,
    identity: Identity | None = None,
    capabilities: frozenset[str] = frozenset(),
    on_change: Callable[[str], None] = lambda _: None,
    deadline: float = math.inf,
    era: Any = None,
) -> AsyncIterator[BackendSession]:
    """Connect to a backend and agree on a protocol era.

    Args:
        identity: on whose behalf the session is opened; None where it will serve many.
        capabilities: what the client behind this session can be asked; exactly that is declared to the backend.
        on_change: told each `…/list_changed` method that the backend sends.
        deadline: seconds for connecting and negotiating together.
        era: `era` of an earlier session with the same server, so that it is negotiated once.

    Raises:
        BackendTimeout: not done within the deadline.
        BackendUnavailable: no connection, or the backend ended it.
        BackendProtocolError: the backend does not speak MCP.
    """
    session = BackendSession(resource, on_change)
    transport = _WireTransport(open_wire, session.receive, identity)
    transport.legacy_only = resource.transport_type is TransportType.SSE  # it predates the 2026-07-28 era
    session.start_soon = lambda work, *args: transport.tasks.start_soon(work, *args)
    client = Client(transport, init_timeout=0, **_declare(capabilities), **lines.era_options(era))
    try:
        try:
            with anyio.fail_after(deadline):
                await client.__aenter__()
        except TimeoutError:
            raise BackendTimeout(resource.name, _too_slow(deadline)) from None
        except (RuntimeError, MCPError, OSError, ValidationError, BackendError, ExceptionGroup) as error:
            raise _why_not_open(resource.name, transport.wire, error) from None
        assert transport.wire is not None
        session.attach(transport.wire, client)
        yield session
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(resource.timeouts.shutdown + 1):
            await client.close()


def _too_slow(deadline: float) -> str:
    return (
        f"did not finish 'initialize' within {deadline:g} s. "
        "See its log; if it needs longer to start, raise timeouts.initialize or timeouts.first_start."
    )


def _why_not_open(server: str, wire: Wire | None, error: BaseException) -> BackendError:
    """The most telling reason why a session did not open, safe to show: ours if there is one."""
    ours = _backend_error_in(error) or (wire.failure if wire else None)
    if ours is not None:
        return type(ours)(server, ours.problem, not_sent=True)
    answer = next((cause for cause in _causes(error) if isinstance(cause, MCPError)), None)
    if answer is None:
        return BackendProtocolError(server, "answered 'initialize' with something that is not MCP.", not_sent=True)
    data = lines.error_data(answer)
    if data["code"] == WIRE_ERROR_CODE:
        return BackendUnavailable(server, str(data["message"]).removeprefix(f"server '{server}': "), not_sent=True)
    return BackendUnavailable(server, f"refused 'initialize' (MCP error {data['code']}). See its log.", not_sent=True)


def _backend_error_in(error: BaseException) -> BackendError | None:
    return next((cause for cause in _causes(error) if isinstance(cause, BackendError)), None)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                yield from _causes(inner)
        error = error.__cause__ or error.__context__
