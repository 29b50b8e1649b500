"""Which servers are one session's own, and when those of a caller without a session go."""

from __future__ import annotations

import anyio
import pytest

from composition.session_servers import SessionServers
from providers.resource import McpServerResource

pytestmark = pytest.mark.core


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(anyio, "current_time", clock)
    return clock


def server(name: str) -> McpServerResource:
    return McpServerResource(name=name, url="https://example.com/mcp")


def test_each_is_of_one_session(clock: Clock) -> None:
    servers = SessionServers(10)
    servers.add("session:a", server("one"))
    assert servers.is_of("one", "session:a") and not servers.is_others("one", "session:a")
    assert servers.is_others("one", "session:b") and not servers.is_others("two", "session:b")
    servers.forget("one")
    assert not servers.names and servers.resource("one") is None and not servers.is_others("one", "session:b")


def test_those_of_callers_without_a_session_go_when_nobody_uses_them(clock: Clock) -> None:
    servers = SessionServers(10)
    servers.add("session:a", server("one"))
    servers.add("user:b", server("two"))
    clock.now = 9
    assert servers.unused(()) == []
    servers.used("user:b")
    clock.now = 15
    assert servers.unused(()) == []
    clock.now = 30
    assert servers.unused({"two"}) == [], "a call under way is use"
    clock.now = 39
    assert servers.unused(()) == []
    clock.now = 41
    assert servers.unused(()) == ["two"]
