"""What a request to `/mcp` may be like: how large, and how many sessions one user may open.

It stands behind FastMCP's authentication, so that it knows the user, and before the MCP SDK, so that what is refused
here costs nothing further. `http` puts it there. Every refusal is a JSON-RPC error that says what to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from composition.door import REFUSED, refusal, too_often
from providers import lines
from providers.errors import NotAuthenticated
from providers.identity import Identity
from providers.visit import visit_of

MAX_BODY_BYTES = 4 * 1024 * 1024
"""What the MCP SDK takes, too, and that of TypeScript."""
MAX_HEADER_BYTES = 64 * 1024

_INVALID_REQUEST = -32600
_RETRY_SECONDS = 30


class Guard:
    """ASGI middleware.

    Args:
        user: who makes the current request; raises NotAuthenticated where nobody does.
        open_sessions: how many client sessions a user has now.
        max_sessions: how many one user may have.
        vouch: told whose request it is; 0, or for how many seconds this user is refused.
    """

    def __init__(
        self,
        app: ASGIApp,
        user: Callable[[], Identity],
        open_sessions: Callable[[Identity], int],
        max_sessions: int,
        vouch: Callable[[Scope, Identity], float],
    ) -> None:
        self._app, self._user, self._open_sessions, self._max_sessions = app, user, open_sessions, max_sessions
        self._vouch = vouch
        self._opening: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            response = refusal(431, _INVALID_REQUEST, f"The headers of a request may have {MAX_HEADER_BYTES:,} bytes.")
            return await response(scope, receive, send)
        if _declared_length(headers) > MAX_BODY_BYTES:
            return await _too_large()(scope, receive, send)
        if "content-length" not in headers and scope["method"] == "POST":
            receive, send = _measured(scope, receive, send)
        try:
            user = self._user()
        except NotAuthenticated:
            return await self._app(scope, receive, send)  # which says how to authenticate
        if wait := self._vouch(scope, user):
            return await too_often(scope, wait, is_user=True)(scope, receive, send)
        _name_owner(scope, user)
        if _opens_session(scope, headers):
            return await self._open(user, scope, receive, send)
        return await self._app(scope, receive, send)

    async def _open(self, user: Identity, scope: Scope, receive: Receive, send: Send) -> None:
        if self._open_sessions(user) + self._opening[user.key] >= self._max_sessions:
            text = (
                f"You have {self._max_sessions} sessions open, which is as many as one user may have. "
                "End one with DELETE, or wait: silent ones end by themselves."
            )
            if (visit := visit_of(scope)) is not None:
                visit.rule = "too many sessions"
            response = refusal(429, REFUSED, text, {"Retry-After": str(_RETRY_SECONDS)})
            return await response(scope, receive, send)
        self._opening[user.key] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._opening[user.key] -= 1
            if not self._opening[user.key]:
                del self._opening[user.key]


def _name_owner(scope: Scope, user: Identity) -> None:
    """The SDK binds a session to client, issuer and subject of the token. Where the subject stands in the claims alone
    (as FastMCP 3.4 has it), two users of one client would be the same to it."""
    token = getattr(scope.get("user"), "access_token", None)
    if token is not None and token.subject is None:
        scope["user"].access_token = token.model_copy(update={"subject": user.key})


def _opens_session(scope: Scope, headers: Headers) -> bool:
    """Whether a session comes of it, if it is what it must be. Requests of the 2026-07-28 era have none."""
    is_first = scope["method"] == "POST" and "mcp-session-id" not in headers
    is_first = is_first and scope["path"].endswith("/mcp")  # the rest is the REST API, which has no sessions
    return is_first and not lines.is_modern_version(headers.get("mcp-protocol-version"))


def _declared_length(headers: Headers) -> int:
    length = headers.get("content-length", "")
    return int(length) if length.isascii() and length.isdecimal() else 0


def _measured(scope: Scope, receive: Receive, send: Send) -> tuple[Receive, Send]:
    """A request that does not say how long it is: the first byte too many ends it, and the answer says why."""
    received, is_refused = 0, False

    async def count() -> Message:
        nonlocal received, is_refused
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY_BYTES and not is_refused:
            is_refused = True
            await _too_large()(scope, receive, send)
        return {"type": "http.disconnect"} if is_refused else message

    async def unless_refused(message: Message) -> None:
        if not is_refused:
            await send(message)

    return count, unless_refused


def _too_large() -> ASGIApp:
    text = f"A request may have {MAX_BODY_BYTES:,} bytes. Send less, or a link to it."
    return refusal(413, _INVALID_REQUEST, text, {"Connection": "close"})
