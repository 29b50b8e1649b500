"""A listener: one client that hears of what changes, in its own time.

A handshake client is one for as long as its session lasts; a 2026-07-28 client for each `subscriptions/listen` that it
has open. `subscriptions` puts notifications into a listener's mailbox and never waits: a client that does not read
costs nobody anything. `composition.relay` makes listeners and empties the mailboxes of streams.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from dataclasses import replace

import anyio
from anyio.abc import TaskGroup

from providers.caller import Caller, ClientSessions, MethodsFor
from providers.errors import CallerError
from providers.identity import Identity
from providers.lines import Json

logger = logging.getLogger(__name__)

MAX_SUBSCRIPTIONS = 1_000
"""Resources that one listener may be subscribed to."""

MAX_STREAMS = 100
"""`subscriptions/listen` streams that one user may have open."""

MAX_WAITING = 2_000
"""Notifications that wait for a client. Equal ones count once: each says "ask again"."""


class Mailbox:
    """Notifications that wait for one client, in order. One about the same thing replaces the one that waits."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str], Json] = {}
        self._news = anyio.Event()
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, method: str, params: Json) -> bool:
        """Whether there was room."""
        key = (method, str(params.get("uri", "")))
        if self._is_closed or (key not in self._waiting and len(self._waiting) >= MAX_WAITING):
            return False
        self._waiting[key] = params
        self._news.set()
        return True

    def close(self) -> None:
        """Nothing more comes; what waits is still handed out."""
        self._is_closed = True
        self._news.set()

    async def __aiter__(self) -> AsyncIterator[tuple[str, Json]]:
        while self._waiting or not self._is_closed:
            if not self._waiting:
                self._news = anyio.Event()
                await self._news.wait()
            if self._waiting:
                key = next(iter(self._waiting))
                yield key[0], self._waiting.pop(key)


class Listener:
    """One client that hears of changes.

    Args:
        identity: who it is now; what it may hear is asked anew each time.
        kinds: the `…/list_changed` notifications that it wants; a handshake client gets those another way.
    """

    def __init__(self, caller: Caller, identity: Callable[[], Identity], kinds: frozenset[str] = frozenset()) -> None:
        self.kinds = kinds
        self.mailbox = Mailbox()
        self.is_over = False
        self._caller, self._identity = caller, identity
        self._subscriptions: dict[tuple[str, str], Callable[[], None]] = {}

    def __repr__(self) -> str:
        return f"<Listener {'modern' if self.caller.is_modern else 'handshake'} {len(self._subscriptions)} resources>"

    @property
    def identity(self) -> Identity:
        return self._identity()

    @property
    def caller(self) -> Caller:
        """On whose behalf a backend is asked: in the roles that the user has now."""
        return replace(self._caller, identity=self.identity)

    def begin(self, server: str, uri: str, end: Callable[[], None]) -> None:
        """Note a subscription, and how it is ended.

        Raises:
            CallerError: it has too many, or is not there any more.
        """
        if self.is_over:
            raise CallerError("this session has ended.")
        if len(self._subscriptions) >= MAX_SUBSCRIPTIONS:
            raise CallerError(
                f"this session is subscribed to {MAX_SUBSCRIPTIONS:,} resources, the most that it may be. "
                "Unsubscribe from some first."
            )
        self._subscriptions[(server, uri)] = end

    def done(self, server: str, uri: str) -> None:
        """A subscription is over."""
        self._subscriptions.pop((server, uri), None)

    def tell(self, method: str, params: Json) -> None:
        """Have the client told. Whoever does not read for so long loses its stream, or the notification."""
        if not self.mailbox.put(method, params) and not self.is_over:
            logger.warning("a client does not read what it listens to; %s is lost", method)
            if self.caller.is_modern:
                self.mailbox.close()

    def end(self) -> None:
        """The client has gone, and its subscriptions with it."""
        self.is_over = True
        self.mailbox.close()
        for end in list(self._subscriptions.values()):
            end()


class Listeners:
    """The listeners of all clients."""

    def __init__(self, sessions: ClientSessions) -> None:
        self._sessions = sessions
        self._of_sessions: dict[str, Listener] = {}
        self._streams: set[Listener] = set()
        self._tasks: TaskGroup | None = None

    def __repr__(self) -> str:
        return f"<Listeners {len(self._of_sessions)} sessions, {len(self._streams)} streams>"

    def start(self, tasks: TaskGroup) -> None:
        """Deliver in this task group from now on."""
        self._tasks = tasks
        self._of_sessions.clear()  # of an event loop that is gone
        self._streams.clear()

    def stop(self, server: str | None = None) -> None:
        """End all streams, or those that came for one server: their clients are told so, and come back if they like."""
        for stream in list(self._streams):
            if server in (None, stream.caller.server):
                stream.mailbox.close()

    # --- handshake clients: one for each session

    def find(self, caller: Caller) -> Listener | None:
        """The listener of the caller's session, if there is one yet."""
        return self._of_sessions.get(caller.session)

    def of_session(self, caller: Caller) -> Listener:
        """The listener of the caller's session."""
        listener = self.find(caller)
        if listener is None:
            listener = Listener(caller, lambda: self._sessions.identity_of(caller))
            self._of_sessions[caller.session] = listener
            assert self._tasks is not None, "the gateway does not run"
            # In a context of its own: it outlives the request that it is made in, and is to know nothing of it.
            Context().run(self._tasks.start_soon, self._deliver, listener)
        return listener

    async def _deliver(self, listener: Listener) -> None:
        async for method, params in listener.mailbox:
            await self._sessions.tell(listener.caller, method, params)

    def end_session(self, session: str) -> None:
        """A client's session ended."""
        listener = self._of_sessions.pop(session, None)
        if listener is not None:
            listener.end()

    # --- 2026-07-28: one for each stream

    @contextmanager
    def stream(self, caller: Caller, kinds: frozenset[str]) -> Iterator[Listener]:
        """A listener for the length of the block.

        Raises:
            CallerError: this user has too many.
        """
        own = sum(stream.caller.identity.key == caller.identity.key for stream in self._streams)
        if own >= MAX_STREAMS:
            raise CallerError(f"you have {MAX_STREAMS} streams open, the most that a user may have. Close some first.")
        listener = Listener(caller, lambda: caller.identity, kinds)
        self._streams.add(listener)
        try:
            yield listener
        finally:
            self._streams.discard(listener)
            listener.end()

    def announce(self, methods_for: MethodsFor) -> None:
        """Tell each stream which lists changed, as far as its user is concerned and wants to know."""
        for stream in list(self._streams):
            for method in methods_for(stream.identity, stream.caller.server):
                if method in stream.kinds:
                    stream.tell(method, {})
