"""The stream on which a 2026-07-28 backend tells what it would otherwise tell nobody: `subscriptions/listen`.

That era has no standing connection: a server speaks of changed lists and updated resources only to who listens. So a
`BackendSession` of that era holds one such stream for as long as it lives, if the server declares anything to hear.
The stream's notifications come in over the wire like all others; here is what keeps it open.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from anyio.abc import TaskGroup

from providers import lines
from providers.errors import BackendError, BackendProtocolError, BackendTimeout
from providers.lines import Json, MCPError

logger = logging.getLogger(__name__)

SUBSCRIPTION_META_KEY = "io.modelcontextprotocol/subscriptionId"
"""In the `_meta` of all that comes on a stream: the id of the request that opened it."""

ACKNOWLEDGED = "notifications/subscriptions/acknowledged"

_KINDS = {"tools": "toolsListChanged", "prompts": "promptsListChanged", "resources": "resourcesListChanged"}
_METHOD_NOT_FOUND = -32601
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a stream that broke is opened again; they double until one is acknowledged."""


def listenable(capabilities: Json) -> tuple[Json, bool]:
    """What a server declares that one can listen to: the kinds of list, as a filter, and whether single resources."""
    kinds = {flag: True for kind, flag in _KINDS.items() if (capabilities.get(kind) or {}).get("listChanged")}
    return kinds, bool((capabilities.get("resources") or {}).get("subscribe"))


class _Stream:
    """One open request, from the moment that it is sent."""

    def __init__(self, asked: Json) -> None:
        self.asked = asked
        self.id: Any = None
        self.honored: frozenset[str] = frozenset()
        self.acknowledged, self.over = anyio.Event(), anyio.Event()
        self.error: Exception | None = None
        self.scope = anyio.CancelScope()

    @property
    def is_open(self) -> bool:
        return self.acknowledged.is_set() and not self.over.is_set()


class Listening:
    """Keeps one stream open at a backend.

    Args:
        capabilities: what the server declared.
        send: sends the request and waits for its answer, which comes when the stream ends.
        tasks: of the session; they end with it.
        patience: seconds for the acknowledgement.
        on_gap: told when a stream is open again that had broken: something may have been missed.
    """

    def __init__(
        self,
        server: str,
        capabilities: Json,
        send: Callable[[Json], Awaitable[Json]],
        *,
        tasks: TaskGroup,
        patience: float,
        on_gap: Callable[[], None],
    ) -> None:
        self._server, self._send, self._tasks = server, send, tasks
        self._patience, self._on_gap = patience, on_gap
        self._kinds, self.takes_resources = listenable(capabilities)
        self.uris: frozenset[str] = frozenset()
        """The resources that are listened to."""
        self._stream: _Stream | None = None
        self._opening: _Stream | None = None
        self._turn = anyio.Lock()
        self._changed = anyio.Event()
        self._is_refused = False

    def __repr__(self) -> str:
        state = "open" if self._stream and self._stream.is_open else "closed"
        return f"<Listening {self._server} {state} {len(self.uris)} resources>"

    @property
    def _wanted(self) -> Json:
        return self._kinds | ({"resourceSubscriptions": sorted(self.uris)} if self.uris else {})

    async def keep(self) -> None:
        """Keep the stream open until cancelled; a server that knows no such request is not asked twice."""
        pause = _FIRST_PAUSE
        while True:
            self._changed = anyio.Event()
            if self._stream is not None and self._stream.is_open:
                pause = _FIRST_PAUSE
                await self._stream.over.wait()
            elif not self._wanted or self._is_refused:
                await self._changed.wait()
            elif not await self._try_again():
                await anyio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    async def _try_again(self) -> bool:
        try:
            async with self._turn:
                if self._stream is None or not self._stream.is_open:
                    await self._switch()
        except (BackendError, MCPError) as error:
            logger.debug("server '%s': it cannot be listened to now (%s)", self._server, error)
            self._is_refused = isinstance(error, MCPError) and lines.error_data(error)["code"] == _METHOD_NOT_FOUND
            return False
        return True

    async def watch(self, uris: frozenset[str]) -> frozenset[str]:
        """Hear of these resources from now on, and of no others; which of them the server tells of.

        Raises:
            MCPError: the server refused.
            BackendError: it did not answer.
        """
        async with self._turn:
            before, self.uris = self.uris, uris
            if self._stream is None or not self._stream.is_open or self._stream.asked != self._wanted:
                try:
                    await self._switch()
                except (BackendError, MCPError):
                    self.uris = before
                    raise
            return self._stream.honored if self._stream else frozenset()

    async def _switch(self) -> None:
        """Open a stream for what is wanted now, and only then end the one before: nothing is missed in between."""
        old, asked = self._stream, self._wanted
        if asked:
            await self._open(_Stream(asked))
        else:
            self._stream = None
        if old is not None:
            had_broken = old.over.is_set()
            old.scope.cancel()
            if had_broken:
                self._on_gap()
        self._changed.set()

    async def _open(self, stream: _Stream) -> None:
        self._opening = stream
        try:
            self._tasks.start_soon(self._hold, stream)
            with anyio.move_on_after(self._patience):
                await stream.acknowledged.wait()
        finally:
            self._opening = None
            if not stream.acknowledged.is_set():
                stream.scope.cancel()
        if stream.is_open:
            return
        if stream.error is not None:
            raise stream.error
        if stream.over.is_set():
            raise BackendProtocolError(self._server, "ended 'subscriptions/listen' at once.")
        raise BackendTimeout(self._server, f"did not acknowledge 'subscriptions/listen' within {self._patience:g} s.")

    async def _hold(self, stream: _Stream) -> None:
        try:
            with stream.scope:
                await self._send({"notifications": stream.asked})
        except (BackendError, MCPError) as error:
            stream.error = error
        finally:
            stream.over.set()
            stream.acknowledged.set()  # who waits for it need not wait any longer

    # --- what comes in

    def acknowledge(self, params: Json) -> None:
        """The server took the request. What follows on the wire belongs to the new stream."""
        stream = self._opening
        if stream is None or stream.acknowledged.is_set():
            return
        granted = params.get("notifications")
        uris = granted.get("resourceSubscriptions") if isinstance(granted, dict) else None
        named = uris if isinstance(uris, list) else []
        stream.honored = frozenset(uri for uri in named if isinstance(uri, str))
        stream.id = subscription_of(params)
        stream.acknowledged.set()
        self._stream = stream

    def is_current(self, params: Json) -> bool:
        """Whether a notification belongs to the stream that is open: not to one that was replaced."""
        stream, told = self._stream, subscription_of(params)
        return told is None or stream is None or stream.id is None or told == stream.id or not stream.is_open


def subscription_of(params: Json) -> Any:
    """The stream that a notification came on."""
    meta = params.get("_meta")
    return meta.get(SUBSCRIPTION_META_KEY) if isinstance(meta, dict) else None


def without_subscription(params: Json) -> Json:
    """A notification's params less the mark of the stream that they came on: it is our own."""
    given = params.get("_meta")
    meta = {key: given[key] for key in given if key != SUBSCRIPTION_META_KEY} if isinstance(given, dict) else {}
    rest = {key: value for key, value in params.items() if key != "_meta"}
    return rest | {"_meta": meta} if meta else rest
