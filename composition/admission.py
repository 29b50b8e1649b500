"""Admission: what is decided about each MCP request before anything else, and written down.

On FastMCP 4.x the SDK comes in with every request, outermost; on 3.4 FastMCP with those that it has middleware for.
Here one decision is made of each: whether its user may have one more call under way, and may read the server that it
names. The registry decides the latter once more when it looks the name up; here it is written which rule it was, which
the caller never learns. A call has a second line at its end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import anyio
from fastmcp.server.dependencies import get_http_request
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext

from composition.view import View
from providers import audit, lines
from providers.audit import Asked, Audit, Entry
from providers.audit_log import AuditFailed
from providers.caller import ClientSessions
from providers.errors import NotAuthenticated
from providers.identity import Identity
from providers.lease import CALLS
from providers.limits import AtOnce
from providers.visit import Visit, visit_of

_REFUSED, _INTERNAL_ERROR = -32000, -32603
_NOT_AUTHENTICATED, _TOO_MANY = "not authenticated", "too many calls"
_RETRY_SECONDS = 1

_NAMED = {"tools/call": "name", "prompts/get": "name"}
_LOCATED = frozenset({"resources/read", "resources/subscribe", "resources/unsubscribe"})


class Admission(Middleware):
    """
    Args:
        view: of the front server that requests come to.
        at_once: how many calls a user may have under way over HTTP; None: any number.
        when_used: awaited first, so that the audit runs.
    """

    def __init__(
        self,
        view: View,
        sessions: ClientSessions,
        written: Audit,
        at_once: AtOnce | None,
        when_used: Callable[[], Awaitable[None]],
    ) -> None:
        self._view, self._sessions, self._audit = view, sessions, written
        self._at_once, self._when_used = at_once, when_used

    async def word(self, context: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        """The SDK's middleware on 4.x; notifications ask nothing and are passed."""
        if context.request_id is None:
            return await call_next(context)
        asked = asked_of(context.method, context.params or {}, self._view)
        asked.session = self._sessions.known(lines.owner_of_request(context))
        return await self._admit(getattr(context.request, "scope", None), asked, lambda: call_next(context))

    async def __call__(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        """FastMCP's middleware on 3.4."""
        if context.type != "request":
            return await call_next(context)
        asked = asked_of(str(context.method), _params(context.message), self._view)
        if context.fastmcp_context is not None:
            asked.session = self._sessions.known(lines.session_owner(context.fastmcp_context))
        try:
            scope = get_http_request().scope
        except RuntimeError:
            scope = None
        return await self._admit(scope, asked, lambda: call_next(context))

    async def within(self, method: str, params: Mapping[str, Any], work: Callable[[], Awaitable[Any]]) -> Any:
        """Do what one of the gateway's own tools does for its caller: decided and written down like a request that came
        by itself, and counted with the one that it came in."""
        try:
            scope = get_http_request().scope
        except RuntimeError:
            scope = None
        asked, identity = asked_of(method, params, self._view), self._identity(visit_of(scope))
        allow, rule = self._judge(asked, identity, None)
        if allow and not lines.MODERN:
            return await work()  # which comes by this middleware again
        entry = await self._written(scope, asked, identity, rule, allow=allow)
        return await (self._followed(entry, asked, work) if self._audit.is_on and allow else work())

    async def _admit(self, scope: Any, asked: Asked, work: Callable[[], Awaitable[Any]]) -> Any:
        visit = visit_of(scope)
        identity = self._identity(visit)
        is_call = asked.method in CALLS
        allow, rule = self._judge(asked, identity, visit if is_call else None)
        counting = self._counting(identity, rule) if is_call and visit is not None else nullcontext()
        try:
            with counting:  # from the decision on, with nothing awaited between
                entry = await self._written(scope, asked, identity, rule, allow=allow)
                if rule == _TOO_MANY:
                    raise self._too_many(visit)
                is_followed = self._audit.is_on and allow and asked.server is not None
                return await (self._followed(entry, asked, work) if is_followed else work())
        except AuditFailed as error:
            raise lines.mcp_error(_INTERNAL_ERROR, str(error)) from None

    def _counting(self, identity: Identity | None, rule: str) -> AbstractContextManager[None]:
        if self._at_once is None or identity is None or rule == _TOO_MANY:
            return nullcontext()
        return self._at_once.entered(identity.key)

    async def _written(self, scope: Any, asked: Asked, identity: Identity | None, rule: str, *, allow: bool) -> Entry:
        if self._audit.is_on:
            await self._when_used()
        return await self._audit.decision(scope, asked, identity, rule, allow=allow)

    async def _followed(self, entry: Entry, asked: Asked, work: Callable[[], Awaitable[Any]]) -> Any:
        """Do the work, and write down how it ended before its answer leaves."""
        bytes_in, bound = audit.size(asked.arguments), audit.bind(entry)
        try:
            result = await work()
        except anyio.get_cancelled_exc_class():
            await self._audit.end(entry, "cancelled", bytes_in, 0, waits=False)
            raise
        except Exception as error:
            await self._audit.end(entry, _failure(error), bytes_in, 0)
            raise
        finally:
            audit.unbind(bound)
        await self._audit.end(entry, "tool_error" if _is_error(result) else "ok", bytes_in, audit.size(result))
        return result

    def _identity(self, visit: Visit | None) -> Identity | None:
        if visit is not None and visit.identity is not None:
            return visit.identity
        try:
            return self._view.identity()
        except NotAuthenticated:
            return None

    def _judge(self, asked: Asked, identity: Identity | None, calling: Visit | None) -> tuple[bool, str]:
        if identity is None:
            return False, _NOT_AUTHENTICATED
        if calling is not None and self._at_once is not None and self._at_once.is_full(identity.key):
            return False, _TOO_MANY
        if asked.server is None:
            return True, audit.rule_of_all(identity)
        return self._view.judge(asked.server, identity, asked.session)

    def _too_many(self, visit: Visit | None) -> Exception:
        if visit is not None:
            visit.retry_after = _RETRY_SECONDS
        most = self._at_once.most if self._at_once is not None else 0
        text = f"You have {most} calls under way, which is as many as one user may have. Wait until one ends."
        return lines.mcp_error(_REFUSED, text, {"retryAfter": _RETRY_SECONDS})


def asked_of(method: str, params: Mapping[str, Any], view: View) -> Asked:
    """What a request asks for, as far as its params are as they should be; whatever they are, nothing is raised."""
    asked = Asked(method)
    meta = params.get("_meta")
    asked.trace = str(meta["traceparent"]) if isinstance(meta, Mapping) and "traceparent" in meta else None
    if method in _NAMED:
        asked.target = _text(params.get(_NAMED[method]))
        asked.server = view.server_of(asked.target)
    elif method in _LOCATED:
        asked.target = _text(params.get("uri"))
        asked.server = view.server_of_uri(asked.target)
    elif method == "completion/complete":
        _refer(asked, params.get("ref"), view)
    arguments = params.get("arguments")
    asked.arguments = arguments if isinstance(arguments, Mapping) else {}
    return asked


def _refer(asked: Asked, reference: object, view: View) -> None:
    if not isinstance(reference, Mapping):
        return
    if "uri" in reference:
        asked.target = _text(reference["uri"])
        asked.server = view.server_of_uri(asked.target)
    else:
        asked.target = _text(reference.get("name"))
        asked.server = view.server_of(asked.target)


def _text(name: object) -> str:
    """A name or URI; what is none may be anything, and has no place in the audit."""
    return name if isinstance(name, str) else ""


def _params(message: Any) -> Mapping[str, Any]:
    """The params of a request, which 3.4 gives as models."""
    if isinstance(message, Mapping):
        return message
    dumped = message.model_dump(mode="json", by_alias=True) if hasattr(message, "model_dump") else {}
    params: Mapping[str, Any] = dumped.get("params") or dumped
    return params


def _failure(error: Exception) -> str:
    """How a call ended that raised. FastMCP 3.4 makes a tool's text of what is no error of the protocol."""
    code = getattr(getattr(error, "error", None), "code", None)
    return "tool_error" if code is None else f"error {code}"


def _is_error(result: Any) -> bool:
    if isinstance(result, Mapping):
        return bool(result.get("isError"))
    return bool(getattr(result, "is_error", False) or getattr(result, "isError", False))
