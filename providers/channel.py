"""The subscriptions over one backend connection: what is wanted, what the backend was asked to tell, and what is lost.

Values and events only: `subscriptions` makes channels, does the asking, and delivers.
"""

from __future__ import annotations

from enum import StrEnum

import anyio

from providers.caller import Caller
from providers.connection import Key, PooledConnection
from providers.errors import BackendError
from providers.listener import Listener

FIRST_PAUSE = 0.25
"""Seconds before a connection that ended is opened again; they double from failure to failure."""


class WatchState(StrEnum):
    NEW = "new"
    HELD = "held"
    LOST = "lost"


class Watch:
    """One resource that somebody wants to hear of."""

    def __init__(self) -> None:
        self.state = WatchState.NEW
        self.listeners: set[Listener] = set()
        self.tried = anyio.Event()
        self.error: Exception | None = None

    def settle(self, error: Exception | None = None) -> None:
        """The backend has answered; what was once held stays wanted, whatever it answers later."""
        if error is None or self.state is not WatchState.NEW:
            self.state = WatchState.HELD
        else:
            self.error = error
        self.tried.set()


class Channel:
    """The subscriptions over one backend connection."""

    def __init__(self, key: Key, caller: Caller) -> None:
        self.key, self.caller = key, caller
        self.watches: dict[str, Watch] = {}
        self.held: set[str] = set()
        """What the backend was asked to tell, on this connection."""
        self.connection: PooledConnection | None = None
        self.changed = anyio.Event()
        self.pause = FIRST_PAUSE
        self.is_over = False
        self._is_pinned = False

    def __repr__(self) -> str:
        return f"<Channel {self.key.server}#{self.key.generation} {len(self.watches)} wanted, {len(self.held)} held>"

    @property
    def missing(self) -> list[str]:
        return [uri for uri, watch in self.watches.items() if watch.state is not WatchState.HELD and not watch.error]

    @property
    def surplus(self) -> list[str]:
        return [uri for uri in self.held if uri not in self.watches]

    @property
    def is_new(self) -> bool:
        """Whether a client waits for the answer to its first request."""
        return any(watch.state is WatchState.NEW for watch in self.watches.values())

    @property
    def has_lost_connection(self) -> bool:
        return self.connection is not None and self.connection.leaving.is_set()

    def attach(self, connection: PooledConnection) -> None:
        if connection is not self.connection:
            self.detach()
            self.connection = connection

    def detach(self) -> None:
        """The connection is gone: what was held on it is lost."""
        for uri in self.held & self.watches.keys():
            self.watches[uri].state = WatchState.LOST
        self.held.clear()
        self.pin()
        self.connection = None

    def pin(self) -> None:
        """Keep the connection exactly as long as something is held on it."""
        if self.connection is not None and self._is_pinned != bool(self.held):
            self._is_pinned = bool(self.held)
            self.connection.pins += 1 if self._is_pinned else -1

    def fail(self, error: BackendError) -> None:
        """The backend cannot be asked: who waits for a first answer need not wait any longer."""
        for uri in self.missing:
            if self.watches[uri].state is WatchState.NEW:
                self.watches[uri].settle(error.again())

    async def wait(self, seconds: float | None = None) -> None:
        """Until something is wanted, or not any more, or the connection ends; at most for so many seconds."""
        with anyio.move_on_after(seconds):
            async with anyio.create_task_group() as tasks:
                if self.connection is not None and not self.has_lost_connection:
                    tasks.start_soon(self._notice, self.connection.leaving)
                await self.changed.wait()
                tasks.cancel_scope.cancel()

    async def _notice(self, leaving: anyio.Event) -> None:
        await leaving.wait()
        self.changed.set()
