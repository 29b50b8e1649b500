"""`BackendSession`: an open MCP session with one backend, dictionary in, dictionary out.

`client` opens it, `lease` sends requests through it. What a backend sends by itself comes in through `receive`, in the
order of the wire, and is passed to the front of the call that it belongs to, or to nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any

import anyio
from anyio.abc import TaskGroup
from fastmcp import Client
from mcp import ClientSession
from pydantic import ValidationError

from providers import lines
from providers.caller import CallClock, Front
from providers.errors import BackendError, BackendProtocolError, BackendTimeout, BackendUnavailable
from providers.identity import IDENTITY_META_KEY, build_identity_meta
from providers.lines import Json, MCPError
from providers.resource import McpServerResource, Timeouts
from providers.wire import NOT_SENT, WIRE_ERROR_CODE, Message, Wire

logger = logging.getLogger(__name__)

_QUESTIONS = {
    "sampling/createMessage": "sampling",
    "elicitation/create": "elicitation",
    "roots/list": "roots",
}
_MAX_QUESTIONS = 16
"""That a backend may have open at once."""
_TELL_SECONDS = 5.0
_REFUSED = {"code": -32601, "message": "The client that made this call cannot be asked this."}


class BackendSession:
    """One open MCP session with a backend. `facts` is what the server said of itself."""

    def __init__(self, resource: McpServerResource, on_change: Callable[[str], None]) -> None:
        self.server = resource.name
        self.facts: Json = {}
        self._timeouts: Timeouts = resource.timeouts
        self._on_change = on_change
        self._fronts: dict[int, Front] = {}
        self._next_token = 0
        self._asked: dict[str | int | None, tuple[Front | None, anyio.CancelScope]] = {}
        self._session: ClientSession
        self._tasks: TaskGroup
        self.wire: Wire
        self.era: Any = None
        self._is_ending = False
        self._clocks: set[CallClock] = set()
        self._abandoned: set[str] = set()

    def __repr__(self) -> str:
        return f"<BackendSession {self.server} {self.facts.get('protocolVersion')} {len(self._fronts)} calls>"

    def connected(self, wire: Wire, tasks: TaskGroup) -> None:
        """The line is open. The backend may ask from now on: some do before the client knows that it is connected."""
        self.wire, self._tasks, self._is_ending = wire, tasks, False

    def agreed(self, client: Client[Any]) -> None:
        """Take over what FastMCP's client negotiated over the wire."""
        self._session = client.session
        self.facts, self.era = lines.server_facts(client), lines.era_memory(client)

    def end(self) -> None:
        """It is about to be closed: whatever still runs on it fails now, and the backend hears of it."""
        self._is_ending = True
        for clock in list(self._clocks):
            clock.scope.cancel()

    @property
    def has_abandoned(self) -> bool:
        """Whether a request got no answer: the backend may still be at it, and speak of it to whoever comes next."""
        return bool(self._abandoned)

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
        clock = CallClock(deadline or self._timeouts.call, self._timeouts.call_max)
        token = self._next_token = self._next_token + 1
        self._clocks.add(clock)
        is_answered = False
        with clock.scope:
            if front is not None:
                front.clock, self._fronts[token] = clock, front
            try:
                answer = await self._send(method, self._with_meta(params, token if front else None))
                is_answered = True
                return answer
            except MCPError:
                is_answered = True
                raise
            finally:
                self._fronts.pop(token, None)
                self._clocks.discard(clock)
                self._end_questions(front)
                if front is not None and not is_answered:
                    self._abandoned.add(front.caller.session)
        if self._is_over:
            raise self._death(not_sent=False)
        raise BackendTimeout(
            self.server,
            f"no answer to '{method}' {clock.waited}. The request was cancelled. "
            "If it needs longer, raise timeouts.call or timeouts.call_max of this server.",
        )

    def _with_meta(self, params: Json, token: int | None) -> Json:
        meta = dict(params.get("_meta") or {})
        if token is not None:
            meta["progressToken"] = token
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
            problem = str(data["message"]).removeprefix(f"server '{self.server}': ")
            return BackendUnavailable(
                self.server, problem, not_sent=isinstance(detail, dict) and bool(detail.get(NOT_SENT))
            )
        return self._death(not_sent=False) if self._is_over else None

    @property
    def _is_over(self) -> bool:
        return self._is_ending or self.wire.closed.is_set()

    def _death(self, *, not_sent: bool) -> BackendError:
        failure = self.wire.failure
        problem = failure.problem if failure else "the connection was closed before the answer came. Try again."
        kind = type(failure) if failure else BackendUnavailable
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

    # --- what the backend sends by itself

    async def receive(self, message: Message) -> None:
        """Take one request or notification from the backend, in the order of the wire."""
        method, params = str(message["method"]), message.get("params")
        if not isinstance(params, dict):
            params = {}
        if "id" in message:
            await self._question(message["id"], method, params)
        elif method == "notifications/cancelled":
            _, question = self._asked.pop(_hashable(params.get("requestId")), (None, None))
            if question is not None:
                question.cancel()
        elif method == "notifications/progress":
            await self._progress(params)
        elif method == "notifications/message":
            front = self._caller()
            if front is not None:
                await self._tell(front, front.tell(method, params))
        elif method.endswith("/list_changed"):
            self._on_change(method)

    async def _progress(self, params: Json) -> None:
        token = params.get("progressToken")
        front = self._fronts.get(token) if isinstance(token, int) else None
        if front is not None:
            front.clock.touch()
            await self._tell(front, front.progress(params))

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

    def _caller(self) -> Front | None:
        """The front that an unaddressed message belongs to. All calls on a connection come from one client session;
        where the client's era has no sessions they may come from several windows of one user, and then it is nobody's
        unless there is just one. If another session gave up a call here, it may be about that call."""
        fronts = list(self._fronts.values())
        if not fronts or (len(fronts) > 1 and not fronts[-1].caller.has_session):
            return None
        return fronts[-1] if self._abandoned <= {fronts[-1].caller.session} else None

    async def _question(self, request_id: Any, method: str, params: Json) -> None:
        """Have a question answered in a task of its own. Who asks too much at once waits for the refusal: that is the
        back-pressure."""
        if len(self._asked) >= _MAX_QUESTIONS:
            with suppress(BackendError):
                await self.wire.send({"jsonrpc": "2.0", "id": request_id, "error": _REFUSED}, self._era_headers())
            return
        front, scope = self._caller(), anyio.CancelScope()
        self._asked[_hashable(request_id)] = (front, scope)
        self._tasks.start_soon(self._answer, request_id, method, params, front, scope)

    async def _answer(
        self, request_id: Any, method: str, params: Json, front: Front | None, scope: anyio.CancelScope
    ) -> None:
        answer: Json = {"error": _REFUSED}
        with scope:
            answer = await self._ask(front, method, params)
        if self._asked.pop(_hashable(request_id), None) is None:
            return  # the backend took the question back
        with suppress(BackendError):
            await self.wire.send({"jsonrpc": "2.0", "id": request_id, **answer}, self._era_headers())

    def _end_questions(self, front: Front | None) -> None:
        """A call is over: nobody is to answer for it any more."""
        for asked, question in self._asked.values():
            if asked is front and front is not None:
                question.cancel()

    async def _ask(self, front: Front | None, method: str, params: Json) -> Json:
        if front is None or not front.can_be_asked(_QUESTIONS.get(method)):
            return {"error": _REFUSED}
        with front.clock.resting():
            try:
                return {"result": await front.ask(method, params)}
            except MCPError as error:
                return {"error": lines.error_data(error)}
            except (anyio.ClosedResourceError, anyio.BrokenResourceError):
                return {"error": _REFUSED}

    def _era_headers(self) -> Mapping[str, str]:
        version = self.facts.get("protocolVersion")
        return {"mcp-protocol-version": version} if version else {}


def _hashable(request_id: Any) -> str | int | None:
    """A request's id; None for what is none in JSON-RPC."""
    return request_id if isinstance(request_id, str | int) else None
