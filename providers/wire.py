"""A wire: one open line to one backend, carrying whole JSON-RPC messages as dictionaries.

Each way of reaching a backend (`stdio`, `remote`, `inprocess`) opens one; `client` lays an MCP session over it. A wire
knows nothing of MCP sessions, pools or identities beyond what the class below says, so it is the place where sizes
are capped and where a dead peer is noticed first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from typing import Any

import anyio

from providers.errors import BackendError, BackendLost
from providers.identity import Identity

Message = dict[str, Any]
"""One JSON-RPC message, as `json.loads` gives it."""


class OfRequest(Message):
    """A message that came on the stream of the answer to one of our requests, as those do over Streamable HTTP that
    belong to it."""

    def __init__(self, message: Message, request_id: int | str) -> None:
        super().__init__(message)
        self.request_id = request_id


Deliver = Callable[[Message], Awaitable[None]]
"""Takes one message from the backend, in order; it waits while the session above is busy: the back-pressure."""

OpenWire = Callable[[Deliver], AbstractAsyncContextManager["Wire"]]
"""Opens a wire that hands what it receives to the given `Deliver`. The body of the context may run only while the
backend is there; leaving it ends processes, requests and sockets within the shutdown deadline."""

opened_for: ContextVar[str] = ContextVar("apollos_opened_for", default="shared")
"""Whose the wire is that is being opened: a client session, a user, everybody (`shared`) or one call. The pool sets it;
only a way to reach a server that keeps one backend for several wires asks."""

opened_by: ContextVar[Identity | None] = ContextVar("apollos_opened_by", default=None)
"""Who caused it to be opened; set with `opened_for`. Where each user has secrets of his own, it gets his. What is sent
over a shared wire between calls is nobody's, but a replica lets nobody in who is not somebody."""

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""The cap on one message from a backend, the same over every wire."""

NOT_SENT = "dev.apollos/not-sent"
"""In `error.data` of an error answer that a wire made itself: the request never reached the backend."""

LOST = "dev.apollos/lost"
"""The same for a request that was sent, and whose answer was lost with the connection."""

WIRE_ERROR_CODE = -32099
"""JSON-RPC code of an error answer that a wire made itself; it never leaves the gateway."""


class Wire(ABC):
    """One open line to a backend."""

    identity_in_meta: bool
    """True where the caller's identity goes into the request's `_meta` (processes), false where into headers."""

    def __init__(self, server: str) -> None:
        self.server = server
        self.identity: Identity | None = None
        """On whose behalf messages are sent now; set by the pool in the step that hands the connection out."""
        self.closed = anyio.Event()
        """Set once the wire is dead, whoever ended it. Nothing is delivered afterwards."""
        self.failure: BackendError | None = None
        """Why it died, when the backend is to blame."""

    @abstractmethod
    async def send(self, message: Message, headers: Mapping[str, str]) -> None:
        """Send one message. `headers` are MCP's own for this message (`Mcp-Method`, `MCP-Protocol-Version`, …); a
        wire that is not HTTP ignores them. Returns once the message is written or safely on its way.

        Raises:
            BackendError: the wire is dead. `not_sent` says whether the message may be sent again.
        """

    def fail(self, error: BackendError) -> None:
        """Mark the wire dead because of the backend; the first reason stands."""
        if not self.closed.is_set():
            self.failure = error.again()
            self.closed.set()


def error_answer(request_id: Any, error: BackendError) -> Message:
    """The answer to a request that a wire could not carry, so that its caller hears of it at once."""
    data = {NOT_SENT: True} if error.not_sent else {LOST: True} if isinstance(error, BackendLost) else None
    return {
        "jsonrpc": "2.0",
        "id": request_id,
        "error": {"code": WIRE_ERROR_CODE, "message": str(error), **({"data": data} if data else {})},
    }
