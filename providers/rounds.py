"""The questions of a 2026-07-28 backend, put to a client of the handshake era.

Such a backend asks by answering the call with its questions. The pool middleware comes in for each call whose client
does not know that: here the questions become requests to the client, all at once, and the call is sent again with the
answers and the backend's own state, until it is finished.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol
from uuid import uuid4

import anyio

from providers.caller import MAX_QUESTIONS, Front
from providers.errors import MISSING_CAPABILITY, BackendProtocolError, BackendTimeout, ProtocolError
from providers.lines import Json

MAX_ROUNDS = 32
_PAUSE, _MAX_PAUSE = 0.05, 1.0
"""Seconds before a call is sent again whose backend asks nothing, but only to be called again; they double."""


class HeldLease(Protocol):
    """A lease; see `lease`."""

    @property
    def request(self) -> Callable[..., Awaitable[Json]]: ...


class Rounds:
    """One call; it stands in for the lease that it is made through.

    Args:
        longest: seconds for all of it, people's answers included.
    """

    def __init__(self, held: HeldLease, server: str, front: Front | None, longest: float) -> None:
        self._held, self._server, self._front, self._longest = held, server, front, longest

    async def request(self, method: str, params: Json, **options: Any) -> Json:
        """As the lease's, but finished.

        Args:
            options: as the lease takes them.

        Raises:
            MCPError: the client answered a question with an error, or the backend the call.
            ProtocolError: the backend asks what this client did not declare.
            BackendProtocolError: it asks without end, or asks wrongly.
            BackendTimeout: all of it took too long.
        """
        with anyio.move_on_after(self._longest):
            return await self._until_finished(method, params, options)
        problem = f"'{method}' was not finished within {self._longest:g} s, questions included (timeouts.call_max)."
        raise BackendTimeout(self._server, problem)

    async def _until_finished(self, method: str, params: Json, options: Json) -> Json:
        result, pause = await self._held.request(method, params, **options), _PAUSE
        for _ in range(MAX_ROUNDS):
            if result.get("resultType") != "input_required":
                return result
            questions, more = result.get("inputRequests"), {}
            if questions:
                more["inputResponses"] = await self._answers(questions)
            else:
                await anyio.sleep(pause)
                pause = min(pause * 2, _MAX_PAUSE)
            if result.get("requestState") is not None:
                more["requestState"] = result["requestState"]
            result = await self._held.request(method, params | more, **options)
        raise BackendProtocolError(self._server, f"asked for input {MAX_ROUNDS} times in one call; it was given up.")

    async def _answers(self, questions: Json) -> Json:
        """The client's answers. Nothing is asked if one of the questions may not be."""
        if len(questions) > MAX_QUESTIONS:
            raise BackendProtocolError(self._server, f"asked more than {MAX_QUESTIONS} questions at once.")
        for question in questions.values():
            self._check(question)
        answers: Json = {}
        errors: list[Exception] = []

        async def ask(key: str, question: Json) -> None:
            assert self._front is not None
            try:
                params = question.get("params")
                answers[key] = await self._front.ask(question["method"], _as_handshake(question["method"], params))
            except Exception as error:  # noqa: BLE001 - a task ends here: the error is that of the call, below
                errors.append(error)
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for key, question in questions.items():
                tasks.start_soon(ask, key, question)
        if errors:
            raise errors[0]
        return answers

    def _check(self, question: object) -> None:
        if not isinstance(question, dict) or not isinstance(question.get("method"), str):
            raise BackendProtocolError(self._server, "asked for input with something that is not a question.")
        params = question.get("params")
        missing = self._missing(question["method"], params if isinstance(params, dict) else {})
        if missing is not None:
            what = f"server '{self._server}' asks for what the client did not declare"
            raise ProtocolError(MISSING_CAPABILITY, what, {"requiredCapabilities": missing})

    def _missing(self, method: str, params: Json) -> Json | None:
        return {} if self._front is None else self._front.caller.capabilities.missing(method, params)


def _as_handshake(method: str, params: Json | None) -> Json | None:
    """A question as the handshake era writes it: there a URL comes with an id, which the newest era has given up."""
    if method == "elicitation/create" and params and params.get("mode") == "url":
        return {"elicitationId": uuid4().hex} | params
    return params
