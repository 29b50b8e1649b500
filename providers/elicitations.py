"""Which client was sent which URL to open, so that it hears when that is done.

A backend says so by `notifications/elicitation/complete`, often when the call that asked is long over: `session` comes
in with it, and with each URL on its way to a client, be it in a question or in an error that names what must be done
first. What a client was not sent is not told to it. The notification exists in the handshake era alone.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any
from weakref import ref

import anyio

from providers import lines
from providers.caller import Front
from providers.lines import Json

logger = logging.getLogger(__name__)

COMPLETE = "notifications/elicitation/complete"

_URL_REQUIRED = -32042
"""JSON-RPC code: URLs must be opened before a request can be served (2025-11-25, client/elicitation)."""
_MAX_OPEN = 256
"""Of one backend session; the oldest is forgotten."""
_TELL_SECONDS = 5.0


class Elicitations:
    """Those of one backend session."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, ref[Any]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Elicitations {len(self._clients)} open>"

    def sent(self, front: Front, params: Json) -> None:
        """A question goes to a client."""
        elicitation, owner = params.get("elicitationId"), lines.owner_of_request(front.request)
        if isinstance(elicitation, str) and owner is not None and not front.caller.is_modern:
            self._clients[elicitation] = ref(owner)
            while len(self._clients) > _MAX_OPEN:
                self._clients.popitem(last=False)

    def failed(self, front: Front, error: Json) -> None:
        """A call ends with an error, which may say what to open."""
        data = error.get("data")
        named = data.get("elicitations") if error.get("code") == _URL_REQUIRED and isinstance(data, dict) else None
        for each in named if isinstance(named, list) else ():
            if isinstance(each, dict):
                self.sent(front, each)

    async def completed(self, params: Json, fronts: list[Front]) -> None:
        """Tell the client that has it.

        Args:
            fronts: the requests that are open now; one of the same client is the surest way to it.
        """
        elicitation = params.get("elicitationId")
        known = self._clients.pop(elicitation, None) if isinstance(elicitation, str) else None
        owner = known() if known is not None else None
        if owner is None:
            return
        front = next((each for each in fronts if lines.owner_of_request(each.request) is owner), None)
        try:
            with anyio.move_on_after(_TELL_SECONDS):
                await (front.tell(COMPLETE, params) if front else lines.tell_session(owner, COMPLETE, params))
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            logger.debug("a client left before it heard that an elicitation is complete")
