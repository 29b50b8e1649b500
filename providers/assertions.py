"""How one replica vouches to another for a caller: a short-lived signed assertion, made for one replica and one server.

`sharing` makes them for the calls that it passes on, and composition's `replica_auth` verifies them. The only file that
imports joserfc. An assertion holds who the caller is, as the replica that vouches has verified it; never the caller's
own token.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from providers.identity import Identity

ISSUER, TYPE = "apollos-replica", "apollos-replica+jwt"
LIFE_SECONDS = 30
_SKEW_SECONDS = 15
"""By how much the clocks of two replicas may differ."""
_TEXTS = ("iss", "aud", "sub", "name", "issuer", "server", "scope", "jti")


@dataclass(frozen=True, slots=True)
class Assertion:
    """A caller whom a replica vouches for, and the lease that the replica it goes to must have."""

    identity: Identity
    server: str
    scope: str
    lease: int


def sign(assertion: Assertion, audience: str, key: bytes, now: Callable[[], float] = time.time) -> str:
    """An assertion for one replica, good for one request."""
    identity, moment = assertion.identity, int(now())
    claims = {
        "iss": ISSUER,
        "aud": audience,
        "iat": moment,
        "exp": moment + LIFE_SECONDS,
        "jti": uuid4().hex,
        "sub": identity.user_id,
        "name": identity.name,
        "roles": sorted(identity.roles),
        "issuer": identity.issuer,
        "server": assertion.server,
        "scope": assertion.scope,
        "lease": assertion.lease,
    }
    return jwt.encode({"alg": "HS256", "typ": TYPE}, claims, OctKey.import_key(key), algorithms=["HS256"])


class Verifier:
    """What one replica accepts.

    Args:
        audience: the replica.
        now: seconds since the epoch.
    """

    def __init__(self, audience: str, now: Callable[[], float] = time.time) -> None:
        self._audience, self._now = audience, now
        self._seen: OrderedDict[str, float] = OrderedDict()

    def verify(self, token: str, key: bytes, *, is_new: bool = True) -> Assertion | None:
        """What an assertion says; None if it is not one for us, is too old, or was used before.

        Args:
            is_new: whether its age and its use count.
        """
        if not key:
            return None
        try:
            found = jwt.decode(token, OctKey.import_key(key), algorithms=["HS256"])
        except (JoseError, ValueError):
            return None
        claims = found.claims
        if found.header.get("typ") != TYPE or not self._is_for_us(claims):
            return None
        if is_new and not (self._is_timely(claims) and self._is_first(claims["jti"])):
            return None
        identity = Identity(claims["sub"], claims["name"], frozenset(claims["roles"]), claims["issuer"])
        return Assertion(identity, claims["server"], claims["scope"], claims["lease"])

    def _is_for_us(self, claims: Mapping[str, Any]) -> bool:
        roles = claims.get("roles")
        is_whole = all(isinstance(claims.get(name), str) and claims[name] for name in _TEXTS)
        are_roles = isinstance(roles, list) and all(isinstance(role, str) for role in roles)
        is_ours = (claims.get("iss"), claims.get("aud")) == (ISSUER, self._audience)
        return is_whole and are_roles and is_ours and type(claims.get("lease")) is int

    def _is_timely(self, claims: Mapping[str, Any]) -> bool:
        made, ends, now = claims.get("iat"), claims.get("exp"), self._now()
        if type(made) is not int or type(ends) is not int:
            return False
        return made - _SKEW_SECONDS <= now < ends + _SKEW_SECONDS and 0 < ends - made <= LIFE_SECONDS

    def _is_first(self, number: str) -> bool:
        """Whether it was not used before; those that are too old to be used again are forgotten."""
        now = self._now()
        while self._seen and next(iter(self._seen.values())) < now:
            self._seen.popitem(last=False)
        if number in self._seen:
            return False
        self._seen[number] = now + LIFE_SECONDS + 2 * _SKEW_SECONDS
        return True
