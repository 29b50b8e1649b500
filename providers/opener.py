"""Opens the session of a pooled connection, and remembers between sessions what opening them has taught.

The pool comes in through `open`; `client` does the work. Remembered is, per server, which protocol era to begin with,
and which connections died, so that whoever gets one again hears that it is a new one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from providers.client import open_session
from providers.connection import Key, PooledConnection
from providers.errors import BackendUnavailable
from providers.resource import Isolation
from providers.wire import opened_by, opened_for


class Opener:
    """The pool's way to a session."""

    def __init__(self) -> None:
        self._eras: dict[tuple[str, int, bool], str | None] = {}
        self._died: set[Key] = set()

    def __repr__(self) -> str:
        return f"<Opener {len(self._eras)} eras known>"

    @asynccontextmanager
    async def open(self, connection: PooledConnection) -> AsyncIterator[None]:
        """The connection's session for the length of the block.

        Raises:
            BackendError: it could not be opened, or is not needed any more.
        """
        target, resource = connection.target, connection.target.resource
        timeouts = resource.timeouts
        identity = None if resource.isolation is Isolation.SHARED else connection.opener.identity
        opened_for.set(connection.key.whose)
        opened_by.set(connection.opener.identity)
        first = not any(known[:2] == target.key for known in self._eras)
        opening = open_session(
            resource,
            target.open_wire,
            identity=identity,
            capabilities=connection.opener.capabilities,
            on_change=lambda method: target.on_change(connection.opener, method),
            on_update=lambda params: target.on_update(connection.key, params),
            on_log=partial(target.on_log, connection.opener) if connection.ends_with_session else None,
            deadline=timeouts.first_start if first else timeouts.connect + timeouts.initialize,
            prefers_modern=connection.opener.is_modern,
            era=self._eras.get(connection.era_key),
        )
        async with AsyncExitStack() as stack:
            with connection.opening:
                connection.session = await stack.enter_async_context(opening)
            if connection.session is None:
                raise BackendUnavailable(connection.server, "is not needed any more.")
            self._eras[connection.era_key] = connection.session.era
            if connection.key in self._died:
                self._died.discard(connection.key)
                target.on_change(connection.opener, "")
            yield

    def distrust(self, connection: PooledConnection) -> None:
        """It died: whoever opens it again finds out anew what the server speaks, and what it offers."""
        self._died.add(connection.key)
        self._eras[connection.era_key] = None

    def forget(self, server: str, before_generation: int) -> None:
        """Earlier generations of a server are gone."""
        self._eras = {key: era for key, era in self._eras.items() if key[0] != server or key[1] >= before_generation}
        self._died = {key for key in self._died if key.server != server or key.generation >= before_generation}

    def forget_session(self, session: str) -> None:
        """A client's session ended."""
        self._died = {key for key in self._died if not key.scope.startswith(f"{session};")}
