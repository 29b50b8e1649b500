"""`PooledConnection`: one open backend session as the pool sees it, and the values around it. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple
from uuid import uuid4

import anyio

from providers.caller import Caller
from providers.resource import Isolation, McpServerResource
from providers.session import BackendSession
from providers.wire import OpenWire


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """One generation of a resource, and how its sessions are opened.

    `on_change` is told the caller that a connection belongs to, and the `…/list_changed` method that the backend sent;
    the method is empty when a connection was opened again after it had died.
    """

    resource: McpServerResource
    generation: int
    open_wire: OpenWire
    on_change: Callable[[Caller, str], None] = lambda caller, method: None

    @property
    def key(self) -> tuple[str, int]:
        return (self.resource.name, self.generation)


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
    return Key(*target.key, f"{whose_for(target, caller)};{era};{','.join(sorted(caller.capabilities))}")


class ConnectionState(StrEnum):
    CONNECTING = "connecting"
    IDLE = "idle"
    ACTIVE = "active"
    DRAINING = "draining"
    CLOSING = "closing"
    CLOSED = "closed"


@dataclass(slots=True, eq=False)
class PooledConnection:
    """One session with a backend. `holder` is the client session whose calls it serves now."""

    target: Target
    key: Key
    opener: Caller
    created_at: float
    last_used_at: float
    checked_at: float
    state: ConnectionState = ConnectionState.CONNECTING
    in_use: int = 0
    served: int = 0
    holder: str | None = None
    session: BackendSession | None = None
    closing: anyio.Event = field(default_factory=anyio.Event)

    @property
    def server(self) -> str:
        return self.key.server

    @property
    def generation(self) -> int:
        return self.key.generation

    @property
    def ends_with_session(self) -> str | None:
        """The client session at whose end this connection ends, too."""
        own = self.target.resource.isolation is Isolation.SESSION and self.opener.has_session
        return self.opener.session if own else None

    def idle_limit(self, usual: float) -> float:
        """Seconds after which it is closed when nobody uses it."""
        return self.target.resource.idle_stop or usual

    def serves(self, caller: Caller) -> bool:
        """Whether a call of this caller may run on it now."""
        if self.state is ConnectionState.IDLE:
            return True
        return self.state is ConnectionState.ACTIVE and self.holder == caller.session

    def __repr__(self) -> str:
        return f"<PooledConnection {self.server}#{self.generation} {self.state} in_use={self.in_use}>"


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
