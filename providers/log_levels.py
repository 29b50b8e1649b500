"""Which log messages a backend is to send: what its client sessions asked for, and what it was told.

`session` comes in before each request with what the client of that request wants, the pool when a session ends. The
backend is told only when that changes, so as a rule nothing is sent. Which client hears what is decided elsewhere, by
each one's own level: here the backend only has to say enough.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
"""Of MCP, the most talkative first."""

UNASKED = "info"
"""What counts for a handshake client that never asked: once another one of its connection has, or where the backend
sends nothing unasked. Most servers of that era begin with it."""


def is_loud_enough(level: object, wanted: str | None) -> bool:
    """Whether a message of this level is for who wants those of `wanted` and above; None wants all."""
    return level in LEVELS and (wanted is None or LEVELS.index(str(level)) >= LEVELS.index(wanted))


class LogLevels:
    """What the sessions on one connection want to hear.

    Args:
        tell: sends the backend its new level; whatever becomes of that, it raises nothing.
    """

    def __init__(self, tell: Callable[[str], Awaitable[None]]) -> None:
        self._tell = tell
        self._wanted: dict[str, str | None] = {}
        self._told: str | None = None
        self._telling = anyio.Lock()

    def __repr__(self) -> str:
        return f"<LogLevels told={self._told} by {len(self._wanted)} sessions>"

    def __contains__(self, session: str) -> bool:
        return session in self._wanted

    async def want(self, session: str, level: str | None, *, per_request: bool = False) -> None:
        """Note what a session wants, and tell the backend before anything else is sent if that changes anything.

        Args:
            level: None if it never asked.
            per_request: it asks anew with each request. Requests run at the same time, so it never wants less than
                before, or the backend would be told again and again.
        """
        if per_request:
            level = _most_talkative(level, self._wanted.get(session))
            if level is None:
                return
        self._wanted[session] = level
        if self._is_told():
            return
        async with self._telling:
            if not self._is_told():
                level = self._needed()
                assert level is not None, "then it would be told"
                await self._tell(level)
                self._told = level

    def forget(self, session: str) -> None:
        """A session ended."""
        self._wanted.pop(session, None)

    def _is_told(self) -> bool:
        return self._needed() in (None, self._told)

    def _needed(self) -> str | None:
        """The most talkative level that any session wants; None while none has asked."""
        asked = _most_talkative(*self._wanted.values())
        is_unasked = None in self._wanted.values()
        return _most_talkative(asked, UNASKED) if asked is not None and is_unasked else asked


def _most_talkative(*levels: str | None) -> str | None:
    return min((level for level in levels if level is not None), key=LEVELS.index, default=None)
