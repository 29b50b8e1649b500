"""Who may come in over HTTP: FastMCP's auth provider, made of `[gateway.auth]`.

`starting` comes in where the gateway is served; over stdio the caller is the local user. A token is a static one, which
its prefix tells, or a JWT. Whatever it is, what comes out holds the same four claims, so that nobody further in knows
the operator's names for them. `providers.tokens` and FastMCP's JWT verifier are called.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastmcp.server.auth import AccessToken, AuthProvider
from fastmcp.server.auth.providers.jwt import JWTVerifier
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from composition.auth_settings import AuthSettings
from composition.names import ALONE
from composition.settings import Settings
from providers import tokens
from providers.errors import NotAuthenticated
from providers.identity import Identity, identity_from_claims
from providers.resource import NAME_PATTERN
from providers.tokens import TokenFile, is_plain

logger = logging.getLogger(__name__)

_WELL_KNOWN = "/.well-known/oauth-protected-resource"
_STATIC_CLIENT = "static-token"
"""The client of all static tokens: who has a new one goes on with the sessions of the old one."""
_CLOCK_SKEW = 60
"""Seconds for which an issuer's clock may be ahead of ours, in `nbf`."""
_REMEMBERED = 1024
_REMEMBER_SECONDS = 10.0
"""A JWT that was verified is not verified again for so long. Its signature stays what it is, and its `exp` counts all
the same; only a key that the issuer took back is noticed so much later."""


class GatewayAuth(AuthProvider):
    """Verifies bearer tokens, and tells clients where to get one (RFC 9728).

    Args:
        base_url: the address under which clients reach the gateway, without `/mcp`.
        name: the gateway's, which a client may show.
    """

    def __init__(self, settings: AuthSettings, base_url: str, name: str) -> None:
        super().__init__(base_url=base_url, required_scopes=list(settings.scopes))
        self._public_url, self._name, self._settings = base_url.rstrip("/"), name, settings
        self.tokens = TokenFile(Path(settings.tokens)) if settings.tokens else None
        self._jwts = _Jwts(settings) if settings.issuer else None

    async def verify_token(self, token: str) -> AccessToken | None:
        """What a token proves, with the claims `iss`, `sub`, `name` and `roles`; None where it proves nothing."""
        if token.startswith(tokens.PREFIX):
            return await self._verify_static(token)
        return await self._jwts.verify(token) if self._jwts else None

    async def _verify_static(self, token: str) -> AccessToken | None:
        found = await self.tokens.find(token) if self.tokens else None
        if found is None:
            return None
        identity = Identity(found.user, found.name, frozenset(found.roles), tokens.ISSUER)
        expires = int(found.expires_at.timestamp()) if found.expires_at else None
        return _access(token, identity, _STATIC_CLIENT, list(self._settings.scopes), expires)

    def get_routes(self, mcp_path: str | None = None) -> list[Route]:
        """The metadata of the resource at `mcp_path`. The addresses in it stay as they were written: who compares an
        issuer does so letter by letter (RFC 9728, 3.3), and FastMCP's own route would add a slash."""
        self.set_mcp_path(mcp_path)
        resource = f"{self._public_url}{mcp_path or ''}"
        metadata: dict[str, Any] = {
            "resource": resource,
            "resource_name": self._name,
            "bearer_methods_supported": ["header"],
        }
        if self._settings.issuer and urlsplit(self._settings.issuer).scheme in ("http", "https"):
            metadata["authorization_servers"] = [self._settings.issuer]
        if self._settings.scopes:
            metadata["scopes_supported"] = list(self._settings.scopes)
        methods = ["GET", "HEAD", "OPTIONS"]
        return [
            Route(urlsplit(self.metadata_url(mcp_path or "")).path, _Metadata(metadata), methods=methods),
            Route(
                urlsplit(self.metadata_url(ALONE)).path, _Metadata(metadata, self._public_url + ALONE), methods=methods
            ),
        ]

    def metadata_url(self, mcp_path: str) -> str:
        """Where the metadata of the resource at this path is (RFC 9728, 3.1)."""
        parts = urlsplit(f"{self._public_url}{mcp_path}")
        return f"{parts.scheme}://{parts.netloc}{_WELL_KNOWN}{parts.path.rstrip('/')}"


class _Metadata:
    """The document, for scripts of every web page too: it is public, and says only whom to ask.

    Args:
        alone: the address of one server, with `{name}` in it: the document is that of each server, and of each that
            there is none of.
    """

    def __init__(self, metadata: Mapping[str, Any], alone: str | None = None) -> None:
        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            headers, name = {"Cache-Control": "public, max-age=3600"}, str(scope["path_params"].get("name", ""))
            if alone is not None and not NAME_PATTERN.match(name):
                await JSONResponse({}, status_code=404)(scope, receive, send)
                return
            named = {"resource": alone.replace("{name}", name)} if alone else {}
            await JSONResponse({**metadata, **named}, headers=headers)(scope, receive, send)

        self._app = CORSMiddleware(answer, allow_origins=["*"], allow_methods=["GET"], allow_headers=["*"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class _Jwts:
    """JWTs of one issuer for one audience, signed with one algorithm."""

    def __init__(self, settings: AuthSettings) -> None:
        self._settings = settings
        self._verifier = JWTVerifier(
            public_key=settings.key,
            jwks_uri=settings.jwks_url,
            issuer=settings.issuer,
            audience=settings.audience,
            algorithm=settings.signed_with,
            required_scopes=list(settings.scopes),
        )
        self._verified: dict[str, tuple[AccessToken, float]] = {}

    async def verify(self, token: str) -> AccessToken | None:
        known, until = self._verified.get(token, (None, 0.0))
        if known is not None and time.monotonic() < until:
            return known if known.expires_at is None or known.expires_at > time.time() else None
        self._verified.pop(token, None)
        try:
            found = await self._verifier.verify_token(token)
            access = self._access(token, found) if found else None
        except (ValueError, ArithmeticError, RecursionError):  # what anybody may send need not be a JWT
            return None
        if access is not None:
            self._verified[token] = access, time.monotonic() + _REMEMBER_SECONDS
            if len(self._verified) > _REMEMBERED:
                del self._verified[next(iter(self._verified))]
        return access

    def _access(self, token: str, found: AccessToken) -> AccessToken | None:
        """FastMCP looks at neither a missing `exp` nor at `nbf`, and knows nothing of who is to be who."""
        try:
            if found.expires_at is None:
                raise NotAuthenticated("it never expires (claim 'exp')")
            if (found.claims.get("nbf") or 0) > time.time() + _CLOCK_SKEW:
                raise NotAuthenticated("it is not valid yet (claim 'nbf')")
            identity = self._identity(found.claims)
        except (NotAuthenticated, TypeError) as error:
            logger.warning("a JWT of client %r was refused: %s", found.client_id[:100], error)
            return None
        return _access(token, identity, found.client_id, found.scopes, found.expires_at)

    def _identity(self, claims: Mapping[str, Any]) -> Identity:
        name = claim_at(claims, self._settings.name_claim)
        identity = identity_from_claims(
            {
                "iss": self._settings.issuer,
                "sub": claims.get("sub"),
                "name": name if isinstance(name, str) and name.isprintable() else None,
                "roles": claim_at(claims, self._settings.roles_claim),
            }
        )
        if not identity.user_id.isprintable():
            raise NotAuthenticated("its subject (claim 'sub') holds control characters")
        if not all(is_plain(role) for role in identity.roles):
            raise NotAuthenticated(f"a role (claim '{self._settings.roles_claim}') holds a comma or control character")
        return identity


def claim_at(claims: Mapping[str, Any], path: str) -> Any:
    """The claim of this name, which may itself hold dots (some issuers name theirs as addresses); else the one that a
    path with dots leads to. None where there is neither."""
    if path in claims:
        return claims[path]
    found: Any = claims
    for part in path.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(part)
    return found


def _access(token: str, identity: Identity, client: str, scopes: list[str], expires: int | None) -> AccessToken:
    claims = {
        "iss": identity.issuer,
        "sub": identity.user_id,
        "name": identity.name,
        "roles": sorted(identity.roles),
    }
    return AccessToken(
        token=token, client_id=client, scopes=scopes, expires_at=expires, subject=identity.user_id, claims=claims
    )


def build_auth(settings: Settings, served_at: str) -> GatewayAuth | None:
    """The provider that `[gateway.auth]` describes; None where it describes none. It blocks.

    Args:
        served_at: the address that is listened on; the resource's where no `public_url` is given.

    Raises:
        ConfigurationError: the file of tokens is there, and cannot be used.
    """
    if not settings.auth.is_on:
        return None
    auth = GatewayAuth(settings.auth, settings.public_url or served_at, settings.name)
    if auth.tokens is not None:
        if auth.tokens.path.exists():
            auth.tokens.read()
        else:
            logger.warning("%s: no such file yet. Make a token with 'server.py token add USER'", auth.tokens.path)
    return auth
