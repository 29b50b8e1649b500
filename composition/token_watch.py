"""Nothing outlives the token that it was begun with: not a stream, not a call, not what a session is told.

A token is verified when a request comes in. What then goes on (a stream of messages, a long call, a session that hears
of changes) is held here under its token, and each token that holds something is verified again twice a second. Once it
proves nothing any more, or another user or other roles, all that it holds is ended.

`gateway` runs the watch and has sessions held, `root` has calls held, `http` puts `EndsWithToken` behind FastMCP's
authentication. The auth provider is called.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import anyio
from fastmcp.server.auth import AccessToken
from fastmcp.server.dependencies import get_access_token
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from providers.errors import NotAuthenticated
from providers.identity import Identity, identity_from_claims

logger = logging.getLogger(__name__)

_LOOK_EVERY = 0.5
"""Seconds between two looks at a token that holds something."""
_FAREWELL_SECONDS = 0.3

Verify = Callable[[str], Awaitable[AccessToken | None]]
End = Callable[[], None]
Key = tuple[str, Identity]


@dataclass(eq=False)
class _Held:
    """What hangs on one token, and on the identity that it proved."""

    expires_at: int | None
    ends: dict[int, End] = field(default_factory=dict)
    is_being_verified: bool = False


class TokenWatch:
    """
    Args:
        verify: what a token proves now; None where no token is ever sent, and there is nothing to watch.
    """

    def __init__(self, verify: Verify | None) -> None:
        self._verify = verify
        self._held: dict[Key, _Held] = {}
        self._sessions: dict[str, tuple[Key, int]] = {}
        self._next = 0

    def __repr__(self) -> str:
        return f"<TokenWatch {len(self._held)} tokens>"

    # --- what is held

    def hold(self, end: End, token: AccessToken | None = None) -> End:
        """Have `end` called should the token stop being valid, until what this gives is called.

        Args:
            end: called once, in the event loop; it must not wait.
            token: that of the current request where none is given.
        """
        held = self._hold(end, token or self._current())
        return partial(self._release, *held) if held is not None else _nothing

    @contextmanager
    def holding(self, end: End, token: AccessToken | None = None) -> Iterator[None]:
        """The same for a block."""
        release = self.hold(end, token)
        try:
            yield
        finally:
            release()

    def hold_session(self, session: str, end: End) -> None:
        """Have `end` called should the token stop being valid with which a client session was used last."""
        token = self._current()
        known = self._sessions.get(session)
        if known is not None and known[0] in self._held and token is not None and self._key(token) == known[0]:
            return
        self.release_session(session)
        held = self._hold(end, token)
        if held is not None:
            self._sessions[session] = held

    def release_session(self, session: str) -> None:
        """The session ended."""
        known = self._sessions.pop(session, None)
        if known is not None:
            self._release(*known)

    def _current(self) -> AccessToken | None:
        return get_access_token() if self._verify is not None else None

    @staticmethod
    def _key(token: AccessToken) -> Key | None:
        try:
            return token.token, identity_from_claims({"sub": token.subject, **(token.claims or {})})
        except NotAuthenticated:
            return None

    def _hold(self, end: End, token: AccessToken | None) -> tuple[Key, int] | None:
        key = self._key(token) if token is not None and self._verify is not None else None
        if key is None or token is None:
            return None
        held = self._held.setdefault(key, _Held(token.expires_at))
        self._next += 1
        held.ends[self._next] = end
        return key, self._next

    def _release(self, key: Key, number: int) -> None:
        held = self._held.get(key)
        if held is not None and held.ends.pop(number, None) is not None and not held.ends:
            del self._held[key]

    # --- the watch

    async def run(self) -> None:
        """Look at what is held, until cancelled; nothing to do where no token is ever sent."""
        if self._verify is None:
            return
        async with anyio.create_task_group() as tasks:
            while True:
                await anyio.sleep(_LOOK_EVERY)
                for key, held in list(self._held.items()):
                    if held.expires_at is not None and held.expires_at <= time.time():
                        self._end(key)
                    elif not held.is_being_verified:
                        held.is_being_verified = True
                        tasks.start_soon(self._look, key, held)

    async def _look(self, key: Key, held: _Held) -> None:
        """In a task of its own, without a deadline: an issuer that is slow with its keys delays no other token, and
        is not asked again by every look."""
        try:
            found = await self._verify(key[0]) if self._verify is not None else None
            proved = self._key(found) if found is not None else None
            is_same = proved is not None and proved[1] == key[1]
        except Exception as error:  # noqa: BLE001 - a task ends here; what cannot be verified is not verified
            logger.error("a token could not be verified (%r)", error)
            is_same = False
        finally:
            held.is_being_verified = False
        if not is_same and self._held.get(key) is held:
            self._end(key)

    def _end(self, key: Key) -> None:
        held = self._held.pop(key)
        logger.info("a token of user '%s' proves that no more: %d open things ended", key[1].user_id, len(held.ends))
        for end in list(held.ends.values()):
            end()


def _nothing() -> None:
    """There is no token, and so nothing to release."""


class EndsWithToken:
    """ASGI middleware, behind authentication: a request ends when its token stops being valid."""

    def __init__(self, app: ASGIApp, watch: TokenWatch, metadata_url: str | None = None) -> None:
        self._app, self._watch, self._metadata_url = app, watch, metadata_url

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        token = getattr(scope.get("user"), "access_token", None)
        if scope["type"] != "http" or token is None:
            await self._app(scope, receive, send)
            return
        with anyio.CancelScope() as request, self._watch.holding(request.cancel, token):
            await serve_within(request, self._app, _refusal(self._metadata_url), scope, receive, send)


async def serve_within(
    request: anyio.CancelScope, app: ASGIApp, refusal: ASGIApp, scope: Scope, receive: Receive, send: Send
) -> None:
    """Serve a request until its scope, which was entered, is cancelled. Then what was begun ends in order, and what
    was not is refused."""
    is_begun = is_complete = False

    async def follow(message: Message) -> None:
        nonlocal is_begun, is_complete
        is_begun = True
        await send(message)
        is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)

    try:
        await app(scope, receive, follow)
    finally:
        if request.cancel_called and not is_complete:
            # a client that reads nothing does not keep it open
            with anyio.move_on_after(_FAREWELL_SECONDS, shield=True):
                if is_begun:
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                else:
                    await refusal(scope, receive, send)


def _refusal(metadata_url: str | None) -> JSONResponse:
    text = (
        "The token of this request is not valid any more, or stands for other roles now. Get a new one, or try again."
    )
    body = {"error": "invalid_token", "error_description": text}
    challenge = f'Bearer error="invalid_token", error_description="{text}"'
    challenge += f', resource_metadata="{metadata_url}"' if metadata_url else ""
    return JSONResponse(body, status_code=401, headers={"WWW-Authenticate": challenge})
