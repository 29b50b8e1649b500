"""The middleware of all front servers: what concerns all calls at once.

It remembers each client's log level, counts the calls under way, refuses new ones while the gateway drains, and ends
those whose user may not read their server any more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import anyio
from fastmcp.exceptions import NotFoundError
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext

from composition.registry import Registry
from composition.token_watch import TokenWatch
from composition.view import View
from providers import audit, lines, verbatim
from providers.direct import DirectServer
from providers.errors import BackendError, BackendTimeout, GatewayError, NotAuthenticated, ProtocolError
from providers.identity import Identity
from providers.lease import CALLS
from providers.store import absence

_SHUTTING_DOWN = "the gateway is shutting down. Connect again in a moment."
_TOKEN_ENDED = "its token is not valid any more, or stands for other roles now. Call again, with a new one if need be."
_FAREWELL_SECONDS = 1.0
"""What a call that is ended gets to say so."""


@dataclass(eq=False, slots=True)
class _Call:
    """One call under way: at which server, and on whose behalf."""

    server: str
    identity: Identity | None
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    has_lost_access: bool = False


class RootMiddleware(Middleware):
    """
    Args:
        watch: ends calls whose token stops being valid.
    """

    def __init__(self, registry: Registry, watch: TokenWatch | None = None) -> None:
        self._registry, self._watch = registry, watch or TokenWatch(None)
        self._calls: set[_Call] = set()
        self._idle = anyio.Event()
        self._is_draining = False

    @property
    def calls(self) -> int:
        """Calls under way."""
        return len(self._calls)

    async def drain(self, deadline: float) -> None:
        """Refuse new calls and wait `deadline` seconds for those under way; then end them with an error."""
        self._is_draining = True
        await self._until_idle(deadline)
        for call in list(self._calls):
            call.scope.cancel()
        await self._until_idle(_FAREWELL_SECONDS)

    async def _until_idle(self, deadline: float) -> None:
        if self._calls:
            self._idle = anyio.Event()
            with anyio.move_on_after(deadline):
                await self._idle.wait()

    def review(self) -> None:
        """Servers or roles changed: end the calls whose users may not make them any more. Their clients are answered
        as if there were no such server, which is what they see from now on."""
        for call in self._calls:
            if call.identity is not None and not self._registry.may_use(call.server, call.identity):
                call.has_lost_access = True
                call.scope.cancel()

    def resume(self) -> None:
        """Take calls again."""
        self._is_draining = False

    async def __call__(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        if context.method == "logging/setLevel":
            return await self._set_log_level(context, call_next)
        if context.method not in CALLS:
            return await super().__call__(context, call_next)
        if self._is_draining:
            raise GatewayError(_SHUTTING_DOWN)
        call = _Call(_server_of(context), self._identity())
        with call.scope, self._watch.holding(call.scope.cancel):
            self._calls.add(call)
            try:
                return await call_next(context)
            except ProtocolError as error:
                raise lines.mcp_error(error.code, str(error), error.data) from None
            except BackendError as error:
                audit.note("timeout" if isinstance(error, BackendTimeout) else "unavailable")
                raise
            except NotFoundError:
                _refuse_unknown_tool(context)
                raise
            finally:
                self._calls.discard(call)
                if not self._calls:
                    self._idle.set()
        if call.has_lost_access and (unknown := absence(context)) is not None:
            _refuse_unknown_tool(context)
            raise unknown
        raise GatewayError(f"the call was ended: {_SHUTTING_DOWN if self._is_draining else _TOKEN_ENDED}")

    def _identity(self) -> Identity | None:
        try:
            return self._registry.identity()
        except NotAuthenticated:
            return None

    async def _set_log_level(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        result = await call_next(context)  # first: FastMCP refuses a level that there is none of
        message, request = context.message, context.fastmcp_context
        level = message.get("level") if isinstance(message, dict) else getattr(message, "level", None)
        if isinstance(level, str) and request is not None:
            lines.remember_log_level(request, level)
            await self._registry.want_log_level(level)
        return result


def _server_of(context: MiddlewareContext[Any]) -> str:
    """The server that a call is for, by the names of the front server that it came to. Of a request that the SDK has
    refused already FastMCP still passes the raw message through here."""
    front = context.fastmcp_context.fastmcp if context.fastmcp_context else None
    assert isinstance(front, DirectServer) and isinstance(front.only, View), "only front servers have this middleware"
    key, message = "uri" if context.method == "resources/read" else "name", context.message
    asked = str(message.get(key) if isinstance(message, dict) else getattr(message, key, None))
    return front.only.server_of_uri(asked) if key == "uri" else front.only.server_of(asked)


def _refuse_unknown_tool(context: MiddlewareContext[Any]) -> None:
    """FastMCP makes a tool's text of it, unlike of those of the others."""
    if context.method == "tools/call":
        verbatim.refuse(lines.mcp_error(verbatim.INVALID_PARAMS, f"Unknown tool: {context.message.name}"))
