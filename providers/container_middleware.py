"""`DockerMiddleware`: third of a sub-server, between the store and the pool.

A call to a server in a container is refused here at once while its image is not there, so that nobody waits for a
download; otherwise the launcher hears that the container is in use, and stops none that is. The container itself is
started by the launcher, before the pool opens a session over it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext

from providers.caller import ClientSessions
from providers.connection import Target, whose_for
from providers.container_launcher import ContainerLauncher
from providers.identity import current_identity

_CALLS = frozenset({"tools/call", "resources/read", "prompts/get", "completion/complete", "resources/subscribe"})


class DockerMiddleware(Middleware):
    def __init__(self, sessions: ClientSessions, target: Callable[[], Target]) -> None:
        self._sessions, self._target = sessions, target

    async def __call__(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        target = self._target()
        launcher, identity = target.open_wire, current_identity()
        if not isinstance(launcher, ContainerLauncher) or context.method not in _CALLS or identity is None:
            return await call_next(context)
        launcher.check()
        caller = self._sessions.caller(context.fastmcp_context, identity)
        with launcher.in_use(whose_for(target, caller)):
            return await call_next(context)
