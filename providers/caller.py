"""Who is calling, and the live request that waits for the answer.

A `Caller` is a value: identity, client session, what the client can be asked. It decides which backend connection may
be used. A `Front` is the open request itself: what a backend sends during a call goes to the front of that call, or to
nobody. `ClientSessions` knows the client sessions that are alive.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

import anyio
from fastmcp.server.context import Context

from providers import lines
from providers.capabilities import NO_CAPABILITIES, Capabilities
from providers.identity import Identity
from providers.lines import Json
from providers.log_levels import is_loud_enough

logger = logging.getLogger(__name__)

MethodsFor = Callable[[Identity, str | None], list[str]]
"""The notifications that concern a user's client which came for one server, or for all (None)."""

_ANNOUNCE_DEADLINE = 5.0
MAX_QUESTIONS = 16
"""That a backend may have open at once."""

NOT_ASKED = {"code": -32601, "message": "The client that made this call cannot be asked this."}
_NOT_IN_THIS_WAY = {"code": -32602, "message": "The client that made this call did not declare this way of asking."}


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf, and from which client session. `session` is the user where the client's era has no sessions."""

    identity: Identity
    session: str
    capabilities: Capabilities = NO_CAPABILITIES
    has_session: bool = True
    is_modern: bool = False
    """The client speaks the 2026-07-28 era: it has no session and is not sent questions."""
    server: str | None = None
    """The one server that the client came for; None: for all of them."""


class CallClock:
    """The deadline of one call: `patience` seconds without progress, at most `longest` in all. While a person is asked
    a question only the latter counts."""

    def __init__(self, patience: float, longest: float) -> None:
        self._patience = patience
        self._latest = anyio.current_time() + max(patience, longest)
        self._questions = 0
        self.scope = anyio.CancelScope()
        self.touch()

    def touch(self) -> None:
        patience = math.inf if self._questions else self._patience
        self.scope.deadline = min(anyio.current_time() + patience, self._latest)

    @contextmanager
    def resting(self) -> Iterator[None]:
        self._questions += 1
        self.touch()
        try:
            yield
        finally:
            self._questions -= 1
            self.touch()

    @property
    def waited(self) -> str:
        if anyio.current_time() >= self._latest:
            return "within the longest time that a call may take, although it reported progress"
        return f"within {self._patience:g} s"


@dataclass(slots=True)
class Front:
    """The client's request that waits for a call. Messages for it come from the backend's task."""

    request: Any
    caller: Caller
    progress_token: str | int | None = None
    is_deaf: bool = False
    """Its client did not take a message in time; it gets no more, so that it does not hold up the backend."""
    clock: CallClock = field(init=False)
    """Of the request to the backend that runs now; set by the session that sends it."""

    @property
    def is_parked(self) -> bool:
        """Whether its client has no request open, and is expected to come back."""
        return False

    @property
    def log_level(self) -> str | None:
        """The level that its client asked for."""
        return lines.log_level(self.request) if self.request is not None else None

    def _wants_log(self, level: object) -> bool:
        """Who never asked wants all of it in the handshake era, and nothing in that of 2026-07-28."""
        wanted = self.log_level
        return not (wanted is None and self.caller.is_modern) and is_loud_enough(level, wanted)

    async def tell(self, method: str, params: Json) -> None:
        """Pass a notification on, if this client wants it; a client that is gone is no error."""
        if method == "notifications/message" and not self._wants_log(params.get("level")):
            return
        await lines.tell_client(self.request, method, params)

    async def progress(self, params: Json) -> None:
        """Pass progress on under the client's own token."""
        if self.progress_token is not None:
            await self.tell("notifications/progress", {**params, "progressToken": self.progress_token})

    def refusal(self, method: str, params: Json) -> Json | None:
        """The JSON-RPC error for a question that this client is not to be asked: it did not declare that it answers
        such, or its era sends none. None where it may be asked."""
        return NOT_ASKED if self.caller.is_modern else refusal_for(self.caller.capabilities, method, params)

    async def ask(self, method: str, params: Json | None) -> Json:
        """Pass a question on and give the client's answer.

        Raises:
            MCPError: the client refused, or cannot be asked.
        """
        return await lines.ask_client(self.request, method, params or None)


def refusal_for(capabilities: Capabilities, method: str, params: Json) -> Json | None:
    """The JSON-RPC error for a question that a client did not declare; None where it did."""
    if capabilities.missing(method, params) is None:
        return None
    return _NOT_IN_THIS_WAY if capabilities.has(method) else NOT_ASKED


def front_of(context: Context | None, caller: Caller) -> Front | None:
    """The front of the request that runs in this task, if there is one."""
    if context is None or (request := lines.live_request(context)) is None:
        return None
    return Front(request, caller, lines.progress_token(context))


class ClientSessions:
    """The client sessions that are alive, each under a key of our own (never the client's session id, which is a
    credential). Sessions end by themselves; whoever holds something for one registers in `on_end`."""

    def __init__(self) -> None:
        self._keys: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
        self._identities: dict[str, Identity] = {}
        self._servers: dict[str, str | None] = {}
        self.on_end: list[Callable[[str], Awaitable[None]]] = []

    def __repr__(self) -> str:
        return f"<ClientSessions {len(self._identities)} alive>"

    def __len__(self) -> int:
        return len(self._identities)

    def caller(self, context: Context | None, identity: Identity, server: str | None = None) -> Caller:
        """The caller of the current request; a session that was not seen before is remembered until it ends.

        Args:
            server: the one that the client came for, if it did not come for all; a session keeps its first.
        """
        if context is None or (context.request_context is None and lines.session_owner(context) is None):
            return Caller(identity, f"process:{identity.key}", has_session=False)
        if lines.is_modern_request(context):
            declared = Capabilities.of(lines.declared_capabilities(context))
            return Caller(identity, f"user:{identity.key}", declared, has_session=False, is_modern=True, server=server)
        owner = lines.session_owner(context)
        key = self._keys.get(owner) or self._remember(owner, server)
        self._identities[key] = identity
        declared = Capabilities.of(lines.declared_capabilities(context))
        return Caller(identity, key, declared, server=self._servers.get(key))

    def count(self, identity: Identity) -> int:
        """How many sessions of a user are alive."""
        return sum(known.key == identity.key for known in self._identities.values())

    def is_alive(self, caller: Caller) -> bool:
        """Whether the caller's session still lasts; who has none is always there."""
        return not caller.has_session or caller.session in self._identities

    def _remember(self, owner: Any, server: str | None) -> str:
        key = f"session:{uuid4().hex}"
        self._keys[owner], self._servers[key] = key, server

        async def ended() -> None:
            self._identities.pop(key, None)
            self._servers.pop(key, None)
            self._keys.pop(owner, None)
            for callback in self.on_end:
                await callback(key)

        lines.on_session_end(owner, ended)
        return key

    def identity_of(self, caller: Caller) -> Identity:
        """As whom the caller's session called last: its roles may be others by now."""
        return self._identities.get(caller.session, caller.identity) if caller.has_session else caller.identity

    async def tell(self, caller: Caller, method: str, params: Json) -> None:
        """Send a notification to the caller's session at large. A client that is gone, or does not take it in time, is
        no error."""
        owner = next((owner for owner, key in self._keys.items() if key == caller.session), None)
        if owner is not None:
            await self._tell(owner, [method], params)

    async def log(self, caller: Caller, params: Json) -> None:
        """Pass a log message on that belongs to a handshake session and to none of its calls."""
        owner = next((owner for owner, key in self._keys.items() if key == caller.session), None)
        if owner is not None and is_loud_enough(params.get("level"), lines.session_log_level(owner)):
            await self._tell(owner, ["notifications/message"], params)

    async def announce(self, methods_for: MethodsFor) -> None:
        """Send notifications without params to each session, as its user and the server that it came for are concerned;
        a stuck client costs the others nothing."""
        async with anyio.create_task_group() as tasks:
            for owner, key in list(self._keys.items()):
                identity = self._identities.get(key)
                if identity is not None and (methods := methods_for(identity, self._servers.get(key))):
                    tasks.start_soon(self._tell, owner, methods)

    async def _tell(self, owner: Any, methods: list[str], params: Json | None = None) -> None:
        try:
            with anyio.move_on_after(_ANNOUNCE_DEADLINE):
                for method in methods:
                    await lines.tell_session(owner, method, params)
        except Exception as error:  # noqa: BLE001 - a task ends here: one client must not end the gateway
            logger.debug("a client session could not be told of a change (%r)", error)
