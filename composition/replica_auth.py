"""Beside the configured authentication: whom another replica vouches for, at the path of one server and nowhere else.

The gateway puts it around the auth provider that it was given, where it is one of several replicas. FastMCP asks it for
each request; what it does not know goes to the configured provider, which has all routes and metadata, too.
"""

from __future__ import annotations

from contextvars import ContextVar

from fastmcp.server.auth import AccessToken, AuthProvider, MultiAuth

from composition.replicas import Replicas
from providers.assertions import ISSUER, Assertion
from providers.sharing import path_of

asked_path: ContextVar[str | None] = ContextVar("apollos_asked_path", default=None)
"""The path of the request that is being authenticated; `http` sets it. None outside of a request."""


class ReplicaAuth(MultiAuth):
    """Args:
    server: the configured provider.
    """

    def __init__(self, server: AuthProvider, replicas: Replicas) -> None:
        super().__init__(server=server)
        self._configured, self._replicas = server, replicas

    def metadata_url(self, path: str) -> str | None:
        """The configured provider's own."""
        found = getattr(self._configured, "metadata_url", None)
        return found(path) if found is not None else None

    async def verify_token(self, token: str) -> AccessToken | None:
        path = asked_path.get()
        if path is None or path.startswith("/adapters/"):
            assertion = self._replicas.accept(token, is_request=path is not None)
            if assertion is not None:
                return self._admitted(token, assertion) if path in (None, path_of(assertion.server)) else None
        return await self._configured.verify_token(token)

    def _admitted(self, token: str, assertion: Assertion) -> AccessToken:
        identity = assertion.identity
        return AccessToken(
            token=token,
            client_id=ISSUER,
            scopes=list(self.required_scopes),  # the caller's own token had them where it came in
            subject=ISSUER,  # a session is of the replica that opened it; each request says for whom it is
            claims={
                "sub": identity.user_id,
                "name": identity.name,
                "roles": sorted(identity.roles),
                "iss": identity.issuer,
            },
        )


def is_of_replica(token: object) -> bool:
    """Whether a verified token is another replica's."""
    return isinstance(token, AccessToken) and token.client_id == ISSUER and token.subject == ISSUER
