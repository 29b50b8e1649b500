"""The door: the first that an HTTP request meets, before FastMCP looks at it, and the last that its answer passes.

`http` puts it there. A user who sends too much is refused here, before a token is verified: whose token it is, is
remembered from the first time that it was good. Who is not known is counted by the address that the connection comes
from, until the guard vouches for a user. What is refused is written into the audit, unless it is there already.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
from collections import Counter, OrderedDict
from http import HTTPStatus
from ipaddress import ip_address, ip_network
from typing import Any

import anyio
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from composition.api import problems
from providers.audit import Asked, Audit, rule_of_all
from providers.audit_log import AuditFailed
from providers.identity import Identity
from providers.limits import Rates
from providers.visit import Visit, begin_visit, visit_of

REFUSED = -32000
STRANGERS_PER_SECOND, STRANGERS_AT_ONCE = 20.0, 100.0
"""Requests from one address for which no user is known: without a token, or with one that is not good."""
_PAUSE_SECONDS = (0.25, 0.75)
"""That a refusal waits, at random between: who sends the next request when the last is answered can then send a few,
not thousands, and those that are taken do not come all at once."""
_MAX_PAUSING = 256
"""Refusals of one user or address that wait. Those beyond are answered at once, and their connection is closed."""
_MAX_TOKENS = 4096
_SHORT = 64 * 1024

_RULES: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "not authenticated",
    HTTPStatus.FORBIDDEN: "origin or scope",
    HTTPStatus.NOT_FOUND: "unknown session or path",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "too large",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "too large",
    HTTPStatus.MISDIRECTED_REQUEST: "host",
    HTTPStatus.TOO_MANY_REQUESTS: "rate limit",
}


class RequestRates:
    """How many requests a second there may be from a user, and from an address for which no user is known.

    Args:
        per_second: of one user, twice that at once; None: any number, where there is one user alone.
        local: the user, where callers bring no tokens.
    """

    def __init__(self, per_second: float | None, local: Identity | None) -> None:
        self.users = Rates(per_second) if per_second is not None else None
        self.strangers = Rates(STRANGERS_PER_SECOND, STRANGERS_AT_ONCE)
        self._local = local
        self._known: OrderedDict[bytes, Identity] = OrderedDict()
        self._secret = os.urandom(32)

    def arrive(self, scope: Scope) -> tuple[Identity | None, float]:
        """Before anything is verified: whose request it seems to be, and 0 or for how many seconds it is refused."""
        user = self._local or self._known.get(self._digest(scope))
        return user, self._take(user.key) if user is not None else self.strangers.take(network_of(scope))

    def vouch(self, scope: Scope, identity: Identity) -> float:
        """A user was verified. 0, or for how many seconds this request is refused."""
        visit = visit_of(scope)
        if visit is not None:
            visit.identity = identity
        if self._local is not None:
            return 0.0
        digest = self._digest(scope)
        is_known = digest in self._known
        self._known[digest] = identity  # anew each time: a token of the same text may say something else by now
        self._known.move_to_end(digest)
        if is_known:
            return 0.0  # it was counted when it arrived
        if len(self._known) > _MAX_TOKENS:
            self._known.popitem(last=False)
        self.strangers.give_back(network_of(scope))
        return self._take(identity.key)

    def headers(self, visit: Visit) -> list[tuple[bytes, bytes]]:
        """What a user is told of the limit."""
        return self.users.headers(visit.identity.key, "requests") if self.users and visit.identity else []

    def _take(self, user: str) -> float:
        return self.users.take(user) if self.users is not None else 0.0

    def _digest(self, scope: Scope) -> bytes:
        """Of the credentials; keyed, so that what is kept here is of use to nobody."""
        header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return hashlib.blake2b(header, key=self._secret, digest_size=16).digest()


class Door:
    """ASGI middleware, around the whole application."""

    def __init__(self, app: ASGIApp, rates: RequestRates, audit: Audit) -> None:
        self._app, self._rates, self._audit = app, rates, audit
        self._pausing: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = begin_visit(scope)
        leave = self._leaving(scope, visit, send)
        user, wait = self._rates.arrive(scope)
        if not wait:
            await self._app(scope, receive, leave)
            return
        visit.identity = user
        has_paused = await self._pause(user.key if user else network_of(scope))
        headers = {} if has_paused and _is_short(scope) else {"Connection": "close"}
        response = too_often(scope, wait, is_user=user is not None, headers=headers)
        await response(scope, receive, leave)

    async def _pause(self, who: str) -> bool:
        if self._pausing[who] >= _MAX_PAUSING:
            return False
        self._pausing[who] += 1
        try:
            await anyio.sleep(random.uniform(*_PAUSE_SECONDS))
        finally:
            self._pausing[who] -= 1
            if not self._pausing[who]:
                del self._pausing[who]
        return True

    def _leaving(self, scope: Scope, visit: Visit, send: Send) -> Send:
        """`send`, but an answer is written down before it begins; in strict mode there is none where it cannot be."""
        is_replaced = False

        async def leave(message: Message) -> None:
            nonlocal is_replaced
            if is_replaced:
                return
            if message["type"] == "http.response.start":
                message = self._told(visit, message)
                try:
                    await self._write(scope, visit, message["status"])
                except AuditFailed as error:
                    if message["status"] < HTTPStatus.BAD_REQUEST:  # what is refused is refused, written or not
                        is_replaced = True
                        await _send_whole(refusal_for(scope, 503, str(error)), send)
                        return
            await send(message)

        return leave

    def _told(self, visit: Visit, message: Message) -> Message:
        more = self._rates.headers(visit)
        status = message["status"]
        if visit.retry_after is not None:
            status = HTTPStatus.TOO_MANY_REQUESTS.value
            more.append((b"retry-after", str(visit.retry_after).encode()))
        return {**message, "status": status, "headers": [*message.get("headers", ()), *more]}

    async def _write(self, scope: Scope, visit: Visit, status: int) -> None:
        """Requests to MCP are decided where they are understood; here is what never came there: refusals, streams, and
        sessions that end."""
        is_refused = status >= HTTPStatus.BAD_REQUEST
        if visit.is_decided or not self._audit.is_on or (not is_refused and scope["method"] == "POST"):
            return
        rule = visit.rule or (_RULES.get(status, f"status {status}") if is_refused else rule_of_all(visit.identity))
        asked = Asked(f"{scope['method']} {scope['path']}")
        await self._audit.decision(scope, asked, visit.identity, rule, allow=not is_refused)


def too_often(scope: Scope, wait: float, *, is_user: bool, headers: dict[str, str] | None = None) -> JSONResponse:
    """The refusal of a request that comes too soon."""
    seconds = max(1, math.ceil(wait))
    if is_user:
        text = f"You send more requests than one user may send. Try again in {seconds} s, and send fewer at once."
    else:
        text = f"Too many requests without a valid token come from your address. Try again in {seconds} s."
    return refusal_for(scope, 429, text, {"Retry-After": str(seconds), **(headers or {})})


def refusal_for(scope: Scope, status: int, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """A refusal in the words of what was asked: MCP's, or those of the REST API."""
    if scope["path"].endswith("/mcp"):
        return refusal(status, REFUSED, text, headers)
    return problems.response(problems.Refusal(status, text, headers=headers))


def refusal(status: int, code: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """A JSON-RPC error, for a request whose id nobody has read."""
    body = {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}}
    return JSONResponse(body, status_code=status, headers=headers)


async def _send_whole(response: JSONResponse, send: Send) -> None:
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body})


def _is_short(scope: Scope) -> bool:
    """Whether what is left of the request costs nothing to read."""
    headers: dict[bytes, Any] = dict(scope["headers"])
    length = headers.get(b"content-length", b"0")
    return b"transfer-encoding" not in headers and length.isdigit() and int(length) <= _SHORT


def network_of(scope: Scope) -> str:
    """The address of the other end of the connection; of IPv6 its network, as one machine has as many as it likes."""
    client = scope.get("client")
    host = str(client[0]) if client else "unknown"
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    return str(ip_network(f"{address}/64", strict=False) if address.version == 6 else address)
