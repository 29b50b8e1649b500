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
from providers.identity import Identity
from providers.lines import Json

logger = logging.getLogger(__name__)

_ANNOUNCE_DEADLINE = 5.0


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf, and from which client session. `session` is the user where the client's era has no sessions."""

    identity: Identity
    session: str
    capabilities: frozenset[str] = frozenset()
    has_session: bool = True
    is_modern: bool = False
    """The client speaks the 2026-07-28 era: it has no session and is not sent questions."""


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

    async def tell(self, method: str, params: Json) -> None:
        """Pass a notification on, if this client wants it; a client that is gone is no error."""
        if method == "notifications/message" and not lines.wants_log(self.request, str(params.get("level"))):
            return
        await lines.tell_client(self.request, method, params)

    async def progress(self, params: Json) -> None:
        """Pass progress on under the client's own token."""
        if self.progress_token is not None:
            await self.tell("notifications/progress", {**params, "progressToken": self.progress_token})

    def can_be_asked(self, capability: str | None) -> bool:
        """Whether this client answers such questions: it declared that it does, and its era sends any."""
        return capability in self.caller.capabilities and not self.caller.is_modern

    async def ask(self, method: str, params: Json | None) -> Json:
        """Pass a question on and give the client's answer.

        Raises:
            MCPError: the client refused, or cannot be asked.
        """
        return await lines.ask_client(self.request, method, params)


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
        self.on_end: list[Callable[[str], Awaitable[None]]] = []

    def __repr__(self) -> str:
        return f"<ClientSessions {len(self._identities)} alive>"

    def __len__(self) -> int:
        return len(self._identities)

    def caller(self, context: Context | None, identity: Identity) -> Caller:
        """The caller of the current request; a session that was not seen before is remembered until it ends."""
        if context is None or (context.request_context is None and lines.session_owner(context) is None):
            return Caller(identity, f"process:{identity.key}", has_session=False)
        if lines.is_modern_request(context):
            declared = lines.declared_capabilities(context)
            return Caller(identity, f"user:{identity.key}", declared, has_session=False, is_modern=True)
        owner = lines.session_owner(context)
        key = self._keys.get(owner) or self._remember(owner)
        self._identities[key] = identity
        return Caller(identity, key, lines.declared_capabilities(context))

    def is_alive(self, caller: Caller) -> bool:
        """Whether the caller's session still lasts; who has none is always there."""
        return not caller.has_session or caller.session in self._identities

    def _remember(self, owner: Any) -> str:
        key = f"session:{uuid4().hex}"
        self._keys[owner] = key

        async def ended() -> None:
            self._identities.pop(key, None)
            self._keys.pop(owner, None)
            for callback in self.on_end:
                await callback(key)

        lines.on_session_end(owner, ended)
        return key

    async def announce(self, methods_for: Callable[[Identity], list[str]]) -> None:
        """Send notifications without params to each session, as its user is concerned; a stuck client costs the others
        nothing."""
        async with anyio.create_task_group() as tasks:
            for owner, key in list(self._keys.items()):
                identity = self._identities.get(key)
                if identity is not None and (methods := methods_for(identity)):
                    tasks.start_soon(self._tell, owner, methods)

    async def _tell(self, owner: Any, methods: list[str]) -> None:
        try:
            with anyio.move_on_after(_ANNOUNCE_DEADLINE):
                for method in methods:
                    await lines.tell_session(owner, method)
        except Exception as error:  # noqa: BLE001 - a task ends here: one client must not end the gateway
            logger.debug("a client session could not be told of a change (%r)", error)
