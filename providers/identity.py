"""On whose behalf a call is made, and how that is told to a backend.

An `Identity` is only ever built from a verified principal: a token that FastMCP's auth provider accepted, or the
local user where no authentication is configured. Nothing a client writes (headers, arguments, `_meta`) can make one.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from fastmcp.server.dependencies import get_access_token
from fastmcp.server.middleware import CallNext, Middleware, MiddlewareContext

from providers.errors import NotAuthenticated

ADMIN_ROLE = "mcp.admin"
IDENTITY_META_KEY = "dev.apollos/identity"

_IDENTITY_HEADERS = ("X-Mcp-UserId", "X-Mcp-UserName", "X-Mcp-Roles")

_MCP_HEADERS = frozenset(
    {"accept", "content-type", "last-event-id", "mcp-session-id", "mcp-protocol-version", "mcp-method", "mcp-name"}
)
_MCP_PARAM_PREFIX = "mcp-param-"


@dataclass(frozen=True, slots=True)
class Identity:
    """A verified caller. `issuer` is who vouches for it: a token's `iss`, or `local`."""

    user_id: str
    name: str
    roles: frozenset[str] = frozenset()
    issuer: str = "local"

    @property
    def is_admin(self) -> bool:
        return ADMIN_ROLE in self.roles

    @property
    def key(self) -> str:
        """Unique over all issuers; what caches and connections are kept apart by."""
        return _key(self.issuer, self.user_id)


@lru_cache(maxsize=1024)
def _key(issuer: str, user_id: str) -> str:
    return f"{quote(issuer, safe='')}/{quote(user_id, safe='')}"


def local_identity(environ: Mapping[str, str] = os.environ) -> Identity:
    """The user who started the gateway: `APOLLOS_USER_ID`, else the login name; an administrator."""
    user_id = environ.get("APOLLOS_USER_ID") or _login_name()
    user_id = user_id.encode(errors="backslashreplace").decode()  # the environment may hold any bytes
    return Identity(user_id=user_id, name=user_id, roles=frozenset({ADMIN_ROLE}))


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a uid that has no name
        return f"uid-{os.getuid()}" if hasattr(os, "getuid") else "local"


def identity_from_claims(claims: Mapping[str, Any]) -> Identity:
    """An identity from the claims of a verified token (`sub`, `name`, `roles`, `iss`).

    Raises:
        NotAuthenticated: the token names no subject.
    """
    subject = claims.get("sub")
    if not isinstance(subject, str) or not subject:
        raise NotAuthenticated("the token names no subject (claim 'sub'). Ask for a token that does.")
    named = claims.get("name")
    identity = Identity(
        user_id=subject,
        name=named if isinstance(named, str) and named else subject,
        roles=_roles(claims.get("roles")),
        issuer=str(claims.get("iss") or "token"),
    )
    try:
        "".join((identity.user_id, identity.name, *identity.roles, identity.issuer)).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can hold and no header, key or log can
        raise NotAuthenticated("the token holds text that is not Unicode. Ask for another.") from None
    return identity


def _roles(claim: Any) -> frozenset[str]:
    """The roles in a claim: a text, or a list of texts. Anything else grants nothing."""
    roles = [claim] if isinstance(claim, str) else claim if isinstance(claim, list | tuple | set | frozenset) else ()
    return frozenset(role for role in roles if isinstance(role, str) and role)


def resolve_identity(local: Identity | None) -> Identity:
    """Who makes the current request: the verified token's subject, or `local` where no authentication is configured.

    Args:
        local: the local user, or None when authentication is on and a token is therefore required.

    Raises:
        NotAuthenticated: authentication is on and the request has no verified principal.
    """
    if local is not None:
        return local
    token = get_access_token()
    if token is None:
        raise NotAuthenticated("authentication is required. Send a bearer token.")
    return identity_from_claims({"sub": getattr(token, "subject", None), **(token.claims or {})})


_current: ContextVar[Identity | None] = ContextVar("apollos_identity", default=None)


def current_identity() -> Identity | None:
    """The identity that the identity middleware bound for this call, if it ran."""
    return _current.get()


class IdentityMiddleware(Middleware):
    """Outermost of a sub-server: binds the verified identity for everything further in."""

    def __init__(self, local: Identity | None) -> None:
        self._local = local

    async def __call__(self, context: MiddlewareContext[Any], call_next: CallNext[Any, Any]) -> Any:
        token = _current.set(resolve_identity(self._local))
        try:
            return await call_next(context)
        finally:
            _current.reset(token)


def build_identity_headers(identity: Identity) -> dict[str, str]:
    """The three identity headers, percent-encoded (RFC 3986, UTF-8) so that no comma, newline or non-ASCII byte in a
    name or a role can forge another value. Roles are sorted and joined by a comma."""
    return {
        "X-Mcp-UserId": quote(identity.user_id, safe="@.-_~"),
        "X-Mcp-UserName": quote(identity.name, safe=" @.-_~"),
        "X-Mcp-Roles": ",".join(quote(role, safe="@.-_~:/") for role in sorted(identity.roles)),
    }


def build_identity_meta(identity: Identity) -> dict[str, Any]:
    """The same for a process, under `dev.apollos/identity` in a request's `_meta`; JSON needs no encoding."""
    return {"userId": identity.user_id, "userName": identity.name, "roles": sorted(identity.roles)}


def strip_auth_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Of the headers that a client sent, those of MCP itself. An allow-list: credentials, cookies, forged identity
    headers and whatever is invented tomorrow fall away by not being on it."""
    return {
        name: value
        for name, value in headers.items()
        if name.lower() in _MCP_HEADERS or name.lower().startswith(_MCP_PARAM_PREFIX)
    }


def prepare_proxy_headers(own: Mapping[str, str], mcp: Mapping[str, str], identity: Identity | None) -> dict[str, str]:
    """The headers of one request to an HTTP backend.

    Args:
        own: the resource's configured headers; they may not name an identity header.
        mcp: MCP's own headers for this message.
        identity: on whose behalf, or None for a request that is nobody's (opening a shared session, health checks).
    """
    reserved = {name.lower() for name in _IDENTITY_HEADERS}
    headers = {name: value for name, value in own.items() if name.lower() not in reserved}
    headers.update(strip_auth_headers(mcp))
    if identity is not None:
        headers.update(build_identity_headers(identity))
    return headers
