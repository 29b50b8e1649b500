"""The middleware of all front servers: what concerns all calls at once.

It remembers each client's log level, counts the calls under way, and refuses new ones while the gateway drains.
"""

from __future__ import annotations

from typing import Any

import anyio
from fastmcp.exceptions import NotFoundError
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext

from composition.registry import Registry
from providers import lines, verbatim
from providers.errors import GatewayError, ProtocolError
from providers.lease import CALLS

_SHUTTING_DOWN = "the gateway is shutting down. Connect again in a moment."
_FAREWELL_SECONDS = 1.0
"""What a call that is ended gets to say so."""


class RootMiddleware(Middleware):
    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._calls: set[anyio.CancelScope] = set()
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
            call.cancel()
        await self._until_idle(_FAREWELL_SECONDS)

    async def _until_idle(self, deadline: float) -> None:
        if self._calls:
            self._idle = anyio.Event()
            with anyio.move_on_after(deadline):
                await self._idle.wait()

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
        with anyio.CancelScope() as call:
            self._calls.add(call)
            try:
                return await call_next(context)
            except ProtocolError as error:
                raise lines.mcp_error(error.code, str(error), error.data) from None
            except NotFoundError:
                if context.method == "tools/call":  # which FastMCP makes a tool's text of, unlike those of the others
                    verbatim.refuse(lines.mcp_error(verbatim.INVALID_PARAMS, f"Unknown tool: {context.message.name}"))
                raise
            finally:
                self._calls.discard(call)
                if not self._calls:
                    self._idle.set()
        raise GatewayError(f"the call was ended: {_SHUTTING_DOWN}")

    async def _set_log_level(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        result = await call_next(context)  # first: FastMCP refuses a level that there is none of
        message, request = context.message, context.fastmcp_context
        level = message.get("level") if isinstance(message, dict) else getattr(message, "level", None)
        if isinstance(level, str) and request is not None:
            lines.remember_log_level(request, level)
            await self._registry.want_log_level(level)
        return result
