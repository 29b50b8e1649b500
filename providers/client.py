"""Opens a session with one backend: a FastMCP client over one of our wires.

The pool comes in through `open_session`. Below is a wire (bytes, caps, death);
between the two FastMCP's client negotiates the protocol era, numbers requests and matches answers. What a backend
sends by itself never reaches FastMCP's client: it is taken off the wire here, in order, and given to the session.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectSendStream
from fastmcp import Client
from fastmcp.client.transports.base import ClientTransport
from mcp import ClientSession
from mcp.shared.message import SessionMessage
from pydantic import ValidationError

from providers import lines
from providers.errors import BackendError, BackendProtocolError, BackendTimeout, BackendUnavailable
from providers.identity import Identity
from providers.lines import Json, MCPError
from providers.resource import McpServerResource, TransportType
from providers.session import BackendSession
from providers.wire import WIRE_ERROR_CODE, Message, OpenWire, Wire, error_answer

logger = logging.getLogger(__name__)

_NO_HANDSHAKE = (-32022, -32601, -32602, -32600)


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

    def __init__(self, open_wire: OpenWire, session: BackendSession, identity: Identity | None) -> None:
        self._server = session.server
        self._open_wire, self._session, self._identity = open_wire, session, identity
        self.wire: Wire | None = None

    @asynccontextmanager
    async def connect_session(self, **options: Any) -> AsyncIterator[ClientSession]:
        options.pop("transport_options", None)
        answers, read = anyio.create_memory_object_stream[SessionMessage | Exception](0)

        async def deliver(message: Message) -> None:
            if "method" in message and message["method"] != "ping":
                await self._session.receive(message)
            else:
                await _forward(self._server, answers, message)

        async with answers, read, anyio.create_task_group() as tasks, self._open_wire(deliver) as wire:
            self.wire, wire.identity = wire, self._identity
            self._session.connected(wire, tasks)
            tasks.start_soon(_close_with, wire, answers)
            async with lines.ForwardingSession(read, _Outbox(wire), **options) as session:
                yield session
            tasks.cancel_scope.cancel()


async def _forward(server: str, answers: MemoryObjectSendStream[SessionMessage | Exception], message: Message) -> None:
    try:
        item = lines.to_session_message(message)
    except ValidationError:
        if "method" in message or not isinstance(message.get("id"), int | str):
            logger.debug("server '%s': a message that is not JSON-RPC was dropped", server)
            return
        error = BackendProtocolError(server, "gave an answer that is not what MCP prescribes.")
        item = lines.to_session_message(error_answer(message["id"], error))  # who asked need not wait any longer
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        await answers.send(item)


async def _close_with(wire: Wire, answers: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
    """A dead wire ends the stream of answers, so that every pending request fails at once."""
    await wire.closed.wait()
    await answers.aclose()


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
    prefers_modern: bool = False,
    era: Any = None,
) -> AsyncIterator[BackendSession]:
    """Connect to a backend and agree on a protocol era.

    Args:
        identity: on whose behalf the session is opened; None where it will serve many.
        capabilities: what the client behind this session can be asked; exactly that is declared to the backend.
        on_change: told each `…/list_changed` method that the backend sends.
        deadline: seconds for connecting and negotiating together.
        prefers_modern: which era to try first: the client's own, so that it finds what it would find directly (a
            session that keeps state, or the 2026-07-28 way of asking). The other one is taken where it has no other.
        era: `era` of an earlier session with the same server, so that it is negotiated once.

    Raises:
        BackendTimeout: not done within the deadline.
        BackendUnavailable: no connection, or the backend ended it.
        BackendProtocolError: the backend does not speak MCP.
    """
    opening = _Opening(resource, open_wire, identity, capabilities, on_change)
    try:
        try:
            with anyio.fail_after(deadline):
                await opening.connect(lines.era_options(era, prefers_modern=prefers_modern))
                if opening.wrong_era:
                    await opening.connect(lines.era_options(None, prefers_modern=True))
        except TimeoutError:
            raise BackendTimeout(resource.name, _too_slow(deadline)) from None
        yield opening.finished()
    finally:
        with anyio.CancelScope(shield=True), anyio.move_on_after(resource.timeouts.shutdown + 1):
            await opening.close()


class _Opening:
    """The attempts to open one session."""

    def __init__(
        self,
        resource: McpServerResource,
        open_wire: OpenWire,
        identity: Identity | None,
        capabilities: frozenset[str],
        on_change: Callable[[str], None],
    ) -> None:
        self._resource, self._capabilities = resource, capabilities
        self._session = BackendSession(resource, on_change)
        self._transport = _WireTransport(open_wire, self._session, identity)
        # SSE predates the 2026-07-28 era, and a server in this process keeps its state by session.
        self._transport.legacy_only = resource.transport_type in (TransportType.SSE, TransportType.PYTHON)
        self._client: Client[Any] | None = None
        self._failure: BackendError | None = None
        self.wrong_era = False

    async def connect(self, era: Json) -> None:
        """Make one attempt; how it ended is in `finished` and `wrong_era`."""
        await self.close()
        self._failure, self.wrong_era = None, False
        self._client = Client(self._transport, init_timeout=0, **_declare(self._capabilities), **era)
        try:
            await self._client.__aenter__()  # type: ignore[no-untyped-call]
        except (RuntimeError, MCPError, OSError, ValidationError, BackendError, ExceptionGroup) as error:
            self._client = None  # it cleaned up after itself, and closing it would raise the same error again
            self._failure = _why_not_open(self._resource.name, self._transport.wire, error)
            self.wrong_era = era.get("mode") == "legacy" and _is_refusal(error)

    def finished(self) -> BackendSession:
        """The open session.

        Raises:
            BackendError: the last attempt failed.
        """
        if self._failure is not None:
            raise self._failure
        assert self._client is not None
        self._session.agreed(self._client)
        return self._session

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        self._session.end()
        try:
            await client.close()  # type: ignore[no-untyped-call]
        except (RuntimeError, MCPError, OSError, BackendError, ExceptionGroup) as error:
            logger.debug("server '%s': its session did not end cleanly (%r)", self._resource.name, error)


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


def _is_refusal(error: BaseException) -> bool:
    """Whether the backend itself answered a handshake with an error, as one without handshakes does."""
    answers = [cause for cause in _causes(error) if isinstance(cause, MCPError)]
    return any(lines.error_data(answer)["code"] in _NO_HANDSHAKE for answer in answers)


def _backend_error_in(error: BaseException) -> BackendError | None:
    return next((cause for cause in _causes(error) if isinstance(cause, BackendError)), None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, the members of its groups, and what caused each; a member may well name its group as its context."""
    waiting, seen = [error], set[int]()
    while waiting:
        error = waiting.pop(0)
        if id(error) in seen:
            continue
        seen.add(id(error))
        yield error
        inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
        waiting += [*inner, *(cause for cause in (error.__cause__, error.__context__) if cause is not None)]
