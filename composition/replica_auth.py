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

asked_path: ContextVar[str] = ContextVar("apollos_asked_path", default="")
"""The path of the request that is being authenticated; `http` sets it."""


class ReplicaAuth(MultiAuth):
    """Args:
    server: the configured provider.
    """

    def __init__(self, server: AuthProvider, replicas: Replicas) -> None:
        super().__init__(server=server)
        self._configured, self._replicas = server, replicas

    async def verify_token(self, token: str) -> AccessToken | None:
        if asked_path.get().startswith("/adapters/"):
            assertion = self._replicas.accept(token)
            if assertion is not None:
                return self._admitted(token, assertion)
        return await self._configured.verify_token(token)  # type: ignore[return-value]

    def _admitted(self, token: str, assertion: Assertion) -> AccessToken | None:
        if asked_path.get() != path_of(assertion.server):
            return None
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
