"""What several sessions want to hear of one backend, and when it is told."""

from __future__ import annotations

import anyio
import pytest

from providers.log_levels import LogLevels

pytestmark = pytest.mark.core


class Backend:
    """Notes the levels that it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.levels = LogLevels(self.tell)

    async def tell(self, level: str) -> None:
        await anyio.lowlevel.checkpoint()
        self.told.append(level)


async def test_nothing_is_told_while_nobody_asks() -> None:
    backend = Backend()
    await backend.levels.want("a", None)
    await backend.levels.want("b", None)
    assert backend.told == []


async def test_a_level_is_told_once_for_many_calls() -> None:
    backend = Backend()
    for _ in range(5):
        await backend.levels.want("a", "error")
    assert backend.told == ["error"]


async def test_calls_at_the_same_time_tell_once_and_none_goes_ahead() -> None:
    backend = Backend()

    async def call() -> None:
        await backend.levels.want("a", "debug")
        assert backend.told == ["debug"]

    async with anyio.create_task_group() as calls:
        for _ in range(5):
            calls.start_soon(call)


async def test_the_most_talkative_wish_of_all_sessions_counts() -> None:
    backend = Backend()
    for session, level in [("a", "warning"), ("b", "error"), ("c", "debug"), ("a", "info"), ("c", "critical")]:
        await backend.levels.want(session, level)
    assert backend.told == ["warning", "debug", "info"]


async def test_who_never_asked_is_not_silenced_by_somebody_who_did() -> None:
    backend = Backend()
    await backend.levels.want("a", None)
    await backend.levels.want("b", "emergency")
    assert backend.told == ["info"]


async def test_a_session_that_ended_counts_no_more() -> None:
    backend = Backend()
    await backend.levels.want("a", "debug")
    await backend.levels.want("b", "error")
    assert "a" in backend.levels
    backend.levels.forget("a")
    assert "a" not in backend.levels
    await backend.levels.want("b", "error")
    assert backend.told == ["debug", "error"]


async def test_levels_that_come_with_requests_never_go_back_and_forth() -> None:
    backend = Backend()
    for level in ("error", None, "info", "error", "info"):
        await backend.levels.want("a", level, per_request=True)
    assert backend.told == ["error", "info"]


async def test_who_is_interrupted_while_telling_leaves_it_to_the_next() -> None:
    backend = Backend()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await backend.levels.want("a", "debug")
    await backend.levels.want("a", "debug")
    assert backend.told == ["debug"]
