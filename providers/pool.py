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
from contextvars import Context
from types import TracebackType

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from providers.backoff import Backoff
from providers.caller import Caller
from providers.connection import (
    ConnectionState,
    Key,
    PooledConnection,
    PoolLimits,
    PoolStatistics,
    Target,
    Waiter,
    key_for,
    statistics_of,
)
from providers.errors import BackendError, BackendUnavailable, ClientGone, PoolExhausted
from providers.opener import Opener
from providers.resource import Isolation

logger = logging.getLogger(__name__)


class McpConnectionPool:
    """Open backend sessions, bounded. An async context manager: its body is the life of the pool."""

    def __init__(self, limits: PoolLimits | None = None) -> None:
        self.limits = limits or PoolLimits()
        self.backoff = Backoff(anyio.current_time)
        self._live: dict[Key, PooledConnection] = {}
        self._all: set[PooledConnection] = set()
        self._waiters: list[Waiter] = []
        self._opener = Opener()
        self._retired: dict[str, int] = {}
        self._counts: Counter[str] = Counter()
        self._tasks: TaskGroup | None = None
        self._forgotten = anyio.Event()

    def __repr__(self) -> str:
        return f"<McpConnectionPool {len(self._all)}/{self.limits.max_connections}, {len(self._waiters)} waiting>"

    async def __aenter__(self) -> McpConnectionPool:
        self._tasks, self._forgotten = anyio.create_task_group(), anyio.Event()
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
        return statistics_of(self._all, len(self._waiters), self.limits, self._counts)

    def connections(self, server: str | None = None) -> list[PooledConnection]:
        """The connections that are not closed yet, of one server or of all."""
        return [connection for connection in self._all if server in (None, connection.server)]

    # --- hand out, take back

    async def acquire(self, target: Target, caller: Caller, *, may_evict: bool = True) -> PooledConnection:
        """Reserve the caller's connection, opening it if there is none. Give it back with `release`.

        Args:
            may_evict: end a session whose client is still there, if that is the only way to make room.

        Raises:
            PoolExhausted: none became free within `acquire_timeout`. Opening has deadlines of its own.
            BackendError: it could not be opened, or the server rests after failures.
        """
        if self._tasks is None:
            raise BackendUnavailable(target.resource.name, "the gateway is shutting down.", not_sent=True)
        waiter = Waiter(target, key_for(target, caller), caller, may_evict)
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
                self._settle()  # who waited behind it may go on
        if waiter.error is not None:
            raise waiter.error
        if waiter.connection is None:
            raise self._exhausted(target)
        return waiter.connection

    def _exhausted(self, target: Target) -> PoolExhausted:
        why = f"all {self.limits.max_connections} are in use; raise max_connections"
        if len(self._all) < self.limits.max_connections:
            why = f"its one connection is busy with another client's call (isolation '{target.resource.isolation}')"
        waited = f"no connection became free within {self.limits.acquire_timeout:g} s"
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
                if self._is_spent(connection):
                    self._close(connection)
            elif connection.state is ConnectionState.DRAINING:
                self._close(connection)
        self._settle()

    def _is_spent(self, connection: PooledConnection) -> bool:
        """Whether nobody can use it once it is idle: it was for one call, its generation is over, or a call of somebody
        else was given up on it, of which the backend may still speak."""
        is_over = connection.generation <= self._retired.get(connection.server, 0)
        isolation = connection.target.resource.isolation
        is_tainted = connection.session is not None and connection.session.has_abandoned
        return is_over or isolation is Isolation.CALL or (isolation is Isolation.SHARED and is_tainted)

    def succeeded(self, connection: PooledConnection) -> None:
        """The backend answered: its past failures are forgotten."""
        connection.has_served = True
        self.backoff.succeeded(connection.target.key)

    # --- the one place to decide

    def _settle(self) -> None:
        wanting, queued = list[Waiter](), set[Key]()
        for waiter in list(self._waiters):
            connection = self._live.get(waiter.key)
            if connection is not None and connection.state is not ConnectionState.CONNECTING:
                if waiter.key not in queued and connection.serves(waiter.caller):
                    self._hand_out(waiter, connection)
                else:
                    queued.add(waiter.key)  # nobody overtakes it
                    self._limit(waiter)
            elif connection is not None and waiter.scope.deadline == math.inf:
                pass  # it waits for the opening, which has deadlines of its own
            elif refusal := self.backoff.refusal(waiter.target.key, is_tried=self._is_tried(waiter.target)):
                self._answer(waiter, error=refusal)
            elif connection is not None:
                waiter.scope.deadline = math.inf
            elif len(self._all) < self.limits.max_connections:
                self._open(waiter)
            else:
                wanting.append(waiter)
                self._limit(waiter)
        self._make_room(wanting)

    def _hand_out(self, waiter: Waiter, connection: PooledConnection) -> None:
        connection.state = ConnectionState.ACTIVE
        connection.in_use += 1
        connection.holder = (waiter.caller.session, waiter.caller.identity)
        if connection.session is not None:
            connection.session.wire.identity = waiter.caller.identity
        self._answer(waiter, connection)

    def _limit(self, waiter: Waiter) -> None:
        """Who waited for an opening, which has deadlines of its own, waits for something else now."""
        if waiter.scope.deadline == math.inf:
            waiter.scope.deadline = anyio.current_time() + self.limits.acquire_timeout

    def _is_tried(self, target: Target) -> bool:
        """Whether a connection to this generation of the server is being opened."""
        return any(each.state is ConnectionState.CONNECTING and each.target.key == target.key for each in self._all)

    def _answer(
        self, waiter: Waiter, connection: PooledConnection | None = None, error: BackendError | None = None
    ) -> None:
        self._waiters.remove(waiter)
        waiter.settle(connection, error)

    def _open(self, waiter: Waiter) -> None:
        assert self._tasks is not None
        now = anyio.current_time()
        connection = PooledConnection(waiter.target, waiter.key, waiter.caller, now, now, now)
        self._live[waiter.key] = connection
        self._all.add(connection)
        waiter.scope.deadline = math.inf
        # In a context of its own: the connection outlives the request that opened it, and is to know nothing of it.
        Context().run(self._tasks.start_soon, self._run, connection)

    def _make_room(self, wanting: list[Waiter]) -> None:
        """Retire the connection that was idle longest for each who waits for a slot, unless one is on its way."""
        if not wanting:  # each call comes by here; with many connections, looking at all of them is not free
            return
        now = anyio.current_time()
        on_its_way = sum(connection.is_about_to_be_gone(now) for connection in self._all)
        for waiter in wanting[on_its_way:]:
            idle = [each for each in self._all if each.is_idle and (waiter.may_evict or not each.is_missed)]
            if not idle:
                continue
            oldest = min(idle, key=lambda connection: (connection.pins > 0, connection.last_used_at))
            self._counts["evicted"] += 1
            if oldest.is_missed:
                logger.info("server '%s': made room by ending a session whose client is still there", oldest.server)
            self._close(oldest)

    def _close(self, connection: PooledConnection) -> None:
        """Begin to close; whatever still runs on it fails."""
        if connection.state is not ConnectionState.CLOSED:
            if connection.state is not ConnectionState.CLOSING:
                connection.closing_since = anyio.current_time()
            connection.state = ConnectionState.CLOSING
            if self._live.get(connection.key) is connection:
                del self._live[connection.key]
            connection.opening.cancel()
            connection.leaving.set()
            connection.closing.set()

    # --- the life of one connection

    async def _run(self, connection: PooledConnection) -> None:
        """Open a session, keep it until it is retired or dies, close it. The only task that touches its contexts."""
        error: BackendError | None = None
        try:
            async with self._opener.open(connection), anyio.create_task_group() as tasks:
                self._counts["opened"] += 1
                if connection.state is ConnectionState.CONNECTING:
                    connection.state = ConnectionState.IDLE
                    self._settle()
                if connection.state is ConnectionState.IDLE and self._is_spent(connection):
                    self._close(connection)  # its caller has gone meanwhile
                tasks.start_soon(connection.close_when_dead)
                await connection.closing.wait()
                error = self._cause_of_death(connection)
                self._close(connection)
                tasks.cancel_scope.cancel()
        except BackendError as failure:
            if not connection.closing.is_set():
                error = failure
        except Exception as failure:  # a task ends here: one connection's fault must not end the pool
            logger.exception("server '%s': a connection ended unexpectedly", connection.server, exc_info=failure)
            error = BackendUnavailable(connection.server, "the connection ended unexpectedly. See the gateway's log.")
        finally:
            self._forget(connection, error)

    def _cause_of_death(self, connection: PooledConnection) -> BackendError | None:
        wire = connection.session.wire if connection.session else None
        if wire is None or not wire.closed.is_set() or connection.state is ConnectionState.CLOSING:
            return None
        if not self._is_spent(connection):
            self._opener.distrust(connection)
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
        target, first = connection.target, connection.first_rest
        if error.is_of_server:
            self.backoff.failed(target.key, error, target.longest_rest, connection.created_at, first_rest=first)
        logger.log(logging.WARNING if self.backoff.is_news(error) else logging.DEBUG, "%s", error)
        if connection.session is not None:
            return  # it was open: who waits for its end may have the next one
        for waiter in [waiter for waiter in self._waiters if waiter.key == connection.key]:
            self._answer(waiter, error=error.again(not_sent=True))

    # --- retire, check, close

    def evict(self, server: str, *, before_generation: int) -> None:
        """Retire a server's connections of earlier generations: idle ones now, busy ones when released."""
        self._retired[server] = before_generation - 1
        for connection in self.connections(server):
            if connection.generation < before_generation:
                self.retire(connection)
        self._opener.forget(server, before_generation)
        self.backoff.forget(server, before_generation)
        for waiter in list(self._waiters):
            if waiter.key.server == server and waiter.key.generation < before_generation:
                self._answer(waiter, error=BackendUnavailable(server, "was changed meanwhile. Try again."))

    def retire(self, connection: PooledConnection) -> None:
        """Close a connection once nobody uses it."""
        if connection.state is ConnectionState.ACTIVE:
            connection.state = ConnectionState.DRAINING
            connection.leaving.set()
            if self._live.get(connection.key) is connection:
                del self._live[connection.key]
        elif connection.state in (ConnectionState.IDLE, ConnectionState.CONNECTING):
            self._close(connection)

    async def end_session(self, session: str) -> None:
        """A client's session ended: close what was its own, whatever still runs there."""
        for connection in self.connections():
            if connection.ends_with_session == session:
                self._close(connection)
            elif connection.session is not None:
                connection.session.log_levels.forget(session)
        for waiter in list(self._waiters):
            if waiter.caller.has_session and waiter.caller.session == session:
                self._answer(waiter, error=ClientGone(waiter.key.server))
        self._opener.forget_session(session)

    def suspect(self, connection: PooledConnection) -> None:
        """A call ran out of time: is the backend dead? Who comes meanwhile waits, so that no further call is lost."""
        if self._tasks is not None and not connection.is_suspect:
            connection.is_suspect = True
            self._tasks.start_soon(self._check, connection)

    async def health_check(self) -> None:
        """Close idle connections that are too old or were idle too long, unless somebody is subscribed on them, and
        those that do not answer a ping."""
        now = anyio.current_time()
        async with anyio.create_task_group() as checks:
            for connection in [each for each in self._all if each.is_idle and not each.is_suspect]:
                idle, age = now - connection.last_used_at, now - connection.created_at
                is_idle_too_long = idle > connection.idle_limit(self.limits.idle_timeout)
                if not connection.pins and (is_idle_too_long or age > self.limits.max_lifetime):
                    self._close(connection)
                elif now - max(connection.checked_at, connection.last_used_at) > self.limits.health_interval:
                    checks.start_soon(self._check, connection)

    async def _check(self, connection: PooledConnection) -> None:
        try:
            await self._ask_until_answered(connection)
        except Exception as fault:  # a task ends here: one connection's fault must not end the pool
            logger.exception("server '%s': its connection could not be checked", connection.server, exc_info=fault)
            self.condemn(connection)

    async def _ask_until_answered(self, connection: PooledConnection) -> None:
        """Ask until it answers, or until nobody is left to lose an answer: calls have deadlines of their own."""
        connection.is_suspect = True
        while connection.is_open and not await self.answers(connection):
            await checkpoint()  # a dead one answers without waiting
            if connection.is_open and connection.in_use == 0:
                logger.warning("server '%s' does not answer a ping; its connection is closed", connection.server)
                self.condemn(connection)
        connection.is_suspect = False
        self._settle()

    async def answers(self, connection: PooledConnection) -> bool:
        """Whether the backend answers a ping within its `list` timeout."""
        assert connection.session is not None
        alive = await connection.session.ping(connection.target.resource.timeouts.list)
        if alive:
            connection.checked_at = anyio.current_time()
        return alive

    def condemn(self, connection: PooledConnection) -> None:
        """Close a connection that proved unusable, now."""
        if connection.is_open:
            if not self._is_spent(connection):
                self._opener.distrust(connection)
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
