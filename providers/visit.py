"""A visit: one HTTP request, and what the gateway has found out about it.

`composition.door` makes one for each request and leaves it in the request's scope; the guard, the MCP server and the
REST API find it there. Nothing is called.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from providers.identity import Identity

_KEY = "apollos.visit"


@dataclass(slots=True)
class Visit:
    """One HTTP request. `source` is the address of whoever opened the connection, as the socket says."""

    source: str
    identity: Identity | None = None
    """Who makes it, once that is verified."""
    rule: str | None = None
    """Why it was refused, where the status does not say."""
    is_decided: bool = False
    """Its decision is in the audit already."""
    retry_after: int | None = None
    """Seconds after which to try again what was refused inside the MCP server: the status becomes 429, if no other has
    gone out."""


def visit_of(scope: MutableMapping[str, Any] | None) -> Visit | None:
    """The visit that a request's scope belongs to; None outside of `serve`."""
    found = scope.get(_KEY) if scope is not None else None
    return found if isinstance(found, Visit) else None


def begin_visit(scope: MutableMapping[str, Any]) -> Visit:
    client = scope.get("client")
    visit = scope[_KEY] = Visit(str(client[0]) if client else "unknown")
    return visit
