"""An own tool that may ask the person behind its caller: to approve something, or for what only a person may type.

`dynamic` comes in. A handshake client is sent the question. One of 2026-07-28 cannot be: its call is parked like one to
a backend that asks, and goes on with the retry that brings the answer.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
from fastmcp.server.dependencies import get_context
from fastmcp.tools.base import ToolResult
from pydantic import BaseModel

from composition.settings import OWN_SERVER
from providers import lines
from providers.caller import Caller, Front, front_of
from providers.components import input_required
from providers.errors import CallerError
from providers.lines import Json, MCPError
from providers.parking import Asked, ParkingLot, is_parked_state

_METHOD = "elicitation/create"


class Person:
    """Who can be asked while one call runs.

    Args:
        front: the client's request; None where there is none to be asked on.
        patience: seconds until an answer counts as none.
    """

    def __init__(self, front: Front | None, patience: float) -> None:
        self._front, self._patience = front, patience

    def __repr__(self) -> str:
        return f"<Person {'who can be asked' if self.can_be_asked else 'who cannot be asked'}>"

    @property
    def can_be_asked(self) -> bool:
        """Whether the client shows forms to its person."""
        return self._front is not None and self._front.refusal(_METHOD, {"mode": "form"}) is None

    async def fill_in(self, message: str, fields: Json) -> Json | None:
        """Have a form filled in; None where the person declines, or does not answer in time.

        Args:
            fields: JSON Schemas by name; all are required.
        """
        assert self._front is not None and self.can_be_asked, "whoever asks looks first whether that is possible"
        schema = {"type": "object", "properties": fields, "required": list(fields)}
        answer: Json = {}
        with anyio.move_on_after(self._patience):
            try:
                answer = await self._front.ask(_METHOD, {"message": message, "requestedSchema": schema})
            except MCPError:  # the client refuses to ask
                return None
        content = answer.get("content")
        return content if answer.get("action") == "accept" and isinstance(content, dict) else None


Work = Callable[[Caller, Any, Person], Awaitable[Json]]


class _Held:
    """Stands in for the lease of a parked call: there is no backend, only our own work."""

    def __init__(self, work: Callable[[Person], Awaitable[Json]], patience: float) -> None:
        self._work, self._patience = work, patience
        self.front: Front | None = None

    async def request(self, method: str, params: Json, **options: Any) -> Json:
        return await self._work(Person(self.front, self._patience))

    def close(self) -> None:
        """There is nothing to give back."""


class AskingTools:
    """
    Args:
        patience: seconds that a person has for an answer.
    """

    def __init__(self, parking: ParkingLot, patience: float) -> None:
        self._parking, self._patience = parking, patience

    def tool(self, name: str, work: Work) -> Callable[[Caller, Any], Awaitable[Json | ToolResult]]:
        """The work of an own tool, as `OwnTools.add` takes it."""
        return partial(self._run, name, work)

    async def _run(self, name: str, work: Work, caller: Caller, asked: BaseModel) -> Json | ToolResult:
        context = get_context()
        front = front_of(context, caller)
        if front is None or not caller.is_modern or not caller.capabilities or not self._parking.is_open:
            return await work(caller, asked, Person(front, self._patience))
        continuation = lines.continuation(context)
        state = continuation.get("requestState")
        request = Asked(OWN_SERVER, "tools/call", name, json.dumps(asked.model_dump(mode="json"), sort_keys=True))
        if is_parked_state(state):
            call = self._parking.claim(state, front, request)
        else:
            held = _Held(lambda person: work(caller, asked, person), self._patience)
            call = self._parking.begin(held, front, request, self._patience)
        try:
            answer = await call.request("tools/call", continuation)
        finally:
            call.leave()
        question: ToolResult | None = input_required("tool", answer)
        return question if question is not None else answer


def cannot_ask(what: str, otherwise: str) -> CallerError:
    """The error where a person would have to be asked.

    Args:
        otherwise: what helps instead.
    """
    return CallerError(f"{what}, and this client does not let the gateway ask (elicitation). {otherwise}")
