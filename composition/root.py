"""The root server's middleware: what concerns all servers at once.

It tells each client which servers it may use, remembers the client's log level, counts the calls under way, refuses
new ones while the gateway drains, and ends those whose user may not read their server any more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import anyio
from fastmcp.exceptions import NotFoundError
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext

from composition import capabilities
from composition.mount import SEPARATOR, Mount, server_of
from composition.registry import Registry
from providers import lines, verbatim
from providers.errors import GatewayError, NotAuthenticated, ProtocolError
from providers.identity import Identity
from providers.lease import CALLS
from providers.store import absence

_MAX_PURPOSE = 300
_MAX_INSTRUCTIONS = 16 * 1024
"""Characters of one server's own instructions; no model reads more, and a client may refuse a longer welcome."""
_SHUTTING_DOWN = "the gateway is shutting down. Connect again in a moment."
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
    def __init__(self, name: str, registry: Registry) -> None:
        self._name, self._registry = name, registry
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
        with call.scope:
            self._calls.add(call)
            try:
                return await call_next(context)
            except ProtocolError as error:
                raise lines.mcp_error(error.code, str(error), error.data) from None
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
        raise GatewayError(f"the call was ended: {_SHUTTING_DOWN}")

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

    async def on_initialize(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        if context.fastmcp_context is not None:
            lines.remember_capabilities(context.fastmcp_context)
        return await self._as_told(await call_next(context))

    async def on_discover(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        return await self._as_told(await call_next(context))

    async def _as_told(self, result: Any) -> Any:
        """What the gateway says of itself: the servers of this user, and what can be had through it."""
        if result is None or isinstance(result, dict):
            return result
        caller = await self._registry.caller()
        mounts = [(mount, caller.identity) for mount in self._registry.readable(caller)] if caller else []
        told = {
            "instructions": instructions(self._name, mounts),
            "capabilities": capabilities.honest(result.capabilities, mounts),
        }
        return result.model_copy(update=told)


def _server_of(context: MiddlewareContext[Any]) -> str:
    """Of a request that the SDK has refused already FastMCP still passes the raw message through here."""
    key, message = "uri" if context.method == "resources/read" else "name", context.message
    asked = str(message.get(key) if isinstance(message, dict) else getattr(message, key, None))
    return server_of(asked) if key == "uri" else asked.partition(SEPARATOR)[0]


def _refuse_unknown_tool(context: MiddlewareContext[Any]) -> None:
    """FastMCP makes a tool's text of it, unlike of those of the others."""
    if context.method == "tools/call":
        verbatim.refuse(lines.mcp_error(verbatim.INVALID_PARAMS, f"Unknown tool: {context.message.name}"))


def instructions(name: str, mounts: list[tuple[Mount, Identity]]) -> str:
    """What a model reads first: which servers there are for a user, and what each is for."""
    if not mounts:
        return f"{name}: no server is available to you at the moment."
    servers = "\n".join(f"- {mount.resource.name}: {purpose(mount, identity)}" for mount, identity in mounts)
    said = [(mount.resource.name, _own_instructions(mount, identity)) for mount, identity in mounts]
    chapters = "".join(f"\n\n# How to use {server}\n\n{text}" for server, text in said if text)
    return (
        f"{name} offers the tools of several servers. A tool is named after its server: 'server_tool'. "
        f"The servers:\n{servers}{chapters}"
    )


def _own_instructions(mount: Mount, identity: Identity) -> str:
    """A server's own instructions word for word, where its line in the list does not hold them already."""
    listing = mount.catalogue.known_to(identity)
    text = str(listing.facts.get("instructions") or "") if listing else ""
    return text[:_MAX_INSTRUCTIONS] if text != purpose(mount, identity) else ""


def purpose(mount: Mount, identity: Identity) -> str:
    """What a server is for: the operator's description, else what it has told this user of itself."""
    listing = mount.catalogue.known_to(identity)
    facts = listing.facts if listing else {}
    info = facts.get("serverInfo") or {}
    said = (
        mount.resource.description
        or facts.get("instructions")
        or info.get("description")
        or info.get("title")
        or info.get("name")
        or "no description"
    )
    text = " ".join(str(said).split())
    return text if len(text) <= _MAX_PURPOSE else text[: _MAX_PURPOSE - 1] + "…"
