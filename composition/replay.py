"""What was sent to handshake clients over HTTP lately, kept so that a stream that broke can be taken up again.

The SDK stores each event here and asks for those after the `Last-Event-ID` that a client names. FastMCP puts the
session's own prefix before each stream, so nobody takes up the stream of another session. All of it is in memory and
bounded, for each session and in all: what is gone cannot be taken up, and the client hears that its stream is unknown.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from mcp.server.streamable_http import EventMessage, EventStore

RETRY_MILLISECONDS = 1000
"""How long a client is to wait before it takes up a stream."""

_OVERHEAD = 512
"""Bytes that an event costs beside its text, about."""


class ReplayLimits(NamedTuple):
    """Sizes in bytes, about; time in seconds."""

    in_all: int = 64 * 1024 * 1024
    per_session: int = 4 * 1024 * 1024
    age: float = 300.0


class _Event(NamedTuple):
    number: int
    stream: str
    message: Any
    """None opens a stream: something to resume after, although nothing was said yet."""
    size: int
    at: float
    is_whole: bool
    """False for a message that was too large to keep."""


class _Session:
    def __init__(self) -> None:
        self.tag = secrets.token_hex(8)
        self.events: deque[_Event] = deque()
        self.size = self.count = 0


class ReplayStore(EventStore):
    """The events of all sessions.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, limits: ReplayLimits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits or ReplayLimits(), clock
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        """By the prefix of their streams; who was sent something last is last."""
        self._prefixes: dict[str, str] = {}
        self.size = 0

    def __repr__(self) -> str:
        return f"<ReplayStore {len(self._sessions)} sessions, {self.size} bytes>"

    def __len__(self) -> int:
        return sum(len(session.events) for session in self._sessions.values())

    async def store_event(self, stream_id: str, message: Any) -> str:
        prefix, now = _prefix(stream_id), self._clock()
        session = self._sessions.get(prefix) or self._add(prefix)
        self._sessions.move_to_end(prefix)
        size = _OVERHEAD if message is None else _OVERHEAD + _size(message, self._limits.per_session)
        is_whole = size < self._limits.per_session
        if not is_whole:
            message, size = None, _OVERHEAD
        kept = _Event(session.count, stream_id, message, size, now, is_whole)
        session.events.append(kept)
        session.count += 1
        session.size += kept.size
        self.size += kept.size
        while session.size > self._limits.per_session:
            self._drop_oldest(prefix)
        self._make_room(now)
        return f"{session.tag}-{kept.number}"

    async def replay_events_after(
        self, last_event_id: str, send_callback: Callable[[EventMessage], Awaitable[None]]
    ) -> str | None:
        tag, _, number = last_event_id.partition("-")
        session = self._sessions.get(self._prefixes.get(tag, ""))
        if session is None:
            return None
        last = next((event for event in session.events if str(event.number) == number), None)
        if last is None:
            return None
        missed = [event for event in session.events if event.number > last.number and event.stream == last.stream]
        if not all(event.is_whole for event in missed):
            return None
        for event in missed:
            if event.message is not None:
                await send_callback(EventMessage(event.message, f"{tag}-{event.number}"))
        return last.stream

    def _add(self, prefix: str) -> _Session:
        session = self._sessions[prefix] = _Session()
        self._prefixes[session.tag] = prefix
        return session

    def _make_room(self, now: float) -> None:
        """Drop what is too old or too much, of the session that has been silent for longest."""
        while self._sessions:
            prefix, session = next(iter(self._sessions.items()))
            is_old = session.events[0].at < now - self._limits.age
            if not is_old and self.size <= self._limits.in_all:
                return
            self._drop_oldest(prefix)

    def _drop_oldest(self, prefix: str) -> None:
        session = self._sessions[prefix]
        event = session.events.popleft()
        session.size -= event.size
        self.size -= event.size
        if not session.events:
            del self._sessions[prefix], self._prefixes[session.tag]


def _prefix(stream_id: str) -> str:
    """What FastMCP puts before the streams of a session: how long its key is, and the key."""
    length, _, rest = stream_id.partition(":")
    return rest[: int(length)] if length.isdecimal() else ""


def _size(message: Any, enough: int) -> int:
    """About how many bytes a message holds. It is looked through no further than until it is too large."""
    size = 0
    waiting: list[Any] = [getattr(message, name, None) for name in ("result", "params", "error")]
    while waiting and size < enough:
        value = waiting.pop()
        if isinstance(value, str):
            size += len(value)
        elif isinstance(value, dict):
            size += 64 * len(value)
            waiting.extend(value.values())
        elif isinstance(value, list | tuple):
            size += 8 * len(value)
            waiting.extend(value)
        else:
            size += 32
    return size
