"""The servers that are one client session's own: which there are, whose each is, and when it was last used.

The registry comes in, which mounts them beside those of the store. A session that ends takes its servers along. A
caller without a session (a client of 2026-07-28 over HTTP) has them under its user; those go when nobody uses them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import anyio

from providers.resource import McpServerResource

MAX_SERVERS = 10
"""That one session may have of its own."""
_LASTING = "session:"
"""Begins the key of a session that ends by itself."""


class SessionServers:
    """
    Args:
        timeout: seconds without use after which those of a caller without a session go.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._resources: dict[str, McpServerResource] = {}
        self._sessions: dict[str, str] = {}
        self._used_at: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<SessionServers {len(self._resources)} of {len(self._used_at)} sessions>"

    @property
    def names(self) -> set[str]:
        return set(self._resources)

    @property
    def resources(self) -> Mapping[str, McpServerResource]:
        return self._resources

    def resource(self, name: str) -> McpServerResource | None:
        return self._resources.get(name)

    def add(self, session: str, resource: McpServerResource) -> None:
        self._resources[resource.name], self._sessions[resource.name] = resource, session
        self._used_at[session] = anyio.current_time()

    def forget(self, name: str) -> None:
        """A server is gone; that it is none of a session's is no error."""
        self._resources.pop(name, None)
        session = self._sessions.pop(name, None)
        if session is not None and session not in self._sessions.values():
            self._used_at.pop(session, None)

    def session_of(self, name: str) -> str:
        return self._sessions[name]

    def is_of(self, name: str, session: str) -> bool:
        return self._sessions.get(name) == session

    def is_others(self, name: str, session: str) -> bool:
        """Whether it is the own one of another session."""
        return self._sessions.get(name, session) != session

    def used(self, session: str) -> None:
        """A session looked at its servers, or used one."""
        if session in self._used_at:
            self._used_at[session] = anyio.current_time()

    def unused(self, busy: Collection[str]) -> list[str]:
        """Those of callers without sessions that nobody has used for long.

        Args:
            busy: the servers with calls under way, or that are being connected to: that is use, too.
        """
        now = anyio.current_time()
        for session in {self._sessions[name] for name in busy if name in self._sessions}:
            self._used_at[session] = now
        return [
            name
            for name, session in self._sessions.items()
            if not session.startswith(_LASTING) and now - self._used_at[session] > self._timeout
        ]
