"""What the two wires to remote servers share: how a message leaves, which calls wait for their answer, and what
happens when the server has dropped the session.

`remote` (Streamable HTTP) and `sse` (the older HTTP+SSE) build on it; `endpoint` makes the requests. Each call is a
task of its own and nothing is locked, so that a server which is slow with one answer holds up nobody else.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint
from pydantic_core import to_json
from yarl import URL

from providers.endpoint import Endpoint, is_success
from providers.errors import BackendError, BackendUnavailable
from providers.resource import Timeouts
from providers.wire import Deliver, Message, Wire, error_answer

logger = logging.getLogger(__name__)

_SETTLE_SECONDS = 1.0
"""How long calls in flight may still get their own answer once the server has dropped our session."""
_MESSAGES_PER_TURN = 64
"""After so many messages the event loop gets a turn: a flood from one server must not hold up the others."""
_TELLS_AT_ONCE = 8
"""Notifications and answers under way at once. A server that floods us with requests waits for our answers."""


@asynccontextmanager
async def background_tasks() -> AsyncIterator[TaskGroup]:
    """Tasks that end with the block. They raise nothing; what the block raises comes out bare, not in a group."""
    try:
        async with anyio.create_task_group() as tasks:
            try:
                yield tasks
            finally:
                tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raised = group.exceptions[0]
        raise raised from raised.__cause__


class WireState(Enum):
    OPEN = "open"
    SESSION_LOST = "session lost"
    CLOSED = "closed"


@dataclass(slots=True, eq=False)
class Call:
    """One request of ours that has no answer yet. `headers` are those it is sent with, the caller's identity too."""

    id: Any
    method: str
    headers: Mapping[str, str]
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)

    @property
    def is_modern(self) -> bool:
        """Whether it is sent in the 2026-07-28 era, which has no sessions: who gives up a request just ends it."""
        return self.headers.get("mcp-protocol-version", "") >= "2026-"


class HttpWire(Wire):
    """A wire that sends each message with a POST. Where the answers come from is up to the kind of wire."""

    identity_in_meta = False

    def __init__(self, endpoint: Endpoint, deliver: Deliver, tasks: TaskGroup, timeouts: Timeouts) -> None:
        super().__init__(endpoint.server)
        self._endpoint, self._deliver, self._tasks, self._timeouts = endpoint, deliver, tasks, timeouts
        self._calls: dict[Any, Call] = {}
        self._lost_session: BackendUnavailable | None = None
        self._tellers = anyio.Semaphore(_TELLS_AT_ONCE)
        self._handed_up = 0

    @property
    def state(self) -> WireState:
        if self.closed.is_set():
            return WireState.CLOSED
        return WireState.SESSION_LOST if self._lost_session else WireState.OPEN

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.server}: {self.state.value}, {len(self._calls)} calls>"

    # ---------------------------------------------------------------------------------- what each kind of wire decides

    @abstractmethod
    def _headers_for(self, message: Message, given: Mapping[str, str]) -> dict[str, str]:
        """All headers of the POST with this message; `given` are MCP's own, from the session above."""

    @abstractmethod
    async def _exchange(self, call: Call, body: bytes) -> None:
        """POST a request and see to its answer. Raises BackendError where there will be none."""

    @abstractmethod
    def _is_session_lost(self, status: int, sent: Mapping[str, str]) -> bool:
        """Whether this status, in answer to these headers, says that the server no longer knows our session."""

    def _post_url(self) -> URL:
        return self._endpoint.url

    def _initialized(self) -> None:
        """The server has accepted our `notifications/initialized`."""

    # ---------------------------------------------------------------------------------------------------- messages out

    async def send(self, message: Message, headers: Mapping[str, str]) -> None:
        if self.state is not WireState.OPEN:
            failure = self.failure or self._lost_session
            problem = failure.problem if failure else "the connection is closed. Try again."
            raise BackendUnavailable(self.server, problem, not_sent=True)
        method = message.get("method")
        if method == "notifications/cancelled" and self._is_cancel_done(message):
            return
        # The headers are made now and not in the task, because they hold the identity of whoever sends.
        sent, body = self._headers_for(message, headers), to_json(message)
        if method is not None and "id" in message:
            call = self._calls[message["id"]] = Call(message["id"], method, sent)
            self._spawn(self._run_call, call, body)
        elif method == "notifications/initialized":
            if await self._tell(body, sent):  # awaited: nothing may overtake it
                self._initialized()
        else:
            await self._tellers.acquire()
            self._spawn(self._tell_in_turn, body, sent)

    def _is_cancel_done(self, notification: Message) -> bool:
        """End the call that is cancelled. True when nothing need be sent: its answer was here first, or ending the
        request is itself the signal (2026-07-28, basic/patterns/cancellation)."""
        call = self._calls.pop((notification.get("params") or {}).get("requestId"), None)
        if call is not None:
            call.scope.cancel()
        return call is None or call.is_modern

    def _spawn(self, work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        self._tasks.start_soon(self._run, work, *arguments)

    async def _run(self, work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        try:
            await work(*arguments)
        except Exception as fault:  # a task ends here: our fault ends this wire, not the gateway
            logger.warning("server '%s': a fault of ours ended the connection", self.server, exc_info=fault)
            problem = f"the gateway failed ({type(fault).__name__}). Its log has the details."
            self.fail(BackendUnavailable(self.server, problem))

    async def _run_call(self, call: Call, body: bytes) -> None:
        try:
            with call.scope:
                await self._exchange(call, body)
        except BackendError as error:
            await self._answer(call, error_answer(call.id, error))
        if self._lost_session is not None and not self._calls:
            self.fail(self._lost_session)

    async def _tell_in_turn(self, body: bytes, headers: Mapping[str, str]) -> None:
        try:
            await self._tell(body, headers)
        finally:
            self._tellers.release()

    async def _tell(self, body: bytes, headers: Mapping[str, str]) -> bool:
        """POST what has no answer. Whether the server accepted it; if not, only the log hears of it."""
        try:
            with anyio.fail_after(self._timeouts.initialize):
                async with self._endpoint.request("POST", headers, body, url=self._post_url()) as response:
                    if not is_success(response):
                        raise self._refusal(response.status, headers)
        except BackendError as error:
            logger.debug("server '%s' did not accept a message: %s", self.server, error.problem)
            return False
        except TimeoutError:
            logger.debug("server '%s' did not accept a message in time", self.server)
            return False
        return True

    # ----------------------------------------------------------------------------------------------------- messages in

    async def _answer(self, call: Call, answer: Message) -> None:
        """Hand up the one answer to a call. A second one, or one after a cancel, is dropped."""
        if self._calls.get(call.id) is call:
            del self._calls[call.id]
            await self._hand_up(answer)

    async def _hand_up(self, message: Message) -> None:
        if self.closed.is_set():
            return
        self._handed_up += 1
        if self._handed_up % _MESSAGES_PER_TURN == 0:
            await checkpoint()
        await self._deliver(message)

    # --------------------------------------------------------------------------------------------------- lost sessions

    def _refusal(self, status: int, sent: Mapping[str, str]) -> BackendUnavailable:
        """The error for a status other than 2xx in answer to these headers."""
        return self._lose_session() if self._is_session_lost(status, sent) else self._endpoint.refusal(status)

    def _lose_session(self) -> BackendUnavailable:
        """The server no longer knows our session: the wire takes nothing more, and fails once the calls in flight have
        had their own answers. What is returned is for the request that was turned away."""
        problem = "ended our session. The next call opens a new one."
        if self._lost_session is None:
            self._lost_session = BackendUnavailable(self.server, problem)
            self._spawn(self._fail_soon, self._lost_session)
        return BackendUnavailable(self.server, problem, not_sent=True)

    async def _fail_soon(self, error: BackendUnavailable) -> None:
        if self._calls:
            await anyio.sleep(_SETTLE_SECONDS)
        self.fail(error)
