"""Parked calls: how a client of 2026-07-28, which cannot be sent requests, answers what a handshake backend asks.

The pool middleware comes in with the call of such a client and hands its lease over. The call then runs in a task of
the lot's own. When the backend asks, the client's request is answered with the questions (`input_required`) and a
state; the call waits, its lease held and its clock at rest. The client's retry brings the state back, and the answers:
the call goes on under the new request, until it asks again or is finished.

A state is good for one retry, by the same user from the same client session, of the same request to the same server,
and for as long as `timeouts.question` says. Whatever else is brought looks unknown, and changes nothing.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Any, NamedTuple, Protocol, TypeGuard

import anyio
from anyio.abc import TaskGroup

from providers.caller import NOT_ASKED, Caller, Front, refusal_for
from providers.errors import BackendError, BackendUnavailable, CallerError, GatewayError, InternalError, ProtocolError
from providers.identity import Identity
from providers.lines import Json, MCPError

logger = logging.getLogger(__name__)

MAX_PARKED = 256
MAX_PARKED_PER_USER = 16

_OURS, _THEIRS = "parked:", "backend:"
"""What a state begins with on its way through the gateway: one of a parked call, or one that the backend gave."""
_CONTINUATION = ("inputResponses", "requestState")
_GATHER_SECONDS = 0.02
"""After a question: whatever else is asked in that time goes to the client in the same answer."""
_MAX_LOGS = 100
"""That are kept for the retry of a parked call."""


class HeldLease(Protocol):
    """A lease; see `lease`. Messages of the call go to its `front`."""

    front: Front | None

    @property
    def request(self) -> Callable[..., Awaitable[Json]]: ...
    def close(self) -> None: ...


class Asked(NamedTuple):
    """What a client asked for; a retry asks for the same."""

    server: str
    method: str
    target: str
    arguments: str


class CallState(StrEnum):
    NEW = "new"
    RUNNING = "running"
    PARKED = "parked"
    OVER = "over"


@dataclass(slots=True, eq=False)
class _Question:
    form: Json
    answered: anyio.Event = field(default_factory=anyio.Event)
    answer: Json = field(default_factory=dict)


@dataclass(slots=True)
class PatientFront(Front):
    """The front of a call that may be parked: there may be no request at the moment, and the next one is another."""

    questions: dict[str, _Question] = field(default_factory=dict)
    news: anyio.Event = field(default_factory=anyio.Event)
    is_closing: bool = False
    _asked: int = 0
    _logs: deque[Json] = field(default_factory=lambda: deque(maxlen=_MAX_LOGS))

    @property
    def is_parked(self) -> bool:
        return self.request is None

    def refusal(self, method: str, params: Json) -> Json | None:
        return NOT_ASKED if self.is_closing else refusal_for(self.caller.capabilities, method, params)

    async def tell(self, method: str, params: Json) -> None:
        if not self.is_parked:
            await Front.tell(self, method, params)
        elif method == "notifications/message":
            self._logs.append(params)

    async def ask(self, method: str, params: Json | None) -> Json:
        """Have a question put to the client, and wait for the answer."""
        self._asked += 1
        key = f"question-{self._asked}"
        question = self.questions[key] = _Question({"method": method} | ({"params": params} if params else {}))
        self.tell_news()
        try:
            await question.answered.wait()
        finally:
            self.questions.pop(key, None)
        return question.answer

    def tell_news(self) -> None:
        """Wake who waits for something to happen to the call."""
        self.news.set()
        self.news = anyio.Event()

    def answer(self, answers: object) -> None:
        """Take what the client brought; what it left out stays open."""
        for key, answer in answers.items() if isinstance(answers, Mapping) else ():
            if isinstance(answer, dict) and (question := self.questions.pop(key, None)) is not None:
                question.answer = answer
                question.answered.set()

    async def take_over(self, other: Front) -> None:
        """Go on under another request."""
        self.request, self.caller = other.request, other.caller
        self.progress_token, self.is_deaf = other.progress_token, False
        while self._logs:
            await self.tell("notifications/message", self._logs.popleft())


class ParkableCall:
    """One call of a client, however many requests it takes. It stands in for the lease that it holds."""

    def __init__(self, lot: ParkingLot, held: HeldLease, front: Front, asked: Asked, patience: float) -> None:
        self._lot, self._held, self.asked, self._patience = lot, held, asked, patience
        self.front = held.front = PatientFront(front.request, front.caller, front.progress_token)
        self.state = CallState.NEW
        self._sends: tuple[str, Json, Json]
        self._next_front: Front | None = None
        self._outcome: Json | Exception | None = None
        self._told = anyio.Event()
        self._scope = anyio.CancelScope()

    def __repr__(self) -> str:
        return f"<ParkableCall {self.asked.server} {self.asked.method} {self.state}>"

    @property
    def caller(self) -> Caller:
        return self.front.caller

    async def request(self, method: str, params: Json, **options: Any) -> Json:
        """Send the request, or take the client's answers to the call that runs already: in either case, what the
        client's request is to be answered with.

        Args:
            options: as the lease takes them.

        Raises:
            MCPError, GatewayError: as the lease's `request`.
            CallerError: there are too many parked calls.
        """
        if self.state is CallState.NEW:
            self.state = CallState.RUNNING
            self._sends = (method, {key: params[key] for key in params if key not in _CONTINUATION}, options)
            self._lot.start(self)
        elif self._next_front is not None:
            await self.front.take_over(self._next_front)
            self.front.answer(params.get("inputResponses"))
        return await self._until_something_is_to_be_told()

    async def _until_something_is_to_be_told(self) -> Json:
        while self._outcome is None:
            if self.front.questions:
                await anyio.sleep(_GATHER_SECONDS)
                if self._outcome is None and self.front.questions:
                    return self._park()
            else:
                await self.front.news.wait()
        self._told.set()
        if isinstance(self._outcome, BackendError):
            raise self._outcome.again()
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def _park(self) -> Json:
        state = self._lot.park(self)
        self.state, self.front.request = CallState.PARKED, None
        self._scope.deadline = anyio.current_time() + self._patience
        questions = {key: question.form for key, question in self.front.questions.items()}
        return {"resultType": "input_required", "inputRequests": questions, "requestState": _OURS + state}

    def resume(self, front: Front) -> None:
        """A retry is here."""
        self.state, self._next_front = CallState.RUNNING, front
        self._scope.deadline = math.inf

    def leave(self) -> None:
        """The client's request is over. Unless the call is parked, that is the end of the call."""
        if self.state is CallState.NEW:
            self._held.close()
        elif self.state is not CallState.PARKED:
            self.end()

    def end(self) -> None:
        """Give the call up: the backend hears of it, the lease is given back."""
        self._scope.cancel()

    async def run(self) -> None:
        """The life of the call, in a task of its own. What came out of it is kept until the client has it."""
        with self._scope:
            await self._find_out()
            self.front.tell_news()
            await self._told.wait()
        if self._outcome is None:
            self._outcome = BackendUnavailable(self.asked.server, "the call was ended. Try again.")
        self.state = CallState.OVER
        self._lot.forget(self)
        self.front.tell_news()

    async def _find_out(self) -> None:
        method, params, options = self._sends
        try:
            self._outcome = await self._held.request(method, params, **options)
        except (GatewayError, MCPError) as error:
            self._outcome = error
        except Exception as fault:  # a task ends here: one call's fault must not end the others
            logger.exception("server '%s': a call failed", self.asked.server, exc_info=fault)
            self._outcome = InternalError(f"server '{self.asked.server}': the gateway failed. See its log.")
        finally:
            self._held.close()


class ParkingLot:
    """The calls that may be parked, and those that are. An async context manager: its body is their life.

    Args:
        most, most_per_user: how many may be parked at once.
        hold: told how to end a call that is parked now, should its client's token stop being valid; gives what is to
            be called when the call is parked no more.
    """

    def __init__(
        self,
        *,
        most: int = MAX_PARKED,
        most_per_user: int = MAX_PARKED_PER_USER,
        hold: Callable[[Callable[[], None]], Callable[[], None]] | None = None,
    ) -> None:
        self._most, self._most_per_user, self._hold = most, most_per_user, hold
        self._releases: dict[ParkableCall, Callable[[], None]] = {}
        self._calls: set[ParkableCall] = set()
        self._parked: dict[str, ParkableCall] = {}
        self._tasks: TaskGroup | None = None
        self._is_draining = False

    def __repr__(self) -> str:
        return f"<ParkingLot {len(self._parked)} parked, {len(self._calls)} calls>"

    async def __aenter__(self) -> ParkingLot:
        self._tasks, self._is_draining = anyio.create_task_group(), False
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        tasks, self._tasks = self._tasks, None
        assert tasks is not None
        for call in list(self._calls):
            call.end()
        return await tasks.__aexit__(kind, error, trace)

    @property
    def parked(self) -> int:
        """Calls that wait for their client."""
        return len(self._parked)

    @property
    def is_open(self) -> bool:
        """Whether calls are taken."""
        return self._tasks is not None and not self._is_draining

    def begin(self, held: HeldLease, front: Front, asked: Asked, patience: float) -> ParkableCall:
        """A call that owns its lease from now on.

        Args:
            patience: seconds that it stays parked.
        """
        return ParkableCall(self, held, front, asked, patience)

    def claim(self, state: str, front: Front, asked: Asked) -> ParkableCall:
        """The parked call that a retry belongs to.

        Raises:
            ProtocolError: there is none, or it is not this caller's or not this request's; which, is not told.
        """
        call = self._parked.get(state.removeprefix(_OURS)) if state.startswith(_OURS) else None
        whose = (front.caller.identity, front.caller.session)
        if call is None or call.asked != asked or (call.caller.identity, call.caller.session) != whose:
            raise unknown_state()
        self._unpark(call)
        call.resume(front)
        return call

    def start(self, call: ParkableCall) -> None:
        """Run a call."""
        assert self._tasks is not None, "calls are taken while the lot is open"
        self._calls.add(call)
        # In a context of its own: it outlives the request that began it, and is to know nothing of it.
        Context().run(self._tasks.start_soon, call.run)

    def park(self, call: ParkableCall) -> str:
        """A new state for a call that waits for its client from now on.

        Raises:
            CallerError: it is one too many.
        """
        if self._is_draining:
            raise BackendUnavailable(call.asked.server, "asks for input, and the gateway is shutting down. Try again.")
        of_this_user = sum(each.caller.identity.key == call.caller.identity.key for each in self._parked.values())
        if of_this_user >= self._most_per_user or len(self._parked) >= self._most:
            whose, most = ("yours", of_this_user) if of_this_user >= self._most_per_user else ("all users", self._most)
            raise CallerError(
                f"server '{call.asked.server}' asks for input, but {most} calls of {whose} wait for answers already. "
                "Answer those first, or try again later."
            )
        state = secrets.token_urlsafe(32)
        self._parked[state] = call
        if self._hold is not None:
            self._releases[call] = self._hold(call.end)
        return state

    def forget(self, call: ParkableCall) -> None:
        """A call is over."""
        self._calls.discard(call)
        self._unpark(call)

    def _unpark(self, call: ParkableCall) -> None:
        self._parked = {state: each for state, each in self._parked.items() if each is not call}
        if (release := self._releases.pop(call, None)) is not None:
            release()

    def review(self, may_use: Callable[[str, Identity], bool]) -> None:
        """Servers or roles changed: end what is parked where its user may not come back for it."""
        for call in list(self._parked.values()):
            if not may_use(call.asked.server, call.caller.identity):
                call.end()

    def drain(self) -> None:
        """No retry is served any more: end what is parked, and let nobody be asked from now on."""
        self._is_draining = True
        for call in list(self._parked.values()):
            call.end()
        for call in self._calls:
            call.front.is_closing = True


class PassedOn:
    """A call of a 2026-07-28 client that is not parked: a backend of the same era asks in its answers, and gets its own
    state back. That is marked while the client has it, so that it is never taken for one of ours."""

    def __init__(self, held: HeldLease) -> None:
        self._held = held

    async def request(self, method: str, params: Json, **options: Any) -> Json:
        """As the lease's.

        Raises:
            ProtocolError: the state is not one that came from a backend.
        """
        state = params.get("requestState")
        if state is not None and not str(state).startswith(_THEIRS):
            raise unknown_state()
        if state is not None:
            params = params | {"requestState": str(state).removeprefix(_THEIRS)}
        result = await self._held.request(method, params, **options)
        if result.get("resultType") == "input_required" and isinstance(result.get("requestState"), str):
            return result | {"requestState": _THEIRS + result["requestState"]}
        return result


def is_parked_state(state: Any) -> TypeGuard[str]:
    """Whether a client's `requestState` is that of a parked call."""
    return isinstance(state, str) and state.startswith(_OURS)


def unknown_state() -> ProtocolError:
    """What the SDK says of a state that it cannot unseal: the two cannot be told apart."""
    return ProtocolError(-32602, "Invalid or expired requestState", {"reason": "invalid_request_state"})
