"""What a backend offers, held in memory.

`Listing` is what one backend answered to the four list requests; `Catalogue` keeps one per kind of caller and renews
it: when the backend says `list_changed`, when a connection was opened again, and on a timer, with one request in flight
at a time. Listings and calls are answered from here; a backend that is slow or gone is answered for with what was known
last, or left out. The requests go through a `lease`.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote
from weakref import WeakValueDictionary

import anyio
from anyio.abc import TaskGroup
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, to_json

from providers.caller import Caller
from providers.connection import Target
from providers.errors import BackendError, BackendProtocolError, BackendTimeout, ClientGone
from providers.identity import Identity
from providers.lease import Lease, lease
from providers.lines import Json, MCPError, mcp_types
from providers.pool import McpConnectionPool
from providers.resource import Isolation

logger = logging.getLogger(__name__)

MAX_COMPONENTS = 5_000
"""Of each kind from one backend; the rest is left out, with a warning."""

MAX_LIST_BYTES = 512 * 1024
"""The same in bytes of JSON. A client that gets more in one answer than it takes loses the list of all servers: the
Python SDK's takes 1 MiB over HTTP."""

_MAX_SCOPES = 1_000
_MAX_PAGES = 100
_FAULT_PAUSE = 30.0
_RENEW_PAUSE = 1.0
"""Seconds between two renewals that a server causes."""
_LISTS: dict[str, tuple[str, str, type[BaseModel]]] = {
    "tools": ("tools/list", "tools", mcp_types.Tool),
    "resources": ("resources/list", "resources", mcp_types.Resource),
    "templates": ("resources/templates/list", "resourceTemplates", mcp_types.ResourceTemplate),
    "prompts": ("prompts/list", "prompts", mcp_types.Prompt),
}
"""What each kind of component is asked for by, the key of its answer, and what MCP prescribes for one."""
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
        "facts": _digest(facts),  # they may speak of the user, so they keep listings apart, too
    }
    return Listing(**{name: tuple(items) for name, items in parts.items()}, facts=facts, digests=digests)


def _digest(value: Any) -> str:
    return hashlib.sha256(to_json(value)).hexdigest()


@dataclass(slots=True)
class _Scope:
    """The listing for one kind of caller, and how it stands with it."""

    caller: Caller
    """The last one who asked: on whose behalf it is renewed."""
    listing: Listing | None = None
    began_at: float = -math.inf
    loaded_at: float = 0.0
    rests_until: float = -math.inf
    is_dormant: bool = False
    """The session of its caller ended; nothing is asked until somebody comes for it."""
    is_stale: bool = True
    was_used: bool = False
    """Somebody was answered with it since it was asked for last. What nobody uses is not renewed: that would keep a
    backend running for nobody."""
    told: set[str] = field(default_factory=set)
    """Of `KINDS`, those that the backend has said to have changed since it was asked last. The clients hear of it even
    if nothing differs by now: somebody may have seen what was there in between."""
    was_missed: bool = False
    """Somebody was answered without it, and is to hear when it comes."""
    loading: anyio.Event | None = None
    error: BackendError | None = field(default=None)


class Catalogue:
    """The listings of one mounted server.

    Args:
        target: the current generation.
        on_change: told which of `KINDS` changed, and for whom, for a notification to the clients.
        refresh_interval: seconds after which a listing is asked for again.
    """

    def __init__(
        self,
        pool: McpConnectionPool,
        target: Callable[[], Target],
        on_change: Callable[[frozenset[str], Identity], None],
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

    def known_to(self, identity: Identity) -> Listing | None:
        """Any listing of this user: what the server said of itself is told to nobody else."""
        own = (scope for scope in self._scopes.values() if scope.listing and scope.caller.identity == identity)
        return next((scope.listing for scope in own), None)

    async def get(self, caller: Caller, patience: float | None = None) -> Listing | None:
        """What the backend offers this caller. What is known is given at once, and renewed in the background if it is
        stale; otherwise the backend is asked, for at most `patience` seconds (None: as long as its own deadlines)."""
        scope = self._take_over(caller) or self._add(_scope_key(caller), caller)
        self._load_if_stale(scope)
        if scope.listing is None and scope.loading is not None:
            has_waited = scope.was_missed and patience is not None  # who lists is told when it comes
            with anyio.move_on_after(0 if has_waited else patience):
                await scope.loading.wait()
        scope.was_used, scope.was_missed = True, scope.was_missed or scope.listing is None
        return scope.listing

    def renew_if_stale(self, caller: Caller) -> None:
        """Ask again in the background if what is known for this caller is stale."""
        if scope := self._take_over(caller):
            self._load_if_stale(scope)

    def error(self, caller: Caller) -> BackendError | None:
        """Why there is no listing: the server rests after failures, or the last attempt failed."""
        scope = self._find(caller)
        return self._pool.backoff.refusal(self._target().key) or (scope.error if scope else None)

    def _find(self, caller: Caller) -> _Scope | None:
        return self._scopes.get(caller.session) or self._scopes.get(_scope_key(caller))

    def _take_over(self, caller: Caller) -> _Scope | None:
        """The caller's scope, renewed on this caller's behalf from now on."""
        scope = self._find(caller)
        if scope is not None:
            scope.caller, scope.is_dormant, scope.was_used = caller, False, True
            self._age(scope)
            self._scopes.move_to_end(caller.session if caller.session in self._scopes else _scope_key(caller))
        return scope

    def _add(self, key: str, caller: Caller, listing: Listing | None = None) -> _Scope:
        scope = self._scopes[key] = _Scope(caller, listing)
        while len(self._scopes) > _MAX_SCOPES:
            self._scopes.popitem(last=False)
        return scope

    def _rests(self) -> bool:
        return self._pool.backoff.rests_for(self._target().key) > 0

    # --- renew

    def changed(self, caller: Caller, method: str) -> None:
        """A backend connection that this caller opened said that its lists changed, or was opened again: ask it anew,
        for everybody who shares it. A client session with a backend of its own gets a listing of its own."""
        match self._target().resource.isolation:
            case Isolation.SHARED:
                self.changed_for_all(method)
            case Isolation.USER:
                self._changed_for(caller.identity, method)
            case _:
                self._changed_for_session(caller, method)

    def _changed_for(self, identity: Identity, method: str) -> None:
        for scope in self._scopes.values():
            if scope.caller.identity.key == identity.key:
                self._renew(scope, method)

    def _changed_for_session(self, caller: Caller, method: str) -> None:
        base = self._find(caller)
        if method and caller.has_session and caller.session not in self._scopes:
            base = self._add(caller.session, caller, base.listing if base else None)
        if base is not None:
            self._renew(base, method)

    def changed_for_all(self, method: str = "") -> None:
        """The server's generation changed, or all share it: ask for every listing anew; what is known stands until
        then."""
        for scope in self._scopes.values():
            self._renew(scope, method)

    def forget_session(self, session: str) -> None:
        """A client's session ended: its own listing goes, and nothing is asked on its behalf any more."""
        self._scopes.pop(session, None)
        for scope in self._scopes.values():
            if scope.caller.session == session:
                scope.is_dormant = True

    def tick(self) -> None:
        """Called about once a second: renew what is old, and try again what failed and is missed."""
        for scope in list(self._scopes.values()):
            if scope.was_used:
                self._age(scope)
            self._load_if_stale(scope)

    def _age(self, scope: _Scope) -> None:
        if scope.listing is not None and anyio.current_time() - scope.loaded_at > self._refresh_interval:
            scope.is_stale = True

    def _load_if_stale(self, scope: _Scope) -> None:
        if scope.is_dormant or not scope.is_stale or scope.loading is not None or self._rests():
            return
        if anyio.current_time() >= scope.rests_until:
            self._load_soon(scope)

    def _renew(self, scope: _Scope, method: str) -> None:
        """At once, if it was not asked for a moment ago; a server may announce changes without end."""
        scope.is_stale = True
        scope.told.update(kind for kind in KINDS if method == f"notifications/{kind}/list_changed")
        if not scope.is_dormant and scope.loading is None and anyio.current_time() - scope.began_at >= _RENEW_PAUSE:
            self._load_soon(scope)

    def _load_soon(self, scope: _Scope) -> None:
        if self._tasks is not None:
            scope.began_at = anyio.current_time()
            scope.loading = anyio.Event()
            scope.was_used = False
            scope.is_stale = False  # a change that is announced from here on makes it stale again
            self._tasks.start_soon(self._load, scope)

    async def _load(self, scope: _Scope) -> None:
        before, finished, told = scope.listing, scope.loading, scope.told
        scope.told = set()
        assert finished is not None
        try:
            # To renew what is known is not worth somebody's session.
            async with lease(self._pool, self._target(), scope.caller, may_evict=before is None) as held:
                listing = await _fetch(held, self._target())
            scope.listing = self._interned.setdefault(tuple(listing.digests.values()), listing)
            scope.loaded_at, scope.error = anyio.current_time(), None
        except BackendError as error:
            scope.error, scope.is_stale = None if isinstance(error, ClientGone) else error.again(), True
        except Exception as fault:  # a task ends here: one server's fault must not end the gateway
            server = self._target().resource.name
            logger.exception("server '%s': its lists could not be read", server, exc_info=fault)
            scope.error, scope.is_stale = BackendProtocolError(server, "lists what is not MCP. See the log."), True
            scope.rests_until = anyio.current_time() + _FAULT_PAUSE
        finally:
            scope.loading = None
            finished.set()
        if scope.listing is not None and (before is not None or scope.was_missed):
            scope.was_missed = False
            if changes := scope.listing.changes(before) | told:
                self._on_change(changes, scope.caller.identity)


def _scope_key(caller: Caller) -> str:
    """A backend hears who asks, in which roles, and what the client can be asked; its answer may depend on each."""
    roles = ",".join(quote(role, safe="") for role in sorted(caller.identity.roles))
    return f"{caller.identity.key};{roles};{caller.capabilities.text}"


async def _fetch(held: Lease, target: Target) -> Listing:
    facts = held.session.facts
    declared = facts.get("capabilities") or {}
    parts: dict[str, list[Json]] = {}
    for name, (method, key, shape) in _LISTS.items():
        gathered = _Gathering(target.resource.name, key, shape)
        if declared.get("resources" if name == "templates" else name) is not None:
            await _ask_for_pages(held, method, gathered, target.resource.timeouts.initialize)
        parts[name] = gathered.items
    return make_listing(parts, facts)


async def _ask_for_pages(held: Lease, method: str, gathered: _Gathering, patience: float) -> None:
    """All pages of one list, within `patience` seconds however many they are."""
    deadline = anyio.current_time() + patience
    cursor: str | None = None
    seen: set[str | None] = set()
    while cursor not in seen and len(seen) < _MAX_PAGES and not gathered.is_full:
        seen.add(cursor)
        remaining = max(deadline - anyio.current_time(), 0.001)
        try:
            page = await held.request(method, {"cursor": cursor} if cursor else {}, deadline=remaining)
        except BackendTimeout:
            problem = f"did not finish '{method}' within {patience:g} s. See its log, or raise timeouts.initialize."
            raise BackendTimeout(gathered.server, problem) from None
        except MCPError as error:
            logger.info("server '%s' declares what '%s' lists, but refuses it (%s)", gathered.server, method, error)
            break
        gathered.take(page.get(gathered.key))
        following = page.get("nextCursor")
        if not following or not isinstance(following, str):
            break
        cursor = following
    gathered.tell_what_is_missing()


class _Gathering:
    """Components of one kind, as far as they are what MCP prescribes and there is room: one that is not, or too many,
    would cost the client the list of all servers."""

    def __init__(self, server: str, key: str, shape: type[BaseModel]) -> None:
        self.server, self.key, self._shape = server, key, shape
        self.items: list[Json] = []
        self._room = MAX_LIST_BYTES
        self._invalid = self._too_much = 0

    @property
    def is_full(self) -> bool:
        return len(self.items) + self._invalid + self._too_much >= MAX_COMPONENTS

    def take(self, page: object) -> None:
        for item in page if isinstance(page, list) else ():
            size = self._size_of(item)
            if size is None:
                self._invalid += 1
            elif size > self._room or self.is_full:
                self._too_much += 1
            else:
                self.items.append(item)
                self._room -= size

    def _size_of(self, item: object) -> int | None:
        """Bytes of JSON; None for what is not MCP, or no text (half a surrogate pair)."""
        try:
            self._shape.model_validate(item)
            return len(to_json(item)) if isinstance(item, dict) else None
        except (ValidationError, PydanticSerializationError):
            return None

    def tell_what_is_missing(self) -> None:
        if self._invalid:
            logger.warning("server '%s': %d of its %s are not MCP; left out", self.server, self._invalid, self.key)
        if self.is_full or self._too_much:
            logger.warning(
                "server '%s' offers more %s than %d, or than %d KiB; the rest is left out",
                self.server,
                self.key,
                MAX_COMPONENTS,
                MAX_LIST_BYTES // 1024,
            )
