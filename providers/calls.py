"""The calls under way on one backend session, and whose each message is that the backend sends by itself. No I/O.

`BackendSession` comes in: with each request that it sends, and with each message that says not to which of them it
belongs. What cannot be told to belong to one call goes to nobody.
"""

from __future__ import annotations

import anyio

from providers.caller import Front
from providers.wire import Message

_CLEAR_UP_SECONDS = 5.0
"""What a question waits at most until it is clear which of several calls has asked it."""


class Calls:
    """The fronts of the calls under way, by progress token, which is ours."""

    def __init__(self) -> None:
        self._fronts: dict[int, Front] = {}
        self._tokens: dict[int | str, int] = {}
        """By the id of a request on the wire."""
        self._next_token = 0
        self._abandoned: set[str] = set()
        self._unclear = self._given_up = 0
        self._one_ended = anyio.Event()

    def __repr__(self) -> str:
        return f"<Calls {len(self._fronts)} under way>"

    def __len__(self) -> int:
        return len(self._fronts)

    @property
    def fronts(self) -> list[Front]:
        return list(self._fronts.values())

    @property
    def has_abandoned(self) -> bool:
        """Whether a call got no answer: the backend may still be at it."""
        return bool(self._abandoned)

    def begin(self, front: Front | None) -> int:
        """A request is about to be sent, for a client's request if it has a front; its progress token."""
        self._next_token += 1
        if front is not None:
            self._fronts[self._next_token] = front
        return self._next_token

    def sent(self, message: Message) -> None:
        """A message goes on the wire: what comes on the stream of its answer belongs to the same call."""
        meta = (message.get("params") or {}).get("_meta") or {}
        if "method" in message and "id" in message and meta.get("progressToken") in self._fronts:
            self._tokens[message["id"]] = meta["progressToken"]

    def end(self, token: int, *, is_answered: bool) -> None:
        """A request is over."""
        front = self._fronts.pop(token, None)
        if front is None:
            return
        self._tokens = {request_id: each for request_id, each in self._tokens.items() if each != token}
        if not is_answered:
            self._abandoned.add(front.caller.session)
            self._given_up += 1
        self._one_ended.set()
        self._one_ended = anyio.Event()

    # --- whose it is

    def of_token(self, token: int) -> Front | None:
        return self._fronts.get(token)

    def whose(self, of_request: int | str | None = None) -> Front | None:
        """The front that an unaddressed message belongs to: that of the request on whose stream it came, if it did.
        Else: all calls on a connection come from one client session; where the client's era has no sessions they may
        come from several windows of one user, and then it is nobody's unless there is just one; calls that wait for an
        answer do not count. If another session gave up a call here, it may be about that call."""
        if of_request is not None:
            return self._fronts.get(self._tokens.get(of_request, 0))
        fronts = self._running() or self.fronts
        if not fronts or (len(fronts) > 1 and not fronts[-1].caller.has_session):
            return None
        return fronts[-1] if self._abandoned <= {fronts[-1].caller.session} else None

    def _running(self) -> list[Front]:
        return [front for front in self._fronts.values() if not front.is_parked]

    @property
    def may_clear_up(self) -> bool:
        """Whether it may become clear which of several calls has asked a question, as the others are answered."""
        return len(self._running()) > self._unclear + 1

    async def one_left(self) -> Front | None:
        """Who has asked, if several calls may have: the one that is left when the others were answered, for they do not
        wait for anything. Nobody if that takes too long, or if one of them was given up, which may have asked it."""
        given_up, self._unclear = self._given_up, self._unclear + 1
        try:
            with anyio.move_on_after(_CLEAR_UP_SECONDS):
                while len(self._running()) > 1 and given_up == self._given_up:
                    await self._one_ended.wait()
        finally:
            self._unclear -= 1
        return self.whose() if given_up == self._given_up else None
