"""Who is calling: the client session behind a request, what its client can be asked, and when it has ended."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from fastmcp import Context, FastMCP

from providers import lines
from providers.caller import CallClock, Caller, ClientSessions, Front, front_of
from providers.identity import Identity
from tests.helpers.fakes import ALICE, BOB, client_of, no_waiting, time_passes

pytestmark = pytest.mark.core


class Desk:
    """A real server whose tool notes who calls."""

    def __init__(self, identity: Identity = ALICE) -> None:
        self.sessions = ClientSessions()
        self.callers: list[Caller] = []
        self.fronts: list[Front | None] = []
        self.ended: list[str] = []
        self.identity = identity
        self.server: FastMCP[Any] = FastMCP("desk")
        self.server.tool(self.note, name="note")
        self.sessions.on_end.append(self._session_ended)

    async def note(self, context: Context) -> None:
        caller = self.sessions.caller(context, self.identity)
        self.callers.append(caller)
        self.fronts.append(front_of(context, caller))

    async def _session_ended(self, session: str) -> None:
        self.ended.append(session)


async def answer(*_: Any) -> Any:
    raise AssertionError("not asked in these tests")


# ------------------------------------------------------------------------------------------ sessions


async def test_calls_of_one_client_have_one_session_and_those_of_two_have_two() -> None:
    desk = Desk()
    async with client_of(desk.server) as one, client_of(desk.server) as other:
        for client in (one, one, other):
            await client.call_tool("note")
        assert len(desk.sessions) == 2 and repr(desk.sessions) == "<ClientSessions 2 alive>"
    first, again, second = (caller.session for caller in desk.callers)
    assert first == again != second and all(caller.has_session for caller in desk.callers)


async def test_a_session_is_told_to_have_ended_once_and_is_forgotten() -> None:
    desk = Desk()
    async with client_of(desk.server) as one:
        async with client_of(desk.server) as other:
            await one.call_tool("note")
            await other.call_tool("note")
            assert desk.ended == []
        await until(lambda: desk.ended == [desk.callers[1].session])
        assert len(desk.sessions) == 1
    await until(lambda: len(desk.ended) == 2)
    assert len(desk.sessions) == 0


async def test_a_session_without_a_call_is_nothing_to_remember() -> None:
    desk = Desk()
    async with client_of(desk.server) as client:
        await client.list_tools()
    assert len(desk.sessions) == 0 and desk.ended == []


async def test_our_key_of_a_session_is_not_the_clients_session_id() -> None:
    desk, ids = Desk(), []

    async def session_id(context: Context) -> None:
        ids.append(context.session_id)

    desk.server.tool(session_id, name="session_id")
    async with client_of(desk.server) as client:
        await client.call_tool("note")
        await client.call_tool("session_id")
    assert ids[0] not in desk.callers[0].session


async def test_outside_of_a_request_the_caller_is_the_process() -> None:
    caller = ClientSessions().caller(None, ALICE)
    assert caller == Caller(ALICE, f"process:{ALICE.key}", has_session=False)
    assert front_of(None, caller) is None


async def until(condition: Any) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.lowlevel.checkpoint()


# ----------------------------------------------------------------------------- what it can be asked


@pytest.mark.parametrize(
    ("handlers", "declared"),
    [
        ({}, set()),
        ({"roots": ["file:///tmp"]}, {"roots"}),
        ({"sampling_handler": answer}, {"sampling"}),
        ({"elicitation_handler": answer}, {"elicitation"}),
        (
            {"roots": [], "sampling_handler": answer, "elicitation_handler": answer},
            {"roots", "sampling", "elicitation"},
        ),
    ],
)
async def test_what_the_client_declares_is_what_it_can_be_asked(handlers: dict[str, Any], declared: set[str]) -> None:
    desk = Desk()
    async with client_of(desk.server, **handlers) as client:
        await client.call_tool("note")
    assert set(desk.callers[0].capabilities.declared) == declared and not desk.callers[0].is_modern


async def test_the_front_has_the_clients_own_progress_token() -> None:
    async def hears(*_: Any) -> None:
        return None

    desk = Desk()
    async with client_of(desk.server) as client:
        await client.call_tool("note")
        await client.call_tool("note", progress_handler=hears)
    tokens = [front.progress_token for front in desk.fronts if front]
    assert len(tokens) == 2 and tokens[1] is not None


# -------------------------------------------------------------------------------- telling sessions


@asynccontextmanager
async def listening(desk: Desk, identity: Identity) -> AsyncIterator[list[str]]:
    """A client session of a user, and the methods that it is told."""
    told: list[str] = []

    async def hears(message: Any) -> None:
        told.append(getattr(getattr(message, "root", message), "method", ""))

    desk.identity = identity
    async with client_of(desk.server, message_handler=hears) as client:
        await client.call_tool("note")
        yield told


async def test_a_change_is_told_to_the_sessions_that_it_concerns() -> None:
    desk = Desk()
    async with listening(desk, ALICE) as alice, listening(desk, BOB) as bob:
        methods = ["notifications/tools/list_changed", "notifications/prompts/list_changed"]
        await desk.sessions.announce(lambda identity, _: methods if identity.user_id == "alice" else [])
        await until(lambda: alice == methods)
        assert bob == []


async def test_a_session_that_is_over_is_not_told() -> None:
    desk = Desk()
    async with listening(desk, ALICE) as told:
        pass
    await desk.sessions.announce(lambda *_: ["notifications/tools/list_changed"])
    assert told == []


async def test_a_session_that_cannot_be_told_costs_the_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    desk, tell = Desk(), lines.tell_session

    async def tell_or_fail(owner: Any, method: str, params: Any = None) -> None:
        if not failed:
            failed.append(owner)
            raise RuntimeError("its stream is gone")
        await tell(owner, method)

    failed: list[Any] = []
    monkeypatch.setattr(lines, "tell_session", tell_or_fail)
    async with listening(desk, ALICE) as one, listening(desk, BOB) as other:
        await desk.sessions.announce(lambda *_: ["notifications/tools/list_changed"])
        await until(lambda: len(one) + len(other) == 1)


async def test_a_stuck_client_costs_the_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    desk, tell, stuck = Desk(), lines.tell_session, []

    async def tell_slowly(owner: Any, method: str, params: Any = None) -> None:
        if not stuck or owner is stuck[0]:
            stuck[:] = [owner]
            await anyio.sleep_forever()
        await tell(owner, method)

    monkeypatch.setattr(lines, "tell_session", tell_slowly)
    async with listening(desk, ALICE) as one, listening(desk, BOB) as other:
        with no_waiting():
            began = anyio.current_time()
            await desk.sessions.announce(lambda *_: ["notifications/tools/list_changed"])
            assert anyio.current_time() - began == pytest.approx(5)
            assert len(one) + len(other) == 1


# -------------------------------------------------------------------------------------- the clock


@pytest.fixture
async def time_flies() -> AsyncIterator[None]:
    with no_waiting():
        yield


async def ends_after(clock: CallClock, work: Any = None) -> float:
    """How long the clock lets something run that does not end."""
    began = anyio.current_time()
    with clock.scope:
        if work is not None:
            await work(clock)
        await anyio.sleep_forever()
    return anyio.current_time() - began


@pytest.mark.usefixtures("time_flies")
async def test_without_progress_a_call_ends_at_its_patience() -> None:
    clock = CallClock(5, 60)
    assert await ends_after(clock) == pytest.approx(5)
    assert clock.waited == "within 5 s"


@pytest.mark.usefixtures("time_flies")
async def test_progress_extends_a_call_up_to_the_longest() -> None:
    async def reports(clock: CallClock) -> None:
        while True:
            await time_passes(4)
            clock.touch()

    clock = CallClock(5, 60)
    assert await ends_after(clock, reports) == pytest.approx(60)
    assert "longest time that a call may take" in clock.waited


@pytest.mark.usefixtures("time_flies")
async def test_while_a_person_is_asked_only_the_longest_counts() -> None:
    async def asks(clock: CallClock) -> None:
        with clock.resting():
            await time_passes(30)

    assert await ends_after(CallClock(5, 60), asks) == pytest.approx(35)


@pytest.mark.usefixtures("time_flies")
async def test_a_person_is_not_hurried_by_progress_or_by_another_answer() -> None:
    async def asks(clock: CallClock) -> None:
        with clock.resting():
            clock.touch()
            with clock.resting():
                await time_passes(1)
            await time_passes(30)

    assert await ends_after(CallClock(5, 60), asks) == pytest.approx(36)


@pytest.mark.usefixtures("time_flies")
async def test_a_person_who_never_answers_ends_the_call_too() -> None:
    async def asks(clock: CallClock) -> None:
        with clock.resting():
            await anyio.sleep_forever()

    assert await ends_after(CallClock(5, 60), asks) == pytest.approx(60)


@pytest.mark.usefixtures("time_flies")
async def test_a_patience_beyond_the_longest_is_the_longest() -> None:
    assert await ends_after(CallClock(100, 60)) == pytest.approx(100)
