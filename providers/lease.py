"""A lease: a pooled connection for the length of one call, and the middleware that takes it.

The innermost middleware of a sub-server leases the caller's connection and puts it in a context variable; the
components of `backend` send through it. A lease that was given back is dead.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import anyio
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext

from providers import audit, lines
from providers.caller import Caller, ClientSessions, Front, front_of
from providers.connection import PooledConnection, Target
from providers.errors import BackendError, BackendLost, BackendTimeout, BackendUnavailable, InternalError, LeaseReleased
from providers.identity import current_identity
from providers.lines import Json, MCPError
from providers.parking import Asked, ParkableCall, ParkingLot, PassedOn, is_parked_state, unknown_state
from providers.pool import McpConnectionPool
from providers.rounds import Rounds
from providers.session import BackendSession

_REPEATABLE = frozenset(
    {
        "resources/read",
        "prompts/get",
        "completion/complete",
        "tools/list",
        "prompts/list",
        "resources/list",
        "resources/templates/list",
    }
)
"""Requests that only ask."""


class Lease:
    """A connection reserved for one caller."""

    def __init__(
        self, pool: McpConnectionPool, target: Target, caller: Caller, front: Front | None, *, may_evict: bool = True
    ) -> None:
        self._pool, self._target, self._caller, self.front = pool, target, caller, front
        self._may_evict = may_evict
        self._connection: PooledConnection | None = None

    def __repr__(self) -> str:
        return f"<Lease {self._target.resource.name} {'open' if self._connection else 'released'}>"

    @property
    def session(self) -> BackendSession:
        """The session behind the lease.

        Raises:
            LeaseReleased: the lease was given back.
        """
        session = self._held().session
        assert session is not None, "a connection was leased before it was open"
        return session

    @property
    def connection(self) -> PooledConnection:
        """The connection that is leased now; a request that has to be sent again may take another one.

        Raises:
            LeaseReleased: the lease was given back.
        """
        return self._held()

    def _held(self) -> PooledConnection:
        if self._connection is None:
            raise LeaseReleased(f"server '{self._target.resource.name}': this lease was given back")
        return self._connection

    async def request(
        self, method: str, params: Json, *, deadline: float | None = None, is_repeatable: bool = False
    ) -> Json:
        """Send one request; see `BackendSession.request`. What was provably not sent is sent once more, on a new
        connection; so is what may be done twice, if the backend was lost before it answered.

        Args:
            is_repeatable: a second time changes nothing, although the method by itself does not say so.

        Raises:
            LeaseReleased: the lease was given back.
        """
        try:
            return await self._request(method, params, deadline)
        except BackendError as error:
            may_repeat = is_repeatable or method in _REPEATABLE
            if not error.not_sent and not (may_repeat and isinstance(error, BackendLost)):
                raise
        self._pool.retire(self._held())  # others may still have calls on it
        self._give_back()
        await self.open()
        return await self._request(method, params, deadline)

    async def _request(self, method: str, params: Json, deadline: float | None) -> Json:
        connection = self._held()
        try:
            result = await self.session.request(method, params, self.front, deadline=deadline)
        except BackendTimeout:
            if self.front is not None or connection.in_use == 1:  # a listing may wait behind a long call
                self._pool.suspect(connection)
            raise
        except MCPError:  # an error is an answer
            self._pool.succeeded(connection)
            raise
        self._pool.succeeded(connection)
        return result

    async def open(self) -> None:
        """Reserve a connection; one that was idle for long is asked first whether it is still there."""
        for _ in range(2):
            self._connection = await self._pool.acquire(self._target, self._caller, may_evict=self._may_evict)
            if not self._is_stale(self._connection) or await self._still_there():
                return
        raise BackendUnavailable(self._target.resource.name, "does not answer. Try again.", not_sent=True)

    def _is_stale(self, connection: PooledConnection) -> bool:
        if connection.in_use > 1:
            return False  # it works for another call, and may well answer nothing meanwhile
        quiet_since = max(connection.last_used_at, connection.checked_at)
        return anyio.current_time() - quiet_since > self._pool.limits.check_after

    async def _still_there(self) -> bool:
        connection = self._held()
        alive = await self._pool.answers(connection)
        if not alive:
            self._pool.condemn(connection)
            self._give_back()
        return alive

    def _give_back(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.release(connection)

    def close(self) -> None:
        self._give_back()


@asynccontextmanager
async def lease(
    pool: McpConnectionPool, target: Target, caller: Caller, front: Front | None = None, *, may_evict: bool = True
) -> AsyncIterator[Lease]:
    """A connection for the body of the context.

    Raises:
        PoolExhausted, BackendUnavailable, BackendTimeout: there is none to be had.
    """
    held = Lease(pool, target, caller, front, may_evict=may_evict)
    try:
        await held.open()
        yield held
    finally:
        held.close()


class Way(Protocol):
    """How a call reaches its backend: a lease, or what stands in for one where two eras meet."""

    @property
    def request(self) -> Callable[..., Awaitable[Json]]: ...


CALLS = frozenset({"tools/call", "resources/read", "prompts/get"})
"""The requests that a backend works at; everything else is answered from memory."""

_LEASED = CALLS | {"completion/complete"}

_current: ContextVar[Way] = ContextVar("apollos_lease")


def current_lease() -> Way:
    """The lease of the call that runs now, or what stands in for it.

    Raises:
        LeaseReleased: no call runs here.
    """
    try:
        return _current.get()
    except LookupError:
        raise LeaseReleased("a backend's component was used outside of a call") from None


class PoolMiddleware(Middleware):
    """Innermost of a sub-server: a leased session for the length of each call.

    Args:
        parking: where the calls go on whose client cannot be sent questions; without it they are refused.
    """

    def __init__(
        self,
        pool: McpConnectionPool,
        sessions: ClientSessions,
        target: Callable[[], Target],
        parking: ParkingLot | None = None,
    ) -> None:
        self._pool, self._sessions, self._target, self._parking = pool, sessions, target, parking

    async def __call__(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        if context.method not in _LEASED:
            return await call_next(context)
        identity = current_identity()
        if identity is None:
            raise InternalError("a call reached the pool without an identity")
        caller = self._sessions.caller(context.fastmcp_context, identity)
        async with self._way(context, caller, front_of(context.fastmcp_context, caller)) as way:
            token = _current.set(way)
            try:
                return await call_next(context)
            finally:
                _current.reset(token)

    @asynccontextmanager
    async def _way(self, context: MiddlewareContext[Any], caller: Caller, front: Front | None) -> AsyncIterator[Way]:
        """How this call reaches the backend, as the eras of its client and of the backend want it."""
        target = self._target()
        call = self._parked(target, context, front)
        held = Lease(self._pool, target, caller, front)
        try:
            if call is None:
                await held.open()
                audit.served_by(held.connection.label)
                call = self._to_be_parked(held, target, context, caller, front)
            yield call or _direct_way(held, target, caller, front)
        finally:
            if call is not None:
                call.leave()
            else:
                held.close()

    def _parked(self, target: Target, context: MiddlewareContext[Any], front: Front | None) -> ParkableCall | None:
        """The parked call that this one takes up, if it is a retry of one.

        Raises:
            ProtocolError: there is none.
        """
        request = context.fastmcp_context
        state = lines.continuation(request).get("requestState") if request is not None else None
        if context.method not in CALLS or not is_parked_state(state):
            return None
        if front is None or self._parking is None:
            raise unknown_state()
        return self._parking.claim(state, front, _asked(target, context))

    def _to_be_parked(
        self, held: Lease, target: Target, context: MiddlewareContext[Any], caller: Caller, front: Front | None
    ) -> ParkableCall | None:
        """A call that its backend may ask about, and whose client has to be asked in another way."""
        is_crossing = caller.is_modern and not held.session.is_modern and context.method in CALLS
        if not is_crossing or front is None or not caller.capabilities:
            return None
        if self._parking is None or not self._parking.is_open:
            return None
        return self._parking.begin(held, front, _asked(target, context), target.resource.timeouts.question)


def _direct_way(held: Lease, target: Target, caller: Caller, front: Front | None) -> Way:
    if caller.is_modern:
        return PassedOn(held)
    if held.session.is_modern:
        return Rounds(held, target.resource.name, front, target.resource.timeouts.call_max)
    return held


def _asked(target: Target, context: MiddlewareContext[Any]) -> Asked:
    message = context.message
    named = message.uri if context.method == "resources/read" else message.name
    arguments = json.dumps(getattr(message, "arguments", None) or {}, sort_keys=True, default=str)
    return Asked(target.resource.name, str(context.method), str(named), arguments)
