"""The pool of open backend sessions.

Everything is decided in one synchronous step, `_settle`: it hands out, reserves, opens and retires, and leaves the I/O
to tasks that it starts. So there is no lock: on one event loop nothing can come in between. There is one connection
per key (server, generation, scope); it serves one call at a time, unless all its calls come from one client session.
Leases come in through `lease`; sessions are opened by `client`.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import Context
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple

import anyio
from anyio.abc import TaskGroup

from providers.backoff import Backoff, rest_for
from providers.caller import Caller
from providers.client import open_session
from providers.connection import ConnectionState, Key, PooledConnection, PoolStatistics, Target, key_for
from providers.errors import BackendError, BackendUnavailable, PoolExhausted
from providers.resource import Isolation
from providers.wire import opened_for

logger = logging.getLogger(__name__)


class PoolLimits(NamedTuple):
    """Sizes in connections, times in seconds."""

    max_connections: int = 20
    acquire_timeout: float = 5.0
    idle_timeout: float = 300.0
    max_lifetime: float = 1800.0
    health_interval: float = 60.0
    check_after: float = 30.0


@dataclass(slots=True, eq=False)
class _Waiter:
    target: Target
    key: Key
    caller: Caller
    ready: anyio.Event = field(default_factory=anyio.Event)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    connection: PooledConnection | None = None
    error: BackendError | None = None

    def settle(self, connection: PooledConnection | None = None, error: BackendError | None = None) -> None:
        self.connection, self.error = connection, error
        self.ready.set()


class McpConnectionPool:
    """Open backend sessions, bounded. An async context manager: its body is the life of the pool."""

    def __init__(self, limits: PoolLimits | None = None) -> None:
        self.limits = limits or PoolLimits()
        self.backoff = Backoff(anyio.current_time)
        self._live: dict[Key, PooledConnection] = {}
        self._all: set[PooledConnection] = set()
        self._waiters: list[_Waiter] = []
        self._eras: dict[tuple[str, int, bool], object] = {}
        self._died: set[Key] = set()
        self._counts: Counter[str] = Counter()
        self._tasks: TaskGroup | None = None
        self._forgotten = anyio.Event()

    def __repr__(self) -> str:
        return f"<McpConnectionPool {len(self._all)}/{self.limits.max_connections}, {len(self._waiters)} waiting>"

    async def __aenter__(self) -> McpConnectionPool:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._keep_healthy)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        tasks, self._tasks = self._tasks, None
        assert tasks is not None
        with anyio.CancelScope(shield=True):
            await self.close_all()
        tasks.cancel_scope.cancel()
        return await tasks.__aexit__(kind, error, trace)

    def statistics(self) -> PoolStatistics:
        states = Counter(connection.state for connection in self._all)
        return PoolStatistics(
            connecting=states[ConnectionState.CONNECTING],
            idle=states[ConnectionState.IDLE],
            active=states[ConnectionState.ACTIVE],
            draining=states[ConnectionState.DRAINING],
            closing=states[ConnectionState.CLOSING],
            waiting=len(self._waiters),
            leases=sum(connection.in_use for connection in self._all),
            max_connections=self.limits.max_connections,
            opened=self._counts["opened"],
            failed=self._counts["failed"],
            evicted=self._counts["evicted"],
        )

    def connections(self, server: str | None = None) -> list[PooledConnection]:
        """The connections that are not closed yet, of one server or of all."""
        return [connection for connection in self._all if server in (None, connection.server)]

    # --- hand out, take back

    async def acquire(self, target: Target, caller: Caller) -> PooledConnection:
        """Reserve the caller's connection, opening it if there is none. Give it back with `release`.

        Raises:
            PoolExhausted: none became free within `acquire_timeout`. Opening has deadlines of its own.
            BackendError: it could not be opened, or the server rests after failures.
        """
        if self._tasks is None:
            raise BackendUnavailable(target.resource.name, "the gateway is shutting down.", not_sent=True)
        waiter = _Waiter(target, key_for(target, caller), caller)
        waiter.scope.deadline = anyio.current_time() + self.limits.acquire_timeout
        self._waiters.append(waiter)
        self._settle()
        try:
            with waiter.scope:
                await waiter.ready.wait()
        except BaseException:
            if waiter.connection is not None:
                self.release(waiter.connection)
            raise
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
        if waiter.error is not None:
            raise waiter.error
        if waiter.connection is None:
            raise self._exhausted(target)
        return waiter.connection

    def _exhausted(self, target: Target) -> PoolExhausted:
        waited = f"no connection became free within {self.limits.acquire_timeout:g} s"
        if len(self._all) < self.limits.max_connections:
            why = f"its one connection is busy with another client's call (isolation '{target.resource.isolation}')"
        else:
            why = f"all {self.limits.max_connections} are in use; raise max_connections"
        return PoolExhausted(target.resource.name, f"{waited}: {why}. Try again later.", not_sent=True)

    def release(self, connection: PooledConnection) -> None:
        """Take a connection back; it may be handed to somebody else at once."""
        connection.in_use -= 1
        connection.last_used_at = anyio.current_time()
        if connection.in_use == 0:
            connection.holder = None
            if connection.session is not None and connection.target.resource.isolation is Isolation.SHARED:
                connection.session.wire.identity = None  # what it sends between calls is nobody's
            if connection.state is ConnectionState.ACTIVE:
                connection.state = ConnectionState.IDLE
                if connection.target.resource.isolation is Isolation.CALL:
                    self._close(connection)
            elif connection.state is ConnectionState.DRAINING:
                self._close(connection)
        self._settle()

    def succeeded(self, connection: PooledConnection) -> None:
        """The backend answered: its past failures are forgotten."""
        connection.served += 1
        self.backoff.succeeded(connection.target.key)

    # --- the one place to decide

    def _settle(self) -> None:
        wanted = 0
        for waiter in list(self._waiters):
            connection = self._live.get(waiter.key)
            if connection is not None and connection.state is not ConnectionState.CONNECTING:
                self._join(waiter, connection)
            elif connection is not None and waiter.scope.deadline == math.inf:
                pass  # it waits for the opening, which has deadlines of its own
            elif refusal := self.backoff.refusal(waiter.target.key, is_tried=self._is_tried(waiter.target)):
                self._answer(waiter, error=refusal)
            elif connection is not None:
                waiter.scope.deadline = math.inf
            elif len(self._all) < self.limits.max_connections:
                self._open(waiter)
            else:
                wanted += 1
        self._make_room(wanted)

    def _join(self, waiter: _Waiter, connection: PooledConnection) -> None:
        if connection.serves(waiter.caller):
            connection.state = ConnectionState.ACTIVE
            connection.in_use += 1
            connection.holder = waiter.caller.session
            if connection.session is not None:
                connection.session.wire.identity = waiter.caller.identity
            self._answer(waiter, connection)
        elif waiter.scope.deadline == math.inf:
            waiter.scope.deadline = anyio.current_time() + self.limits.acquire_timeout

    def _is_tried(self, target: Target) -> bool:
        """Whether a connection to this generation of the server is being opened."""
        return any(each.state is ConnectionState.CONNECTING and each.target.key == target.key for each in self._all)

    def _answer(
        self, waiter: _Waiter, connection: PooledConnection | None = None, error: BackendError | None = None
    ) -> None:
        self._waiters.remove(waiter)
        waiter.settle(connection, error)

    def _open(self, waiter: _Waiter) -> None:
        assert self._tasks is not None
        now = anyio.current_time()
        connection = PooledConnection(waiter.target, waiter.key, waiter.caller, now, now, now)
        self._live[waiter.key] = connection
        self._all.add(connection)
        waiter.scope.deadline = math.inf
        # In a context of its own: the connection outlives the request that opened it, and is to know nothing of it.
        Context().run(self._tasks.start_soon, self._run, connection)

    def _make_room(self, wanted: int) -> None:
        """Retire the connections that were idle longest, as many as callers wait for a slot and none is on its way."""
        wanted -= sum(connection.state is ConnectionState.CLOSING for connection in self._all)
        idle = [connection for connection in self._all if connection.state is ConnectionState.IDLE]
        for connection in sorted(idle, key=lambda connection: connection.last_used_at)[: max(0, wanted)]:
            self._counts["evicted"] += 1
            if connection.ends_with_session:
                logger.info(
                    "server '%s': made room by ending a session whose client is still there",
                    connection.server,
                )
            self._close(connection)

    def _close(self, connection: PooledConnection) -> None:
        """Begin to close; whatever still runs on it fails."""
        if connection.state is not ConnectionState.CLOSED:
            connection.state = ConnectionState.CLOSING
            if self._live.get(connection.key) is connection:
                del self._live[connection.key]
            connection.closing.set()

    # --- the life of one connection

    async def _run(self, connection: PooledConnection) -> None:
        """Open a session, keep it until it is retired or dies, close it. The only task that touches its contexts."""
        error: BackendError | None = None
        try:
            async with self._opened(connection), anyio.create_task_group() as tasks:
                self._counts["opened"] += 1
                if connection.state is ConnectionState.CONNECTING:
                    connection.state = ConnectionState.IDLE
                    self._settle()
                tasks.start_soon(_close_when_dead, connection)
                await connection.closing.wait()
                error = self._cause_of_death(connection)
                self._close(connection)
                tasks.cancel_scope.cancel()
        except BackendError as failure:
            error = failure
        except Exception as failure:  # a task ends here: one connection's fault must not end the pool
            logger.exception("server '%s': a connection ended unexpectedly", connection.server, exc_info=failure)
            error = BackendUnavailable(connection.server, "the connection ended unexpectedly. See the gateway's log.")
        finally:
            self._forget(connection, error)

    @asynccontextmanager
    async def _opened(self, connection: PooledConnection) -> AsyncIterator[None]:
        target, resource = connection.target, connection.target.resource
        timeouts = resource.timeouts
        era = (*target.key, connection.opener.is_modern)
        first = not any(known[:2] == target.key for known in self._eras)
        opened_for.set(connection.key.whose)
        async with AsyncExitStack() as stack:
            connection.session = await stack.enter_async_context(
                open_session(
                    resource,
                    target.open_wire,
                    identity=None if resource.isolation is Isolation.SHARED else connection.opener.identity,
                    capabilities=connection.opener.capabilities,
                    on_change=lambda method: target.on_change(connection.opener, method),
                    deadline=timeouts.first_start if first else timeouts.connect + timeouts.initialize,
                    prefers_modern=connection.opener.is_modern,
                    era=self._eras.get(era),
                )
            )
            self._eras[era] = connection.session.era
            if connection.key in self._died:
                self._died.discard(connection.key)
                target.on_change(connection.opener, "")
            yield

    def _cause_of_death(self, connection: PooledConnection) -> BackendError | None:
        wire = connection.session.wire if connection.session else None
        if wire is None or not wire.closed.is_set() or connection.state is ConnectionState.CLOSING:
            return None
        self._died.add(connection.key)
        return wire.failure or BackendUnavailable(connection.server, "the connection ended.")

    def _forget(self, connection: PooledConnection, error: BackendError | None) -> None:
        self._close(connection)
        connection.state = ConnectionState.CLOSED
        self._all.discard(connection)
        self._forgotten.set()
        self._forgotten = anyio.Event()
        if error is not None:
            self._failed(connection, error)
        self._settle()

    def _failed(self, connection: PooledConnection, error: BackendError) -> None:
        self._counts["failed"] += 1
        rest = rest_for(connection.target.resource, has_served=connection.served > 0)
        self.backoff.failed(connection.target.key, error, rest)
        logger.warning("%s", error)
        for waiter in [waiter for waiter in self._waiters if waiter.key == connection.key]:
            self._answer(waiter, error=type(error)(error.server, error.problem, not_sent=True))

    # --- retire, check, close

    def evict(self, server: str, *, before_generation: int | None = None) -> None:
        """Retire a server's connections, or those of earlier generations: idle ones now, busy ones when released."""
        for connection in self.connections(server):
            if before_generation is None or connection.generation < before_generation:
                self.retire(connection)
        for key in [key for key in self._eras if key[0] == server]:
            if before_generation is None or key[1] < before_generation:
                del self._eras[key]
        self._died = {key for key in self._died if key.server != server}

    def retire(self, connection: PooledConnection) -> None:
        """Close a connection once nobody uses it."""
        if connection.state is ConnectionState.ACTIVE:
            connection.state = ConnectionState.DRAINING
            if self._live.get(connection.key) is connection:
                del self._live[connection.key]
        elif connection.state in (ConnectionState.IDLE, ConnectionState.CONNECTING):
            self._close(connection)

    async def end_session(self, session: str) -> None:
        """A client's session ended: close what was its own, whatever still runs there."""
        for connection in self.connections():
            if connection.ends_with_session == session:
                self._close(connection)
        self._died = {key for key in self._died if not key.scope.startswith(f"{session};")}

    def suspect(self, connection: PooledConnection) -> None:
        """A call ran out of time: find out whether the backend is alive, and end it if it is not."""
        if self._tasks is not None:
            self._tasks.start_soon(self._check, connection)

    async def health_check(self) -> None:
        """Close idle connections that are too old or were idle too long, and those that do not answer a ping."""
        now = anyio.current_time()
        async with anyio.create_task_group() as checks:
            for connection in [each for each in self._all if each.state is ConnectionState.IDLE]:
                idle, age = now - connection.last_used_at, now - connection.created_at
                if idle > connection.idle_limit(self.limits.idle_timeout) or age > self.limits.max_lifetime:
                    self._close(connection)
                elif now - max(connection.checked_at, connection.last_used_at) > self.limits.health_interval:
                    checks.start_soon(self._check, connection)

    async def _check(self, connection: PooledConnection) -> None:
        if connection.session is None or await self.answers(connection):
            return
        logger.warning("server '%s' does not answer a ping; its connection is closed", connection.server)
        self._close(connection)

    async def answers(self, connection: PooledConnection) -> bool:
        """Whether the backend answers a ping within its `list` timeout."""
        assert connection.session is not None
        alive = await connection.session.ping(connection.target.resource.timeouts.list)
        if alive:
            connection.checked_at = anyio.current_time()
        return alive

    def condemn(self, connection: PooledConnection) -> None:
        """Close a connection that proved unusable, now."""
        self._close(connection)

    async def _keep_healthy(self) -> None:
        pause = max(0.05, min(self.limits.health_interval, self.limits.idle_timeout / 20))
        while True:
            await anyio.sleep(pause)
            await self.health_check()

    async def close_all(self) -> None:
        """Refuse who waits, close everything, and wait until it is closed; each backend has its shutdown deadline."""
        for waiter in list(self._waiters):
            self._answer(waiter, error=BackendUnavailable(waiter.key.server, "the gateway is shutting down."))
        longest = max((each.target.resource.timeouts.shutdown for each in self._all), default=0.0)
        for connection in list(self._all):
            self._close(connection)
        with anyio.move_on_after(longest + 2):
            while self._all:
                await self._forgotten.wait()


async def _close_when_dead(connection: PooledConnection) -> None:
    assert connection.session is not None
    await connection.session.wire.closed.wait()
    connection.closing.set()
