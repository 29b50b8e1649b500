"""What a backend offers, held in memory.

`Listing` is what one backend answered to the four list requests; `Catalogue` keeps one per kind of caller and renews
it: when the backend says `list_changed`, when a connection was opened again, and on a timer, with one request in flight
at a time. Listings and calls are answered from here; a backend that is slow or gone is answered for with what was known
last, or left out. The requests go through a `lease`.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import anyio
from anyio.abc import TaskGroup
from pydantic_core import to_json

from providers.caller import Caller
from providers.connection import Target
from providers.errors import BackendError
from providers.lease import Lease, lease
from providers.lines import Json, MCPError
from providers.pool import McpConnectionPool

logger = logging.getLogger(__name__)

MAX_COMPONENTS = 5_000
"""Of each kind from one backend; the rest is left out, with a warning."""

_MAX_SCOPES = 1_000
_LISTS = {
    "tools": ("tools/list", "tools"),
    "resources": ("resources/list", "resources"),
    "templates": ("resources/templates/list", "resourceTemplates"),
    "prompts": ("prompts/list", "prompts"),
}
KINDS = ("tools", "resources", "prompts")
"""What a `notifications/…/list_changed` can be about; templates count as resources."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Listing:
    """What a backend offered to one kind of caller, as it sent it. Equal listings are one object."""

    tools: tuple[Json, ...]
    resources: tuple[Json, ...]
    templates: tuple[Json, ...]
    prompts: tuple[Json, ...]
    facts: Json
    digests: dict[str, str]

    def changes(self, other: Listing | None) -> frozenset[str]:
        """Of `KINDS`, those in which two listings differ."""
        return frozenset(kind for kind in KINDS if other is None or self.digests[kind] != other.digests[kind])


def make_listing(parts: dict[str, list[Json]], facts: Json) -> Listing:
    digests = {
        "tools": _digest(parts["tools"]),
        "resources": _digest([parts["resources"], parts["templates"]]),
        "prompts": _digest(parts["prompts"]),
    }
    return Listing(**{name: tuple(items) for name, items in parts.items()}, facts=facts, digests=digests)


def _digest(value: Any) -> str:
    return hashlib.sha256(to_json(value)).hexdigest()


@dataclass(slots=True)
class _Scope:
    """The listing for one kind of caller, and how it stands with it."""

    caller: Caller
    listing: Listing | None = None
    loaded_at: float = 0.0
    is_stale: bool = True
    was_missed: bool = False
    """Somebody was answered without it, and is to hear when it comes."""
    loading: anyio.Event | None = None
    error: BackendError | None = field(default=None)


class Catalogue:
    """The listings of one mounted server.

    Args:
        target: the current generation.
        on_change: told which of `KINDS` changed, for a notification to the clients.
        refresh_interval: seconds after which a listing is asked for again.
    """

    def __init__(
        self,
        pool: McpConnectionPool,
        target: Callable[[], Target],
        on_change: Callable[[frozenset[str]], None],
        refresh_interval: float = 300.0,
    ) -> None:
        self._pool, self._target, self._on_change = pool, target, on_change
        self._refresh_interval = refresh_interval
        self._scopes: OrderedDict[str, _Scope] = OrderedDict()
        self._interned: WeakValueDictionary[tuple[str, ...], Listing] = WeakValueDictionary()
        self._tasks: TaskGroup | None = None

    def __repr__(self) -> str:
        return f"<Catalogue {self._target().resource.name} {len(self._scopes)} scopes>"

    def start(self, tasks: TaskGroup) -> None:
        """Load in this task group from now on."""
        self._tasks = tasks

    # --- read

    def peek(self, caller: Caller) -> Listing | None:
        """What is known for this caller, without asking the backend."""
        scope = self._find(caller)
        return scope.listing if scope else None

    def newest(self) -> Listing | None:
        """Any known listing: for facts about the server that depend on no caller."""
        known = (scope.listing for scope in self._scopes.values() if scope.listing)
        return next(known, None)

    async def get(self, caller: Caller, patience: float | None = None) -> Listing | None:
        """What the backend offers this caller. What is known is given at once, and renewed in the background if it is
        stale; otherwise the backend is asked, for at most `patience` seconds (None: as long as its own deadlines)."""
        scope = self._find(caller) or self._add(caller)
        self._load_if_stale(scope)
        if scope.listing is None and scope.loading is not None:
            with anyio.move_on_after(patience):
                await scope.loading.wait()
        if scope.listing is None:
            scope.was_missed = True
        return scope.listing

    def ask_soon(self, caller: Caller) -> None:
        """Ask in the background, if nothing is known for this caller."""
        self._load_if_stale(self._find(caller) or self._add(caller))

    def renew_if_stale(self, caller: Caller) -> None:
        """Ask again in the background if what is known for this caller is stale."""
        if scope := self._find(caller):
            self._load_if_stale(scope)

    def error(self, caller: Caller) -> BackendError | None:
        """Why there is no listing, when the last attempt failed."""
        scope = self._find(caller)
        return scope.error if scope else None

    def _find(self, caller: Caller) -> _Scope | None:
        return self._scopes.get(caller.session) or self._scopes.get(_scope_key(caller))

    def _add(self, caller: Caller) -> _Scope:
        scope = self._scopes[_scope_key(caller)] = _Scope(caller)
        while len(self._scopes) > _MAX_SCOPES:
            self._scopes.popitem(last=False)
        return scope

    def _rests(self) -> bool:
        return self._pool.backoff.rests_for(self._target().key) > 0

    # --- renew

    def changed(self, caller: Caller, method: str) -> None:
        """A backend connection of this caller said that its lists changed, or was opened again: ask it anew. A client
        session whose backend changes its lists for it alone gets a listing of its own."""
        scope = self._scopes.get(caller.session)
        if scope is None and method and caller.has_session:
            base = self._find(caller)
            scope = self._scopes[caller.session] = _Scope(caller, listing=base.listing if base else None)
        self._renew(scope or self._find(caller) or self._add(caller))

    def changed_for_all(self) -> None:
        """The server's generation changed: ask for every listing anew; what is known stands until then."""
        for scope in self._scopes.values():
            self._renew(scope)

    def forget_session(self, session: str) -> None:
        """A client's session ended: its own listing goes, and nothing is asked on its behalf any more."""
        self._scopes.pop(session, None)
        for key in [key for key, scope in self._scopes.items() if scope.caller.session == session]:
            if self._scopes[key].listing is None:
                del self._scopes[key]

    def tick(self) -> None:
        """Called about once a second: renew what is old, and try again what failed and is missed."""
        now = anyio.current_time()
        for scope in list(self._scopes.values()):
            if scope.listing is not None and now - scope.loaded_at > self._refresh_interval:
                scope.is_stale = True
            self._load_if_stale(scope)

    def _load_if_stale(self, scope: _Scope) -> None:
        if scope.is_stale and scope.loading is None and not self._rests():
            self._load_soon(scope)

    def _renew(self, scope: _Scope) -> None:
        scope.is_stale = True
        if scope.loading is None:
            self._load_soon(scope)

    def _load_soon(self, scope: _Scope) -> None:
        if self._tasks is not None:
            scope.loading = anyio.Event()
            scope.is_stale = False  # a change that is announced from here on makes it stale again
            self._tasks.start_soon(self._load, scope)

    async def _load(self, scope: _Scope) -> None:
        before, finished = scope.listing, scope.loading
        assert finished is not None
        try:
            async with lease(self._pool, self._target(), scope.caller) as held:
                listing = await _fetch(held, self._target())
            scope.listing = self._interned.setdefault(tuple(listing.digests.values()), listing)
            scope.loaded_at, scope.error = anyio.current_time(), None
        except BackendError as error:
            scope.error, scope.is_stale = error, True
        finally:
            scope.loading = None
            finished.set()
        if scope.listing is not None and (before is not None or scope.was_missed):
            scope.was_missed = False
            if changes := scope.listing.changes(before):
                self._on_change(changes)


def _scope_key(caller: Caller) -> str:
    """A backend hears who asks and what the client can be asked, so its answer may depend on either."""
    return f"{caller.identity.key};{','.join(sorted(caller.capabilities))}"


async def _fetch(held: Lease, target: Target) -> Listing:
    facts = held.session.facts
    declared = facts.get("capabilities") or {}
    parts: dict[str, list[Json]] = {}
    for name, (method, key) in _LISTS.items():
        offered = declared.get("resources" if name == "templates" else name) is not None
        parts[name] = await _pages(held, method, key, target) if offered else []
    return make_listing(parts, facts)


async def _pages(held: Lease, method: str, key: str, target: Target) -> list[Json]:
    items: list[Json] = []
    cursor: str | None = None
    seen: set[str | None] = set()
    while cursor not in seen:
        seen.add(cursor)
        try:
            page = await held.request(
                method, {"cursor": cursor} if cursor else {}, deadline=target.resource.timeouts.initialize
            )
        except MCPError as error:
            logger.info(
                "server '%s' declares '%s' but answers it with an error (%s)",
                target.resource.name,
                key,
                error,
            )
            break
        items += [item for item in page.get(key, []) if isinstance(item, dict)]
        cursor = page.get("nextCursor")
        if not cursor:
            break
        if len(items) >= MAX_COMPONENTS:
            logger.warning(
                "server '%s' offers more than %d %s; the rest is left out",
                target.resource.name,
                MAX_COMPONENTS,
                key,
            )
            break
    return items[:MAX_COMPONENTS]
