"""`PooledConnection`: one open backend session as the pool sees it, and the values around it. No I/O."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple
from uuid import uuid4

import anyio

from providers.caller import Caller
from providers.errors import BackendError
from providers.identity import Identity
from providers.lines import Json
from providers.resource import Isolation, McpServerResource, TransportType
from providers.session import BackendSession
from providers.wire import OpenWire


async def _nobody_listens(caller: Caller, params: Json) -> None:
    return None


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """One generation of a resource, and how its sessions are opened.

    `on_change` is told the caller that a connection belongs to, and the `…/list_changed` method that the backend sent;
    the method is empty when a connection was opened again after it had died. `on_update` is told the key of a
    connection and the params of a `notifications/resources/updated` that came on it. `on_log` is told the caller whose
    session alone has a connection, and the params of a log message that came while no call ran on it.
    """

    resource: McpServerResource
    generation: int
    open_wire: OpenWire
    on_change: Callable[[Caller, str], None] = lambda caller, method: None
    on_update: Callable[[Key, Json], None] = lambda key, params: None
    on_log: Callable[[Caller, Json], Awaitable[None]] = _nobody_listens

    @property
    def key(self) -> tuple[str, int]:
        return (self.resource.name, self.generation)

    @property
    def longest_rest(self) -> float:
        """Seconds that it is left alone at most when it keeps failing. A remote server that comes back is to be seen
        within 10 s; to start a process again and again costs more."""
        if self.resource.is_container:
            return 60.0
        return 30.0 if self.resource.transport_type is TransportType.STDIO else 5.0


class Key(NamedTuple):
    """What a connection may be used for: calls with an equal key share it, others never do."""

    server: str
    generation: int
    scope: str

    @property
    def whose(self) -> str:
        return self.scope.partition(";")[0]


def whose_for(target: Target, caller: Caller) -> str:
    """With whom a caller shares a backend: nobody but its session, its user, everybody, or not even its next call."""
    match target.resource.isolation:
        case Isolation.SESSION:
            return caller.session
        case Isolation.USER:
            return f"user:{caller.identity.key}"
        case Isolation.SHARED:
            return "shared"
        case Isolation.CALL:
            return f"call:{uuid4().hex}"


def key_for(target: Target, caller: Caller) -> Key:
    """The key of a caller's connection. What the client can be asked, and how, is part of the scope: a backend that was
    told that it may ask is never handed to a client that cannot answer."""
    era = "modern" if caller.is_modern else "handshake"
    return Key(*target.key, f"{whose_for(target, caller)};{era};{caller.capabilities.text}")


_CLOSING_SECONDS = 1.0
"""How long a connection takes to close as a rule."""


class ConnectionState(StrEnum):
    CONNECTING = "connecting"
    IDLE = "idle"
    ACTIVE = "active"
    DRAINING = "draining"
    CLOSING = "closing"
    CLOSED = "closed"


@dataclass(slots=True, eq=False)
class PooledConnection:
    """One session with a backend. `holder` is the client session whose calls it serves now, and as whom: two tokens
    of one user may differ in their roles."""

    target: Target
    key: Key
    opener: Caller
    created_at: float
    last_used_at: float
    checked_at: float
    state: ConnectionState = ConnectionState.CONNECTING
    in_use: int = 0
    holder: tuple[str, Identity] | None = None
    is_suspect: bool = False
    """It is being asked whether it is still there; nobody gets it before it has answered."""
    has_served: bool = False
    """The backend has answered a call."""
    pins: int = 0
    """Why it stays open although nobody calls: subscriptions. Nobody is kept out by them."""
    closing_since: float = math.inf
    session: BackendSession | None = None
    opening: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    closing: anyio.Event = field(default_factory=anyio.Event)
    leaving: anyio.Event = field(default_factory=anyio.Event)
    """Nobody gets it any more: it is closing, or will be when its last call ends."""
    number: int = field(default_factory=itertools.count(1).__next__)

    @property
    def label(self) -> str:
        """What the audit calls it: its number, and the generation of its server."""
        return f"connection {self.number} of generation {self.generation}"

    @property
    def server(self) -> str:
        return self.key.server

    @property
    def generation(self) -> int:
        return self.key.generation

    @property
    def is_idle(self) -> bool:
        return self.state is ConnectionState.IDLE

    @property
    def is_open(self) -> bool:
        return self.state in (ConnectionState.IDLE, ConnectionState.ACTIVE, ConnectionState.DRAINING)

    @property
    def era_key(self) -> tuple[str, int, bool]:
        """What the protocol era of a server is remembered by: it may differ with what the client prefers."""
        return (*self.target.key, self.opener.is_modern)

    @property
    def ends_with_session(self) -> str | None:
        """The client session at whose end this connection ends, too."""
        own = self.target.resource.isolation is Isolation.SESSION and self.opener.has_session
        return self.opener.session if own else None

    def serves_session(self, session: str) -> bool:
        """Whether it is open, and calls of this client session come or came by it."""
        is_its_own = self.ends_with_session == session
        return self.is_open and self.session is not None and (is_its_own or session in self.session.log_levels)

    @property
    def is_missed(self) -> bool:
        """Whether somebody would notice that it is closed while it is idle."""
        return self.ends_with_session is not None or self.pins > 0

    def idle_limit(self, usual: float) -> float:
        """Seconds after which it is closed when nobody uses it."""
        return self.target.resource.idle_stop or usual

    @property
    def first_rest(self) -> float:
        """Seconds of rest after the first failure already: starting a container costs the whole machine, so that one
        which never served is started at most six times in its first minute."""
        return 1.0 if self.target.resource.is_container and not self.has_served else 0.0

    def is_about_to_be_gone(self, now: float) -> bool:
        """Whether its slot can be counted on; one that hangs while closing cannot."""
        return self.state is ConnectionState.CLOSING and now - self.closing_since < _CLOSING_SECONDS

    def serves(self, caller: Caller) -> bool:
        """Whether a call of this caller may run on it now."""
        if self.is_suspect:
            return False
        is_held_by_it = self.holder == (caller.session, caller.identity)
        return self.is_idle or (self.state is ConnectionState.ACTIVE and is_held_by_it)

    async def close_when_dead(self) -> None:
        assert self.session is not None
        await self.session.wire.closed.wait()
        self.leaving.set()
        self.closing.set()

    def __repr__(self) -> str:
        doubt = " suspect" if self.is_suspect else ""
        return f"<PooledConnection {self.server}#{self.generation} {self.state}{doubt} in_use={self.in_use}>"


@dataclass(slots=True, eq=False)
class Waiter:
    """A caller who waits for a connection: in the end there is either one, or an error."""

    target: Target
    key: Key
    caller: Caller
    may_evict: bool = True
    ready: anyio.Event = field(default_factory=anyio.Event)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    connection: PooledConnection | None = None
    error: BackendError | None = None

    def settle(self, connection: PooledConnection | None = None, error: BackendError | None = None) -> None:
        self.connection, self.error = connection, error
        self.ready.set()


class PoolLimits(NamedTuple):
    """Sizes in connections, times in seconds."""

    max_connections: int = 20
    acquire_timeout: float = 5.0
    idle_timeout: float = 300.0
    max_lifetime: float = 1800.0
    health_interval: float = 60.0
    check_after: float = 30.0


class PoolStatistics(NamedTuple):
    """Counts of connections now, of callers waiting, and of what happened since the start."""

    connecting: int
    idle: int
    active: int
    draining: int
    closing: int
    waiting: int
    leases: int
    max_connections: int
    opened: int
    failed: int
    evicted: int


def statistics_of(
    connections: Collection[PooledConnection], waiting: int, limits: PoolLimits, counts: Counter[str]
) -> PoolStatistics:
    """The statistics of a pool; `counts` are of what happened."""
    states = Counter(connection.state for connection in connections)
    return PoolStatistics(
        connecting=states[ConnectionState.CONNECTING],
        idle=states[ConnectionState.IDLE],
        active=states[ConnectionState.ACTIVE],
        draining=states[ConnectionState.DRAINING],
        closing=states[ConnectionState.CLOSING],
        waiting=waiting,
        leases=sum(connection.in_use for connection in connections),
        max_connections=limits.max_connections,
        opened=counts["opened"],
        failed=counts["failed"],
        evicted=counts["evicted"],
    )
