"""`BackendSession`: an open MCP session with one backend, dictionary in, dictionary out.

`client` opens it, `lease` sends requests through it. What a backend sends by itself comes in through `receive`, in the
order of the wire, and is passed to the front of the call that it belongs to, or to nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.abc import TaskGroup
from fastmcp import Client
from mcp import ClientSession
from pydantic import ValidationError

from providers import lines
from providers.caller import MAX_QUESTIONS, NOT_ASKED, CallClock, Caller, Front
from providers.calls import Calls
from providers.elicitations import COMPLETE, Elicitations
from providers.errors import BackendError, BackendLost, BackendProtocolError, BackendTimeout, BackendUnavailable
from providers.identity import IDENTITY_META_KEY, build_identity_meta
from providers.lines import Json, MCPError
from providers.listening import ACKNOWLEDGED, Listening, without_subscription
from providers.log_levels import UNASKED, LogLevels
from providers.resource import Isolation, McpServerResource, Timeouts
from providers.wire import LOST, NOT_SENT, WIRE_ERROR_CODE, Message, OfRequest, Wire

logger = logging.getLogger(__name__)

_TELL_SECONDS = 5.0


@dataclass(slots=True, eq=False)
class _Question:
    """One that the backend asked, and the front that it goes to."""

    front: Front | None
    may_clear_up: bool = False
    is_taken_back: bool = False
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    is_over: anyio.Event = field(default_factory=anyio.Event)


class BackendSession:
    """One open MCP session with a backend. `facts` is what the server said of itself."""

    def __init__(
        self,
        resource: McpServerResource,
        on_change: Callable[[str], None],
        on_update: Callable[[Json], None] = lambda params: None,
        on_log: Callable[[Json], Awaitable[None]] | None = None,
    ) -> None:
        self.server = resource.name
        self.listening: Listening | None = None
        self._keeps_listening = resource.isolation is not Isolation.CALL
        self._on_update, self._on_log = on_update, on_log
        self.facts: Json = {}
        self._timeouts: Timeouts = resource.timeouts
        self._on_change = on_change
        self._calls = Calls()
        self._asked: dict[str | int | None, _Question] = {}
        self._session: ClientSession
        self._tasks: TaskGroup
        self.wire: Wire
        self.era: Any = None
        self._is_ending = False
        self.log_levels = LogLevels(self._tell_log_level)
        self._clocks: set[CallClock] = set()
        self._elicitations = Elicitations()

    def __repr__(self) -> str:
        return f"<BackendSession {self.server} {self.facts.get('protocolVersion')} {len(self._calls)} calls>"

    def connected(self, wire: Wire, tasks: TaskGroup) -> None:
        """The line is open. The backend may ask from now on: some do before the client knows that it is connected."""
        self.wire, self._tasks, self._is_ending = wire, tasks, False

    def agreed(self, client: Client[Any]) -> None:
        """Take over what FastMCP's client negotiated over the wire."""
        self._session = client.session
        self.facts, self.era = lines.server_facts(client), lines.era_memory(client)
        if self.is_modern and self._keeps_listening:
            self._listen()

    def _listen(self) -> None:
        """In the 2026-07-28 era the backend tells of changes only to who listens."""
        self.listening = Listening(
            self.server,
            self.facts.get("capabilities") or {},
            lambda params: self._send("subscriptions/listen", params),
            tasks=self._tasks,
            patience=self._timeouts.initialize,
            on_gap=self._tell_of_gap,
        )
        self._tasks.start_soon(self.listening.keep)

    def _tell_of_gap(self) -> None:
        """Nobody listened for a while: anything may have changed."""
        self._on_change("")
        for uri in self.listening.uris if self.listening else ():
            self._on_update({"uri": uri})

    def end(self) -> None:
        """It is about to be closed: whatever still runs on it fails now, and the backend hears of it."""
        self._is_ending = True
        for clock in list(self._clocks):
            clock.scope.cancel()

    @property
    def has_abandoned(self) -> bool:
        """Whether a request got no answer: the backend may still be at it, and speak of it to whoever comes next."""
        return self._calls.has_abandoned

    @property
    def is_modern(self) -> bool:
        return lines.is_modern_version(self.facts.get("protocolVersion"))

    # --- requests

    async def request(self, method: str, params: Json, front: Front | None, *, deadline: float | None = None) -> Json:
        """Send one request and wait for the answer.

        Args:
            params: as the backend is to see them; `_meta` gets our progress token and, for a process, the identity.
            front: the client's request that waits; progress and questions go there.
            deadline: seconds without progress (the server's `call` timeout when None); progress extends it, up to
                `call_max`.

        Raises:
            MCPError: the backend answered with an error.
            BackendUnavailable: the connection ended; `not_sent` says whether the request may be sent again.
            BackendTimeout: no answer in time.
            BackendProtocolError: the answer is not MCP.
        """
        if front is not None:
            await self.want_log_level(front.caller, front.log_level)
        clock = CallClock(deadline or self._timeouts.call, self._timeouts.call_max)
        token = self._calls.begin(front)
        self._clocks.add(clock)
        is_answered = False
        with clock.scope:
            if front is not None:
                front.clock = clock
            try:
                answer = await self._send(method, self._with_meta(params, token, front))
                is_answered = True
                for question in self._end_questions(front):
                    await self._withdraw(question)
                return answer
            except MCPError as error:
                is_answered = True
                if front is not None:
                    self._elicitations.failed(front, lines.error_data(error))
                raise
            finally:
                self._clocks.discard(clock)
                self._end_questions(front)
                self._calls.end(token, is_answered=is_answered)
        if self._is_over:
            raise self._death(not_sent=False)
        raise BackendTimeout(
            self.server,
            f"no answer to '{method}' {clock.waited}. The request was cancelled. "
            "If it needs longer, raise timeouts.call or timeouts.call_max of this server.",
        )

    def sends(self, message: Message) -> None:
        """A message goes to the backend: what comes on the stream of its answer belongs to the same call."""
        self._calls.sent(message)

    async def want_log_level(self, caller: Caller, level: str | None) -> None:
        """Have the backend send what this client wants to hear, if it sends log messages at all."""
        if not self.is_modern and (self.facts.get("capabilities") or {}).get("logging") is not None:
            await self.log_levels.want(caller.session, level, per_request=caller.is_modern)

    async def _tell_log_level(self, level: str) -> None:
        try:
            await self.request("logging/setLevel", {"level": level}, None, deadline=self._timeouts.list)
        except (BackendError, MCPError) as error:
            logger.debug("server '%s' did not take the log level '%s' (%s)", self.server, level, error)

    def _with_meta(self, params: Json, token: int, front: Front | None) -> Json:
        meta = dict(params.get("_meta") or {})
        if front is not None:
            meta["progressToken"] = token
            level = front.log_level or (None if front.caller.is_modern else UNASKED)
            if self.is_modern and level is not None:
                meta[lines.LOG_LEVEL_KEY] = level
        if self.wire.identity_in_meta and self.wire.identity is not None:
            meta[IDENTITY_META_KEY] = build_identity_meta(self.wire.identity)
        else:
            meta.pop(IDENTITY_META_KEY, None)  # only the gateway says who calls
        return {**params, "_meta": meta} if meta else {key: params[key] for key in params if key != "_meta"}

    async def _send(self, method: str, params: Json) -> Json:
        if self._is_over:
            raise self._death(not_sent=True)
        try:
            return await lines.send_raw(self._session, method, params or None)
        except MCPError as error:
            failure = self._own_failure(error)
            if failure is None:
                raise
            raise failure from None
        except ValidationError as error:
            raise BackendProtocolError(
                self.server,
                f"its answer to '{method}' is not what MCP prescribes ({error.error_count()} faults).",
            ) from None

    def _own_failure(self, error: MCPError) -> BackendError | None:
        """The failure of the wire or the session that an error stands for; None when the backend itself answered."""
        data = lines.error_data(error)
        if data["code"] == WIRE_ERROR_CODE:
            detail = data.get("data")
            told = {key for key in (NOT_SENT, LOST) if isinstance(detail, dict) and detail.get(key)}
            problem = str(data["message"]).removeprefix(f"server '{self.server}': ")
            kind = BackendLost if LOST in told else BackendUnavailable
            return kind(self.server, problem, not_sent=NOT_SENT in told)
        return self._death(not_sent=False) if self._is_over else None

    @property
    def _is_over(self) -> bool:
        return self._is_ending or self.wire.closed.is_set()

    def _death(self, *, not_sent: bool) -> BackendError:
        failure = self.wire.failure
        problem = failure.problem if failure else "the connection was closed before the answer came. Try again."
        kind = type(failure) if failure else BackendUnavailable
        if kind is BackendUnavailable and (failure is not None or not self._is_ending):
            kind = BackendLost  # it died first, and we closed what was left
        return kind(self.server, problem, not_sent=not_sent)

    async def ping(self, deadline: float) -> bool:
        """Whether the backend is there. The 2026-07-28 era has no ping; there it is asked what it is."""
        if self._is_over:
            return False
        try:
            await self.request("server/discover" if self.is_modern else "ping", {}, None, deadline=deadline)
        except (BackendError, MCPError) as error:
            return isinstance(error, MCPError | BackendProtocolError)  # a bad answer is an answer
        return True

    async def tell(self, method: str) -> None:
        """Send a notification without params; a backend that is gone is no error."""
        with suppress(BackendError):
            await self.wire.send({"jsonrpc": "2.0", "method": method}, self._era_headers())

    # --- what the backend sends by itself

    async def receive(self, message: Message) -> None:
        """Take one request or notification from the backend, in the order of the wire."""
        method, params = str(message["method"]), message.get("params")
        if not isinstance(params, dict):
            params = {}
        of_request = message.request_id if isinstance(message, OfRequest) else None
        if "id" in message:
            await self._question(message["id"], method, params, of_request)
        elif method == "notifications/cancelled":
            question = self._asked.get(_hashable(params.get("requestId")))
            if question is not None:
                question.is_taken_back = True
                await self._withdraw(question)
        elif method == "notifications/progress":
            await self._progress(params)
        elif method == "notifications/message":
            front = self._calls.whose(of_request)
            if front is not None:
                await self._tell(front, front.tell(method, params))
            elif not self._calls and self._on_log is not None:
                await self._log_at_large(params)
        elif method == COMPLETE:
            await self._elicitations.completed(params, self._calls.fronts)
        elif method == ACKNOWLEDGED and self.listening is not None:
            self.listening.acknowledge(params)
        elif self.listening is not None and not self.listening.is_current(params):
            pass  # of a stream that was replaced: it comes on the new one, too
        elif method.endswith("/list_changed"):
            self._on_change(method)
        elif method == "notifications/resources/updated":
            self._on_update(without_subscription(params))

    async def _progress(self, params: Json) -> None:
        token = params.get("progressToken")
        front = self._calls.of_token(token) if isinstance(token, int) else None
        if front is not None:
            front.clock.touch()
            await self._tell(front, front.progress(params))

    async def _log_at_large(self, params: Json) -> None:
        """A log message while no call runs is for the client session that this connection belongs to, if it belongs to
        one. A client that does not take it in time gets no more of them."""
        assert self._on_log is not None
        with anyio.move_on_after(_TELL_SECONDS) as telling:
            await self._on_log(params)
        if telling.cancelled_caught:
            self._on_log = None

    async def _tell(self, front: Front, sending: Coroutine[Any, Any, None]) -> None:
        if front.is_deaf:
            sending.close()
            return
        try:
            with anyio.move_on_after(_TELL_SECONDS) as telling:
                await sending
            front.is_deaf = telling.cancelled_caught
        except (anyio.ClosedResourceError, anyio.BrokenResourceError, MCPError):
            logger.debug("server '%s': the client left before a notification reached it", self.server)

    async def _question(self, request_id: Any, method: str, params: Json, of_request: int | str | None) -> None:
        """Have a question answered in a task of its own. Who asks too much at once waits for the refusal: that is the
        back-pressure."""
        if len(self._asked) >= MAX_QUESTIONS or not _is_new_id(request_id, self._asked):
            with suppress(BackendError):
                await self.wire.send({"jsonrpc": "2.0", "id": request_id, "error": NOT_ASKED}, self._era_headers())
            return
        question = self._asked[_hashable(request_id)] = _Question(self._calls.whose(of_request))
        may_clear_up = of_request is None and self._calls.may_clear_up
        question.may_clear_up = question.front is None and may_clear_up
        self._tasks.start_soon(self._answer, request_id, method, params, question)

    async def _answer(self, request_id: Any, method: str, params: Json, question: _Question) -> None:
        answer: Json = {"error": NOT_ASKED}
        with question.scope:
            if question.may_clear_up:
                question.front = await self._calls.one_left()
            answer = await self._ask(question.front, method, params)
        question.is_over.set()
        self._asked.pop(_hashable(request_id), None)
        if question.is_taken_back:
            return
        with suppress(BackendError):
            await self.wire.send({"jsonrpc": "2.0", "id": request_id, **answer}, self._era_headers())

    def _end_questions(self, front: Front | None) -> list[_Question]:
        """A call is over: nobody is to answer for it any more. What it had asked."""
        questions = [each for each in self._asked.values() if each.front is front and front is not None]
        for question in questions:
            question.scope.cancel()
        return questions

    async def _withdraw(self, question: _Question) -> None:
        """Nobody needs the answer any more. The client hears so before anything that comes next, which may be the
        answer to its request, and with it the end of the way to it."""
        question.scope.cancel()
        with anyio.move_on_after(_TELL_SECONDS):
            await question.is_over.wait()

    async def _ask(self, front: Front | None, method: str, params: Json) -> Json:
        refusal = NOT_ASKED if front is None else front.refusal(method, params)
        if front is None or refusal is not None:
            return {"error": refusal}
        self._elicitations.sent(front, params)
        with front.clock.resting():
            try:
                return {"result": await front.ask(method, params)}
            except MCPError as error:
                return {"error": lines.error_data(error)}
            except (anyio.ClosedResourceError, anyio.BrokenResourceError):
                return {"error": NOT_ASKED}

    def _era_headers(self) -> Mapping[str, str]:
        version = self.facts.get("protocolVersion")
        return {"mcp-protocol-version": version} if version else {}


def _is_new_id(request_id: Any, asked: Mapping[str | int | None, Any]) -> bool:
    """Whether a question can be told from those that are open: else its answer could be another one's."""
    return isinstance(request_id, str | int) and not isinstance(request_id, bool) and request_id not in asked


def _hashable(request_id: Any) -> str | int | None:
    """A request's id; None for what is none in JSON-RPC."""
    return request_id if isinstance(request_id, str | int) else None
