"""A lease: a pooled connection for the length of one call, and the middleware that takes it.

The innermost middleware of a sub-server leases the caller's connection and puts it in a context variable; the
components of `backend` send through it. A lease that was given back is dead.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import anyio
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext

from providers.caller import Caller, ClientSessions, Front, front_of
from providers.connection import PooledConnection, Target
from providers.errors import BackendError, BackendTimeout, BackendUnavailable, InternalError, LeaseReleased
from providers.identity import current_identity
from providers.lines import Json, MCPError
from providers.pool import McpConnectionPool
from providers.session import BackendSession


class Lease:
    """A connection reserved for one caller."""

    def __init__(
        self, pool: McpConnectionPool, target: Target, caller: Caller, front: Front | None, *, may_evict: bool = True
    ) -> None:
        self._pool, self._target, self._caller, self._front = pool, target, caller, front
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

    def _held(self) -> PooledConnection:
        if self._connection is None:
            raise LeaseReleased(f"server '{self._target.resource.name}': this lease was given back")
        return self._connection

    async def request(self, method: str, params: Json, *, deadline: float | None = None) -> Json:
        """Send one request; see `BackendSession.request`. What was provably not sent is sent once more, on a new
        connection.

        Raises:
            LeaseReleased: the lease was given back.
        """
        try:
            return await self._request(method, params, deadline)
        except BackendError as error:
            if not error.not_sent:
                raise
        self._pool.retire(self._held())  # others may still have calls on it
        self._give_back()
        await self.open()
        return await self._request(method, params, deadline)

    async def _request(self, method: str, params: Json, deadline: float | None) -> Json:
        connection = self._held()
        try:
            result = await self.session.request(method, params, self._front, deadline=deadline)
        except BackendTimeout:
            if self._front is not None or connection.in_use == 1:  # a listing may wait behind a long call
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


CALLS = frozenset({"tools/call", "resources/read", "prompts/get"})
"""The requests that a backend works at; everything else is answered from memory."""

_current: ContextVar[Lease] = ContextVar("apollos_lease")


def current_lease() -> Lease:
    """The lease of the call that runs now.

    Raises:
        LeaseReleased: no call runs here.
    """
    try:
        return _current.get()
    except LookupError:
        raise LeaseReleased("a backend's component was used outside of a call") from None


class PoolMiddleware(Middleware):
    """Innermost of a sub-server: a leased session for the length of each call."""

    def __init__(self, pool: McpConnectionPool, sessions: ClientSessions, target: Callable[[], Target]) -> None:
        self._pool, self._sessions, self._target = pool, sessions, target

    async def __call__(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        if context.method not in CALLS:
            return await call_next(context)
        identity = current_identity()
        if identity is None:
            raise InternalError("a call reached the pool without an identity")
        request = context.fastmcp_context
        caller = self._sessions.caller(request, identity)
        async with lease(self._pool, self._target(), caller, front_of(request, caller)) as held:
            token = _current.set(held)
            try:
                return await call_next(context)
            finally:
                _current.reset(token)
